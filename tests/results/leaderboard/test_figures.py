"""Figures: what is drawn from which rows, what is left out and named, the same bytes."""

from __future__ import annotations

import io
import itertools
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from ssl_bench.commands.leaderboard import leaderboard
from ssl_bench.results.leaderboard import compute_figure, figures, looks
from ssl_bench.results.leaderboard.curves import training_curves
from ssl_bench.results.leaderboard.looks import COLOURS
from ssl_bench.results.leaderboard.plotting import STYLE, cliques, look, pareto
from ssl_bench.results.leaderboard.svg import WIDTH, compute_picture
from ssl_bench.results.leaderboard.table import build
from ssl_bench.results.leaderboard.ticks import log_ticks
from ssl_bench.results.rows.row import Row, read_rows
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.identity import identify
from ssl_bench.utils.versions import registered


def right(percent: int) -> np.ndarray[Any, Any]:
    return np.arange(100) < percent


def number(value: float) -> dict[str, Any]:
    return {"value": value, "n": 100, "low": value - 2, "high": value + 2}


def log(
    folder: Path, row: Row, text: str = "knn,loss,lr,step\n,4.0,0.1,1\n20.0,,,5\n30.0,2.0,0.1,10\n,nan,0.1,"
) -> None:
    """The log of the run behind a row; unless given, one that is being written: the last line is cut."""
    run = folder / f"run-shapes-0-{identify(row['identity']['encoder'])[:12]}"
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text(text)


@pytest.fixture
def everything(tmp_path: Path, add_row: Any) -> Path:
    """Rows for every figure, of methods with names that look like mathematics."""
    for at, (method, flops) in enumerate((("$a_b^$", 1e9), ("b", 4e9), ("c", 2e9))):
        spent = {"pretraining": {"flops": flops}}
        add_row(method, 0, right(40 + 10 * at), **spent)
        ks = {f"top1@k={k},T=0.07": number(30 + k / 10) for k in (1, 5, 20)}
        chosen = {"chosen": {"headline_temperature": 0.07}}
        add_row(method, 0, right(35), "knn", metrics=ks, evaluation=chosen, **spent)
        add_row(method, 0, right(70 - 5 * at), "finetune-mae", evaluation={"evaluator": "finetune"}, **spent)
        shares = {f"top1@{s}%": number(20.0 + s) for s in (1, 10)}
        add_row(method, 0, right(21), "lowshot", metrics=shares, predictions=None, **spent)
        probes = {"hue/r2": number(50.0), "shape/top1": number(60.0 + at)}
        add_row(method, 0, right(55), "factors", metrics=probes, predictions=None, **spent)
    return tmp_path


def test_all_of_them_and_the_same_bytes(everything: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log(everything / "runs", read_rows(everything)[0])
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


SPENT = [(3.4e12, 5.5e12, 8.0e12), (4.0e12, 4.3e12), (5.2e12, 1.5e13), (1e9, 2e12, 3e15), (2e10, 9e11, 1.9e12)]


@pytest.mark.parametrize("spent", SPENT, ids=str)
@pytest.mark.parametrize("name", ["m", "a method with a long name, which makes a wide legend"])
def test_few_numbers_stand_below_the_compute_figure(
    tmp_path: Path, add_row: Any, spent: tuple[float, ...], name: str
) -> None:
    for at, flops in enumerate(spent):
        add_row(f"{name} {at}", 0, right(40 + at), pretraining={"flops": flops})
    with matplotlib.rc_context(STYLE):
        figure = figures.compute(build(read_rows(tmp_path))[0])
        assert not isinstance(figure, str)
        figure.savefig(io.BytesIO(), format="png")
    (axes,) = figure.axes
    labels = [*axes.get_xticklabels(), *axes.get_xticklabels(minor=True)]
    low, high = axes.get_xlim()
    shown = [label for label in labels if label.get_text() and low <= label.get_position()[0] <= high]
    assert 2 <= len(shown) <= 6
    boxes = sorted((label.get_window_extent() for label in shown), key=lambda box: box.x0)
    assert not any(a.x1 >= b.x0 for a, b in itertools.pairwise(boxes))


@pytest.mark.parametrize("spent", [*SPENT, (4e12, 4e12)], ids=str)
def test_few_numbers_stand_below_the_compute_picture(tmp_path: Path, add_row: Any, spent: tuple[float, ...]) -> None:
    for at, flops in enumerate(spent):
        add_row(f"m{at}", 0, right(40 + at), pretraining={"flops": flops})
    picture = str(compute_picture(build(read_rows(tmp_path))[0]))
    found = re.findall(r'<text x="([\d.]+)" y="\d+" text-anchor="middle">([^<]+)</text>', picture)
    assert 2 <= len(found) <= 6
    half = 4.0  # of a letter's width, at most, in the picture's units
    boxes = sorted((float(x) - len(text) * half, float(x) + len(text) * half) for x, text in found)
    assert not any(a[1] >= b[0] for a, b in itertools.pairwise(boxes))
    assert boxes[-1][1] < WIDTH


def test_nearly_equal_flops_stand_together_on_the_page(tmp_path: Path, add_row: Any) -> None:
    for at, flops in enumerate((4e12, 4.01e12)):
        add_row(f"m{at}", 0, right(40 + at), pretraining={"flops": flops})
    picture = str(compute_picture(build(read_rows(tmp_path))[0]))
    places = [float(x) for x in re.findall(r"translate\(([\d.]+) ", picture)]
    assert len(places) == 2 and abs(places[0] - places[1]) < 10


def test_a_scale_of_powers_always_has_numbers() -> None:
    random = np.random.default_rng(0)
    for decades in (0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 15.0):
        for power in random.uniform(3, 24, 50):
            found = log_ticks(10**power, 10 ** (power + decades))
            assert 2 <= len(found) <= 6, (power, decades)
            assert all(float(text) == pytest.approx(value) for value, text in found)


def test_equal_flops_are_no_axis(tmp_path: Path, add_row: Any) -> None:
    for name in ("a", "b"):
        add_row(name, 0, right(40), pretraining={"flops": 1e9 if name == "a" else 1.01e9})
    assert figures.compute(build(read_rows(tmp_path))[0]) == "all methods had the same FLOPs"


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
        training_curves([], tmp_path / "none")
    assert "no metrics.csv" in str(training_curves([], tmp_path))


def test_fine_tuning_against_the_linear_probe(everything: Path) -> None:
    """Under the protocols that most methods share: not those that only one has."""
    figure = figures.finetuning(build(read_rows(everything))[0])
    assert not isinstance(figure, str)
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == tuple(
        f"{name} top1, percent\nmean over 1 seed ± 95 % interval" for name in ("linear", "finetune-mae")
    )
    assert len(figure.axes[0].containers) == 3


def test_fine_tuning_needs_two_methods_under_one_protocol(tmp_path: Path, add_row: Any) -> None:
    for at, method in enumerate("ab"):
        add_row(method, 0, right(40))
        add_row(method, 0, right(60), f"finetune-{at}", evaluation={"evaluator": "finetune"})
    assert "fewer than two methods" in str(figures.finetuning(build(read_rows(tmp_path))[0]))


def test_two_low_shot_protocols_never_share_a_curve(everything: Path, add_row: Any) -> None:
    shares = {f"top1@{share}%": number(50.0) for share in (1, 3, 10, 100)}
    for method in "bc":
        add_row(method, 0, right(21), "label-efficiency", metrics=shares, predictions=None,
                evaluation={"evaluator": "lowshot"}, pretraining={"flops": 4e9 if method == "b" else 2e9})  # fmt: skip
    figure = figures.label_efficiency(build(read_rows(everything))[0])
    assert not isinstance(figure, str)
    assert [list(line.get_ydata()) for line in figure.axes[0].lines] == [[50.0] * 4] * 2
    assert figure.axes[0].get_ylabel() == "label-efficiency accuracy, %"


@pytest.mark.parametrize("count", [2, 24])
def test_a_legend_covers_nothing_and_no_two_entries_look_alike(tmp_path: Path, add_row: Any, count: int) -> None:
    for at in range(count):
        add_row(f"a method with a long name, number {at}", 0, right(40 + at), pretraining={"flops": 1e9 * (1 + at)})
    with matplotlib.rc_context(STYLE):
        figure = figures.compute(build(read_rows(tmp_path))[0])
        assert not isinstance(figure, str)
        figure.savefig(io.BytesIO(), format="png")
    (legend,) = figure.legends
    box, page = legend.get_window_extent(), figure.bbox
    assert page.y0 <= box.y0 and box.y1 <= page.y1 and box.x1 <= page.x1
    assert box.x0 >= figure.axes[0].get_window_extent().x1
    assert figure.axes[0].get_window_extent().width > page.width / 3
    texts = [text.get_window_extent() for text in legend.get_texts()]
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(texts))
    title = figure.axes[0].title if figure.axes[0].title.get_text() else figure.axes[0]._left_title
    assert title.get_text() and not title.get_window_extent().overlaps(box)


def test_a_method_looks_the_same_in_every_figure(tmp_path: Path, add_row: Any) -> None:
    assert len(registered("method")) <= looks.OWN
    for name in ("mae", "dino"):
        add_row(name, 0, right(40), recipe={"settings": {"one": 1}})
    add_row("mae", 0, right(50), recipe={"settings": {"one": 2}})
    (table,) = build(read_rows(tmp_path))
    found = {each.label: look(table, index) for index, each in enumerate(table.aggregates)}
    both = [each for label, each in found.items() if label.startswith("mae")]
    assert {(each["color"], each["marker"]) for each in both} == {
        looks.colour_and_marker(registered("method").index("mae"))
    }
    assert both[0]["linestyle"] != both[1]["linestyle"] and both[0]["fillstyle"] != both[1]["fillstyle"]
    assert (found["dino"]["color"], found["dino"]["marker"]) == looks.colour_and_marker(
        registered("method").index("dino")
    )


def test_the_front_starts_at_the_free_baselines(everything: Path, add_row: Any) -> None:
    """A method below raw pixels is on no front, however cheap."""
    add_row("raw_pixels", 0, right(45), pretraining={"flops": 0})
    (table,) = build(read_rows(everything))
    assert compute_figure.compute_front(table, "linear") == [(0.0, 45), (2e9, 60)]
    figure = figures.compute(table)
    assert not isinstance(figure, str)
    (front,) = [line for line in figure.axes[0].lines if str(line.get_label()).startswith("Pareto")]
    assert list(front.get_ydata())[:2] == [45, 60] and front.get_xdata()[0] < 1e9
    assert "mean over 1 seed ± 95 % interval" in figure.axes[0].get_ylabel()


def test_a_line_joins_the_budgets_of_a_method(tmp_path: Path, add_row: Any) -> None:
    """Not those of other settings; untrained networks are one band."""
    for epochs, flops, settings in [
        (8, 8e9, {"frozen": 0.8}),
        (2, 2e9, {"frozen": 0.2}),
        (2, 2e9, {"frozen": 0.2, "scale": 1}),
    ]:
        recipe = {
            "method": "m",
            "backbone": {"name": "vit"},
            "seed": 0,
            "settings": settings,
            "training": {"epochs": epochs},
        }
        add_row(
            "m",
            0,
            right(40 if "scale" in settings else 60 if epochs == 8 else 50),
            recipe=recipe,
            pretraining={"flops": flops},
        )
    for at, init in enumerate(("mae", "dino")):
        start = {"name": "vit_micro_patch8_32", "init": init}
        recipe = {"method": "untrained", "backbone": start, "seed": 0, "settings": {}, "training": {}}
        add_row("untrained", 0, right(20 + at), backbone=start, recipe=recipe, pretraining={"flops": 0})
    (table,) = build(read_rows(tmp_path))
    figure = figures.compute(table)
    assert not isinstance(figure, str)
    axes = figure.axes[0]
    lines = {tuple(zip(*line.get_data(), strict=True)) for line in axes.lines}
    assert ((2e9, 50), (8e9, 60)) in lines and ((2e9, 40),) in lines
    names = axes.get_legend_handles_labels()[1]
    assert sum("scale" in name for name in names) == 2 and "untrained (free),\nlowest to highest of 2" in names


def test_curves_are_those_of_the_rows(tmp_path: Path, add_row: Any) -> None:
    """A negative loss stays beside a positive one; k-NN stands over the FLOPs, those of teachers first."""
    mae = add_row("mae", 0, right(40), pretraining={"flops": 1e9})
    teacher = {"method": "clip", "facts": {}, "wall_seconds": 1.0, "flops": 1e9}
    eva = add_row("eva", 0, right(50), pretraining={"flops": 2e9, "teachers": {"teacher": teacher}})
    log(tmp_path, mae)
    log(tmp_path, eva, "loss,knn,step\n-0.5,,1\n-0.75,,2\n-1.0,25,4\n")
    (tmp_path / "other-shapes-0-abc").mkdir()
    (tmp_path / "other-shapes-0-abc" / "metrics.csv").write_text("loss,knn,step\n1.0,20,1\n0.5,20,2\n")
    figure = training_curves(build(read_rows(tmp_path)), tmp_path)
    assert not isinstance(figure, str)
    knn, loss = ([list(zip(*line.get_data(), strict=True)) for line in axes.lines] for axes in figure.axes)
    assert sorted(knn) == [[(5e-4, 20), (1e-3, 30)], [(3e-3, 25)]]
    assert sorted(loss) == [[(10, 1), (100, 0)], [(25, 1), (50, 0.5), (100, 0)]]


def test_colours_are_okabe_and_ito_with_grey_for_yellow() -> None:
    assert set(COLOURS) == {
        "#000000", "#E69F00", "#56B4E9", "#009E73", "#8C8C8C", "#0072B2", "#D55E00", "#CC79A7",
    }  # fmt: skip
