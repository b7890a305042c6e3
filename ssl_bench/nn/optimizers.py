"""Optimisation that every method shares: what a recipe states, the per-step schedules, LARS."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ssl_bench.nn.schedules import Schedule, cosine, learning_rate
from ssl_bench.nn.sharding import kinds, local, whole
from ssl_bench.utils.bounds import Count, Epochs, NonNegative, Positive, Rate, check_fields
from ssl_bench.utils.errors import UserError, unknown
from ssl_bench.utils.references import is_reference, look_up


@dataclass(frozen=True)
class Training:
    """How long, how fast and in which precision a method is trained.

    Args:
        epochs: Passes over the training images; a fraction is allowed.
        batch_size: Images a step over all processes.
        optimizer: adamw (Loshchilov and Hutter 2019), sgd with momentum, or lars (You et al. 2017); a class of
            torch.optim (RAdam), or of a file (path/to/file.py:Class).
        base_lr: Learning rate for a batch of 256; the step uses base_lr * batch_size / 256.
        min_lr: Learning rate at the end, already scaled (absolute).
        warmup_epochs: Linear rise of the learning rate from ``warmup_lr``.
        warmup_lr: Learning rate of the first step of a warm-up (absolute).
        schedule: Where the warm-up ends and how often the rate changes: step (MAE, MoCo v3), step_inclusive (DINO,
            iBOT, BEiT, EVA), step_late (MoBY) or epoch (DeiT); ``nn.schedules.learning_rate`` has the details.
        weight_decay: Weight decay at the start.
        final_weight_decay: Weight decay at the end, reached by a cosine; constant when left out.
        betas: Adam's; optimisers with a momentum take the first as that.
        clip_grad: Largest global gradient norm; no limit when left out or 0.
        clip_per_tensor: Apply ``clip_grad`` to the gradient of every tensor on its own (DINO's rule).
        eps: Adam's.
        precision: auto (bf16 where the hardware computes in it, otherwise 32 bit; the environment variable
            SSL_BENCH_PRECISION overrides the hardware), bf16-mixed, 16-mixed or 32.
        accumulate: Equal parts that a step's batch is computed in, one after another, to save memory. Batch norm and
            losses between the images of a batch see a part; gradients add up, and what moves once a step (momentum
            encoders, centres) moves once.
        checkpoint: Keep of each block its input alone, and compute it again for the gradient: less memory, a third more
            work.
        compile: Compile the backbone's blocks (torch.compile). The first step takes a minute or more; it pays on GPUs.
    """

    epochs: Epochs = 100
    batch_size: Count = 1024
    optimizer: str = "adamw"
    base_lr: NonNegative = 1.5e-4
    min_lr: NonNegative = 0.0
    warmup_epochs: Epochs = 10
    warmup_lr: NonNegative = 0.0
    schedule: Schedule = "step"
    weight_decay: NonNegative = 0.05
    final_weight_decay: NonNegative | None = None
    betas: tuple[Rate, Rate] = (0.9, 0.999)
    clip_grad: NonNegative | None = None
    clip_per_tensor: bool = False
    eps: Positive = 1e-8
    precision: Literal["auto", "bf16-mixed", "16-mixed", "32"] = "auto"
    accumulate: Count = 1
    checkpoint: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        optimizer_class(self.optimizer)

    @property
    def lr(self) -> float:
        """Peak learning rate: base_lr * batch_size / 256 (Goyal et al. 2017)."""
        return self.base_lr * self.batch_size / 256

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of the step after ``step`` of ``steps`` (``nn.schedules.learning_rate``)."""
        return learning_rate(
            step,
            steps,
            peak=self.lr,
            end=self.min_lr,
            epochs=self.epochs,
            warmup=self.warmup_epochs,
            start=self.warmup_lr,
            schedule=self.schedule,
        )

    def weight_decay_at(self, step: int, steps: int) -> float:
        """Weight decay of the step after ``step`` of ``steps``."""
        if self.final_weight_decay is None:
            return self.weight_decay
        return cosine(step / steps, self.weight_decay, self.final_weight_decay)


def no_decay_on_vectors(
    named: Iterable[tuple[str, nn.Parameter]], spared: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """Two parameter groups: the recipe's weight decay on matrices and tokens, none on vectors. The timm rule.

    Args:
        named: Name and parameter. Vectors are biases, norms and what else has one dimension.
        spared: Ends of the names of tokens and tables without weight decay.

    Example:
        >>> net = nn.Linear(2, 3)
        >>> [sorted(group) for group in no_decay_on_vectors(net.named_parameters())]
        [['params'], ['params', 'weight_decay']]
    """
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in named:
        if parameter.requires_grad:
            (plain if parameter.ndim <= 1 or name.endswith((".bias", *spared)) else decay).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


_EXTERNAL: dict[str, type[Optimizer]] = {}  # classes of users' files that this process was told of, by their name


def named_optimizer(text: str) -> str:
    """The name of an optimiser in recipes and rows: the text itself, or of ``file.py:Class`` the class's name.

    Raises:
        UserError: The file has no such class, or the class has the name of one of torch.
    """
    if not is_reference(text):
        return text
    name, cls = look_up(text, "optimizer class", _is_optimizer)
    if hasattr(torch.optim, name):
        raise UserError(f"optimizer {text!r}: torch.optim has a {name} too; rename the class")
    _EXTERNAL[name] = cls
    return name


def optimizer_class(name: str) -> type[Optimizer]:
    """The class that a recipe's ``optimizer`` names.

    Raises:
        UserError: There is none.

    Example:
        >>> optimizer_class("lars").__name__, optimizer_class("RAdam").__name__
        ('LARS', 'RAdam')
    """
    known: dict[str, Any] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD, "lars": LARS, **_EXTERNAL}
    known |= {key: value for key, value in vars(torch.optim).items() if _is_optimizer(value)}
    if name not in known:
        raise unknown("optimizer", name, [*known, "path/to/file.py:Class"])
    return known[name]


def external_optimizer(name: str) -> type[Optimizer] | None:
    """The class of a user's file that has this name; None where torch or this package has it."""
    return _EXTERNAL.get(name)


def _is_optimizer(it: Any) -> bool:
    return inspect.isclass(it) and issubclass(it, Optimizer) and it is not Optimizer


def build_optimizer(groups: list[dict[str, Any]], training: Training, lr: float) -> Optimizer:
    """The recipe's optimiser over a method's parameter groups.

    Args:
        groups: A group's ``lr_scale`` multiplies its rate. A group with a ``weight_decay`` of its own keeps it; one
            without takes the recipe's, and follows it where it changes (``set_weight_decay``).
        training: The recipe's.
        lr: Learning rate until the first step sets another.
    """
    groups = [{**group, "own_weight_decay": "weight_decay" in group} for group in groups]
    common: dict[str, Any] = {"lr": lr, "weight_decay": training.weight_decay}
    if training.optimizer == "adamw":
        fused = training.precision != "16-mixed"  # the fused one unscales inside, after the gradients are clipped
        return torch.optim.AdamW(groups, **common, betas=training.betas, eps=training.eps, fused=fused)
    cls: Any = optimizer_class(training.optimizer)
    options = common | {"momentum": training.betas[0], "betas": training.betas, "eps": training.eps}
    taken = inspect.signature(cls).parameters
    try:
        return cls(groups, **{key: value for key, value in options.items() if key in taken})
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer {training.optimizer!r} can't be built: {error}") from error


def set_weight_decay(optimizer: Optimizer, weight_decay: float) -> None:
    """Change the weight decay of the groups that have none of their own.

    Example:
        >>> w, b = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
        >>> optimizer = build_optimizer([{"params": [w]}, {"params": [b], "weight_decay": 0.0}], Training(), 0.1)
        >>> set_weight_decay(optimizer, 0.4)
        >>> [group["weight_decay"] for group in optimizer.param_groups]
        [0.4, 0.0]
    """
    for group in optimizer.param_groups:
        if not group["own_weight_decay"]:
            group["weight_decay"] = weight_decay


@torch.no_grad()
def clip_each(parameters: Iterable[nn.Parameter], largest: float) -> None:
    """Scale every gradient whose norm is above ``largest`` down to it, one by one (DINO, ``utils.py``).

    Example:
        >>> p = nn.Parameter(torch.zeros(2))
        >>> p.grad = torch.tensor([3.0, 4.0])
        >>> clip_each([p], 3.0)
        >>> [round(v, 4) for v in p.grad.tolist()]
        [1.8, 2.4]
    """
    for grads in kinds(p.grad for p in parameters if p.grad is not None):
        norms = [whole(norm) for norm in torch._foreach_norm(grads)]
        scales = [(largest / (norm + 1e-6)).clamp(max=1.0) for norm in norms]
        torch._foreach_mul_([local(grad) for grad in grads], scales)


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman, Ginsburg 2017) as MAE's and MoCo v3's scripts use it.

    Tensors of two or more dimensions: g <- (g + wd p) * trust * |p| / |g + wd p| where both norms are positive;
    vectors take the plain gradient. Then m <- momentum m + g and p <- p - lr m.
    """

    def __init__(
        self, params: Any, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 1e-3
    ) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, trust=trust))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; gradients that are None are skipped."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update: Tensor = p.grad
                if p.ndim > 1:
                    update = update.add(p, alpha=group["weight_decay"])
                    p_norm, g_norm = p.norm(), update.norm()
                    usable = (p_norm > 0) & (g_norm > 0)
                    update = update * torch.where(usable, group["trust"] * p_norm / g_norm, torch.ones_like(p_norm))
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.mul_(group["momentum"]).add_(update)
                p.sub_(momentum, alpha=group["lr"])
        return loss
