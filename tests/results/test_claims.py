"""Claims answered by rows: the test against others and by simulation, groups, missing rows, the page, wrong files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ssl_bench.commands.check import check
from ssl_bench.commands.claims import claims
from ssl_bench.results.claims import contrast, read_claims, spearman
from ssl_bench.results.leaderboard.significance import paired_p
from ssl_bench.utils.errors import UserError


def write(folder: Path, text: str) -> Path:
    path = folder / "claims.yaml"
    path.write_text(text)
    return path


def quiet(_: Any) -> None:
    pass


def test_two_methods_of_several_seeds_are_the_leaderboards_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((3, 5000)) < 0.50, rng.random((4, 5000)) < 0.52
    _, _, p = contrast([a, b], [1, -1], [0, 0])
    assert p == pytest.approx(
        float(paired_p([a, b])[0, 1]), rel=0.02
    )  # that one takes the variance under no difference


def test_one_seed_is_a_paired_t_test_and_its_interval() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((1, 400)) < 0.5, rng.random((1, 400)) < 0.6
    value, half, p = contrast([a, b], [1, -1], [0, 0])
    expected = stats.ttest_rel(a[0].astype(float), b[0].astype(float))
    low, high = expected.confidence_interval()
    assert p == pytest.approx(expected.pvalue)
    assert (value - half, value + half) == pytest.approx((100 * low, 100 * high))


def test_false_alarms_and_coverage_of_groups() -> None:
    """Methods of equal accuracy whose seeds differ: about 5 % of the answers are wrong."""
    rng, wrong = np.random.default_rng(2), 0
    for _ in range(400):
        hard = rng.random(500)
        groups = [np.stack([hard < 0.5 + rng.normal(0, 0.03) for _ in range(3)]) for _ in range(5)]
        value, half, p = contrast(groups, [1 / 2, 1 / 2, -1 / 3, -1 / 3, -1 / 3], [0] * 5)
        assert (p < 0.05) == (abs(value) > half)
        wrong += p < 0.05
    assert 6 <= wrong <= 36  # 20 expected


def test_the_draws_of_episodes_widen_the_interval() -> None:
    a, b = np.full((1, 50), 0.6), np.full((1, 50), 0.5)
    a[0, ::2] -= 0.1
    narrow, wide = (contrast([a, b], [1, -1], [drawn, drawn])[1] for drawn in (0, 1e-3))
    assert wide > 2 * narrow


def test_same_predictions_hold_no_difference() -> None:
    a = np.array([[True, False, True]])
    assert contrast([a, a], [1, -1], [0, 0]) == (0.0, 0.0, 1.0)
    assert spearman([1, 1, 1], [1, 2, 3]) == (0.0, 1.0)


CLAIMS = """
claims:
  - claim: Good methods are better
    source: a paper
    higher: [good]
    lower: [category:contrastive]
    evaluations: [linear, knn, finetune]
  - claim: Bad methods are better
    higher: [bad]
    lower: [good]
    evaluations: [linear]
  - claim: The rank chooses the winner
    predictor: diagnostics:rankme
    evaluations: [linear]
"""


@pytest.fixture
def folder(tmp_path: Path, add_row: Any) -> Path:
    hard = np.random.default_rng(3).random(400)
    for at, (method, share, category) in enumerate(
        [("good", 0.8, "reconstruction"), ("bad", 0.5, "contrastive"), ("worse", 0.45, "contrastive"),
         ("worst", 0.4, "contrastive")]
    ):  # fmt: skip
        for seed in (0, 1):
            for name in ("linear", "knn"):
                add_row(method, seed, hard < (0.5 if name == "knn" else share), name, category=category)
            rank = {"rankme": {"value": 10.0 - at, "n": 400, "low": 1.0, "high": 20.0}}
            add_row(
                method, seed, hard < 0.5, "diagnostics", category=category, predictions=None, headline="rankme",
                metrics={**rank, "top1": {"value": 1.0, "n": 400, "low": 0.0, "high": 2.0}},
            )  # fmt: skip
    write(tmp_path, CLAIMS)
    return tmp_path


def test_an_evaluation_on_several_data_sets_answers_for_each(folder: Path, add_row: Any) -> None:
    right = np.arange(400) % 2 == 0
    for method, correct in (("good", right), ("bad", ~right)):
        elsewhere = {"data": "others", "fingerprints": {"train": "c", "test": "d"}}
        add_row(method, 0, correct, "linear", evaluation=elsewhere)
    found = [a for a in claims(folder, show=quiet) if a.claim.text == "Bad methods are better"]
    assert {(a.where, a.verdict) for a in found} >= {("linear on others", "not decided")} and len(found) == 2


def test_answers(folder: Path) -> None:
    found = claims(folder, show=quiet)
    assert [(a.evaluation, a.verdict) for a in found] == [
        ("linear", "holds"),
        ("knn", "not decided"),
        ("finetune", "not measured: no rows of finetune"),
        ("linear", "the opposite holds"),
        ("linear", "holds"),
    ]
    assert list(found[0].lower or {}) == ["bad", "worse", "worst"]
    hard = np.random.default_rng(3).random(400)
    good, *others = (100 * float((hard < share).mean()) for share in (0.8, 0.5, 0.45, 0.4))
    assert found[0].value == pytest.approx(good - np.mean(others))
    assert found[4].value == 1.0
    text = (folder / "CLAIMS.md").read_text()
    assert "the first ahead in 3 of 3 pairs" in text
    assert "It would have chosen good" in text
    assert "one seed" not in text
    assert "a paper" in text


def test_check_sees_a_page_that_is_out_of_date(folder: Path) -> None:
    claims(folder, show=quiet)
    assert not [line for line in check(folder, show=quiet) if "CLAIMS" in line]
    write(folder, CLAIMS.replace("Good methods are better", "Good methods win"))
    assert [line for line in check(folder, show=quiet) if "CLAIMS.md is out of date" in line]


def test_a_method_without_rows_is_named(folder: Path) -> None:
    write(folder, "claims: [{claim: A, higher: [mae], lower: [good], evaluations: [linear]}]")
    (answer,) = claims(folder, show=quiet)
    assert answer.verdict == "not measured: no rows of mae with linear"
    write(folder, "claims: [{claim: A, higher: [good], lower: [bad], evaluations: [linear], backbone: swin}]")
    (answer,) = claims(folder, out=folder / "elsewhere", show=quiet)
    assert answer.missing and (folder / "elsewhere" / "CLAIMS.md").is_file()


def test_a_setting_names_a_recipe_beside_others_or_alone(tmp_path: Path, add_row: Any) -> None:
    write(tmp_path, 'claims: [{claim: A, higher: ["a (crops 4)"], lower: [b], evaluations: [linear]}]')
    for count in (4, 0):
        add_row("a", 0, np.arange(100) < 50 + count, recipe={"settings": {"crops": count}})
        add_row("b", 0, np.arange(100) < 20)
        (answer,) = claims(tmp_path, show=quiet)
        assert list((answer.higher or {}).values()) == [54]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("claim: A", "claims must be a list"),
        ("claims: [{claim: A, evaluations: [knn], lowest: [a]}]", "unknown key 'lowest'"),
        ("claims: [{claim: A, evaluations: knn, higher: [a], lower: [b]}]", "evaluations must be a list of names"),
        ("claims: [{claim: A, higher: [a], lower: [b]}]", "'evaluations' is missing"),
        ("claims: [{claim: A, evaluations: [knn], higher: [a]}]", "needs higher and lower, or a predictor"),
        ("claims: [{claim: A, evaluations: [knn], predictor: rankme}]", "needs higher and lower, or a predictor"),
        ("claims: [{claim: A, evaluations: [knn], predictor: a:b, lower: [b]}]", "needs higher and lower"),
    ],
)  # fmt: skip
def test_wrong_files(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        read_claims(write(tmp_path, text))
