"""Where images come from: class folders and the sets of torchvision, as still encoded images with their labels."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from ssl_bench.data.images import Encoded, Files, reason
from ssl_bench.data.targets import Targets
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.progress import progress

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
MOST_CLASSES = 100_000
TEST_NAMES = ("test", "val", "validation")  # the first that exists is the test split

# Torchvision class, arguments of the splits that make up the training images, arguments of the test split (None: it has
# none). Where the authors give train and val, both train: the dev split is held out of them by seed, as everywhere.
TRAIN_AND_VAL = [{"split": "train"}, {"split": "val"}]
TORCHVISION: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any] | None]] = {
    "aircraft": ("FGVCAircraft", [{"split": "trainval"}], {"split": "test"}),
    "cifar10": ("CIFAR10", [{"train": True}], {"train": False}),
    "cifar100": ("CIFAR100", [{"train": True}], {"train": False}),
    "dtd": ("DTD", TRAIN_AND_VAL, {"split": "test"}),
    "eurosat": ("EuroSAT", [{}], None),
    "fashionmnist": ("FashionMNIST", [{"train": True}], {"train": False}),
    "flowers102": ("Flowers102", TRAIN_AND_VAL, {"split": "test"}),
    "food101": ("Food101", [{"split": "train"}], {"split": "test"}),
    "imagenette": ("Imagenette", [{"split": "train", "size": "320px"}], {"split": "val", "size": "320px"}),
    "pets": ("OxfordIIITPet", [{"split": "trainval"}], {"split": "test"}),
    "stl10": ("STL10", [{"split": "train"}], {"split": "test"}),
    "svhn": ("SVHN", [{"split": "train"}], {"split": "test"}),
}


@dataclass(frozen=True)
class Raw:
    """One split as it was found: ``labels`` int64 (N,); a tensor of ``images`` is uint8 (N, 3, H, W).

    Images without labels have no ``classes``, and 0 for each label.

    Raises:
        UserError: More than ``MOST_CLASSES`` classes, or a name that is not UTF-8.
    """

    images: Encoded | Tensor
    labels: np.ndarray
    classes: tuple[str, ...]
    targets: Targets | None = None

    def __post_init__(self) -> None:
        check_names(self.classes, "class")
        if len(self.classes) > MOST_CLASSES:
            raise UserError(f"labels up to {len(self.classes) - 1:,}: at most {MOST_CLASSES:,} classes are taken")


def check_names(names: Sequence[str], what: str) -> None:
    """Refuse names that no file of ours could hold.

    Raises:
        UserError: One isn't UTF-8.
    """
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"the {what} {name!r} has a name that is not UTF-8; rename it") from error


def read_folder(folder: str) -> tuple[Raw, Raw | None]:
    """Class folders, or ``train/`` and ``test|val|validation/`` with class folders inside.

    Returns:
        Training and test images; no test images when the folder has one split only.

    Raises:
        UserError: The folder is missing or has another layout, a class has no image, or is in the test split only.
    """
    layout = "class folders with images, or train/ and test|val|validation/ with class folders inside"
    if not os.path.isdir(folder):
        raise UserError(f"no such folder: {folder} (expected {layout})")
    splits = {name: os.path.join(folder, name) for name in ("train", *TEST_NAMES)}
    # A folder "train" without folders inside is a class: it is one of CIFAR-100's.
    if _folders(splits["train"]):
        train = _class_folders(splits["train"], None)
        tests = [splits[name] for name in TEST_NAMES if os.path.isdir(splits[name])]
        tests.sort(key=lambda test: not _folders(test))  # a folder of unlabelled test images gives way to val/
        return train, _class_folders(tests[0], train.classes) if tests else None
    classes = _folders(folder)
    if not classes:
        raise UserError(f"no class folders in {folder} (expected {layout})")
    if set(classes) <= set(splits):
        raise UserError(f"no train/ with class folders in {folder}, only {', '.join(classes)} (expected {layout})")
    return _class_folders(folder, None), None


def _folders(folder: str) -> list[str]:
    if not os.path.isdir(folder):
        return []
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}") from error


def _class_folders(folder: str, classes: tuple[str, ...] | None) -> Raw:
    """One split; ``classes`` are those of the training images, None when these are the training images."""
    found = _folders(folder)
    if not found:
        raise UserError(f"no class folders in {folder} (expected one folder of images per class)")
    classes = tuple(found) if classes is None else classes
    paths: list[bytes] = []
    sizes: list[int] = []
    labels: list[int] = []
    walked: dict[tuple[int, int], str] = {}
    for place in (folder, *(os.path.join(folder, name) for name in found)):
        _once(place, walked)
    for name in progress(found, f"listing {folder}"):
        if name not in classes:
            raise UserError(f"class {name!r} of {folder} has no training images (training classes: {some(classes)})")
        before, label = len(paths), classes.index(name)
        for parent, folders, files in os.walk(os.path.join(folder, name), followlinks=True, onerror=_cannot_list):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            for place in (os.path.join(parent, f) for f in folders):
                _once(place, walked)
            inside = os.path.relpath(parent, folder).replace(os.sep, "/")
            for file in sorted(files):
                if file.lower().endswith(EXTENSIONS) and not file.startswith("."):
                    path = os.path.join(parent, file)
                    paths.append(os.fsencode(f"{inside}/{file}"))
                    sizes.append(os.path.getsize(path) if os.path.exists(path) else 0)
                    labels.append(label)
        if len(paths) == before:
            raise UserError(
                f"no images in class folder {os.path.join(folder, name)} (expected {', '.join(EXTENSIONS)})"
            )
    return Raw(Files(folder, np.array(paths), np.array(sizes)), np.array(labels), classes)


def _once(place: str, walked: dict[tuple[int, int], str]) -> None:
    """Note a folder; one that was there before, under another name, would count its images again, or without end."""
    try:
        about = os.stat(place)
    except OSError as error:
        raise UserError(f"cannot list {place}: {error.strerror}") from error
    before = walked.setdefault((about.st_dev, about.st_ino), place)
    if before != place:
        raise UserError(f"{place} is a link to {before}, whose images are in the data set already")


def _cannot_list(error: OSError) -> NoReturn:
    raise UserError(f"cannot list {error.filename}: {error.strerror}") from error


def some(names: Sequence[str], most: int = 10) -> str:
    """The first names, for a message.

    Example:
        >>> some(["a", "b", "c"], most=2)
        'a, b, ...'
    """
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def by_split(files: Sequence[str], folder: str) -> list[list[str]]:
    """Files of training images, then those of each test split there is, by words in their names below a folder.

    Raises:
        UserError: There are test images alone.
    """
    splits: dict[str, list[str]] = {}
    for file in files:
        words = re.split("[^a-z]+", os.path.relpath(file, folder).lower())
        splits.setdefault(next((word for word in words if word in ("train", *TEST_NAMES)), "all"), []).append(file)
    if "train" in splits:
        return [splits["train"], *(splits[name] for name in TEST_NAMES if name in splits)]
    if set(splits) == {"all"}:
        return [list(files)]
    names, ending = ", ".join(os.path.basename(file) for file in files[:5]), os.path.splitext(files[0])[1]
    raise UserError(f"no *train*{ending} in {folder}, only {names}")


def numbered(texts: Sequence[str], classes: tuple[str, ...] | None, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels that are texts as numbers int64 (N,), and the class names, those of the training images if given.

    Raises:
        UserError: A class has no training images.
    """
    names = classes or tuple(sorted(set(texts)))
    index = {text: i for i, text in enumerate(names)}
    if missing := sorted(set(texts) - set(index)):
        raise UserError(f"class {missing[0]!r} of {where} has no training images (training classes: {some(names)})")
    return np.array([index[text] for text in texts], dtype=np.int64), names


def read_torchvision(name: str, root: Path) -> tuple[Raw, Raw | None]:
    """A data set of torchvision, downloaded to ``root`` unless it lies there.

    Raises:
        UserError: It is neither there nor can it be downloaded.
    """
    _, train, test = TORCHVISION[name]
    return _torchvision(name, train, root), _torchvision(name, [test], root) if test is not None else None


def _torchvision(name: str, splits: list[dict[str, Any]], root: Path) -> Raw:
    from torchvision import datasets  # slow to import, and many runs do without it

    kind = TORCHVISION[name][0]
    parts: list[Any] = []
    for arguments in splits:
        try:
            try:
                parts.append(getattr(datasets, kind)(str(root), **arguments))
            except (RuntimeError, OSError):
                parts.append(getattr(datasets, kind)(str(root), **arguments, download=True))
        except Exception as error:
            raise UserError(
                f"data set {name!r} is not in {root} and can't be downloaded ({reason(error)}): copy it there as "
                f"torchvision.datasets.{kind} expects it, set SSL_BENCH_DATA to the folder that has it, "
                "or use folder:PATH"
            ) from error
    images: Encoded | Tensor
    if hasattr(parts[0], "data"):
        images = _array(parts[0].data)
        labels = parts[0].targets if hasattr(parts[0], "targets") else parts[0].labels
    else:
        listed = next(a for a in ("_image_files", "_images", "samples", "_samples") if hasattr(parts[0], a))
        samples = [sample for part in parts for sample in getattr(part, listed)]
        if hasattr(parts[0], "_labels"):
            labels = [label for part in parts for label in part._labels]
        else:
            samples, labels = [path for path, _ in samples], [label for _, label in samples]
        images = _files(root, samples)
    names = getattr(parts[0], "classes", None) or range(int(max(labels)) + 1)
    classes = tuple(str(item[0] if isinstance(item, tuple) else item) for item in names)
    return Raw(images, np.asarray(labels, dtype=np.int64), classes)


def _array(data: Any) -> Tensor:
    """Pixels as torchvision keeps them, (N, H, W, 3), (N, 3, H, W) or grey (N, H, W), as uint8 (N, 3, H, W)."""
    images = torch.as_tensor(data)
    if images.ndim == 3:
        return images[:, None].repeat(1, 3, 1, 1)
    return (images if images.shape[1] == 3 else images.permute(0, 3, 1, 2)).contiguous()


def _files(root: Path, paths: Sequence[str | Path]) -> Files:
    keys = [os.fsencode(os.path.relpath(path, root).replace(os.sep, "/")) for path in paths]
    return Files(str(root), np.array(keys), np.array([os.path.getsize(path) for path in paths]))
