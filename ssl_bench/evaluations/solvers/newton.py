"""Multinomial logistic regression on several data sets at once, by Newton's method.

The linear systems are solved by preconditioned conjugate gradients (Nocedal and Wright, Numerical Optimization,
algorithm 7.1; Lin, Weng and Keerthi, JMLR 2008), strengths of the penalty from the strongest to the weakest, each
started at the solution of the one before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

SCORES_PER_BLOCK = {"cpu": 2**17, "cuda": 2**24}  # scores worked on at once; on a CPU they should stay in cache
DOUBLE = 2**17  # features of smaller problems are widened to float64, where little else than precision is at stake
RESIDUAL = 0.1  # relative residual at which conjugate gradients stop, in the norm of the preconditioner
INNER_STEPS = 250  # of conjugate gradients at most
HALVINGS = 30  # of a step, before a problem counts as unfinished
# A factor of the preconditioner serves D / (REUSE * K) products with H, which cost about what it does; then a new one
# is made. Of a few hundred dimensions that is one a step; of 3,072 (raw pixels) it is one for several.
REUSE = 2
ROWS_PER_DIMENSION = 16  # images a dimension that the preconditioner is estimated from


@dataclass(frozen=True, eq=False)
class Solutions:
    """S strengths of the penalty on B data sets.

    Attributes:
        weight: (S, B, D, K) float64.
        bias: (S, B, K) float64.
        steps: Steps of Newton's method that the slowest data set took, over all strengths.
        unfinished: Problems, out of S x B, that were stopped before their minimum.
    """

    weight: Tensor
    bias: Tensor
    steps: int
    unfinished: int


def logistic_regression(
    x: Tensor,
    labels: Tensor,
    classes: int,
    C: Sequence[float],
    intercept: bool = True,
    tol: float = 1e-6,
    max_steps: int = 100,
) -> Solutions:
    """Minimise sum_i cross_entropy_i + |W|^2 / (2 C) for every C, as scikit-learn's `LogisticRegression` does.

    A problem is solved when a step of Newton's method would lower the objective by less than `tol` of its value, and by
    less than `tol` of what it has fallen since W = 0; that step is still taken, so that the distance from the minimum
    is about a hundred times smaller. Products are taken in the dtype of `x`, sums and steps in float64.

    Args:
        x: (B, N, D) float, the features of each data set.
        labels: (N,) int64 in [0, classes), the same for all data sets.
        classes: K.
        C: Inverse strengths of the penalty, in any order.
        intercept: Whether there is a bias, without penalty.
        tol: Relative distance from the minimum.
        max_steps: Steps of Newton's method at most, for each C.

    Returns:
        The solutions, in the order of `C`.

    Example:
        >>> x, y = torch.tensor([[[-2.0], [-1.0], [1.0], [2.0]]]), torch.tensor([0, 0, 1, 1])
        >>> found = logistic_regression(x, y, 2, [0.1, 1.0])
        >>> found.weight[:, 0, 0].round(decimals=4).tolist(), found.unfinished
        ([[-0.203, 0.203], [-0.6706, 0.6706]], 0)
    """
    n, dim, basis = x.shape[1], x.shape[2], None
    if x.numel() <= DOUBLE:
        x = x.double()
    if n < dim:  # the weights are a combination of the images: as many coordinates as images suffice
        basis = torch.linalg.qr(x.mT.double()).Q
        x = (x.double() @ basis).to(x.dtype)
    problems = _Problems(F.pad(x, (0, 1), value=1.0) if intercept else x, labels, classes)
    found: dict[float, Tensor] = {}
    steps = unfinished = 0
    for c in sorted(set(C)):
        penalty = problems.weights.new_full((problems.weights.shape[2],), 1 / (c * n))
        if intercept:
            penalty[-1] = 0
        more, left = problems.minimise(penalty, tol, max_steps)
        found[c], steps, unfinished = problems.weights.clone(), steps + more, unfinished + left * list(C).count(c)
    solution = torch.stack([found[c] for c in C]).mT  # (S, B, D [+ 1], K)
    weight = solution[:, :, : x.shape[2]]
    bias = solution[:, :, -1] if intercept else torch.zeros_like(weight[:, :, 0])
    return Solutions(weight if basis is None else basis @ weight, bias, steps, unfinished)


class _Problems:
    """B data sets with the same labels, and how far their weights have come.

    Arrays are laid out (B, classes, images): a softmax over strided columns is several times faster than along short
    rows.

    Args:
        x: (B, N, D) float, a column of ones included where there is a bias.
        labels: (N,) int64.
        classes: K.
    """

    def __init__(self, x: Tensor, labels: Tensor, classes: int) -> None:
        self.x, self.labels, self.classes = x, labels, classes
        self.probabilities = x.new_empty(len(x), classes, x.shape[1])
        self.weights = x.new_zeros(len(x), classes, x.shape[2], dtype=torch.float64)
        self.gradient = torch.zeros_like(self.weights)  # of the mean cross-entropy
        self.loss = x.new_zeros(len(x), dtype=torch.float64)  # mean cross-entropy
        self._move(torch.arange(len(x), device=x.device), self.weights.clone())

    def minimise(self, penalty: Tensor, tol: float, max_steps: int) -> tuple[int, int]:
        """Go to the minimum for one penalty (D,); the number of steps, and how many problems were not finished."""
        active, step = torch.arange(len(self.x), device=self.x.device), 0
        factor, used, enough_used = torch.empty(0), 0, self.x.shape[2] / (REUSE * self.classes)
        while len(active) and step < max_steps:
            step += 1
            start, value = self.weights[active], self._objective(active, penalty)
            gradient = self.gradient[active] + penalty * start
            if not len(factor) or used >= enough_used:
                factor, used = self._preconditioner(active, penalty), 0
            direction, products = self._newton_step(active, gradient, penalty, factor)
            used += products
            slope = (gradient * direction).sum((1, 2))
            solved = -slope / 2 <= tol * torch.minimum(value, math.log(self.classes) - value)
            rounding = 0.1 * torch.finfo(self.x.dtype).eps * value.abs()
            length, waiting = torch.ones_like(value), torch.arange(len(active), device=active.device)
            for _ in range(HALVINGS):
                self._move(active[waiting], (start + length[:, None, None] * direction)[waiting])
                enough = value + 1e-4 * length * slope + rounding
                reached = self._objective(active[waiting], penalty)
                waiting = waiting[~(reached <= enough[waiting])]  # NaN is not enough
                if not len(waiting):
                    break
                length[waiting] /= 2
            active, factor = active[~solved], factor[~solved] if solved.any() else factor
        return step, len(active)

    def _of(self, each: Tensor, which: Tensor) -> Tensor:
        """The rows of some of the problems; not copied when they are all."""
        return each if len(which) == len(each) else each[which]

    def _blocks(self, count: int) -> list[slice]:
        n = self.x.shape[1]
        size = max(1, SCORES_PER_BLOCK[self.x.device.type] // (count * self.classes))
        return [slice(start, min(n, start + size)) for start in range(0, n, size)]

    def _objective(self, which: Tensor, penalty: Tensor) -> Tensor:
        return self.loss[which] + (penalty * self.weights[which] ** 2).sum((1, 2)) / 2

    def _move(self, which: Tensor, weights: Tensor) -> None:
        """Put some of the problems at weights (A, K, D): loss, gradient and probabilities there."""
        x, w, n = self._of(self.x, which), weights.to(self.x.dtype), self.x.shape[1]
        loss, gradient = weights.new_zeros(len(which)), torch.zeros_like(weights)
        for block in self._blocks(len(which)):
            part, y = x[:, block], self.labels[block]
            at = torch.arange(len(y), device=y.device)
            error = (w @ part.mT).double().log_softmax(1)
            loss -= error[:, y, at].sum(1)
            p = error.exp_().to(x.dtype)
            self.probabilities[which, :, block] = p
            error[:, y, at] -= 1
            gradient += error.to(x.dtype) @ part
        self.weights[which], self.loss[which], self.gradient[which] = weights, loss / n, gradient / n

    def _newton_step(self, which: Tensor, gradient: Tensor, penalty: Tensor, factor: Tensor) -> tuple[Tensor, int]:
        """An approximate solution d (A, K, D) of H d = -gradient, by preconditioned conjugate gradients; products."""
        x, p = self._of(self.x, which), self._of(self.probabilities, which)

        def precondition(r: Tensor) -> Tensor:
            return torch.cholesky_solve(r.mT, factor).mT

        step, residual = torch.zeros_like(gradient), -gradient
        z = precondition(residual)
        direction, size = z.clone(), (residual * z).sum((1, 2))
        enough = RESIDUAL**2 * size
        done, products = size <= 0, 0
        for _ in range(INNER_STEPS):
            products += 1
            curved = self._hessian_product(x, p, direction) + penalty * direction
            curvature = (direction * curved).sum((1, 2))
            done = done | ~(curvature > 0)
            if done.all():
                break
            length = torch.where(done, 0.0, size / curvature)[:, None, None]
            step += length * direction
            residual -= length * curved
            z = precondition(residual)
            new = (residual * z).sum((1, 2))
            done = done | (new <= enough)
            direction = z + torch.where(done, 0.0, new / size)[:, None, None] * direction
            size = torch.where(done, size, new)
        return step, products

    def _hessian_product(self, x: Tensor, p: Tensor, v: Tensor) -> Tensor:
        """H v (A, K, D) float64, of the mean cross-entropy."""
        direction, product = v.to(x.dtype), torch.zeros_like(v)
        for block in self._blocks(len(v)):
            part, of, y = x[:, block], p[:, :, block], self.labels[block]
            change = direction @ part.mT
            # Relative to the true class: where its probability is near 1, the rest would cancel to rounding.
            change -= change[:, y, torch.arange(len(y), device=y.device)][:, None]
            product += (of * (change - (of * change).sum(1, keepdim=True))) @ part
        return product / x.shape[1]

    def _preconditioner(self, which: Tensor, penalty: Tensor) -> Tensor:
        """Cholesky factor (A, D, D) of the mean over classes of H's diagonal blocks, estimated from some images."""
        x, p = self._of(self.x, which), self._of(self.probabilities, which)
        n, dim = x.shape[1:]
        some = slice(0, n, max(1, n // (ROWS_PER_DIMENSION * dim)))
        part, of = x[:, some].double(), p[:, :, some].double()
        weight = (of * (1 - of)).sum(1) / self.classes
        matrix = part.mT @ (part * weight[:, :, None]) / part.shape[1]
        diagonal = matrix.diagonal(dim1=1, dim2=2)
        diagonal += penalty + 1e-10 * (diagonal.amax(1, keepdim=True) + penalty.max())
        return torch.linalg.cholesky(matrix)
