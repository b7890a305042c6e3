"""Masks, objects and clips: those that are drawn, and those read from the layouts of their authors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_bench.data import scenes, shapes
from ssl_bench.data.datasets import hold_out, load
from ssl_bench.data.images import Ragged
from ssl_bench.data.targets import IGNORE, boxes
from ssl_bench.utils.errors import RunError, UserError

# Drawn --------------------------------------------------------------------------------------------------------------


def test_masks_of_shapes_are_the_object() -> None:
    drawn = shapes.draw(200, size=64)
    inside = drawn.masks > 0
    assert torch.equal(drawn.masks.amax((1, 2)).long(), drawn.labels + 1)
    centres = (torch.arange(64) + 0.5) / 64
    centre = (inside.sum(1) * centres).sum(1) / inside.sum((1, 2))
    assert (centre - drawn.factors["x"]).abs().mean() < 0.02
    area = inside.double().mean((1, 2)).sqrt() / drawn.factors["scale"]
    assert 0.95 < area.mean() < 1.02  # some objects reach over the border


def test_boxes_hold_the_object_and_nothing_less() -> None:
    found = scenes.draw_objects(30)
    for mask, instance in zip(found.masks, found.instances, strict=True):
        places, classes = boxes(instance, mask)
        numbers = [int(k) for k in instance.unique() if k]
        assert len(places) == len(numbers) == len(classes)
        for (x0, y0, x1, y1), number, label in zip(places.int().tolist(), numbers, classes.tolist(), strict=True):
            seen = instance == number
            assert seen[y0 : y1 + 1, x0 : x1 + 1].sum() == seen.sum()
            assert seen[y0].any() and seen[y1].any() and seen[:, x0].any() and seen[:, x1].any()
            assert (mask[seen] == label).all()


def test_scenes_have_one_to_four_objects_of_every_class() -> None:
    found = scenes.draw_objects(300)
    counts = found.instances.flatten(1).amax(1)
    assert torch.bincount(counts.long()).tolist()[0] == 0
    assert (torch.bincount(counts.long(), minlength=5)[1:] > 30).all()
    assert torch.equal(found.masks > 0, found.instances > 0)
    pixels = torch.bincount(found.masks.flatten().long(), minlength=11)
    assert len(pixels) == 11
    assert pixels[1:].min() > 0.6 * pixels[1:].max()
    assert 0.6 < pixels[0] / pixels.sum() < 0.9


def test_a_shorter_draw_is_the_start_of_a_longer_one_and_seeds_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    long, short, other = scenes.draw_objects(30), scenes.draw_objects(12), scenes.draw_objects(12, seed=1)
    assert torch.equal(long.images[:12], short.images) and torch.equal(long.masks[:12], short.masks)
    assert not torch.equal(short.images, other.images)
    monkeypatch.setattr(shapes, "_CHUNK", 1)
    assert torch.equal(scenes.draw_objects(30).images, long.images)
    clips = scenes.draw_clips(12, size=32)
    assert torch.equal(clips.images[: 3 * scenes.FRAMES], scenes.draw_clips(3, size=32).images)


def test_a_larger_size_shows_the_same_scenes() -> None:
    small, large = scenes.draw_objects(20, size=32), scenes.draw_objects(20, size=64)
    assert (large.masks[:, ::2, ::2] == small.masks).float().mean() > 0.95


def test_objects_of_clips_move_steadily_and_hide_each_other() -> None:
    found = scenes.draw_clips(10)
    frames = found.instances.unflatten(0, (10, scenes.FRAMES))
    centres = torch.arange(64.0)
    far = 0
    for clip in frames:
        for number in range(1, scenes.MOVING + 1):
            seen = (clip == number).float()
            area = seen.sum((1, 2))
            whole = area > 0.8 * area.max()  # where nothing hides it
            x = (seen.sum(1) * centres).sum(1) / area
            steps = (x[1:] - x[:-1]).abs()[whole[1:] & whole[:-1]]
            assert (steps < 0.05 * 64 + 1.5).all()  # at most 0.045 sides a frame, and what turning adds
            far += int((x[whole].amax() - x[whole].amin() > 8) if whole.any() else 0)
    assert far > 8
    areas = torch.stack([(frames == number).sum((2, 3)) for number in range(1, scenes.MOVING + 1)])
    hidden = areas.amin(2) < 0.6 * areas.amax(2)
    assert hidden[0].float().mean() > hidden[-1].float().mean()  # the last lies over the others
    assert hidden[0].float().mean() > 0.2


@pytest.mark.parametrize(
    ("spec", "kinds"), [("scenes@32", "masks, instances, objects, label sets"), ("clips@32", "instances, clips")]
)
def test_drawn_sets_have_targets_and_no_labels(spec: str, kinds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssl_bench.data import datasets

    name = spec[: spec.index("@")]
    monkeypatch.setitem(datasets.DRAWN, name, (32, 20, 10))
    splits = load(spec)
    assert splits.train.offers == set(kinds.split(", "))
    assert splits.train.classes == ()
    fit, dev = hold_out(splits.train)
    assert len(fit) + len(dev) == len(splits.train) and len(dev) == len(splits.train) // 10
    assert dev.targets is not None and dev.origin is not None
    assert torch.equal(dev.targets.instance(1), splits.train.targets.instance(int(dev.origin[1][1])))  # type: ignore[union-attr]
    assert splits.train.fingerprint != splits.test.fingerprint


def test_shapes_have_both(monkeypatch: pytest.MonkeyPatch) -> None:
    from ssl_bench.data import datasets

    monkeypatch.setitem(datasets.DRAWN, "shapes", (32, 20, 10))
    train = load("shapes").train
    assert train.offers == {"labels", "factors", "masks", "instances", "objects", "label sets"}
    assert train.targets is not None
    assert int(train.targets.mask(3).max()) == int(train.labels[3]) + 1
    assert train.targets.classes == ("background", *train.classes)


# Read ---------------------------------------------------------------------------------------------------------------


def picture(path: Path, seed: int, size: tuple[int, int] = (9, 6)) -> None:
    """A random image, width x height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


def mask(path: Path, values: list[list[int]], palette: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(values, np.uint8))
    if palette:
        image.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
    image.save(path)


def listed(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SSL_BENCH_DATA", str(tmp_path))
    return tmp_path


def make_voc(data: Path) -> Path:
    home = data / "VOCdevkit" / "VOC2012"
    for i in range(4):
        picture(home / "JPEGImages" / f"{i}.jpg", i, (9 + i, 6))
        mask(home / "SegmentationClass" / f"{i}.png", [[0, 20, 255] * 3 + [i] * i] * 6)
    listed(home / "ImageSets" / "Segmentation" / "train.txt", "0", "2", "3")
    listed(home / "ImageSets" / "Segmentation" / "val.txt", "1")
    return home


@pytest.mark.parametrize("memory", ["0", "1000000000"])
def test_voc(data: Path, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_BENCH_MEMORY", memory)
    make_voc(data)
    splits = load("voc2012")
    targets = splits.train.targets
    assert targets is not None and len(targets.classes) == 21
    assert isinstance(splits.train.images, Ragged) == (memory != "0")
    assert targets.mask(1).tolist() == [[0, 20, IGNORE] * 3 + [2, 2]] * 6  # the numbers, not the colours
    assert targets.mask(1).shape == splits.train.images[1].shape[1:]
    assert splits.train.subset(torch.tensor([2]), "train").targets.mask(0).shape == (6, 12)  # type: ignore[union-attr]
    assert splits.train.name == "voc2012" and splits.train.reader == "masks"


def test_the_fingerprint_of_masks(data: Path) -> None:
    home = make_voc(data)
    first = load("voc2012").train.fingerprint
    assert load("voc2012").train.fingerprint == first
    mask(home / "SegmentationClass" / "0.png", [[1] * 9] * 6)
    assert load("voc2012").train.fingerprint != first


def test_an_unreadable_mask_takes_its_image_along(data: Path) -> None:
    home = make_voc(data)
    (home / "SegmentationClass" / "2.png").write_bytes(b"no mask")
    (home / "JPEGImages" / "3.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"2 unreadable images in voc2012: .*2\.png"):
        load("voc2012")
    train = load("voc2012", skip_unreadable=True).train
    assert len(train) == 1 and train.skipped == 2
    assert train.targets is not None and train.targets.mask(0).shape == (6, 9)


def test_a_mask_in_colours_is_refused(data: Path) -> None:
    picture(make_voc(data) / "SegmentationClass" / "2.png", 0)
    with pytest.raises(UserError, match="not a mask of one channel, but RGB"):
        load("voc2012")


def test_ade20k(data: Path) -> None:
    home = data / "ADEChallengeData2016"
    for split in ("training", "validation"):
        picture(home / "images" / split / "ADE_1.jpg", 0, (3, 1))
        mask(home / "annotations" / split / "ADE_1.png", [[0, 1, 150]], palette=False)
    targets = load("ade20k").test.targets
    assert targets is not None and targets.mask(0).tolist() == [[IGNORE, 0, 149]]
    assert len(targets.classes) == 150


def test_pets(data: Path) -> None:
    home = data / "oxford-iiit-pet"
    for name in ("cat_1", "dog_1"):
        picture(home / "images" / f"{name}.jpg", 0, (3, 1))
        mask(home / "annotations" / "trimaps" / f"{name}.png", [[1, 2, 3]], palette=False)
    listed(home / "annotations" / "trainval.txt", "# comment", "cat_1 1 1 1")
    listed(home / "annotations" / "test.txt", "dog_1 2 2 1")
    targets = load("pets-masks").train.targets
    assert targets is not None and targets.mask(0).tolist() == [[1, 0, IGNORE]]


def test_davis(data: Path) -> None:
    home = data / "DAVIS"
    for clip, frames in (("bear", 2), ("bus", 3)):
        for t in range(frames):
            picture(home / "JPEGImages" / "480p" / clip / f"{t:05}.jpg", t, (3, 1))
            mask(home / "Annotations" / "480p" / clip / f"{t:05}.png", [[0, 1, t]])
    listed(home / "ImageSets" / "2017" / "train.txt", "bus", "bear")
    listed(home / "ImageSets" / "2017" / "val.txt", "bear")
    splits = load("davis2017")
    targets = splits.train.targets
    assert targets is not None and targets.clips is not None
    assert targets.clips.tolist() == [0, 0, 0, 1, 1]
    assert targets.instance(2).tolist() == [[0, 1, 2]]
    assert len(splits.test) == 2


@pytest.mark.parametrize(("spec", "file"), [("voc2012", "train.txt"), ("ade20k", "training"), ("davis2017", "2017")])
def test_what_is_not_there_is_named(data: Path, spec: str, file: str) -> None:
    with pytest.raises(UserError, match=rf"{file}.* is not there: put the data set"):
        load(spec)


LISTS = {
    "voc2012": "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt",
    "pets-masks": "oxford-iiit-pet/annotations/trainval.txt",
    "davis2017": "DAVIS/ImageSets/2017/train.txt",
    "ucf101": "ucf101/ucfTrainTestlist/trainlist01.txt",
}
BAD_LINES = {
    "latin-1": "\xe9t\xe9".encode("latin1"),
    "up": b"a/../../../../secret",
    "within": b"a/../a",
    "root": b"/etc/passwd",
    "zero": b"a\0b",
    "long": b"a" * 300,
    "longer": b"a" * 5000,
}


@pytest.mark.parametrize("kind", [*BAD_LINES, "fifo", "folder", "large"])
@pytest.mark.parametrize("spec", LISTS)
def test_a_list_that_is_none(data: Path, spec: str, kind: str) -> None:
    path = data / LISTS[spec]
    listed(path.parent / "classInd.txt", "1 a")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(2**24)
    else:
        path.write_bytes(BAD_LINES[kind] + b"\n")
    with pytest.raises(UserError, match=path.name) as caught:
        load(spec)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_classes_of_ade_that_are_no_text(data: Path) -> None:
    (data / "ADEChallengeData2016").mkdir()
    (data / "ADEChallengeData2016" / "objectInfo150.txt").write_bytes(b"\xe9t\xe9\n")
    with pytest.raises(UserError, match=r"objectInfo150\.txt is not in UTF-8"):
        load("ade20k")


def test_a_file_that_goes_missing_later_is_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_BENCH_MEMORY", "0")
    home = make_voc(data)
    targets = load("voc2012").train.targets
    (home / "SegmentationClass" / "2.png").unlink()
    assert targets is not None
    with pytest.raises(RunError, match=r"2\.png"):
        targets.mask(1)


def make_coco(data: Path) -> Path:
    """Image 7 has a triangle and a crowd, image 9 nothing; the file lists them the other way round."""
    home = data / "coco"
    for split in ("train2017", "val2017"):
        for number in (7, 9):
            picture(home / split / f"{number:012}.jpg", number, (8, 6))
        said = {
            "images": [{"id": n, "file_name": f"{n:012}.jpg", "height": 6, "width": 8} for n in (9, 7)],
            "categories": [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}],
            "annotations": [
                {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 2, 6], "iscrowd": 1, "area": 12,
                 "segmentation": {"counts": [0, 12, 36], "size": [6, 8]}},
                {"id": 1, "image_id": 7, "category_id": 1, "bbox": [3, 1, 4, 4], "iscrowd": 0, "area": 9.5,
                 "segmentation": [[3, 1, 7, 1, 7, 5, 3, 5]]},
            ],
        }  # fmt: skip
        (home / "annotations").mkdir(exist_ok=True)
        (home / "annotations" / f"instances_{split}.json").write_text(json.dumps(said))
    return home


@pytest.mark.parametrize("memory", ["0", "1000000000"])
def test_coco(data: Path, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_BENCH_MEMORY", memory)
    make_coco(data)
    train = load("coco2017").train
    assert train.offers == {"objects", "label sets"} and train.targets is not None
    assert train.targets.classes == ("background", "person", "car")
    found = train.targets.objects(0)
    assert found.boxes.tolist() == [[3, 1, 7, 5], [0, 0, 2, 6]] and found.labels.tolist() == [1, 2]
    assert found.crowd.tolist() == [False, True] and found.areas.tolist() == [9.5, 12.0]  # type: ignore[union-attr]
    assert found.masks[0].nonzero().tolist() == [[y, x] for y in range(1, 5) for x in range(3, 7)]
    assert found.masks[1].nonzero().tolist() == [[y, x] for y in range(6) for x in range(2)]
    nothing = train.targets.objects(1)
    assert nothing.boxes.shape == (0, 4) and nothing.masks.shape == (0, 6, 8)
    assert train.subset(torch.tensor([1, 0]), "train").targets.objects(1).labels.tolist() == [1, 2]  # type: ignore[union-attr]


def test_the_fingerprint_of_annotations_and_what_is_missing(data: Path) -> None:
    home = make_coco(data)
    first = load("coco2017").train.fingerprint
    assert load("coco2017").train.fingerprint == first
    path = home / "annotations" / "instances_train2017.json"
    path.write_text(path.read_text().replace("[3, 1, 4, 4]", "[3, 1, 4, 3]"))
    assert load("coco2017").train.fingerprint != first
    (home / "train2017" / f"{7:012}.jpg").unlink()
    with pytest.raises(UserError, match="1 unreadable image in coco2017"):
        load("coco2017")
    train = load("coco2017", skip_unreadable=True).train
    assert len(train) == 1 and train.targets.objects(0).labels.tolist() == []  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"images"', '"pictures"'),
        ('"category_id": 3', '"category_id": 4'),
        ('"height": 6', '"height": -6'),
        ('"height": 6', '"height": 1e9'),
        (f"{7:012}.jpg", "../secret.jpg"),
        (f"{7:012}.jpg", "/etc/passwd"),
        (f"{7:012}.jpg", ".."),
        (f"{7:012}.jpg", "x" * 5000),
        (f"{7:012}.jpg", "a\\nb.jpg"),
        (f"{7:012}.jpg", "\\ud800.jpg"),
        ('"image_id": 7', '"image_id": 8'),
        ("{", "[", ),
    ],
)  # fmt: skip
def test_a_file_that_is_not_as_coco_has_it(data: Path, old: str, new: str) -> None:
    path = make_coco(data) / "annotations" / "instances_train2017.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=r"instances_train2017\.json"):
        load("coco2017")


@pytest.mark.parametrize(
    ("old", "new"),
    [("[0, 12, 36]", "[0, 12, 35]"), ("[0, 12, 36]", "[0, -12, 60]"), ("[3, 1, 7, 1, 7, 5, 3, 5]", "[3, 1, 7]"),
     ("[3, 1, 7, 1, 7, 5, 3, 5]", "[3, 1, 7, 1, 1e30, 5]"), ("[3, 1, 4, 4]", '["a"]')],
)  # fmt: skip
def test_objects_that_cannot_be_are_named(data: Path, old: str, new: str) -> None:
    path = make_coco(data) / "annotations" / "instances_train2017.json"
    path.write_text(path.read_text().replace(old, new))
    targets = load("coco2017").train.targets
    assert targets is not None
    with pytest.raises(RunError, match=r"instances_train2017\.json: the objects of image 0"):
        targets.objects(0)


def test_more_masks_than_fit_are_not_made(data: Path) -> None:
    path = make_coco(data) / "annotations" / "instances_train2017.json"
    said = json.loads(path.read_text())
    for image in said["images"]:
        image["height"] = image["width"] = 8000
    said["annotations"] = [{**said["annotations"][0], "id": n} for n in range(34)]
    path.write_text(json.dumps(said))
    targets = load("coco2017").train.targets
    assert targets is not None
    with pytest.raises(RunError, match="34 masks of 8,000 x 8,000 pixels"):
        targets.objects(0)
