"""Which network a method started from, told by the options of its backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Options, of any family of backbones, that leave the features of the untrained network as they are.
NOT_AT_START = ("drop_path", "mask_token", "mask_init", "patch_gradient", "resample")


def start_of(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """What the initial network depends on besides the seed.

    Args:
        backbone: ``{"name": ..., **options}``; the ``parameters`` that rows add don't matter.

    Example:
        >>> start_of({"name": "vit_micro_patch8_32", "init": "dino", "drop_path": 0.1, "parameters": 467808})
        {'name': 'vit_micro_patch8_32', 'init': 'dino'}
    """
    return {key: value for key, value in backbone.items() if key not in (*NOT_AT_START, "parameters")}


def start_labels(starts: list[dict[str, Any]]) -> list[str]:
    """For several starts, the options in which they differ, without those that are none; an empty text for one alone.

    Example:
        >>> start_labels([{"name": "vit", "init": "mae"}, {"name": "vit", "init": "dino"}])
        ['init mae', 'init dino']
    """
    keys = dict.fromkeys(key for start in starts for key in start)
    differ = [key for key in keys if any(start.get(key) != starts[0].get(key) for start in starts)]
    return [
        ", ".join(_text(key, start[key]) for key in differ if start.get(key) not in (None, "none")) for start in starts
    ]


def _text(key: str, value: Any) -> str:
    if key == "input" and value:
        key, value = "mean", f"{value['mean'][0]:.3g}"
    return f"{key} {value}".removeprefix("name ")
