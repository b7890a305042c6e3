"""What stands beside a published number: the run and the protocol that measure the same thing, and our rows of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_bench.config.method_facts import Release, method_facts
from ssl_bench.config.parsing import read_yaml
from ssl_bench.results.papers.published import Number
from ssl_bench.results.papers.table_spec import Column, RowOf
from ssl_bench.results.rows.row import Row
from ssl_bench.results.text import yaml_text
from ssl_bench.utils.files import content_hash
from ssl_bench.utils.shipped import recipe_names, shipped
from ssl_bench.utils.versions import registered

if TYPE_CHECKING:
    from ssl_bench.config.recipe import Recipe

ROWS = Path("results/reproduce")  # where `ssl-bench reproduce` writes
INPUT = r"(input )?\d+(x\d+)?"  # a setting that says the size of the images alone
SIZES = {
    "Ti": "tiny",
    "T": "tiny",
    "S": "small",
    "M": "medium",
    "B": "base",
    "B+": "base_plus",
    "L": "large",
    "H": "huge",
}
# How papers write a backbone, and our name of it for inputs of 224 px. A Swin without a window has 7; DeiT is a ViT.
PRINTED = {
    r"(?:ViT|DeiT)-(Ti|S|B|L|H)/(\d+)": "vit_{}_patch{}_224",
    r"EVA-02-(Ti|S|B|L)/(\d+)": "eva02_{}_patch{}_224",
    r"Swin-(T|S|B|L)(?:/W(\d+))?": "swin_{}_patch4_window{}_224",
    r"Hiera-(T|S|B\+|B|L|H)": "hiera_{}_224",
}
# Protocols whose setting says how the encoder is evaluated, and not which encoder it is.
DENSE = ("vos", "attention_jaccard", "retrieval", "copy_detection", "seg_linear", "seg_knn", "seg_upernet", "det")
# Published names -> ours, where they differ: of metrics (by the setting for retrieval), and of data.
METRICS = {"j_f_mean": "jf", "j_mean": "j", "f_mean": "f", "macc": "mean_accuracy", "map, Hard": "map_hard"}
DATA = {"revisited_oxford": "roxford5k", "revisited_paris": "rparis6k", "nyu_depth_v2": "nyu-depth-v2"}


@dataclass(frozen=True)
class Measurement:
    """A measurement that would stand beside a published number: the encoder, and how it is evaluated.

    Attributes:
        method: Name of the method.
        backbone: Our name of it; empty where it isn't one of ours.
        printed: The backbone as papers write it.
        data: Pre-training data.
        epochs: Of pre-training; None where no source says.
        settings: Keywords of the method that differ from its recipe's.
        evaluation: Our protocol; empty where there is none.
        test_data: Data of the evaluation.
        metric: top1, ...
        variant: What its source says makes it another number than the method's plain one, where neither the backbone
            nor ``settings`` say it: an ablation.
    """

    method: str
    backbone: str
    printed: str
    data: str
    epochs: float | None
    settings: tuple[tuple[str, Any], ...]
    evaluation: str
    test_data: str
    metric: str
    variant: str = ""

    @property
    def encoder(self) -> str:
        """For example "mae ViT-B/16, imagenet1k, 1600 epochs"."""
        epochs = "unstated" if self.epochs is None else f"{self.epochs:g}"
        changed = "".join(f", {key}={yaml_text(value)}" for key, value in self.settings)
        changed += f", {self.variant}" if self.variant else ""
        return f"{self.method} {self.printed}, {self.data or 'unstated data'}, {epochs} epochs{changed}"


def measurement(number: Number, row: RowOf, column: Column) -> Measurement:
    """What would have to be measured to stand beside a number."""
    epochs = number.epochs or row.stands_for.get("epochs", "")
    said = bool(row.settings) or number.protocol in DENSE or re.fullmatch(INPUT, number.setting)
    return Measurement(
        number.method,
        our_backbone(number.backbone, number.setting),
        number.backbone,
        number.pretrain_data,
        float(epochs) if epochs else None,
        tuple(sorted(row.settings.items())),
        protocol(number, row, column),
        DATA.get(number.eval_dataset, number.eval_dataset),
        our_metric(number),
        "" if said else number.setting,
    )


def our_metric(number: Number) -> str:
    """Our name of a number's metric."""
    return METRICS.get(f"{number.metric}, {number.setting}") or METRICS.get(number.metric, number.metric)


def protocol(number: Number, row: RowOf, column: Column) -> str:
    """Our protocol for a number: the column's, or where it says "own" the method's; empty where there is none."""
    if column.evaluation != "own":
        return column.evaluation
    own = method_facts(row.protocols.get(number.protocol, number.method)).protocols
    found = own.get(f"{number.protocol}, {number.eval_dataset}", own.get(number.protocol, ""))
    return found if isinstance(found, str) else found.get(size_of(our_backbone(number.backbone, number.setting)), "")


def size_of(backbone: str) -> str:
    """Family and size of a backbone; the size alone of a vision transformer.

    Example:
        >>> size_of("vit_base_patch16_224"), size_of("swin_tiny_patch4_window7_224"), size_of("hiera_base_plus_224")
        ('base', 'swin_tiny', 'hiera_base_plus')
    """
    return re.sub(r"(_patch\d+)?(_window\d+)?_\d+$", "", backbone).removeprefix("vit_")


def our_backbone(printed: str, setting: str = "") -> str:
    """Our name of a backbone; empty for families that we don't have, and for other inputs than 224 px.

    iGPT makes its images of 224 px smaller; to 32 px is every 7 x 7 pixels into one.

    Example:
        >>> our_backbone("ViT-B/16"), our_backbone("Swin-T/W14"), our_backbone("ViT-H/14", "input 448")
        ('vit_base_patch16_224', 'swin_tiny_patch4_window14_224', '')
    """
    if match := re.fullmatch(r"iGPT-(S|M|L)", printed):
        return f"igpt_{SIZES[match[1]]}_patch7_224" if re.fullmatch(r"(input )?32x32", setting) else ""
    for pattern, name in PRINTED.items():
        if (match := re.fullmatch(pattern, printed)) and "input" not in setting:
            return name.format(SIZES[match[1]], *(text or "7" for text in match.groups()[1:]))
    return ""


@dataclass(frozen=True)
class Run:
    """A shipped recipe with what a measurement changes in it."""

    wanted: Measurement
    recipe: str
    overrides: dict[str, Any]

    @property
    def arguments(self) -> str:
        """For example "mae --recipe vit_large_in1k --set epochs=800"."""
        changed = " ".join(f"{key}={yaml_text(value)}" for key, value in self.overrides.items())
        return f"{self.wanted.method} --recipe {self.recipe}" + (f" --set {changed}" if changed else "")

    @cached_property
    def resolved(self) -> Recipe:
        """Every value of the run.

        Raises:
            UserError: The recipe file, or a setting of the table, is wrong.
        """
        from ssl_bench.config.recipe import load_recipe  # here, so that tables without such a row don't wait for torch

        return load_recipe(self.wanted.method, self.recipe, self.overrides, origin="the table's settings")


@cache
def find_run(wanted: Measurement) -> Run | str:
    """The run that makes a measurement's encoder, or why there is none."""
    if wanted.method not in registered("method"):
        return f"{wanted.method} is not implemented"
    if not wanted.backbone:
        return f"{wanted.printed} is not one of our backbones, or its input isn't 224 px"
    if not wanted.data or wanted.epochs is None:
        return f"no source says which {'epochs' if wanted.data else 'data'} {wanted.method} was trained with"
    if wanted.variant:
        return f"no recipe of {wanted.method} is {wanted.variant!r}"
    found = None
    for name in recipe_names(wanted.method):
        values = read_yaml(shipped("methods") / wanted.method / f"{name}.yaml")
        if (values.get("backbone"), values.get("data")) == (wanted.backbone, wanted.data):
            same = (float(values["epochs"]) if "epochs" in values else _default_epochs(wanted.method)) == wanted.epochs
            if same or found is None:
                found = Run(
                    wanted, name, dict(wanted.settings) if same else {"epochs": wanted.epochs, **dict(wanted.settings)}
                )
    return found or f"{wanted.method} has no recipe for {wanted.backbone} on {wanted.data}"


def _default_epochs(method: str) -> float:
    from ssl_bench.methods import METHODS  # as in Run.resolved

    return METHODS[method].defaults.epochs


def find_evaluation(wanted: Measurement) -> str:
    """Why a measurement can't be made of any encoder; empty when it can."""
    if not wanted.evaluation:
        return "no protocol of ours measures this"
    if not (shipped("evaluations") / f"{wanted.evaluation}.yaml").is_file():
        return f"the protocol {wanted.evaluation} is not one of ours"
    return ""


def released(wanted: Measurement) -> Release | None:
    """The authors' file with a measurement's encoder; None where none is known or none of our methods reads it."""
    release = method_facts(wanted.method).release(wanted.backbone, wanted.data)
    same = release is not None and release.epochs == wanted.epochs and not wanted.settings and not wanted.variant
    return release if same and wanted.method in registered("method") else None


def file_path(method: str, release: Release) -> Path:
    """Where a released file is looked for: FILE, or METHOD/BACKBONE/FILE where several releases have that name."""
    shared = sum(other.file == release.file for other in method_facts(method).releases) > 1
    return Path(method, release.backbone, release.file) if shared else Path(release.file)


# Our rows -------------------------------------------------------------------------------------------------------------


def matching(wanted: Measurement, rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The rows of a measurement, one per seed, and what to say about them; none where they leave a choice."""
    run = find_run(wanted)
    evaluated = [row for row in rows if _same_evaluation(wanted, row)]
    found = [row for row in evaluated if _same_weights(wanted, row) or _same_run(run, row)]
    if not found:
        return [], []
    kinds = {
        content_hash([row["evaluation"]["version"], row["identity"]["evaluation"]["settings"], bool(row["recipe"])])
        for row in found
    }
    if len(kinds) > 1:
        return [], [f"{wanted.encoder}: rows of several versions, settings or origins; keep those of one in the folder"]
    return found, [] if found[0]["recipe"] else [_origin(wanted, found[0])]


def _same_evaluation(wanted: Measurement, row: Row) -> bool:
    evaluation, trained = row["evaluation"], row["pretraining"] or {}
    asked = (wanted.method, wanted.evaluation, wanted.test_data, wanted.data)
    same = asked == (row["method"], evaluation["name"], evaluation["data"], trained.get("data"))
    return same and wanted.metric in row["metrics"]


def _same_weights(wanted: Measurement, row: Row) -> bool:
    """Released weights: their backbone and epochs; where those aren't known, a release of that backbone."""
    if row["recipe"] is not None or "external weights" not in row["flags"] or wanted.settings or wanted.variant:
        return False
    epochs = (row["pretraining"] or {}).get("epochs")
    known = released(wanted) is not None if epochs is None else epochs == wanted.epochs
    return row["backbone"]["name"] == wanted.backbone and known


def _origin(wanted: Measurement, row: Row) -> str:
    if (epochs := (row["pretraining"] or {}).get("epochs")) is not None:
        return f"measured on released weights, of {epochs:g} epochs as `convert` was told"
    release = released(wanted)
    assert release is not None  # or the row would not match
    return f"measured on the authors' weights, taken to be {file_path(wanted.method, release)}"


def _same_run(run: Run | str, row: Row) -> bool:
    """Trained by us: every value that both know is the same, except the seed."""
    if isinstance(run, str) or row["recipe"] is None:
        return False
    for part, mine in run.resolved.as_dict().items():
        theirs = row["recipe"].get(part)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            if any(theirs.get(key, value) != value for key, value in mine.items()):
                return False
        elif part == "method" and theirs != mine:
            return False
    return True


def how_to_fill(wanted: Measurement) -> str:
    """The commands of a measurement, or why there are none."""
    run, release = find_run(wanted), released(wanted)
    reason = run if isinstance(run, str) and not release else find_evaluation(wanted)
    if reason:
        return f"not measured: {reason}"
    steps = [f"ssl-bench convert {convert_arguments(wanted, release)} --out encoder.pt"] if release else []
    if not isinstance(run, str):
        steps.append(f"ssl-bench pretrain {run.arguments}")
    evaluate = f"ssl-bench evaluate encoder.pt --evaluations {wanted.evaluation} --data {wanted.test_data} --out {ROWS}"
    return f"to measure: {' or '.join(f'`{step}`' for step in steps)}, then `{evaluate}`"


def convert_arguments(wanted: Measurement, release: Release) -> str:
    """For example "mae_pretrain_vit_base.pth --method mae --backbone vit_base_patch16_224 ..."."""
    branch = f" --branch {release.branch}" if release.branch else ""
    return (
        f"{file_path(wanted.method, release)} --method {wanted.method} --backbone {wanted.backbone}{branch} "
        f"--pretrained-on {wanted.data} --epochs {wanted.epochs:g}"
    )
