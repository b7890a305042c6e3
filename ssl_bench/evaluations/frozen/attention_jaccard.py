"""How well the attention of the class token covers the objects of an image: nothing is trained.

Caron et al., ICCV 2021 (DINO, arXiv:2104.14294, figure 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_bench.data.datasets import ImageSet
from ssl_bench.data.targets import IGNORE
from ssl_bench.evaluations.dense import common_size, maps_of, resized, resized_mask
from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result, name_of
from ssl_bench.evaluations.pictures import Gallery, overlaid
from ssl_bench.metrics.intervals import mean_metric
from ssl_bench.utils.bounds import OpenShare
from ssl_bench.utils.errors import RunError, UserError
from ssl_bench.views.evaluation import eval_images

LARGE = 480  # pixels of a side to which images that differ in size are resized


class AttentionJaccard(Evaluator):
    """Intersection over union of the foreground and of the patches that hold most of a head's attention (last block).

    Foreground is whatever has a class but the first. One head, chosen on dev, is reported for all images; the paper
    doesn't say whether its best head is one for the model or one for each image.

    Args:
        mass: Share of the attention that the kept patches hold.

    Raises:
        UserError: A share that isn't between 0 and 1.
    """

    version: ClassVar[int] = 1
    task: ClassVar[str] = "segmentation"
    needs: ClassVar[str] = "masks"
    metric_help: ClassVar[dict[str, str]] = {
        "jaccard": "intersection over union of foreground and attention, mean over images, percent",
        "best_head_of_each_image": "the same with the head that fits an image best, percent",
    }
    poolings = ()
    encoder_needs = ("attention",)

    def __init__(self, mass: OpenShare = 0.6) -> None:
        self.mass = mass
        if not 0 < mass < 1:
            raise UserError(f"attention-jaccard: mass must lie between 0 and 1, got {mass}")

    def run(self, encoder: Encoder, data: Data) -> Result:
        """Choose the head on dev, then score test.

        Raises:
            UserError: The encoder has no attention of a class token.
            RunError: No image has a foreground, or one can't be read any more.
        """
        network: Any = encoder.copy()
        if not getattr(network, "has_attention", False):
            raise UserError(f"attention-jaccard: {name_of(network)} has no attention of a class token to the patches")
        on_dev = self._scores(network, data.dev).mean(0)
        head = int(on_dev.argmax())
        gallery = Gallery(len(data.test), "image", "foreground", f"most attended, head {head}")
        scores = self._scores(network, data.test, gallery, head)
        metrics = {
            "jaccard": mean_metric(100 * scores[:, head]),
            "best_head_of_each_image": mean_metric(100 * scores.amax(1)),
        }
        chosen: dict[str, object] = {
            "head": head,
            "dev_jaccard": (100 * on_dev).tolist(),
            "images_without_foreground": len(data.test) - len(scores),
        }
        correct, picture = scores[:, head].numpy(), gallery.picture()
        return Result(metrics, "jaccard", correct, chosen, "attention", picture=picture)

    def _scores(self, network: Any, images: ImageSet, gallery: Gallery | None = None, shown: int = 0) -> Tensor:
        """The Jaccard index (N, heads) float64 of the images that have a foreground."""
        targets, size = images.targets, common_size(images, LARGE)
        assert targets is not None
        found = []
        for batch, maps in maps_of(_Attention(network), images, size):
            kept = F.interpolate(most(maps, self.mass).float(), size, mode="nearest-exact").bool()
            for i, heads in zip(batch, kept, strict=True):
                mask = resized_mask(targets.mask(i), size)
                known, front = mask != IGNORE, (mask != IGNORE) & (mask > 0)
                if gallery is not None and i in gallery:
                    image = resized(images.images[i], size)
                    gallery.add(i, image, overlaid(image, front), overlaid(image, heads[shown]))
                if front.any():
                    union = ((heads | front) & known).sum((1, 2))
                    found.append((heads & front).sum((1, 2)).double() / union)
        if not found:
            raise RunError(f"attention-jaccard: no image of {images.name} {images.split} has a foreground")
        return torch.stack(found)


class _Attention:
    """The attention of a network where other evaluators take its tokens."""

    def __init__(self, network: Any) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = network.to(self.device)

    @torch.no_grad()
    def map_of(self, images: Tensor, blocks: Sequence[int] = ()) -> Tensor:
        """(B, heads, rows, columns) float32."""
        size = (images.shape[-2], images.shape[-1])
        pixels = eval_images(images.to(self.device), size, self.network.mean, self.network.std)
        found: Tensor = self.network.attention(pixels).cpu()
        return found


def most(maps: Tensor, mass: float) -> Tensor:
    """The smallest sets of patches that hold a share of the attention of each head.

    Args:
        maps: (..., rows, columns) float, not negative.
        mass: The share.

    Returns:
        Bool, of the same shape.

    Example:
        >>> most(torch.tensor([[0.05, 0.30, 0.10, 0.25, 0.02, 0.08]])[None], 0.6)[0].int().tolist()
        [[0, 1, 0, 1, 0, 0]]
    """
    flat = maps.flatten(-2).double()
    values, order = (flat / flat.sum(-1, keepdim=True)).sort(dim=-1)
    kept = values.cumsum(-1) > 1 - mass
    return torch.zeros_like(kept).scatter(-1, order, kept).unflatten(-1, maps.shape[-2:])
