"""A suite whose jobs read their images for themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from tiny import blobs


def write_suite(folder: Path) -> None:
    """A suite of two runs on images in files, which jobs read for themselves."""
    for split, count in (("train", 30), ("test", 12)):
        images = blobs(count, split, count)
        for i, label in enumerate(images.labels.tolist()):
            path = folder / "blobs" / split / str(label) / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.images[i].permute(1, 2, 0).numpy()).save(path)
    suite: dict[str, Any] = {
        "name": "toy",
        "description": "for tests",
        "data": "folder:blobs",
        "backbone": "vit_micro_patch8_16",
        "recipe": "none_has_it",
        "methods": ["untrained"],
        "evaluations": ["knn"],
        "training": {"epochs": 1, "batch_size": 8, "base_lr": 1e-2, "warmup_epochs": 0},
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(suite))
