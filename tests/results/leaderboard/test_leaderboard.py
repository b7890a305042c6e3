"""Tables from rows: grouping, intervals, refusals, the same bytes from the same rows."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from row_fixtures import sealed
from scipy import stats

from ssl_bench.commands.leaderboard import leaderboard
from ssl_bench.evaluations import EVALUATIONS
from ssl_bench.results.leaderboard.aggregate import summarise
from ssl_bench.results.leaderboard.html import page
from ssl_bench.results.leaderboard.latex import latex
from ssl_bench.results.leaderboard.selection import newest
from ssl_bench.results.leaderboard.table import build
from ssl_bench.results.rows.row import Row, read_rows
from ssl_bench.results.text import terminal_table
from ssl_bench.utils.errors import UserError


def write(folder: Path, method: str, seed: int, value: float, **changes: Any) -> Row:
    """A row with just what tables read."""
    recipe = {"method": method, "backbone": {"name": "vit"}, "seed": seed, "training": {}, "settings": {}}
    cost = {
        "images_seen": 100,
        "epochs": 2.0,
        "patches_per_image": 4.0,
        "patches_encoded_without_gradient": 0,
        "flops": 1e9,
    }
    values = {
        "method": method,
        "category": "contrastive",
        "backbone": {"name": "vit"},
        "recipe": recipe,
        "views": "2x32",
        "pretraining": {**cost, "wall_seconds": 5.0, "peak_memory_bytes": 10**8, "device": "cpu", "fingerprint": "f"},
        "evaluation": {
            "name": "knn",
            "evaluator": "knn",
            "version": 1,
            "settings": {},
            "pooling": "mean",
            "data": "shapes",
            "fingerprints": {"train": "a", "test": "b"},
            "images": {"train": 10, "dev": 1, "test": 100},
        },
        "metrics": {"top1": {"value": value, "n": 100, "low": value - 3, "high": value + 3}},
        "headline": "top1",
        "flags": [],
        "deviations": [],
        "code": {"method_source": None, "evaluator_source": None},
    }
    for key, change in changes.items():
        values[key] = {**values.get(key, {}), **change} if isinstance(change, dict) else change
    values["recipe"]["backbone"] = values["backbone"]
    values = sealed(values)
    path = folder / "rows" / f"{method}-{seed}-{values['id']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    return Row.read(path)


def test_mean_and_interval_over_seeds(tmp_path: Path) -> None:
    values = [40.0, 44.0, 42.0]
    cell = summarise([write(tmp_path, "m", seed, value) for seed, value in enumerate(values)])
    seeds = stats.t.interval(0.95, 2, loc=42, scale=stats.sem(values))[1] - 42
    assert cell.mean == 42 and cell.seeds == 3
    assert cell.half == pytest.approx(math.hypot(seeds, 3))
    assert summarise([write(tmp_path, "m", 0, 40.0)]).half == 3


def test_sorted_with_difference_from_untrained(tmp_path: Path) -> None:
    write(tmp_path, "untrained", 0, 30.0)
    write(tmp_path, "good", 0, 50.0)
    write(tmp_path, "close", 0, 33.0)
    write(tmp_path, "bad", 0, 20.0)
    (table,) = build(read_rows(tmp_path))
    cells = {row[0].rstrip("²"): row[2] for row in table.numbers()[1]}
    assert list(cells) == ["good", "close", "untrained", "bad"]
    assert cells["good"].startswith("50.0 ± 3.0 (+20.0▲)") and cells["bad"].startswith("20.0 ± 3.0 (-10.0▼)")
    assert cells["close"].startswith("33.0 ± 3.0 (+3.0)") and cells["untrained"].startswith("30.0 ± 3.0 mean")


def test_other_data_never_share_a_table(tmp_path: Path) -> None:
    write(tmp_path, "m", 0, 40.0)
    write(tmp_path, "m", 1, 50.0, evaluation={"fingerprints": {"train": "a", "test": "other"}})
    assert len(build(read_rows(tmp_path))) == 2


def test_backbones_share_a_table_that_names_them(tmp_path: Path) -> None:
    for backbone in ("vit", "swin"):
        write(tmp_path, "m", 0, 40.0, backbone={"name": backbone})
        write(tmp_path, "untrained", 0, 20.0, backbone={"name": backbone})
    write(tmp_path, "n", 0, 50.0)
    write(tmp_path, "raw_pixels", 0, 10.0)
    (table,) = build(read_rows(tmp_path))
    header, lines, left = table.numbers()
    assert header[:3] == ["method", "backbone", "category"] and left == 3 and "vit" not in table.title
    found = {line[0].rstrip("²"): line[1] for line in lines}
    expected = {"m (vit)": "vit", "m (swin)": "swin", "untrained (vit)": "vit", "untrained (swin)": "swin"}
    assert found == expected | {"n": "vit", "raw_pixels": "–"}
    assert page([table]).count('<td class="text" data-sort="swin">') == 2
    assert r"\begin{tabular}{llrr}" in latex([table])


def test_other_versions_of_an_evaluation_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "m", 0, 40.0)
    write(tmp_path, "n", 0, 50.0, evaluation={"version": 2})
    with pytest.raises(UserError, match="different versions or settings"):
        build(read_rows(tmp_path))


@pytest.mark.parametrize(
    "other",
    [
        {"evaluation": {"version": 2}},
        {"evaluation": {"settings": {"shrinkage": 0.1}}},
        {"code": {"method_source": None, "evaluator_source": "b" * 16}},
    ],
)
def test_the_newest_measurement_of_an_edited_evaluation_counts(tmp_path: Path, other: dict[str, Any]) -> None:
    """Also that of an evaluation from outside whose file changed, not its version: they were averaged as if seeds."""
    code = {"method_source": None, "evaluator_source": "a" * 16}
    evaluation = {"name": "own", "evaluator": "Own"}
    write(tmp_path, "m", 0, 40.0, **{"code": code, "evaluation": evaluation, "made": {"time": "2026-01-01T00:00:00"}})
    write(
        tmp_path,
        "m",
        0,
        50.0,
        **{
            "code": code,
            "made": {"time": "2026-01-02T00:00:00"},
            **other,
            "evaluation": evaluation | other.get("evaluation", {}),
        },
    )
    with pytest.raises(UserError, match="different versions or settings"):
        build(read_rows(tmp_path))
    shown: list[str] = []
    leaderboard(tmp_path, show=shown.append)
    assert any("1 rows are of an earlier version, settings or file" in line and ".json" in line for line in shown)
    (table,) = build(newest(read_rows(tmp_path), shown.append))
    (only,) = table.aggregates
    assert only.cells["own"].mean == 50.0 and only.cells["own"].seeds == 1


def test_two_recipes_of_a_method_are_two_lines_and_missing_cells_stay_empty(tmp_path: Path) -> None:
    write(tmp_path, "m", 0, 40.0)
    write(tmp_path, "m", 0, 50.0, recipe={"settings": {"mask_ratio": 0.5}})
    write(tmp_path, "n", 0, 60.0, evaluation={"name": "linear", "evaluator": "linear"})
    (table,) = build(read_rows(tmp_path))
    assert len(table.aggregates) == 3 and len({each.label for each in table.aggregates}) == 3
    row = next(row for row in table.numbers()[1] if row[0].startswith("n"))
    assert row[2] == "–" and row[3].startswith("60.0")


def test_two_budgets_of_a_recipe_are_told_apart_by_their_epochs(tmp_path: Path) -> None:
    for epochs in (2.0, 8.0):
        write(tmp_path, "m", 0, 40.0 + epochs, recipe={"training": {"epochs": epochs, "lr": 0.1}})
    (table,) = build(read_rows(tmp_path))
    assert {each.label for each in table.aggregates} == {"m (epochs 2.0)", "m (epochs 8.0)"}


def test_lengths_that_are_stretched_with_a_training_tell_no_recipes_apart(tmp_path: Path) -> None:
    """A last layer that is frozen for a hundredth of each; of two recipes it is said what else they differ in."""
    for crops, epochs in ((4, 3.95), (0, 5.9), (0, 23.6)):
        settings = {"frozen": float(f"{epochs / 100:.3g}"), "crops": crops}
        recipe = {"settings": settings, "training": {"epochs": epochs}}
        write(tmp_path / str(epochs > 20), "m", 0, 40.0 + epochs, recipe=recipe)
        write(tmp_path / "both", "m", 0, 40.0 + epochs, recipe=recipe)
    (table,) = build(read_rows(tmp_path / "False"))
    assert {each.label for each in table.aggregates} == {"m (crops 4)", "m (crops 0)"}
    (table,) = build([row for row in read_rows(tmp_path / "both") if row["recipe"]["settings"]["crops"] == 0])
    assert {each.label for each in table.aggregates} == {"m (epochs 5.9)", "m (epochs 23.6)"}


def test_several_folders_are_one_table(tmp_path: Path) -> None:
    for folder in "ab":
        write(tmp_path / folder, "same", 0, 50.0)
        write(tmp_path / folder, folder, 0, 40.0)
    with pytest.raises(UserError, match="--out"):
        leaderboard([tmp_path / "a", tmp_path / "b"])
    leaderboard([tmp_path / "a", tmp_path / "b"], out=tmp_path / "both", show=lambda _: None)
    text = (tmp_path / "both" / "LEADERBOARD.md").read_text()
    assert all(f"| {name}² |" in text for name in ("a", "b", "same")) and not (tmp_path / "a/LEADERBOARD.md").exists()
    line = next(line for line in text.splitlines() if line.startswith("| same²"))
    assert "| 1 |" in line, "the row that is there twice counts as one seed"


def test_same_rows_same_bytes_and_marks(tmp_path: Path) -> None:
    write(tmp_path, "a|b", 0, 40.0, flags=["labels"], deviations=["half of the views"])
    files = leaderboard(tmp_path, formats=["md", "csv"], show=lambda _: None)
    first = [file.read_bytes() for file in files]
    assert [file.read_bytes() for file in leaderboard(tmp_path, formats=["md", "csv"], show=lambda _: None)] == first
    text = first[0].decode()
    assert "a\\|b¹" in text and "half of the views" in text and "trained with labels" in text


def test_spreadsheet_formulas_are_text(tmp_path: Path) -> None:
    write(tmp_path, "=cmd()", 0, 40.0)
    leaderboard(tmp_path, formats=["csv"], show=lambda _: None)
    assert ",'=cmd()" in (tmp_path / "leaderboard.csv").read_text()


def test_nothing_to_rank(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rows"):
        leaderboard(tmp_path)
    (tmp_path / "rows").mkdir()
    with pytest.raises(UserError, match="no rows"):
        leaderboard(tmp_path)
    (tmp_path / "rows" / "x.json").write_text("{}")
    with pytest.raises(UserError, match=r"x\.json is not a row"):
        leaderboard(tmp_path)


def test_unknown_sort_and_format(tmp_path: Path) -> None:
    write(tmp_path, "m", 0, 40.0)
    with pytest.raises(UserError, match="unknown evaluation to sort by 'x'"):
        leaderboard(tmp_path, sort="x")
    with pytest.raises(UserError, match="unknown format 'pdf'"):
        leaderboard(tmp_path, formats=["pdf"])


def test_other_pretraining_data_is_named(tmp_path: Path) -> None:
    write(tmp_path, "m", 0, 40.0, pretraining={"data": "cifar10"})
    write(tmp_path, "untrained", 0, 30.0, pretraining={"data": "cifar10", "images_seen": 0})
    (table,) = build(read_rows(tmp_path))
    assert table.title == "shapes (10 train, 100 test images), vit, pre-trained on cifar10"
    assert table.title in table.terminal() and [each.label for each in table.aggregates] == ["m", "untrained"]
    write(tmp_path, "n", 0, 50.0, pretraining={"data": "shapes"})
    write(tmp_path, "o", 0, 20.0, pretraining={"data": "unknown"})
    (table,) = build(read_rows(tmp_path))
    assert table.title == "shapes (10 train, 100 test images), vit"
    assert [each.label for each in table.aggregates] == ["n", "m, pre-trained on cifar10", "untrained", "o"]


def test_more_evaluations_than_a_page_holds_become_lines(tmp_path: Path) -> None:
    for number in range(8):
        write(tmp_path, "m", 0, 40.0 + number, evaluation={"name": f"e{number}", "evaluator": "knn"})
        write(tmp_path, "n", 0, 30.0, evaluation={"name": f"e{number}", "evaluator": "knn"})
    leaderboard(tmp_path, formats=["md", "latex"], show=lambda _: None)
    lines = (tmp_path / "LEADERBOARD.md").read_text().splitlines()
    assert "| method | m² | n² |" in lines or "| method | m | n |" in lines
    (line,) = [line for line in lines if line.startswith("| e7 |")]
    assert [cell.strip()[:4] for cell in line.split("|")[2:4]] == ["47.0", "30.0"]
    assert r"e7 & \textbf{47.0}" in (tmp_path / "leaderboard.tex").read_text()


def test_evaluations_of_a_task_stand_together(tmp_path: Path) -> None:
    for name, task in (("a", "segmentation"), ("b", "classification"), ("c", "segmentation"), ("d", "classification")):
        write(tmp_path, "m", 0, 40.0, task=task, evaluation={"name": name})
    (table,) = build(read_rows(tmp_path))
    assert table.evaluations == ["b", "d", "a", "c"]
    names = ["classification: b", "classification: d", "segmentation: a", "segmentation: c"]
    leaderboard(tmp_path, formats=["md", "html", "latex", "csv"], show=lambda _: None)
    for file in ("LEADERBOARD.md", "leaderboard.html", "leaderboard.tex"):
        text = (tmp_path / file).read_text()
        places = [text.index(name) for name in names]
        assert places == sorted(places), file
    frame = pd.read_csv(tmp_path / "leaderboard.csv")
    assert dict(zip(frame["evaluation"], frame["task"], strict=True))["c"] == "segmentation"


def test_rows_without_a_task_are_of_classification_and_names_stay_short(tmp_path: Path) -> None:
    write(tmp_path, "m", 0, 40.0)
    (table,) = build(read_rows(tmp_path))
    assert table.tasks == {"knn": "classification"} and table.headings == ["knn"]


def test_csv_has_numbers_that_can_be_read_again(tmp_path: Path) -> None:
    for seed, value in enumerate((40.0, 44.0)):
        write(tmp_path, "m", seed, value)
    write(tmp_path, "untrained", 0, 30.0)
    write(tmp_path, "m", 0, 50.0, evaluation={"name": "linear", "evaluator": "linear"})
    leaderboard(tmp_path, formats=["csv"], show=lambda _: None)
    frame = pd.read_csv(tmp_path / "leaderboard.csv").set_index(["method", "evaluation"])
    line = frame.loc[("m", "knn")]
    assert (line["mean"], line["seeds"], line["untrained"], line["difference"]) == (42.0, 2, 30.0, 12.0)
    assert line["values_by_seed"] == "40.0000 44.0000" and line["metric"] == "top1"
    assert frame["untrained"].isna().tolist() == [False, True, True]  # no linear row of the untrained network


def test_only_what_is_known_to_be_in_percent_is_called_so(tmp_path: Path) -> None:
    depth = {"rmse_metres": {"value": 0.4, "n": 100, "low": 0.3, "high": 0.5}}
    write(tmp_path, "m", 0, 40.0)
    write(tmp_path, "m", 0, 40.0, evaluation={"name": "mine", "evaluator": "Depth"}, metrics=depth,
          headline="rmse_metres", code={"evaluator_source": "d" * 16})  # fmt: skip
    write(tmp_path, "m", 0, 40.0, evaluation={"name": "own-knn"}, code={"evaluator_source": "e" * 16})
    ranks = {"rankme": {"value": 12.0, "n": 100, "low": 11.0, "high": 13.0}}
    write(tmp_path, "m", 0, 40.0, evaluation={"name": "diagnostics", "evaluator": "diagnostics"}, metrics=ranks,
          headline="rankme")  # fmt: skip
    (table,) = build(read_rows(tmp_path))
    assert table.metrics == "diagnostics: rankme; knn: top1, percent; mine: rmse_metres; own-knn: top1"


def test_headlines_of_our_evaluators_but_rankme_are_in_percent() -> None:
    for name, cls in EVALUATIONS.items():
        metric, said = next(iter(cls.metric_help.items()))
        assert ("percent" in said) == (metric != "rankme"), name


@pytest.mark.parametrize("width", [40, 60, 80, 100, 150])
def test_no_cell_is_broken_at_any_width(tmp_path: Path, width: int) -> None:
    """Cost columns go first; what is still too wide stands below."""
    for seed, value in enumerate((40.0, 44.0)):
        for name in ("knn", "linear"):
            write(tmp_path, "m", seed, value, category="contrastive", evaluation={"name": name, "evaluator": name})
            write(tmp_path, "untrained", seed, 30.0, evaluation={"name": name, "evaluator": name})
    (table,) = build(read_rows(tmp_path))
    header, body, _ = table.numbers()
    text = table.terminal(width)
    assert max(map(len, text.splitlines())) <= width
    scores = [line[header.index(name)] for line in body for name in ("knn", "linear")]
    assert len(scores) == 4 and all(score in text for score in scores)
    shown = {name for name in header if name in text.partition("Left out")[0]}
    assert {"method", "knn", "linear"} <= shown
    assert ("memory" in shown) <= ("FLOPs" in shown) <= ("category" in shown)
    assert set(header) == shown | {name for name in header if name in text.partition("Left out")[2]}
    assert set(table.terminal(0).split()) >= set(" ".join(header).split())  # no limit


NAMES = [  # label, backbone and score of rows of results/cifar10 and results/dense
    ("supervised¹", "vit_micro_patch8_32", "40.5 ± 1.0 (+20.0▲) mean"),
    ("moby (swin_micro_patch2_window4_32)", "swin_micro_patch2_window4_32", "22.3 ± 0.8 (+1.8) mean"),
    ("raw_pixels", "–", "619.7 ± 3.4 (+581.5) pixels"),
    (
        "untrained (vit_micro_patch8_32, relative_positions shared, init beit, layer_scale 0.1, registers 0)",
        "vit_micro_patch8_32",
        "18.8 ± 0.8 cls",
    ),
]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 150])
def test_names_are_broken_between_their_parts_alone(width: int) -> None:
    header = ["method", "backbone", "category", "clustering", "knn", "seeds"]
    body = [[name, backbone, "contrastive", score, score, "1"] for name, backbone, score in NAMES]
    text = terminal_table("cifar10", header, body, 3, width, spare=("seeds", "category"), keys=2)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    heads = [lines[at - 1] for at, line in enumerate(lines) if set(line.strip()) == {"─"}]
    assert heads and all("clustering" in head or "knn" in head for head in heads)  # no block of names alone
    parts = {part for name, backbone, _ in NAMES for part in re.findall(r"[^_ ]+_?", f"{name} {backbone}")}
    shown = [part for line in lines for part in re.findall(r"[^_ ]+_?", line) if re.search("[a-z]{3}", part)]
    known = {*parts, *header, "mean", "cls", "pixels", "cifar10", "Left", "out", "for", "want", "of", "width:"}
    assert {part.rstrip(".,") for part in shown} <= {part.rstrip(",") for part in known}
    for _, _, score in NAMES:
        assert all(part in text for part in score.split(" (")[:1])
        assert width < 60 or score in text


def test_the_legend_comes_first_and_the_long_one_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    write(tmp_path, "m", 0, 40.0)
    shown: list[str] = []
    leaderboard(tmp_path, formats=[], show=shown.append)
    assert shown[0].startswith("Mean over seeds ± 95 % interval") and not any("McNemar" in text for text in shown)
    leaderboard(tmp_path, formats=[], explain=True, show=shown.append)
    assert "McNemar" in shown[-1]
    assert all(len(line) <= 80 for text in shown for line in text.splitlines())


def test_the_files_go_where_they_are_wanted(tmp_path: Path) -> None:
    write(tmp_path, "m", 0, 40.0)
    (file,) = leaderboard(tmp_path, out=tmp_path / "elsewhere", formats=["md"], show=lambda _: None)
    assert file == tmp_path / "elsewhere" / "LEADERBOARD.md" and not (tmp_path / "LEADERBOARD.md").exists()
