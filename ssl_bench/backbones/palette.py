"""A palette of colours instead of pixel values: k-means centres, as iGPT has them (Chen et al., ICML 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

COLORS = 512  # of the palette (section 3.2)
FITTED_TO = 2**16  # colours of training images that the palette is fitted to, of at most as many images as:
FITTED_IMAGES = 4096
ITERATIONS = 25  # of k-means


def uniform_palette() -> Tensor:
    """(512, 3) float32 in [-1, 1]: the centres of 8 x 8 x 8 equal cells."""
    levels = torch.arange(8, device="cpu") / 4 - 0.875
    return torch.cartesian_prod(levels, levels, levels)


def nearest_colors(pixels: Tensor, palette: Tensor) -> Tensor:
    """Index of the nearest colour by Euclidean distance, the first of equal ones.

    Args:
        pixels: (..., 3) float32 in [-1, 1].
        palette: (V, 3) float32.

    Example:
        >>> palette = torch.tensor([[-1.0, -1, -1], [1, 1, 1], [0, 0, 0], [0.5, -0.5, 0]])
        >>> nearest_colors(torch.tensor([[-0.9, -0.8, -1], [0.6, -0.4, 0.1], [0.25, -0.25, 0]]), palette).tolist()
        [0, 3, 2]
    """
    return (palette.square().sum(dim=1) - 2 * pixels @ palette.T).argmin(dim=-1)


def decode_colors(palette: Tensor, tokens: Tensor) -> Tensor:
    """The colours (..., 3) float32 in [0, 1] of tokens, on the 256 levels of the authors: round(127.5 (c + 1)).

    Example:
        >>> palette = torch.tensor([[-1.0, 1.0, 0.0], [0.5, -0.5, 0.0]])
        >>> (255 * decode_colors(palette, torch.tensor([0, 1]))).round().tolist()
        [[0.0, 255.0, 128.0], [191.0, 64.0, 128.0]]
    """
    return (127.5 * (palette + 1)).round().clamp(0, 255)[tokens] / 255


def sample_colors(images: Sequence[Tensor], grid: tuple[int, int], seed: int) -> Tensor:
    """Colours (N, 3) float32 in [-1, 1] of at most ``FITTED_TO`` cells of at most ``FITTED_IMAGES`` images.

    Args:
        images: uint8 (3, H, W), of any size; each is averaged to the grid.
        grid: Rows and columns of cells.
        seed: Which images and cells.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images), generator=generator)[:FITTED_IMAGES].tolist()
    each = -(-FITTED_TO // len(chosen))  # cells of an image
    found = []
    for i in chosen:
        cells = F.adaptive_avg_pool2d(images[i].float(), grid).flatten(1).T
        found.append(cells[torch.randperm(len(cells), generator=generator)[:each]])
    return torch.cat(found)[:FITTED_TO] / 127.5 - 1


def fit_palette(colors: Tensor, count: int, seed: int) -> Tensor:
    """Centres (count, 3) float32 of k-means from random colours, the same for the same seed.

    Args:
        colors: (N, 3) float32; few are repeated, so that there are as many as centres.
        count: How many centres.
        seed: Of the first centres.
    """
    import faiss

    colors = colors.repeat(-(-count // len(colors)), 1).contiguous()
    run = faiss.Kmeans(
        3, count, niter=ITERATIONS, seed=seed, min_points_per_centroid=1, max_points_per_centroid=len(colors)
    )
    run.train(colors.numpy())
    return torch.from_numpy(np.array(run.centroids))
