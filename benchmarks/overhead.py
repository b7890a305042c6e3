"""What the trainer, the schedules, the log, the online k-NN and the resume checkpoints cost on top of a bare loop.

    python benchmarks/overhead.py [--steps 2600] [--repeats 1]

Trains MAE of the suite `quick` with ``ssl_bench.pretrain.run`` and with the same steps in a plain loop, in turn, and
prints the ratio of their medians, and what part of a run the log, the k-NN and the checkpoints take: on a busy machine
only the latter means something. Everything else (views, loss, optimiser) is the same code. The k-NN runs four times,
however long a run is: short runs make it look expensive. 2,600 steps are those of the recipe `quick`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ssl_bench.commands.pretrain import run
from ssl_bench.config.build import build
from ssl_bench.config.recipe import Recipe, load_recipe
from ssl_bench.data.datasets import Splits, load
from ssl_bench.data.loader import Loader
from ssl_bench.training.callbacks import Report
from ssl_bench.training.compute import autocast, best_precision
from ssl_bench.training.monitor import Monitor
from ssl_bench.training.resume import Resume
from ssl_bench.views.make import make_views


def bare(recipe: Recipe, data: Splits, steps: int) -> float:
    """Seconds of ``steps`` steps without any of it."""
    method = build(recipe, data.train.classes)
    optimizer = method.configure_optimizers()
    device = torch.device("cpu")
    generator = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    for batch in Loader(data.train, None, batch_size=recipe.training.batch_size, steps=steps, seed=0):
        views = make_views(batch["images"], method.views, generator)
        with autocast(device, best_precision()):
            loss = method.loss(views)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


def suite(recipe: Recipe, data: Splits) -> float:
    """Seconds of the same steps as users run them, without the set-up before the first."""
    with tempfile.TemporaryDirectory() as folder:
        encoder = torch.load(run(recipe, data, Path(folder)), weights_only=True)
    return encoder["about"]["pretraining"]["wall_seconds"]


@contextmanager
def timed(spent: dict[str, float]) -> Iterator[None]:
    """Add up the seconds that each callback takes after a step."""
    originals = {cls: cls.on_train_batch_end for cls in (Report, Monitor, Resume)}

    def wrap(cls: Any) -> Callable[..., None]:
        def on_train_batch_end(*args: Any, **kwargs: Any) -> None:
            start = time.perf_counter()
            originals[cls](*args, **kwargs)
            spent[cls.__name__] = spent.get(cls.__name__, 0.0) + time.perf_counter() - start

        return on_train_batch_end

    for cls in originals:
        cls.on_train_batch_end = wrap(cls)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for cls, original in originals.items():
            cls.on_train_batch_end = original  # type: ignore[method-assign]


def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = load("shapes")
    recipe = load_recipe("mae", "quick", {"backbone": "vit_micro_patch8_32"})
    per_epoch = len(data.train) // recipe.training.batch_size
    recipe = load_recipe("mae", "quick", {"backbone": "vit_micro_patch8_32", "epochs": arguments.steps / per_epoch})
    bare(recipe, data, 50)  # libraries are loaded and threads are up
    spent: dict[str, float] = {}
    with timed(spent):
        pairs = [(bare(recipe, data, arguments.steps), suite(recipe, data)) for _ in range(arguments.repeats)]
    plain, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    per_step = 1000 * plain / arguments.steps
    print(f"bare loop {plain:.2f} s ({per_step:.1f} ms a step), suite {ours:.2f} s: {ours / plain:.3f}x")
    whole = sum(seconds for _, seconds in pairs)
    names = {"Report": "log", "Monitor": "online k-NN", "Resume": "checkpoints"}
    parts = ", ".join(f"{name} {100 * spent[key] / whole:.2f} %" for key, name in names.items())
    print(f"of the suite's seconds: {parts}, together {100 * sum(spent.values()) / whole:.2f} %")


if __name__ == "__main__":
    main()
