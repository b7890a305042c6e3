"""How much of its codebook a tokenizer uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ssl_bench.teachers.dalle import perplexity
from ssl_bench.utils.errors import RunError
from ssl_bench.views.evaluation import resize_crop

if TYPE_CHECKING:
    from ssl_bench.data.datasets import ImageSet

MEASURED = 10_000  # images on which codes are counted
COLLAPSED = 64  # a perplexity below codebook_size / COLLAPSED is a collapse: 128 of 8192 codes


def least_perplexity(codes: int) -> float:
    """Of a codebook that is of use.

    Example:
        >>> least_perplexity(8192), least_perplexity(64)
        (128.0, 2)
    """
    return max(2, codes / COLLAPSED)


@torch.no_grad()
def codebook_usage(
    tokenizer: Any, images: ImageSet, size: tuple[int, int], device: torch.device, remedy: str
) -> dict[str, Any]:
    """Codes in use on up to 10,000 images, evenly spread.

    Args:
        tokenizer: With ``tokens`` and ``codebook_size``.
        images: The training images.
        size: Height and width that they are cut to, pixels.
        device: Of the tokenizer.
        remedy: Keys of the recipe to try where the codebook collapsed, for the error.

    Raises:
        RunError: The codebook collapsed: such codes say nothing about an image.
    """
    picked = torch.linspace(0, len(images) - 1, min(len(images), MEASURED)).long().unique()
    ids = []
    for rows in picked.split(250):
        pixels = torch.stack([resize_crop(images.images[int(i)], size) for i in rows])
        ids.append(tokenizer.tokens(pixels.to(device) / 255))
    codes, tokens = tokenizer.codebook_size, torch.cat(ids)
    used = perplexity(tokens, codes).item()
    if used < least_perplexity(codes):
        raise RunError(
            f"the codebook collapsed: the perplexity of its {codes} codes is {used:.1f} on the training images, "
            f"and at least {least_perplexity(codes):g} is useful; try another {remedy}"
        )
    return {
        "codebook_size": codes,
        "codes_used": len(tokens.unique()),
        "code_perplexity": round(used, 2),
        "codes_measured_on": len(picked),
    }
