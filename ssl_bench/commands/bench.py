"""Suites: pretrain and evaluate what is missing, one independent task after another, then report."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ssl_bench.checkpoints.encoder_file import load_encoder
from ssl_bench.commands.evaluate import run_evaluations, shrinks
from ssl_bench.commands.evaluation_sets import EvaluationSet, load_sets, unfit
from ssl_bench.commands.leaderboard import leaderboard
from ssl_bench.commands.plan import plan, short_runs
from ssl_bench.commands.pretrain import run, run_folder
from ssl_bench.config.build import check_step
from ssl_bench.config.recipe import Recipe
from ssl_bench.config.suite import Suite, load_suite, resolve
from ssl_bench.data.shrinking import shrunk
from ssl_bench.launch.pool import default_jobs, run_in_pool
from ssl_bench.launch.slurm import Cluster, run_on_slurm
from ssl_bench.results.rows.identity import number_identity
from ssl_bench.results.rows.predictions import is_measured
from ssl_bench.results.rows.row import Row, row_path
from ssl_bench.training.loggers import DEFAULT, check_loggers
from ssl_bench.utils.errors import RunError, UserError, unknown
from ssl_bench.utils.files import content_hash, is_whole, remove_leftovers, write_atomic
from ssl_bench.utils.identity import identify
from ssl_bench.utils.progress import duration

LAUNCHERS = ("local", "slurm")


@dataclass(frozen=True)
class Task:
    """One pre-training run and its evaluations. Tasks don't depend on one another."""

    recipe: Recipe
    folder: Path
    rows: list[Path]

    @property
    def title(self) -> str:
        """For example "mae, seed 0"."""
        return f"{self.recipe.method}, seed {self.recipe.seed}"

    def weight(self, equal: bool) -> float:
        """About how long it takes beside the others, teachers and evaluations included.

        Args:
            equal: Whether the suite gives every training the same FLOPs; otherwise epochs are counted.
        """
        left = () if self.state == "to evaluate" else (self.recipe, *self.recipe.teachers.values())
        trained = [each for each in left if each.cls.trains]
        return 0.2 + len(trained) if equal else 1 + sum(each.training.epochs for each in trained)

    @property
    def state(self) -> str:
        """ "done", "to evaluate" if the encoder is there, or "to do"."""
        return "done" if self.done else "to evaluate" if is_whole(self.folder / "encoder.pt") else "to do"

    @property
    def done(self) -> bool:
        """Whether all rows are there, whole."""
        return all(is_measured(path) for path in self.rows)


class SuiteProgress:
    """How far a suite is, on standard error.

    Args:
        weights: Index of each task that is to run -> how long it takes beside the others.
    """

    def __init__(self, weights: Mapping[int, float]) -> None:
        self.weights, self.started, self.ended = weights, time.monotonic(), 0.0
        self.count = 0

    def finished(self, index: int) -> None:
        """Say so of a task that has ended, and about how long the others will take."""
        self.count += 1
        self.ended += self.weights[index]
        total = sum(self.weights.values())
        left = (time.monotonic() - self.started) / self.ended * (total - self.ended)
        known = self.ended >= total / 10  # the first short run took as long as starting and reading the images
        more = f", about {duration(left)} left" if known and self.count < len(self.weights) else ""
        print(f"{self.count} of {len(self.weights)} runs done{more}", file=sys.stderr, flush=True)


def bench(
    suite: str,
    *,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    data: str | None = None,
    backbone: str | None = None,
    image_size: int | None = None,
    evaluations: Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    budget: float = 1.0,
    out: str | Path | None = None,
    skip_unreadable: bool = False,
    jobs: int | None = None,
    logger: Sequence[str] = DEFAULT,
    allow_code: bool = False,
    launcher: str = "local",
    cluster: Cluster = Cluster(),  # noqa: B008, it is frozen
    dry_run: bool = False,
    show: Callable[[str], None] = print,
) -> list[str]:
    """Run what is missing of a suite and write the leaderboard: the Python form of ``ssl-bench bench``.

    Args:
        suite: Name of a shipped suite, or a YAML file.
        methods: Instead of the suite's methods; the baselines stay.
        seeds: Instead of the suite's seeds.
        data: Instead of the suite's data set.
        backbone: Of all methods, instead of the suite's or each recipe's own.
        image_size: Pixels of the side of the images, instead of that in the names of the backbones.
        evaluations: Instead of the suite's: names, YAML files or ``file.py:Class``.
        overrides: Keys of a recipe, for all methods that train.
        budget: Multiplies the epochs of every recipe, and all that it states in epochs.
        out: Folder of the rows; ``results/<suite>``, with ``-<data>`` when ``data`` is given.
        skip_unreadable: Leave unreadable images out and count them in the rows.
        jobs: Tasks to run side by side, sharing the processors; see ``default_jobs``.
        logger: Where the learning curves go: any of csv, tensorboard, wandb.
        allow_code: Let the suite's file name Python files, which run.
        launcher: "local": here; "slurm": each task is a job, and this command waits for them.
        cluster: What each job asks for.
        dry_run: Only show the runs and what each costs.
        show: What to do with the lines of the report.

    Returns:
        One line for each task that failed.

    Raises:
        UserError: The request is wrong; nothing has been run.
    """
    check_loggers(logger)
    if launcher not in LAUNCHERS:
        raise unknown("launcher", launcher, LAUNCHERS)
    given: dict[str, Any] = {"methods": methods, "data": data, "backbone": backbone, "image_size": image_size}
    given |= {"evaluations": evaluations, "overrides": overrides}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    asked: Suite = replace(load_suite(suite, allow_code), **changes)
    if asked.flops and "epochs" in asked.overrides:
        show(f"{asked.name}: {asked.overrides['epochs']} epochs each, as asked for, instead of {asked.flops:g} FLOPs")
        asked = replace(asked, flops=None)
    wanted = resolve(asked, seeds, budget)  # a wrong recipe is said before images are read
    for recipe in {recipe.cls: recipe for recipe in wanted}.values():
        check_step(recipe)
    sets = load_sets(asked, skip_unreadable, show)
    if not any(each.named for each in sets):
        raise UserError(f"{asked.name}: none of its evaluations fits the data")
    splits = sets[0].splits
    recipes = resolve(asked, seeds, budget, splits) if asked.flops else wanted  # only FLOPs depend on the images
    folder = Path(out) if out else Path("results") / (f"{asked.name}-{splits.train.name}" if data else asked.name)
    tasks = [make_task(recipe, sets, folder) for recipe in recipes]
    # Backwards: untrained ones, the shortest, come last, and fill the time when the last long run leaves a core free.
    # One of them is the first, so that there are numbers to see in the first minute.
    missing = [index for index in (0, *reversed(range(1, len(tasks)))) if not tasks[index].done]
    names = ", ".join(each.splits.train.name for each in sets)
    for left_out in filter(None, dict.fromkeys(unfit(recipe, each) for recipe in recipes for each in sets)):
        show(left_out)
    for short in short_runs(recipes, splits) if asked.flops else ():
        show(short)
    show(f"{asked.name} on {names}: {len(tasks)} runs, {len(tasks) - len(missing)} of them done before")
    for number, each in enumerate(sets):
        larger = number == 0 or shrinks(each.evaluators.values())  # the first is trained on, too
        if larger and (said := shrunk(each.splits.train, [recipe.backbone["name"] for recipe in recipes])):
            show(f"{said}; --image-size shows more of them")
    if dry_run:
        for planned in plan([(task.recipe, task.state) for task in tasks], splits):
            show(planned)
        return []
    for place in (folder, folder / "rows"):
        remove_leftovers(place)
    for done in set(range(len(tasks))) - set(missing):
        _forget_error(tasks[done].folder)  # of a try that failed when its last row was written
    jobs = min(jobs or default_jobs(), len(missing)) if launcher == "local" else 0
    progress = SuiteProgress({index: tasks[index].weight(bool(asked.flops)) for index in missing})
    failed: list[str] = []
    if launcher == "slurm" and missing:
        asked_for = content_hash([str(folder.absolute()), [str(path) for path in tasks[0].rows]])[:6]
        jobs_of = {index: f"{tasks[index].folder.name}-{asked_for}" for index in missing}
        again = (asked, seeds, budget, skip_unreadable, folder, logger)
        failed = run_on_slurm(_prepare_anew, again, jobs_of, cluster, progress.finished)
    elif jobs > 1:
        failed = run_in_pool(_prepare, (asked, seeds, budget, sets, folder, logger), missing, jobs, progress.finished)
    else:
        for index in missing:
            line = run_task(tasks[index], sets, folder, asked.name, logger)
            failed += [line] if line else []
            progress.finished(index)
    for task in tasks if not failed else ():
        remove_leftovers(task.folder)
    if failed and not any((folder / "rows").glob("*.json")):
        return failed  # there is nothing to rank
    try:
        leaderboard(folder, show=show)
    except UserError as error:  # of a damaged row whose run has failed
        if not failed:
            raise
        failed.append(str(error))
    return failed


def run_task(
    task: Task, sets: Sequence[EvaluationSet], folder: Path, suite: str, logger: Sequence[str] = DEFAULT
) -> str | None:
    """Pre-train and evaluate; a line that says why, if it failed."""
    start = time.monotonic()
    try:
        encoder = load_encoder(run(task.recipe, sets[0].splits, task.folder, logger))
        rows: list[Row] = []
        for each in sets:
            rows += run_evaluations(encoder, each.of(task.recipe), each.splits, folder, suite)
    except (UserError, RunError) as error:
        failure = f"{task.title}: {error}"
    except Exception as error:  # a method from outside may raise anything; the other tasks still run
        failure = f"{task.title}: {type(error).__name__}: {error}"
        with contextlib.suppress(RunError):  # a full disk
            failure += f" (details in {write_atomic(task.folder / 'error.txt', traceback.format_exc())})"
    else:
        _forget_error(task.folder)  # of an earlier try
        said = f"{task.title}: {_numbers(rows) or 'no evaluation fits'}; {duration(time.monotonic() - start)}"
        print(said, file=sys.stderr, flush=True)
        return None
    print(f"failed: {failure}", file=sys.stderr, flush=True)
    return failure


def _numbers(rows: Sequence[Row]) -> str:
    """What was measured on each data set, for people: headlines alone."""
    several = len({row["evaluation"]["data"] for row in rows}) > 1
    return ", ".join(
        f"{row['evaluation']['name']}{' on ' + row['evaluation']['data'] if several else ''} "
        f"{row['metrics'][row['headline']]['value']:{'.1f' if row.in_percent else '.3g'}}"
        for row in rows
    )


def _forget_error(folder: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / "error.txt").unlink()


def _prepare(
    suite: Suite,
    seeds: Sequence[int] | None,
    budget: float,
    sets: list[EvaluationSet],
    folder: Path,
    logger: Sequence[str],
) -> Callable[[int], str | None]:
    """What runs a task of the suite by its index, made anew in each process of the pool."""
    recipes = resolve(suite, seeds, budget, sets[0].splits)
    return lambda index: run_task(make_task(recipes[index], sets, folder), sets, folder, suite.name, logger)


def _prepare_anew(
    suite: Suite,
    seeds: Sequence[int] | None,
    budget: float,
    skip_unreadable: bool,
    folder: Path,
    logger: Sequence[str],
) -> Callable[[int], str | None]:
    """The same in a job of another machine, which loads the images itself."""
    return _prepare(suite, seeds, budget, load_sets(suite, skip_unreadable, lambda _: None), folder, logger)


def make_task(recipe: Recipe, sets: Sequence[EvaluationSet], folder: Path) -> Task:
    """A task and the rows it will have; nothing is run. Encoders are pre-trained on the data of the first set."""
    splits = sets[0].splits
    encoder = recipe.identity(splits)
    rows = [
        row_path(folder, recipe.method, name, identify(number_identity(encoder, name, evaluator, each.splits)))
        for each in sets
        for name, evaluator in each.of(recipe).items()
    ]
    return Task(recipe, run_folder(recipe, splits), rows)
