"""Linear heads on frozen features: what is done to the features first, and how well each head of a grid classifies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_bench.evaluations.solvers.neighbours import normalize

ROWS_PER_BLOCK = 4096  # images at a time, where memory would grow with the data set
SCORES_PER_BLOCK = 2**17  # of a few heads; they should stay in cache


@dataclass(frozen=True, eq=False)
class Transform:
    """What is done to features before a head: (x - mean) * scale, after division by their length if `unit`."""

    unit: bool
    mean: Tensor | float
    scale: Tensor | float

    @classmethod
    def of(cls, features: Tensor, kind: str) -> Transform:
        """By the name of the input; "standardised" takes the statistics of these (N, D) features."""
        return cls(False, *standardisation(features)) if kind == "standardised" else cls(kind == "normalised", 0.0, 1.0)

    def __call__(self, features: Tensor) -> Tensor:
        return ((normalize(features) if self.unit else features) - self.mean) * self.scale


@dataclass(frozen=True, eq=False)
class Heads:
    """H linear classifiers of the same features, such as those of a grid of learning rates or penalties.

    Attributes:
        transform: Applied to the features.
        weight: (H, D, C) float32.
        bias: (H, C) float32.
    """

    transform: Transform
    weight: Tensor
    bias: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """(N, H, C) float32 of features (N, D)."""
        weight = self.weight.transpose(0, 1).flatten(1)
        blocks = features.split(max(1, SCORES_PER_BLOCK // weight.shape[1]))
        rows = [torch.addmm(self.bias.flatten(), self.transform(x.to(weight.device)), weight).cpu() for x in blocks]
        return torch.cat(rows).unflatten(1, self.bias.shape)

    def evaluate(self, features: Tensor, labels: Tensor) -> list[tuple[float, float]]:
        """Accuracy in percent and minus the mean cross-entropy of each head; the latter is not finite if it diverged.

        Args:
            features: (N, D) float32.
            labels: (N,) int64.
        """
        correct, loss = [], []
        for x, y in zip(features.split(ROWS_PER_BLOCK), labels.split(ROWS_PER_BLOCK), strict=True):
            scores = self.scores(x).double()
            correct.append((scores.argmax(2) == y[:, None]).sum(0))
            loss.append((scores.logsumexp(2) - scores[torch.arange(len(y)), :, y]).sum(0))
        accuracy, entropy = 100 * torch.stack(correct).sum(0) / len(labels), torch.stack(loss).sum(0) / len(labels)
        return list(zip(accuracy.tolist(), (-entropy).tolist(), strict=True))


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
    squares = torch.zeros_like(mean)
    for rows in features.split(ROWS_PER_BLOCK):
        squares += ((rows.double() - mean) ** 2).sum(0)
    std = (squares / len(features)).sqrt()
    largest = torch.maximum(features.amax(0), -features.amin(0))
    return mean.float(), torch.where(std > 1e-6 * largest, 1 / std, 0.0).float()
