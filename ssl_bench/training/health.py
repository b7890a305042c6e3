"""Trainings that have gone wrong: a loss that is no number or explodes, features or a codebook that collapse."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from ssl_bench.utils.distributed import process
from ssl_bench.utils.errors import RunError

EVERY = 100  # steps at most between two looks at the loss; each waits for the device
EXPLODED = 1000.0  # times the first loss, plus one
COLLAPSED_RANK = 2.0  # features along a line, plus noise
COLLAPSED_STD = 0.01  # of 1 for features that fill the sphere
FEW = 8  # images, of which nothing is said: some may well be alike
REMEDIES = {  # by category, after a collapse
    "contrastive": "a smaller base_lr, a longer warm-up or a larger batch_size",
    "self-distillation": "a smaller base_lr, a momentum nearer to 1 or a lower temperature of the teacher",
}
REMEDY = "a smaller base_lr or a longer warm-up"


class Diverged(RunError):
    """A training whose loss is no number, or has exploded."""


class Health(Callback):
    """Ends a training whose loss is no number or has exploded, at most 100 steps, or a hundredth of it, later.

    A loss counts as exploded when all of the steps since the last look are a thousand times above the first one: a
    spike that passes is none.

    Args:
        title: In front of the message.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.first: float | None = None
        self.least: Tensor | None = None  # magnitude of the loss since the last look

    def state_dict(self) -> dict[str, Any]:
        """The first loss."""
        return {"first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The first loss, of an earlier process."""
        self.first = state_dict["first"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss when it is time.

        Raises:
            Diverged: With the step and what to try, in every process.
        """
        loss = outputs["loss"].detach().float()
        magnitude = loss.abs().nan_to_num(math.inf)
        self.least = magnitude if self.least is None else torch.minimum(self.least, magnitude)
        step = trainer.global_step
        due = step % min(EVERY, max(1, trainer.max_steps // 100)) == 0
        if not (due or self.first is None or step == trainer.max_steps):
            return
        seen = torch.stack([magnitude, self.least])
        if process()[1] > 1:
            torch.distributed.all_reduce(seen, torch.distributed.ReduceOp.MAX)
        now, least = seen.tolist()
        self.first = now if self.first is None else self.first
        self.least = None
        if not math.isfinite(now):
            raise Diverged(
                f"{self.title}: the loss is {float(loss)} at step {step}; "
                "try a smaller base_lr, a longer warmup_epochs, a clip_grad or precision 32"
            )
        if least > EXPLODED * (1 + self.first):
            raise Diverged(
                f"{self.title}: the loss has exploded from {self.first:.4g} to {now:.4g} at step {step}; "
                "try a smaller base_lr, a longer warmup_epochs or a clip_grad"
            )


def collapse(rank: float, spread: float, dim: int, count: int) -> list[str]:
    """What is wrong with features that have (nearly) collapsed; empty when they have not.

    Few images show less rank than there is (128 of features with 768 dimensions and rank 6 show 2), so it must also be
    below what ``rank_of_a_line`` gives for as many.

    Args:
        rank: Their effective rank.
        spread: Mean standard deviation of the L2-normalised features times sqrt(D).
        dim: D.
        count: Images.

    Example:
        >>> collapse(1.2, 0.5, 192, 128)
        ['effective rank 1.2 of 192: the features lie along a line']
        >>> collapse(1.2, 0.5, 192, 4)
        []
    """
    reasons: list[str] = []
    if count < FEW:
        return reasons
    if rank < min(COLLAPSED_RANK, dim / 2) and rank < rank_of_a_line(dim, count):
        reasons.append(f"effective rank {rank:.1f} of {dim}: the features lie along a line")
    if spread < COLLAPSED_STD:
        reasons.append(f"feature std {spread:.4f} of 1: the features of all images point the same way")
    return reasons


@lru_cache(maxsize=16)
def rank_of_a_line(dim: int, count: int) -> float:
    """The effective rank that ``count`` images show of the features next to a collapse, less three standard deviations.

    Those are normal, with one large and D - 1 small equal variances such that their effective rank is
    ``COLLAPSED_RANK``: of all features of that rank they show the least of it.

    Args:
        dim: D.
        count: Images; beyond 8 D the bias is gone.

    Example:
        >>> round(rank_of_a_line(768, 128), 1), round(rank_of_a_line(64, 4096), 1)
        (1.2, 1.8)
    """
    count = min(count, 8 * dim)
    low, high = 0.0, 1.0  # of the small standard deviations
    for _ in range(50):
        middle = (low + high) / 2
        p = torch.full((dim,), middle, dtype=torch.float64)
        p[0] = 1
        low, high = (middle, high) if effective_rank(p) < min(COLLAPSED_RANK, dim / 2) else (low, middle)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(4, count, dim, generator=generator) * torch.tensor([1.0] + [high] * (dim - 1))
    seen = [effective_rank(torch.linalg.svdvals(each - each.mean(dim=0))) for each in drawn]
    return 1 + (sum(seen) / len(seen) - 1) * (1 - 3 / count**0.5)


def effective_rank(singular: Tensor) -> float:
    """exp(entropy) of normalised singular values (Roy and Vetterli 2007): 1 where one is alone, D where all are equal.

    Args:
        singular: (D,) float, 0 or more.

    Example:
        >>> round(effective_rank(torch.ones(4)), 4), effective_rank(torch.zeros(4))
        (4.0, 1.0)
    """
    return float(torch.special.entr(singular / singular.sum().clamp(min=1e-12)).sum().exp())


def remedy(category: str) -> str:
    """What to try after a collapse of a method of this category."""
    return REMEDIES.get(category, REMEDY)
