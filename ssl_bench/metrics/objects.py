"""How well masks of an object agree with the truth: region J and boundary F of DAVIS (Perazzi et al., CVPR 2016)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt

Mask = np.ndarray[Any, np.dtype[np.bool_]]

TOLERANCE = 0.008  # of the diagonal, rounded up to pixels


def region(prediction: Mask, truth: Mask) -> float:
    """J: intersection over union of two (H, W) masks; 1 where both are empty.

    Example:
        >>> region(np.array([[True, True]]), np.array([[True, False]]))
        0.5
    """
    union = int((prediction | truth).sum())
    return int((prediction & truth).sum()) / union if union else 1.0


def boundary(prediction: Mask, truth: Mask) -> float:
    """F: harmonic mean of precision and recall of the boundary, of (H, W) masks, within a tolerance.

    A point of one boundary is found if one of the other lies within `TOLERANCE` of the diagonal. Without any boundary F
    is 1, with one of the two 0 (davis2017-evaluation).

    Example:
        >>> inside = np.zeros((8, 8), bool)
        >>> inside[2:6, 2:6] = True
        >>> boundary(inside, np.roll(inside, 1, axis=1))
        1.0
    """
    a, b = outline(prediction), outline(truth)
    if not a.any() or not b.any():
        return float(a.any() == b.any())
    reach = math.ceil(TOLERANCE * math.hypot(*truth.shape))
    precision = float((distance_transform_edt(~b) <= reach)[a].mean())
    recall = float((distance_transform_edt(~a) <= reach)[b].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def outline(mask: Mask) -> Mask:
    """Pixels of an (H, W) mask that differ from their right, lower or lower right neighbour, where there is one.

    The last row is compared to the right only, the last column downwards only, as in the toolkit.

    Example:
        >>> outline(np.array([[False, False], [False, True]])).astype(int).tolist()
        [[1, 1], [1, 0]]
    """
    found = np.zeros_like(mask)
    found[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    found[:-1] |= mask[:-1] != mask[1:]
    found[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return found
