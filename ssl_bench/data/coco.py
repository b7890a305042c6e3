"""COCO's layout: folders of images, and a JSON file that says which objects are in each (Lin et al., ECCV 2014)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_bench.data.images import MOST_PIXELS, Files
from ssl_bench.data.lists import is_place, size_of
from ssl_bench.data.sources import Raw
from ssl_bench.data.targets import Objects, Targets
from ssl_bench.utils.errors import RunError, UserError
from ssl_bench.utils.files import parse_json, read_regular

LARGEST = 2**31  # bytes of the JSON file; that of train2017 has 0.45 GB
MOST_BYTES = 2**31  # of the masks of one image together, a byte for each pixel of each object


class CocoObjects(Sequence[Objects]):
    """The objects of images; outlines become masks on access.

    Args:
        objects: Of each image what the file says, without images' numbers.
        sizes: int64 (N, 2), height and width of each image.
        labels: Number of a category in the file -> class.
        path: The file, for errors.
    """

    def __init__(
        self, objects: Sequence[Sequence[dict[str, Any]]], sizes: np.ndarray, labels: dict[int, int], path: Path
    ) -> None:
        self.objects, self.sizes, self.labels, self.path = objects, sizes, labels, path

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, index: int) -> Objects:  # type: ignore[override]
        found, (height, width) = self.objects[index], self.sizes[index].tolist()
        try:
            if len(found) * height * width > MOST_BYTES:
                raise ValueError(f"{len(found):,} masks of {height:,} x {width:,} pixels")
            boxes = torch.tensor([each["bbox"] for each in found], dtype=torch.float32).reshape(-1, 4)
            masks = [mask_of(each["segmentation"], height, width) for each in found]
            labels = torch.tensor([self.labels[each["category_id"]] for each in found], dtype=torch.int64)
            crowd = torch.tensor([bool(each.get("iscrowd", 0)) for each in found], dtype=torch.bool)
            stated = all("area" in each for each in found)
            areas = torch.tensor([float(each["area"]) for each in found], dtype=torch.float64) if stated else None
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RunError(f"{self.path}: the objects of image {index} are not as COCO has them ({error})") from error
        edges = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
        shapes = torch.stack(masks) if masks else torch.zeros(0, height, width).bool()
        return Objects(edges, labels, shapes, crowd, areas)

    def take(self, indices: np.ndarray) -> CocoObjects:
        """Those of some images (K,) int64."""
        return CocoObjects([self.objects[i] for i in indices.tolist()], self.sizes[indices], self.labels, self.path)

    def digest(self) -> str:
        """64 hex digits that change with anything it says."""
        said = [self.objects, self.sizes.tolist(), sorted(self.labels.items())]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_coco(root: Path) -> tuple[Raw, Raw]:
    """COCO 2017, `train2017` (118,287 images) and `val2017` (5,000); 80 classes of objects after the background."""
    return read_split(root / "coco", "train2017"), read_split(root / "coco", "val2017")


def read_split(home: Path, name: str) -> Raw:
    """One split.

    Raises:
        UserError: No such file, or it isn't as COCO has it.
    """
    path = home / "annotations" / f"instances_{name}.json"
    try:
        said = parse_json(read_regular(path, LARGEST))
        categories = {int(each["id"]): str(each["name"]) for each in said["categories"]}
        images = sorted(said["images"], key=lambda each: int(each["id"]))
        by_image: dict[int, list[dict[str, Any]]] = {int(each["id"]): [] for each in images}
        files = [str(each["file_name"]) for each in images]
        sizes = np.array([[int(each["height"]), int(each["width"])] for each in images], np.int64).reshape(-1, 2)
        for each in sorted(said["annotations"], key=lambda each: int(each["id"])):
            if each["category_id"] not in categories:
                raise ValueError(f"there is no category {each['category_id']}")
            kept = {key: each[key] for key in ("bbox", "category_id", "segmentation")}
            kept |= {"area": each["area"]} if "area" in each else {}
            by_image[int(each["image_id"])].append({**kept, "iscrowd": int(each.get("iscrowd", 0))})
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is not there: put the data set in data/coco/ as its authors lay it out, or set SSL_BENCH_DATA to "
            "the folder that has it"
        ) from error
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not as COCO has it: {type(error).__name__} {error}") from error
    if not files or (sizes < 1).any() or sizes.prod(1).max() > MOST_PIXELS:
        raise UserError(f"{path}: no images, or one whose size can't be")
    if strange := [file for file in files if "/" in file or not is_place(file)]:
        raise UserError(f"{path}: {strange[0][:100]!r} is no plain file name")
    bytes_of = np.array([size_of(home / name / file) for file in files])
    labels = {number: 1 + at for at, number in enumerate(sorted(categories))}
    classes = ("background", *(categories[number] for number in sorted(categories)))
    objects = CocoObjects(list(by_image.values()), sizes, labels, path)
    pictures = Files(str(home), np.array([os.fsencode(f"{name}/{file}") for file in files]), bytes_of)
    return Raw(pictures, np.zeros(len(files), np.int64), (), Targets(classes, annotations=objects))


def mask_of(said: Any, height: int, width: int) -> Tensor:
    """(H, W) bool of an outline: polygons, or lengths of runs down the columns, out and in by turns.

    Raises:
        UserError: No library for polygons.
        ValueError: It is neither.

    Example:
        >>> mask_of({"counts": [1, 2, 1], "size": [2, 2]}, 2, 2).int().tolist()
        [[0, 1], [1, 0]]
    """
    if isinstance(said, dict):
        runs = np.array(said["counts"])
        if runs.dtype.kind != "i" or (runs < 0).any() or int(runs.sum()) != height * width:
            raise ValueError("runs that don't fill the image")
        inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        return torch.from_numpy(inside.reshape(width, height).T.copy())
    try:
        from faster_coco_eval.core import mask as outlines
    except ImportError as error:
        raise UserError("masks of COCO need faster-coco-eval: pip install 'ssl-bench[dense]'") from error
    polygons = [[float(value) for value in polygon] for polygon in said]
    if any(len(polygon) < 6 or len(polygon) % 2 or not np.isfinite(polygon).all() for polygon in polygons):
        raise ValueError("a polygon of fewer than three points, or of half a point")
    if any(abs(value) > 10 * max(height, width) for polygon in polygons for value in polygon):
        raise ValueError("a polygon far outside the image")
    if not polygons:
        return torch.zeros(height, width, dtype=torch.bool)
    found = outlines.decode(outlines.merge(outlines.frPyObjects(polygons, height, width)))
    return torch.from_numpy(np.ascontiguousarray(found)).bool()
