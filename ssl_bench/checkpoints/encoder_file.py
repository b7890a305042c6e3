"""Encoder files: timm weights with the recipe and the cost that made them. Read without executing a pickle."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_bench.backbones import EXAMPLE, build_backbone, family_of, named_backbone, options_for
from ssl_bench.checkpoints.weights import check_weights
from ssl_bench.utils.bounds import check_keywords
from ssl_bench.utils.errors import UserError, first_line
from ssl_bench.utils.files import PACKAGE, write_atomic
from ssl_bench.utils.identity import source_hash
from ssl_bench.utils.schemas import Schema
from ssl_bench.utils.tensor_files import read_tensors
from ssl_bench.utils.weights import weights_hash

FORMAT = 1
FILE = Schema(Path(__file__).parent / "encoder.schema.json", "the file")
LARGEST_TABLES = 2**29  # bytes of what a network computes for itself, such as indices of relative positions


@dataclass(frozen=True)
class Checkpoint:
    """An encoder and where it comes from.

    Args:
        encoder: In eval mode, on the CPU.
        method: Name in tables.
        about: Plain values: recipe, pretraining, flags, deviations, code; input, the mean and std of its images.
        sha256: Hash of the weights.
        loaded: Percent of the encoder's tensors that the file filled.
    """

    encoder: nn.Module
    method: str
    about: dict[str, Any]
    sha256: str
    loaded: float = 100.0

    @property
    def backbone(self) -> dict[str, Any]:
        """The keywords of the encoder's backbone, its name included."""
        recipe = self.about.get("recipe")
        return recipe["backbone"] if recipe else self.about.get("backbone", {"name": self.encoder.name})

    @property
    def input(self) -> dict[str, list[float]]:
        """The mean and std that images of the encoder are normalised with, per channel, on the scale [0, 1]."""
        encoder: Any = self.encoder
        return {"mean": list(encoder.mean), "std": list(encoder.std)}


def save_encoder(
    path: Path, encoder: nn.Module, spec: Mapping[str, Any], method: str, about: Mapping[str, Any]
) -> None:
    """Write an encoder file. Its state dict loads into plain timm.

    Args:
        path: Where.
        encoder: A ``Backbone``, or another network of ``build_encoder``.
        spec: What ``build_encoder`` makes it from.
        method: Name in tables.
        about: Plain values that travel along.
    """
    weights = {k: v.detach().cpu().contiguous() for k, v in encoder.state_dict().items() if k != "mask_token"}
    spec = {**spec, "mask_token": False} if "mask_token" in spec else dict(spec)
    plain = plain_part({"format": FORMAT, "method": method, "encoder": spec, "about": dict(about)}, path)
    buffer = io.BytesIO()
    torch.save({**plain, "state_dict": weights}, buffer)
    write_atomic(path, buffer.getvalue())


def save_weights(path: Path, method: nn.Module) -> None:
    """Write all weights of a method: heads, decoder and teacher too, for its pictures."""
    buffer = io.BytesIO()
    torch.save({name: value.detach().cpu() for name, value in method.state_dict().items()}, buffer)
    write_atomic(path, buffer.getvalue())


def read_checkpoint(path: Path) -> Any:
    """What a checkpoint holds: tensors, numbers, texts and containers of them alone.

    Raises:
        UserError: It can't be read, or holds anything else.
    """
    try:
        return read_tensors(path)
    except UserError:
        raise
    except Exception as error:  # torch raises many kinds for files that are no checkpoint
        raise UserError(f"{path} is not a checkpoint that can be read safely: {first_line(error)}") from error


def load_encoder(path: str | Path, backbone: str | None = None) -> Checkpoint:
    """Read an encoder file of ours, or a plain timm state dict when ``backbone`` says which.

    An encoder whose backbone is a class of a user's file is read when ``backbone`` names that class.

    Raises:
        UserError: No such file, not a checkpoint, one that breaks the schema, weights of another backbone, or of one
            whose code isn't named or has been edited since.
    """
    path, backbone = Path(path), backbone and named_backbone(backbone)
    if not path.is_file():
        raise UserError(f"no such checkpoint: {path}")
    content = read_checkpoint(path)
    ours = is_encoder_file(content)
    weights = content.get("state_dict", content.get("model", content)) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()
    ):
        raise UserError(f"{path} holds no state dict; expected a file of `ssl-bench pretrain` or timm weights")
    if ours:
        plain = plain_part({key: value for key, value in content.items() if key != "state_dict"}, path)
        spec, method, about = plain["encoder"], plain["method"], plain["about"]
        if backbone is not None and backbone != spec["name"]:
            raise UserError(f"{path} holds a {spec['name']}, not a {backbone}")
        _check_code(spec["name"], about, path)
    else:
        if backbone is None:
            raise UserError(f"{path} does not say which backbone it is for; add --backbone, e.g. {EXAMPLE}")
        options = options_for(family_of(backbone), {"pos_embed": "learned"})  # a fixed table loads into a learned one
        spec, method, about = {"name": backbone, **options}, path.stem, {}
    check_buildable(spec, weights, path)
    encoder = build_encoder(spec)
    set_input(encoder, about.get("input"), path)
    encoder.load_state_dict(weights, strict=False)
    return Checkpoint(encoder.eval(), method, about, weights_hash(weights), about.get("loaded", 100.0))


def is_encoder_file(content: Any) -> bool:
    """Whether the content of a checkpoint is that of an encoder file of ours."""
    return isinstance(content, dict) and type(content.get("format")) is int and "encoder" in content


def plain_part(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """An encoder file without its weights, as JSON has it.

    Raises:
        UserError: It breaks the schema.
    """
    try:
        plain = json.loads(json.dumps(content))  # files hold tuples for lists
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no encoder file: {first_line(error)}") from error
    if wrong := FILE.violations(plain):
        raise UserError(f"{path} is no encoder file: {wrong[0]}")
    return plain


def check_buildable(spec: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path) -> None:
    """Build a network without data, and compare it with weights, before memory is taken for it.

    Raises:
        UserError: It can't be built, is larger than the weights that should fill it, or they don't fill it.
    """
    try:
        with torch.device("meta"):
            network = build_encoder(spec)
    except (UserError, ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path} describes no encoder that can be built: {first_line(error)}") from error
    check_weights(network, weights, path, spec["name"])
    beside = sum(buffer.nbytes for buffer in network.buffers())
    if beside > LARGEST_TABLES:
        raise UserError(f"{path} describes an encoder whose tables take {beside / 1e9:.0f} GB")


def _check_code(backbone: str, about: Mapping[str, Any], path: Path) -> None:
    """See that a backbone from outside the package is known to this process, as it was when it was trained."""
    trained = about.get("identity", {}).get("backbone_source")
    if trained is None or backbone != about["recipe"]["backbone"]["name"]:  # raw pixels are ours on any backbone
        return
    try:
        family = family_of(backbone)
    except UserError as error:
        raise UserError(
            f"{path} holds a {backbone}, which is not ours: add --backbone path/to/file.py:{backbone}"
        ) from error
    if source_hash(family) != trained:
        raise UserError(f"the file of {backbone} has been edited since {path} was trained: pre-train it again")


def set_input(encoder: Any, given: Any, path: Path) -> None:
    """Give an encoder the statistics of its input, ``{"mean": [...], "std": [...]}``; nothing given leaves its own.

    Raises:
        UserError: Not three channels, or a standard deviation that is not above 0.
    """
    if given is None:
        return
    try:
        mean, std = (tuple(float(value) for value in given[key]) for key in ("mean", "std"))
    except (KeyError, TypeError, ValueError):
        mean = std = ()
    if not (len(mean) == len(std) == 3 and min(std) > 0):
        raise UserError(f"{path}: input is {given!r}; it must have mean and std, three channels each")
    encoder.mean, encoder.std = mean, std


def named_encoder(value: str) -> Checkpoint | None:
    """The encoder file that a teacher's keyword names as ``checkpoint:PATH``; None for any other value."""
    kind, _, path = value.partition(":")
    return load_encoder(path) if kind == "checkpoint" and path else None


def build_encoder(spec: Mapping[str, Any]) -> nn.Module:
    """The network that an encoder file describes: ``{"name": ..., **keywords}``."""
    kind, own = spec["name"].split("_")[0], {key: value for key, value in spec.items() if key != "name"}
    if kind == "dvae":
        from ssl_bench.teachers.dalle import Tokenizer

        check_keywords(Tokenizer, spec, spec["name"])
        return Tokenizer(**spec)
    if kind == "vqkd":
        from ssl_bench.teachers.vqkd import build_vqkd

        check_keywords(build_vqkd, own, spec["name"])
        return build_vqkd(**spec)
    if kind == "clip":
        from ssl_bench.teachers.clip_tower import build_clip_tower

        check_keywords(build_clip_tower, own, spec["name"])
        return build_clip_tower(**spec)
    return build_backbone(**spec)


def code_version() -> dict[str, str | None]:
    """Package version and, in a checkout, the git commit ("+" when files of the package differ from it)."""
    try:
        package = version("ssl-bench")
    except PackageNotFoundError:
        package = "0+unknown"
    commit = None
    if (PACKAGE.parent / ".git").exists():
        git = ["git", "-C", str(PACKAGE)]
        found = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "."], capture_output=True, check=False)
        commit = found.stdout.strip() + ("+" if changed.returncode == 1 else "") or None
    return {"package": package, "commit": commit}
