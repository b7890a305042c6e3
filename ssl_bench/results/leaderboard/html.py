"""The leaderboard as one HTML page that needs nothing else: no network, no fonts, no build.

The tables are plain HTML, so the page can be read without its script, which sorts, filters, hides columns and opens the
rows behind a number. Names may come from other people's files: the template escapes all text, data is JSON that the
script only ever sets as text, and the page's policy runs that one script alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ssl_bench.results.frame import seed_of, spent_on
from ssl_bench.results.leaderboard import legends
from ssl_bench.results.leaderboard.aggregate import Aggregate
from ssl_bench.results.leaderboard.cost_texts import SPENT, cost_texts, cost_values
from ssl_bench.results.leaderboard.svg import compute_picture, curve_pictures, interval_bar
from ssl_bench.results.leaderboard.table import Table
from ssl_bench.results.rows.picture import read_picture
from ssl_bench.results.rows.row import Row
from ssl_bench.results.text import plain, yaml_text
from ssl_bench.utils.errors import UserError

HERE = Path(__file__).parent
OTHER_METRICS = 12  # beside the headline of a row that the page lists
BESIDE = re.compile(r'(?s)<section id="beside">.*?</section>\n')


def page(
    tables: Sequence[Table], selected: str = "", runs: str | Path | None = None, figures: Sequence[str] = ()
) -> str:
    """The whole page; the same rows give the same bytes.

    Args:
        tables: Of ``build``.
        selected: What is shown of the rows; everything when empty.
        runs: Folder of runs, for the learning curves; without them there are none.
        figures: Places of figures, from the page, to link to.

    Raises:
        UserError: No such folder of runs.
    """
    script = "\n" + (HERE / "leaderboard.js").read_text()
    return _environment().get_template("leaderboard.html.jinja").render(
        tables=[_table(table) for table in tables],
        selected=selected,
        short=legends.ON_PAGE,
        curves=curve_pictures(tables, runs) if runs else [],
        figures=figures,
        legends=[
            f"{legends.INTERVALS} {legends.PAGE} {legends.ARROWS}",
            legends.ranks(task for table in tables for task in table.tasks.values()),
            legends.COSTS,
            " ".join(legends.FOOTNOTES.values()),
        ],
        data={"tables": [_table_data(table) for table in tables]},
        script=Markup(script),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip


def of_rows_alone(text: str) -> str:
    """A page without what isn't made from rows: learning curves and links to figures."""
    return BESIDE.sub("", text)


def _environment() -> Environment:
    """Escapes everything; `plain` comes first."""
    made = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return made


# The tables -----------------------------------------------------------------------------------------------------------


def _table(table: Table) -> dict[str, Any]:
    columns = []
    backbone = ["backbone"] if table.backbones else []
    for name in ("method", *table.headings, "mean rank", *backbone, "category", "seeds", *SPENT):
        text = name in ("method", "backbone", "category", "views")
        first = "ascending" if text or name == "mean rank" else "descending"
        columns.append({"name": name, "text": text, "first": first})
    return {
        "title": table.title,
        "columns": columns,
        "picture": compute_picture(table),
        "lines": [_line(table, index) for index in range(len(table.aggregates))],
        "warnings": table.warnings,
        "notes": [*table.teachers, *table.deviations],
    }


def _line(table: Table, index: int) -> dict[str, Any]:
    aggregate = table.aggregates[index]
    costs, values = [], cost_values(aggregate)
    for name, text in zip(SPENT, cost_texts(aggregate), strict=True):
        sort = text if name == "views" else values.get(name, "")
        costs.append({"text": text, "sort": "" if text == "–" else sort, "text_column": name == "views"})
    return {
        "label": aggregate.label,
        "name": aggregate.method if aggregate.label.startswith(aggregate.method) else aggregate.label,
        "which": aggregate.label.removeprefix(aggregate.method).strip(" ,"),
        "footnotes": aggregate.footnotes,
        "texts": [*table.backbones[index : index + 1], aggregate.first["category"] or ""],
        "mean_rank": table.mean_ranks[index],
        "cells": [_cell(table, index, evaluation) for evaluation in table.evaluations],
        "seeds": aggregate.seeds,
        "costs": costs,
    }


def _cell(table: Table, index: int, evaluation: str) -> dict[str, Any] | None:
    aggregate, standing = table.aggregates[index], table.standings.get(evaluation)
    cell = aggregate.cell(evaluation)
    if cell is None:
        return None
    marks = [f"#{standing.text(index)}" if standing else "", table.arrow(index, evaluation)]
    return {
        "bar": interval_bar(cell, *_scale(table, evaluation)),
        "mean": cell.mean,
        "half": cell.half,
        "best": table.is_best(index, evaluation),
        "marks": " ".join(filter(None, marks)),
        "name": f"{evaluation}, {aggregate.label}: {cell.mean:.1f}, open its rows",
    }


def _scale(table: Table, evaluation: str) -> tuple[float, float]:
    """The ends of all intervals of an evaluation."""
    cells = [each.cells[evaluation] for each in table.aggregates if evaluation in each.cells]
    return min(cell.mean - cell.half for cell in cells), max(cell.mean + cell.half for cell in cells)


# What a number opens --------------------------------------------------------------------------------------------------


def _table_data(table: Table) -> dict[str, Any]:
    return {"lines": [_line_data(table, index) for index in range(len(table.aggregates))]}


def _line_data(table: Table, index: int) -> dict[str, Any]:
    aggregate = table.aggregates[index]
    recipe = {key: value for key, value in (aggregate.first["recipe"] or {}).items() if key != "seed"}
    return {
        "label": aggregate.label,
        "recipe": json.dumps(recipe, indent=1) if recipe else "external weights: no recipe",
        "deviations": [plain(text) for text in aggregate.first["deviations"]],
        "cells": [_cell_data(table, aggregate, index, evaluation) for evaluation in table.evaluations],
    }


def _cell_data(table: Table, aggregate: Aggregate, index: int, evaluation: str) -> dict[str, Any] | None:
    cell, standing = aggregate.cell(evaluation), table.standings.get(evaluation)
    if cell is None:
        return None
    rows = aggregate.by_evaluation[evaluation]
    stated = rows[0]["evaluation"]
    facts = [("mean ± 95 % interval", f"{cell.mean:.2f} ± {cell.half:.2f}, {cell.seeds} seed{'s' * (cell.seeds > 1)}")]
    if standing:
        how = "paired test over test images" if standing.paired else "95 % intervals compared"
        of = sum(r is not None for r in standing.ranks)
        rank = "none: the encoder had collapsed" if aggregate.collapsed else f"{standing.ranks[index]} of {of} ({how})"
        facts.append(("rank", rank))
    if difference := table.differences.get((index, evaluation)):
        facts.append(("untrained network", f"{difference.untrained:.2f} ({difference.points:+.2f}{difference.arrow})"))
    settings = {key: stated.get(key) for key in ("evaluator", "version", "settings", "selected_on", "precision")}
    return {
        "evaluation": evaluation,
        "facts": facts,
        "settings": json.dumps(settings, indent=1),
        "rows": [_row_data(row) for row in rows],
        "pictures": _pictures(rows[0]),
    }


def _pictures(row: Row) -> list[dict[str, Any]]:
    """What was predicted, of one row of a number, inside the page; nothing where its picture is not to be trusted."""
    try:
        content = read_picture(row)
    except UserError:
        return []
    if content is None:
        return []
    says = f"Seed {seed_of(row)}, from left to right: {', '.join(row['picture']['columns'])}."
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return [{"says": plain(says), "source": source, "columns": len(row["picture"]["columns"])}]


def _row_data(row: Row) -> dict[str, Any]:
    metric = row["metrics"][row["headline"]]
    spent, made, code = (row.values.get(key) or {} for key in ("pretraining", "made", "code"))
    flops = spent_on(row, "flops")
    facts = {
        "95 % interval over test images": f"{metric['low']:.2f} to {metric['high']:.2f} (n = {metric['n']:,})",
        "pooling": row["evaluation"]["pooling"],
        "other metrics": _other_metrics(row),
        "chosen": json.dumps(row["evaluation"].get("chosen")),
        "pre-trained on": spent.get("data"),
        "FLOPs, teachers included": flops and f"{flops:.3e}",
        "device": spent.get("device"),
        "flags": ", ".join(row["flags"]),
        "warnings": "; ".join(row.values.get("warnings", [])),
        "code": " ".join(f"{key} {value}" for key, value in code.items() if value),
        "made": " ".join(f"{key} {value}" for key, value in made.items()),
        "weights": (row.values.get("weights") or {}).get("sha256"),
        "file": row.path.name,
    }
    return {
        "title": f"Seed {seed_of(row)}: {row['headline']} {metric['value']:.2f}",
        "facts": [(name, plain(str(value))) for name, value in facts.items() if value],
        "rerun": "\n".join(rerun(row)),
    }


def _other_metrics(row: Row) -> str:
    """The metrics beside the headline, as many as can be read."""
    others = [f"{name} {each['value']:.2f}" for name, each in row["metrics"].items() if name != row["headline"]]
    left = len(others) - OTHER_METRICS
    return ", ".join(others[:OTHER_METRICS]) + (f", and {left} more in the file" if left > 0 else "")


def rerun(row: Row) -> list[str]:
    """The commands that make a row again; every value of the recipe is spelled out, and every name is quoted.

    The data set is named as it was given; of a folder at an absolute place the row knows the last part alone, and of
    the file of a method or an evaluation from outside its content, not its name: FILE.py stands for it.
    """
    recipe, stated, made = row["recipe"], row["evaluation"], row["pretraining"] or {}
    known = row["identity"]
    evaluation = f"FILE.py:{stated['evaluator']}" if "source" in known["evaluation"] else stated["name"]
    how = ["--evaluations", evaluation, "--data", given(stated)]
    if not recipe:
        return [_command("evaluate", "CHECKPOINT", "--backbone", row["backbone"]["name"], *how)]
    values: dict[str, Any] = {}
    for part in ("backbone", "training", "settings"):
        values |= recipe.get(part) or {}
    backbone, epochs = values.pop("name", row["backbone"]["name"]), values.pop("epochs", None)
    method = f"FILE.py:{row['method']}" if "source" in known["encoder"] else row["method"]
    pretrain = ["pretrain", method, "--data", given(made if "data" in made else stated)]
    pretrain += ["--backbone", backbone, "--seed", str(recipe.get("seed", 0)), "--out", "runs/again"]
    pretrain += ["--epochs", f"{epochs:g}"] if epochs is not None else []
    changed = [f"{key}={yaml_text(value)}" for key, value in values.items() if value is not None]
    return [
        _command(*pretrain, *(["--set", *changed] if changed else [])),
        _command("evaluate", "runs/again/encoder.pt", *how),
    ]


def given(part: Mapping[str, Any]) -> str:
    """How the data of a part of a row was asked for; of rows that don't say, its name."""
    return part.get("given") or part["data"]


def _command(*words: str) -> str:
    return "ssl-bench " + " ".join(shlex.quote(plain(str(word))) for word in words)
