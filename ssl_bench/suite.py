"""Suites: pretrain and evaluate what is missing, one independent task after another, then report."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ssl_bench.checkpoint import load_encoder
from ssl_bench.data import Splits, hold_out, load
from ssl_bench.errors import RunError, UserError
from ssl_bench.evaluate import judge, load_evaluator
from ssl_bench.evaluations.evaluator import Evaluator
from ssl_bench.files import write_atomic
from ssl_bench.plan import Suite, load_suite, resolve
from ssl_bench.pretrain import run, run_folder
from ssl_bench.reading import memory_budget, processors
from ssl_bench.recipe import Recipe
from ssl_bench.results.leaderboard import leaderboard
from ssl_bench.results.rows import origin, row_id, row_path


@dataclass(frozen=True)
class Exam:
    """What encoders are judged on: a data set and, by name, evaluators."""

    splits: Splits
    evaluators: dict[str, Evaluator]


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

    @property
    def done(self) -> bool:
        """Whether all rows are there."""
        return all(path.exists() for path in self.rows)


def bench(
    suite: str,
    *,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    data: str | None = None,
    budget: float = 1.0,
    out: str | Path | None = None,
    skip_unreadable: bool = False,
    jobs: int | None = None,
    show: Callable[[str], None] = print,
) -> list[str]:
    """Run what is missing of a suite and write the leaderboard: the Python form of ``ssl-bench bench``.

    Args:
        suite: Name of a shipped suite, or a YAML file.
        methods: Instead of the suite's methods; the baselines stay.
        seeds: Instead of the suite's seeds.
        data: Instead of the suite's data set.
        budget: Multiplies the epochs of every recipe.
        out: Folder of the rows; ``results/<suite>``, with ``-<data>`` when ``data`` is given.
        skip_unreadable: Leave unreadable images out and count them in the rows.
        jobs: Tasks to run side by side, sharing the processors; see ``default_jobs``.
        show: What to do with the lines of the report.

    Returns:
        One line for each task that failed.

    Raises:
        UserError: The request is wrong; nothing has been run.
    """
    plan = load_suite(suite)
    named = [(data or plan.data, plan.evaluations), *((other, plan.transfer_evaluations) for other in plan.transfer)]
    asked = [(place, {name: load_evaluator(name) for name in names}) for place, names in named]
    recipes = resolve(plan, methods or plan.methods, seeds, data or plan.data, budget)
    exams = [make_exam(load(place, skip_unreadable=skip_unreadable), evaluators, show) for place, evaluators in asked]
    if not any(exam.evaluators for exam in exams):
        raise UserError(f"{plan.name}: none of its evaluations fits the data")
    splits = exams[0].splits
    folder = Path(out) if out else Path("results") / (f"{plan.name}-{splits.train.name}" if data else plan.name)
    tasks = [make_task(recipe, exams, folder) for recipe in recipes]
    # Backwards: untrained ones, the shortest, come last, and fill the time when the last long run leaves a core free.
    missing = [index for index in reversed(range(len(tasks))) if not tasks[index].done]
    places = ", ".join(exam.splits.train.name for exam in exams)
    show(f"{plan.name} on {places}: {len(tasks)} runs, {len(tasks) - len(missing)} of them done before")
    jobs = min(jobs or default_jobs(), len(missing))
    if jobs > 1:
        work = Work(plan, list(methods or plan.methods), seeds, data or plan.data, budget, exams, folder)
        failed = run_side_by_side(work, missing, jobs)
    else:
        failed = [line for index in missing if (line := run_task(tasks[index], exams, folder, plan.name))]
    leaderboard(folder, show=show)
    return failed


def run_task(task: Task, exams: Sequence[Exam], folder: Path, suite: str) -> str | None:
    """Pre-train and evaluate; a line that says why, if it failed."""
    start = time.monotonic()
    try:
        encoder = load_encoder(run(task.recipe, exams[0].splits, task.folder))
        for exam in exams:
            judge(encoder, exam.evaluators, exam.splits, folder, suite)
    except (UserError, RunError) as error:
        failure = f"{task.title}: {error}"
    except Exception as error:  # a method from outside may raise anything; the other tasks still run
        failure = f"{task.title}: {type(error).__name__}: {error}"
        with contextlib.suppress(RunError):  # a full disk
            failure += f" (details in {write_atomic(task.folder / 'error.txt', traceback.format_exc())})"
    else:
        print(f"{task.title}: done in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        return None
    print(f"failed: {failure}", file=sys.stderr, flush=True)
    return failure


# Several tasks at once ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What a process needs to run any task of a suite. The images are shared, not copied."""

    plan: Suite
    methods: list[str]
    seeds: Sequence[int] | None
    data: str
    budget: float
    exams: list[Exam]
    folder: Path


def default_jobs() -> int:
    """Tasks to run side by side: one a processor where small networks would leave a second thread half idle, and where
    the memory allows 3 GB for each; one on a GPU."""
    if torch.cuda.is_available():
        return 1
    return max(1, min(processors(), memory_budget() * 2 // 3_000_000_000))


def run_side_by_side(work: Work, missing: Sequence[int], jobs: int) -> list[str]:
    """Run tasks in ``jobs`` processes that share the processors; failures as in ``bench``."""
    context = torch.multiprocessing.get_context("spawn")
    queue, results = context.SimpleQueue(), context.SimpleQueue()
    for index in [*missing, *[None] * jobs]:
        queue.put(index)
    threads = max(1, processors() // jobs)
    # No daemons: those may not start the processes that decode images which are not held in memory.
    workers = [context.Process(target=_worker, args=(work, queue, results, threads)) for _ in range(jobs)]
    # Ctrl-C reaches every process of the terminal: the workers are born deaf to it, and this one ends them.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for worker in workers:
        worker.start()
    signal.signal(signal.SIGINT, handler)
    failed: list[str] = []
    left = len(missing)
    try:
        while left:
            while results.empty():
                if not any(worker.is_alive() for worker in workers) and results.empty():
                    return [
                        *failed,
                        f"{left} runs: the processes that ran them have died (out of memory?); try --jobs 1",
                    ]
                time.sleep(0.05)
            line, left = results.get(), left - 1
            failed += [line] if line else []
    finally:
        for worker in workers:
            worker.join(5 if not left else 0)
            worker.kill()  # nothing is lost: every file is written atomically
    return failed


def _worker(work: Work, queue: Any, results: Any, threads: int) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    torch.multiprocessing.set_start_method(None, force=True)  # the platform's again: spawned decoders take seconds each
    recipes = resolve(work.plan, work.methods, work.seeds, work.data, work.budget)
    while (index := queue.get()) is not None:
        task = make_task(recipes[index], work.exams, work.folder)
        results.put(run_task(task, work.exams, work.folder, work.plan.name))


def _die_with_parent() -> None:
    """A killed suite must not go on in the background and race with the one that is started next."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def make_exam(splits: Splits, evaluators: dict[str, Evaluator], show: Callable[[str], None]) -> Exam:
    """The evaluators that this data set has something for, and a line about the others."""
    left_out = [name for name, it in evaluators.items() if it.needs_factors and not splits.train.factors]
    for name in left_out:
        show(f"{name}: left out, {splits.train.name} has no factors; drawn data sets (shapes) do")
    return Exam(splits, {name: it for name, it in evaluators.items() if name not in left_out})


def make_task(recipe: Recipe, exams: Sequence[Exam], folder: Path) -> Task:
    """A task and the rows it will have; nothing is run. Encoders are pre-trained on the data of the first exam."""
    splits = exams[0].splits
    images = hold_out(splits.train)[0] if recipe.cls.uses_labels else splits.train
    encoder = origin(recipe.as_dict(), images.fingerprint)
    rows = [
        row_path(folder, recipe.method, name, row_id(encoder, name, evaluator, exam.splits))
        for exam in exams
        for name, evaluator in exam.evaluators.items()
    ]
    return Task(recipe, run_folder(recipe, splits), rows)
