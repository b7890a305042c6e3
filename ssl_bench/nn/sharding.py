"""Fully sharded training (FSDP, Zhao et al. 2023): each process holds a part of the weights of the blocks.

The blocks of a transformer have nearly all of its weights: 99.7 % in a ViT-L. They are gathered one at a time when they
compute. Everything else, heads included, is whole in every process, and its gradients are averaged.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from ssl_bench.utils.distributed import all_mean


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The blocks of all transformers in a network: those of its backbones, and whatever calls itself a block.

    Example:
        >>> class Block(nn.Linear): ...
        >>> [type(block).__name__ for block in blocks_of(nn.Sequential(nn.Linear(2, 2), Block(2, 2), Block(2, 2)))]
        ['Block', 'Block']
    """
    named = [module for module in network.modules() if type(module).__name__.endswith("Block")]
    listed = [block for module in network.modules() for block in getattr(module, "block_modules", list)()]
    found = list(dict.fromkeys([*listed, *named]))
    inside = {part for block in found for part in block.modules() if part is not block}
    return [block for block in found if block not in inside and any(True for _ in block.parameters())]


def shard(network: nn.Module, mesh: DeviceMesh, step: str) -> None:
    """Shard the blocks of a network in place, over the processes of a mesh.

    Args:
        network: Whole, the same in every process.
        mesh: Of one dimension.
        step: Name of the method that computes the loss.
    """
    # Swin's blocks do; nothing changes their output in place, which the contract tests would show.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    blocks = blocks_of(network)
    for block in blocks:
        empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in block.parameters()}
        shared = {id(buffer): buffer for buffer in block.buffers()}
        block.unsharded = (copy.deepcopy(block, {**empty, **shared}),)  # type: ignore[assignment]
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    sharded = {p for block in blocks for p in block.parameters()}
    before = [set(part) for part in _parts(network)]
    fully_shard(network, mesh=mesh, ignored_params={p for p in network.parameters() if p not in sharded})
    register_fsdp_forward_method(network, step)
    added = [set(part) - old for part, old in zip(_parts(network), before, strict=True)]
    network.sharding = (added,)  # type: ignore[assignment]


def unshard(network: nn.Module) -> None:
    """Make a network whole again in every process. All call it; one that isn't sharded stays as it is."""
    if not is_sharded(network):
        return
    for parent in list(network.modules()):
        for name, block in list(parent.named_children()):
            if isinstance(block, FSDPModule):
                (plain,) = block.unsharded  # type: ignore[misc]
                plain.load_state_dict(whole(block.state_dict()), assign=True)
                setattr(parent, name, plain.train(block.training))
    (added,) = vars(network).pop("sharding")
    for part, keys in zip(_parts(network), added, strict=True):
        for key in keys:
            del part[key]
    network.__class__ = type(network).__mro__[2]


def _parts(network: nn.Module) -> list[dict[Any, Any]]:
    """Where FSDP leaves something of its own: attributes and hooks."""
    return [vars(network), network._forward_pre_hooks, network._forward_hooks]


def is_sharded(network: nn.Module) -> bool:
    """Whether every process has to take part when the network computes."""
    return isinstance(network, FSDPModule)


def whole(value: Any, device: str | None = None) -> Any:
    """The same with whole tensors for sharded ones, at any depth of dicts and lists. All processes call it.

    Args:
        value: What holds tensors.
        device: Where each goes as soon as it is whole; by default it stays. On "meta" only its shape is left.
    """
    if isinstance(value, DTensor):
        return value.full_tensor() if device is None else value.full_tensor().to(device)
    if isinstance(value, Mapping):
        return {key: whole(item, device) for key, item in value.items()}
    return [whole(item, device) for item in value] if isinstance(value, list) else value


def like(value: Tensor, other: Any) -> Tensor:
    """A whole tensor, sharded as another one is; each process takes its own part of what it has."""
    if not isinstance(other, DTensor) or value.shape != other.shape:
        return value
    return distribute_tensor(value.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: a change of it changes the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def kinds(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The sharded and the whole ones apart, as far as there are any: torch's kernels for many take one kind."""
    tensors = list(parameters)
    for kind in (True, False):
        if some := [tensor for tensor in tensors if isinstance(tensor, DTensor) == kind]:
            yield some


@torch.no_grad()
def average_gradients(network: nn.Module) -> None:
    """Mean over the processes of the gradients of what is whole in each; FSDP does it for what is sharded."""
    grads = [p.grad for p in network.parameters() if p.grad is not None and not isinstance(p.grad, DTensor)]
    if grads:
        means = all_mean(torch.cat([grad.flatten() for grad in grads])).split([grad.numel() for grad in grads])
        torch._foreach_copy_(grads, [mean.view_as(grad) for mean, grad in zip(means, grads, strict=True)])


@torch.no_grad()
def clip_norm(parameters: Iterable[nn.Parameter], largest: float) -> None:
    """Scale all gradients so that their joint norm is at most ``largest``, sharded or not.

    Example:
        >>> p = nn.Parameter(torch.zeros(2))
        >>> p.grad = torch.tensor([3.0, 4.0])
        >>> clip_norm([p], 2.5)
        >>> [round(v, 4) for v in p.grad.tolist()]
        [1.5, 2.0]
    """
    parameters = list(parameters)
    groups = list(kinds(p.grad for p in parameters if p.grad is not None))
    if len(groups) < 2 and not any(isinstance(group[0], DTensor) for group in groups):
        nn.utils.clip_grad_norm_(parameters, largest)
        return
    total = torch.stack([whole(nn.utils.get_total_norm(group)) for group in groups]).norm()
    for group in groups:
        torch._foreach_mul_([local(grad) for grad in group], (largest / (total + 1e-6)).clamp(max=1.0))


def step_apart(optimizer: Optimizer) -> None:
    """Let an optimiser update the sharded and the whole parameters of each group one after the other."""
    groups: list[dict[str, Any]] = []
    parts: list[list[dict[str, Any]]] = []

    def apart(*_: Any) -> None:
        groups[:] = optimizer.param_groups
        parts[:] = [[{**group, "params": params} for params in kinds(group["params"])] for group in groups]
        optimizer.param_groups[:] = [part for of_group in parts for part in of_group]

    def together(*_: Any) -> None:
        for group, of_group in zip(groups, parts, strict=True):
            group.update({key: value for key, value in of_group[0].items() if key != "params"})
        optimizer.param_groups[:] = groups

    optimizer.register_step_pre_hook(apart)
    optimizer.register_step_post_hook(together)
