"""The page: self-contained, the same bytes from the same rows, and nothing in a row is markup or a command."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from ssl_bench.arguments import make_parser
from ssl_bench.commands.check import check
from ssl_bench.commands.leaderboard import leaderboard
from ssl_bench.results.leaderboard.html import of_rows_alone, page, rerun
from ssl_bench.results.leaderboard.table import build
from ssl_bench.results.rows.row import read_rows
from ssl_bench.utils.identity import identify

RIGHT = np.arange(100) < 40
EVIL = '</script><img src=x onerror="alert(1)">\x1b[2J'


class Page(HTMLParser):
    """Tags with their attributes, and the text of the two scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = re.findall(r"(?s)<script[^>]*>(.*?)</script>", text)
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def made(folder: Path) -> str:
    return page(build(read_rows(folder)))


def test_needs_nothing_else_and_runs_its_own_script_alone(tmp_path: Path, add_row: Any) -> None:
    add_row("m", 0, RIGHT)
    text = made(tmp_path)
    parsed = Page(text)
    assert not re.search(r"https?:|//[a-z]+\.", re.sub(r"(?s)<pre>.*?</pre>", "", text))
    assert not [tag for tag, values in parsed.tags if {"src", "href", "style", "onclick"} & set(values)]
    digest = base64.b64encode(hashlib.sha256(parsed.scripts[-1].encode()).digest()).decode()
    (policy,) = [v["content"] for t, v in parsed.tags if t == "meta" and "http-equiv" in v]
    assert policy is not None and policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy


def test_names_are_never_markup(tmp_path: Path, add_row: Any) -> None:
    add_row(
        EVIL,
        0,
        RIGHT,
        EVIL,
        evaluation={"evaluator": "linear"},
        category=EVIL,
        deviations=[EVIL],
        suite=EVIL,
        backbone={"name": EVIL},
    )
    add_row("m", 0, RIGHT, evaluation={"data": EVIL}, recipe={"settings": {EVIL: EVIL}}, made={"time": EVIL})
    text = made(tmp_path)
    tags = [tag for tag, _ in Page(text).tags]
    assert "img" not in tags and tags.count("script") == 2 and "\x1b" not in text
    data = json.loads(Page(text).scripts[0])
    assert any("onerror" in line["label"] for table in data["tables"] for line in table["lines"])  # shown as text


def test_what_a_template_mark_in_a_name_becomes(tmp_path: Path, add_row: Any) -> None:
    add_row("{{ script }} {{ data }}", 0, RIGHT)
    text = made(tmp_path)
    assert text.count('"use strict"') == 1 and "{{ script }} {{ data }}</th>" not in text
    assert '<th scope="row" class="text" data-sort="{{ script }} {{ data }}"' in text


def test_same_bytes(tmp_path: Path, add_row: Any) -> None:
    add_row("m", 0, RIGHT)
    add_row("n", 0, ~RIGHT)
    (file,) = leaderboard(tmp_path, formats=["html"], show=lambda _: None)
    first = file.read_bytes()
    assert leaderboard(tmp_path, formats=["html"], show=lambda _: None)[0].read_bytes() == first


def test_a_number_opens_its_rows(tmp_path: Path, add_row: Any) -> None:
    for seed in (1, 0):
        add_row("m", seed, RIGHT)
    parsed = Page(made(tmp_path))
    ((_, button),) = [(t, v) for t, v in parsed.tags if t == "button" and "value" in v]
    assert button["value"] == "0 0 0" and "linear, m: 40.0" in str(button["aria-label"])
    cell = json.loads(parsed.scripts[0])["tables"][0]["lines"][0]["cells"][0]
    assert [row["title"] for row in cell["rows"]] == ["Seed 0: top1 40.00", "Seed 1: top1 40.00"]
    assert any(name == "weights" and value == "c" * 64 for name, value in cell["rows"][0]["facts"])


def test_headers_sort_by_button(tmp_path: Path, add_row: Any) -> None:
    add_row("m", 0, RIGHT)
    heads = [values for tag, values in Page(made(tmp_path)).tags if tag == "th" and values.get("scope") == "col"]
    assert all(head["aria-sort"] == "none" and head["data-first"] in ("ascending", "descending") for head in heads)


def test_the_commands_can_be_run(tmp_path: Path, add_row: Any) -> None:
    row = add_row("m", 3, RIGHT, recipe={"settings": {"mask_ratio": 0.5, "note": "a; rm -rf /", "off": None}})
    first, second = rerun(row)
    parsed = make_parser().parse_args(shlex.split(first)[1:])
    assert (parsed.method, parsed.seed, parsed.epochs, parsed.data) == ("m", 3, 2.0, "shapes")
    assert parsed.backbone == "vit_micro_patch8_32"
    assert parsed.set == ["drop_path=0", "mask_ratio=0.5", "note=a; rm -rf /"]
    assert make_parser().parse_args(shlex.split(second)[1:]).evaluations == ["linear"]
    given = {"evaluation": {"given": "folder:data/cifar10"}, "pretraining": {"given": "folder:data/cifar10#1000"}}
    first, second = rerun(add_row("n", 3, RIGHT, **given))
    assert "--data 'folder:data/cifar10#1000'" in first and second.endswith("--data folder:data/cifar10")


def test_of_code_from_outside_the_command_says_that_its_file_is_needed(tmp_path: Path, add_row: Any) -> None:
    row = add_row("m", 3, RIGHT, code={"evaluator_source": "a" * 16}, evaluation={"name": "Own", "evaluator": "Own"})
    assert "--evaluations FILE.py:Own" in rerun(row)[1]


def test_the_other_metrics_of_a_row_are_there(tmp_path: Path, add_row: Any) -> None:
    other = {"value": 12.25, "n": 10, "low": 1.0, "high": 20.0}
    add_row("m", 0, RIGHT, metrics={"erank": other})
    cell = json.loads(Page(made(tmp_path)).scripts[0])["tables"][0]["lines"][0]["cells"][0]
    assert ["other metrics", "erank 12.25"] in cell["rows"][0]["facts"]


def test_files_with_the_name_of_a_known_data_set_are_not_headed_like_it(tmp_path: Path, add_row: Any) -> None:
    for given, title in (
        ("cifar10", "cifar10 ("),
        ("cifar10#100", "cifar10 ("),
        ("hf:uoft-cs/cifar10", "cifar10 ("),
        ("folder:data/cifar10", "cifar10 from folder files ("),
        ("webdataset:c-{0..9}.tar", "cifar10 from webdataset files ("),
        ("mine/data.py:cifar10", "cifar10 from data.py ("),
        ("my.data:cifar10", "cifar10 from my.data ("),
    ):
        (table,) = build([add_row("m", 0, RIGHT, evaluation={"data": "cifar10", "given": given})])
        assert table.title.startswith(title)


def test_external_weights_have_no_recipe(tmp_path: Path, add_row: Any) -> None:
    row = add_row("m", 0, RIGHT, recipe=None, pretraining={"data": "unknown"})
    (command,) = rerun(row)
    assert command.startswith("ssl-bench evaluate CHECKPOINT --backbone vit_micro_patch8_32")
    assert "external weights" in made(tmp_path)


def test_intervals_are_bars_and_costs_are_sorted_by_what_is_shown(tmp_path: Path, add_row: Any) -> None:
    for seed, seconds in enumerate((10.0, 30.0)):
        add_row("m", seed, RIGHT, pretraining={"wall_seconds": seconds, "flops": 1e12})
    text = made(tmp_path)
    assert 'class="bar"' in text and 'data-sort="20.0">20 s</td>' in text
    assert '<svg class="plot"' in text and "m: 40.0 ± " in text and "at 1.0e+12 FLOPs" in text
    heads = [values["data-name"] for tag, values in Page(text).tags if tag == "th" and "data-name" in values]
    assert heads[:4] == ["method", "linear", "mean rank", "category"]  # numbers first


def test_learning_curves_and_figures_stand_beside_the_rows(tmp_path: Path, add_row: Any) -> None:
    row = add_row("m", 0, RIGHT, pretraining={"flops": 1e12})
    run = tmp_path / "runs" / f"m-shapes-0-{identify(row['identity']['encoder'])[:12]}"
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text("loss,knn,step\n2.0,20,1\n1.0,30,2\n")
    (file, *_) = leaderboard(tmp_path, formats=["html"], figures=True, runs=tmp_path / "runs", show=lambda _: None)
    text = file.read_text()
    assert "Learning curves" in text and '<a href="figures/compute.svg">compute.svg</a>' in text
    assert of_rows_alone(text) == made(tmp_path) != text
    assert check(tmp_path, show=lambda _: None) == []
