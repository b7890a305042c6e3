"""Paper tables: every number as published, our rows only where they belong, untrusted names harmless."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from row_fixtures import INPUT, sealed

from ssl_bench.commands.list import catalogue
from ssl_bench.commands.table import table
from ssl_bench.config.recipe import load_recipe
from ssl_bench.evaluations.trained.probe import Probe
from ssl_bench.methods import METHODS
from ssl_bench.results.papers.latex import latex
from ssl_bench.results.papers.published import published
from ssl_bench.results.papers.table import Filled, fill
from ssl_bench.results.papers.table_spec import read_definition, table_names
from ssl_bench.results.rows.row import read_rows
from ssl_bench.results.text import note_markdown
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.shipped import shipped

# The performance table of the survey slides, typed from them: method, backbone -> linear, fine-tune.
SURVEY = """
mpp ViT-B/16 - 79.9
igpt iGPT-L 65.2 -
igpt iGPT-XL 68.7 -
moco_v3 ViT-B/16 76.7 83.2
moco_v3 ViT-L/16 77.6 84.1
moco_v3 ViT-H 78.1 -
moby Swin-T/W7 75.3 -
dino ViT-B/8 80.1 -
dino ViT-B/16 78.2 82.8
ibot ViT-B/16 79.5 83.8
ibot ViT-L/16 79.8 -
ibot ViT-L/16 81.6 86.3
ibot Swin-T/W7 78.6 -
ibot Swin-T/W14 79.3 -
esvit Swin-T/W7 78.1 -
esvit Swin-T/W14 78.7 -
esvit Swin-S 79.5 -
esvit Swin-B 80.4 -
esvit Swin-B/W14 81.3 -
beit ViT-B/16 56.7 83.2
beit ViT-L/16 73.5 85.2
mae ViT-B/16 - 83.6
mae ViT-L/16 73.5 84.9
mae ViT-L/16 - 85.9
mae ViT-H/14 - 86.9
mae ViT-H/14 - 87.8
"""
# Below them, from the sources that the README of the tables names.
OTHERS = """
simclr ViT-S/16 69.0 -
simclr ViT-B/16 73.9 -
byol ViT-S/16 71.0 -
byol ViT-B/16 73.9 -
swav ViT-S/16 67.1 -
swav ViT-B/16 71.6 -
simmim ViT-B/16 - 83.8
simmim Swin-B - 84.0
maskfeat ViT-B/16 - 84.0
maskfeat ViT-L/16 - 85.7
beit_v2 ViT-B/16 - 85.5
beit_v2 ViT-L/16 - 87.3
hiera_mae Hiera-B - 84.5
hiera_mae Hiera-L - 86.1
hiera_mae Hiera-H - 86.9
eva ViT-g/14 - 89.6
eva02 EVA-02-B/14 - 88.3
eva02 EVA-02-L/14 - 90.0
ssta ViT-Ti/16 - 75.2
ssta ViT-S/16 - 81.4
"""


def write(folder: Path, value: float, *, method: str = "mae", seed: int = 0, **changes: Any) -> None:
    """A row of MAE's ViT-B/16 recipe evaluated by MAE's linear probe on ImageNet, changed where asked."""
    overrides = changes.pop("recipe", {})
    recipe = load_recipe("mae", "vit_base_in1k", {"seed": seed, **overrides}).as_dict()
    cost = {
        "images_seen": 100,
        "epochs": 1600.0,
        "patches_per_image": 49.0,
        "patches_encoded_without_gradient": 0,
        "flops": 1e9,
    }
    stated = {
        "name": "linear-mae",
        "evaluator": "probe",
        "version": Probe.version,
        "settings": {},
        "pooling": "cls",
        "data": "imagenet1k",
        "fingerprints": {"train": "a", "test": "b"},
        "images": {"train": 1281167, "dev": 10000, "test": 50000},
    }
    trained = {
        **cost,
        "data": "imagenet1k",
        "wall_seconds": 5.0,
        "peak_memory_bytes": 1,
        "device": "d",
        "fingerprint": "f",
    }
    values: dict[str, Any] = {
        "method": method,
        "category": "reconstruction",
        "backbone": {**recipe["backbone"], "input": INPUT},
        "recipe": recipe,
        "views": "1x224",
        "pretraining": trained | changes.pop("pretraining", {}),
        "evaluation": stated | changes.pop("evaluation", {}),
        "metrics": {"top1": {"value": value, "n": 50000, "low": value - 0.4, "high": value + 0.4}},
        "headline": "top1",
        "flags": [],
        "deviations": [],
        "weights": {"sha256": "c" * 64, "loaded_percent": 100.0},
        **changes,
    }
    seal(folder / "rows", values)


def seal(rows: Path, values: dict[str, Any]) -> None:
    """Write a row with the id and the checksum that its content has."""
    values = json.loads(json.dumps(values))
    if values["recipe"]:
        values["recipe"]["method"] = values["method"]
        values["backbone"] = {**values["recipe"]["backbone"], "input": INPUT}
    values = sealed(values)
    rows.mkdir(parents=True, exist_ok=True)
    (rows / f"{values['id']}.json").write_text(json.dumps(values))


def lines_of(name: str, folder: Path, tmp_path: Path) -> list[dict[str, str]]:
    table(name, rows=[folder], formats=["csv"], out=tmp_path / "out", show=lambda _: None)
    with (tmp_path / "out" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def mae_linear(folder: Path, tmp_path: Path) -> dict[str, str]:
    """The linear cell of MAE's ViT-B/16 in the MAE paper's table."""
    found = [x for x in lines_of("mae", folder, tmp_path) if (x["method"], x["backbone"]) == ("mae", "ViT-B/16")]
    return next(x for x in found if x["column"] == "linear")


@cache
def filled(name: str) -> Filled:
    return fill(read_definition(name), published(), [])


def test_survey_has_every_number_as_printed() -> None:
    shown = []
    for row, cells in zip(filled("survey").definition.rows, filled("survey").cells, strict=True):
        number = next(cell.number for cell in cells if cell)
        assert number.method == row.where["method"]
        shown.append(
            f"{number.method} {number.backbone} " + " ".join(cell.number.value if cell else "-" for cell in cells)
        )
    assert shown[:26] == SURVEY.strip().splitlines()
    assert shown[26:] == OTHERS.strip().splitlines()


@pytest.mark.parametrize("name", ["survey", "survey-summary"])
def test_every_published_method_of_ours_is_in_the_survey(name: str) -> None:
    made = filled(name)
    shown = {cell.number.method for cells in made.cells for cell in cells if cell}
    assert {n.method for n in published()} & set(METHODS) <= shown
    sources = {cell.number.source for cells in made.cells for cell in cells if cell}
    text = made.markdown()
    for source in sources - {made.definition.where["source"]}:
        assert f"from {note_markdown(source)}" in text


def test_each_backbone_in_the_column_of_its_own() -> None:
    """The summary's columns are of one backbone each; the last two of those that rows name."""
    shown = {}
    for cells in filled("survey-summary").cells:
        for column, cell in zip(filled("survey-summary").definition.columns, cells, strict=True):
            if cell:
                shown[cell.number.method, column.label] = f"{cell.number.backbone} {cell.number.value}"
    assert shown["hiera_mae", "fine-tune, own backbone"] == "Hiera-B 84.5"
    assert shown["igpt", "linear, own backbone"] == "iGPT-L 65.2"
    assert shown["eva", "fine-tune, own backbone"] == "ViT-g/14 89.6"
    assert shown["esvit", "linear, Swin-T"] == "Swin-T/W7 78.1"
    assert [label for method, label in shown if method == "hiera_mae"] == ["fine-tune, own backbone"]
    assert all(label.split(", ")[1] in text for (_, label), text in shown.items() if "own" not in label)


@pytest.mark.parametrize("name", table_names())
def test_every_table_resolves_and_renders(name: str) -> None:
    made = filled(name)
    assert all(any(cells) for cells in made.cells)
    text = made.markdown()
    for cells in made.cells:
        assert all(cell.number.value in text for cell in cells if cell)
    header = next(line for line in text.splitlines() if line.startswith("| method"))
    body = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.count(" | ") for line in body} == {header.count(" | ")}
    assert made.terminal(width=250) and made.csv()
    narrow = made.terminal(width=80)
    first = 2 + len(made.definition.facts)
    assert all(cell in narrow for line in made.body()[0] for cell in line[first:])  # no number is broken
    assert latex(made).count(r" \\") == len(made.cells) + 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mae", "Accuracies in percent."),
        ("dense", "J&F, Jaccard index, mAP, mIoU, box AP and mask AP in percent."),
    ],
)
def test_units_are_those_of_the_metrics(name: str, said: str) -> None:
    made = filled(name)
    assert rf". {said.replace('&', chr(92) + '&')}}}" in latex(made)
    assert f"\n\n{said.replace('&', '&amp;')} Reported: " in made.markdown()
    assert made.terminal(width=250).startswith(f"{said} [1]: ")
    assert ("Accuracies" in made.markdown()) == (name == "mae")


def test_list_tables() -> None:
    listed = catalogue("tables")
    papers = {"moco_v3", "dino", "ibot", "beit", "mae", "eva", "eva02", "hiera", "moby", "esvit", "igpt"}
    assert set(listed) == {"survey", "survey-summary", "dense", *papers}
    assert (listed["survey"]["rows"], listed["survey"]["numbers"]) == (26 + 20, 34 + 20)
    assert listed["dino"]["numbers"] == 48  # all of its table 2


def test_definitions_hold_no_results() -> None:
    """No published value of a table stands in its definition."""
    for name in table_names():
        definition = read_definition(name)
        said = json.dumps([[r.where, r.label, r.unlike, r.stands_for] for r in definition.rows] + [definition.where])
        for cells in filled(name).cells:
            assert not [cell.number.value for cell in cells if cell and cell.number.value in said]


def test_measured_cell(tmp_path: Path) -> None:
    write(tmp_path, 67.0, seed=0)
    write(tmp_path, 67.4, seed=1)
    cell = mae_linear(tmp_path, tmp_path)
    assert (float(cell["measured"]), float(cell["difference"]), cell["seeds"]) == (67.2, -0.8, "2")
    # Student's t over two seeds (12.706 s / sqrt 2, s = 0.2 sqrt 2) with the interval over images, in quadrature.
    assert float(cell["half_interval_95"]) == pytest.approx((2.5412**2 + 0.4**2) ** 0.5, abs=2e-3)
    others = [x for x in lines_of("mae", tmp_path, tmp_path) if x["measured"]]
    assert len(others) == 1
    shown: list[str] = []
    table("mae", rows=[tmp_path], show=shown.append)
    assert "67.2 ± 2.6" in shown[0] and "-0.8 ± 2.6" in shown[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": {"epochs": "800"}},
        {"recipe": {"norm_pix": "false"}},
        {"recipe": {"backbone": "vit_base_patch32_224"}},
        {"pretraining": {"data": "cifar10"}},
        {"evaluation": {"data": "cifar10"}},
        {"evaluation": {"name": "linear"}},  # on cached features: another protocol
        {"method": "moco_v3"},
        {"metrics": {"top5": {"value": 80.0, "n": 5, "low": 79.0, "high": 81.0}}, "headline": "top5"},
    ],
)
def test_what_differs_fills_no_cell(tmp_path: Path, changes: dict[str, Any]) -> None:
    write(tmp_path, 67.0, **changes)
    assert not [line for line in lines_of("mae", tmp_path, tmp_path) if line["reported"] and line["measured"]]
    cell = mae_linear(tmp_path, tmp_path)
    assert "ssl-bench pretrain mae --recipe vit_base_in1k" in cell["notes"]


def test_released_weights_fill_their_cell_and_say_so(tmp_path: Path) -> None:
    backbone = {"name": "vit_base_patch16_224", "input": INPUT}
    write(tmp_path, 67.5, recipe={}, backbone=backbone, flags=["external weights"])
    path = next((tmp_path / "rows").iterdir())
    values = json.loads(path.read_text()) | {"recipe": None}
    values["pretraining"] = {"data": "imagenet1k", "fingerprint": None, "images_seen": None}
    path.unlink()
    seal(path.parent, values)
    cell = mae_linear(tmp_path, tmp_path)
    assert float(cell["measured"]) == 67.5
    assert "measured on the authors' weights, taken to be mae_pretrain_vit_base.pth" in cell["notes"]


@pytest.mark.parametrize(("epochs", "fills"), [(1600, True), (800, False)])
def test_weights_of_stated_epochs_fill_their_cell_alone(tmp_path: Path, epochs: float, fills: bool) -> None:
    trained = {"data": "imagenet1k", "fingerprint": None, "images_seen": None, "epochs": epochs}
    write(tmp_path, 67.5, flags=["external weights"])
    path = next((tmp_path / "rows").iterdir())
    values = json.loads(path.read_text()) | {"recipe": None, "pretraining": trained}
    path.unlink()
    seal(path.parent, values)
    cell = mae_linear(tmp_path, tmp_path)
    assert bool(cell["measured"]) is fills
    assert not fills or "released weights, of 1600 epochs as `convert` was told" in cell["notes"]


def test_rows_of_two_versions_fill_nothing(tmp_path: Path) -> None:
    write(tmp_path, 67.0)
    write(tmp_path, 68.0, seed=1, evaluation={"version": Probe.version + 1})
    with pytest.raises(UserError, match="different versions"):  # nor can they share the table of other rows
        table("mae", rows=[tmp_path], show=lambda _: None)


def test_other_data_goes_to_a_table_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, 67.0, pretraining={"data": "cifar10"}, evaluation={"data": "cifar10"})
    write(tmp_path, 50.0, method="somebody_else", evaluation={"data": "cifar10"})
    shown: list[str] = []
    table("mae", rows=[tmp_path], formats=["md"], show=shown.append)
    above, below = shown[0].split("## Measured on something else, not comparable with the above: cifar10")
    assert "67.0 ± 0.4 (1600 epochs)" in above and "67.0 ± 0.4" in below
    assert "somebody" not in shown[0]  # not a method of this table


def test_own_rows_have_columns_of_their_own(tmp_path: Path) -> None:
    """What was measured on CIFAR-10 stands once a method, under a heading that says so, beside no published number."""
    write(tmp_path, 40.0, seed=0, pretraining={"data": "cifar10", "epochs": 10.0}, evaluation={"data": "cifar10"})
    write(tmp_path, 44.0, seed=1, pretraining={"data": "cifar10", "epochs": 10.0}, evaluation={"data": "cifar10"})
    write(tmp_path, 30.0, method="dino", pretraining={"data": "shapes", "epochs": 3.0}, evaluation={"data": "cifar10"})
    same = {"data": "cifar10", "epochs": 10.0}
    write(
        tmp_path, 20.0, pretraining=same, evaluation={"data": "cifar10", "name": "factors"}
    )  # nothing that the survey shows
    rows = read_rows(tmp_path)
    made = fill(read_definition("survey"), published(), rows)
    empty = fill(read_definition("survey"), published(), [])
    assert made.header()[:-1] == empty.header()
    assert made.header()[-1] == "ours on cifar10, vit_base_patch16_224: linear-mae"
    lines = {(line[0].split("[")[0], line[1]): line for line in made.body()[0]}
    assert [line[:-1] for line in made.body()[0]] == [line for line in empty.body()[0]]  # nothing else is touched
    assert lines[("MAE", "ViT-B/16")][-1].startswith("42.0 ± 25.4") and "(10 epochs)" in lines[("MAE", "ViT-B/16")][-1]
    assert lines[("DINO", "ViT-B/16")][-1] == "30.0 ± 0.4 (3 epochs of shapes)"  # not in the row marked °
    assert sum(bool(line[-1]) for line in lines.values()) == 2
    own = [x for x in csv.DictReader(made.csv().splitlines()) if x["measured"]]
    assert {(x["method"], x["eval_dataset"], x["reported"], x["difference"]) for x in own} == {
        ("mae", "cifar10", "", ""), ("dino", "cifar10", "", ""),
    }  # fmt: skip
    assert "there is no difference" in made.markdown() and "there is no difference" not in empty.markdown()


def test_survey_with_the_committed_rows() -> None:
    folder = shipped("results") / "quick-cifar10"
    if not (folder / "rows").is_dir():
        pytest.skip("an installed package carries no rows")
    made = fill(read_definition("survey"), published(), read_rows(folder))
    assert not any(entry.rows for entries in made.cells for entry in entries if entry)
    (column,) = [column for column in made.own if column.evaluation == "linear"]
    assert {each.method for members in column.aggregates.values() for each in members} == {
        "mpp", "moco_v3", "dino", "ibot", "beit", "mae",
    }  # fmt: skip


def test_a_row_in_two_folders_counts_once(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name, 67.0)
    text: list[str] = []
    table("mae", rows=[tmp_path / "a", tmp_path / "b"], formats=["csv"], show=text.append)
    (cell,) = [line for line in csv.DictReader(text[0].splitlines()) if line["measured"]]
    assert cell["seeds"] == "1"


def test_names_are_escaped(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>|[x](javascript:1)\n# head \x1b[2J"
    write(tmp_path, 67.0, evaluation={"data": evil})
    shown: list[str] = []
    table("mae", rows=[tmp_path], formats=["md", "terminal"], show=shown.append)
    assert "&lt;img src=x onerror=alert(1)&gt;\\|\\[x\\](javascript:1) # head" in shown[0]
    assert "<img" not in shown[0] and "\n# head" not in shown[0] and "\x1b" not in shown[0] + shown[1]


def test_same_bytes_and_formats(tmp_path: Path) -> None:
    write(tmp_path, 67.0)
    files = [table("survey", rows=[tmp_path], formats=["md", "csv"], out=tmp_path / s, show=print) for s in "ab"]
    assert [f.name for f in files[0]] == ["survey.md", "survey.csv"]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]
    assert "<sub>MPP °" in files[0][0].read_text()


def test_wrong_requests(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown table 'surwey': did you mean 'survey'"):
        table("surwey")
    with pytest.raises(UserError, match="unknown format 'html'"):
        table("survey", formats=["html"])
    with pytest.raises(UserError, match="no rows in"):
        table("survey", rows=[tmp_path])
    definition = tmp_path / "mine.yaml"
    head = "title: t\nwhere: {metric: top1, eval_dataset: imagenet1k}\n"
    for text, message in [
        (head + "columns: [{label: a, protokol: knn}]\nrows: [{method: mae}]\n", "unknown key 'protokol'.*'protocol'"),
        (head + "columns: [{label: a}]\n", "the key 'rows' is missing"),
        (head + "columns: [{label: a}]\nrows: []\n", "rows must be a list"),
        (head + "columns: [{label: a, protocol: linear}]\nrows: [{method: mae}]\n", "leaves a choice in column 'a'"),
        (head + "columns: [{label: a, protocol: linear}]\nrows: [{method: mea}]\n", "no published number for the row"),
    ]:
        definition.write_text(text)
        with pytest.raises(UserError, match=message):
            table(str(definition))
    with pytest.raises(UserError, match="no such file"):
        table(str(tmp_path / "none.yaml"))


def test_a_row_may_have_another_methods_protocol(tmp_path: Path) -> None:
    text = (
        "title: T\ncolumns: [{label: c, protocol: finetune, evaluation: own}]\n"
        "rows: [{method: dino, protocols: {finetune: PROTOCOL}}]\n"
    )
    file = tmp_path / "t.yaml"
    file.write_text(text.replace("PROTOCOL", "ibot"))
    definition = read_definition(str(file))
    assert definition.rows[0].protocols == {"finetune": "ibot"}
    file.write_text(text.replace("PROTOCOL", "finetune-ibot"))
    with pytest.raises(UserError, match=r"t\.yaml: protocols: unknown method with a protocol for finetune 'finetune-"):
        read_definition(str(file))
    file.write_text(text.replace("{finetune: PROTOCOL}", "ibot"))
    with pytest.raises(UserError, match=r"t\.yaml: protocols: expected keys and values, found 'ibot'"):
        read_definition(str(file))
