"""Warnings: given when a number is measured, in its row, and in every form of the table."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_bench.backbones.vit import ViT
from ssl_bench.checkpoints.encoder_file import Checkpoint
from ssl_bench.commands.check import check
from ssl_bench.commands.evaluate import run_evaluations
from ssl_bench.commands.leaderboard import leaderboard, render
from ssl_bench.config.protocol import load_evaluator
from ssl_bench.data import datasets as data_module
from ssl_bench.data.datasets import Splits
from ssl_bench.results.leaderboard.table import Table, build
from ssl_bench.results.rows.row import read_rows
from ssl_bench.results.rows.schema import violations
from ssl_bench.results.rows.warnings import count_duplicates

DATA = {"images": {"test": 400}}


def right(share: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(400) < share * 400


def table_of(folder: Path) -> Table:
    (table,) = build(read_rows(folder))
    return table


@pytest.fixture
def rows(tmp_path: Path, add_row: Any) -> Path:
    add_row("untrained", 0, right(0.5), evaluation=DATA)
    add_row("good", 0, right(0.7), evaluation=DATA)
    add_row("bad", 0, right(0.3), evaluation=DATA)
    add_row("close", 0, right(0.49, seed=1), evaluation=DATA)
    add_row("raw_pixels", 0, right(0.2), evaluation=DATA, pretraining={"images_seen": 0})
    return tmp_path


def test_below_the_untrained_backbone(rows: Path) -> None:
    table = table_of(rows)
    marks = {each.label: table.arrow(index, "linear") for index, each in enumerate(table.aggregates)}
    assert marks == {"good": "▲", "untrained": "", "close": "▽", "bad": "▼", "raw_pixels": "▼"}
    assert table.warnings == [
        "close is below the untrained network: linear 49.0 against 50.0 (-1.0, not significant)",
        "bad is BELOW THE UNTRAINED NETWORK: linear 30.0 against 50.0 (-20.0)",
    ]


def test_in_every_form_of_the_table(rows: Path) -> None:
    tables = [table_of(rows)]
    markdown = render("md", tables)
    assert "(-20.0▼)" in markdown and "(-1.0▽)" in markdown and "▽: worse, but not" in markdown
    assert "- **bad is BELOW THE UNTRAINED NETWORK: linear 30.0 against 50.0 (-20.0)**" in markdown
    page = render("html", tables)
    assert "▼</small>" in page and "bad is BELOW THE UNTRAINED NETWORK" in page and "▽: worse, but not" in page
    paper = render("latex", tables)
    assert r"\textbf{bad is BELOW THE UNTRAINED NETWORK" in paper and paper.isascii()
    assert any(line.startswith("bad ") and r"\textdownarrow{}" in line for line in paper.splitlines())
    lines = {line["method"]: line for line in csv.DictReader(io.StringIO(render("csv", tables)))}
    assert (lines["bad"]["against_untrained"], lines["close"]["against_untrained"]) == ("▼", "▽")
    shown: list[str] = []
    leaderboard(rows, show=shown.append)
    assert "WARNING: bad is BELOW THE UNTRAINED NETWORK: linear 30.0 against 50.0 (-20.0)" in shown


def test_nothing_to_say_without_the_untrained_backbone_and_for_diagnostics(tmp_path: Path, add_row: Any) -> None:
    add_row("bad", 0, right(0.3))
    assert table_of(tmp_path).warnings == []
    for method, share in (("untrained", 0.5), ("bad", 0.3)):
        add_row(method, 0, right(share), "diagnostics")
    table = table_of(tmp_path)
    assert "diagnostics" in table.evaluations and table.warnings == []


def test_several_seeds_count_as_they_do_in_the_ranks(tmp_path: Path, add_row: Any) -> None:
    for seed, (low, high) in enumerate([(0.3, 0.5), (0.7, 0.5), (0.4, 0.5)]):
        add_row("shaky", seed, right(low, seed))
        add_row("untrained", seed, right(high, seed))
    (note,) = table_of(tmp_path).warnings  # seeds differ too much for 3.3 points to mean anything
    assert note == "shaky is below the untrained network: linear 46.7 against 50.0 (-3.3, not significant)"


def test_warnings_of_rows_are_shown_once_and_marked(tmp_path: Path, add_row: Any) -> None:
    for name in ("knn", "linear"):
        add_row("m", 0, right(0.5), name, warnings=["weights loaded 93 %"])
    table = table_of(tmp_path)
    assert table.aggregates[0].footnotes == "⁴" and table.warnings == ["m: weights loaded 93 %"]
    assert "m⁴" in render("md", [table]) and "⁴ with a warning" in render("md", [table])
    assert r"m\textsuperscript{4}" in render("latex", [table])
    assert "weights loaded 93 %" in render("csv", [table]) and "weights loaded 93 %" in render("html", [table])
    said: list[str] = []
    assert check(tmp_path, show=said.append) == []
    assert sum("WARNING: weights loaded 93 %" in line for line in said) == 2


# At evaluation time ---------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_row_says_what_speaks_against_it(
    here: Path, nano: ViT, tiny_data: Splits, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = tiny_data.train, tiny_data.test
    assert isinstance(train.images, torch.Tensor) and isinstance(test.images, torch.Tensor)
    pixels = torch.cat([test.images[:-2], train.images[5:6], train.images[5:6]])
    leaky = Splits(train, replace(test, images=pixels, fingerprint="e" * 64))
    encoder = Checkpoint(nano, "m", {}, "c" * 64, loaded=93.0)
    (row,) = run_evaluations(encoder, {"knn": load_evaluator("knn")}, leaky, here / "leaky", None)
    expected = [
        "weights loaded 93 %: the rest of the encoder is untrained",
        "2 of 24 test images are also training images of blobs",
    ]
    assert row["warnings"] == expected
    err = capsys.readouterr().err
    assert all(f"WARNING: m on blobs: {text}" in err for text in expected)
    (row,) = run_evaluations(
        replace(encoder, loaded=100.0), {"knn": load_evaluator("knn")}, tiny_data, here / "clean", None
    )
    assert row["warnings"] == [] and "WARNING" not in capsys.readouterr().err
    assert check(here / "leaky", show=lambda _: None) == []


def test_duplicates_are_counted_once(here: Path, tiny_data: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    same = Splits(tiny_data.train, replace(tiny_data.train, split="test"))
    assert count_duplicates(same) == 48 and count_duplicates(tiny_data) == 0
    monkeypatch.setattr(data_module, "duplicates", lambda *_: pytest.fail("counted twice"))
    assert count_duplicates(same) == 48 and count_duplicates(tiny_data) == 0


def test_a_count_that_cannot_be_kept_is_counted_again(tmp_path: Path, tiny_data: Splits) -> None:
    (tmp_path / "way").write_text("a file")
    same = Splits(tiny_data.train, replace(tiny_data.train, split="test"))
    assert [count_duplicates(same, tmp_path / "way") for _ in range(2)] == [48, 48]


def test_images_that_are_not_in_memory_are_not_all_decoded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    for split in ("train", "test"):
        for name in "ab":
            (here / "set" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(here / "set" / split / name / "x.png")
    assert count_duplicates(data_module.load("folder:set")) == 2
    assert count_duplicates(data_module.load("folder:set", memory=0)) is None


def test_a_tokenizer_that_has_a_teacher_is_described(add_row: Any) -> None:
    """BEiT v2's VQ-KD rebuilds what a CLIP sees."""
    facts = {"codebook_size": 16, "code_perplexity": 7.5, "teacher": {"name": "clip:quick", "source": "trained here"}}
    tokenizer = {"method": "vqkd", "facts": facts, "images_seen": 40, "wall_seconds": 3.0, "flops": 1e9}
    row = add_row("beit_v2", 0, [True, False], pretraining={"teachers": {"tokenizer": tokenizer}})
    assert list(violations(row.values)) == []
    (table,) = build([row])
    (text,) = table.teachers
    assert text.startswith("beit_v2: tokenizer vqkd, trained on the same images in 3 s and 1.0e+09 FLOPs")
    assert text.endswith("codebook size 16, code perplexity 7.5, its teacher clip:quick")
