"""Linear probe: one linear layer on frozen, cached features, its learning rate and pooling chosen on held-out images.

A grid of heads is trained at once, as in iBOT (Zhou et al., ICLR 2022, arXiv:2111.07832, `eval_linear_multi.py`) and
DINOv2 (Oquab et al., TMLR 2024, arXiv:2304.07193), on standardised features as in MAE (He et al., CVPR 2022,
arXiv:2111.06377, appendix A.1).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result, at_edge
from ssl_bench.evaluations.heads import ROWS_PER_BLOCK, Heads, Transform, standardisation
from ssl_bench.evaluations.selection import choose_head
from ssl_bench.metrics.metric import accuracies, true_class_rank
from ssl_bench.utils.bounds import Count, Natural, NonNegative, Positive, Seed
from ssl_bench.utils.errors import RunError, UserError, unknown

INPUTS = ("standardised", "whitened")
RIDGE = 1e-4  # added to the correlation matrix (mean eigenvalue 1) before its inversion: weaker directions are noise
WHITENING_ROWS = 10  # images a dimension; with fewer, whitening overfits and is left out if there is another input


class Linear(Evaluator):
    """Softmax regression by SGD on features of unaugmented images; a head for each pooling, input, lr and weight decay.

    All heads see the same batches: SGD with momentum 0.9, lr = base_lr x batch_size / 256 falling to 0 on a cosine,
    step by step; zero initialisation. Inputs are standardised per dimension (MAE's BatchNorm without affine parameters,
    but with the statistics of the whole training split instead of each batch) or also whitened, which is ours:
    correlated features leave SGD far from the optimum after any affordable number of steps; whitened ones do not, but
    overfit when images are few (below ten a dimension they are left out). Heads are trained on fit and compared on dev;
    the winner's settings are then trained afresh on all training images, and that head alone meets the test images.

    Args:
        base_lr: Learning rates per 256 images.
        weight_decay: Weight decays (L2, weights only); the published probes use 0.
        epochs: Passes over the training images.
        min_steps: A small training set gets more passes, until there are this many steps.
        batch_size: Images a step, or all of them if there are fewer.
        poolings: Features to compare.
        inputs: "standardised", "whitened" or both, to compare.
        seed: Seed of the order of images.

    Raises:
        UserError: An empty grid, or a number out of range.
    """

    version: ClassVar[int] = 2
    metric_help: ClassVar[dict[str, str]] = {
        "top1": "accuracy, percent",
        "top5": "truth among the five classes with the highest scores, percent",
    }

    def __init__(
        self,
        base_lr: tuple[Positive, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
        weight_decay: tuple[NonNegative, ...] = (0.0,),
        epochs: Count = 10,
        min_steps: Natural = 1000,
        batch_size: Count = 512,
        poolings: tuple[str, ...] = ("cls", "mean"),
        inputs: tuple[str, ...] = INPUTS,
        seed: Seed = 0,
    ) -> None:
        self.base_lr = tuple(base_lr)
        self.weight_decay = tuple(weight_decay)
        self.epochs = epochs
        self.min_steps = min_steps
        self.batch_size = batch_size
        self.poolings = tuple(poolings)
        self.inputs = tuple(inputs)
        self.seed = seed
        if min(self.base_lr, default=0) <= 0 or min(self.weight_decay, default=-1) < 0:
            raise UserError(f"linear: base_lr must be > 0 and weight_decay >= 0, got {base_lr} and {weight_decay}")
        for name in self.inputs or ("",):
            if name not in INPUTS:
                raise unknown("linear input", name, INPUTS)
        if epochs < 1 or batch_size < 1:
            raise UserError(f"linear: epochs and batch_size must be at least 1, got {epochs} and {batch_size}")

    def run(self, encoder: Encoder, data: Data) -> Result:
        """Choose the head on dev, train its settings again on all training images, score test once.

        Raises:
            UserError: The encoder has none of the poolings.
            RunError: Features that mean nothing, or no head of the grid stayed finite.
        """
        classes = len(data.train.classes)
        fit, dev = self.features(encoder, data.fit), self.features(encoder, data.dev)
        tried: dict[tuple[str, str, float, float], tuple[float, float]] = {}  # settings -> dev accuracy, -dev loss
        for name, features in fit.items():
            wide = len(features) < WHITENING_ROWS * features.shape[1]
            inputs = [kind for kind in self.inputs if not (wide and kind == "whitened")] or self.inputs
            grid = list(itertools.product(inputs, self.base_lr, self.weight_decay))
            heads = self._train(features, data.fit.labels, classes, grid)
            found = heads.evaluate(dev[name], data.dev.labels)
            tried |= {(name, *settings): on_dev for settings, on_dev in zip(grid, found, strict=True)}
        (pooling, kind, lr, decay), facts = choose_head("linear", tried, f"base_lr {self.base_lr} needs smaller values")
        labels = data.train.labels
        final = self._train(self.features(encoder, data.train)[pooling], labels, classes, [(kind, lr, decay)])
        if not torch.isfinite(final.weight).all():
            raise RunError(f"linear: the head with base_lr {lr} diverged when trained on all training images")
        rank = true_class_rank(final.scores(self.features(encoder, data.test)[pooling])[:, 0], data.test.labels)
        chosen: dict[str, object] = {
            "pooling": pooling,
            "input": kind,
            "base_lr": lr,
            "lr": lr * min(self.batch_size, len(labels)) / 256,
            "weight_decay": decay,
            **facts,
            "lr_at_edge": at_edge(lr, self.base_lr),
            "steps": self._steps(len(labels)),
        }
        return Result(accuracies(rank), "top1", (rank == 0).numpy(), chosen, pooling)

    def _steps(self, n: int) -> int:
        return max(self.epochs * (n // min(self.batch_size, n)), self.min_steps)

    def _train(self, features: Tensor, labels: Tensor, classes: int, grid: Sequence[tuple[str, float, float]]) -> Heads:
        batch_size, steps = min(self.batch_size, len(labels)), self._steps(len(labels))
        return train_heads(features, labels, classes, grid, steps=steps, batch_size=batch_size, seed=self.seed)


def inverse_correlation(features: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """The matrix that turns a gradient on standardised features into the one on whitened features.

    With z standardised and C their correlation, let u = L' z where L L' = (C + RIDGE I)^-1. A head V on u is the head
    W = L V on z, and a step of SGD on V moves W by L L' times W's gradient: no whitened copy of the features is needed.

    Args:
        features: (N, D) float32.
        mean: (D,) from `standardisation`.
        scale: (D,) from `standardisation`.

    Returns:
        (C + RIDGE I)^-1, (D, D) float32.
    """
    dim = features.shape[1]
    total = torch.zeros(dim, dim, dtype=torch.float64, device=features.device)
    for rows in features.split(ROWS_PER_BLOCK):
        z = (rows - mean) * scale
        total += z.T @ z
    ridge = RIDGE * torch.eye(dim, dtype=torch.float64, device=features.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(total / len(features) + ridge)).float()


def train_heads(
    features: Tensor,
    labels: Tensor,
    classes: int,
    grid: Sequence[tuple[str, float, float]],
    *,
    steps: int,
    batch_size: int,
    seed: int,
) -> Heads:
    """Train H softmax classifiers on the same batches, on a GPU if there is one.

    Each epoch is a new order of the images; the images that do not fill its last batch are left out.

    Args:
        features: (N, D) float32.
        labels: (N,) int64 in [0, classes).
        classes: C.
        grid: Each head's input (one of `INPUTS`), base lr and weight decay (not of the bias).
        steps: Steps of SGD.
        batch_size: At most N.
        seed: Seed of the order.

    Returns:
        The heads in the order of `grid`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(seed)
    n, count = len(labels), len(grid)
    # Columns are ordered by class, then head: a softmax over 10 classes is several times faster along strided columns
    # than along short rows.
    lr = torch.tensor([lr * batch_size / 256 for _, lr, _ in grid]).repeat(classes).to(device)
    decays = torch.tensor([decay for *_, decay in grid]).repeat(classes).to(device)
    white = torch.tensor([kind == "whitened" for kind, *_ in grid]).repeat(classes).nonzero()[:, 0].to(device)
    features, labels = features.to(device), labels.to(device)
    mean, scale = standardisation(features)
    inverse = inverse_correlation(features, mean, scale) if len(white) else None
    weight = torch.zeros(features.shape[1], classes * count, device=device)
    bias = torch.zeros(classes * count, device=device)
    weight_momentum, bias_momentum = torch.zeros_like(weight), torch.zeros_like(bias)

    rows, batches_per_epoch = torch.arange(batch_size, device=device), n // batch_size
    x = torch.empty(batch_size, features.shape[1], device=device)
    for step in range(steps):
        if step % batches_per_epoch == 0:
            batches = torch.randperm(n, generator=generator).to(device).split(batch_size)
        index = batches[step % batches_per_epoch]
        torch.index_select(features, 0, index, out=x).sub_(mean).mul_(scale)
        # d(mean cross-entropy) / d(logits) = (softmax - one_hot) / B
        error = torch.addmm(bias, x, weight).unflatten(1, (classes, count)).softmax(1)
        error[rows, labels[index]] -= 1
        error = error.flatten(1).div_(batch_size)
        gradient = x.T @ error
        if inverse is not None:
            gradient[:, white] = inverse @ gradient[:, white]
        weight_momentum.mul_(0.9).add_(gradient).addcmul_(decays, weight)
        bias_momentum.mul_(0.9).add_(error.sum(0))
        rate = lr * (0.5 * (1 + math.cos(math.pi * step / steps)))
        weight.addcmul_(weight_momentum, rate, value=-1)
        bias.addcmul_(bias_momentum, rate, value=-1)
    weight = weight.unflatten(1, (classes, count)).permute(2, 0, 1).contiguous()
    return Heads(Transform(False, mean, scale), weight, bias.unflatten(0, (classes, count)).T.contiguous())
