"""Copy detection: which of many images is the original of a distorted copy?

The protocol of DINO on the strong subset of Copydays (Caron et al., ICCV 2021, arXiv:2104.14294, table 4; Douze et al.,
CIVR 2009), with copies that are made here: crops, pasted pictures and corruptions of test images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor

from ssl_bench.data.corruptions import corrupt
from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result, name_of
from ssl_bench.evaluations.frozen.descriptors import KINDS, descriptors, whitened
from ssl_bench.evaluations.frozen.retrieval import average_precision
from ssl_bench.evaluations.solvers.neighbours import normalize
from ssl_bench.metrics.intervals import mean_metric
from ssl_bench.metrics.metric import Metric
from ssl_bench.utils.bounds import Count, Natural, Seed
from ssl_bench.utils.errors import UserError, unknown
from ssl_bench.views.view import FILTERS

LISTED = 20  # places of the ranking that are looked at, as on Copydays


class CopyDetection(Evaluator):
    """Mean average precision of copies that search for their original among all test images.

    Each of `images` test images, spread evenly, has a copy for every kind of `COPIES`. Descriptors are whitened by the
    second moment of those of training images. An original that isn't among the first 20 counts as not found. Images are
    squashed to the encoder's size.

    Args:
        images: Test images that are copied.
        whitening: Training images, spread evenly, behind the whitening; 0 for none.
        kind: Descriptor: "cls", "mean" or "cls+gem".
        seed: Of what is drawn for the copies.

    Raises:
        UserError: A number out of range, or an unknown descriptor.
    """

    version: ClassVar[int] = 1
    task: ClassVar[str] = "retrieval"
    needs: ClassVar[str] = ""
    encoder_needs = ("train",)
    metric_help: ClassVar[dict[str, str]] = {
        "map": "mean average precision over copied images, each the mean over its copies, percent",
        "map/COPY": "the same of one kind of copy, percent",
    }
    poolings = ()

    def __init__(self, images: Count = 250, whitening: Natural = 20_000, kind: str = "cls+gem", seed: Seed = 0) -> None:
        self.images, self.whitening, self.kind, self.seed = images, whitening, kind, seed
        if kind not in KINDS:
            raise unknown("descriptor", kind, KINDS)

    def run(self, encoder: Encoder, data: Data) -> Result:
        """Search for the original of every copy.

        Raises:
            UserError: The encoder has no tokens.
            RunError: Features that mean nothing, or an image can't be read any more.
        """
        network: Any = encoder.copy()
        if not getattr(network, "has_map", False):
            raise UserError(f"copy-detection: {name_of(network)} gives one vector an image, and no tokens")
        size = network.image_size

        def squashed(image: Tensor) -> Tensor:
            return (
                image if image.shape[1:] == size else tv.resize(image, list(size), FILTERS["bicubic"], antialias=True)
            )

        copied = spread(len(data.test), self.images)
        database = descriptors(network, data.test, self.kind, squashed, range(len(data.test)))
        copies = {
            name: descriptors(network, data.test, self.kind, _copying(make, squashed, self.seed), copied)
            for name, make in COPIES.items()
        }
        if self.whitening:
            rows = spread(len(data.train), self.whitening)
            training = descriptors(network, data.train, self.kind, squashed, rows)
            database, copies = whitened(training, database), {k: whitened(training, x) for k, x in copies.items()}
        precision = {name: self._search(normalize(x), normalize(database), copied) for name, x in copies.items()}
        each = torch.stack(list(precision.values()))  # (kinds, images)
        metrics: dict[str, Metric] = {"map": mean_metric(100 * each.mean(0))}
        metrics |= {f"map/{name}": mean_metric(100 * values) for name, values in precision.items()}
        chosen: dict[str, object] = {"size": list(size), "database": len(data.test), "copied": len(copied)}
        return Result(metrics, "map", each.mean(0).numpy(), chosen, self.kind, selected=False)

    @staticmethod
    def _search(queries: Tensor, database: Tensor, originals: Sequence[int]) -> Tensor:
        """Average precision (Q,) float64 in [0, 1]; equal similarities rank the original last."""
        similarity = queries @ database.T
        own = similarity[torch.arange(len(queries)), torch.tensor(originals)]
        before = (similarity >= own[:, None]).sum(1) - 1
        found = [average_precision(np.array([rank]), "trapezoid") if rank < LISTED else 0.0 for rank in before.tolist()]
        return torch.tensor(found, dtype=torch.float64)


def spread(length: int, count: int) -> list[int]:
    """At most so many of a number of places, evenly.

    Example:
        >>> spread(10, 4), spread(3, 4)
        ([0, 3, 6, 9], [0, 1, 2])
    """
    return np.linspace(0, length - 1, min(length, count)).astype(int).tolist()


def _copying(
    make: Callable[[Tensor, np.random.Generator], Tensor], squashed: Callable[[Tensor], Tensor], seed: int
) -> Callable[[Tensor], Tensor]:
    """What turns images, one after the other, into what the network sees of their copies."""
    random = np.random.default_rng(seed)
    return lambda image: squashed(make(image, random))


def _crop(image: Tensor, random: np.random.Generator) -> Tensor:
    """Half of the area, anywhere."""
    height, width = (round(0.5**0.5 * side) for side in image.shape[1:])
    top, left = (
        int(random.integers(0, whole - side + 1)) for whole, side in zip(image.shape[1:], (height, width), strict=True)
    )
    return image[:, top : top + height, left : left + width]


def _paste(image: Tensor, random: np.random.Generator) -> Tensor:
    """The picture, at 0.7 of its size, over a plain colour."""
    height, width = (round(0.7 * side) for side in image.shape[1:])
    colour = torch.from_numpy(random.integers(0, 256, (3, 1, 1), dtype=np.uint8))
    found = colour.expand_as(image).clone()
    top, left = (
        int(random.integers(0, whole - side + 1)) for whole, side in zip(image.shape[1:], (height, width), strict=True)
    )
    found[:, top : top + height, left : left + width] = tv.resize(image, [height, width], antialias=True)
    return found


def _turn(image: Tensor, random: np.random.Generator) -> Tensor:
    """Turned by 20 to 40 degrees to either side, with black corners."""
    return tv.rotate(image, float(random.uniform(20, 40) * random.choice((-1, 1))))


def _corrupted(name: str) -> Callable[[Tensor, np.random.Generator], Tensor]:
    return lambda image, random: corrupt(image, name, 5, (int(random.integers(2**31)),))


# Kind of copy -> what makes one.
COPIES: dict[str, Callable[[Tensor, np.random.Generator], Tensor]] = {
    "crop": _crop,
    "paste": _paste,
    "rotation": _turn,
    "mirror": lambda image, _: image.flip(-1),
    **{name: _corrupted(name) for name in ("gaussian_noise", "contrast", "jpeg_compression", "motion_blur")},
}
