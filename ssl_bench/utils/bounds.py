"""What values a keyword may have, as part of its type: ``mask_ratio: OpenShare``, ``hidden_dim: Width``.

``config.parsing`` reads these types wherever values come from outside (recipes, protocols, suites, the command line),
so a keyword of a method from outside is checked like ours. Where a type says nothing, numbers are finite all the same.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from functools import cache, reduce
from operator import or_
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ssl_bench.utils.errors import UserError, unknown


@dataclasses.dataclass(frozen=True)
class Between:
    """Numbers from ``low`` to ``high``.

    Args:
        low: The least.
        high: The largest.
        open: The ends that are excluded: "low", "high" or "both".

    Example:
        >>> str(Between(0, 1, open="high")), 1.0 in Between(0, 1), 1.0 in Between(0, 1, open="high")
        ('in [0, 1)', True, False)
    """

    low: float
    high: float
    open: Literal["", "low", "high", "both"] = ""

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open in ("low", "both") else value >= self.low
        return above and (value < self.high if self.open in ("high", "both") else value <= self.high)

    def __str__(self) -> str:
        left, right = "(" if self.open in ("low", "both") else "[", ")" if self.open in ("high", "both") else "]"
        return f"in {left}{self.low:.10g}, {self.high:.10g}{right}"


# Whole numbers.
Seed = Annotated[int, Between(0, 2**32 - 1)]
Count = Annotated[int, Between(1, 2**31 - 1)]  # of things of which there is one at least
Natural = Annotated[int, Between(0, 2**31 - 1)]
Width = Annotated[int, Between(1, 2**20)]  # channels, outputs, codes
Depth = Annotated[int, Between(1, 256)]  # layers, attention heads
Few = Annotated[int, Between(0, 1024)]  # crops, tokens, blocks
Pixels = Annotated[int, Between(1, 2**14)]  # of a side
# Shares.
Share = Annotated[float, Between(0, 1)]
OpenShare = Annotated[float, Between(0, 1, open="both")]
Area = Annotated[float, Between(0, 1, open="low")]  # of a crop
Rate = Annotated[float, Between(0, 1, open="high")]
# Quantities. The largest is what float32 holds, far below where arithmetic in 64 bits overflows.
Positive = Annotated[float, Between(0, 1e38, open="low")]
NonNegative = Annotated[float, Between(0, 1e38)]
Epochs = Annotated[float, Between(0, 1e6)]
"""A length in epochs, such as a warm-up: suites of equal FLOPs and ``--budget`` stretch it with the training."""
Flops = Annotated[float, Between(0, 1e30, open="low")]
Sigma = Annotated[float, Between(0, 1000, open="low")]  # of a blur, pixels

_FINITE = Between(-math.inf, math.inf, open="both")
_INT64 = Between(-(2**63), 2**63 - 1)


def misfit(hint: Any, value: Any) -> str:
    """What a value of the right type breaks of the bounds in its type: "in [0, 1]"; empty if nothing.

    Example:
        >>> misfit(Share | None, 0.5), misfit(Share | None, 2.0), misfit(tuple[Share, ...], (0.5, 1.5))
        ('', 'in [0, 1] or null', 'each in [0, 1]')
    """
    origin, arms = get_origin(hint), get_args(hint)
    if origin is Annotated:
        broken = (str(bounds) for bounds in arms[1:] if isinstance(bounds, Between) and value not in bounds)
        return misfit(arms[0], value) or next(broken, "")
    if origin in (Union, UnionType):
        found = [misfit(arm, value) for arm in arms]
        return "" if "" in found else " or ".join(dict.fromkeys(found))
    if origin is tuple and isinstance(value, tuple):
        hints = arms[:1] * len(value) if len(arms) == 2 and arms[1] is Ellipsis else arms
        return _each(zip(hints, value, strict=False))
    if origin is list and isinstance(value, list):
        return _each((arms[0], item) for item in value)
    if origin is dict and isinstance(value, dict):
        return _each((arms[1], item) for item in value.values())
    if hint is Any:
        return ""
    if hint is NoneType:
        return "" if value is None else "null"
    if hint is int:
        return "" if isinstance(value, int) and value in _INT64 else "a whole number of at most 64 bits"
    if hint is float:
        return "" if isinstance(value, int | float) and value in _FINITE else "a finite number"
    if origin is Literal:
        return "" if value in arms else f"one of {', '.join(map(str, arms))}"
    kind = origin or hint
    return "" if not isinstance(kind, type) or isinstance(value, kind) else kind.__name__


def _each(pairs: Any) -> str:
    wrong = next(filter(None, (misfit(hint, item) for hint, item in pairs)), "")
    return wrong and (wrong if wrong.startswith("each ") else f"each {wrong}")


def unbound(hint: Any) -> Any:
    """A type without bounds, for people.

    Example:
        >>> unbound(tuple[Share, Share] | None)
        tuple[float, float] | None
    """
    origin, arms = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return unbound(arms[0])
    if origin in (Union, UnionType):
        return reduce(or_, (unbound(arm) for arm in arms))
    if origin is None or origin is Literal or not isinstance(origin, type):
        return hint
    return origin[tuple(arm if arm is Ellipsis else unbound(arm) for arm in arms)]  # type: ignore[index]


def check_keywords(called: Callable[..., Any], values: Mapping[str, Any], what: str) -> None:
    """Check the keywords of a class or function that comes out of a file.

    Args:
        called: What is called with them.
        values: Keyword -> value.
        what: For errors: "vit_micro_patch8_32".

    Raises:
        UserError: An unknown keyword (where it doesn't hand on others), or a value of another type or out of bounds.
    """
    hints = types_of(called)
    parameters = inspect.signature(called).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    others = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for key, value in values.items():
        if key not in known and not others:
            raise unknown(f"option of {what}", key, known)
        if wrong := misfit(hints.get(key, Any), tuple(value) if isinstance(value, list) else value):
            raise UserError(f"{key} of {what} is {str(value)[:100]!r}; it must be {wrong}")


def check_multiple(key: str, value: int, *, of: int, named: str = "") -> None:
    """Check what the type of one keyword can't say: that its value is a multiple of another's.

    Args:
        key: Of a recipe.
        value: Its value.
        of: The other value.
        named: The key of that one, if it has one.

    Raises:
        UserError: It is no multiple.
    """
    if value % of:
        raise UserError(f"{key} is {value}; it must be a multiple of {of}{named and f', the {named}'}")


def types_of(called: Any) -> Mapping[str, Any]:
    """The types of the keywords of a class's constructor or of a function, with their bounds.

    Example:
        >>> from ssl_bench.nn.optimizers import Training
        >>> misfit(types_of(Training)["betas"], (0.9, 1.0))
        'each in [0, 1)'
    """
    return _types_of(called)


@cache
def _types_of(called: Any) -> Mapping[str, Any]:
    function = called.__init__ if isinstance(called, type) else called  # type: ignore[misc]
    hints = get_type_hints(function, include_extras=True)
    return {key: hint for key, hint in hints.items() if key != "return"}


def check_fields(made: Any) -> None:
    """Check the fields of a dataclass against the bounds in their types.

    Raises:
        UserError: One that is out of bounds; it names the field, the value and what is valid.
    """
    hints = types_of(type(made))
    for field in dataclasses.fields(made):
        value = getattr(made, field.name)
        if wrong := misfit(hints[field.name], value):
            raise UserError(f"{field.name} is {value!r}; it must be {wrong}")
