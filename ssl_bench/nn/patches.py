"""Images as rows of patches, and the reconstruction loss on them (MAE, Hiera's MAE, MPP)."""

from __future__ import annotations

from torch import Tensor


def patchify(images: Tensor, patch_size: int, *, channels_first: bool = False) -> Tensor:
    """Cut images into patches.

    Args:
        images: (B, 3, H, W).
        patch_size: p, pixels.
        channels_first: Within a patch channel, pixel row, pixel column (Hiera, ``hiera_mae.py``) instead of pixel row,
            pixel column, channel (MAE, ``models_mae.py``).

    Returns:
        (B, L, p * p * 3), patches row by row.

    Example:
        >>> import torch
        >>> image = torch.arange(48.0).view(1, 3, 4, 4)
        >>> patchify(image, 2)[0, 0].tolist()
        [0.0, 16.0, 32.0, 1.0, 17.0, 33.0, 4.0, 20.0, 36.0, 5.0, 21.0, 37.0]
        >>> patchify(image, 2, channels_first=True)[0, 0].tolist()
        [0.0, 1.0, 4.0, 5.0, 16.0, 17.0, 20.0, 21.0, 32.0, 33.0, 36.0, 37.0]
    """
    b, c, h, w = images.shape
    x = images.reshape(b, c, h // patch_size, patch_size, w // patch_size, patch_size)
    order = (0, 2, 4, 1, 3, 5) if channels_first else (0, 2, 4, 3, 5, 1)
    return x.permute(order).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int], *, channels_first: bool = False) -> Tensor:
    """The inverse of ``patchify``: (B, L, p * p * 3) -> (B, 3, H, W)."""
    inner = (3, patch_size, patch_size) if channels_first else (patch_size, patch_size, 3)
    x = patches.unflatten(2, inner).unflatten(1, grid)
    order = (0, 3, 1, 4, 2, 5) if channels_first else (0, 5, 1, 3, 2, 4)
    return x.permute(order).flatten(4).flatten(2, 3)


def reconstruction_loss(prediction: Tensor, target: Tensor, mask: Tensor | None, norm_pix: bool) -> Tensor:
    """Mean squared error over the masked patches of the whole batch (MAE, section 3, "reconstruction target").

    Args:
        prediction: (B, L, p * p * 3).
        target: (B, L, p * p * 3), pixels of the normalised image.
        mask: (B, L) bool, True = masked; the visible patches don't count. None where all patches given are masked.
        norm_pix: Normalise each target patch by its mean and (unbiased) variance.

    Example:
        >>> import torch
        >>> img = torch.arange(48.0).view(1, 3, 4, 4) / 10
        >>> pred, mask = (torch.arange(48.0) - 20).view(1, 4, 12) / 10, torch.tensor([[False, True, True, False]])
        >>> round(reconstruction_loss(pred, patchify(img, 2), mask, norm_pix=True).item(), 6)
        1.266168
        >>> round(reconstruction_loss(pred, patchify(img, 2, channels_first=True), mask, norm_pix=True).item(), 6)
        0.868012
    """
    if norm_pix:
        target = normalised_patches(target)
    per_patch = (prediction - target).square().mean(dim=-1)
    return per_patch.mean() if mask is None else (per_patch * mask).sum() / mask.sum()


def normalised_patches(patches: Tensor) -> Tensor:
    """(B, L, N) -> (B, L, N): each patch by its own mean and unbiased variance."""
    patches = patches - patches.mean(dim=-1, keepdim=True)
    var = patches.square().sum(dim=-1, keepdim=True) / (patches.shape[-1] - 1)
    return patches / (var + 1e-6).sqrt()


def with_statistics_of(prediction: Tensor, patches: Tensor) -> Tensor:
    """The inverse of ``normalised_patches``: predictions (B, L, N) with the mean and variance of these patches."""
    return prediction * (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt() + patches.mean(-1, keepdim=True)
