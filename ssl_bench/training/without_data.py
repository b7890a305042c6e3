"""Networks without data: what a computation would do is followed by the shapes of its tensors alone, at any size."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

Module = TypeVar("Module", bound=nn.Module)
META, CPU = torch.device("meta"), torch.device("cpu")
LARGEST = 2**24  # numbers: a new tensor with more has no data either, so that noise as large as a batch costs no memory
INDEXED = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_, torch.ops.aten._index_put_impl_)


def without_data(module: Module) -> Module:
    """A copy on the ``meta`` device: of the module, and of the frozen networks that it keeps in tuples and lists."""
    memo: dict[int, Any] = {}
    for part in _modules(module):
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            empty = torch.empty_like(tensor, device=META)
            memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(module, memo)


def _modules(module: nn.Module) -> Iterator[nn.Module]:
    for part in module.modules():
        yield part
        for value in vars(part).values():
            for kept in value if isinstance(value, tuple | list) else ():
                if isinstance(kept, nn.Module):
                    yield from _modules(kept)


@contextlib.contextmanager
def built_without_data() -> Iterator[None]:
    """Modules made within have no data: ``torch.device("meta")``, and initial weights that take no time."""
    with torch.device(META), _Mixed():
        yield


@contextlib.contextmanager
def shapes_alone() -> Iterator[None]:
    """Compute with tensors on ``meta`` as if they were on the CPU.

    What comes from a tensor without data has none; all else is computed: masks are drawn, so that the number of masked
    patches is real. A computation that needs a value that isn't there, for a branch or as a number, raises.
    """
    with _Device(), _Mixed():
        yield


class _Device(TorchFunctionMode):
    """Tensors on ``meta`` say that they are on the CPU, which autocast and generators know."""

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        return CPU if result == META else result


class _Mixed(TorchDispatchMode):
    """Operations on tensors with data and without give tensors without."""

    known: dict[Any, Any] = {}  # what an operation gave for such shapes: deep networks repeat themselves

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        flat = [x for a in (*args, *kwargs.values()) for x in (a if isinstance(a, list | tuple) else (a,))]
        tensors = [x for x in flat if isinstance(x, Tensor)]
        if not any(x.is_meta for x in tensors):
            size = next((x for x in args if isinstance(x, list | tuple)), ())
            if not tensors and math.prod(size) > LARGEST:
                return torch.empty(size, dtype=kwargs.get("dtype"), device=META)
            return func(*args, **kwargs)
        if not all(x.is_meta for x in tensors):
            if func._schema.is_mutable and not args[0].is_meta:
                raise RuntimeError(f"{func}: a tensor with data would be changed by one without")
            if func.overloadpacket in INDEXED:
                args = (args[0], _positions(args[1]), *args[2:])
            args = tuple(_moved(x) for x in args)
            kwargs = {key: _moved(x) for key, x in kwargs.items()}
        if kwargs.get("device") is not None:
            kwargs = kwargs | {"device": META}
        if not _is_new(func):
            return args[0] if _fills(func) else func(*args, **kwargs)
        key = (func, _key(args), _key(tuple(kwargs.items())))
        if key not in self.known:
            self.known[key] = _form(func(*args, **kwargs))
        return _empty(self.known[key])


def _positions(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Masks as positions, while they have data."""
    found: list[Tensor | None] = []
    for index in indices:
        masked = index is not None and index.dtype == torch.bool and not index.is_meta
        found += index.nonzero().unbind(1) if masked else [index]  # type: ignore[union-attr]
    return found


def _moved(x: Any) -> Any:
    if isinstance(x, list | tuple):
        return type(x)(map(_moved, x))
    return x.to(META) if isinstance(x, Tensor) else x


@cache
def _is_new(func: Any) -> bool:
    """Whether an operation gives tensors of its own: no views, and not what it was given."""
    return not func._schema.is_mutable and all(result.alias_info is None for result in func._schema.returns)


@cache
def _fills(func: Any) -> bool:
    """Whether an operation changes the values of its first argument alone: nothing, where it has none."""
    results = func._schema.returns
    inplace = func.overloadpacket.__name__.endswith("_") and len(results) == 1 and results[0].alias_info is not None
    return inplace and func._schema.arguments[0].is_write and torch.Tag.inplace_view not in func.tags


def _key(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.shape, x.stride(), x.dtype
    return tuple(map(_key, x)) if isinstance(x, list | tuple) else (type(x), x)


def _form(x: Any) -> Any:
    """Size, strides and dtype of each tensor of a result."""
    if isinstance(x, Tensor):
        return x.shape, x.stride(), x.dtype
    return [None if part is None else _form(part) for part in x]


def _empty(form: Any) -> Any:
    if isinstance(form, tuple):
        size, stride, dtype = form
        return torch.empty_strided(size, stride, dtype=dtype, device=META)
    return [None if part is None else _empty(part) for part in form]
