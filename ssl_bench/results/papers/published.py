"""Published numbers as data: ``results/published.csv``, one line for each number and source, never an average."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from ssl_bench.utils.errors import UserError, unknown
from ssl_bench.utils.shipped import shipped

KINDS = {
    "paper": "the paper of the method",
    "paper_other": "another paper, which cites or measured it",
    "authors": "the authors' repository",
    "repository": "another repository",
    "survey": "slides of a survey",
    "notes": "notes on the paper by others",
}
UNITS = ("percent", "nats per token", "metres")
REQUIRED = (
    "method",
    "name",
    "backbone",
    "eval_dataset",
    "protocol",
    "metric",
    "value",
    "unit",
    "source",
    "source_kind",
)
IDENTITY = ("method", "backbone", "pretrain_data", "eval_dataset", "protocol", "setting", "metric")


@dataclass(frozen=True)
class Number:
    """One number as one source prints it; an empty text means that the source doesn't say.

    Attributes:
        method: Name of ``ssl-bench list methods`` where there is one, otherwise a name of that form.
        name: The method as people write it.
        backbone: As in papers: ViT-B/16, Swin-T/W7.
        params_m: Millions of parameters.
        pretrain_data: Name of ``ssl-bench list datasets`` where there is one.
        epochs: Of pre-training.
        effective_epochs: Epochs weighted by the crops an image is seen in (iBOT, appendix B).
        eval_dataset: As ``pretrain_data``.
        protocol: What was done: knn, linear, finetune, transfer_finetune, det, ...
        setting: What makes it another number than the method's plain one: an ablation, 384 px, a share of the labels.
        metric: top1, miou, box_ap, ...
        value: As printed, so that 68.0 stays 68.0.
        unit: One of ``UNITS``.
        source: Paper with its arXiv number, or repository.
        place: Table, section or file.
        source_kind: One of ``KINDS``.
        weak: "yes" where the number is second-hand, superseded or marked doubtful by its source.
        notes: Circumstances that don't make it another number.
    """

    method: str
    name: str
    backbone: str
    params_m: str
    pretrain_data: str
    epochs: str
    effective_epochs: str
    eval_dataset: str
    protocol: str
    setting: str
    metric: str
    value: str
    unit: str
    source: str
    place: str
    source_kind: str
    weak: str
    notes: str

    def __float__(self) -> float:
        return float(self.value)

    @property
    def cited(self) -> str:
        """Source and place: "MAE paper, arXiv 2111.06377, Table 3"."""
        return f"{self.source}, {self.place}" if self.place else self.source


COLUMNS = tuple(f.name for f in fields(Number))


def published() -> tuple[Number, ...]:
    """All numbers that come with the package, checked."""
    return read_numbers(shipped("results") / "published.csv")


@cache
def read_numbers(path: Path) -> tuple[Number, ...]:
    """Read and check a file of published numbers.

    Raises:
        UserError: Another header, a missing or malformed field, or one source with two values for the same thing. The
            message names the line.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not lines or tuple(lines[0]) != COLUMNS:
        raise UserError(f"{path} line 1: expected the columns {','.join(COLUMNS)}")
    numbers = []
    seen: dict[tuple[str, ...], int] = {}
    for at, line in enumerate(lines[1:], start=2):
        if len(line) != len(COLUMNS):
            raise UserError(f"{path} line {at}: {len(line)} fields instead of {len(COLUMNS)}")
        number = Number(*line)
        problem = _problem(number)
        if problem:
            raise UserError(f"{path} line {at}: {problem}")
        key = tuple(getattr(number, name) for name in (*IDENTITY, "epochs", "source", "place"))
        if key in seen:
            raise UserError(f"{path} line {at}: the same number as line {seen[key]}, from the same source")
        seen[key] = at
        numbers.append(number)
    return tuple(numbers)


def _problem(number: Number) -> str | None:
    """What is wrong with a number, in words; None when nothing is."""
    for name in REQUIRED:
        if not getattr(number, name):
            return f"{name} is empty"
    for name in ("method", "pretrain_data", "eval_dataset", "protocol", "metric"):
        value = getattr(number, name)
        if value and not re.fullmatch(r"[a-z0-9_]+", value):
            return f"{name} is {value!r}; only a-z, 0-9 and _"
    for name in ("value", "params_m", "epochs", "effective_epochs"):
        value = getattr(number, name)
        if value and not re.fullmatch(r"\d+(\.\d+)?", value):
            return f"{name} is {value!r}; it must be a plain number"
    if number.unit == "percent" and float(number) > 100:
        return f"value is {number.value} percent"
    for name, valid in (("unit", UNITS), ("source_kind", tuple(KINDS)), ("weak", ("", "yes"))):
        if getattr(number, name) not in valid:
            return str(unknown(name, getattr(number, name), valid))
    return None


def select(numbers: Iterable[Number], wanted: Mapping[str, str]) -> list[Number]:
    """The numbers whose fields equal the wanted ones.

    Args:
        numbers: To choose from.
        wanted: Field of ``Number`` -> its text.

    Raises:
        UserError: Not a field.

    Example:
        >>> wanted = {"method": "mae", "backbone": "ViT-B/16", "protocol": "linear", "source_kind": "paper"}
        >>> [number.value for number in select(published(), wanted)]
        ['68.0']
    """
    for field in wanted:
        if field not in COLUMNS:
            raise unknown("column of published.csv", field, COLUMNS)
    found = list(numbers)
    for field, value in wanted.items():
        found = [number for number in found if getattr(number, field) == value]
    return found


def conflicts(number: Number, numbers: Iterable[Number], epochs: str = "") -> list[Number]:
    """What the method's own paper and repository print in other places for the same thing, where the value differs.

    Args:
        number: The one to compare with.
        numbers: Those of every source.
        epochs: Epochs of ``number`` where its source doesn't say.

    Returns:
        Numbers of another source or place with the same ``IDENTITY`` and epochs that differ by a unit of the last
        digit both print, or more.
    """
    mine = float(number.epochs or epochs or "nan")
    return [
        other
        for other in numbers
        if other is not number
        and other.source_kind in ("paper", "authors")
        and all(getattr(other, name) == getattr(number, name) for name in IDENTITY)
        and mine == float(other.epochs or "nan")
        and not same_value(number.value, other.value)
    ]


def same_value(a: str, b: str) -> bool:
    """Whether two printed numbers agree up to rounding or cutting off the last digit that both have.

    Example:
        >>> same_value("83.6", "83.664"), same_value("68.0", "67.8")
        (True, False)
    """
    digits = min(len(text.partition(".")[2]) for text in (a, b))
    return abs(float(a) - float(b)) < 10**-digits - 1e-9
