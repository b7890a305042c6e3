"""Faults at seeded random moments of a suite.

Every attempt at the suite is a process forked from this one, which has everything imported, and leads a group of its
own. A fault ends it with its whole group (SIGKILL), lets an operation on a file fail (a full disk, an input/output
error), or, between two attempts, cuts a file off. The next attempt goes on from what is left.
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
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tiny import blobs, tiny_recipe

from ssl_bench.commands import bench as bench_module
from ssl_bench.config.method_facts import method_facts
from ssl_bench.data.datasets import Splits
from ssl_bench.evaluations.feature_cache import FeatureCache
from ssl_bench.methods import BASELINES, METHODS
from ssl_bench.training.resume import Resume
from ssl_bench.utils.errors import RunError

KINDS = ("kill", "kill while writing", "disk full", "input/output error", "truncate")
STUCK = 300  # seconds after which an attempt counts as hanging
TIMES = {"wall_seconds", "time", "peak_memory_bytes", "checksum", "code"}  # "code": others may edit files meanwhile
# Of evaluators, as small as they go: every one that needs labels or factors.
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
}


def tiny_splits() -> Splits:
    """48 training and 24 test images of 16 px, with a factor of two values."""
    train, test = blobs(48, "train", 0), blobs(24, "test", 1)
    return Splits(*(replace(x, factors={"half": torch.arange(len(x)) // 3 % 2}) for x in (train, test)))


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

    def attempt(self, faults: Faults | None = None, kill_after: float | None = None) -> tuple[int, float]:
        """Run the suite in a forked process.

        Args:
            faults: To do to it when it works with files.
            kill_after: Seconds after which its group is killed.

        Returns:
            Its status, as ``os.waitstatus_to_exitcode`` has it, and seconds.
        """
        started = time.monotonic()
        pid = self.start(faults)
        until = started + (STUCK if kill_after is None else kill_after)
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > until:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                if kill_after is None:
                    raise AssertionError(f"an attempt hung:\n{self.log()}")
                break
            time.sleep(0.005)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)  # whoever it started
        return os.waitstatus_to_exitcode(status), time.monotonic() - started

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
            bench_module.load = lambda *_, **__: self.splits
            Resume.interval = property(lambda self: -1.0, lambda self, value: None)  # type: ignore[assignment]  # every step
            if faults is not None:
                faults.install()
            record_work(self.folder / "work.txt")
            failed = bench_module.bench("suite.yaml", out="results", jobs=1, logger=("csv",), show=lambda _: None)
            status = 1 if [line for line in failed if "Pixels has nothing to train" not in line] else 0
        except (RunError, OSError):  # of the leaderboard; a task that fails is a line
            traceback.print_exc()
            status = 1
        except BaseException:
            traceback.print_exc()
        finally:
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


@dataclass
class Faults:
    """Faults of one attempt, at the n-th operation on a file each: an open for writing, a write, a flush, a rename.

    A single input/output error doesn't end the attempt, so the next fault of the list follows; a full disk stays full
    until the group is killed, some operations later.
    """

    planned: list[tuple[str, int]]
    seen: Path  # a line for each fault that happened
    count: int = 0
    full: bool = False

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

    def _counted(self, call: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.operation()
            return call(*args, **kwargs)

        return counted

    def operation(self) -> None:
        """One more; the fault that is due happens."""
        self.count += 1
        due = bool(self.planned) and self.count >= self.planned[0][1]
        if due:
            kind, _ = self.planned.pop(0)
            os.write(self._done, f"{kind}\n".encode())
            self.count = 0
            if kind == "kill while writing":
                os.killpg(0, signal.SIGKILL)
            if kind == "input/output error":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self.full = True
            self.planned = [("kill while writing", 12)]
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _Raw(io.FileIO):
    faults: Faults

    def write(self, content: Any, /) -> int:
        try:
            self.faults.operation()
        except OSError:
            super().write(bytes(content)[: len(content) // 2])
            raise
        return super().write(content) or 0


def disturbed(bench: Bench, undisturbed: dict[str, Any], seconds: float, n: int, seed: int) -> Counter[str]:
    """Do at least ``n`` faults to a suite, as often from its beginning as that takes; each time its rows must come out.

    Args:
        bench: The suite.
        undisturbed: Its rows without faults.
        seconds: That it took without faults.
        n: Faults.
        seed: Of their kinds and moments.

    Returns:
        How many there were of each kind.
    """
    draw = random.Random(seed)
    happened: Counter[str] = Counter()
    kinds = _kinds(draw)
    each = 1.5 * seconds / max(3, min(n, 25))  # so that a suite takes about as many faults as it has tasks
    while happened.total() < n:
        bench.prepare()
        seen = bench.folder / "faults.txt"
        status = 1
        while happened.total() < n and status != 0:
            kind = next(kinds)
            if kind == "truncate":
                happened[kind] += truncate(bench.folder, draw)
                continue
            if kind == "kill":
                status, _ = bench.attempt(kill_after=0.3 + draw.uniform(0, 2 * each))
                happened[kind] += status == -signal.SIGKILL
            else:
                seen.write_text("")
                planned = [(kind, draw.randint(1, 60)), ("kill while writing", draw.randint(1, 120))]
                status, _ = bench.attempt(Faults(planned, seen))
                happened.update(seen.read_text().splitlines())
            assert status in (0, 1, -signal.SIGKILL), f"status {status} after a {kind}:\n{bench.log()}"
        for _ in range(2):  # once more, where the last error let a task fail
            status, _ = bench.attempt()
            if status == 0:
                break
        assert status == 0, bench.log()
        rows = bench.rows()
        assert rows.keys() == undisturbed.keys(), sorted(rows.keys() ^ undisturbed.keys())
        wrong = [f"{name}{text}" for name in rows for text in differences(rows[name], undisturbed[name])]
        assert not wrong, "\n".join(wrong[:20])
        assert not (left := bench.leftovers()), left
    return happened


def _kinds(draw: random.Random) -> Iterator[str]:
    """All kinds in a random order, over and over."""
    while True:
        yield from draw.sample(KINDS, len(KINDS))


def truncate(folder: Path, draw: random.Random) -> int:
    """Cut off a file that the suite has written: how many that were."""
    files = sorted(path for name in ("runs", "results") for path in (folder / name).rglob("*") if path.is_file())
    files = [path for path in files if path.stat().st_size and path.name not in (".lock", "method.pt")]
    if not files:
        return 0
    path = draw.choice(files)
    os.truncate(path, draw.randrange(path.stat().st_size))
    return 1


def all_methods() -> list[str]:
    """Those that train, whose teachers come along."""
    return [name for name in METHODS if name not in BASELINES]
