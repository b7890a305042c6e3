"""Checkpoints as the methods' authors release them: which tensors are the encoder, and what they are called here."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ssl_bench.checkpoints.layout import Layout, matches
from ssl_bench.checkpoints.variants import BLOCK_TABLE, SHARED_TABLE
from ssl_bench.utils.errors import UserError, unknown
from ssl_bench.utils.tensor_files import read_tensors

CLASSIFIER = r"head\.(fc\.)?(weight|bias)|fc_norm\.(weight|bias)"  # of a network fine-tuned or probed with labels
DERIVED = r"masked_embed|(.*\.)?(relative_position_index|attn_mask)"  # iBOT's mask token; indices, Swin's windows
# Every backbone has these; Swin has a first block in each stage.
ANCHOR = re.compile(r"(|.*\.)(?:patch_embed\.proj\.weight|(?<!layers\.\d\.)blocks\.0\.norm1\.weight)")
# Names above a backbone that say nothing about its branch.
WRAPPERS = {"state_dict", "model", "model_state", "backbone"}
# Classes of the plain values that official files keep beside their weights; making one runs no code of the file.
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},
    *((np.float64(0).__reduce__()[0], f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")),
    *((PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
]
NO_WEIGHTS = (b"<!doctype", b"<html", b"<?xml", b"version https://git-lfs")


@dataclass(frozen=True)
class Released:
    """The encoder of a released file.

    Args:
        weights: float32, under the names of ``Backbone``.
        ignored: Tensors that belong to no encoder: decoder, heads, mask token.
        labels: The file holds a classifier.
        notes: What differs from the file.
        problems: Why the weights should not be used as they are.
    """

    weights: dict[str, Tensor]
    ignored: list[str]
    labels: bool
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint: weights and plain values, never code.

    Raises:
        UserError: One line that says what the file is instead.
    """
    if not path.is_file():
        raise UserError(f"{path} is a folder, not a checkpoint" if path.is_dir() else f"no such checkpoint: {path}")
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if not start:
        raise UserError(f"{path} is empty")
    if start.startswith(NO_WEIGHTS):
        raise UserError(f"{path} is a web page or a pointer, not weights; download the file itself")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else read_tensors(path, HARMLESS)
    except UserError:
        raise
    except Exception as error:  # torch raises many kinds for files that are no checkpoint
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{path} holds a pickled {found[1]}, and unpickling it could run any code; if you trust the file, save "
                "its state dict alone with the code it comes from: torch.save(model.state_dict(), 'weights.pth')"
            ) from error
        reason = re.search(r"Unsupported operand \d+|.+?(?=\. |\n|$)", str(error))
        raise UserError(
            f"{path} is damaged, incomplete or no checkpoint: {type(error).__name__} {reason[0] if reason else ''}"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no state dict but a {type(content).__name__}")
    return content


def branches(content: Mapping[Any, Any], rename: Mapping[str, str] | None = None) -> dict[str, dict[str, Tensor]]:
    """Every backbone in a file, by branch, each with all tensors at its level.

    Args:
        content: Of the file.
        rename: Parts of names, from dot to dot: theirs -> ours.

    Example:
        >>> weight = torch.zeros(8, 3, 4, 4)
        >>> file = {"student": {"module.backbone.patch_embed.proj.weight": weight}, "epoch": 1}
        >>> branches(file | {"teacher": {"backbone.patch_embed.proj.weight": weight}}).keys()
        dict_keys(['student', 'teacher'])
    """
    tensors = {_renamed(name, rename or {}): value for name, value in _flatten(content)}
    found: dict[str, dict[str, Tensor]] = {}
    for prefix in dict.fromkeys(match[1] for name in tensors if (match := ANCHOR.fullmatch(name))):
        weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        parts = [part for part in prefix.split(".")[:-1] if part not in WRAPPERS and not part.isdigit()]
        name = "_".join(parts) or ("student" if "masked_embed" in weights else "model")  # iBOT masks its student
        found[prefix if name in found else name] = weights
    return found


def choose(found: Mapping[str, Any], layout: Layout, method: str, branch: str | None, path: Path) -> str:
    """The branch asked for, or the one that the paper evaluates.

    Raises:
        UserError: It is not in the file.
    """
    if not found:
        raise UserError(
            f"{path} holds no vision transformer: no patch_embed.proj.weight or blocks.0.norm1.weight in it"
        )
    if branch is not None and branch not in found:
        raise UserError(f"{path}: {unknown('branch', branch, found)}")
    for name in (branch or layout.branch, "model"):
        if name in found:
            return name
    raise UserError(
        f"{path} holds the {' and the '.join(found)}, but {method} is evaluated with the {layout.branch}; "
        f"is it another method's file? If not, say --branch {next(iter(found))}"
    )


def translate(weights: Mapping[str, Tensor], not_encoder: tuple[str, ...]) -> Released:
    """A branch under our names.

    Args:
        weights: Of the branch.
        not_encoder: As of ``Layout``.
    """
    classifier = "" if "mask_token" in weights else CLASSIFIER  # a head beside a mask token is for pre-training
    ignored = re.compile("|".join(filter(None, (classifier, DERIVED))))
    left = [name for name in weights if ignored.fullmatch(name) or matches(name, not_encoder)]
    own = {name: value.float() for name, value in weights.items() if name not in left}
    labels = any(re.fullmatch(classifier, name) and not matches(name, not_encoder) for name in left)
    released = Released(own, left, labels)
    tables = [name for name in own if name.endswith(BLOCK_TABLE)]
    if tables and all(torch.equal(own[name], own[tables[0]]) for name in tables):
        own |= {SHARED_TABLE: own[tables[0]]}
        for name in tables:
            del own[name]
    if "fc_norm.weight" in weights and "norm.weight" not in own:
        own |= {f"norm.{name}": weights[f"fc_norm.{name}"].float() for name in ("weight", "bias")}
        released.notes.append("fine-tuned weights: the norm after the mean of the patches is applied before it")
    return released


def _renamed(name: str, rename: Mapping[str, str]) -> str:
    for theirs, ours in rename.items():
        name = re.sub(rf"(?<![^.]){re.escape(theirs)}(?![^.])", ours, name)
    return name


def _flatten(content: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors by their path, without the names that DistributedDataParallel, DeepSpeed and torch.compile put in."""
    for key, value in content.items():
        path = ".".join(part for part in f"{above}{key}".split(".") if part not in ("module", "_orig_mod"))
        if isinstance(value, Tensor):
            yield path, value
        elif isinstance(value, Mapping):
            yield from _flatten(value, f"{path}." if path else "")
