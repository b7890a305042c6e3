"""How fast a method trains, and where the time goes: the real training loop, stopped after some of its steps."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning import Callback, LightningModule, Trainer

from ssl_bench.data.datasets import ImageSet
from ssl_bench.methods.method import Method
from ssl_bench.training.callbacks import Report
from ssl_bench.training.compute import Cost, autocast, best_precision, device_name, peak_memory, step_cost
from ssl_bench.training.loggers import DEFAULT
from ssl_bench.training.monitor import Monitor
from ssl_bench.training.resume import Resume
from ssl_bench.training.trainer import train
from ssl_bench.utils.stopwatch import Stopwatch, part

T = TypeVar("T", bound=Callback)
WARM = 2  # steps before the clock starts: memory is taken, the optimiser makes its state, kernels are chosen
PARTS = ("data", "views", "forward", "backward", "optimiser", "EMA", "log")  # of every step
ONCE = ("monitor", "checkpoint")  # now and then


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        name: In the report.
        build: Makes the method, with its teachers.
        images: What it trains on.
        monitored: Bank and queries of the online k-NN.
        steps: Of a whole run: it says how often there is a log point, a monitor or a checkpoint.
    """

    name: str
    build: Callable[[], Method]
    images: ImageSet
    monitored: tuple[ImageSet, ImageSet]
    steps: int


@dataclass
class Speed:
    """What was measured of a setting.

    Attributes:
        name: The setting's.
        device: In words.
        precision: Of the training.
        batch_size: Images a step.
        cost: Of one image.
        image_rates: Images a second, of each round.
        matrix_rates: FLOP/s of a large matrix product in the same precision, before each round.
        split: Seconds a step, by ``PARTS`` and ``loop``, which is all else.
        once: Seconds of one ``monitor`` and one ``checkpoint``.
        shares: The same as parts of a whole run's time, with the log and the loop.
        memory: Bytes at most, as in a row.
    """

    name: str
    device: str
    precision: str
    batch_size: int
    cost: Cost
    image_rates: list[float] = field(default_factory=list)
    matrix_rates: list[float] = field(default_factory=list)
    split: dict[str, float] = field(default_factory=dict)
    once: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    memory: int = 0

    @property
    def images(self) -> float:
        """Images a second, the median."""
        return statistics.median(self.image_rates)

    @property
    def flops(self) -> float:
        """FLOP/s."""
        return self.images * self.cost.flops

    @property
    def matrix(self) -> float:
        """FLOP/s of the matrix product, the median."""
        return statistics.median(self.matrix_rates)

    @property
    def waiting(self) -> float:
        """Part of a step in which it waits for data."""
        return self.split["data"] / sum(self.split.values())


class _Window(Callback):
    """Times some steps of a training and ends it.

    Args:
        steps: How many, after ``WARM`` others.
        split: Also find the parts, waiting for the device at each, and take one monitor and one checkpoint at the end.
    """

    def __init__(self, steps: int, split: bool = False) -> None:
        self.steps, self.split = steps, split
        self.watch = Stopwatch(_wait)
        self.stack = contextlib.ExitStack()
        self.backward = contextlib.ExitStack()
        self.seconds = 0.0
        self.memory = 0
        self.monitors, self.interval = 0, 0.0

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        for callback in self.others(trainer, Report):
            callback.progress = None  # the table is what is shown

    def others(self, trainer: Trainer, kind: type[T]) -> list[T]:
        """The trainer's callbacks of a kind."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        return [callback for callback in callbacks if isinstance(callback, kind)]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        self.backward.enter_context(part("backward"))

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.backward.close()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == WARM:
            _wait()
            if self.split:
                for monitor in self.others(trainer, Monitor):
                    _look(monitor, pl_module)  # what it imports is loaded
                self.stack.enter_context(self.watch)
            self.seconds = -time.perf_counter()
        elif trainer.global_step == WARM + self.steps:
            _wait()
            self.seconds += time.perf_counter()
            self.memory = peak_memory(pl_module.device)
            if self.split:
                for monitor in self.others(trainer, Monitor):
                    _look(monitor, pl_module)
                    self.monitors = monitor.times
                for resume in self.others(trainer, Resume):
                    resume.save(trainer)
                    self.interval = resume.interval
            self.stack.close()
            trainer.should_stop = True


def measure(settings: Sequence[Setting], *, rounds: int = 5, seconds: float = 5.0) -> list[Speed]:
    """Train each setting for a while, in turn, round by round, so that other load on the machine meets all alike.

    Args:
        settings: One, or several to compare.
        rounds: How often.
        seconds: Of a round of one setting, about.
    """
    found, lengths = [], []
    for setting in settings:  # how long a step is; libraries are loaded and threads are up
        method = setting.build()
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        config = method.training_config
        cost = step_cost(method.to(device), config.batch_size, len(setting.images.classes))
        precision = best_precision(config.precision)
        found.append(Speed(setting.name, device_name(device), precision, config.batch_size, cost))
        step = _run(setting, method, _Window(1)).seconds
        lengths.append(max(1, min(round(seconds / step), setting.steps - WARM - 1)))
    for number in range(rounds + 1):
        for setting, speed, steps in zip(settings, found, lengths, strict=True):
            split = number == rounds
            if not split:
                speed.matrix_rates.append(matrix_rate(device, speed.precision))
            window = _run(setting, setting.build(), _Window(steps, split))
            if split:
                _split(speed, window, setting.steps)
            else:
                speed.image_rates.append(speed.batch_size * steps / window.seconds)
                speed.memory = max(speed.memory, window.memory)
    return found


def matrix_rate(device: torch.device, precision: str, seconds: float = 0.2) -> float:
    """FLOP/s of a square matrix product: 1,024 a side on a CPU, 8,192 on a GPU."""
    n = 8192 if device.type == "cuda" else 1024
    times: list[float] = []
    with torch.no_grad(), autocast(device, precision):
        a = torch.randn(n, n, device=device)
        a = (a[:1] @ a[:, :1]).new_ones(n, n)  # of the dtype that products have here: nothing is cast below
        while len(times) < 3 or sum(times) < seconds:
            start = time.perf_counter()
            a @ a
            _wait()
            times.append(time.perf_counter() - start)
    return 2 * n**3 / statistics.median(times)


def _run(setting: Setting, method: Method, window: _Window) -> _Window:
    """Train until the window closes."""
    config, per_epoch = method.training_config, len(setting.images) // method.training_config.batch_size
    method.training_config = replace(config, epochs=setting.steps / per_epoch)
    with tempfile.TemporaryDirectory() as folder:
        train(
            method,
            setting.images,
            Path(folder),
            setting.name,
            monitored=setting.monitored,
            loggers=DEFAULT,
            callbacks=[window],
        )
    return window


def _split(speed: Speed, window: _Window, steps: int) -> None:
    """The parts of a step, and of a whole run of so many steps."""
    seconds = window.watch.seconds
    speed.split = {name: seconds[name] / window.steps for name in PARTS}
    speed.split["loop"] = max(0.0, window.seconds / window.steps - sum(speed.split.values()))
    speed.once = {name: seconds[name] for name in ONCE}
    training = steps * speed.batch_size / speed.images
    monitors, checkpoint = window.monitors * speed.once["monitor"], speed.once["checkpoint"]
    saved = checkpoint * (training // max(window.interval, 50 * checkpoint))
    own = {"monitor": monitors, "checkpoint": saved, **{name: speed.split[name] * steps for name in ("log", "loop")}}
    speed.shares = {name: spent / (training + monitors + saved) for name, spent in own.items()}


def _look(monitor: Monitor, method: Any) -> None:
    if hasattr(method.encoder, "codebook_size"):
        monitor.codes(method, late=False)
    elif hasattr(method.encoder, "features"):
        monitor.measure(method)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
