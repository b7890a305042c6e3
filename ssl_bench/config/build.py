"""From a recipe to a method with its backbone, at initial weights."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from lightning import seed_everything

from ssl_bench.backbones import build_backbone
from ssl_bench.config.recipe import FROM_DATA, Recipe
from ssl_bench.methods.method import Method


def build(recipe: Recipe, classes: Sequence[str]) -> Method:
    """The method with its backbone at the initial weights of the recipe's seed; its teachers are still to be set.

    Args:
        recipe: Resolved.
        classes: Names of the classes of the data.
    """
    seed_everything(recipe.seed, verbose=False)
    known = {"num_classes": len(classes), "class_names": tuple(classes)}
    wanted = {key: known[key] for key in FROM_DATA if key in inspect.signature(recipe.cls).parameters}
    method = recipe.cls(build_backbone(**recipe.backbone), **wanted, **recipe.settings)
    method.training_config, method.seed = recipe.training, recipe.seed
    return method


def build_with_teachers(recipe: Recipe, classes: Sequence[str]) -> Method:
    """Like ``build``, with teachers of the suite that are untrained too: for what depends on shapes alone."""
    method = build(recipe, classes)
    for keyword in recipe.cls.teachers:
        teacher = recipe.teachers.get(keyword)
        method.set_teacher(keyword, build_with_teachers(teacher, classes).encoder if teacher else None)
    return method
