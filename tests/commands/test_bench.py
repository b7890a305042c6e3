"""A whole suite at toy size: rows, the table, doing nothing twice, being killed, an external method."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from ssl_bench.commands import bench as bench_module
from ssl_bench.commands import evaluation_sets
from ssl_bench.commands.evaluate import evaluate
from ssl_bench.commands.list import catalogue
from ssl_bench.commands.pretrain import run
from ssl_bench.config.cost import training_flops
from ssl_bench.config.recipe import load_recipe, resolve_method
from ssl_bench.config.suite import Suite, load_suite, of_length, resolve, scaled
from ssl_bench.data.datasets import Splits, load
from ssl_bench.data.shrinking import shrunk
from ssl_bench.methods import BASELINES, METHODS, TEACHERS
from ssl_bench.results.rows.predictions import read_predictions
from ssl_bench.results.rows.row import Row, read_rows
from ssl_bench.utils.bounds import Epochs, types_of
from ssl_bench.utils.errors import RunError, UserError

bench = partial(bench_module.bench, jobs=1)  # what a test patches exists in this process alone

ROOT = Path(__file__).parents[2]
VICREG = f"{ROOT / 'examples' / 'vicreg.py'}:VICReg"
SUITE = """\
name: toy
description: for tests
data: blobs
backbone: vit_nano_patch4_16
recipe: none_has_it
methods: [mae]
seeds: [0, 1]
evaluations: [knn, linear]
training: {epochs: 1, batch_size: 16, base_lr: 1e-2, warmup_epochs: 0}
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_data: Splits, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation_sets, "load", lambda *_, **__: tiny_data)
    (tmp_path / "toy.yaml").write_text(SUITE)
    return tmp_path


def essence(rows: list[Row]) -> dict[str, object]:
    """What must not depend on when and how often a suite was started."""
    return {row["id"]: (row["method"], row["metrics"], row["weights"], read_predictions(row).tolist()) for row in rows}


def test_rows_table_and_nothing_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[str] = []
    assert bench("toy.yaml", show=shown.append) == []
    rows = read_rows(folder / "results" / "toy")
    said = re.compile(r": knn [\d.]+, linear [\d.]+; \d+ s$")
    ended = [line for line in capsys.readouterr().err.splitlines() if said.search(line)]
    assert len(ended) == 7 and ended[0].startswith("untrained, seed 0") and ended[1].startswith("mae, seed 1")
    assert len(rows) == 2 * (1 + 2 + 2 + 2)  # raw pixels once; untrained, supervised and mae for both seeds
    text = "\n".join(shown)
    assert all(name in text for name in ("raw_pixels", "untrained", "supervised", "mae"))
    board = folder / "results" / "toy" / "LEADERBOARD.md"
    before = board.read_bytes()
    monkeypatch.setattr(bench_module, "run", lambda *_: pytest.fail("was run twice"))
    assert bench("toy.yaml", show=shown.append) == []
    assert board.read_bytes() == before and "7 of them done before" in shown[len(shown) // 2 - 1] + "".join(shown)
    row = next(row for row in rows if row["method"] == "mae" and row["evaluation"]["name"] == "linear")
    assert row["pretraining"]["images_seen"] == 48 and row["recipe"]["training"]["batch_size"] == 16
    assert row["evaluation"]["split"] == "test" and row["weights"]["loaded_percent"] == 100
    assert row["metrics"][row["headline"]]["n"] == 24 and len(read_predictions(row)) == 24
    assert 100 * read_predictions(row).mean() == pytest.approx(row["metrics"][row["headline"]]["value"], abs=1e-5)
    assert str(folder) not in row.path.read_text()


class Killed(BaseException):
    """What ends a run in the middle."""


def dying(monkeypatch: pytest.MonkeyPatch, *at: int) -> list[object]:
    """Be killed at the writes of these numbers, counted from 1; returns the list of all writes that were tried."""
    calls: list[object] = []
    write = bench_module.run_evaluations.__globals__["write_row"]

    def write_or_die(*args: object) -> None:
        calls.append(args[0])
        if len(calls) in at:
            raise Killed
        write(*args)

    monkeypatch.setitem(bench_module.run_evaluations.__globals__, "write_row", write_or_die)
    return calls


def test_killed_between_and_within_tasks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench("toy.yaml", out="whole", seeds=[0], show=lambda _: None)
    whole = essence(read_rows("whole"))
    for file in Path("runs").rglob("encoder.pt"):
        file.unlink()

    dying(monkeypatch, 3, 5)
    for _ in range(2):
        with pytest.raises(Killed):
            bench("toy.yaml", out="killed", seeds=[0], show=lambda _: None)
    bench("toy.yaml", out="killed", seeds=[0], show=lambda _: None)
    assert essence(read_rows("killed")) == whole


def test_side_by_side_gives_the_same_rows(folder: Path, tiny_data: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """With images that are read from their files, for which every run has processes of its own."""
    for images in (tiny_data.train, tiny_data.test):
        for i, label in enumerate(images.labels.tolist()):
            path = folder / "blobs" / images.split / str(label) / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.images[i].permute(1, 2, 0).numpy()).save(path)
    monkeypatch.setattr(evaluation_sets, "load", lambda *_, **__: load("folder:blobs", memory=0))
    text = SUITE.replace("vit_nano_patch4_16", "vit_micro_patch8_16")
    (folder / "toy.yaml").write_text(text.replace("methods: [mae]", f"methods: ['{VICREG}']"))
    bench("toy.yaml", allow_code=True, out="one", seeds=[0], show=lambda _: None)
    for file in Path("runs").rglob("encoder.pt"):
        file.unlink()
    assert bench("toy.yaml", allow_code=True, out="two", seeds=[0], show=lambda _: None, jobs=2) == []
    assert essence(read_rows("two")) == essence(read_rows("one"))


def test_external_method_stands_in_the_same_table(folder: Path) -> None:
    shown: list[str] = []
    bench("toy.yaml", show=shown.append, seeds=[0])
    bench("toy.yaml", methods=[VICREG], seeds=[0], show=shown.append)
    table = shown[-3]
    assert "VICReg" in table and "mae" in table
    row = next(row for row in read_rows("results/toy") if row["method"] == "VICReg")
    assert row["recipe"]["training"]["epochs"] == 1 and row["deviations"]


def test_transfer(folder: Path, tiny_data: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every encoder is evaluated on a folder of larger images as well, and nothing is done twice."""
    for split, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("dark", "light")):
            (folder / "other" / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (20, 24), (9 * i, 90 * label, 0)).save(folder / "other" / split / name / f"{i}.png")
    monkeypatch.setattr(evaluation_sets, "load", lambda name, **_: tiny_data if name == "blobs" else load(name))
    plain = SUITE.replace("[0, 1]", "[0]")
    (folder / "toy.yaml").write_text(plain)
    bench("toy.yaml", show=lambda _: None)
    before = {path: path.read_bytes() for path in Path("results/toy/rows").iterdir()}
    (folder / "toy.yaml").write_text(plain + "transfer: ['folder:other']\ntransfer_evaluations: [logistic]\n")

    calls = dying(monkeypatch, 3)
    with pytest.raises(Killed):
        bench("toy.yaml", show=lambda _: None)
    shown: list[str] = []
    assert bench("toy.yaml", show=shown.append) == []
    assert len(calls) == 3 + 2  # two rows before the third was lost, and then the two that were missing
    assert shown[0] == "toy on blobs, other: 4 runs, 2 of them done before"
    assert {path: path.read_bytes() for path in before} == before
    moved = [row for row in read_rows("results/toy") if row["evaluation"]["data"] == "other"]
    assert sorted(row["method"] for row in moved) == ["mae", "raw_pixels", "supervised", "untrained"]
    assert all(row["pretraining"]["data"] == "blobs" and row["metrics"]["top1"]["n"] == 4 for row in moved)
    text = Path("results/toy/LEADERBOARD.md").read_text()
    assert "## other (8 train, 4 test images), vit\\_nano\\_patch4\\_16, pre-trained on blobs" in text
    assert "## blobs (48 train, 24 test images), vit\\_nano\\_patch4\\_16\n" in text
    monkeypatch.setattr(bench_module, "run", lambda *_: pytest.fail("was run twice"))
    bench("toy.yaml", show=lambda _: None)
    (row,) = (row for row in moved if row["method"] == "mae")
    encoder = next(Path("runs").glob("mae*/encoder.pt"))
    (again,) = evaluate(encoder, evaluations=["logistic"], data="folder:other", out="alone")
    assert (again["id"], again["metrics"]) == (row["id"], row["metrics"])


def test_one_failure_does_not_stop_the_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bench_module.run

    def sometimes(recipe, *rest):  # type: ignore[no-untyped-def]
        if recipe.method == "supervised":
            raise RunError("the disk is full")
        if recipe.method == "mae":
            raise ZeroDivisionError("a bug")
        return run(recipe, *rest)

    monkeypatch.setattr(bench_module, "run", sometimes)
    failed = bench("toy.yaml", seeds=[0], show=lambda _: None)
    broken, full = failed  # the long tasks run first
    assert full == "supervised, seed 0: the disk is full"
    assert broken.startswith("mae, seed 0: ZeroDivisionError: a bug (details in ")
    assert {row["method"] for row in read_rows("results/toy")} == {"raw_pixels", "untrained"}


def test_where_every_run_fails_the_reasons_are_returned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RunError("the disk is full")

    monkeypatch.setattr(bench_module, "run", full)
    failed = bench("toy.yaml", seeds=[0], show=lambda _: None)
    assert len(failed) == 4 and all(line.endswith(", seed 0: the disk is full") for line in failed)


def test_data_override_has_its_own_folder(folder: Path) -> None:
    bench("toy.yaml", data="blobs", seeds=[0], methods=["mae"], show=lambda _: None)
    assert (folder / "results" / "toy-blobs" / "LEADERBOARD.md").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("methods: [mae]", "methods: [may]"), "unknown method 'may'"),
        (("seeds: [0, 1]", "seeds: [a]"), r"seeds is \[\"a\"\]"),
        (
            ("description:", "descripton:"),
            "unknown key 'descripton': did you mean 'description'|'description' is missing",
        ),
        (("evaluations: [knn, linear]", "evaluations: [knnn]"), "unknown evaluation 'knnn'"),
        (("patch4_16", "patch5_16"), "patch size 5"),
        (("epochs: 1", "epoch: 1"), "unknown key 'epoch': did you mean 'epochs'"),
    ],
)
def test_mistakes_in_a_suite_run_nothing(folder: Path, change: tuple[str, str], words: str) -> None:
    (folder / "toy.yaml").write_text(SUITE.replace(*change))
    with pytest.raises(UserError, match=words):
        bench("toy.yaml")
    assert not (folder / "results").exists()


def test_suites_are_shipped() -> None:
    assert load_suite("quick").methods == ["mae", "moco_v3"]
    survey = [entry.partition(":")[0] for entry in load_suite("survey").methods]
    assert set(survey) == set(METHODS) - set(BASELINES)
    root = Path(__file__).parents[2]
    wheel = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(wheel["force-include"]) >= {str(path.relative_to(root)) for path in root.glob("results/*/suite.yaml")}


def test_a_suite_says_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    at = iter([0.0, 20.0, 60.0, 90.0])
    monkeypatch.setattr(bench_module.time, "monotonic", lambda: next(at))
    progress = bench_module.SuiteProgress({0: 0.2, 7: 1.8, 3: 1.0})
    for index in (0, 7, 3):  # the first is less than a tenth: it says little about the others
        progress.finished(index)
    said = ["1 of 3 runs done", "2 of 3 runs done, about 30 s left", "3 of 3 runs done"]
    assert capsys.readouterr().err.splitlines() == said


def test_the_keys_of_suites_are_listed_and_documented() -> None:
    keys = catalogue("suite-keys")
    assert list(keys) == [field.name for field in dataclasses.fields(Suite)]
    assert keys["flops"]["type"] == "Flops | None" and "pre-training" in keys["flops"]["description"]
    page = (Path(__file__).parents[2] / "docs" / "adding.md").read_text().partition("## A suite")[2]
    assert set(re.findall(r"`(\w+)`", page)) >= set(keys) - {"name", "description"}


def test_images_larger_than_the_backbones_are_said(folder: Path, tiny_data: Splits) -> None:
    assert shrunk(tiny_data.train, ["vit_nano_patch4_16", "timm:resnet18"]) == ""
    said: list[str] = []
    bench("toy.yaml", image_size=8, dry_run=True, show=said.append)
    assert any("has images of 16 x 16 pixels, which vit_nano_patch4_8 sees at 8 x 8" in line for line in said)


def test_larger_images_of_other_sets_are_said(
    folder: Path, tiny_data: Splits, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        for label, name in enumerate(("dark", "light")):
            (folder / "large" / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (48, 40), (9 * i, 90 * label, 0)).save(folder / "large" / split / name / f"{i}.png")
    said = "large has images of 48 x 40 pixels, which vit_nano_patch4_16 sees at 16 x 16"
    monkeypatch.setattr(evaluation_sets, "load", lambda name, **_: tiny_data if name == "blobs" else load(name))
    (folder / "toy.yaml").write_text(f"{SUITE}transfer: ['folder:large']\ntransfer_evaluations: [knn]\n")
    shown: list[str] = []
    bench("toy.yaml", dry_run=True, show=shown.append)
    assert f"{said}; --image-size shows more of them" in shown
    encoder = run(load_recipe("untrained", None, {"backbone": "vit_nano_patch4_16"}), tiny_data, folder / "run")
    evaluate(encoder, evaluations=["knn"], data="folder:large")
    assert said in capsys.readouterr().err.splitlines()
    evaluate(encoder, evaluations=["knn"], data=tiny_data)
    assert "has images of" not in capsys.readouterr().err


def test_factors_are_left_out_where_there_are_none(folder: Path) -> None:
    (folder / "toy.yaml").write_text(SUITE.replace("linear]", "factors]"))
    shown: list[str] = []
    assert bench("toy.yaml", seeds=[0], methods=["untrained"], show=shown.append) == []
    assert "factors: left out, blobs has no factors" in shown[0]
    assert {row["evaluation"]["name"] for row in read_rows("results/toy")} == {"knn"}
    (folder / "toy.yaml").write_text(SUITE.replace("[knn, linear]", "[factors]"))
    with pytest.raises(UserError, match="none of its evaluations fits"):
        bench("toy.yaml", show=shown.append)


def test_budget_scales_target_networks_too() -> None:
    suite = replace(load_suite("survey"), methods=["beit"], flops=None)
    (whole,) = resolve(suite, [0])[4:]
    (half,) = resolve(suite, [0], 0.5)[4:]
    assert half.training.epochs == whole.training.epochs / 2
    assert half.teachers["tokenizer"].training.epochs == whole.teachers["tokenizer"].training.epochs / 2


def test_rows_that_were_cut_off_are_measured_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run_suite() -> list[str]:
        return bench("toy.yaml", seeds=[0], methods=["untrained"], show=lambda _: None)

    run_suite()
    place = folder / "results" / "toy" / "rows"
    before = essence(read_rows(place.parent))
    row, other, third = sorted(place.glob("*.json"))[:3]
    row.write_bytes(row.read_bytes()[:100])
    other.with_suffix(".npy").write_bytes(b"")
    third.with_suffix(".npy").unlink()
    for made in (folder / "runs").glob("untrained-*"):
        (made / "error.txt").touch()  # of a try that failed when everything was there
    (place / f".{row.name}.x.part").touch()
    assert run_suite() == [] and essence(read_rows(place.parent)) == before
    assert capsys.readouterr().err.count("or a file beside it is damaged: it is measured again") >= 3
    assert run_suite() == [] and not list((folder / "runs").glob("*/error.txt"))
    assert not list(place.glob(".*")) and not list((folder / "runs" / "evaluations").iterdir())


def test_runs_of_equal_flops(tiny_data: Splits) -> None:
    suite = replace(load_suite("survey"), data="blobs", methods=["mae", "dino"], flops=2e11)
    recipes = [recipe for recipe in resolve(suite, [0], data=tiny_data) if recipe.cls.trains]
    assert {recipe.method for recipe in recipes} == {"supervised", "mae", "dino"}
    for recipe in recipes:
        images = recipe.training.epochs * len(recipe.images(tiny_data))
        assert images * training_flops(recipe, len(tiny_data.train.classes)) == pytest.approx(2e11, rel=0.01)
        usual = load_recipe(recipe.method, "quick").training
        share = recipe.training.warmup_epochs / recipe.training.epochs
        assert share == pytest.approx(usual.warmup_epochs / usual.epochs, rel=0.01)


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("dino", ["freeze_last_layer"]),
        ("esvit", ["freeze_last_layer", "warmup_teacher_epochs"]),
        ("ibot", ["freeze_last_layer", "warmup_teacher_epochs", "pred_start_epoch"]),
        ("swav", ["freeze_prototypes", "queue_epochs"]),
        ("dvae", ["temperature_epochs", "kl_epochs"]),
    ],
)
def test_all_that_is_stated_in_epochs_is_as_long_a_part_of_a_shorter_run(method: str, keys: list[str]) -> None:
    """A last layer that is frozen for an epoch would be frozen to the end of a run of one epoch."""
    usual = load_recipe(method, "quick", dict.fromkeys(keys, 1))
    for shorter in (of_length(usual, usual.training.epochs / 8), scaled(usual, 1 / 8)):
        assert [shorter.settings[key] for key in keys] == [0.125] * len(keys)
        assert shorter.training.warmup_epochs == pytest.approx(usual.training.warmup_epochs / 8)
    assert of_length(usual, usual.training.epochs) == usual


def test_no_length_in_epochs_has_another_type() -> None:
    for name in (*METHODS, *TEACHERS):
        cls = resolve_method(name)[1]
        lengths = {key for key in types_of(cls) if "epoch" in key or key in ("freeze_last_layer", "freeze_prototypes")}
        assert {key for key in lengths if types_of(cls)[key] != Epochs} == set(), name


def test_a_suite_of_equal_flops_obeys_epochs_and_says_which_runs_are_short(folder: Path) -> None:
    shown: list[str] = []
    plan = partial(bench, backbone="vit_nano_patch4_16", methods=["mae"], seeds=[0], dry_run=True, show=shown.append)
    plan("survey", data="blobs", overrides={"epochs": 3})
    assert shown[0] == "survey: 3 epochs each, as asked for, instead of 4e+12 FLOPs"
    assert any(line.startswith("mae, seed 0 on vit_nano_patch4_16 (to do): mae 3 epochs") for line in shown)
    plan("survey", data="blobs", budget=1e-5)
    (line,) = (line for line in shown if line.startswith("mae on vit_nano_patch4_16: the suite's FLOPs are "))
    assert re.search(r" are \d+ steps; a larger --budget gives it more$", line)


def test_raw_pixels_have_neither_attention_nor_weights(tiny_data: Splits) -> None:
    suite = replace(load_suite("survey"), data="blobs", methods=["mae"])
    wanted = ("knn", "attention-jaccard", "segmentation-finetune")
    evaluated = evaluation_sets.EvaluationSet(tiny_data, wanted)
    of = {recipe.method: list(evaluated.of(recipe)) for recipe in resolve(suite, [0])}
    assert of["raw_pixels"] == ["knn"] and of["mae"] == list(wanted)


def test_the_plan_runs_nothing(folder: Path, tiny_data: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "run", lambda *_: pytest.fail("was run"))
    shown: list[str] = []
    assert bench("toy.yaml", seeds=[0], dry_run=True, show=shown.append) == []
    assert shown[0].startswith("toy on blobs: 4 runs, 0 of them done before")
    (line,) = (line for line in shown if line.startswith("mae, seed 0 on vit_nano_patch4_16 (to do): mae 1 epochs, 48"))
    flops = 48 * training_flops(load_recipe("mae", None, {"backbone": "vit_nano_patch4_16", "batch_size": 16}), 2)
    assert line.endswith(f"{flops / 1e12:,.3g} TFLOP")
    assert shown[-2] == "2 more runs of baselines that train nothing" and " 0 s at 395 (h100)" in shown[-1]
    assert shown[-1].startswith("to do: ") and not (folder / "results").exists()
    assert "by sustained TFLOPS: " in shown[-1] and " (here, " in shown[-1] and "(h100)" in shown[-1]


def test_the_plan_counts_no_encoder_that_is_there(folder: Path) -> None:
    bench("toy.yaml", seeds=[0], show=lambda _: None)
    for row in Path("results/toy/rows").glob("mae-*"):
        row.unlink()
    shown: list[str] = []
    bench("toy.yaml", seeds=[0], dry_run=True, show=shown.append)
    assert any(line.startswith("mae, seed 0 on vit_nano_patch4_16 (to evaluate): ") for line in shown)
    assert shown[-1].startswith("to do: 0 TFLOP")


def test_edited_rows_are_refused(folder: Path) -> None:
    bench("toy.yaml", seeds=[0], methods=["untrained"], show=lambda _: None)
    path = read_rows("results/toy")[0].path
    values = json.loads(path.read_text())
    values["metrics"]["top1"]["value"] = 99.9
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="edited"):
        read_rows("results/toy")
