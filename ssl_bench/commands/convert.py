"""``ssl-bench convert``: a released checkpoint in, our encoder file or plain timm weights out, with a load report."""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_bench.backbones import build_backbone, family_of, options_for
from ssl_bench.backbones.backbone import RGB, Backbone
from ssl_bench.checkpoints.encoder_file import code_version, is_encoder_file, load_encoder, save_encoder
from ssl_bench.checkpoints.official import Released, branches, choose, read, translate
from ssl_bench.checkpoints.variants import BLOCK_TABLE, SHARED_TABLE, position_kind, variant_of
from ssl_bench.config.method_facts import method_facts
from ssl_bench.config.recipe import load_recipe, resolve_method
from ssl_bench.methods import TEACHERS
from ssl_bench.utils.errors import UserError, first_line, unknown
from ssl_bench.utils.files import file_hash, write_atomic
from ssl_bench.utils.shipped import recipe_names

FORMATS = ("ssl-bench", "timm")
FAULTS = ("missing", "misshaped", "unexpected")


@dataclass
class Report:
    """How tensors fill a backbone: their names by what became of them."""

    matched: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    misshaped: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    tensors: float = 0.0  # percent of the backbone's tensors that are filled
    values: float = 0.0  # percent of its parameters

    def lines(self) -> Iterator[str]:
        """A short table."""
        for kind in ("matched", "resized", *FAULTS, "ignored"):
            names = getattr(self, kind)
            parts = list(dict.fromkeys(re.sub(r"(?<=\w)\.(\d.*|[^.]*)$", "", name) for name in names))
            text = ", ".join(parts[:4]) + (", ..." if len(parts) > 4 else "")
            if kind == "matched":
                text = f"{percent(self.tensors)} of the backbone's tensors, {percent(self.values)} of its parameters"
            yield f"  {kind:10} {len(names):4}  {text}".rstrip()


def convert(
    source: str | Path,
    *,
    method: str,
    backbone: str,
    out: str | Path,
    branch: str | None = None,
    num_heads: int | None = None,
    data: str = "unknown",
    epochs: float | None = None,
    mean: RGB | None = None,
    std: RGB | None = None,
    allow_partial: bool = False,
    format: str = "ssl-bench",
    show: Callable[[str], Any] = print,
) -> Path:
    """Turn a checkpoint into an encoder file: the Python form of ``ssl-bench convert``.

    Args:
        source: A checkpoint in a layout of the method's authors or in timm's names, .safetensors, or with
            ``format="timm"`` an encoder file of ours. It is never executed.
        method: The one that trained the weights; says the branch, the positions and which tensors are no encoder's.
        backbone: Which it is, as in timm: ``vit_base_patch16_224``. Positions of another image size are resized.
        out: The file to write.
        branch: Another than the paper evaluates: student, momentum_encoder, ...
        num_heads: Attention heads, which no weights show, where they are not those of the size or the paper's recipe.
        data: What it was pre-trained on, for the rows.
        epochs: Of its pre-training, for the rows: what a paper's table goes by.
        mean: Of the input that the weights were trained with, per channel, on the scale [0, 1], where it isn't that of
            the method's released files.
        std: Per channel; given with the mean.
        allow_partial: Take weights that don't fill the backbone. The rest keeps its initial values (seed 0).
        format: "ssl-bench", or "timm" for a plain state dict (see ``timm_state_dict``).
        show: Where the load report goes, line by line.

    Raises:
        UserError: No readable checkpoint, another method's, or weights that don't fill the backbone.
    """
    source, out = Path(source), Path(out)
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if epochs is not None and not 0 < epochs < math.inf:
        raise UserError(f"--epochs {epochs:g}: it must be above 0")
    if (mean is None) != (std is None):
        raise UserError("--mean and --std belong together; give both or none")
    if std is not None and min(std) <= 0:
        raise UserError(f"--std {' '.join(map(str, std))}: each must be above 0")
    if out.is_dir() or out.resolve() == source.resolve():
        raise UserError(f"--out {out} is {'a folder' if out.is_dir() else 'the checkpoint itself'}; name a new file")
    content = read(source)
    if is_encoder_file(content):
        if format != "timm":
            raise UserError(f"{source} is an encoder file already; use it as it is, or convert it with --format timm")
        return write_timm(timm_state_dict(source, backbone), out)
    name, cls = resolve_method(method)
    if not cls.trains or name in TEACHERS:
        raise UserError(f"method {name!r} has no pre-trained backbone to convert")
    layout = method_facts(name).checkpoint
    with _as_release(source, name, backbone):
        named, shown = family_of(backbone).read_released(content)
        found = branches(named, layout.rename)
    chosen = choose(found, layout, name, branch, source)
    paper = f"{backbone.partition('_patch')[0]}_in1k"  # the paper's recipe of this size knows its heads
    given = {"backbone": backbone} | ({} if num_heads is None else {"num_heads": num_heads})
    recipe = load_recipe(method, paper if paper in recipe_names(name) else None, given, origin="convert")
    with torch.device("meta"):
        grid = build_backbone(**recipe.backbone).grid
    with _as_release(source, name, backbone):
        weights = family_of(backbone).from_official(found[chosen])
        variant = variant_of(layout, weights, recipe.backbone, grid)
        released = translate(weights, layout.not_encoder + variant.not_encoder)
    spec = recipe.backbone | variant.backbone | options_for(family_of(backbone), {"mask_token": False})
    spec |= seen_positions(released, spec, name, grid) | shown
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = build_backbone(**spec)
    input_mean = list(mean or variant.mean or layout.mean or encoder.mean)
    input_std = list(std or variant.std or layout.std or encoder.std)
    report = fill(encoder, released)
    looks = [f"{encoder.num_heads} heads"] if encoder.num_heads else []
    looks += [f"positions: {spec['pos_embed']}"] if "pos_embed" in spec else []
    show(f"{source.name}: the {chosen} as {', '.join([name, backbone, *looks])}")
    show(f"  input      mean {' '.join(map(str, input_mean))}, std {' '.join(map(str, input_std))}")
    for line in [*report.lines(), *(f"  note: {note}" for note in released.notes)]:
        show(line)
    if released.problems and not allow_partial:
        raise UserError(f"{source} does not fit {name} with {backbone}: {'; '.join(released.problems)}")
    trained = {"data": data, "fingerprint": None, "images_seen": None}
    about = {
        "recipe": None,
        "views": None,
        "backbone": spec,
        "input": {"mean": input_mean, "std": input_std},
        "pretraining": trained | ({} if epochs is None else {"epochs": epochs}),
        "paper": cls.paper,
        "category": cls.category,
        "flags": ["external weights", *layout.flags, *(["labels"] if released.labels or cls.uses_labels else [])],
        "deviations": released.notes + released.problems,
        "loaded": report.tensors,
        "source": {"file": source.name, "sha256": file_hash(source), "branch": chosen},
        "code": code_version(),
    }
    if format == "timm":
        return write_timm(timm_names(encoder.state_dict()), out)
    save_encoder(out, encoder, spec, name, about)
    return out


@contextlib.contextmanager
def _as_release(source: Path, method: str, backbone: str) -> Iterator[None]:
    """Code that takes a file for a release: what it stumbles over becomes one line."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{source} is no release of {method} for {backbone}: {first_line(error)}") from error


def seen_positions(
    released: Released, options: Mapping[str, Any], method: str, grid: tuple[int, int]
) -> dict[str, str]:
    """The backbone's option for the positions that the weights have; those that the method never has are a problem.

    Args:
        released: The weights; a problem is added to them.
        options: Of the backbone that they should fill.
        method: For the message.
        grid: The encoder's, rows and columns.
    """
    expected = options.get("pos_embed", "none")
    kind = position_kind(released.weights.get("pos_embed"), grid)
    if "none" in (expected, kind):  # the load report says what is missing
        return {}
    tuned = kind == "learned" and released.labels  # fine-tuning trains the fixed tables too (MAE, models_vit.py)
    if kind != expected and not tuned:
        released.problems.append(f"its positions are {kind}, those of {method} are {expected}")
    return {"pos_embed": kind}


def fill(encoder: Backbone, released: Released) -> Report:
    """Copy what fits, resize positions to the encoder's grid, and account for every tensor."""
    own, weights = encoder.state_dict(), released.weights
    report = Report(missing=[name for name in own if name not in weights], ignored=released.ignored)
    for name, value in weights.items():
        if name not in own:
            report.unexpected.append(name)
            continue
        fitting = encoder.fit_weight(name, value) if value.numel() else value
        if fitting.shape != own[name].shape:
            report.misshaped.append(name)
            continue
        report.matched.append(name)
        own[name].copy_(fitting)
        if fitting.shape != value.shape:
            report.resized.append(name)
            released.notes.append(f"{name} resized from {tuple(value.shape)} to {tuple(fitting.shape)}")
    report.tensors = 100 * len(report.matched) / len(own)
    report.values = 100 * sum(own[k].numel() for k in report.matched) / sum(v.numel() for v in own.values())
    counts = [f"{len(getattr(report, kind))} {kind}" for kind in FAULTS if getattr(report, kind)]
    if counts:
        faults = [
            *(f"{k} is {tuple(weights[k].shape)} instead of {tuple(own[k].shape)}" for k in report.misshaped),
            *(f"{k} is missing" for k in report.missing),
            *(f"{k} is not part of it" for k in report.unexpected),
        ]
        released.problems.append(
            f"{percent(report.tensors)} of its tensors match ({', '.join(counts)}); {', '.join(faults[:2])}"
        )
    return report


def timm_state_dict(path: str | Path, backbone: str | None = None) -> dict[str, Tensor]:
    """The weights of an encoder file under timm's names; see ``timm_names``."""
    return timm_names(load_encoder(path, backbone).encoder.state_dict())


def timm_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a Backbone as they load strictly into plain timm.

    That is ``timm.models.VisionTransformer`` with ``num_classes=0``; with relative positions, which it does not know,
    ``timm.models.Beit`` with ``num_classes=0, global_pool=""`` and ``use_shared_rel_pos_bias=True``, or
    ``use_rel_pos_bias=True`` where each block has its table. There the k bias is left out, which softmax cancels.
    """
    if not any(name == SHARED_TABLE or (name.startswith("blocks.") and name.endswith(BLOCK_TABLE)) for name in weights):
        return weights  # also Swin's, whose tables stand below its stages
    out = {}
    for name, value in weights.items():
        if name.endswith("qkv.bias"):
            at = name.removesuffix("qkv.bias")
            out[f"{at}q_bias"], _, out[f"{at}v_bias"] = value.chunk(3)
        else:
            out[re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)] = value
    return out


def write_timm(weights: dict[str, Tensor], out: Path) -> Path:
    """Write a plain state dict."""
    buffer = io.BytesIO()
    torch.save({name: value.detach().clone() for name, value in weights.items()}, buffer)
    return write_atomic(out, buffer.getvalue())


def percent(value: float) -> str:
    """Rounded down, so that "100 %" means all.

    Example:
        >>> percent(99.99)
        '99.9 %'
    """
    return f"{math.floor(value * 10) / 10:g} %"
