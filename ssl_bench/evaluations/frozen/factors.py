"""Which factors of an image can be read off its features: one linear probe for each factor of a drawn data set.

The question of disentanglement studies (Eastwood and Williams, ICLR 2018; Locatello et al., ICML 2019,
arXiv:1811.12359) asked of any features: not whether one coordinate holds a factor, but whether a linear map does.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ssl_bench.data.datasets import ImageSet
from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result
from ssl_bench.evaluations.frozen.logistic import Logistic, check_grid
from ssl_bench.evaluations.heads import standardisation
from ssl_bench.metrics.intervals import jackknife_groups, jackknife_metric
from ssl_bench.metrics.metric import Metric, accuracy_metric
from ssl_bench.utils.bounds import Positive
from ssl_bench.utils.errors import RunError, UserError

TURN = {"hue": 360.0, "background_hue": 360.0}  # factors that return to their start, with their period


class Factors(Evaluator):
    """R^2 of ridge regression for each continuous factor, accuracy of logistic regression for each categorical one.

    The headline is the mean skill over all factors: the share of the error of the best constant answer that the
    features remove. That is R^2 for a continuous factor, and (accuracy - a) / (100 - a) for a categorical one, with a
    the accuracy of the class that is commonest in training. Factors on a circle (hues) are regressed as cosine and sine
    of the angle. Penalties are chosen on dev for each factor, the pooling by the mean skill on dev.

    Args:
        ridge: Penalties of the regressions to compare, per image, on standardised features.
        C: Inverse penalties of the classifications to compare, as in `Logistic`.
        poolings: Features to compare.

    Raises:
        UserError: A grid that is empty or not positive.
    """

    version: ClassVar[int] = 3
    needs: ClassVar[str] = "factors"
    metric_help: ClassVar[dict[str, str]] = {
        "skill": "mean over factors of the share of a constant's error that the features remove, percent",
        "FACTOR/r2": "explained variance of a continuous factor, percent; below 0 worse than its mean",
        "FACTOR/top1": "accuracy of a categorical factor, percent",
    }

    def __init__(
        self,
        ridge: tuple[Positive, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        C: tuple[Positive, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        poolings: tuple[str, ...] = ("cls", "mean"),
    ) -> None:
        self.ridge, self.C, self.poolings = tuple(ridge), tuple(C), tuple(poolings)
        check_grid("factors", "ridge", self.ridge)
        check_grid("factors", "C", self.C)
        self.head = Logistic(self.C)

    def run(self, encoder: Encoder, data: Data) -> Result:
        """Choose penalties and pooling on dev, fit again on all training images, score test once.

        Raises:
            UserError: The data set has no factors, or the encoder none of the poolings.
            RunError: Features that mean nothing.
        """
        if not data.train.factors:
            raise UserError(f"factors: {data.train.name} comes without factors; use a drawn data set (shapes)")
        if len(data.test) < 2:
            raise RunError("factors: one test image has no variance to explain")
        fit, dev = self.features(encoder, data.fit), self.features(encoder, data.dev)
        best: dict[str, dict[str, tuple[float, float]]] = {}  # pooling -> factor -> dev skill, strength
        for name in fit:
            found: dict[str, dict[float, float]] = {}
            for factor, strength, error in self._probe(fit[name], data.fit, dev[name], data.dev, None):
                found.setdefault(factor, {})[strength] = skill(error, *_constant(data.fit, data.dev, factor))
            best[name] = {f: max((s, p) for p, s in scores.items()) for f, scores in found.items()}
        dev_skill = {name: float(np.mean([s for s, _ in scores.values()])) for name, scores in best.items()}
        pooling = max(dev_skill, key=dev_skill.__getitem__)

        train, test = self.features(encoder, data.train)[pooling], self.features(encoder, data.test)[pooling]
        strengths = {factor: strength for factor, (_, strength) in best[pooling].items()}
        metrics: dict[str, Metric] = {}
        errors: dict[str, tuple[Tensor, Tensor]] = {}
        for factor, _, error in self._probe(train, data.train, test, data.test, strengths):
            errors[factor] = error, _constant(data.train, data.test, factor)[0]
            if data.train.factors[factor].is_floating_point():
                metrics[f"{factor}/r2"] = _skill_metric([errors[factor]])
            else:
                metrics[f"{factor}/top1"] = accuracy_metric((error == 0).numpy())
        metrics = {"skill": _skill_metric(list(errors.values())), **metrics}
        chosen: dict[str, object] = {
            "pooling": pooling,
            "dev_skill_by_pooling": dev_skill,
            "strength": strengths,
            "dev_skill": {factor: s for factor, (s, _) in best[pooling].items()},
        }
        return Result(metrics, "skill", np.zeros(0, dtype=np.bool_), chosen, pooling)

    def _probe(
        self, x: Tensor, fit: ImageSet, queries: Tensor, asked: ImageSet, strengths: dict[str, float] | None
    ) -> list[tuple[str, float, Tensor]]:
        """(factor, strength, error of each asked image (N,)) for the whole grid, or for the strength of each factor."""
        continuous = [name for name, values in fit.factors.items() if values.is_floating_point()]
        targets = {name: target(name, fit.factors[name]) for name in continuous}
        found = []
        grid = self.ridge if strengths is None else sorted({strengths[name] for name in continuous})
        for penalty, predictions in zip(grid, ridge_regression(x, targets, queries, grid), strict=True):
            for name in continuous:
                if strengths is None or strengths[name] == penalty:
                    error = ((predictions[name] - target(name, asked.factors[name])) ** 2).sum(1)
                    found.append((name, penalty, error))
        for name in fit.factors.keys() - set(continuous):
            known, truth = fit.factors[name], asked.factors[name]
            Cs = self.C if strengths is None else (strengths[name],)
            classes = int(max(known.max(), truth.max())) + 1
            heads, _ = self.head.fit(x, known, classes, Cs)
            predicted = heads.scores(queries).argmax(2)
            found += [(name, c, (predicted[:, i] != truth).double()) for i, c in enumerate(Cs)]
        return sorted(found, key=lambda item: list(fit.factors).index(item[0]))


def target(name: str, values: Tensor) -> Tensor:
    """What is regressed: (N, 1) float64, or cosine and sine (N, 2) for an angle on a full circle.

    Example:
        >>> target("hue", torch.tensor([0.0, 90.0])).round(decimals=3).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if name not in TURN:
        return values.double()[:, None]
    angle = 2 * torch.pi * values.double() / TURN[name]
    return torch.stack([angle.cos(), angle.sin()], 1)


def ridge_regression(
    x: Tensor, targets: dict[str, Tensor], queries: Tensor, penalties: tuple[float, ...] | list[float]
) -> list[dict[str, Tensor]]:
    """Predictions of ridge regression on standardised features with a free intercept, for every penalty and target.

    Minimises |z W + b - t|^2 / N + penalty |W|^2; one eigendecomposition serves all.

    Args:
        x: (N, D) float32.
        targets: Name to (N, T) float64.
        queries: (M, D) float32.
        penalties: Any order.

    Returns:
        For each penalty, name to (M, T) float64.
    """
    if not targets:
        return [{} for _ in penalties]
    mean, scale = standardisation(x)
    t = torch.cat(list(targets.values()), 1)
    centre = t.mean(0)
    gram = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    product = torch.zeros(x.shape[1], t.shape[1], dtype=torch.float64)
    for rows, part in zip(x.split(4096), (t - centre).split(4096), strict=True):
        z = (rows - mean) * scale
        gram += z.T @ z
        product += z.T @ part.float()
    values, basis = torch.linalg.eigh(gram / len(x))
    rotated = basis.T @ product / len(x)
    z = (queries - mean) * scale
    out = []
    for penalty in penalties:
        weight = basis @ (rotated / (values.clamp(min=0) + penalty)[:, None])
        predictions = (z @ weight.float()).double() + centre
        out.append(dict(zip(targets, predictions.split([v.shape[1] for v in targets.values()], 1), strict=True)))
    return out


def _constant(fit: ImageSet, asked: ImageSet, name: str) -> tuple[Tensor]:
    """Error of each asked image (N,) under the best constant answer: the mean of its own split, or fit's mode."""
    truth = asked.factors[name]
    if not truth.is_floating_point():
        return ((truth != torch.bincount(fit.factors[name]).argmax()).double(),)
    t = target(name, truth)
    return (((t - t.mean(0)) ** 2).sum(1),)


def skill(error: Tensor, constant: Tensor) -> float:
    """Share of the constant's error that is removed, percent; 0 when the constant makes none.

    Args:
        error: (N,) float, of the probe.
        constant: (N,) float, of the constant answer.

    Example:
        >>> skill(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 2.0]))
        75.0
    """
    total = float(constant.double().sum())
    return 100 * (1 - float(error.double().sum()) / total) if total > 0 else 0.0


def _skill_metric(errors: list[tuple[Tensor, Tensor]]) -> Metric:
    """Mean skill over factors with its jackknife interval over test images."""
    n = len(errors[0][0])
    groups = jackknife_groups(n)
    value = float(np.mean([skill(*pair) for pair in errors]))
    rest = [groups != g for g in range(int(groups.max()) + 1)]
    left = [float(np.mean([skill(error[kept], constant[kept]) for error, constant in errors])) for kept in rest]
    return jackknife_metric(value, left, n, (-float("inf"), 100.0))
