"""Ranks: the test against McNemar's, Welch's and simulation; ties, missing cells, limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ssl_bench.commands.leaderboard import leaderboard
from ssl_bench.results.leaderboard.selection import Selection
from ssl_bench.results.leaderboard.significance import draws_variance, holm, interval_p, paired_p
from ssl_bench.results.leaderboard.table import build
from ssl_bench.results.rows.predictions import correctness
from ssl_bench.results.rows.row import read_rows
from ssl_bench.utils.errors import UserError


def predictions(percent: float, n: int = 1000, seed: int = 0) -> np.ndarray[Any, Any]:
    """The same images are hard for everyone; ``percent`` of them are right."""
    return np.random.default_rng(0).random(n) + np.random.default_rng(seed).normal(0, 0.1, n) < percent / 100


def test_one_seed_is_mcnemar() -> None:
    a, b = predictions(50, 20_000, seed=1), predictions(50.5, 20_000, seed=2)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    expected = stats.chi2.sf((only_a - only_b) ** 2 / (only_a + only_b), 1)
    assert paired_p([a[None], b[None]])[0, 1] == pytest.approx(expected, rel=0.01)  # t with 19,999 degrees of freedom
    assert 0.001 < expected < 0.2


def test_several_seeds_are_welch_when_images_agree() -> None:
    """Where images add next to nothing, the test is Welch's over the seeds."""
    n = 100_000
    counts = {"a": [50_000, 50_300, 50_700], "b": [51_000, 51_900, 51_500]}
    a, b = (np.stack([np.arange(n) < c for c in counts[key]]) for key in "ab")
    images = float(((a.mean(0) - b.mean(0)) ** 2).mean()) / n
    welch = stats.ttest_ind(a.mean(1), b.mean(1), equal_var=False)
    seeds = a.mean(1).var(ddof=1) / 3 + b.mean(1).var(ddof=1) / 3
    assert images < 0.02 * seeds
    assert paired_p([a, b])[0, 1] == pytest.approx(welch.pvalue, rel=0.05)


def test_false_alarms_stay_at_their_level() -> None:
    """Two methods whose seeds are drawn from one distribution: 5 % of tests may say they differ."""
    draws, alarms = np.random.default_rng(0), 0
    for _ in range(400):
        skill = 0.5 + draws.normal(0, 0.02, 6)
        right = draws.random((6, 500)) < skill[:, None]
        alarms += paired_p([right[:3], right[3:]])[0, 1] < 0.05
    assert alarms / 400 < 0.08


def test_the_same_predictions_are_never_different() -> None:
    a = predictions(50)[None]
    assert paired_p([a, a.copy()])[0, 1] == 1
    assert interval_p([1.0, 1.0], [0.0, 0.0])[0, 1] == 1


def test_intervals_as_independent_normals() -> None:
    assert interval_p([50.0, 55.0], [3.0, 4.0])[0, 1] == pytest.approx(2 * stats.norm.sf(1.959964 * 5 / 5))


def test_holm_against_its_definition() -> None:
    p = np.random.default_rng(0).random(20) ** 3
    order = np.argsort(p)
    expected = [min(1.0, max((20 - j) * p[order[j]] for j in range(list(order).index(i) + 1))) for i in range(20)]
    assert holm(p) == pytest.approx(np.array(expected))


def test_ties_share_a_rank(tmp_path: Path, add_row: Any) -> None:
    for seed in range(3):
        add_row("first", seed, predictions(70, seed=seed))
        add_row("second", seed, predictions(70, seed=10 + seed))
        add_row("last", seed, predictions(30, seed=20 + seed))
    (table,) = build(read_rows(tmp_path))
    ranks = dict(zip((each.label for each in table.aggregates), table.standings["linear"].ranks, strict=True))
    assert ranks == {"first": 1, "second": 1, "last": 3}
    assert table.standings["linear"].paired


def test_pairs_of_the_same_images_tell_more_than_intervals(tmp_path: Path, add_row: Any) -> None:
    """Intervals that overlap, on predictions that differ in one direction."""
    good, better = predictions(50), predictions(50)
    better[np.flatnonzero(~good)[:20]] = True
    for evaluation, kept in (("linear", ""), ("fewshot", None)):
        add_row("good", 0, good, evaluation, predictions=kept)
        add_row("better", 0, better, evaluation, predictions=kept)
    (table,) = build(read_rows(tmp_path))
    assert sorted(filter(None, table.standings["linear"].ranks)) == [1, 2]
    assert table.standings["fewshot"].ranks == [1, 1] and not table.standings["fewshot"].paired
    assert table.standings["fewshot"].text(0) == "~1"


def test_no_mean_over_missing_cells_and_none_for_diagnostics(tmp_path: Path, add_row: Any) -> None:
    add_row("whole", 0, predictions(70), "knn")
    add_row("whole", 0, predictions(70), "linear")
    add_row("half", 0, predictions(30), "linear")
    add_row("whole", 0, predictions(70), "diagnostics", predictions=None)
    (table,) = build(read_rows(tmp_path))
    means = dict(zip((each.label for each in table.aggregates), table.mean_ranks, strict=True))
    assert means == {"whole": 1.0, "half": None} and "diagnostics" not in table.standings
    header, lines, _ = table.ranks()
    assert header[:2] == ["method", "mean rank"] and lines[1][:2] == ["half", "–"]


def test_every_seed_is_shown(tmp_path: Path, add_row: Any) -> None:
    for seed, right in enumerate((40, 60, 50)):
        add_row("m", seed, np.arange(100) < right)
    leaderboard(tmp_path, show=lambda _: None)
    assert "40.0, 60.0, 50.0" in (tmp_path / "LEADERBOARD.md").read_text()


def test_shares_of_an_image_are_paired_too(tmp_path: Path, add_row: Any) -> None:
    """Each image was asked in several episodes; the better encoder is right once more on nearly all of them."""
    share = np.random.default_rng(0).choice([0.25, 0.5, 0.75], 500)
    better = share + 0.05 * (np.arange(500) % 10 > 0)
    for name, each in (("good", share), ("better", better)):
        value, half = 100 * each.mean(), 196 * each.std() / 500**0.5  # all chance is that of the images
        add_row(name, 0, each, "fewshot", metrics={"top1": {"low": value - half, "high": value + half}})
    (table,) = build(read_rows(tmp_path))
    assert table.standings["fewshot"].paired and table.standings["fewshot"].ranks == [1, 2]
    np.testing.assert_allclose(correctness(table.aggregates[1].rows), [share], atol=1e-3)
    first = table.aggregates[0].rows
    assert draws_variance(first, correctness(first)) < 1e-6
    wide = add_row("good", 1, share, "fewshot", metrics={"top1": {"low": 40.0, "high": 60.0}})
    assert draws_variance([wide], correctness([wide])) ** 0.5 == pytest.approx(0.1 / 1.96, rel=0.02)
    file = table.aggregates[0].rows[0].path.with_suffix(".npy")
    for wrong in (np.nan, 1.5, -0.5):
        np.save(file, np.full(500, wrong, np.float16))
        with pytest.raises(UserError, match="not the predictions of 500 images"):
            correctness(table.aggregates[0].rows)


def test_missing_predictions_mean_intervals_and_wrong_ones_an_error(tmp_path: Path, add_row: Any) -> None:
    row = add_row("m", 0, predictions(50))
    file = row.path.with_suffix(".npy")
    np.save(file, np.zeros(3, np.uint8))
    with pytest.raises(UserError, match="not the predictions of 1000 images"):
        correctness([row])
    file.unlink()
    assert correctness([row]) is None


def test_predictions_never_lead_out_of_the_folder(tmp_path: Path, add_row: Any) -> None:
    np.save(tmp_path / "secret.npy", np.packbits(predictions(50)))
    row = add_row("m", 0, predictions(50), predictions="../secret.npy")
    with pytest.raises(UserError, match="its predictions are named"):
        correctness([row])


def test_best_of_each_method_within_a_budget(tmp_path: Path, add_row: Any) -> None:
    for epochs, right in ((1, 40), (10, 60), (100, 80)):
        training = {"training": {"epochs": epochs}}
        add_row("m", 0, predictions(right), recipe=training, pretraining={"flops": epochs * 1e9, "images_seen": epochs})
    target = {"dvae": {"flops": 1e12, "images_seen": 1, "wall_seconds": 1.0, "method": "dvae", "facts": {}}}
    add_row("n", 0, predictions(90), pretraining={"flops": 1e9, "teachers": target})
    add_row("external", 0, predictions(95), recipe=None, pretraining={"data": "unknown"})
    selection = Selection(max_flops=2e10)
    (table,) = build(selection.rows(read_rows(tmp_path)))
    (best,) = selection.best(table.aggregates)
    assert best.method == "m"
    assert best.first["recipe"]["training"]["epochs"] == 10
    assert len(Selection(max_images=1).rows(read_rows(tmp_path))) == 1


def test_filters(tmp_path: Path, add_row: Any) -> None:
    add_row("a", 0, predictions(40), "knn")
    add_row("a", 0, predictions(40))
    add_row("b", 0, predictions(50), category="reconstruction")
    rows = read_rows(tmp_path)
    assert {row["method"] for row in Selection(methods=["a"]).rows(rows)} == {"a"}
    assert len(Selection(evaluations=["linear"]).rows(rows)) == 2
    assert {row["method"] for row in Selection(categories=["reconstruction"]).rows(rows)} == {"b"}
    with pytest.raises(UserError, match="unknown method 'c'"):
        Selection(methods=["c"]).rows(rows)
    with pytest.raises(UserError, match="no row passes"):
        Selection(max_flops=1.0).rows(rows)


def test_a_selection_leaves_the_whole_leaderboard_alone(tmp_path: Path, add_row: Any) -> None:
    add_row("a", 0, predictions(40))
    add_row("b", 0, predictions(50))
    (whole,) = leaderboard(tmp_path, show=lambda _: None)
    before = whole.read_bytes()
    (part,) = leaderboard(tmp_path, selection=Selection(methods=["a"]), show=lambda _: None)
    assert whole.read_bytes() == before
    assert part.name == "selected-LEADERBOARD.md" and "Only methods a." in part.read_text()
