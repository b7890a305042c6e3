"""What a suite asks for: its file, and the recipes of all its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ssl_bench.config.parsing import parse_class, read_yaml
from ssl_bench.config.recipe import Recipe, load_recipe, recipe_names, resolve_method
from ssl_bench.methods import BASELINES, UNTRAINED
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.files import content_hash
from ssl_bench.utils.shipped import find_yaml
from ssl_bench.utils.starts import start_of


@dataclass(frozen=True)
class Suite:
    """What is compared with what.

    Args:
        name: Of the suite.
        description: One sentence.
        data: Data set for pre-training and evaluation.
        backbone: The one backbone of all methods.
        methods: Methods beside the baselines (raw pixels, untrained, supervised), which are always there.
        recipe: Name of the recipe that each method brings.
        seeds: One pre-training run each.
        seeds_of: Seeds of single methods instead, for a baseline that needs no interval.
        evaluations: Protocols.
        transfer: Other data sets on which every encoder is evaluated as well, pre-trained on ``data`` as it is.
        transfer_evaluations: Protocols there.
        training: Training values for methods that bring no recipe of that name.
    """

    name: str = ""
    description: str = ""
    data: str = ""
    backbone: str = ""
    methods: list[str] = field(default_factory=list)
    recipe: str = ""
    seeds: list[int] = field(default_factory=lambda: [0])
    seeds_of: dict[str, list[int]] = field(default_factory=dict)
    evaluations: list[str] = field(default_factory=lambda: ["knn", "linear"])
    transfer: list[str] = field(default_factory=list)
    transfer_evaluations: list[str] = field(default_factory=lambda: ["knn", "linear"])
    training: dict[str, Any] = field(default_factory=dict)


def load_suite(name: str) -> Suite:
    """Read a suite.

    Raises:
        UserError: Unknown name or key, or a value of the wrong type.
    """
    path = find_yaml("results", name, "{}/suite.yaml")
    values = read_yaml(path)
    for key in ("name", "description", "data", "backbone", "methods", "recipe"):
        if key not in values:
            raise UserError(f"{path}: the key {key!r} is missing")
    parsed = parse_class(Suite, values, str(path))
    return Suite(**parsed.as_dict())


def resolve(
    suite: Suite, methods: Sequence[str], seeds: Sequence[int] | None, data: str, budget: float = 1.0
) -> list[Recipe]:
    """The recipes of all runs, baselines first, each method's seeds together; the suite's seeds unless given.

    The untrained network is there once for each start: the backbone as one or more of the methods initialise it.
    """
    trained = {name: None for name in [*BASELINES, *methods] if name != UNTRAINED}
    recipes = [recipe for method in trained for recipe in _of_method(suite, method, seeds, data, {})]
    starts = {content_hash(start_of(r.backbone)): start_of(r.backbone) for r in recipes if r.cls.trains}
    untrained = [r for start in starts.values() for r in _of_method(suite, UNTRAINED, seeds, data, start)]
    return [scaled(recipe, budget) for recipe in (*untrained, *recipes)]


def _of_method(
    suite: Suite, method: str, seeds: Sequence[int] | None, data: str, start: Mapping[str, Any]
) -> list[Recipe]:
    """The recipes of one method, one a seed; with the options of a start."""
    name, cls = resolve_method(method)
    brings_recipe = suite.recipe in recipe_names(name)
    fallback = {} if brings_recipe or not cls.trains else suite.training
    own = suite.seeds_of.get(name, suite.seeds) if seeds is None else seeds
    named = suite.recipe if brings_recipe else None
    options = {key: value for key, value in start.items() if key != "name"}
    return [
        load_recipe(
            method,
            named,
            {**fallback, **options, "backbone": suite.backbone, "data": data, "seed": seed},
            origin=f"suite {suite.name}",
        )
        for seed in (own[:1] if name == "raw_pixels" else own)  # pixels have no weights to draw
    ]


def scaled(recipe: Recipe, budget: float) -> Recipe:
    """A recipe, and those of its teachers, with ``budget`` times the epochs."""
    training = replace(recipe.training, epochs=recipe.training.epochs * budget)
    teachers = {keyword: scaled(teacher, budget) for keyword, teacher in recipe.teachers.items()}
    return replace(recipe, training=training, teachers=teachers)
