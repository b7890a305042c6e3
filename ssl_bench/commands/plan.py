"""What the runs of a suite are and cost, said before any of them starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ssl_bench.config.cost import training_flops
from ssl_bench.config.recipe import Recipe
from ssl_bench.data.datasets import Splits
from ssl_bench.results.papers.cost import DEVICES
from ssl_bench.training.compute import best_precision, device_name
from ssl_bench.training.speed import matrix_rate
from ssl_bench.utils.progress import duration

FEW_STEPS = 100  # of a training: the shortest runs of our suites have a few more
SHARE = 0.5  # of the rate of matrix products, in training: `ssl-bench speed` measures it (37 to 75 % on CPUs)


def short_runs(recipes: Sequence[Recipe], data: Splits) -> Iterator[str]:
    """What to say of runs that end before they have learnt anything: large networks in suites of equal FLOPs.

    Args:
        recipes: Of a suite that says FLOPs.
        data: What they are trained on.
    """
    for recipe in {(each.method, each.backbone["name"]): each for each in recipes if each.cls.trains}.values():
        steps = recipe.training.epochs * len(recipe.images(data)) / recipe.training.batch_size
        if 0 < steps < FEW_STEPS:
            who = f"{recipe.method} on {recipe.backbone['name']}"
            yield f"{who}: the suite's FLOPs are {steps:.0f} steps; a larger --budget gives it more"


def plan(runs: Sequence[tuple[Recipe, str]], data: Splits) -> list[str]:
    """A line for each run that trains, and the sum of what is missing. Evaluations are not counted.

    Args:
        runs: Recipes, and what is left: "to do", "to evaluate" if the encoder is there, or "done".
        data: What they are trained on.
    """
    lines, total, free = [], 0.0, 0
    for recipe, state in runs:
        if not recipe.cls.trains:
            free += 1
            continue
        parts = {recipe.method: recipe, **{f"its {keyword}": teacher for keyword, teacher in recipe.teachers.items()}}
        costs = []
        for name, part in parts.items():
            images = part.training.epochs * len(part.images(data))
            flops = images * training_flops(part, len(data.train.classes))
            total += flops if state == "to do" else 0
            costs.append(f"{name} {part.training.epochs:g} epochs, {images:,.0f} images, {flops / 1e12:,.3g} TFLOP")
        where = f"{recipe.method}, seed {recipe.seed} on {recipe.backbone['name']}"
        lines.append(f"{where} ({state}): {'; '.join(costs)}")
    if free:
        lines.append(f"{free} more runs of baselines that train nothing")
    todo = f"to do: {total / 1e12:,.4g} TFLOP of pre-training (teachers that several runs share are trained once)"
    if not total:
        return [*lines, todo]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    here = SHARE * matrix_rate(device, best_precision())
    rates = {
        f"here, {device_name(device)}": here / 1e12,
        **{name: speed for name, speed in DEVICES.items() if name != "cpu"},
    }
    hours = ", ".join(f"{duration(total / 1e12 / speed)} at {speed:.3g} ({name})" for name, speed in rates.items())
    return [*lines, f"{todo}; by sustained TFLOPS: {hours}"]
