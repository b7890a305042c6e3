"""Protocol files as users write them, and evaluating beside other processes."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from filelock import FileLock, Timeout

from ssl_bench.backbones.vit import ViT
from ssl_bench.checkpoints.encoder_file import Checkpoint
from ssl_bench.commands.evaluate import run_evaluations
from ssl_bench.config.protocol import load_evaluator
from ssl_bench.data.datasets import Splits, hold_out
from ssl_bench.evaluations.evaluator import Data
from ssl_bench.evaluations.frozen.knn import KNN
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.files import content_hash, locked
from ssl_bench.utils.shipped import shipped


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", sorted(shipped("evaluations").glob("*.yaml")), ids=lambda path: path.stem)
def test_typing_leaves_the_values_of_shipped_protocols(path: Path) -> None:
    written = yaml.safe_load(path.read_text())
    del written["evaluation"], written["deviations"]
    settings = load_evaluator(path.stem).settings()
    assert content_hash({key: settings[key] for key in written}) == content_hash(written)  # rows follow from it


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("evaluation: finetune\nbase_lr: fast", "base_lr is fast; it must be of type float | tuple[float, ...]"),
        ("evaluation: finetune\nbetas: [0.9]", "betas is [0.9]; it must be of type tuple[float, float]"),
        ("evaluation: finetune\nblocks: 1.5", "blocks is 1.5; it must be of type int | None"),
        ("evaluation: finetune\nepochs: 0", "finetune: epochs is 0.0; it must be above 0"),
        ("evaluation: probe\npoolings: cls", "poolings is cls; it must be of type tuple[str, ...]"),
        ("evaluation: probe\nbatch_norm: maybe", "batch_norm is maybe; it must be of type bool"),
        ("evaluation: knn\nk: 20", "k is 20; it must be of type tuple[int, ...]"),
        ("evaluation: knn\nk: []", "knn: k must be positive numbers, got ()"),
        ("evaluation: robustness\nimages: 10.5", "images is 10.5; it must be of type int"),
        (f"evaluation: factors\nC: [{10**400}]", "it must be of type tuple[float, ...]"),
        ("evaluation: [knn]", "unknown evaluation"),
    ],
)
def test_wrong_values_are_one_line_with_the_file(here: Path, text: str, message: str) -> None:
    Path("mine.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_evaluator("mine.yaml")
    said = str(error.value)
    assert said.startswith("mine.yaml: ") and message in said and "\n" not in said


def test_numbers_that_yaml_takes_for_text(here: Path) -> None:
    """YAML 1.1 has no 5e-4, only 5.0e-4."""
    Path("mine.yaml").write_text("evaluation: probe\nbase_lr: [5e-4, 1e-3]\n")
    assert load_evaluator("mine.yaml").settings()["base_lr"] == [5e-4, 1e-3]


def test_a_row_that_another_process_writes_meanwhile_is_not_measured_again(
    here: Path, nano: ViT, tiny_data: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, evaluator = Checkpoint(nano, "m", {}, "c" * 64), {"knn": load_evaluator("knn")}
    (row,) = run_evaluations(encoder, evaluator, tiny_data, here, None)
    assert not Path("runs/evaluations", row["id"]).exists()
    content = row.path.read_bytes()
    row.path.unlink()

    class Waited:
        """The folder's lock, got after the other process has written the row."""

        def __init__(self, folder: Path) -> None:
            assert folder == Path("runs/evaluations", row["id"])

        def __enter__(self) -> None:
            row.path.write_bytes(content)

        def __exit__(self, *_: Any) -> None: ...

    monkeypatch.setattr(
        sys.modules["ssl_bench.commands.evaluate"], "locked", Waited
    )  # ssl_bench.evaluate is the function
    monkeypatch.setattr(KNN, "run", lambda *_: pytest.fail("measured again"))
    (again,) = run_evaluations(encoder, evaluator, tiny_data, here, None)
    assert again["id"] == row["id"]


def test_the_folder_of_a_row_is_held_while_it_is_made(
    here: Path, nano: ViT, tiny_data: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = KNN.run

    def run(self: KNN, encoder: Any, data: Any) -> Any:
        with pytest.raises(Timeout):
            FileLock(encoder.folder / ".lock", timeout=0).acquire()
        return measure(self, encoder, data)

    monkeypatch.setattr(KNN, "run", run)
    run_evaluations(Checkpoint(nano, "m", {}, "c" * 64), {"knn": load_evaluator("knn")}, tiny_data, here, None)
    with locked(here / "runs"):  # and no longer
        assert not list(Path("runs/evaluations").iterdir())


def test_without_a_folder_for_runs_numbers_are_measured_all_the_same(
    here: Path, nano: ViT, tiny_data: Splits, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, evaluator = Checkpoint(nano, "m", {}, "c" * 64), {"knn": load_evaluator("knn")}
    (row,) = run_evaluations(encoder, evaluator, tiny_data, here / "with", None)
    for path in sorted(Path("runs").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    Path("runs").rmdir()
    Path("runs").write_text("a file in the way, as a folder that cannot be written")
    (other,) = run_evaluations(encoder, evaluator, tiny_data, here / "without", None)
    assert other["metrics"] == row["metrics"]
    assert "stay in memory" in capsys.readouterr().err


def test_processes_extract_nothing_for_evaluators_that_want_no_features(
    tiny_data: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, asked = sys.modules["ssl_bench.commands.evaluate"], []
    monkeypatch.setattr(module, "process", lambda: (0, 2))
    encoder: Any = SimpleNamespace(poolings=("cls", "mean"), features=lambda images, names: asked.append(names))
    data = Data(tiny_data.train, *hold_out(tiny_data.train), tiny_data.test)
    for wanted, expected in (([], []), (["mean", "last4"], [["mean"], ["mean"]])):
        asked.clear()
        module._extract_together(encoder, data, wanted)
        assert asked == expected
