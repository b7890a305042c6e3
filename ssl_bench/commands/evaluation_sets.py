"""What the encoders of a suite are evaluated on: data sets with the evaluators that fit them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ssl_bench.backbones import family_of
from ssl_bench.commands.evaluate import lacking
from ssl_bench.config.protocol import named_evaluator, named_evaluators, tried_evaluator
from ssl_bench.config.recipe import Recipe
from ssl_bench.config.suite import Suite
from ssl_bench.data.datasets import Splits, load
from ssl_bench.evaluations.evaluator import Evaluator
from ssl_bench.methods.baselines import RawPixels


@dataclass(frozen=True)
class EvaluationSet:
    """What encoders are evaluated on: a data set, and evaluators as they are named. Travels between processes."""

    splits: Splits
    named: tuple[str, ...]

    @cached_property
    def evaluators(self) -> dict[str, Evaluator]:
        """Name in tables -> evaluator."""
        return named_evaluators(self.named)

    def of(self, recipe: Recipe) -> dict[str, Evaluator]:
        """Those whose needs the encoder of a recipe meets."""
        backbone = {"name": "pixels_32x32"} if issubclass(recipe.cls, RawPixels) else recipe.backbone
        able = family_of(backbone["name"]).abilities(**backbone)
        return {name: each for name, each in self.evaluators.items() if able.issuperset(each.encoder_needs)}

    def __getstate__(self) -> dict[str, Any]:
        return {"splits": self.splits, "named": self.named}  # a class of a user's file has no module elsewhere


def load_sets(suite: Suite, skip_unreadable: bool, show: Callable[[str], None]) -> list[EvaluationSet]:
    """The data sets of a suite with their evaluators, that of the pre-training first."""
    places = [(suite.data, suite.evaluations), *((other, suite.transfer_evaluations) for other in suite.transfer)]
    for names in {tuple(names) for _, names in places}:
        named_evaluators(names, tried_evaluator)  # a mistake is said before images are read
    return [make_evaluation_set(load(place, skip_unreadable=skip_unreadable), names, show) for place, names in places]


def make_evaluation_set(splits: Splits, named: Sequence[str], show: Callable[[str], None]) -> EvaluationSet:
    """The evaluators that this data set has something for, and a line about the others."""
    kept = []
    for given in named:
        name, evaluator = named_evaluator(given)
        if lacks := lacking(evaluator, splits):
            show(f"{name}: left out, {lacks}")
        else:
            kept.append(given)
    return EvaluationSet(splits, tuple(kept))


def unfit(recipe: Recipe, evaluated: EvaluationSet) -> str:
    """A line about the evaluations that a backbone can't have; empty where it can have all."""
    left = [name for name in evaluated.evaluators if name not in evaluated.of(recipe)]
    encoder = recipe.method if issubclass(recipe.cls, RawPixels) else recipe.backbone["name"]
    return f"{', '.join(left)}: left out for {encoder}, which can't have it" if left else ""
