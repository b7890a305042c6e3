"""The panels of a picture that an evaluation leaves."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from ssl_bench.evaluations.pictures import GAP, Picture


def panels_of(picture: Picture | None, lines: int) -> list[list[list[object]]]:
    """The colours of each panel of each line, as nested lists: (lines, columns, (height, width, 3))."""
    assert picture is not None
    pixels = np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB"))
    height, width = ((pixels.shape[0] + GAP) // lines, (pixels.shape[1] + GAP) // len(picture.columns))
    rows = [pixels[i * height : (i + 1) * height - GAP] for i in range(lines)]
    return [[row[:, j * width : (j + 1) * width - GAP].tolist() for j in range(len(picture.columns))] for row in rows]
