"""Plans: what is run, what is skipped and why, what it would cost; and that running them makes the rows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from ssl_bench.arguments import make_parser
from ssl_bench.commands import reproduce as module
from ssl_bench.commands.reproduce import find_file, make_plan, missing_data, reproduce
from ssl_bench.config.method_facts import method_facts
from ssl_bench.config.parsing import read_yaml
from ssl_bench.config.protocol import load_evaluator
from ssl_bench.methods import METHODS
from ssl_bench.results.papers.matching import (
    Run,
    find_run,
    how_to_fill,
    measurement,
    our_backbone,
    released,
    size_of,
)
from ssl_bench.results.papers.published import published, select
from ssl_bench.results.papers.table_spec import Column, RowOf, read_definition, table_names
from ssl_bench.utils.errors import RunError, UserError
from ssl_bench.utils.shipped import shipped

MOCO = "MoCo v3 paper, arXiv 2104.02057"


@pytest.fixture(autouse=True)
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder: no ImageNet, no rows, no checkpoints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSL_BENCH_DATA", str(tmp_path / "data"))


def plan_of(name: str, **options: Any) -> str:
    lines: list[str] = []
    assert reproduce(name, dry_run=True, show=lines.append, **options) == []
    return "\n".join(lines)


# Plans ----------------------------------------------------------------------------------------------------------------


def test_plan_of_a_paper(tmp_path: Path) -> None:
    text = plan_of("mae")
    assert "hours at 395 TFLOPS sustained (assumed for h100)" in text
    part = text.split("\nmae ViT-B/16, imagenet1k, 1600 epochs\n")[1].split("\n\n")[0]
    assert "released weights: mae_pretrain_vit_base.pth (not here" in part
    assert "ssl-bench pretrain mae --recipe vit_base_in1k" in part
    named = [name for name in ("finetune-mae", "linear-mae") if name in part.split("--evaluations ")[1].split()[0]]
    passes = sum(read_yaml(shipped("evaluations") / f"{name}.yaml")["epochs"] for name in named)
    assert "linear-mae" in named and passes >= 90
    assert f"{1_281_167 * (1600 + passes) + 50_000 * len(named):.2e} images" in part
    assert f"skipped: imagenet1k is not in {tmp_path / 'data' / 'imagenet1k'}" in part
    assert "skipped: igpt is not implemented" in text or "igpt" in METHODS
    assert "0 of 14 encoders can be run here now" in text


def test_cells_name_the_papers_own_protocol() -> None:
    """The same column asks each method's own probe; a table may say otherwise, as iBOT's does for DINO."""
    found = {}
    for name in ("survey", "ibot", "dino"):
        definition = read_definition(name)
        for row in definition.rows:
            for column in definition.columns:
                if (number := definition.number(row, column, published())) is not None and column.evaluation:
                    found[name, number.method, number.backbone, number.protocol] = measurement(
                        number, row, column
                    ).evaluation
    small, base, large = "ViT-S/16", "ViT-B/16", "ViT-L/16"
    assert found["survey", "mae", base, "finetune"] == "finetune-mae"
    assert found["survey", "mae", large, "linear"] == "linear-mae"  # one file for all sizes
    assert found["survey", "mae", large, "finetune"] == "finetune-mae-large"
    assert (found["dino", "dino", small, "linear"], found["dino", "dino", base, "linear"]) == (
        "linear-dino", "linear-dino-base",
    )  # fmt: skip
    assert found["survey", "moco_v3", base, "finetune"] == "finetune-mocov3"
    assert found["survey", "dino", base, "finetune"] == "finetune-deit"
    assert found["ibot", "dino", base, "finetune"] == found["ibot", "ibot", base, "finetune"] == "finetune-ibot"
    assert found["dino", "dino", small, "knn"] == "knn-dino"
    assert found["ibot", "ibot", "Swin-T/W14", "linear"] == "linear-ibot"
    assert found["ibot", "ibot", large, "linear"] == "linear-ibot-large"


def test_a_dense_column_asks_the_protocol_of_the_paper() -> None:
    """Who measured decides: the iBOT paper evaluates DINO as its own networks, which depend on their size."""
    found = {}
    definition = read_definition("dense")
    for row in definition.rows:
        for column in definition.columns:
            if (number := definition.number(row, column, published())) is not None and column.evaluation:
                key = (number.source.split()[0], number.method, number.backbone, column.label)
                found[key] = measurement(number, row, column).evaluation
    small, base, upernet = "ViT-S/16", "ViT-B/16", "ADE20K UPerNet"
    assert {found["DINO", "dino", small, f"Oxford {level}"] for level in "MH"} == {"landmarks-dino-oxford"}
    assert {found["DINO", "dino", small, f"Paris {level}"] for level in "MH"} == {"landmarks"}
    for method in ("dino", "ibot"):
        assert {found["iBOT", method, small, f"{data} {level}"] for data in ("Oxford", "Paris") for level in "MH"} == {
            "landmarks"
        }
    assert found["iBOT", "ibot", small, f"{upernet} (iBOT)"] == "segmentation-finetune-ibot-small"
    plain = {found["iBOT", method, base, f"{upernet} (iBOT)"] for method in ("dino", "ibot", "beit")}
    plain |= {found["MAE", method, base, f"{upernet} (MAE)"] for method in ("mae", "moco_v3", "beit")}
    assert plain == {"segmentation-finetune"}
    known = {name: load_evaluator(name) for name in set(found.values()) if name}  # "": DeiT, of which nothing is known
    assert set(found.values()) - set(known) == {""} and len(known) == 7


def test_the_plan_of_dense_columns(tmp_path: Path) -> None:
    """Each of the data has its own command; what isn't here is named, and the rest is planned."""
    text = plan_of("dense")
    part = text.split("\ndino ViT-S/16, imagenet1k, 800 epochs\n")[1].split("\n\n")[0]
    commands = re.findall(r"would run: ssl-bench (evaluate .*)", part)
    assert [command.split("--evaluations ")[1] for command in commands] == [
        "vos --data davis2017",
        "attention-jaccard --data voc2012",
        "landmarks-dino-oxford,landmarks --data roxford5k",
        "landmarks --data rparis6k",
    ]
    assert f"skipped: davis2017 is not in {tmp_path / 'data' / 'DAVIS'}" in part
    assert "6 have a recipe or weights, about 0 s together, and 6 of unknown cost" in text
    for folder in ("imagenet1k/train", "DAVIS", "rparis6k"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    part = plan_of("dense").split("\ndino ViT-S/16, imagenet1k, 800 epochs\n")[1].split("\n\n")[0]
    assert re.findall(r" run: ssl-bench evaluate --evaluations (.*)", part) == [
        "vos --data davis2017",
        "landmarks --data rparis6k",
    ]
    assert "skipped" not in part and "not evaluated now: voc2012 is not in" in part


def test_commands_of_empty_cells_can_be_run() -> None:
    """Every command in a table's notes parses."""
    number = select(published(), {"method": "mae", "backbone": "ViT-B/16", "place": "Table 12"})[0]
    text = how_to_fill(measurement(number, RowOf({}), Column("", {}, "own")))
    commands = re.findall(r"`ssl-bench ([^`]+)`", text)
    assert [command.split()[0] for command in commands] == ["convert", "pretrain", "evaluate"]
    for command in commands:
        make_parser().parse_args(shlex.split(command))


def test_hours_follow_the_speed() -> None:
    hours = [float(re.findall(r"about ([\d.]+) days", plan_of("mae", tflops=t))[0]) for t in (1.0, 10.0)]
    assert hours[0] == pytest.approx(10 * hours[1], rel=0.05)
    assert "(as given)" in plan_of("mae", tflops=2.0)


def test_released_file_replaces_the_run(tmp_path: Path) -> None:
    (tmp_path / "data" / "imagenet1k" / "train").mkdir(parents=True)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "mae_pretrain_vit_base.pth").write_bytes(b"")
    text = plan_of("mae", checkpoints=tmp_path / "weights")
    part = text.split("\nmae ViT-B/16, imagenet1k, 1600 epochs\n")[1].split("\n\n")[0]
    assert "run: ssl-bench convert mae_pretrain_vit_base.pth" in part and "pretrain mae" not in part
    assert "skipped" not in part


def test_max_hours_skips_long_runs(tmp_path: Path) -> None:
    (tmp_path / "data" / "imagenet1k" / "train").mkdir(parents=True)
    assert "skipped: longer than 5 h" in plan_of("mae", max_hours=5)
    assert "skipped: longer" not in plan_of("mae", max_hours=1e6)


def test_shared_file_names_need_a_folder(tmp_path: Path) -> None:
    number = select(published(), {"method": "moco_v3", "backbone": "ViT-B/16", "place": "Table 4", "source": MOCO})[0]
    wanted = measurement(number, RowOf({}), Column("linear", {}, "linear"))
    release = released(wanted)
    assert release is not None and release.file == "vit-b-300ep.pth.tar"
    (tmp_path / release.file).write_bytes(b"")
    assert find_file("moco_v3", release, tmp_path) == tmp_path / release.file
    shared = method_facts("ibot").releases[1]
    assert shared.file == "checkpoint_teacher.pth"
    (tmp_path / shared.file).write_bytes(b"")
    assert find_file("ibot", shared, tmp_path) is None
    own = tmp_path / "ibot" / "vit_base_patch16_224" / "checkpoint_teacher.pth"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"")
    assert find_file("ibot", shared, tmp_path) == own


def test_a_release_of_another_branch_says_so() -> None:
    """iBOT of ImageNet-22K: the authors published the student alone."""
    number = select(
        published(), {"method": "ibot", "backbone": "ViT-L/16", "pretrain_data": "imagenet22k", "epochs": "50"}
    )[0]
    text = how_to_fill(measurement(number, RowOf({}), Column("", {}, "linear")))
    file = "checkpoint_student.pth"
    assert f"convert {file} --method ibot --backbone vit_large_patch16_224 --branch student --pretrained-on" in text


def test_released_epochs_are_the_published_ones() -> None:
    """Each release's epochs are stated by some source of the same method, backbone and data, or by our tables.

    DINO on Swin is EsViT's authors', who call it EsViT with the view-level task alone.
    """
    rows = [row for name in table_names() for row in read_definition(name).rows]
    for method in METHODS:
        for release in method_facts(method).releases:
            authors = "esvit" if method == "dino" and release.backbone.startswith("swin") else method
            numbers = select(published(), {"method": authors, "pretrain_data": release.data})
            size = size_of(release.backbone)
            stated = {n.epochs for n in numbers if size_of(our_backbone(n.backbone)) == size}
            stated |= {
                row.stands_for.get("epochs")
                for row in rows
                if row.where.get("method", method) == method
                and size_of(our_backbone(row.where.get("backbone", ""))) == size
            }
            assert f"{release.epochs:g}" in stated, (method, release.file)


def test_recipes_of_a_table_resolve() -> None:
    for step in make_plan(read_definition("survey"), published(), [], Path("none")):
        if isinstance(step.run, Run):
            recipe = step.run.resolved
            assert (recipe.training.epochs, recipe.data) == (step.wanted.epochs, step.wanted.data)
            assert recipe.backbone["name"] == step.wanted.backbone
            assert all(recipe.settings[key] == value for key, value in step.wanted.settings)


def test_why_there_is_no_run() -> None:
    number = select(published(), {"method": "mae", "backbone": "ViT-H/14", "place": "Table 12"})[0]
    assert (
        find_run(measurement(number, RowOf({}), Column("", {})))
        == "mae has no recipe for vit_huge_patch14_224 on imagenet1k"
    )
    number = select(published(), {"method": "byol", "backbone": "ViT-B/16", "source": MOCO})[0]
    assert find_run(measurement(number, RowOf({}), Column("", {}))) == "byol is not implemented" or "byol" in METHODS


def test_missing_data() -> None:
    assert missing_data("places") == "" and missing_data("pets-masks") == ""
    assert missing_data("voc2012").endswith("VOCdevkit/VOC2012") and missing_data("coco2017").endswith("/coco")
    assert missing_data("cifar10") == "" and "jft300m is not one of our data sets" in missing_data("jft300m")


def test_wrong_requests() -> None:
    with pytest.raises(UserError, match="unknown device 'h1000': did you mean 'h100'"):
        reproduce("mae", device="h1000")
    with pytest.raises(UserError, match="--tflops 0"):
        reproduce("mae", tflops=0.0)
    with pytest.raises(UserError, match="unknown table"):
        reproduce("meae")


# Runs -----------------------------------------------------------------------------------------------------------------


def test_runs_what_it_can_and_says_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "imagenet1k" / "train").mkdir(parents=True)
    calls: list[tuple[Any, ...]] = []

    def pretrain(method: str, **options: Any) -> Path:
        calls.append(("pretrain", method, options["recipe"], options["overrides"]))
        if options["recipe"] == "vit_large_in1k":
            raise RunError("the loss is not finite")
        return Path("encoder.pt")

    def evaluate(encoder: Path, **options: Any) -> None:
        calls.append(("evaluate", encoder, tuple(options["evaluations"]), options["data"], options["out"]))

    monkeypatch.setattr(module, "pretrain", pretrain)
    monkeypatch.setattr(module, "evaluate", evaluate)
    failed = reproduce("mae", out=tmp_path / "rows", show=lambda _: None)
    assert ("pretrain", "mae", "vit_base_in1k", {}) in calls
    after = calls[calls.index(("pretrain", "mae", "vit_base_in1k", {})) + 1]
    assert after[:2] == ("evaluate", Path("encoder.pt")) and "linear-mae" in after[2] and after[3] == "imagenet1k"
    assert "mae ViT-L/16, imagenet1k, 1600 epochs: the loss is not finite" in failed
    assert ("pretrain", "mae", "vit_large_in1k", {}) in calls
    calls.clear()
    assert reproduce("mae", out=tmp_path / "rows", dry_run=True, show=lambda _: None) == [] and not calls
