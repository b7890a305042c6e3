"""Broken rows are named, one kind of damage at a time; the rows of the repository are sound."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from ssl_bench.backbones import BACKBONES
from ssl_bench.backbones.vit import ViT
from ssl_bench.checkpoints.encoder_file import Checkpoint
from ssl_bench.commands.check import check
from ssl_bench.commands.evaluate import run_evaluations
from ssl_bench.commands.leaderboard import leaderboard
from ssl_bench.config.protocol import load_evaluator
from ssl_bench.config.recipe import load_recipe
from ssl_bench.data.datasets import Splits
from ssl_bench.evaluations import EVALUATIONS
from ssl_bench.evaluations.frozen.knn import KNN
from ssl_bench.methods import METHODS
from ssl_bench.methods.mae import MAE
from ssl_bench.results.rows import defaults
from ssl_bench.results.rows.row import SCHEMA
from ssl_bench.results.rows.schema import ROW
from ssl_bench.utils import versions
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.files import content_hash
from ssl_bench.utils.schemas import violations
from ssl_bench.utils.shipped import shipped

RIGHT = np.arange(100) < 40


def found(folder: Path) -> list[str]:
    """The problems, without the report."""
    return check(folder, show=lambda _: None)


def rewrite(path: Path, seal: bool = True, **changes: Any) -> None:
    """Change a row, with a checksum that fits unless told."""
    values = {**json.loads(path.read_text()), **changes}
    if seal:
        values["checksum"] = content_hash({k: v for k, v in values.items() if k != "checksum"})[:16]
    path.write_text(json.dumps(values))


def test_sound_rows(tmp_path: Path, add_row: Any) -> None:
    add_row("a", 0, RIGHT)
    add_row("a", 1, RIGHT)
    add_row("b", 0, RIGHT, "fewshot", predictions=None)
    assert found(tmp_path) == []


@pytest.mark.parametrize("suite", ["quick", "quick-cifar10"])
def test_the_rows_of_the_repository(tmp_path: Path, suite: str) -> None:
    folder = shipped("results") / suite / "rows"
    if not folder.is_dir():
        pytest.skip("an installed package carries no rows")
    shutil.copytree(folder, tmp_path / "rows")
    assert found(tmp_path) == []


def test_an_edit_shows(tmp_path: Path, add_row: Any) -> None:
    rewrite(add_row("a", 0, RIGHT).path, seal=False, suite="other")
    (problem,) = found(tmp_path)
    assert "edited after it was written" in problem


def test_a_sealed_forgery_of_the_number_shows(tmp_path: Path, add_row: Any) -> None:
    rewrite(add_row("a", 0, RIGHT).path, metrics={"top1": {"value": 90.0, "n": 100, "low": 85.0, "high": 95.0}})
    (problem,) = found(tmp_path)
    assert "right for 40.0000 %, it says 90.0000 %" in problem


def test_a_sealed_forgery_of_the_recipe_shows(tmp_path: Path, add_row: Any) -> None:
    path = add_row("a", 0, RIGHT).path
    recipe = json.loads(path.read_text())["recipe"]
    rewrite(path, recipe={**recipe, "seed": 7})
    assert any("its identity says seed 0, its recipe says 7" in problem for problem in found(tmp_path))


def test_a_value_outside_its_interval(tmp_path: Path, add_row: Any) -> None:
    rewrite(add_row("a", 0, RIGHT).path, metrics={"top1": {"value": 40.0, "n": 100, "low": 41.0, "high": 45.0}})
    assert any("outside its interval" in problem for problem in found(tmp_path))


def test_schema(tmp_path: Path, add_row: Any) -> None:
    row = add_row("a", 0, RIGHT)
    rewrite(row.path, flags="labels", surprise=1, weights={"sha256": "x", "loaded_percent": 100.0})
    problems = " ".join(found(tmp_path))
    assert "flags is 'labels', not of type array" in problems and "unknown key 'surprise'" in problems
    assert "weights.sha256 is 'x'" in problems
    row.path.write_text(json.dumps({"schema": SCHEMA}))
    assert any("has no 'metrics'" in problem for problem in found(tmp_path))
    row.path.write_text("not JSON")
    assert any("not JSON" in problem for problem in found(tmp_path))


def test_schema_is_that_of_the_rows() -> None:
    assert ROW.rules["properties"]["schema"]["const"] == SCHEMA
    assert set(ROW.rules["required"]) == set(ROW.rules["properties"]) - {"warnings", "picture"}  # not in every row


def test_booleans_and_nan_are_no_numbers() -> None:
    assert list(violations(True, {"type": "integer"})) and list(violations(float("nan"), {"type": "number"}))
    assert list(violations(1.0, {"type": "integer"})) == ["the row is 1.0, not of type integer"]
    assert list(violations({"a": [{"b": float("inf")}]}, {})) == ["a[0].b is inf, not a finite number"]
    assert not list(violations(3, {"type": ["number", "null"], "minimum": 3}))
    assert list(violations([1, "x"], {"items": {"type": "integer"}})) == ["[1] is 'x', not of type integer"]


def test_schema_is_a_valid_one() -> None:
    Draft202012Validator.check_schema(ROW.rules)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"flops": 1000000000.0', '"flops": NaN', "NaN is not a number in JSON"),
        ('"flops": 1000000000.0', '"flops": 1e39', "pretraining.flops is 1e+39; it must be at most 1e+30"),
        ('"flops": 1000000000.0', '"flops": -1', "pretraining.flops is -1; it must be at least 0"),
        ('"epochs": 2.0, "images_seen"', '"epochs": 1e999, "images_seen"', "pretraining.epochs is inf; it must be"),
        ('"images_seen": 1000', '"images_seen": 1' + "0" * 400, "it must be at most 1e+18"),
        ('"n": 100', '"n": 100.0', "metrics.top1.n is 100.0, not of type integer"),
        ('"chosen": {}', '"chosen": {"k": 1e999}', "evaluation.chosen.k is inf, not a finite number"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, add_row: Any, old: str, new: str, message: str) -> None:
    path = add_row("a", 0, RIGHT).path
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert any(message in problem for problem in found(tmp_path)), found(tmp_path)


def test_predictions_of_another_size_or_missing(tmp_path: Path, add_row: Any) -> None:
    file = add_row("a", 0, RIGHT).path.with_suffix(".npy")
    np.save(file, np.packbits(RIGHT[:50]))
    assert any("not the predictions of 100 images" in problem for problem in found(tmp_path))
    file.write_bytes(b"\x80\x04junk")
    assert any("not the predictions of 100 images" in problem for problem in found(tmp_path))
    file.unlink()
    assert any("are missing" in problem for problem in found(tmp_path))


def test_predictions_of_another_folder(tmp_path: Path, add_row: Any) -> None:
    np.save(tmp_path / "x.npy", np.packbits(RIGHT))
    rewrite(add_row("a", 0, RIGHT).path, predictions="../x.npy")
    assert any("its predictions are named '../x.npy'" in problem for problem in found(tmp_path))


def test_predictions_of_no_row(tmp_path: Path, add_row: Any) -> None:
    add_row("a", 0, RIGHT)
    np.save(tmp_path / "rows" / "left.npy", np.packbits(RIGHT))
    assert found(tmp_path) == ["left.npy: predictions of no row"]


def test_the_same_row_twice(tmp_path: Path, add_row: Any) -> None:
    path = add_row("a", 0, RIGHT, "fewshot", predictions=None).path
    shutil.copy(path, path.with_name(f"copy-{path.name}"))
    assert any(f"has the id of copy-{path.name}" in problem for problem in found(tmp_path))


def test_versions_mixed(tmp_path: Path, add_row: Any) -> None:
    add_row("a", 0, RIGHT)
    add_row("b", 0, RIGHT, evaluation={"version": 99})
    (problem,) = [p for p in found(tmp_path) if "several versions" in p]
    assert problem.startswith("linear on shapes") and "version 99" in problem


def test_stale_rows_are_named_but_not_wrong(tmp_path: Path, add_row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "current_version", lambda name: 2 if name == "method mae" else 1)
    add_row("mae", 0, RIGHT)
    add_row("moco_v3", 0, RIGHT)
    lines: list[str] = []
    assert check(tmp_path, show=lines.append) == []
    assert any(line.endswith("stale, made by method mae 1, now 2") for line in lines) and "1 stale" in lines[-1]


def test_a_leaderboard_that_is_out_of_date(tmp_path: Path, add_row: Any) -> None:
    add_row("a", 0, RIGHT)
    leaderboard(tmp_path, formats=["md", "csv"], show=lambda _: None)
    assert found(tmp_path) == []
    add_row("b", 0, ~RIGHT)
    assert [problem.split()[0] for problem in found(tmp_path)] == ["LEADERBOARD.md", "leaderboard.csv"]


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rows"):
        check(tmp_path)


# Defaults -------------------------------------------------------------------------------------------------------------


class LaterMAE(MAE):
    """Another default, the same version."""

    defaults = replace(MAE.defaults, weight_decay=0.1)

    def __init__(self, backbone: Any, *, mask_ratio: float = 0.75, crop_min: float = 0.3, extra: int = 1) -> None:
        raise NotImplementedError


class LaterViT(ViT):
    def __init__(self, name: str, *, registers: int = 4, drop_path: float = 0.0) -> None:
        raise NotImplementedError


class LaterKNN(KNN):
    def __init__(self, k: tuple[int, ...] = (1, 5, 20), extra: bool = False) -> None:
        super().__init__(k=k)
        self.extra = extra


@pytest.fixture
def measured(nano: ViT, tiny_data: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A row of MAE with some settings of its own, and one of released weights."""
    monkeypatch.chdir(tmp_path)
    settings = {"backbone": "vit_nano_patch4_16", "decoder_dim": 24, "decoder_heads": 2, "decoder_depth": 1}
    recipe = load_recipe("mae", None, {**settings, "base_lr": 1e-3, "mask_ratio": 0.5})
    about = {
        "recipe": recipe.as_dict(),
        "identity": recipe.identity(tiny_data),
        "pretraining": {
            **dict(data="blobs", fingerprint=tiny_data.train.fingerprint, epochs=1.0, images_seen=48, flops=1e9),
            **dict(patches_per_image=8.0, patches_encoded_without_gradient=0, wall_seconds=1.0),
            **dict(peak_memory_bytes=1, device="cpu"),
        },
    }
    for checkpoint in (Checkpoint(nano, "mae", about, "a" * 64), Checkpoint(nano, "mae", {}, "b" * 64)):
        run_evaluations(checkpoint, {"knn": load_evaluator("knn-dino")}, tiny_data, tmp_path, None)
    return tmp_path


def defaults_of(folder: Path) -> set[str]:
    return {text.partition(": ")[2] for text in found(folder) if "default" in text}


def test_rows_of_todays_defaults_are_sound(measured: Path) -> None:
    assert found(measured) == []


def test_a_changed_default_without_a_version_shows(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what the identity leaves out alone: mask_ratio is in it. A new keyword says nothing."""
    monkeypatch.setitem(METHODS, "mae", LaterMAE)
    rule = "today: a default changed without a version"
    assert defaults_of(measured) == {
        f"crop_min of method mae was 0.2 by default and is 0.3 {rule}",
        f"weight_decay of the training of method mae was 0.05 by default and is 0.1 {rule}",
    }


def test_a_changed_default_of_a_backbone_shows(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the row with a recipe: that of released weights has no defaults."""
    monkeypatch.setitem(BACKBONES, "vit", LaterViT)
    assert len([text for text in found(measured) if "registers of backbone vit was 0 by default and is 4" in text]) == 1


def test_a_changed_default_of_an_evaluator_shows(tiny_data: Splits, measured: Path, monkeypatch: Any) -> None:
    """knn-dino has its own k, so that another default of k is none of its business; plain knn has the default."""
    monkeypatch.setitem(EVALUATIONS, "knn", LaterKNN)
    assert defaults_of(measured) == set()
    monkeypatch.undo()
    monkeypatch.chdir(measured)
    third = Checkpoint(ViT("vit_nano_patch4_16"), "mae", {}, "c" * 64)
    run_evaluations(third, {"knn": KNN()}, tiny_data, measured, None)
    monkeypatch.setitem(EVALUATIONS, "knn", LaterKNN)
    (text,) = defaults_of(measured)
    assert text.startswith("k of evaluator knn was [1, 5, 10, 20, 50, 100, 200] by default and is [1, 5, 20] today")


def test_rows_of_another_version_are_not_compared(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "mae", LaterMAE)
    monkeypatch.setattr(defaults, "current_version", lambda component: 2)
    assert defaults_of(measured) == set()
