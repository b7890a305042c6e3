"""Rows of other people: merged by copying, refused when they contradict themselves, harmless whatever they say."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from row_fixtures import INPUT, add_picture

from ssl_bench.commands.check import check
from ssl_bench.commands.compare import compare
from ssl_bench.commands.leaderboard import FORMATS, leaderboard
from ssl_bench.commands.table import table
from ssl_bench.results.leaderboard import figures
from ssl_bench.results.rows import row as module
from ssl_bench.results.rows.predictions import is_measured
from ssl_bench.results.rows.row import SCHEMA, Row, checksum_of, expected_id
from ssl_bench.utils.errors import UserError

RIGHT = np.arange(100) < 40
# One for each kind of place where a text could become something else.
PAYLOADS = {
    "html": "<img src=x onerror=alert(1)></script><script>alert(2)</script>",
    "attribute": "\" onmouseover=alert(1) x='",
    "link": "![x](//x.y/z)[a](//x.y)",
    "lines": "x\n# head\n| a | b |\r\n<!--",
    "latex": r"\input{/etc/passwd}\write18{ls}$x$ % & # _ ^ ~ {",
    "formula": "=HYPERLINK(A1)",
    "formula behind a tab": "\t@SUM(1)",
    "terminal": "\x1b[2J\x1b]0;t\x07\x9b31m\u202egpj",
    "path": "../../../etc/passwd",
    "template": "{{ data }} {% raw %} << table >> <% raw %> <# %s {0}",
    "mathematics": "$\\frac{1}{0}$",
}


def evil_rows(add_row: Any, text: str) -> tuple[Path, Path]:
    """Rows with the text in every place that a person may fill, and one of MAE beside them: two of the files."""
    stated = {"evaluator": "linear", "data": text, "pooling": text, "chosen": {text: text}, "settings": {text: 1}}
    trained = {"data": text, "device": text, "facts": {"teacher": {"name": text, "source": text}}}
    texts: dict[str, Any] = {"category": text, "suite": text, "paper": text, "views": text, "made": {"time": text}}
    texts |= {"deviations": [text], "flags": [text], "recipe": {"settings": {text: text}}}
    same: dict[str, Any] = {"name": text, "evaluation": stated, "backbone": {"name": text}, "pretraining": trained}
    rows = [add_row(text, seed, RIGHT, **texts, **same) for seed in (0, 1)]
    return rows[0].path, add_row("mae", 0, RIGHT, **same).path


class Tags(HTMLParser):
    """Names of tags with their attributes, once each."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {tag, *(f"{tag} {name}" for name, _ in attrs)}


def shape(kind: str, text: str) -> Any:
    """What of a file is markup: the same whatever the texts in it say."""
    if kind == "html":
        return Tags(text).found
    if kind == "csv":
        return [len(line) for line in csv.reader(text.splitlines())]
    if kind == "latex":
        bare = re.sub(r"\\text(backslash|ascii\w+|less|greater|bar|quotedbl|superscript)\b|\\[{}$&#%_]", "", text)
        commands = set(re.findall(r"\\([a-zA-Z]+|.)", bare))
        return commands, [len(re.findall(mark, bare)) for mark in ("&", r"\$", "#", "%", r"\^", "~", "_")]
    lines = [re.sub(r"\\[\\`*_\[\]|~$]", "", line) for line in text.splitlines()]
    starts = [re.match(r"#+ |\| |- |", line) for line in lines]
    marks = [[line.count(mark) for mark in "|`[<"] for line in lines]
    return [start and start[0] for start in starts], marks


@pytest.mark.parametrize("kind", PAYLOADS)
def test_no_text_of_a_row_is_anything_but_text(tmp_path: Path, add_row: Any, kind: str) -> None:
    found = {}
    for name, text in (("word", "word"), ("evil", PAYLOADS[kind])):
        shutil.rmtree(tmp_path / "rows", ignore_errors=True)
        first, second = evil_rows(add_row, text)
        said: list[str] = []
        files = leaderboard(tmp_path, formats=list(FORMATS), show=said.append)
        table("mae", rows=[tmp_path], formats=["md", "csv", "terminal"], show=said.append)
        compare(str(first), str(second), show=said.append)
        check(tmp_path, show=said.append)
        found[name] = {file.suffix[1:]: file.read_text() for file in files}
        assert {file.parent for file in files} == {tmp_path}
        for written in [*found[name].values(), *said]:
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", written)
    for suffix, kind_of in (("html", "html"), ("csv", "csv"), ("tex", "latex"), ("md", "md")):
        assert shape(kind_of, found["evil"][suffix]) == shape(kind_of, found["word"][suffix]), suffix
    for line in csv.reader(found["evil"]["csv"].splitlines()):
        assert not [cell for cell in line if re.match(r"[=+\-@\t\r]", cell) and not re.fullmatch(r"[-+\d.e]+", cell)]
    assert {path.name for path in tmp_path.iterdir()} == {"rows", *FORMATS.values()}


def test_figures_of_evil_rows_stay_in_their_folder(
    tmp_path: Path, add_row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "FIGURES", {"ranks": figures.ranks})
    for kind in ("html", "path", "mathematics"):
        evil_rows(add_row, PAYLOADS[kind])
    files = leaderboard(tmp_path, formats=[], figures=True, show=lambda _: None)
    assert files and {file.parent for file in files} == {tmp_path / "figures"}
    for file in files:
        if file.suffix == ".svg":
            tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(file).iter()}
            assert not tags & {"script", "a", "image", "foreignObject", "img"}


def refused(folder: Path) -> Iterator[str]:
    """What the leaderboard and the check say of a folder with one bad row alone, one line each."""
    with pytest.raises(UserError) as raised:
        leaderboard(folder, show=lambda _: None)
    yield str(raised.value)
    (problem,) = check(folder, show=lambda _: None)
    yield problem


def rewrite(path: Path, **changes: Any) -> None:
    """Change a row and give it the checksum that fits."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({**values, "checksum": checksum_of(values)}))


def test_folders_merge_by_copying(tmp_path: Path, add_row: Any) -> None:
    mine = [add_row("a", 0, RIGHT), add_row("b", 0, ~RIGHT)]
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "rows", other / "rows")
    for path in (other / "rows").glob(f"*{mine[0]['id']}*"):
        path.unlink()
    shutil.rmtree(tmp_path / "rows")
    theirs = [add_row("c", 0, RIGHT, "fewshot", predictions=None), add_row("a", 0, RIGHT)]
    shutil.copytree(tmp_path / "rows", other / "rows", dirs_exist_ok=True)
    assert {row["id"] for row in module.read_rows(other)} == {row["id"] for row in [*mine, *theirs]}
    assert check(other, show=lambda _: None) == []


def test_a_row_under_two_names_is_refused(tmp_path: Path, add_row: Any) -> None:
    path = add_row("a", 0, RIGHT, "fewshot", predictions=None).path
    shutil.copy(path, path.with_name(f"copy-{path.name}"))
    (problem,), said = check(tmp_path, show=lambda _: None), list[str]()
    leaderboard(tmp_path, show=said.append)
    assert "has the id of" in problem and "has the id of" in said[0]


def test_an_id_of_other_content_is_refused(tmp_path: Path, add_row: Any) -> None:
    """Sealed with a checksum that fits: only the id gives it away."""
    path = add_row("a", 0, RIGHT).path
    values = json.loads(path.read_text())
    recipe = {**values["recipe"], "training": {"epochs": 100.0}}
    rewrite(path, recipe=recipe)
    for said in refused(tmp_path):
        assert "its identity says epochs 2.0, its recipe.training says 100.0" in said and "\n" not in said
    encoder = {**values["identity"]["encoder"], "training": {"epochs": 100.0}}
    rewrite(path, identity={**values["identity"], "encoder": encoder})
    for said in refused(tmp_path):
        assert "its id should be" in said and "\n" not in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"versions": {"views": 9}}, "its versions are not those of its identity"),
        ({"evaluation": {"version": 9}}, "its evaluation says 9"),
        ({"evaluation": {"name": "knn"}}, "its identity says name 'linear', its evaluation says 'knn'"),
        ({"evaluation": {"fingerprints": {"train": "a", "test": "c"}}}, "its identity says fingerprints"),
        ({"pretraining": {"fingerprint": "e" * 64}}, "its identity says fingerprint"),
        ({"recipe": {"settings": {}}}, "its identity says size 3, its recipe.settings says nothing"),
    ],
)
def test_what_a_row_says_beside_its_identity(tmp_path: Path, add_row: Any, changes: dict[str, Any], words: str) -> None:
    path = add_row("a", 0, RIGHT, recipe={"settings": {"size": 3}}).path
    values = json.loads(path.read_text())
    rewrite(path, **{key: {**values[key], **change} for key, change in changes.items()})
    for said in refused(tmp_path):
        assert words in said and "\n" not in said


def test_weights_of_another_row_are_refused(tmp_path: Path, add_row: Any) -> None:
    path = add_row("a", 0, RIGHT, recipe=None).path
    rewrite(path, weights={"sha256": "d" * 64, "loaded_percent": 100.0})
    for said in refused(tmp_path):
        assert "its weights says" in said


@pytest.mark.parametrize(
    "changes", [{"method": "mae"}, {"backbone": {"name": "vit_large", "parameters": 1, "input": INPUT}}]
)
def test_a_name_that_is_not_the_recipes_is_refused(tmp_path: Path, add_row: Any, changes: dict[str, Any]) -> None:
    """The id follows from the recipe alone, the leaderboard shows the name beside it."""
    rewrite(add_row("a", 0, RIGHT).path, **changes)
    for said in refused(tmp_path):
        assert "its recipe 'a' on 'vit_micro_patch8_32'" in said


def test_a_method_from_outside_is_named_by_its_class(tmp_path: Path, add_row: Any) -> None:
    row = add_row("VICReg", 0, RIGHT, recipe={"method": "examples/vicreg.py:VICReg"})
    assert Row.read(row.path)["method"] == "VICReg"


@pytest.mark.parametrize("content", ["[]", "3", "null", '"x"', f'{{"schema": {SCHEMA}}}', "[" * 100_000])
def test_what_is_no_row_is_named_in_one_line(tmp_path: Path, add_row: Any, content: str) -> None:
    path = add_row("a", 0, RIGHT).path.with_name("other.json")
    path.write_text(content)
    said: list[str] = []
    leaderboard(tmp_path, show=said.append)  # of the other row
    assert "WARNING: left out: " in said[0] and "other.json is not a row" in said[0] and "\n" not in said[0]
    assert any("other.json" in problem for problem in check(tmp_path, show=lambda _: None))


@pytest.mark.parametrize(
    ("part", "field"),
    [("pretraining", "flops"), ("evaluation", "data"), ("backbone", "name"), ("pretraining", "images_seen")],
)
def test_a_missing_field_is_named(tmp_path: Path, add_row: Any, part: str, field: str) -> None:
    """The checksum fits; an id doesn't follow from every field."""
    for method in ("a", "b"):
        path = add_row(method, 0, RIGHT).path
    values = json.loads(path.read_text())
    rewrite(path, **{part: {key: value for key, value in values[part].items() if key != field}})
    said: list[str] = []
    leaderboard(tmp_path, formats=["md", "html", "latex"], show=said.append)
    assert re.search(rf"left out: .*row-.*{field}", said[0])
    other = add_row("a", 0, RIGHT).path
    with pytest.raises(UserError, match=rf"row-.*{field}"):
        compare(str(path), str(other), show=lambda _: None)


# Schemas --------------------------------------------------------------------------------------------------------------


def test_an_older_row_is_read_as_one_of_the_present(
    tmp_path: Path, add_row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version before called the headline "main"; the checksum is of the stored form, and the file stays as it is."""
    path = add_row("a", 0, RIGHT).path
    values = json.loads(path.read_text())
    values = {
        **{key: value for key, value in values.items() if key != "headline"},
        "main": "top1",
        "schema": SCHEMA - 1,
    }
    path.write_text(json.dumps({**values, "checksum": checksum_of(values)}))
    stored = path.read_bytes()
    for said in refused(tmp_path):
        assert f"written in row schema {SCHEMA - 1}, which this ssl-bench no longer reads" in said

    def rename(old: dict[str, Any]) -> dict[str, Any]:
        return {**{key: value for key, value in old.items() if key != "main"}, "headline": old["main"]}

    monkeypatch.setitem(module.MIGRATIONS, SCHEMA - 1, rename)
    row = Row.read(path)
    assert (row["schema"], row["headline"], row["id"]) == (SCHEMA, "top1", values["id"])
    assert check(tmp_path, show=lambda _: None) == [] and path.read_bytes() == stored
    path.write_bytes(stored.replace(b'"main": "top1"', b'"main": "top5"'))
    with pytest.raises(UserError, match="edited after it was written"):
        Row.read(path)


def test_migrations_follow_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(old: dict[str, Any], version: int) -> dict[str, Any]:
        return {**old, f"was {version}": True}

    before = range(SCHEMA - 3, SCHEMA)
    for version in before:
        monkeypatch.setitem(module.MIGRATIONS, version, partial(step, version=version))
    expected = {f"was {version}": True for version in before}
    assert module.migrated({"schema": SCHEMA - 3}) == {"schema": SCHEMA, **expected}


@pytest.mark.parametrize("version", [SCHEMA + 1, "2", None])
def test_a_newer_row_asks_for_an_upgrade(tmp_path: Path, add_row: Any, version: Any) -> None:
    rewrite(add_row("a", 0, RIGHT).path, schema=version)
    for said in refused(tmp_path):
        assert f"written in row schema {version!r}; this ssl-bench reads up to {SCHEMA}: upgrade it" in said


def test_ids_are_those_of_the_formula(add_row: Any) -> None:
    row = add_row("a", 0, RIGHT)
    assert expected_id(row.values) == row["id"]


@pytest.mark.parametrize("suffix", [".npy", ".png"])
def test_a_row_counts_as_missing_without_what_lies_beside_it(add_row: Any, suffix: str) -> None:
    """So it is measured again."""
    row = add_row("mae", 0, RIGHT)
    add_picture(row)
    assert is_measured(row.path)
    file = row.path.with_suffix(suffix)
    file.write_bytes(file.read_bytes()[:60])
    assert not is_measured(row.path)
    file.unlink()
    assert not is_measured(row.path)
