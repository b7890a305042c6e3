"""Table definitions: which published numbers a table shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_bench.config.method_facts import method_facts
from ssl_bench.config.parsing import read_yaml
from ssl_bench.results.papers.published import COLUMNS, Number, select
from ssl_bench.utils.errors import UserError, unknown
from ssl_bench.utils.shipped import shipped
from ssl_bench.utils.versions import registered

KEYS = ("title", "about", "where", "facts", "columns", "rows")


@dataclass(frozen=True)
class Column:
    """One column of numbers.

    Attributes:
        label: Its heading.
        where: Fields of ``Number`` -> text; "own" for the backbone is that of each row which names one.
        evaluation: Our protocol that measures the same thing: its name, or "own" for that of each row's method
            (its ``method.yaml``); none where we have nothing like it.
        note: How our protocol differs from the published one.
    """

    label: str
    where: dict[str, str]
    evaluation: str = ""
    note: str = ""


@dataclass(frozen=True)
class RowOf:
    """One row: a method on a backbone.

    Attributes:
        where: Fields of ``Number`` -> text.
        label: Instead of the method's name and backbone.
        unlike: Why its numbers can't be set beside those of the other rows.
        stands_for: What the source leaves out and another source says: epochs.
        settings: Keywords of the method that differ from its recipe's.
        protocols: Where its own protocol isn't the method's: what a column shows (linear, finetune) -> the method whose
            protocol it is.
        facts: Text of the descriptive columns.
    """

    where: dict[str, str]
    label: str = ""
    unlike: str = ""
    stands_for: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    protocols: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Definition:
    """A table: rows, columns and the numbers where they meet.

    Attributes:
        name: As in ``ssl-bench list tables``.
        title: Its heading.
        about: Where it comes from and what to know about it.
        where: Fields of ``Number`` -> text, for all cells.
        facts: Headings of the descriptive columns.
        columns: Columns of numbers.
        rows: In the order of the source.
    """

    name: str
    title: str
    about: str
    where: dict[str, str]
    facts: list[str]
    columns: list[Column]
    rows: list[RowOf]

    def number(self, row: RowOf, column: Column, numbers: Sequence[Number]) -> Number | None:
        """The published number of a cell; None where there is none.

        Raises:
            UserError: Row and column leave a choice; the message lists it.
        """
        wanted, own = column.where.get("backbone"), row.where.get("backbone")
        if own is None if wanted == "own" else wanted is not None and own not in (None, wanted):
            return None
        found = select(numbers, {**self.where, **column.where, **row.where})
        if len(found) > 1:
            choice = "; ".join(
                f"{n.value} ({n.setting or 'plain'}; {n.cited}; {n.epochs or '?'} epochs)" for n in found
            )
            raise UserError(f"table {self.name}: {row.where} leaves a choice in column {column.label!r}: {choice}")
        return found[0] if found else None


def table_names() -> list[str]:
    """Names of the shipped tables."""
    return sorted(path.stem for path in (shipped("results") / "tables").glob("*.yaml"))


def read_definition(name: str) -> Definition:
    """Read a table definition, given as a shipped name or a YAML file.

    Raises:
        UserError: Unknown name or key, or a value of the wrong kind.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else shipped("results") / "tables" / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"no such file: {name}") if path == Path(name) else unknown("table", name, table_names())
    values = read_yaml(path)
    _check_keys(path, values, KEYS)
    for key in ("title", "columns", "rows"):
        if key not in values:
            raise UserError(f"{path}: the key {key!r} is missing")
    facts = [str(heading) for heading in values.get("facts", [])]
    columns = [
        Column(
            str(entry.get("label", "")),
            _fields(path, entry, ("label", "evaluation", "note")),
            str(entry.get("evaluation", "")),
            str(entry.get("note", "")),
        )
        for entry in _entries(path, values, "columns")
    ]
    rows = [
        RowOf(
            _fields(path, entry, ("label", "unlike", "stands_for", "settings", "protocols", *facts)),
            str(entry.get("label", "")),
            str(entry.get("unlike", "")),
            _fields(path, entry.get("stands_for", {}), ()),
            dict(entry.get("settings", {})),
            _protocols(path, entry.get("protocols", {})),
            {heading: str(entry.get(heading, "")) for heading in facts},
        )
        for entry in _entries(path, values, "rows")
    ]
    where = _fields(path, values.get("where", {}), ())
    about = " ".join(str(values.get("about", "")).split())
    return Definition(path.stem, str(values["title"]), about, where, facts, columns, rows)


def _entries(path: Path, values: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    entries = values[key]
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path}: {key} must be a list of keys and values")
    return entries


def _fields(path: Path, entry: Any, reserved: Sequence[str]) -> dict[str, str]:
    if not isinstance(entry, dict):
        raise UserError(f"{path}: expected keys and values, found {entry!r}")
    _check_keys(path, entry, (*COLUMNS, *reserved))
    return {key: "" if value is None else str(value) for key, value in entry.items() if key not in reserved}


def _protocols(path: Path, entry: Any) -> dict[str, str]:
    if not isinstance(entry, dict):
        raise UserError(f"{path}: protocols: expected keys and values, found {entry!r}")
    for shown, method in entry.items():
        having = [name for name in registered("method") if shown in method_facts(name).protocols]
        if method not in having:
            raise UserError(f"{path}: protocols: {unknown(f'method with a protocol for {shown}', method, having)}")
    return dict(entry)


def _check_keys(path: Path, entry: Mapping[str, Any], valid: Sequence[str]) -> None:
    for key in entry:
        if key not in valid:
            raise UserError(f"{path}: {unknown('key', key, valid)}")
