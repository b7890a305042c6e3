"""Which head of a grid is reported: the one that does best on held-out training images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from ssl_bench.utils.errors import RunError

Settings = TypeVar("Settings", bound=tuple[Any, ...])


def choose_head(
    evaluation: str, tried: Mapping[Settings, tuple[float, float]], advice: str = ""
) -> tuple[Settings, dict[str, object]]:
    """The head with the highest accuracy on dev, then the lowest loss, and what a row says of all.

    Args:
        evaluation: Name for the message.
        tried: Settings, of which the first is the pooling, to accuracy and minus the cross-entropy on dev.
        advice: What to change when all heads diverged, for the message.

    Raises:
        RunError: No head stayed finite.

    Example:
        >>> best, facts = choose_head("linear", {("cls", 0.1): (50.0, -1.2), ("mean", 0.1): (50.0, -1.1)})
        >>> best, facts["dev_top1_by_pooling"]
        (('mean', 0.1), {'cls': 50.0, 'mean': 50.0})
    """
    finite = {settings: found for settings, found in tried.items() if math.isfinite(found[1])}
    if not finite:
        raise RunError(f"{evaluation}: all {len(tried)} heads diverged" + (f"; {advice}" if advice else ""))
    best = max(finite, key=finite.__getitem__)
    by_pooling: dict[str, float] = {}
    for (pooling, *_), (accuracy, _) in finite.items():
        by_pooling[pooling] = max(accuracy, by_pooling.get(pooling, 0.0))
    return best, {
        "dev_top1": finite[best][0],
        "dev_top1_by_pooling": by_pooling,
        "heads": len(tried),
        "diverged_heads": len(tried) - len(finite),
    }
