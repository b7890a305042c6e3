"""The leaderboard as one HTML page that needs nothing else: no network, no fonts, no build.

The tables are plain HTML, so the page can be read without its script, which sorts, filters, hides columns and opens the
rows behind a number. Names come from files of others: text is escaped, data is JSON that the script only ever sets as
text, and the page's policy runs that one script alone.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_bench.results.leaderboard import significance, warnings
from ssl_bench.results.leaderboard.aggregate import SPENT, Aggregate, cost_texts, seed_of, spent_flops, trained
from ssl_bench.results.rows.row import Row
from ssl_bench.results.text import plain

if TYPE_CHECKING:
    from ssl_bench.results.leaderboard.table import Table

HERE = Path(__file__).parent
SHOWN = "#: rank in that evaluation; bold where no method is significantly better. A number opens the rows behind it."
SORTED_BY = {  # column -> key of pretraining that it is sorted by
    "epochs": "epochs",
    "patches": "patches_per_image",
    "FLOPs": "flops",
    "time": "wall_seconds",
    "memory": "peak_memory_bytes",
}


def page(tables: Sequence[Table], selected: str = "") -> str:
    """The whole page; the same rows give the same bytes.

    Args:
        tables: Of ``build``.
        selected: What is shown of the rows; everything when empty.
    """
    from ssl_bench.results.leaderboard.table import COSTS, INTERVALS, MARKS

    script = "\n" + (HERE / "leaderboard.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    legends = (
        f"{INTERVALS} {SHOWN} {warnings.LEGEND}",
        significance.LEGEND,
        COSTS,
        " ".join(MARKS.values()),
    )
    body = [f'<p class="notes">Only {_safe(selected)}.</p>'] if selected else []
    body += [_table(table, number) for number, table in enumerate(tables)]
    body += [f'<p class="notes">{_safe(text)}</p>' for text in legends]
    parts = {
        "@HASH@": f"'sha256-{digest}'",
        "@BODY@": "\n".join(body),
        "@DATA@": script_json({"tables": [_data(table) for table in tables]}),
        "@SCRIPT@": script,
    }
    text = (HERE / "leaderboard.html").read_text()
    pieces = []
    for mark, part in parts.items():  # in the order of the template; what was put in is never searched again
        before, text = text.split(mark, 1)
        pieces += [before, part]
    return "".join([*pieces, text])


def script_json(value: Any) -> str:
    r"""JSON that can stand in a script element: nothing in it can end the element.

    Example:
        >>> script_json("</script><!--")
        '"\\u003c/script\\u003e\\u003c!--"'
    """
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


# The tables -----------------------------------------------------------------------------------------------------------


def _table(table: Table, number: int) -> str:
    header = ["method", "category", "mean rank", *table.evaluations, "seeds", *SPENT]
    heads = []
    for name in header:
        text = name in ("method", "category", "views")
        first = "ascending" if text or name == "mean rank" else "descending"
        heads.append(
            f'<th scope="col" aria-sort="none" data-first="{first}" data-name="{_safe(name)}"'
            f'{" class=text" if text else ""}><button type="button">{_safe(name)}</button></th>'
        )
    lines = "\n".join(_line(table, number, index) for index in range(len(table.aggregates)))
    notes = [f"{line.label}: {text}" for line in table.aggregates for text in line.first["deviations"]]
    said = "".join(f'\n<p class="mark"><strong>{_safe(text)}</strong></p>' for text in warnings.notes(table))
    said += "".join(f'\n<p class="notes">{_safe(text)}</p>' for text in [*table.teachers(), *notes])
    return (
        f'<section>\n<h2 id="table-{number}">{_safe(table.title)}</h2>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="table-{number}">\n<table>\n'
        f"<thead><tr>{''.join(heads)}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table>\n</div>{said}\n</section>"
    )


def _line(table: Table, number: int, index: int) -> str:
    line, mean = table.aggregates[index], table.mean_ranks[index]
    category = line.first["category"] or ""
    cells = [
        f'<th scope="row" class="text" data-sort="{_safe(line.label)}" title="{_safe(line.label)}">{_safe(line.label)}'
        f'<span class="mark">{line.marks}</span></th>',
        f'<td class="text" data-sort="{_safe(category)}">{_safe(category)}</td>',
        "<td data-sort=''>–</td>" if mean is None else f'<td data-sort="{mean:.6f}">{mean:.2f}</td>',
    ]
    for at, evaluation in enumerate(table.evaluations):
        cell, standing = line.cell(evaluation), table.standings.get(evaluation)
        if cell is None:
            cells.append("<td data-sort=''>–</td>")
            continue
        best = " class=best" if standing and standing.ranks[index] == 1 else ""
        rank = f" #{standing.text(index)}" if standing else ""
        arrow = f" {mark}" if (mark := warnings.arrow(table, index, evaluation)) else ""
        name = f"{evaluation}, {line.label}: {cell.mean:.1f}, open its rows"
        cells.append(
            f'<td data-sort="{cell.mean:.6f}"{best}><button type="button" value="{number} {index} {at}" '
            f'aria-label="{_safe(name)}">{cell.mean:.1f}</button> <small>± {cell.half:.1f}{rank}{arrow}</small></td>'
        )
    seeds = len({seed_of(row) for row in line.rows})
    cells.append(f'<td data-sort="{seeds}">{seeds}</td>')
    made: dict[str, Any] = next((row["pretraining"] for row in line.rows if trained(row)), {})
    for name, text in zip(("views", *SORTED_BY), cost_texts(line), strict=True):
        key = text if name == "views" else made.get(SORTED_BY[name], "")
        kind = ' class="text"' if name == "views" else ""
        cells.append(f'<td{kind} data-sort="{_safe("" if text == "–" else key)}">{_safe(text)}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _safe(text: object) -> str:
    return html.escape(plain(str(text)))


# What a number opens --------------------------------------------------------------------------------------------------


def _data(table: Table) -> dict[str, Any]:
    return {"lines": [_line_data(table, index) for index in range(len(table.aggregates))]}


def _line_data(table: Table, index: int) -> dict[str, Any]:
    line = table.aggregates[index]
    recipe = {key: value for key, value in (line.first["recipe"] or {}).items() if key not in ("seed", "hash")}
    return {
        "label": line.label,
        "recipe": json.dumps(recipe, indent=1) if recipe else "weights from elsewhere: no recipe",
        "deviations": [plain(text) for text in line.first["deviations"]],
        "cells": [_cell_data(table, line, index, evaluation) for evaluation in table.evaluations],
    }


def _cell_data(table: Table, line: Aggregate, index: int, evaluation: str) -> dict[str, Any] | None:
    cell, standing = line.cell(evaluation), table.standings.get(evaluation)
    if cell is None:
        return None
    rows = line.by_evaluation[evaluation]
    judged = rows[0]["evaluation"]
    facts = [("mean ± 95 % interval", f"{cell.mean:.2f} ± {cell.half:.2f}, {cell.seeds} seed{'s' * (cell.seeds > 1)}")]
    if standing:
        how = "paired test over test images" if standing.paired else "95 % intervals compared"
        facts.append(("rank", f"{standing.ranks[index]} of {sum(r is not None for r in standing.ranks)} ({how})"))
    settings = {key: judged.get(key) for key in ("evaluator", "version", "settings", "selected_on", "precision")}
    return {
        "evaluation": evaluation,
        "facts": facts,
        "settings": json.dumps(settings, indent=1),
        "rows": [_row_data(row) for row in rows],
    }


def _row_data(row: Row) -> dict[str, Any]:
    metric = row["metrics"][row["headline"]]
    spent, made, code = (row.values.get(key) or {} for key in ("pretraining", "made", "code"))
    flops = spent_flops(row)
    facts = {
        "95 % interval over test images": f"{metric['low']:.2f} to {metric['high']:.2f} (n = {metric['n']:,})",
        "pooling": row["evaluation"]["pooling"],
        "chosen": json.dumps(row["evaluation"].get("chosen")),
        "pre-trained on": spent.get("data"),
        "FLOPs, target networks included": flops and f"{flops:.3e}",
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


def rerun(row: Row) -> list[str]:
    """The commands that make a row again; every value of the recipe is spelled out, and every name is quoted.

    The data set is named as the row names it: a folder of your own needs its path instead.
    """
    recipe, judged = row["recipe"], row["evaluation"]
    judge = ["--evaluations", judged["name"], "--data", judged["data"]]
    if not recipe:
        return [_command("evaluate", "CHECKPOINT", "--backbone", row["backbone"]["name"], *judge)]
    values: dict[str, Any] = {}
    for part in ("backbone", "training", "settings"):
        values |= recipe.get(part) or {}
    backbone, epochs = values.pop("name", row["backbone"]["name"]), values.pop("epochs", None)
    pretrain = ["pretrain", row["method"], "--data", (row["pretraining"] or {}).get("data", judged["data"])]
    pretrain += ["--backbone", backbone, "--seed", str(recipe.get("seed", 0)), "--out", "runs/again"]
    pretrain += ["--epochs", f"{epochs:g}"] if epochs is not None else []
    changed = [f"{key}={_yaml(value)}" for key, value in values.items() if value is not None]
    return [
        _command(*pretrain, *(["--set", *changed] if changed else [])),
        _command("evaluate", "runs/again/encoder.pt", *judge),
    ]


def _command(*words: str) -> str:
    return "ssl-bench " + " ".join(shlex.quote(plain(str(word))) for word in words)


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
