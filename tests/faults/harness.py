"""Faults at seeded random moments of a suite.

Every attempt at the suite is a process forked from this one, which has everything imported, and leads a group of its
own. A fault ends it with its whole group (SIGKILL), lets an operation on a file fail (a full disk, an input/output
error), or, between two attempts, cuts a file off. The next attempt goes on from what is left. Where a fault happens is
counted in operations on files within one method, teacher or evaluator, so that all of them get their share.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import blobs, tiny_recipe

from ssl_bench.commands import bench as bench_module
from ssl_bench.commands import evaluation_sets
from ssl_bench.config.method_facts import method_facts
from ssl_bench.data.datasets import ImageSet, Splits
from ssl_bench.data.targets import Search, Searches, Targets
from ssl_bench.evaluations import EVALUATIONS
from ssl_bench.evaluations.feature_cache import FeatureCache
from ssl_bench.methods import BASELINES, METHODS
from ssl_bench.training.resume import Resume
from ssl_bench.utils.errors import RunError

SUITE = "suite"
NAMES = {cls: name for name, cls in EVALUATIONS.items()}
KINDS = ("kill", "kill while writing", "disk full", "input/output error", "truncate")
STUCK = 1200  # seconds after which an attempt counts as hanging
TIMES = {"wall_seconds", "time", "peak_memory_bytes", "checksum", "code"}  # "code": others may edit files meanwhile
# Of evaluators, as small as they go: every one.
EVALUATORS: dict[str, dict[str, Any]] = {
    "knn": {"k": [1, 5], "headline_k": 5},
    "linear": {"min_steps": 10, "epochs": 1, "batch_size": 16},
    "logistic": {"C": [0.01, 1.0]},
    "lowshot": {"fractions": [0.2], "draws": 2, "C": [0.01, 1.0]},
    "fewshot": {"shots": [1], "headline_shots": 1, "episodes": 3, "dev_episodes": 2},
    "probe": {"epochs": 2, "batch_size": 16, "base_lr": [0.01, 0.1], "poolings": ["mean"]},
    "finetune": {"epochs": 1, "batch_size": 16, "base_lr": [0.01, 0.02], "randaugment": "", "warmup_epochs": 0},
    "clustering": {"restarts": 2, "dev_restarts": 1, "iterations": 3},
    "retrieval": {},
    "robustness": {"corruptions": ["gaussian_noise"], "severities": [3], "C": [0.1]},
    "factors": {},
    "diagnostics": {"images": 12},
    "segmentation-knn": {"memory": 200, "k": 5},
    "segmentation-linear": {"steps": 4, "warmup": 1, "batch_size": 4, "crop": 16, "stride": 16},
    "patch-linear": {"C": [0.1, 1.0], "patches": 200},
    "vos": {"frames": 2, "radius": 2, "topk": 2, "short_side": 16},
    "attention-jaccard": {},
    "detection": {
        **{"steps": 2, "warmup": 0, "batch_size": 4, "lr": 0.01, "short_side": 16, "long_side": 16, "channels": 8},
        **{"hidden": 16, "mask_layers": 1, "proposals": 20, "sampled": 8},
    },
    "segmentation-finetune": {
        **{"steps": 2, "warmup": 1, "batch_size": 4, "crop": 16, "stride": 12, "channels": 8, "drop_path": 0.0},
    },
    "multilabel": {"C": [0.01, 1.0]},
    "depth-linear": {"steps": 3, "warmup": 1, "batch_size": 4, "crop": [16, 16], "bins": 8, "border": [0, 0, 0, 0]},
    "video-linear": {"frames": 4, "C": [0.01, 1.0]},
    "copy-detection": {"images": 8, "whitening": 20},
    "landmarks": {"side": 12, "kind": "cls+gem"},
}


def tiny_splits() -> Splits:
    """48 training and 24 test images of 16 px with all that evaluators may ask for."""
    return Splits(*(with_targets(images) for images in (blobs(48, "train", 0), blobs(24, "test", 1))))


def with_targets(images: ImageSet) -> ImageSet:
    """The square of each image is its object, of its class, and nearer; four images are a clip. Each image searches
    for those of its class among the first training images. A factor has two values."""
    every = torch.arange(len(images))
    square = (images.images == 220).any(dim=1).to(torch.uint8)  # type: ignore[union-attr]
    masks = square * (1 + images.labels.to(torch.uint8))[:, None, None]
    places = [np.flatnonzero(np.arange(30) % 3 == k) for k in range(3)]
    found = [Search(places[k][:5], places[k][5:], places[(k + 1) % 3][:2]) for k in images.labels.tolist()]
    maps = {"depths": 5.0 - masks.float() / 2, "searches": Searches(found)}
    targets = Targets(("none", *images.classes), masks, square, every // 4, **maps)
    return replace(images, factors={"half": every // 3 % 2}, targets=targets)


@dataclass
class Bench:
    """A suite in a folder, which an attempt completes or a fault ends."""

    methods: Sequence[str]
    evaluations: Sequence[str]
    folder: Path
    splits: Splits = field(default_factory=tiny_splits)

    def prepare(self) -> None:
        """Write the suite and its protocols."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("protocols", "tmp"):
            (self.folder / name).mkdir(parents=True)
        for name in self.evaluations:
            content = {"evaluation": name, **EVALUATORS[name]}
            (self.folder / "protocols" / f"{name}.yaml").write_text(json.dumps(content))
        suite = {
            "name": "toy",
            "description": "for tests",
            "data": "blobs",
            "recipe": "none_has_it",
            "methods": [self._entry(name) for name in self.methods],
            "evaluations": [f"protocols/{name}.yaml" for name in self.evaluations],
            "training": {"epochs": 1, "batch_size": 8, "backbone": "vit_nano_patch4_16"},
        }
        (self.folder / "suite.yaml").write_text(json.dumps(suite))

    def _entry(self, method: str) -> str:
        recipe = json.loads(Path(tiny_recipe(method)).read_text())
        recipe["backbone"] = method_facts(method).tiny_backbones[0]
        path = self.folder / "protocols" / f"{method}-recipe.yaml"
        path.write_text(json.dumps(recipe))
        return f"{method}:protocols/{path.name}"

    def attempt(self, faults: Faults | None = None) -> int:
        """Run the suite in a forked process.

        Args:
            faults: To do to it.

        Returns:
            Its status, as ``os.waitstatus_to_exitcode`` has it.
        """
        pid = self.start(faults)
        until = time.monotonic() + STUCK
        hung = False
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            if hung := time.monotonic() > until:
                break
            time.sleep(0.005)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)  # whoever it started
        assert not hung, f"an attempt hung:\n{self.log()}"
        return os.waitstatus_to_exitcode(ended[1])

    def start(self, faults: Faults | None = None) -> int:
        """The process of an attempt, which leads a group of its own."""
        sys.stdout.flush(), sys.stderr.flush()
        if (pid := os.fork()) == 0:
            self._child(faults)
        return pid

    def _child(self, faults: Faults | None) -> None:
        status = 70
        try:
            os.setsid()
            os.chdir(self.folder)
            log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1), os.dup2(log, 2)
            sys.stdout = sys.stderr = os.fdopen(log, "w", buffering=1)
            os.environ["TMPDIR"] = str(self.folder / "tmp")
            evaluation_sets.load = lambda *_, **__: self.splits
            Resume.interval = property(lambda self: -1.0, lambda self, value: None)  # type: ignore[assignment]  # every step
            if faults is not None:
                faults.install()
            record_work(self.folder / "work.txt")
            failed = bench_module.bench("suite.yaml", out="results", jobs=1, logger=("csv",), show=lambda _: None)
            status = 1 if [line for line in failed if "has nothing to train" not in line] else 0
        except (RunError, OSError):  # of the leaderboard; a task that fails is a line
            traceback.print_exc()
            status = 1
        except BaseException:
            traceback.print_exc()
        finally:
            if faults is not None:
                faults.report()
            os._exit(status)

    def log(self) -> str:
        """The end of what attempts have said."""
        return (self.folder / "log.txt").read_text(errors="replace")[-6000:]

    def rows(self) -> dict[str, Any]:
        """Name of each file in ``rows/`` -> its content, without what depends on the time."""
        found: dict[str, Any] = {}
        for path in sorted((self.folder / "results" / "rows").iterdir()):
            found[path.name] = (
                without_times(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()
            )
        return found

    def leftovers(self) -> list[str]:
        """What a finished suite has no use for."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        wrong = [
            path
            for path in files
            if path.suffix in (".part", ".ckpt") or path.name == "error.txt" or path.parent.name == "tmp"
        ]
        evaluations = self.folder / "runs" / "evaluations"
        wrong += list(evaluations.iterdir()) if evaluations.exists() else []
        wrong += (self.folder / "runs" / "features").glob("*/.[!l]*")
        return sorted(str(path.relative_to(self.folder)) for path in wrong)


def record_work(path: Path) -> None:
    """From here on, this process writes a line for each encoder it makes, each row, and each extraction it finishes."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def recorded(call: Any, name: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            found = call(*args, **kwargs)
            os.write(file, f"{name(*args)}\n".encode())
            return found

        return wrapped

    pretrain: Any = sys.modules["ssl_bench.commands.pretrain"]
    evaluate: Any = sys.modules["ssl_bench.commands.evaluate"]
    pretrain._make = recorded(pretrain._make, lambda recipe, data, folder, *_: f"encoder {folder.name}")
    evaluate.write_row = recorded(evaluate.write_row, lambda path, *_: f"row {path.name}")
    fill = recorded(FeatureCache.fill, lambda cache, poolings, *_: f"features {cache.folder.name} {poolings}")
    FeatureCache.fill = fill  # type: ignore[method-assign]


def without_times(value: Any) -> Any:
    """A row without its time columns, at any depth."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def differences(value: Any, expected: Any, key: str = "") -> list[str]:
    """The fields of a row that aren't as expected."""
    if isinstance(value, dict) and isinstance(expected, dict):
        keys = dict.fromkeys([*value, *expected])
        return [text for k in keys for text in differences(value.get(k), expected.get(k), f"{key}.{k}")]
    return [] if value == expected else [f"{key}: {value!r}, not {expected!r}"]


@dataclass(frozen=True)
class Fault:
    """One of ``KINDS``.

    Args:
        kind: Which.
        where: The method, teacher or evaluator that is at work; ``SUITE`` before and after them.
        moment: In [0, 1), of the operations on files there.
    """

    kind: str
    where: str
    moment: float


@dataclass
class Faults:
    """Faults of one attempt, each at an operation on a file: an open for writing, a write, a flush, a rename.

    A single input/output error doesn't end the attempt; a full disk stays full until the group is killed, some
    operations later; a kill comes a moment after the operation, wherever the process is then.
    """

    planned: dict[int, tuple[Fault, int]]  # number of the fault -> what, and at which operation there
    seen: Path  # a line with the number of each fault that happened
    counts: Counter[str] = field(default_factory=Counter)
    where: str = SUITE
    full: int = 0  # operations that still fail

    def install(self) -> None:
        """From here on, every operation in this process counts."""
        self._done = os.open(self.seen, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        real = io.open

        def opened(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
            if not set(mode) & set("wax+") or "b" not in mode or buffering == 0:
                if set(mode) & set("wax+"):
                    self.operation()
                return real(file, mode, buffering, *args, **kwargs)
            self.operation()
            raw = _Raw(file, mode.replace("b", ""), **{k: v for k, v in kwargs.items() if k in ("closefd", "opener")})
            raw.faults = self
            return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)

        builtins.open = io.open = opened  # type: ignore[assignment]
        for name in ("replace", "rename", "fsync"):
            setattr(os, name, self._counted(getattr(os, name)))
        pretrain: Any = sys.modules["ssl_bench.commands.pretrain"]
        evaluate: Any = sys.modules["ssl_bench.commands.evaluate"]
        bench_module.run_task = self._at(bench_module.run_task, lambda task, *_: task.recipe.method)
        pretrain._make = self._at(pretrain._make, lambda recipe, *_: recipe.method)
        evaluate._run = self._at(evaluate._run, lambda evaluator, *_: NAMES[type(evaluator)])
        evaluate.write_row = self._at(evaluate.write_row, lambda path, row, *_: row["evaluation"]["name"])

    def report(self) -> None:
        """Write how many operations there were of each method, teacher and evaluator."""
        self.planned.clear()
        self.full = 0
        self.seen.with_suffix(".json").write_text(json.dumps(self.counts))

    def _at(self, call: Any, name: Any) -> Any:
        def inside(*args: Any, **kwargs: Any) -> Any:
            before, self.where = self.where, name(*args)
            try:
                return call(*args, **kwargs)
            finally:
                self.where = before

        return inside

    def _counted(self, call: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.operation()
            return call(*args, **kwargs)

        return counted

    def operation(self) -> None:
        """One more; the fault that is due happens."""
        self.counts[self.where] += 1
        if self.full:
            self.full -= 1
            if not self.full:
                os.killpg(0, signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        here = [(number, at) for number, (fault, at) in self.planned.items() if fault.where == self.where]
        due = [number for number, at in here if self.counts[self.where] >= at]
        if not due:
            return
        number = due[0]
        fault, _ = self.planned.pop(number)
        if fault.kind == "kill":
            threading.Timer(0.1 * (fault.moment * 7 % 1), self._kill, [number]).start()
            return
        os.write(self._done, f"{number}\n".encode())
        if fault.kind in ("kill while writing", "truncate"):
            os.killpg(0, signal.SIGKILL)
        if fault.kind == "input/output error":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.full = 12
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _kill(self, number: int) -> None:
        os.write(self._done, f"{number}\n".encode())
        os.killpg(0, signal.SIGKILL)


class _Raw(io.FileIO):
    faults: Faults

    def write(self, content: Any, /) -> int:
        try:
            self.faults.operation()
        except OSError:
            super().write(bytes(content)[: len(content) // 2])
            raise
        return super().write(content) or 0


@dataclass(frozen=True)
class Undisturbed:
    """What a suite does without faults: its rows, and operations on files by method, teacher and evaluator."""

    rows: dict[str, Any]
    operations: dict[str, int]


def undisturbed(bench: Bench) -> Undisturbed:
    """Run a suite once."""
    bench.prepare()
    seen = bench.folder / "faults.txt"
    status = bench.attempt(Faults({}, seen))
    assert status == 0, bench.log()
    assert not bench.leftovers()
    return Undisturbed(bench.rows(), json.loads(seen.with_suffix(".json").read_text()))


def disturbed(bench: Bench, expected: Undisturbed, n: int, seed: int) -> list[Fault]:
    """Do ``n`` faults to a suite, as often from its beginning as that takes; each time its rows must come out.

    Args:
        bench: The suite.
        expected: The same without faults.
        n: Faults, spread over all methods, teachers and evaluators.
        seed: Of their kinds and moments.

    Returns:
        Those that happened: all.
    """
    draw = random.Random(seed)
    places, kinds = _over_and_over(draw, list(expected.operations)), _over_and_over(draw, KINDS)
    left = {number: Fault(next(kinds), next(places), draw.random()) for number in range(n)}
    happened: list[Fault] = []
    while left:
        bench.prepare()
        seen = bench.folder / "faults.txt"
        status, idle = 1, 0
        before: Counter[str] = Counter()
        while status != 0:
            planned, again = {}, Counter(before)
            for number, fault in left.items():  # what is left of a place has fewer operations each time
                again[fault.where] += 1
                operations = expected.operations[fault.where] * 0.5 ** (again[fault.where] - 1)
                planned[number] = (fault, 1 + int(fault.moment * operations))
            seen.write_text("")
            status = bench.attempt(Faults(planned, seen))
            new = [left.pop(number) for number in map(int, seen.read_text().split())]
            assert status in (0, 1, -signal.SIGKILL), f"status {status} after {new}:\n{bench.log()}"
            idle = 0 if new else idle + 1
            assert idle < 3, f"it doesn't end:\n{bench.log()}"
            for fault in new:
                before[fault.where] += 1
                if fault.kind == "truncate":
                    truncate(bench.folder, draw)
            happened += new
        _check(bench, expected)
    return happened


def _check(bench: Bench, expected: Undisturbed) -> None:
    """See that a suite has ended as it does without faults."""
    rows = bench.rows()
    assert rows.keys() == expected.rows.keys(), sorted(rows.keys() ^ expected.rows.keys())
    wrong = [f"{name}{text}" for name in rows for text in differences(rows[name], expected.rows[name])]
    assert not wrong, "\n".join(wrong[:20])
    assert not (left := bench.leftovers()), left


def _over_and_over(draw: random.Random, items: Sequence[str]) -> Iterator[str]:
    """All in a random order, again and again."""
    while True:
        yield from draw.sample(items, len(items))


def truncate(folder: Path, draw: random.Random) -> None:
    """Cut off a file that the suite has written."""
    files = sorted(path for name in ("runs", "results") for path in (folder / name).rglob("*") if path.is_file())
    files = [path for path in files if path.stat().st_size and path.name not in (".lock", "method.pt")]
    if files:
        path = draw.choice(files)
        os.truncate(path, draw.randrange(path.stat().st_size))


def all_methods() -> list[str]:
    """Those that train, whose teachers come along."""
    return [name for name in METHODS if name not in BASELINES]
