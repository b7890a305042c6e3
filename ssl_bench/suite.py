"""Suites: pretrain and evaluate what is missing, one independent task after another, then report."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from ssl_bench.checkpoint import load_encoder
from ssl_bench.data import Splits, hold_out, load
from ssl_bench.errors import RunError, UserError
from ssl_bench.evaluate import judge, load_evaluator
from ssl_bench.evaluations.evaluator import Evaluator
from ssl_bench.files import find_yaml, write_atomic
from ssl_bench.methods import BASELINES
from ssl_bench.pretrain import run, run_folder
from ssl_bench.recipe import Recipe, load_recipe, parse_values, read_yaml, recipe_names, resolve_method
from ssl_bench.results.leaderboard import leaderboard
from ssl_bench.results.rows import origin, row_id, row_path


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
        seeds_of: Seeds of single methods instead, for a yardstick that needs no interval.
        evaluations: Protocols.
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
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One pre-training run and its evaluations. Tasks don't depend on one another."""

    recipe: Recipe
    folder: Path
    rows: dict[str, Path]

    @property
    def title(self) -> str:
        """For example "mae, seed 0"."""
        return f"{self.recipe.method}, seed {self.recipe.seed}"

    @property
    def done(self) -> bool:
        """Whether all rows are there."""
        return all(path.exists() for path in self.rows.values())


def bench(
    suite: str,
    *,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    data: str | None = None,
    out: str | Path | None = None,
    skip_unreadable: bool = False,
    show: Callable[[str], None] = print,
) -> list[str]:
    """Run what is missing of a suite and write the leaderboard: the Python form of ``ssl-bench bench``.

    Args:
        suite: Name of a shipped suite, or a YAML file.
        methods: Instead of the suite's methods; the baselines stay.
        seeds: Instead of the suite's seeds.
        data: Instead of the suite's data set.
        out: Folder of the rows; ``results/<suite>``, with ``-<data>`` when ``data`` is given.
        skip_unreadable: Leave unreadable images out and count them in the rows.
        show: What to do with the lines of the report.

    Returns:
        One line for each task that failed.

    Raises:
        UserError: The request is wrong; nothing has been run.
    """
    plan = load_suite(suite)
    evaluators = {name: load_evaluator(name) for name in plan.evaluations}
    recipes = resolve(plan, methods or plan.methods, seeds, data or plan.data)
    splits = load(data or plan.data, skip_unreadable=skip_unreadable)
    folder = Path(out) if out else Path("results") / (f"{plan.name}-{splits.train.name}" if data else plan.name)
    tasks = [make_task(recipe, splits, evaluators, folder) for recipe in recipes]
    missing = [task for task in tasks if not task.done]
    show(f"{plan.name} on {splits.train.name}: {len(tasks)} runs, {len(tasks) - len(missing)} of them done before")
    failed = []
    for number, task in enumerate(missing, start=1):
        print(f"[{number}/{len(missing)}] {task.title}", file=sys.stderr, flush=True)
        try:
            encoder = load_encoder(run(task.recipe, splits, task.folder))
            judge(encoder, evaluators, splits, folder, plan.name)
        except (UserError, RunError) as error:
            failed.append(f"{task.title}: {error}")
        except Exception as error:  # a method from outside may raise anything; the other tasks still run
            log = write_atomic(task.folder / "error.txt", traceback.format_exc())
            failed.append(f"{task.title}: {type(error).__name__}: {error} (details in {log})")
        if failed and failed[-1].startswith(task.title):
            print(f"failed: {failed[-1]}", file=sys.stderr, flush=True)
    leaderboard(folder, show=show)
    return failed


def load_suite(name: str) -> Suite:
    """Read a suite.

    Raises:
        UserError: Unknown name or key, or a value of the wrong type.
    """
    path = find_yaml("results", name, "{}/suite.yaml")
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_class_arguments(Suite)
    values = {key: (value, str(path)) for key, value in read_yaml(path).items()}
    for key in ("name", "description", "data", "backbone", "methods", "recipe"):
        if key not in values:
            raise UserError(f"{path}: the key {key!r} is missing")
    parsed = parse_values(parser, values)
    return Suite(**parsed.as_dict())


def resolve(plan: Suite, methods: Sequence[str], seeds: Sequence[int] | None, data: str) -> list[Recipe]:
    """The recipes of all runs, baselines first, each method's seeds together; the suite's seeds unless given."""
    recipes = []
    for method in dict.fromkeys([*BASELINES, *methods]):
        name, cls = resolve_method(method)
        brings_recipe = plan.recipe in recipe_names(name)
        fallback = {} if brings_recipe or not cls.trains else plan.training
        own = plan.seeds_of.get(name, plan.seeds) if seeds is None else seeds
        for seed in own[:1] if name == "raw_pixels" else own:  # pixels have no weights to draw
            layer = {**fallback, "backbone": plan.backbone, "data": data, "seed": seed}
            recipes.append(
                load_recipe(method, plan.recipe if brings_recipe else None, layer, origin=f"suite {plan.name}")
            )
    return recipes


def make_task(recipe: Recipe, splits: Splits, evaluators: dict[str, Evaluator], folder: Path) -> Task:
    """A task and the rows it will have; nothing is run."""
    images = hold_out(splits.train)[0] if recipe.cls.uses_labels else splits.train
    encoder = origin(recipe.as_dict(), images.fingerprint)
    ids = {name: row_id(encoder, name, evaluator, splits) for name, evaluator in evaluators.items()}
    rows = {name: row_path(folder, recipe.method, name, ids[name]) for name in evaluators}
    return Task(recipe, run_folder(recipe, splits), rows)
