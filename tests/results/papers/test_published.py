"""Published numbers: the file is valid, what is wrong is named, sources that disagree are both kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from ssl_bench.methods import METHODS
from ssl_bench.results.papers.published import COLUMNS, conflicts, published, read_numbers, same_value, select
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.shipped import shipped

FILE = shipped("results") / "published.csv"
OURS = {
    *("mpp", "mae", "moco_v3", "dino", "ibot", "beit", "eva", "igpt", "moby", "ssta", "esvit", "eva02", "hiera_mae"),
    *("simmim", "maskfeat", "beit_v2", "simclr", "byol", "swav"),
}


def one(**wanted: str) -> float:
    (number,) = select(published(), wanted)
    return float(number)


def changed(tmp_path: Path, **values: str) -> Path:
    """The first number of the shipped file with other values."""
    number = replace(published()[0], **values)
    path = tmp_path / "numbers.csv"
    path.write_text(",".join(COLUMNS) + "\n" + ",".join(f'"{getattr(number, name)}"' for name in COLUMNS) + "\n")
    return path


def test_counts() -> None:
    numbers = published()
    assert len(numbers) == 1933
    assert len({n.method for n in numbers}) == 83 and len({n.source for n in numbers}) == 44
    assert sum(n.weak == "yes" for n in numbers) == 89
    kinds = Counter(n.source_kind for n in numbers)
    assert kinds == {"paper": 449, "paper_other": 451, "authors": 359, "repository": 602, "survey": 35, "notes": 37}
    assert {n.method for n in numbers} >= OURS


def test_numbers_of_the_method_cards() -> None:
    """What each method's paper says on ImageNet, read again from the papers' tables."""
    plain = {"eval_dataset": "imagenet1k", "metric": "top1", "setting": "", "source_kind": "paper"}
    assert one(method="mae", backbone="ViT-B/16", protocol="linear", epochs="1600", **plain) == 68.0
    assert one(method="mae", backbone="ViT-L/16", protocol="finetune", epochs="1600", **plain) == 85.9
    assert one(method="dino", backbone="ViT-S/16", protocol="knn", place="Table 2", **plain) == 74.5
    assert one(method="ibot", backbone="ViT-B/16", protocol="linear", place="Table 1", **plain) == 79.5
    assert one(method="moco_v3", backbone="ViT-S/16", protocol="linear", place="Table 4", **plain) == 72.5
    assert one(method="beit", backbone="ViT-L/16", protocol="linear", place="Table 9", **plain) == 73.5
    theirs = plain | {"source_kind": "authors"}
    assert one(method="esvit", backbone="Swin-T/W7", protocol="linear", pretrain_data="imagenet1k", **theirs) == 78.0
    assert one(method="moby", backbone="DeiT-S/16", protocol="linear", **theirs) == 72.8
    assert one(method="hiera_mae", backbone="Hiera-B+", protocol="finetune", **theirs) == 85.2
    assert one(method="maskfeat", backbone="ViT-L/16", protocol="finetune", **theirs) == 85.7
    assert (
        one(method="ssta", backbone="ViT-S/16", protocol="finetune", **plain | {"source_kind": "paper_other"}) == 81.4
    )


@pytest.mark.parametrize(
    ("protocol", "metric", "values"),
    [
        ("seg_linear", "miou", {"deit B": 35.4, "dino B": 34.5, "ibot B": 38.3, "beit B": 27.4}),
        ("seg_upernet", "miou", {"deit S": 44.5, "deit B": 46.6, "moco_v3 B": 47.3, "dino B": 46.8, "ibot S": 45.4}),
        ("seg_upernet", "miou", {"ibot B": 50.0, "beit B": 45.8, "mae B": 48.1}),
        ("det", "box_ap", {"deit S": 46.2, "deit B": 49.8, "dino B": 50.1, "ibot S": 49.4, "ibot B": 51.2}),
        ("det", "mask_ap", {"deit S": 40.1, "deit B": 43.2, "dino B": 43.4, "ibot S": 42.6, "ibot B": 44.2}),
        ("det", "box_ap", {"moco_v3 B": 47.9, "beit B": 49.8, "mae B": 50.3}),
        ("det", "mask_ap", {"moco_v3 B": 42.7, "beit B": 44.4, "mae B": 44.9}),
        ("vos", "j_f_mean", {"dino S": 61.8, "dino B": 62.3, "ibot S": 61.8, "ibot B": 62.1, "mae B": 50.9}),
        ("vos", "j_mean", {"dino S": 60.2, "dino B": 60.7, "ibot S": 60.4, "ibot B": 60.9, "mae B": 49.4}),
        ("vos", "f_mean", {"dino S": 63.4, "dino B": 63.9, "ibot S": 63.2, "ibot B": 63.3, "mae B": 52.6}),
        ("seg_upernet", "miou", {"beit B": 47.1}),  # as the MAE paper lists it
        ("seg_mask2former", "miou", {"mae Ti": 39.0, "mae S": 44.1, "mae B": 49.3, "eva g/14": 61.5}),
        ("seg_mask2former", "miou", {"eva g/14": 62.3}),  # at several scales
        ("det", "box_ap", {"mae Ti": 37.9, "mae S": 45.3, "deit S": 47.2, "dino S": 49.1, "ibot S": 49.7}),
        ("det", "box_ap", {"mae B": 51.6, "beit B": 50.1, "deit B": 47.9, "eva g/14": 64.2}),
        ("det", "mask_ap", {"mae Ti": 34.9, "mae S": 40.8, "deit S": 41.9, "dino S": 43.3, "ibot S": 44.0}),
        ("det", "mask_ap", {"mae B": 45.9, "beit B": 43.5, "deit B": 42.9, "eva g/14": 53.9}),
        ("det", "box_ap", {"eva g/14": 64.5}),
        ("det", "mask_ap", {"eva g/14": 55.0}),
        ("vos", "j_f_mean", {"dino S/8": 69.9, "dino B/8": 71.4, "deit S/8": 66.0}),
        ("vos", "j_mean", {"dino S/8": 66.6, "dino B/8": 67.9, "deit S/8": 63.9}),
        ("vos", "f_mean", {"dino S/8": 73.1, "dino B/8": 74.9, "deit S/8": 68.1}),
        ("attention_jaccard", "jaccard", {"dino S": 45.9, "dino S/8": 44.7, "deit S": 27.3, "random_init S": 22.0}),
        ("copy_detection", "map", {"dino B": 81.7, "dino B/8": 85.5, "deit B": 76.4}),
        ("seg_linear", "miou", {"dinov2 S/14": 47.2, "dinov2 B/14": 51.3, "dinov2 L/14": 53.1, "dinov2 g/14": 53.0}),
        ("depth_linear", "rmse", {"dinov2 S/14": 0.417, "dinov2 B/14": 0.362, "dinov2 L/14": 0.333}),
        ("depth_linear", "rmse", {"dinov2 g/14": 0.298}),
    ],
)
def test_dense_numbers_of_vit_s_and_vit_b(protocol: str, metric: str, values: dict[str, float]) -> None:
    """Read again from the papers' tables; others list the same network differently."""
    for named, value in values.items():
        method, size = named.split()
        backbone = f"ViT-{size if '/' in size else f'{size}/16'}"
        found = [
            float(n.value)
            for n in published()
            # Supervised networks of other papers' own training are listed apart from DeiT.
            if n.method in (method, "supervised_other" if method == "deit" else method)
            and (n.backbone.removesuffix(" distilled"), n.protocol, n.metric) == (backbone, protocol, metric)
        ]
        assert value in found, (named, found)


@pytest.mark.parametrize(
    ("data", "setting", "values"),
    [
        ("oxford", "Medium", {"deit": [33.5], "dino": [41.8, 37.2], "ibot": [36.6]}),
        ("oxford", "Hard", {"deit": [8.9], "dino": [13.7, 13.9], "ibot": [13.0]}),
        ("paris", "Medium", {"deit": [63.0], "dino": [63.1, 63.1], "ibot": [61.5]}),
        ("paris", "Hard", {"deit": [37.2], "dino": [34.4, 34.4], "ibot": [34.1]}),
    ],
)
def test_landmarks_of_vit_s(data: str, setting: str, values: dict[str, list[float]]) -> None:
    """The DINO paper's first; the iBOT paper measured its own and DINO's again."""
    wanted = {"eval_dataset": f"revisited_{data}", "protocol": "retrieval", "setting": setting, "metric": "map"}
    wanted |= {"backbone": "ViT-S/16", "pretrain_data": "imagenet1k"}
    for method, expected in values.items():
        found = sorted(select(published(), wanted | {"method": method}), key=lambda n: n.source)
        assert [float(n) for n in found] == expected


def test_names_of_ours_are_registered_names() -> None:
    ours = {n.method for n in published()}
    assert "supervised" not in ours  # ours is a baseline, none of the published ones
    assert set(METHODS) - {"clip", "raw_pixels", "supervised", "untrained"} <= ours


def test_conflicts_name_both_sources() -> None:
    wanted = {"method": "mae", "backbone": "ViT-B/16", "protocol": "linear", "source_kind": "paper"}
    (number,) = select(published(), wanted)
    assert [(o.value, o.source) for o in conflicts(number, published())] == [("67.8", "facebookresearch/mae")]
    survey = select(published(), {"method": "ibot", "protocol": "linear", "value": "79.8", "source_kind": "survey"})[0]
    assert {o.value for o in conflicts(survey, published(), epochs="300")} == {"81.0"}
    assert conflicts(survey, published(), epochs="50") == []


@pytest.mark.parametrize(("a", "b", "same"), [("83.6", "83.664", True), ("76.5", "76.6", False), ("68.0", "68", True)])
def test_same_value(a: str, b: str, same: bool) -> None:
    assert same_value(a, b) is same is same_value(b, a)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"value": "about 80"}, "line 2: value is 'about 80'"),
        ({"value": "nan"}, "line 2: value is 'nan'"),
        ({"value": "799"}, "line 2: value is 799 percent"),
        ({"source": ""}, "line 2: source is empty"),
        ({"method": "MAE v2"}, "line 2: method is 'MAE v2'"),
        ({"source_kind": "blog"}, "unknown source_kind 'blog'.*Choose from: authors, notes"),
        ({"weak": "maybe"}, "unknown weak 'maybe'"),
        ({"epochs": "-1"}, "line 2: epochs is '-1'"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, values: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_numbers(changed(tmp_path, **values))


def test_wrong_files(tmp_path: Path) -> None:
    lines = FILE.read_text().splitlines()
    path = tmp_path / "a.csv"
    path.write_text("\n".join([lines[0].replace("metric", "score"), lines[1]]))
    with pytest.raises(UserError, match="line 1: expected the columns method,name"):
        read_numbers(path)
    path = tmp_path / "b.csv"
    path.write_text("\n".join([lines[0], lines[1], lines[1].rpartition(",")[0] + ",another note"]))
    with pytest.raises(UserError, match="line 3: the same number as line 2, from the same source"):
        read_numbers(path)
    path = tmp_path / "c.csv"
    path.write_text("\n".join([lines[0], lines[1] + ",more"]))
    with pytest.raises(UserError, match=f"line 2: {len(COLUMNS) + 1} fields"):
        read_numbers(path)
    with pytest.raises(UserError, match="cannot read"):
        read_numbers(tmp_path / "none.csv")


def test_unknown_column() -> None:
    with pytest.raises(UserError, match=r"unknown column of published\.csv 'metod': did you mean 'method'"):
        select(published(), {"metod": "mae"})
