"""The picture that an evaluation leaves beside its row: some test images, the truth, and what was predicted."""

from __future__ import annotations

import io
from dataclasses import dataclass

import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

SHOWN = 3  # test images (or clips), whatever the size of the split
SIDE = 96  # pixels of a panel at most
GAP = 2  # pixels between panels
SURE = 0.3  # score of the boxes that are drawn
MIXED = 0.75  # of an overlay, how much of it the mask is
DIMMED = 0.4  # brightness of the image where the mask is 0
COLOURS = 256


@dataclass(frozen=True)
class Picture:
    """Lines of panels, as a file.

    Attributes:
        columns: What each panel of a line shows.
        png: The file, at most 2**18 bytes (``rows.picture.LARGEST``); the same panels give the same bytes.
    """

    columns: tuple[str, ...]
    png: bytes


class Gallery:
    """Collects the panels of some test images while all of them are scored.

    Args:
        n: Test images or clips.
        columns: What each panel shows, at most nine: a byte a pixel, it then fits into the bytes of a picture.
    """

    def __init__(self, n: int, *columns: str) -> None:
        assert len(columns) <= 9
        self.columns = columns
        self.wanted = sorted({(2 * i + 1) * n // (2 * SHOWN) for i in range(SHOWN)})  # in the middle of equal parts
        self._lines: dict[int, list[Tensor]] = {}

    def __contains__(self, index: int) -> bool:
        """Whether an image is one of those that are shown."""
        return index in self.wanted

    def add(self, index: int, *panels: Tensor) -> None:
        """The next panels of an image's line, uint8 (3, H, W) each; nothing where it isn't shown."""
        if index in self.wanted:
            self._lines.setdefault(index, []).extend(_small(panel) for panel in panels)

    def picture(self) -> Picture | None:
        """All lines below one another on white; None where no image was added."""
        if not self._lines:
            return None
        lines = [self._lines[index] for index in sorted(self._lines)]
        cell = [max(panel.shape[axis] for line in lines for panel in line) + GAP for axis in (1, 2)]
        sheet = torch.full((3, cell[0] * len(lines) - GAP, cell[1] * len(self.columns) - GAP), 255, dtype=torch.uint8)
        for i, line in enumerate(lines):
            for j, panel in enumerate(line):
                top, left = i * cell[0], j * cell[1]
                sheet[:, top : top + panel.shape[1], left : left + panel.shape[2]] = panel
        buffer = io.BytesIO()
        Image.fromarray(sheet.permute(1, 2, 0).numpy()).quantize(COLOURS).save(buffer, "png", optimize=True)
        return Picture(self.columns, buffer.getvalue())


def _small(panel: Tensor) -> Tensor:
    """A panel with sides of at most `SIDE` pixels."""
    height, width = panel.shape[1:]
    if max(height, width) <= SIDE:
        return panel
    size = [max(1, round(side * SIDE / max(height, width))) for side in (height, width)]
    return tv.resize(panel, size, antialias=True)


def overlaid(image: Tensor, mask: Tensor) -> Tensor:
    """An image with a mask over it, in the colours of `colours`.

    Args:
        image: uint8 (3, H, W).
        mask: (H, W) of any integers.

    Returns:
        uint8 (3, H, W).
    """
    mixed = (1 - MIXED) * image.float() + MIXED * 255 * colours(mask[None])[0]
    return torch.where(mask.bool(), mixed, DIMMED * image.float()).to(torch.uint8)


def boxed(image: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """An image with boxes (K, 4) in the colours of their labels (K,): uint8 (3, H, W)."""
    if not len(boxes):
        return image
    drawn = [tuple((255 * colours(label.view(1, 1, 1)))[0, :, 0, 0].int().tolist()) for label in labels]
    return draw_bounding_boxes(image, boxes, colors=drawn)


def shaded(values: Tensor, largest: float) -> Tensor:
    """Numbers (H, W) in [0, `largest`] as grey levels, larger ones white: uint8 (3, H, W)."""
    return (255 * (values / largest).clamp(0, 1)).to(torch.uint8).expand(3, -1, -1)


def colours(masks: Tensor) -> Tensor:
    """Masks (B, H, W) of any integers in the colours of PASCAL VOC, (B, 3, H, W) float: 0 is black, 255 nearly white.

    Example:
        >>> (255 * colours(torch.tensor([[[0, 1, 2]]]))).int()[0, :, 0].T.tolist()
        [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    """
    numbers = masks.long()
    channels = [sum(((numbers >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
    return torch.stack([torch.as_tensor(each) for each in channels], dim=1).float() / 255
