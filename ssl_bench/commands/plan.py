"""What the runs of a suite are and cost, said before any of them starts."""

from __future__ import annotations

from collections.abc import Sequence

from ssl_bench.config.cost import training_flops
from ssl_bench.config.recipe import Recipe
from ssl_bench.data.datasets import Splits
from ssl_bench.results.papers.cost import DEVICES


def plan(runs: Sequence[tuple[Recipe, bool]], data: Splits) -> list[str]:
    """A line for each run that trains, and the sum of what is missing. Evaluations are not counted.

    Args:
        runs: Recipes, and whether all of their rows are there.
        data: What they are trained on.
    """
    lines, total = [], 0.0
    for recipe, done in runs:
        if not recipe.cls.trains:
            continue
        parts = {recipe.method: recipe, **{f"its {keyword}": teacher for keyword, teacher in recipe.teachers.items()}}
        costs = []
        for name, part in parts.items():
            images = part.training.epochs * len(part.images(data))
            flops = images * training_flops(part, len(data.train.classes))
            total += 0 if done else flops
            costs.append(f"{name} {part.training.epochs:g} epochs, {images:,.0f} images, {flops / 1e12:,.3g} TFLOP")
        state = "done" if done else "to do"
        where = f"{recipe.method}, seed {recipe.seed} on {recipe.backbone['name']}"
        lines.append(f"{where} ({state}): {'; '.join(costs)}")
    hours = ", ".join(f"{total / 1e12 / speed / 3600:,.2g} h at {speed:g} ({name})" for name, speed in DEVICES.items())
    return [
        *lines,
        f"to do: {total / 1e12:,.4g} TFLOP of pre-training (teachers that several runs share are trained once); "
        f"by sustained TFLOPS: {hours}",
    ]
