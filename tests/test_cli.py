"""The command line as a user meets it: exit statuses, one-line errors, lists."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssl_bench import cli
from ssl_bench.arguments import LISTS
from ssl_bench.backbones import BACKBONES, patterns
from ssl_bench.commands.list import catalogue
from ssl_bench.config.protocol import load_evaluator
from ssl_bench.methods import METHODS


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = cli.main(argv)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of twenty 16 px images in train/, of five in test/."""
    for split, n in (("train", 20), ("test", 5)):
        for c, colour in (("cat", (200, 30, 30)), ("dog", (30, 30, 200))):
            folder = tmp_path / "pets" / split / c
            folder.mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (16, 16), tuple(v + i for v in colour)).save(folder / f"{i}.png")
    return tmp_path / "pets"


def test_what_needs_no_torch_imports_none(tmp_path: Path, add_row: Any) -> None:
    add_row("mae", 0, np.arange(100) < 40)
    lists = [["list", what] for what in LISTS]
    lists += [["list", "methods", "--json"], ["table", "survey"], ["leaderboard", str(tmp_path), "--format", "md,html"]]
    code = f"""
import sys
from ssl_bench.cli import main
for argv in {[["--help"], ["--version"], ["evaluate", "--help"], *lists]}:
    try:
        assert main(argv) == 0, argv
    except SystemExit as end:
        assert end.code == 0, argv
    assert "torch" not in sys.modules, argv
"""
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("what", ["suites", "backbones", "datasets"])
def test_a_list_takes_less_than_two_seconds_of_a_processor(what: str) -> None:
    before = os.times()
    subprocess.run([sys.executable, "-m", "ssl_bench", "list", what], check=True, capture_output=True)
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 2


def test_backbones_are_listed_as_they_are() -> None:
    listed = catalogue("backbones")
    assert listed == {name: facts for name, facts in patterns().items() if "_nano" not in name}  # those of tests
    assert {facts["family"] for facts in listed.values()} == set(BACKBONES)


def test_python_minus_m() -> None:
    asked = [sys.executable, "-m", "ssl_bench", "list", "suites"]
    assert "quick" in subprocess.run(asked, check=True, capture_output=True, text=True).stdout


def test_lists_say_what_the_classes_say(capsys: pytest.CaptureFixture[str]) -> None:
    """Lists read the source instead of importing it."""
    rows = json.loads(run(capsys, "list", "methods", "--json")[1])
    assert list(rows) == list(METHODS)
    assert all((row["category"], row["paper"]) == (METHODS[n].category, METHODS[n].paper) for n, row in rows.items())
    rows = json.loads(run(capsys, "list", "evaluations", "--json")[1])
    found = {name: load_evaluator(name) for name in rows}
    assert {name: row["version"] for name, row in rows.items()} == {name: e.version for name, e in found.items()}


@pytest.mark.parametrize("what", ["methods", "evaluations", "datasets", "backbones", "suites", "tables"])
def test_lists(capsys: pytest.CaptureFixture[str], what: str) -> None:
    status, out, _ = run(capsys, "list", what, "--json")
    rows = json.loads(out)
    assert status == 0 and rows
    status, out, _ = run(capsys, "list", what)
    assert status == 0 and len(out.splitlines()) == len(rows)
    if what == "methods":
        assert set(rows) == set(METHODS)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["bench", "quik"], "unknown suite 'quik': did you mean 'quick'"),
        (["bench", "quick", "--methods", "may"], "unknown method 'may': did you mean 'mae'"),
        (["bench", "quick", "--seeds", "x"], "--seeds"),
        (["bench", "quick", "--data", "cifar11"], "unknown data set 'cifar11': did you mean 'cifar1"),
        (["bench", "quick", "--data", "folder:nowhere"], "nowhere"),
        (["pretrain", "mae", "--backbone", "vit_tiny_patch5_32"], "patch size 5"),
        (["pretrain", "mae", "--set", "mask_rato=0.5"], "no backbone given"),  # on which the keys depend
        (["pretrain", "mae", "--backbone", "vit_nano_patch4_16", "--set", "mask_rato=1"], "did you mean 'mask_ratio'"),
        (["pretrain", "mae", "--set", "mask_ratio"], "key=value"),
        (["pretrain", "mae", "--recipe", "quik"], "did you mean 'quick'"),
        (["evaluate", "nowhere.pt"], "no such checkpoint: nowhere.pt"),
        (["leaderboard", "nowhere"], "no rows in nowhere"),
        (["leaderbord", "x"], "invalid choice: 'leaderbord'"),
        ([], "required"),
    ],
)
def test_wrong_requests_are_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *argv)
    assert status == 2 and out == "" and words in err
    assert len(err.splitlines()) == 1 and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_pretrain_evaluate_leaderboard_on_a_folder(
    capsys: pytest.CaptureFixture[str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--set", "decoder_dim=16", "decoder_depth=1", "decoder_heads=2", "batch_size=8", "warmup_epochs=0"]
    data = ["--data", f"folder:{images}"]
    status, out, err = run(
        capsys, "pretrain", "mae", "--backbone", "vit_nano_patch4_16", "--epochs", "1", *data, *small
    )
    assert status == 0, err
    encoder = out.strip()
    status, out, err = run(capsys, "evaluate", encoder, *data, "--out", "rows", "--evaluations", "knn")
    assert status == 0, err
    assert out.startswith("knn") and "n = 10" in out
    row = next(Path("rows/rows").glob("*.json")).read_text()
    assert str(tmp_path) not in row and '"data": "pets"' in row
    status, out, _ = run(capsys, "leaderboard", "rows", "--format", "md,csv")
    assert status == 0 and "mae" in out and Path("rows/leaderboard.csv").exists()
    status, _, err = run(capsys, "leaderboard", "rows", "--format", "pdf")
    assert status == 2 and "csv, every-eval-ever, html, hugging-face, latex, md, mteb" in err
    status, out, _ = run(capsys, "leaderboard", "rows", "--format", "md,html", "--max-images", "1e9")
    assert status == 0 and Path("rows/selected-leaderboard.html").exists()
    assert run(capsys, "check", "rows")[0] == 0
    status, _, err = run(capsys, "compare", "mae", "mea", "--rows", "rows")
    assert status == 2 and "did you mean 'mae'" in err


def test_unreadable_images_stop_before_training(
    capsys: pytest.CaptureFixture[str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bad = images / "train" / "cat" / "3.png"
    bad.write_bytes(bad.read_bytes()[:40])
    argv = ["pretrain", "mae", "--backbone", "vit_nano_patch4_16", "--data", f"folder:{images}", "--out", "r"]
    status, _, err = run(capsys, *argv)
    assert status == 2 and "3.png" in err and "--skip-unreadable" in err and not Path("r").exists()


def test_interrupt_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.RUNS, "list", interrupted)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)  # this process still wants its Ctrl-C
    status, _, err = run(capsys, "list", "methods")
    assert status == 1 and "interrupted" in err and len(err.splitlines()) == 1


def test_keys_of_a_method(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "pretrain", "moco_v3", "--keys")
    assert status == 0 and "--temperature" in out and "--base_lr" in out and "Smallest area of the crops" in out


def test_help_ends_in_the_defaults(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = {}
    for command in ("evaluate", "reproduce", "bench"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        shown[command] = capsys.readouterr().out
    for text in ("(default: knn,linear)", "(default: shapes)", "(default: results/evaluations)"):
        assert text in shown["evaluate"]
    assert "(default: h100)" in shown["reproduce"] and "(default: 1.0)" in shown["bench"]
    assert "(default: None)" not in "".join(shown.values()) and "(default: False)" not in "".join(shown.values())


def test_nothing_is_lost_where_the_output_is_read_in_part(tmp_path: Path, add_row: Any) -> None:
    for method in ("mae", "dino"):
        add_row(method, 0, np.arange(100) < 40)
    command = [sys.executable, "-u", "-m", "ssl_bench", "leaderboard", str(tmp_path), "--format", "md,csv"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()  # as `| head` does, before the first line is written
        assert process.stderr.read() == b"" and process.wait() == 0
    assert {"LEADERBOARD.md", "leaderboard.csv"} <= {path.name for path in tmp_path.iterdir()}


def test_python_functions_are_functions_whatever_was_imported_before() -> None:
    import ssl_bench
    import ssl_bench.commands.convert
    import ssl_bench.commands.evaluate
    import ssl_bench.commands.pretrain
    import ssl_bench.commands.show

    for name in ssl_bench.__all__:
        assert callable(getattr(ssl_bench, name)), name
    from ssl_bench.commands.pretrain import run

    assert callable(run)


def test_tables_and_their_plan(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "table", "survey")
    assert status == 0 and "iBOT" in out and "78.2" in out
    status, out, _ = run(capsys, "reproduce", "mae", "--dry-run", "--device", "cpu")
    assert status == 0 and "vit_base_in1k" in out
    status, _, err = run(capsys, "table", "surwey")
    assert status == 2 and "did you mean 'survey'" in err


@pytest.mark.slow
def test_processes_share_an_evaluation(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["--data", f"folder:{images}"]
    small = [*common, "--backbone", "vit_micro_patch8_16", "--out", "encoder"]
    subprocess.run([sys.executable, "-m", "ssl_bench.cli", "pretrain", "untrained", *small], check=True)
    alone = [sys.executable, "-m", "ssl_bench.cli"]
    together = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *alone[1:]]
    rows = []
    for start, out in ((together, "two"), (alone, "one")):
        asked = ["evaluate", "encoder/encoder.pt", *common, "--evaluations", "clustering,logistic", "--out", out]
        subprocess.run([*start, *asked], check=True, timeout=300)
        found = sorted((tmp_path / out / "rows").glob("*.json"))
        rows.append([(path.name, json.loads(path.read_text())["metrics"]) for path in found])
    assert len(rows[0]) == 2
    assert rows[0] == rows[1]
