"""Claims about methods, answered by the rows of a folder: a contrast of two groups, or a predictor of a result."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from ssl_bench.config.parsing import read_yaml
from ssl_bench.results.leaderboard.aggregate import Aggregate
from ssl_bench.results.leaderboard.significance import ALPHA, draws_variance, holm
from ssl_bench.results.leaderboard.table import Table
from ssl_bench.results.rows.predictions import Predictions, correctness
from ssl_bench.utils.errors import UserError, unknown

FILE = "claims.yaml"
KEYS = ("claim", "source", "higher", "lower", "predictor", "evaluations", "backbone")
CATEGORY = "category:"  # all methods of a category that compete, instead of one method
FEWEST = 4  # encoders for a rank correlation


@dataclass(frozen=True)
class Claim:
    """What is said, and what in a leaderboard would show it.

    Attributes:
        text: The sentence.
        source: Who says it.
        higher: Methods that are said to be better: labels of a leaderboard, names of methods (all their recipes),
            ``METHOD (SETTING VALUE)``, or ``category:NAME``.
        lower: Methods that they are compared with.
        predictor: ``EVALUATION:METRIC`` that is said to order the methods as an evaluation does; instead of the two.
        evaluations: Where it is said to be seen; one answer each.
        backbone: Only aggregates on this backbone; all when empty.
    """

    text: str
    source: str = ""
    higher: tuple[str, ...] = ()
    lower: tuple[str, ...] = ()
    predictor: str = ""
    evaluations: tuple[str, ...] = ()
    backbone: str = ""


@dataclass(frozen=True)
class Answer:
    """What the rows say to a claim in one evaluation.

    Attributes:
        claim: The claim.
        evaluation: Name of the evaluation.
        data: Where, if the evaluation answers on several data sets.
        missing: What isn't measured; nothing else is filled in then.
        higher: Label -> mean over seeds, percent; of a predictor: its value.
        lower: Likewise; of a predictor: the evaluation's value.
        value: Mean of the one group minus that of the other, percent; of a predictor: Spearman's rank correlation.
        half: Half the width of its 95 % interval; 0 for a correlation.
        p: Two-sided, of no difference or no correlation; adjusted by Holm over the answers of a file.
        seeds: The fewest seeds of a method in it.
    """

    claim: Claim
    evaluation: str
    data: str = ""
    missing: str = ""
    higher: Mapping[str, float] | None = None
    lower: Mapping[str, float] | None = None
    value: float = 0.0
    half: float = 0.0
    p: float = 1.0
    seeds: int = 0

    @property
    def where(self) -> str:
        """The evaluation, and the data if needed."""
        return f"{self.evaluation} on {self.data}" if self.data else self.evaluation

    @property
    def verdict(self) -> str:
        """In words."""
        if self.missing:
            return f"not measured: {self.missing}"
        if self.p >= ALPHA:
            return "not decided"
        return "holds" if self.value > 0 else "the opposite holds"


def read_claims(path: Path) -> list[Claim]:
    """The claims of a file.

    Raises:
        UserError: Not such a file, or an unknown or missing key.
    """
    entries = read_yaml(path).get("claims")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path}: claims must be a list of keys and values")
    return [_claim(entry, f"{path}, claim {at}") for at, entry in enumerate(entries, 1)]


def _claim(entry: Mapping[str, Any], where: str) -> Claim:
    for key, value in entry.items():
        if key not in KEYS:
            raise UserError(f"{where}: {unknown('key', key, KEYS)}")
        several = key in ("higher", "lower", "evaluations")
        if not isinstance(value, list if several else str) or (several and not all(isinstance(v, str) for v in value)):
            raise UserError(f"{where}: {key} must be {'a list of names' if several else 'a text'}")
    for key in ("claim", "evaluations"):
        if not entry.get(key):
            raise UserError(f"{where}: the key {key!r} is missing")
    higher, lower, predictor = (entry.get(key, ()) for key in ("higher", "lower", "predictor"))
    groups = bool(higher) and bool(lower)
    if groups == bool(predictor) or (predictor and (higher or lower or ":" not in predictor)):
        raise UserError(f"{where}: it needs higher and lower, or a predictor, such as diagnostics:rankme")
    return Claim(
        text=entry["claim"],
        source=entry.get("source", ""),
        higher=tuple(higher),
        lower=tuple(lower),
        predictor=predictor or "",
        evaluations=tuple(entry["evaluations"]),
        backbone=entry.get("backbone", ""),
    )


def answers(claims: Sequence[Claim], tables: Sequence[Table]) -> list[Answer]:
    """An answer for each evaluation of each claim on each data set; p-values adjusted over all of them.

    Args:
        claims: Of ``read_claims``.
        tables: Of a leaderboard: all that answer a claim count; of one data set the first.
    """
    found = [
        each for claim in claims for evaluation in claim.evaluations for each in _answers(claim, evaluation, tables)
    ]
    at = [index for index, answer in enumerate(found) if not answer.missing]
    for index, p in zip(at, holm(np.array([found[index].p for index in at])), strict=True):
        found[index] = replace(found[index], p=float(p))
    return found


def _answers(claim: Claim, evaluation: str, tables: Sequence[Table]) -> list[Answer]:
    found: dict[str, Answer] = {}
    missing = Answer(claim, evaluation, missing=f"no rows of {evaluation}")
    for table in tables:
        if evaluation in table.evaluations:
            members = [a for a in table.aggregates if evaluation in a.cells and claim.backbone in ("", a.backbone)]
            answer = _contrast(missing, members) if claim.higher else _correlation(missing, members)
            if answer.missing:
                missing = answer
            else:
                found.setdefault(table.title.split(" (")[0], answer)
    if len(found) < 2:
        return list(found.values()) or [missing]
    return [replace(answer, data=data) for data, answer in found.items()]


def _contrast(answer: Answer, members: Sequence[Aggregate]) -> Answer:
    groups = []
    for names in (answer.claim.higher, answer.claim.lower):
        group: list[Aggregate] = []
        for name in names:
            found = _named(members, name)
            if not found:
                return replace(answer, missing=f"no rows of {name} with {answer.evaluation}")
            group += found
        groups.append(list(dict.fromkeys(group)))
    rows = [each.by_evaluation[answer.evaluation] for group in groups for each in group]
    right = [predictions for each in rows if (predictions := correctness(each)) is not None]
    if len(right) < len(rows):
        return replace(answer, missing="some row has no predictions for each image")
    weights = [sign / len(group) for sign, group in zip((1, -1), groups, strict=True) for _ in group]
    drawn = [draws_variance(*each) for each in zip(rows, right, strict=True)]
    value, half, p = contrast(right, weights, drawn)
    higher, lower = ({each.label: each.cells[answer.evaluation].mean for each in group} for group in groups)
    return replace(
        answer, missing="", higher=higher, lower=lower, value=value, half=half, p=p, seeds=min(map(len, rows))
    )


def _named(members: Sequence[Aggregate], name: str) -> list[Aggregate]:
    """Those of a category, else the one of a label, else all of a method, or those of it with a setting."""
    if name.startswith(CATEGORY):
        return [each for each in members if each.competes and each.first["category"] == name.removeprefix(CATEGORY)]
    method, key, value = (re.fullmatch(r"(.+) \((\w+) (.+)\)", name) or re.fullmatch("(.*)()()", name)).groups()  # type: ignore[union-attr]
    of = [each for each in members if each.method == method and (not key or str(each.settings.get(key)) == value)]
    return [each for each in members if each.label == name] or of


def _correlation(answer: Answer, members: Sequence[Aggregate]) -> Answer:
    evaluation, _, metric = answer.claim.predictor.partition(":")
    trained = [each for each in members if each.competes and each.first["category"] not in (None, "baseline")]
    cells = [(each, each.cell(evaluation, metric)) for each in trained]
    pairs = [(each, cell) for each, cell in cells if cell is not None]
    if len(pairs) < FEWEST:
        return replace(answer, missing=f"{len(pairs)} methods with {answer.claim.predictor}, {FEWEST} are needed")
    predicted = {each.label: cell.mean for each, cell in pairs}
    measured = {each.label: each.cells[answer.evaluation].mean for each, _ in pairs}
    rho, p = spearman(list(predicted.values()), list(measured.values()))
    seeds = min(each.cells[answer.evaluation].seeds for each, _ in pairs)
    return replace(answer, missing="", higher=predicted, lower=measured, value=rho, p=p, seeds=seeds)


# Tests ----------------------------------------------------------------------------------------------------------------


def contrast(
    predictions: Sequence[Predictions], weights: Sequence[float], drawn: Sequence[float]
) -> tuple[float, float, float]:
    """A weighted sum of the accuracies of M methods on the same n images, its interval and test.

    The variance is that of the weighted sum over the images, of each method's mean over its seeds (none where it has
    one), and of draws; degrees of freedom by Welch and Satterthwaite.

    Args:
        predictions: M arrays (seeds, n), bool or shares in [0, 1].
        weights: M; 1 / methods of one group, -1 / methods of the other.
        drawn: M, ``draws_variance``.

    Returns:
        The sum in percent, half the width of its 95 % interval, and the two-sided p-value of zero.

    Example:
        >>> a = np.array([[True] * 60 + [False] * 40])
        >>> [round(x, 2) for x in contrast([a, ~a], [1, -1], [0, 0])]
        [20.0, 19.54, 0.04]
    """
    w = np.asarray(weights, float)
    over_images = np.tensordot(w, np.stack([each.mean(0) for each in predictions]), 1)
    n = over_images.size
    images = float(over_images.var(ddof=1)) / n
    counts = np.array([len(each) for each in predictions])
    seeds = np.array([w_m**2 * each.mean(1).var(ddof=1) / len(each) if len(each) > 1 else 0.0
                      for w_m, each in zip(w, predictions, strict=True)])  # fmt: skip
    variance = images + float(seeds.sum()) + float((w**2 * np.asarray(drawn, float)).sum())
    spread = images**2 / (n - 1) + float((seeds**2 / np.maximum(counts - 1, 1)).sum())
    difference = float(over_images.mean())
    if variance < 1e-18:
        return 100 * difference, 0.0, float(abs(difference) < 1e-12)
    freedom, error = variance**2 / spread if spread else np.inf, variance**0.5
    p = 2 * special.stdtr(freedom, -abs(difference) / error)
    return 100 * difference, 100 * error * float(special.stdtrit(freedom, 0.975)), float(p)


def spearman(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Spearman's rank correlation of two lists of n values, and its two-sided p-value by Student's t.

    Example:
        >>> rho, p = spearman([1, 2, 3, 4, 5], [1, 3, 2, 4, 5])
        >>> round(rho, 2), round(p, 3)
        (0.9, 0.037)
    """
    from scipy import stats  # a second to import

    if min(np.ptp(a), np.ptp(b)) == 0:
        return 0.0, 1.0
    found = stats.spearmanr(a, b)
    return float(found.statistic), float(found.pvalue)
