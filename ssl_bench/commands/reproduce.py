"""Run what a table still misses: the plan and its cost first, then the runs that this machine can do."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ssl_bench.commands.convert import convert
from ssl_bench.commands.evaluate import evaluate
from ssl_bench.commands.pretrain import pretrain
from ssl_bench.config.cost import training_flops
from ssl_bench.config.method_facts import Release
from ssl_bench.config.parsing import read_yaml
from ssl_bench.data.names import DATASETS
from ssl_bench.results.papers.cost import DEVICES, IMAGES, encoder_flops, evaluation_passes, fleets, state_bytes
from ssl_bench.results.papers.matching import (
    ROWS,
    Measurement,
    Run,
    convert_arguments,
    file_path,
    find_evaluation,
    find_run,
    matching,
    measurement,
    released,
)
from ssl_bench.results.papers.published import Number, published
from ssl_bench.results.papers.table_spec import Definition, read_definition
from ssl_bench.results.rows.row import Row, read_rows
from ssl_bench.results.text import plain
from ssl_bench.utils.errors import RunError, UserError, unknown
from ssl_bench.utils.shipped import shipped


@dataclass
class Step:
    """One encoder of a table, what of it is measured and what isn't.

    Attributes:
        wanted: The encoder, with any of its evaluations.
        run: How to pre-train it, or why that can't be done.
        release: The authors' file that holds it, where one is known.
        found: That file on this machine.
        missing: (evaluation, data) still to be measured that can be.
        done: Cells that have a row.
        skipped: Cells that can't be measured, by reason.
    """

    wanted: Measurement
    run: Run | str
    release: Release | None
    found: Path | None
    missing: list[tuple[str, str]] = field(default_factory=list)
    done: int = 0
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def skip(self) -> str:
        """Why nothing of it can be run here; empty when something can."""
        if not self.missing:
            return "; ".join(self.skipped) or "measured"
        if self.lacking and len(self.lacking) == len({data for _, data in self.missing}):
            return self.lacking[0]
        if self.found:
            return ""
        return self.run if isinstance(self.run, str) else missing_data(self.wanted.data)

    @cached_property
    def lacking(self) -> list[str]:
        """Which data of evaluations aren't here."""
        return [reason for data in dict.fromkeys(data for _, data in self.missing) if (reason := missing_data(data))]

    @cached_property
    def evaluations(self) -> dict[str, list[str]]:
        """Data -> the missing evaluations on it: those whose data is here, or all where none is."""
        found: dict[str, list[str]] = {}
        for name, data in self.missing:
            found.setdefault(data, []).append(name)
        return {data: names for data, names in found.items() if not missing_data(data)} or found

    @cached_property
    def cost(self) -> tuple[float, float] | None:
        """Images seen and FLOPs of pre-training (none with the authors' file) and of the missing evaluations."""
        images, flops = 0.0, 0.0
        if not self.found and not isinstance(self.run, str):
            if self.wanted.data not in IMAGES or self.wanted.epochs is None:
                return None
            images = IMAGES[self.wanted.data][0] * self.wanted.epochs
            flops = images * training_flops(self.run.resolved, IMAGES[self.wanted.data][2])
        if not IMAGES.keys() >= self.evaluations.keys():
            return None
        for evaluation, data in ((name, data) for data, names in self.evaluations.items() for name in names):
            train, test, _ = IMAGES[data]
            protocol = read_yaml(shipped("evaluations") / f"{evaluation}.yaml")
            encoded, trained = evaluation_passes(protocol)
            images += train * (encoded + trained) + test
            flops += (train * encoded + test) * encoder_flops(self.wanted.backbone)
            flops += train * trained * encoder_flops(self.wanted.backbone, backward=True) if trained else 0
        return images, flops

    def commands(self) -> list[str]:
        """What makes the encoder, then what evaluates it, on each of the data."""
        make = ""
        if self.found and self.release:
            make = f"ssl-bench convert {convert_arguments(self.wanted, self.release)}"
        elif isinstance(self.run, Run):
            make = f"ssl-bench pretrain {self.run.arguments}"
        on = self.evaluations.items()
        return [make, *(f"ssl-bench evaluate --evaluations {','.join(names)} --data {data}" for data, names in on)]


def reproduce(
    name: str,
    *,
    dry_run: bool = False,
    out: str | Path = ROWS,
    checkpoints: str | Path = "checkpoints",
    device: str = "h100",
    tflops: float | None = None,
    max_hours: float | None = None,
    show: Callable[[str], Any] = print,
) -> list[str]:
    """Measure what a table still misses: the Python form of ``ssl-bench reproduce``.

    Args:
        name: Of ``ssl-bench list tables``, or a YAML file.
        dry_run: Only show the plan.
        out: Folder of the rows; those that are there are not measured again.
        checkpoints: Folder of the authors' files: FILE, or METHOD/BACKBONE/FILE where several have one name.
        device: The one to estimate hours for, of ``cost.DEVICES``.
        tflops: Sustained TFLOPS instead of the device's.
        max_hours: Skip runs that would take longer.
        show: What to do with the lines of the plan.

    Returns:
        One line for each step that failed.

    Raises:
        UserError: Unknown table or device, or a wrong definition; nothing has been run.
    """
    if device not in DEVICES:
        raise unknown("device", device, DEVICES)
    if tflops is not None and tflops <= 0:
        raise UserError(f"--tflops {tflops:g}: it must be above 0")
    speed = DEVICES[device] if tflops is None else tflops
    rows = read_rows(out, lambda line: show(plain(f"WARNING: {line}"))) if (Path(out) / "rows").is_dir() else []
    steps = make_plan(read_definition(name), published(), rows, Path(checkpoints))
    where = "as given" if tflops is not None else f"assumed for {device}"
    show(f"{name}: {len(steps)} encoders; hours at {speed:g} TFLOPS sustained ({where})")
    for step in steps:
        for line in describe(step, speed, max_hours, device):
            show(line)
    show(summary(steps, speed, max_hours))
    if dry_run:
        return []
    failed = []
    for step in steps:
        if not step.skip and not too_long(step, speed, max_hours):
            failure = execute(step, Path(out), Path(checkpoints))
            if failure:
                print(f"failed: {failure}", file=sys.stderr, flush=True)
                failed.append(failure)
    return failed


def make_plan(definition: Definition, numbers: Sequence[Number], rows: Sequence[Row], checkpoints: Path) -> list[Step]:
    """The encoders of a table in its order, each once, with what is measured of them and what isn't."""
    steps: dict[tuple[Any, ...], Step] = {}
    for row in definition.rows:
        for column in definition.columns:
            number = definition.number(row, column, numbers)
            if number is None:
                continue
            cell = measurement(number, row, column)
            key = (cell.method, cell.backbone or cell.printed, cell.data, cell.epochs, cell.settings, cell.variant)
            if key not in steps:
                release = released(cell)
                found = find_file(cell.method, release, checkpoints) if release else None
                steps[key] = Step(cell, find_run(cell), release, found)
            step = steps[key]
            reason = step.run if isinstance(step.run, str) and not step.release else find_evaluation(cell)
            if matching(cell, rows)[0]:
                step.done += 1
            elif reason:
                step.skipped[reason] = step.skipped.get(reason, 0) + 1
            elif (cell.evaluation, cell.test_data) not in step.missing:
                step.missing.append((cell.evaluation, cell.test_data))
    return list(steps.values())


def find_file(method: str, release: Release, checkpoints: Path) -> Path | None:
    """The authors' file in a folder of checkpoints: METHOD/BACKBONE/FILE, or as ``file_path``."""
    places = (Path(method, release.backbone, release.file), file_path(method, release))
    return next((checkpoints / place for place in places if (checkpoints / place).is_file()), None)


def missing_data(name: str) -> str:
    """Why a data set can't be used here; empty when it is there, or comes by itself."""
    if name not in DATASETS:
        return f"{name} is not one of our data sets"
    if not (place := re.search(r"put in data/([\w/-]+\w)", DATASETS[name])):  # as `list datasets` says it
        return ""
    folder = Path(os.environ.get("SSL_BENCH_DATA", "data")) / place[1]
    return "" if (folder / "train" if name == "imagenet1k" else folder).is_dir() else f"{name} is not in {folder}"


def hours(step: Step, speed: float) -> float | None:
    """Estimated hours of a step at ``speed`` TFLOPS."""
    cost = step.cost
    return None if cost is None else cost[1] / speed / 1e12 / 3600


def too_long(step: Step, speed: float, max_hours: float | None) -> bool:
    """Whether a step would take longer than allowed; one of unknown cost does."""
    estimate = hours(step, speed)
    return max_hours is not None and (estimate is None or estimate > max_hours)


def describe(step: Step, speed: float, max_hours: float | None, device: str = "h100") -> list[str]:
    """The plan of one encoder, in lines."""
    lines = [f"\n{step.wanted.encoder}"]
    if step.done:
        lines.append(f"  measured: {step.done} {'number' if step.done == 1 else 'numbers'}")
    if step.release:
        state = f"found: {step.found}" if step.found else "not here; with it in --checkpoints nothing need be trained"
        lines.append(f"  released weights: {file_path(step.wanted.method, step.release)} ({state})")
    if step.missing:
        lines += [f"  {'would run' if step.skip else 'run'}: {command}" for command in step.commands() if command]
        cost = step.cost
        if cost and cost[1]:
            lines.append(f"  {cost[0]:.2e} images, {cost[1]:.1e} FLOPs, about {format_hours(hours(step, speed))}")
            lines.append(f"  {fleets(hours(step, speed) or 0.0, device)}")
            if isinstance(step.run, Run) and not step.found:
                lines.append(
                    f"  {state_bytes(step.run.resolved) / 1e9:.2g} GB of weights, gradients and moments on each"
                )
    lines += [f"  not evaluated now: {reason}" for reason in (() if step.skip else step.lacking)]
    lines += [f"  {count} of its numbers can't be: {reason}" for reason, count in step.skipped.items() if step.missing]
    if step.skip and step.skip != "measured":
        lines.append(f"  skipped: {step.skip}")
    elif step.missing and too_long(step, speed, max_hours):
        lines.append(f"  skipped: longer than {max_hours:g} h, or of unknown cost")
    return lines


def summary(steps: Sequence[Step], speed: float, max_hours: float | None) -> str:
    """How much of the table can be run here."""
    ready = [step for step in steps if step.missing and not step.skip and not too_long(step, speed, max_hours)]
    could = [step for step in steps if step.missing and not (isinstance(step.run, str) and not step.found)]
    known = [value for step in could if (value := hours(step, speed)) is not None]
    rest = f", and {len(could) - len(known)} of unknown cost" if len(known) < len(could) else ""
    return (
        f"\n{len(ready)} of {len(steps)} encoders can be run here now; {len(could)} have a recipe or weights, about "
        f"{format_hours(sum(known))} together{rest}; {sum(step.done for step in steps)} numbers are measured already"
    )


def format_hours(value: float | None) -> str:
    """For example "2.5 h" or "31 days".

    Example:
        >>> format_hours(2.5), format_hours(744.0), format_hours(None)
        ('2.5 h', '31 days', 'unknown time')
    """
    if value is None:
        return "unknown time"
    return f"{value / 24:.0f} days" if value >= 72 else f"{value:.1f} h" if value >= 0.1 else f"{value * 3600:.0f} s"


def execute(step: Step, out: Path, checkpoints: Path) -> str | None:
    """Convert or pre-train, then evaluate; a line that says why, if it failed."""
    wanted = step.wanted
    try:
        if step.found:
            name = f"{wanted.method}-{wanted.backbone}-{wanted.data}-{wanted.epochs:g}.pt"
            encoder = checkpoints / "converted" / name
            convert(
                step.found,
                method=wanted.method,
                backbone=wanted.backbone,
                branch=step.release.branch if step.release else None,
                out=encoder,
                data=wanted.data,
                epochs=wanted.epochs,
            )
        else:
            assert isinstance(step.run, Run)
            encoder = pretrain(wanted.method, recipe=step.run.recipe, overrides=step.run.overrides)
        for data, names in step.evaluations.items():
            evaluate(encoder, evaluations=names, data=data, out=out)
    except (UserError, RunError) as error:
        return f"{wanted.encoder}: {error}"
    return None
