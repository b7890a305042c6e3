"""What stands beside a published number: the run and the protocol that measure the same thing, and our rows of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from ssl_bench.config.parsing import read_yaml
from ssl_bench.config.recipe import Recipe, load_recipe, recipe_names
from ssl_bench.methods import METHODS
from ssl_bench.results.papers.published import Number
from ssl_bench.results.papers.table_spec import Column, RowOf
from ssl_bench.results.rows.row import Row
from ssl_bench.results.text import yaml_text
from ssl_bench.utils.files import content_hash
from ssl_bench.utils.shipped import shipped

ROWS = Path("results/reproduce")  # where `ssl-bench reproduce` writes
SIZES = {"Ti": "vit_tiny", "S": "vit_small", "B": "vit_base", "L": "vit_large", "H": "vit_huge"}
# (method, backbone, data) -> the file that the authors released, and its epochs of pre-training (their READMEs).
RELEASES = {
    ("mae", "vit_base_patch16_224", "imagenet1k"): ("mae_pretrain_vit_base.pth", 1600),
    ("mae", "vit_large_patch16_224", "imagenet1k"): ("mae_pretrain_vit_large.pth", 1600),
    ("mae", "vit_huge_patch14_224", "imagenet1k"): ("mae_pretrain_vit_huge.pth", 1600),
    ("moco_v3", "vit_small_patch16_224", "imagenet1k"): ("vit-s-300ep.pth.tar", 300),
    ("moco_v3", "vit_base_patch16_224", "imagenet1k"): ("vit-b-300ep.pth.tar", 300),
    ("dino", "vit_small_patch16_224", "imagenet1k"): ("dino_deitsmall16_pretrain.pth", 800),
    ("dino", "vit_base_patch16_224", "imagenet1k"): ("dino_vitbase16_pretrain.pth", 400),
    ("dino", "vit_small_patch8_224", "imagenet1k"): ("dino_deitsmall8_pretrain.pth", 800),
    ("dino", "vit_base_patch8_224", "imagenet1k"): ("dino_vitbase8_pretrain.pth", 300),
    ("ibot", "vit_small_patch16_224", "imagenet1k"): ("checkpoint_teacher.pth of ViT-S/16", 800),
    ("ibot", "vit_base_patch16_224", "imagenet1k"): ("checkpoint_teacher.pth of ViT-B/16", 400),
    ("ibot", "vit_large_patch16_224", "imagenet1k"): ("checkpoint_teacher.pth of ViT-L/16", 300),
    ("ibot", "vit_large_patch16_224", "imagenet22k"): ("checkpoint_student.pth of ViT-L/16, ImageNet-22K", 50),
    ("beit", "vit_base_patch16_224", "imagenet22k"): ("beit_base_patch16_224_pt22k.pth", 150),
    ("beit", "vit_large_patch16_224", "imagenet22k"): ("beit_large_patch16_224_pt22k.pth", 150),
}

# (what a column shows, method) -> our file of the protocol behind the method's published numbers. Linear: the authors'
# eval_linear, main_lincls, main_linprobe, run_linear_eval and eval_linear_multi. k-NN: DINO's eval_knn, which is iBOT's
# too. Fine-tuning: DINO by DeiT's recipe (its table 6), MoCo v3 by a shorter one.
OWN = {
    ("linear", "moco_v3"): "linear-mocov3",
    ("linear", "dino"): "linear-dino",
    ("linear", "ibot"): "linear-ibot",
    ("linear", "beit"): "linear-beit",
    ("linear", "mae"): "linear-mae",
    ("knn", "dino"): "knn-dino",
    ("knn", "ibot"): "knn-dino",
    ("finetune", "moco_v3"): "finetune-mocov3",
    ("finetune", "dino"): "finetune-deit",
    ("finetune", "ibot"): "finetune-ibot",
    ("finetune", "beit"): "finetune-beit",
    ("finetune", "mae"): "finetune-mae",
    ("finetune", "eva"): "finetune-eva",
}
# Protocols whose published values depend on the size: the size that the file is for. Another has NAME-SIZE.yaml.
SIZE_OF = {
    "linear-dino": "small",
    "linear-ibot": "small",
    "finetune-mocov3": "base",
    "finetune-ibot": "base",
    "finetune-beit": "base",
    "finetune-mae": "base",
    "finetune-eva": "base",
}


@dataclass(frozen=True)
class Target:
    """A measurement that stands for a published number: the encoder, and how it is judged.

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

    @property
    def encoder(self) -> str:
        """For example "mae ViT-B/16, imagenet1k, 1600 epochs"."""
        epochs = "unstated" if self.epochs is None else f"{self.epochs:g}"
        changed = "".join(f", {key}={yaml_text(value)}" for key, value in self.settings)
        return f"{self.method} {self.printed}, {self.data or 'unstated data'}, {epochs} epochs{changed}"


def target(number: Number, row: RowOf, column: Column) -> Target:
    """What would have to be measured to stand beside a number."""
    epochs = number.epochs or row.stands_for.get("epochs", "")
    return Target(
        number.method,
        our_backbone(number.backbone, number.setting),
        number.backbone,
        number.pretrain_data,
        float(epochs) if epochs else None,
        tuple(sorted(row.settings.items())),
        protocol(number, row, column),
        number.eval_dataset,
        number.metric,
    )


def protocol(number: Number, row: RowOf, column: Column) -> str:
    """Our protocol for a number: the column's, or the method's own where it says so; empty where there is none.

    Where the published values depend on the size, it is the file for that size: "finetune-mae-large".
    """
    if column.evaluation != "own":
        return column.evaluation
    name = row.protocols.get(number.protocol) or OWN.get((number.protocol, number.method), "")
    size = our_backbone(number.backbone, number.setting).partition("_patch")[0].removeprefix("vit_")
    return f"{name}-{size}" if size and SIZE_OF.get(name, size) != size else name


def our_backbone(printed: str, setting: str = "") -> str:
    """Our name of a backbone; empty for those that aren't plain vision transformers, and for other inputs than 224 px.

    Example:
        >>> our_backbone("ViT-B/16"), our_backbone("Swin-T/W7"), our_backbone("ViT-H/14", "input 448")
        ('vit_base_patch16_224', '', '')
    """
    match = re.fullmatch(r"ViT-(Ti|S|B|L|H)/(\d+)", printed)
    return f"{SIZES[match[1]]}_patch{match[2]}_224" if match and "input" not in setting else ""


@dataclass(frozen=True)
class Run:
    """A shipped recipe with what a target changes in it."""

    target: Target
    recipe: str
    overrides: dict[str, Any]

    @property
    def arguments(self) -> str:
        """For example "mae --recipe vit_large_in1k --set epochs=800"."""
        changed = " ".join(f"{key}={yaml_text(value)}" for key, value in self.overrides.items())
        return f"{self.target.method} --recipe {self.recipe}" + (f" --set {changed}" if changed else "")

    @cached_property
    def resolved(self) -> Recipe:
        """Every value of the run.

        Raises:
            UserError: The recipe file, or a setting of the table, is wrong.
        """
        return load_recipe(self.target.method, self.recipe, self.overrides, origin="the table's settings")


@cache
def find_run(wanted: Target) -> Run | str:
    """The run that makes a target's encoder, or why there is none."""
    if wanted.method not in METHODS:
        return f"{wanted.method} is not implemented"
    if not wanted.backbone:
        return f"{wanted.printed} is not one of our backbones, or its input isn't 224 px"
    if not wanted.data or wanted.epochs is None:
        return f"no source says which {'epochs' if wanted.data else 'data'} {wanted.method} was trained with"
    found = None
    for name in recipe_names(wanted.method):
        values = read_yaml(shipped("methods") / wanted.method / f"{name}.yaml")
        if (values.get("backbone"), values.get("data")) == (wanted.backbone, wanted.data):
            same = float(values.get("epochs", METHODS[wanted.method].defaults.epochs)) == wanted.epochs
            if same or found is None:
                found = Run(
                    wanted, name, dict(wanted.settings) if same else {"epochs": wanted.epochs, **dict(wanted.settings)}
                )
    return found or f"{wanted.method} has no recipe for {wanted.backbone} on {wanted.data}"


def find_evaluation(wanted: Target) -> str:
    """Why a target can't be judged; empty when it can."""
    if not wanted.evaluation:
        return "no protocol of ours measures this"
    if not (shipped("evaluations") / f"{wanted.evaluation}.yaml").is_file():
        return f"the protocol {wanted.evaluation} is not one of ours"
    return ""


def released(wanted: Target) -> str:
    """The file of the authors' release with a target's encoder; empty where none is known or none of ours reads it."""
    name, epochs = RELEASES.get((wanted.method, wanted.backbone, wanted.data), ("", 0))
    return name if wanted.method in METHODS and epochs == wanted.epochs and not wanted.settings else ""


# Our rows -------------------------------------------------------------------------------------------------------------


def matching(wanted: Target, rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The rows that measured a target, one per seed, and what to say about them; none where they leave a choice."""
    run = find_run(wanted)
    found = [row for row in rows if _same_judge(wanted, row) and (_same_weights(wanted, row) or _same_run(run, row))]
    if not found:
        return [], []
    kinds = {
        content_hash([row["evaluation"]["version"], row["evaluation"]["settings"], bool(row["recipe"])])
        for row in found
    }
    if len(kinds) > 1:
        return [], [f"{wanted.encoder}: rows of several versions, settings or origins; keep those of one in the folder"]
    return found, [] if found[0]["recipe"] else [_whose(wanted, found[0])]


def _same_judge(wanted: Target, row: Row) -> bool:
    judged, trained = row["evaluation"], row["pretraining"] or {}
    asked = (wanted.method, wanted.evaluation, wanted.test_data, wanted.data)
    same = asked == (row["method"], judged["name"], judged["data"], trained.get("data"))
    return same and wanted.metric in row["metrics"]


def _same_weights(wanted: Target, row: Row) -> bool:
    """Weights from elsewhere: their backbone and epochs; where those aren't known, a release of that backbone."""
    if row["recipe"] is not None or "external weights" not in row["flags"] or wanted.settings:
        return False
    epochs = (row["pretraining"] or {}).get("epochs")
    known = bool(released(wanted)) if epochs is None else epochs == wanted.epochs
    return row["backbone"]["name"] == wanted.backbone and known


def _whose(wanted: Target, row: Row) -> str:
    if (epochs := (row["pretraining"] or {}).get("epochs")) is not None:
        return f"measured on weights from elsewhere, of {epochs:g} epochs as `convert` was told"
    return f"measured on the authors' weights, taken to be {released(wanted)}"


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


def how_to_fill(wanted: Target) -> str:
    """The command that measures a target, or why there is none."""
    run, file = find_run(wanted), released(wanted)
    reason = run if isinstance(run, str) and not file else find_evaluation(wanted)
    if reason:
        return f"not measured: {reason}"
    steps = []
    if file:
        steps.append(
            f"ssl-bench convert {file.split(' of ')[0]} --method {wanted.method} --backbone {wanted.backbone} "
            f"--pretrained-on {wanted.data} --epochs {wanted.epochs:g} --out encoder.pt"
        )
    if not isinstance(run, str):
        steps.append(f"ssl-bench pretrain {run.arguments}")
    evaluate = f"ssl-bench evaluate encoder.pt --evaluations {wanted.evaluation} --data {wanted.test_data} --out {ROWS}"
    return f"to measure: {' or '.join(f'`{step}`' for step in steps)}, then `{evaluate}`"
