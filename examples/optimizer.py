"""An optimiser of yours: Lion (Chen et al. 2023, arXiv 2302.06675), which moves every weight by the sign of a momentum.

    ssl-bench bench quick --set optimizer=examples/optimizer.py:Lion base_lr=5e-5

The recipe's learning rate, weight decay, ``betas``, ``momentum`` and ``eps`` go to the keywords of these names. Any
class of ``torch.optim`` is taken by its name: ``--set optimizer=RAdam``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


class Lion(Optimizer):
    """p <- p - lr (sign(b1 m + (1 - b1) g) + wd p), then m <- b2 m + (1 - b2) g."""

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(m.lerp(p.grad, 1 - b1).sign_(), alpha=group["lr"])
                m.lerp_(p.grad, 1 - b2)
        return loss
