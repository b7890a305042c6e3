"""Linear probe: one linear layer on frozen, cached features, with its learning rate and pooling chosen on held-out images.

A grid of heads is trained at once, as in iBOT (Zhou et al., ICLR 2022, arXiv:2111.07832, `eval_linear_multi.py`) and DINOv2
(Oquab et al., TMLR 2024, arXiv:2304.07193), on standardised features as in MAE (He et al., CVPR 2022, arXiv:2111.06377, appendix A.1).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ssl_bench.errors import RunError, UserError
from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result, accuracy_metric

ROWS_PER_BLOCK = 4096  # images at a time, where memory would grow with the data set


class Linear(Evaluator):
    """Softmax regression by SGD on features of unaugmented images; one head for each base lr, weight decay and pooling.

    All heads see the same batches: SGD with momentum 0.9, lr = base_lr x batch_size / 256 falling to 0 on a cosine, one step at a
    time; zero initialisation; inputs standardised per dimension (MAE's BatchNorm without affine parameters, but with the statistics
    of the whole training split instead of each batch). Heads are trained on fit and compared on dev; the winner's settings are then
    trained afresh on all training images, and that head alone meets the test images.

    Args:
        base_lr: Learning rates per 256 images.
        weight_decay: Weight decays (L2, weights only); the published probes use 0.
        epochs: Passes over the training images.
        min_steps: A small training set gets more passes, until there are this many steps.
        batch_size: Images a step, or all of them if there are fewer.
        poolings: Features to compare.
        seed: Seed of the order of images.

    Raises:
        UserError: An empty grid, or a number out of range.
    """

    version: ClassVar[int] = 1
    metric_help: ClassVar[dict[str, str]] = {
        "top1": "accuracy, percent",
        "top5": "truth among the five classes with the highest scores, percent",
    }

    def __init__(
        self,
        base_lr: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0),
        weight_decay: tuple[float, ...] = (0.0,),
        epochs: int = 10,
        min_steps: int = 1000,
        batch_size: int = 512,
        poolings: tuple[str, ...] = ("cls", "mean"),
        seed: int = 0,
    ) -> None:
        self.base_lr = tuple(base_lr)
        self.weight_decay = tuple(weight_decay)
        self.epochs = epochs
        self.min_steps = min_steps
        self.batch_size = batch_size
        self.poolings = tuple(poolings)
        self.seed = seed
        if min(self.base_lr, default=0) <= 0:
            raise UserError(f"linear: base_lr must be positive numbers, got {self.base_lr}")
        if min(self.weight_decay, default=-1) < 0:
            raise UserError(f"linear: weight_decay must be numbers of at least 0, got {self.weight_decay}")
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
        grid = list(itertools.product(self.base_lr, self.weight_decay))
        heads = self._train(fit, data.fit.labels, classes, grid)
        dev_top1: dict[tuple[str, float, float], float] = {}
        dev_loss: dict[tuple[str, float, float], float] = {}
        for name, head in heads.items():
            top1, loss = head.judge(dev[name], data.dev.labels)
            for (lr, decay), accuracy, cross_entropy in zip(grid, top1.tolist(), loss.tolist(), strict=True):
                dev_top1[name, lr, decay], dev_loss[name, lr, decay] = accuracy, cross_entropy
        finite = [head for head, loss in dev_loss.items() if math.isfinite(loss)]
        if not finite:
            raise RunError(f"linear: all {len(dev_loss)} heads diverged; give smaller values of base_lr than {self.base_lr}")
        best = max(finite, key=lambda head: (dev_top1[head], -dev_loss[head]))
        pooling, lr, decay = best
        usable = [name for name in heads if any(head[0] == name for head in finite)]

        labels = data.train.labels
        train = {pooling: self.features(encoder, data.train)[pooling]}
        final = self._train(train, labels, classes, [(lr, decay)])[pooling]
        if not final.finite:
            raise RunError(f"linear: the head with base_lr {lr} diverged when trained on all training images")
        rank = final.ranks(self.features(encoder, data.test)[pooling], data.test.labels)
        correct = (rank == 0).numpy()
        metrics = {"top1": accuracy_metric(correct), "top5": accuracy_metric((rank < 5).numpy())}
        chosen: dict[str, object] = {
            "pooling": pooling,
            "base_lr": lr,
            "lr": lr * min(self.batch_size, len(labels)) / 256,
            "weight_decay": decay,
            "dev_top1": dev_top1[best],
            "lr_at_edge": len(self.base_lr) > 1 and lr in (min(self.base_lr), max(self.base_lr)),
            "dev_top1_by_pooling": {name: max(dev_top1[head] for head in finite if head[0] == name) for name in usable},
            "heads": len(dev_top1),
            "diverged_heads": len(dev_top1) - len(finite),
            "steps": self._steps(len(labels)),
        }
        return Result(metrics, "top1", correct, chosen, pooling)

    def _steps(self, n: int) -> int:
        return max(self.epochs * (n // min(self.batch_size, n)), self.min_steps)

    def _train(
        self, features: Mapping[str, Tensor], labels: Tensor, classes: int, grid: Sequence[tuple[float, float]]
    ) -> dict[str, Heads]:
        batch_size = min(self.batch_size, len(labels))
        return train_heads(
            features,
            labels,
            classes,
            lr=[lr * batch_size / 256 for lr, _ in grid],
            weight_decay=[decay for _, decay in grid],
            steps=self._steps(len(labels)),
            batch_size=batch_size,
            seed=self.seed,
        )


@dataclass(frozen=True, eq=False)
class Heads:
    """H linear classifiers of the same standardised features, fused into one matrix.

    Attributes:
        mean: (D,) float32, subtracted from the features.
        scale: (D,) float32, then multiplied in: 1 / standard deviation, 0 for a dimension that does not vary.
        weight: (D, H * C) float32.
        bias: (H * C,) float32.
        classes: C.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    classes: int

    @property
    def finite(self) -> bool:
        """Whether no weight overflowed."""
        return bool(torch.isfinite(self.weight).all() and torch.isfinite(self.bias).all())

    def logits(self, features: Tensor) -> Tensor:
        """Scores (B, H, C) float32 of features (B, D)."""
        x = (features.to(self.mean.device) - self.mean) * self.scale
        return torch.addmm(self.bias, x, self.weight).unflatten(1, (-1, self.classes))

    def judge(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Each head's accuracy in percent, (H,) float64, and mean cross-entropy, (H,) float64, NaN for one that diverged."""
        correct, loss = [], []
        for x, y in zip(features.split(ROWS_PER_BLOCK), labels.split(ROWS_PER_BLOCK), strict=True):
            scores = self.logits(x).cpu().double()
            own = scores[torch.arange(len(y)), :, y]
            loss.append((scores.logsumexp(2) - own).sum(0))
            correct.append((scores.argmax(2) == y[:, None]).sum(0))
        n = len(labels)
        return 100 * torch.stack(correct).sum(0).double() / n, torch.stack(loss).sum(0) / n

    def ranks(self, features: Tensor, labels: Tensor) -> Tensor:
        """Place (N,) int64 of the true class in the order of the only head's scores, equal scores in the order of the classes."""
        found = []
        order = torch.arange(self.classes)
        for x, y in zip(features.split(ROWS_PER_BLOCK), labels.split(ROWS_PER_BLOCK), strict=True):
            scores = self.logits(x)[:, 0].cpu()
            own = scores.gather(1, y[:, None])
            found.append(((scores > own) | ((scores == own) & (order < y[:, None]))).sum(1))
        return torch.cat(found)


def standardisation(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation of every dimension.

    A dimension whose spread is below float32 rounding of its values gets 0, so that noise is not blown up to signal.

    Args:
        features: (N, D) float32.

    Returns:
        Two (D,) float32 tensors.

    Example:
        >>> standardisation(torch.tensor([[1.0, 7.0], [3.0, 7.0], [5.0, 7.0]]))
        (tensor([3., 7.]), tensor([0.6124, 0.0000]))
    """
    # float64 holds the square of any float32, so neither large nor tiny features lose their spread.
    mean = features.mean(0, dtype=torch.float64)
    squares = sum(((rows.double() - mean) ** 2).sum(0) for rows in features.split(ROWS_PER_BLOCK))
    std = torch.sqrt(squares / len(features))
    largest = torch.maximum(features.amax(0), -features.amin(0))
    return mean.float(), torch.where(std > 1e-6 * largest, 1 / std, 0.0).float()


def train_heads(
    features: Mapping[str, Tensor],
    labels: Tensor,
    classes: int,
    *,
    lr: Sequence[float],
    weight_decay: Sequence[float],
    steps: int,
    batch_size: int,
    seed: int,
) -> dict[str, Heads]:
    """Train H softmax classifiers for each kind of features, all on the same batches, on a GPU if there is one.

    Each epoch is a new order of the images; the images that do not fill its last batch are left out.

    Args:
        features: Pooling name to (N, D) float32.
        labels: (N,) int64 in [0, classes).
        classes: C.
        lr: H learning rates before the cosine.
        weight_decay: H factors of L2 decay of the weights, not the bias.
        steps: Steps of SGD.
        batch_size: At most N.
        seed: Seed of the order.

    Returns:
        Pooling name to heads in the order of `lr`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(seed)
    n, count = len(labels), len(lr)
    columns = torch.tensor(lr).repeat_interleave(classes).to(device)
    decays = torch.tensor(weight_decay).repeat_interleave(classes).to(device)
    inputs = {name: x.to(device) for name, x in features.items()}
    labels = labels.to(device)
    heads, momentum = {}, {}
    for name, x in inputs.items():
        weight, bias = torch.zeros(x.shape[1], count * classes, device=device), torch.zeros(count * classes, device=device)
        heads[name] = Heads(*standardisation(x), weight, bias, classes)
        momentum[name] = torch.zeros_like(weight), torch.zeros_like(bias)

    rows = torch.arange(batch_size, device=device)
    batches_per_epoch = n // batch_size
    for step in range(steps):
        if step % batches_per_epoch == 0:
            batches = torch.randperm(n, generator=generator).to(device).split(batch_size)
        index = batches[step % batches_per_epoch]
        y = labels[index]
        rate = columns * (0.5 * (1 + math.cos(math.pi * step / steps)))
        for name, head in heads.items():
            x = (inputs[name][index] - head.mean) * head.scale
            # d(mean cross-entropy) / d(logits) = (softmax - one_hot) / B
            error = torch.addmm(head.bias, x, head.weight).unflatten(1, (count, classes)).softmax(2)
            error[rows, :, y] -= 1
            gradient = error.flatten(1).div_(batch_size)
            weight_momentum, bias_momentum = momentum[name]
            weight_momentum.mul_(0.9).addmm_(x.T, gradient).addcmul_(decays, head.weight)
            bias_momentum.mul_(0.9).add_(gradient.sum(0))
            head.weight.addcmul_(weight_momentum, rate, value=-1)
            head.bias.addcmul_(bias_momentum, rate, value=-1)
    return heads
