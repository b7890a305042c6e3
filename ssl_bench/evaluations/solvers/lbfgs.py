"""L-BFGS on many independent convex problems at once (Nocedal and Wright, Numerical Optimization, algorithm 7.5)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

HISTORY = 10  # pairs kept, as in SciPy and scikit-learn
HALVINGS = 30  # trial steps before a problem counts as solved to rounding

# x (A, P) float64 and which problems these are (A,) int64 -> values (A,) and gradients (A, P), float64
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def minimise(
    objective: Objective, start: Tensor, tol: float, max_steps: int = 1000, rounding: float = 1e-16
) -> tuple[Tensor, Tensor, int]:
    """Minimise B smooth convex functions side by side; each has its own curvature pairs and step length.

    A problem is solved when no component of its gradient exceeds `tol`, or when its value no longer falls by more than
    rounding; solved problems are not evaluated again. Steps are backtracked until they give a ten-thousandth of the
    decrease that the slope promises; convexity takes care of the curvature condition.

    Args:
        objective: Values and gradients of some of the problems.
        start: (B, P) float64.
        tol: On the largest component of the gradient.
        max_steps: Steps at most.
        rounding: Relative error of a value.

    Returns:
        x (B, P) float64, which problems are solved (B,) bool, and the number of steps.

    Example:
        >>> centre = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
        >>> def squares(x, which):
        ...     return ((x - centre[which]) ** 2).sum(1), 2 * (x - centre[which])
        >>> minimise(squares, torch.zeros(2, 2, dtype=torch.float64), tol=1e-8)[0].round(decimals=4).tolist()
        [[1.0, 2.0], [3.0, 4.0]]
    """
    x = start.clone()
    value, gradient = objective(x, torch.arange(len(x), device=x.device))
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # s, y (B, P) and 1 / s'y (B,), 0 where a problem did not move
    solved = gradient.abs().amax(1) <= tol
    step = 0
    while step < max_steps and not solved.all():
        step += 1
        active = (~solved).nonzero()[:, 0]
        direction = -_inverse_hessian(gradient[active], [(s[active], y[active], r[active]) for s, y, r in pairs])
        slope = (gradient[active] * direction).sum(1)
        length = torch.ones_like(slope)
        old_value, old_gradient, moved = value[active], gradient[active], torch.zeros_like(direction)
        waiting = torch.arange(len(active), device=x.device)
        for _ in range(HALVINGS):
            which = active[waiting]
            trial = length[waiting, None] * direction[waiting]
            found, found_gradient = objective(x[which] + trial, which)
            promised = length[waiting] * slope[waiting]
            rise = found - old_value[waiting]
            good = rise <= 1e-4 * promised + rounding * old_value[waiting].abs()  # false for NaN
            value[which[good]], gradient[which[good]] = found[good], found_gradient[good]
            moved[waiting[good]] = trial[good]
            # The parabola through both values with the known slope, kept within a tenth and a half of the step.
            shrink = (-promised / (2 * (rise - promised))).nan_to_num(0.1).clamp(0.1, 0.5)
            length[waiting] *= torch.where(good, 1.0, shrink)
            waiting = waiting[~good]
            if not len(waiting):
                break
        x[active] += moved
        s, y, r = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(value)
        s[active], y[active] = moved, gradient[active] - old_gradient
        curvature = (s * y).sum(1)
        r[curvature > 0] = 1 / curvature[curvature > 0]
        pairs = [*pairs[-HISTORY + 1 :], (s, y, r)]
        still = old_value - value[active] <= rounding * old_value.abs()
        solved[active] = still | (gradient[active].abs().amax(1) <= tol)
    return x, solved, step


def _inverse_hessian(gradient: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The two-loop recursion: (A, P) in, (A, P) out. Pairs with r = 0 have no effect."""
    q, alphas = gradient.clone(), []
    for s, y, r in reversed(pairs):
        alphas.append(r * (s * q).sum(1))
        q -= alphas[-1][:, None] * y
    if pairs:
        _, y, r = pairs[-1]
        q *= torch.where(r > 0, 1 / (r * (y * y).sum(1)), 1.0)[:, None]
    for (s, y, r), alpha in zip(pairs, reversed(alphas), strict=True):
        q += (alpha - r * (y * q).sum(1))[:, None] * s
    return q
