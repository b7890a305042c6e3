"""Figures: what is drawn from which rows, what is left out and named, the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_bench.errors import UserError
from ssl_bench.results import figures
from ssl_bench.results.leaderboard import build, leaderboard
from ssl_bench.results.plotting import COLOURS, cliques, pareto
from ssl_bench.results.rows import read_rows


def right(percent: int) -> np.ndarray[Any, Any]:
    return np.arange(100) < percent


def number(value: float) -> dict[str, Any]:
    return {"value": value, "n": 100, "low": value - 2, "high": value + 2}


def log(folder: Path, run: str) -> None:
    """A run that is being written: the last line is cut."""
    (folder / run).mkdir(parents=True)
    lines = [{"step": 1, "loss": 4.0}, {"step": 5, "knn": 20.0}, {"step": 10, "loss": 2.0}, {"step": 10, "knn": 30.0}]
    (folder / run / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 11, "lo')


@pytest.fixture
def everything(tmp_path: Path, add_row: Any) -> Path:
    """Rows for every figure, of methods with names that look like mathematics."""
    for at, (method, flops) in enumerate((("$a_b^$", 1e9), ("b", 4e9), ("c", 2e9))):
        spent = {"pretraining": {"flops": flops}}
        add_row(method, 0, right(40 + 10 * at), **spent)
        ks = {f"top1@k={k},T=0.07": number(30 + k / 10) for k in (1, 5, 20)}
        chosen = {"chosen": {"headline_temperature": 0.07}}
        add_row(method, 0, right(35), "knn", metrics=ks, evaluation=chosen, **spent)
        shares = {f"top1@{s}%": number(20.0 + s) for s in (1, 10)}
        add_row(method, 0, right(21), "lowshot", metrics=shares, predictions=None, **spent)
        probes = {"hue/r2": number(50.0), "shape/top1": number(60.0 + at)}
        add_row(method, 0, right(55), "factors", metrics=probes, predictions=None, **spent)
    return tmp_path


def test_all_of_them_and_the_same_bytes(everything: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log(everything / "runs", "mae-shapes-0-abc")
    said: list[str] = []
    options: dict[str, Any] = {"formats": [], "figures": True, "runs": everything / "runs"}
    files = leaderboard(everything, show=said.append, **options)
    names = {*figures.FIGURES, "training"}
    assert {file.name for file in files} == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    assert not any(line.startswith("no figure") for line in said)
    first = {file: file.read_bytes() for file in files}
    assert not any(b"<dc:date>" in content for content in first.values())
    monkeypatch.setattr(figures, "FIGURES", {"ranks": figures.ranks})
    again = leaderboard(everything, show=said.append, **options)
    assert len(again) == 4 and all(file.read_bytes() == first[file] for file in again)


def test_what_has_no_data_is_named(tmp_path: Path, add_row: Any) -> None:
    add_row("a", 0, right(40), pretraining={"flops": 0})
    said: list[str] = []
    assert figures.draw(build(read_rows(tmp_path)), tmp_path, None, said.append) == []
    assert {line.split(":")[0].removeprefix("no figure ") for line in said} == {*figures.FIGURES, "training"}


def test_front_leaves_labels_out(everything: Path, add_row: Any) -> None:
    add_row("supervised", 0, right(99), flags=["labels"], pretraining={"flops": 5e8})
    figure = figures.compute(build(read_rows(everything))[0])
    assert not isinstance(figure, str)
    (front,) = [line for line in figure.axes[0].lines if str(line.get_label()).startswith("Pareto")]
    assert list(front.get_ydata())[:2] == [40, 60] and list(front.get_xdata())[:2] == [1e9, 2e9]


def test_groups_are_those_of_the_tests(everything: Path) -> None:
    figure = figures.ranks(build(read_rows(everything))[0])
    assert not isinstance(figure, str)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert [label.split()[0] for label in labels] == ["1", "2", "3"]  # c, b, a differ by 10 images in one direction


def test_groups_and_fronts_of_small_cases() -> None:
    same = np.ones((3, 3), bool)
    assert cliques([0, 1, 2], same.tolist()) == [(0, 2)]
    assert cliques([0, 1, 2], np.eye(3, dtype=bool).tolist()) == []
    assert pareto([(1, 5), (1, 6), (2, 6), (3, 7)]) == [(1, 6), (3, 7)]


def test_several_tables_have_names_of_their_own(tmp_path: Path, add_row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "FIGURES", {"ranks": figures.ranks})
    for data in ("shapes", "../../else where"):
        for name, percent in (("a", 40), ("b", 60)):
            add_row(name, 0, right(percent), evaluation={"data": data, "fingerprints": {"test": data}})
    files = figures.draw(build(read_rows(tmp_path)), tmp_path / "figures", None, lambda _: None)
    assert {file.parent for file in files} == {tmp_path / "figures"}
    assert any(file.name.startswith("ranks-1-else-where") for file in files)


def test_curves_need_a_folder_with_logs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder of runs"):
        figures.training_curves(tmp_path / "none")
    assert "no log.jsonl" in str(figures.training_curves(tmp_path))


def test_colours_are_okabe_and_ito() -> None:
    assert set(COLOURS) == {
        "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
    }  # fmt: skip
