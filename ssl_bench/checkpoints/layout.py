"""What a method's released files hold, as its ``method.yaml`` says. Without torch, so that lists don't wait for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True)
class Variant:
    """Files of a method whose backbone is not that of its recipes.

    Args:
        backbone: The options that differ.
        not_encoder: Tensors as of ``Layout``, besides the layout's.
        holds: What tells such a file, where the options don't: tensors -> their length.
        mean: Of the input, where it differs from the layout's, per channel, on the scale [0, 1].
        std: Per channel.
    """

    backbone: dict[str, Any] = field(default_factory=dict)
    not_encoder: tuple[str, ...] = ()
    holds: dict[str, int] = field(default_factory=dict)
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Layout:
    """What a method's released files hold.

    Args:
        branch: The one that the paper evaluates; "model" where the file holds just one network.
        not_encoder: Names of the tensors beside the backbone that belong to the method, not to the encoder; shell
            patterns: ``decoder_*``.
        rename: Parts of names, from dot to dot: theirs -> ours.
        variants: Other forms of its files.
        flags: What a reader must know of the released weights to compare fairly.
        mean: Of the input that the weights were trained with, per channel, on the scale [0, 1]; ImageNet's if left out.
        std: Per channel.
    """

    branch: str = "model"
    not_encoder: tuple[str, ...] = ()
    rename: dict[str, str] = field(default_factory=dict)
    variants: tuple[Variant, ...] = ()
    flags: tuple[str, ...] = ()
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a tensor's name has one of the shell patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
