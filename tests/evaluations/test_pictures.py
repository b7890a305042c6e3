"""The picture beside a row: which images, how many bytes, the same every time; rows that have one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from panels import panels_of
from tiny import NANO

from ssl_bench.backbones import build_backbone
from ssl_bench.checkpoints.encoder_file import Checkpoint
from ssl_bench.commands.check import check
from ssl_bench.commands.evaluate import run_evaluations
from ssl_bench.commands.leaderboard import leaderboard
from ssl_bench.data.datasets import ImageSet, Splits
from ssl_bench.data.targets import Targets
from ssl_bench.evaluations.frozen.segmentation_knn import SegmentationKNN
from ssl_bench.evaluations.pictures import SHOWN, SIDE, Gallery, boxed, colours, overlaid
from ssl_bench.results.rows.picture import LARGEST, read_picture
from ssl_bench.results.rows.row import Row, checksum_of


@pytest.mark.parametrize(("n", "wanted"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (600, [100, 300, 500])])
def test_which_images(n: int, wanted: list[int]) -> None:
    assert Gallery(n, "image").wanted == wanted and len(wanted) <= SHOWN
    assert Gallery(n, "image").picture() is None


def test_any_images_fit_and_give_the_same_bytes() -> None:
    """Noise of any size in as many columns as there may be, added in any order."""
    random = torch.Generator().manual_seed(0)
    panels = {i: torch.randint(0, 256, (3, 300, 50 + 400 * i), generator=random, dtype=torch.uint8) for i in range(3)}
    found = set()
    for order in ((0, 1, 2), (2, 0, 1)):
        gallery = Gallery(3, *"abcdefghi")
        for index in order:
            gallery.add(index, *[panels[index]] * 9)
            gallery.add(7, panels[index])  # not shown
        picture = gallery.picture()
        assert picture is not None
        found.add(picture)
    assert len(found) == 1 and SIDE * SIDE < len(picture.png) <= LARGEST


def test_overlays_and_boxes() -> None:
    image = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    mask = torch.zeros(8, 8, dtype=torch.uint8)
    mask[:, 4:] = 1
    assert overlaid(image, mask)[:, 0, [0, 7]].T.tolist() == [[40, 40, 40], [121, 25, 25]]
    drawn = boxed(image, torch.tensor([[1.0, 1, 6, 6]]), torch.tensor([2]))
    assert drawn[:, 1, 3].tolist() == [0, 128, 0] and drawn[:, 3, 3].tolist() == [100] * 3
    assert boxed(image, torch.zeros(0, 4), torch.zeros(0)) is image
    gallery = Gallery(1, "image", "mask")
    gallery.add(0, image, overlaid(image, mask))
    ((left, right),) = panels_of(gallery.picture(), 1)
    assert left[0][0] == [100] * 3 and right[0][7] == [121, 25, 25]
    assert colours(mask[None]).shape == (1, 3, 8, 8)


@pytest.fixture
def row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Row:
    """Of a segmentation, in the working folder."""
    monkeypatch.chdir(tmp_path)
    images = torch.randint(0, 256, (12, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    masks = (images[:, 0] > 128).to(torch.uint8)
    zeros = torch.zeros(12, dtype=torch.int64)
    made = ImageSet("masked", "train", zeros, (), "0" * 64, images, targets=Targets(masks=masks, classes=("no", "yes")))
    splits = Splits(made, replace(made, split="test"))
    torch.manual_seed(0)
    checkpoint = Checkpoint(build_backbone(NANO), "m", {}, "a" * 64)
    (found,) = run_evaluations(checkpoint, {"segmentation-knn": SegmentationKNN(memory=50)}, splits, tmp_path, None)
    return found


def test_a_row_has_its_picture_and_the_page_shows_it(row: Row, tmp_path: Path) -> None:
    assert row["picture"]["file"] == row.path.with_suffix(".png").name
    assert row["picture"]["columns"] == ["image", "true classes", "predicted classes"]
    content = read_picture(row)
    assert content is not None
    leaderboard(tmp_path, formats=["md", "html"], show=lambda _: None)
    assert check(tmp_path, show=lambda _: None) == []
    page = (tmp_path / "leaderboard.html").read_text()
    assert page.count("data:image/png;base64,") == 1 and "from left to right: image, true classes" in page
    row.path.with_suffix(".png").unlink()
    assert "is missing" in check(tmp_path, show=lambda _: None)[0]
    leaderboard(tmp_path, formats=["html"], show=lambda _: None)
    assert "data:image" not in (tmp_path / "leaderboard.html").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes() + b" "), "is not the picture that its row was written with"),
        (lambda path: path.write_bytes(b"x" * (LARGEST + 1)), "262,145 bytes"),
        (lambda path: path.with_name("other.png").write_bytes(b""), "other.png: a picture of no row"),
    ],
)
def test_what_is_not_the_picture_of_a_row(
    row: Row, tmp_path: Path, change: Callable[[Path], object], words: str
) -> None:
    change(row.path.with_suffix(".png"))
    (said,) = check(tmp_path, show=lambda _: None)
    assert words in said


def test_a_picture_elsewhere_is_not_read(row: Row, tmp_path: Path) -> None:
    values = json.loads(row.path.read_text())
    values["picture"]["file"] = "../../secret.png"
    values["checksum"] = checksum_of(values)
    row.path.write_text(json.dumps(values))
    (said,) = check(tmp_path, show=lambda _: None)
    assert "its picture is named '../../secret.png'" in said
