"""What a suite asks for: its file, and the recipes of all its runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ssl_bench.config.cost import training_flops
from ssl_bench.config.parsing import parse_class, read_yaml
from ssl_bench.config.recipe import Recipe, load_recipe, resolve_method
from ssl_bench.data.datasets import Splits
from ssl_bench.methods import BASELINES, METHODS, RAW_PIXELS, UNTRAINED
from ssl_bench.utils.bounds import Epochs, Flops, Pixels, Seed, types_of
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.files import content_hash
from ssl_bench.utils.references import is_reference
from ssl_bench.utils.shipped import find_yaml, recipe_names
from ssl_bench.utils.starts import start_of


@dataclass(frozen=True)
class Suite:
    """What is compared with what.

    Args:
        name: Of the suite.
        description: One sentence.
        data: Data set for pre-training and evaluation.
        backbone: The one backbone of all methods; left out, each recipe's own.
        methods: Methods beside the baselines (raw pixels, untrained, supervised), which are always there; ``NAME`` or
            ``NAME:RECIPE``.
        recipe: Name of the recipe that each method brings, where none is named.
        seeds: One pre-training run each.
        seeds_of: Seeds of single methods instead, for a baseline that needs no interval.
        evaluations: Protocols.
        transfer: Other data sets on which every encoder is evaluated as well, pre-trained on ``data`` as it is.
        transfer_evaluations: Protocols there.
        training: Training values for methods that bring no recipe of that name.
        overrides: Keys of a recipe, for all methods that train.
        image_size: Pixels of the side of the images, instead of that in the names of the backbones.
        flops: Of each pre-training run, instead of the recipes' numbers of epochs; teachers keep theirs.
    """

    name: str = ""
    description: str = ""
    data: str = ""
    backbone: str = ""
    methods: list[str] = field(default_factory=list)
    recipe: str = ""
    seeds: list[Seed] = field(default_factory=lambda: [0])
    seeds_of: dict[str, list[Seed]] = field(default_factory=dict)
    evaluations: list[str] = field(default_factory=lambda: ["knn", "linear"])
    transfer: list[str] = field(default_factory=list)
    transfer_evaluations: list[str] = field(default_factory=lambda: ["knn", "linear"])
    training: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)
    image_size: Pixels | None = None
    flops: Flops | None = None


def load_suite(name: str, allow_code: bool = False) -> Suite:
    """Read a suite.

    Args:
        name: A shipped suite, or a YAML file.
        allow_code: Let the file name Python files, which run.

    Raises:
        UserError: Unknown name or key, a value of the wrong type, a name that is no plain name, or code that isn't
            allowed.
    """
    path = find_yaml("results", name, "{}/suite.yaml")
    values = read_yaml(path)
    for key in ("name", "description", "data", "methods", "recipe"):
        if key not in values:
            raise UserError(f"{path}: the key {key!r} is missing")
    suite = Suite(**parse_class(Suite, values, str(path)).as_dict())
    if not re.fullmatch(r"\w[\w.-]*", suite.name):
        raise UserError(f"{path}: name is {suite.name!r}; it names a folder: letters, digits, '_', '-' and '.' alone")
    named = [*suite.methods, *suite.evaluations, *suite.transfer_evaluations, suite.data, *suite.transfer]
    named += [suite.backbone, *(str(keys[key]) for keys in (suite.training, suite.overrides) for key in keys)]
    if (code := [text for text in named if is_reference(_split(text)[0])]) and not allow_code:
        raise UserError(f"{path} names Python code that would run: {code[0]}; if you trust it, add --allow-code")
    return suite


def resolve(
    suite: Suite, seeds: Sequence[int] | None = None, budget: float = 1.0, data: Splits | None = None
) -> list[Recipe]:
    """The recipes of all runs, baselines first, each method's seeds together; the suite's seeds unless given.

    The untrained network is there once for each start: the backbone as one or more of the methods initialise it, with
    the statistics of their images.

    Args:
        suite: What is asked for.
        seeds: Instead of the suite's.
        budget: Multiplies the epochs of every recipe, and all that it states in epochs.
        data: The suite's, for the length of runs of equal FLOPs; without it they keep their recipes' lengths.

    Raises:
        UserError: A recipe is wrong.
    """
    trained = dict.fromkeys(name for name in [*BASELINES, *suite.methods] if name not in (UNTRAINED, RAW_PIXELS))
    recipes = [recipe for method in trained for recipe in _of_method(suite, method, seeds, {})]
    starts = [_start(recipe) for recipe in recipes if recipe.cls.trains]
    own = {content_hash(start): start for start in starts}
    untrained = [r for start in own.values() for r in _of_method(suite, UNTRAINED, seeds, start)]
    pixels = _of_method(suite, RAW_PIXELS, seeds, {"backbone": starts[0]["backbone"]})[:1]  # no weights to draw
    if suite.flops and data:
        recipes = [of_flops(recipe, suite.flops, data) for recipe in recipes]
    return [scaled(recipe, budget) for recipe in (*untrained, *pixels, *recipes)]


def of_flops(recipe: Recipe, flops: float, data: Splits) -> Recipe:
    """A recipe with so many epochs that its pre-training takes ``flops``; its schedules are stretched with it."""
    one_epoch = len(recipe.images(data)) * training_flops(recipe, len(data.train.classes))
    return of_length(recipe, float(f"{flops / one_epoch:.3g}"))  # a length that people can read


def of_length(recipe: Recipe, epochs: float) -> Recipe:
    """A recipe with so many epochs; all it states in epochs keeps its share of them: warm-ups, frozen layers."""
    factor = epochs / recipe.training.epochs if recipe.training.epochs else 1.0
    types = types_of(recipe.cls)

    def stretched(value: float) -> float:
        return value if factor == 1 else float(f"{value * factor:.3g}")

    settings = {key: stretched(it) if types.get(key) == Epochs else it for key, it in recipe.settings.items()}
    training = replace(recipe.training, epochs=epochs, warmup_epochs=stretched(recipe.training.warmup_epochs))
    return replace(recipe, training=training, settings=settings)


def _start(recipe: Recipe) -> dict[str, Any]:
    """The keys of a recipe whose encoder is the network that another one starts from."""
    start = start_of(recipe.backbone)
    statistics = dict(zip(("mean", "std"), recipe.cls.input_statistics or (), strict=False))
    return {"backbone": start.pop("name"), **start, **statistics}


def _of_method(suite: Suite, entry: str, seeds: Sequence[int] | None, start: Mapping[str, Any]) -> list[Recipe]:
    """The recipes of one entry of the methods, one a seed; with the keys of a start."""
    method, named = _split(entry)
    name, cls = resolve_method(method)
    recipe = named or (suite.recipe if suite.recipe in (*recipe_names(name), *cls.recipes) else None)
    fallback = {} if recipe or not cls.trains else suite.training
    backbone = {"backbone": suite.backbone} if suite.backbone else {}
    overrides = suite.overrides if cls.trains else {}
    own = suite.seeds_of.get(name, suite.seeds) if seeds is None else seeds
    layer = {**fallback, **backbone, **overrides, **start, "data": suite.data}
    if suite.image_size and not start:
        usual = load_recipe(method, recipe, layer, origin=f"suite {suite.name}").backbone["name"]
        layer["backbone"], found = re.subn(r"_\d+(x\d+)?$", f"_{suite.image_size}", usual)
        if not found:
            raise UserError(f"the name of backbone {usual!r} says no image size that {suite.image_size} could replace")
    return [load_recipe(method, recipe, {**layer, "seed": seed}, origin=f"suite {suite.name}") for seed in own]


def _split(entry: str) -> tuple[str, str]:
    """A method and the name of its recipe, which may be empty.

    Example:
        >>> [_split(text) for text in ("mae:quick", "mine.py:Mine", "mine.py:Mine:short", "mae")]
        [('mae', 'quick'), ('mine.py:Mine', ''), ('mine.py:Mine', 'short'), ('mae', '')]
    """
    method, _, named = entry.rpartition(":")
    return (method, named) if method in METHODS or is_reference(method) else (entry, "")


def scaled(recipe: Recipe, budget: float) -> Recipe:
    """A recipe, and those of its teachers, with ``budget`` times the epochs."""
    teachers = {keyword: scaled(teacher, budget) for keyword, teacher in recipe.teachers.items()}
    return replace(of_length(recipe, recipe.training.epochs * budget), teachers=teachers)
