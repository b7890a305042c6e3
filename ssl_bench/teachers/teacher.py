"""Frozen teachers whose patch tokens are a target: EVA's CLIP towers, or any encoder. Never part of a checkpoint."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ssl_bench.backbones.backbone import RGB, Backbone
from ssl_bench.teachers.clip_tower import CLIPTower
from ssl_bench.teachers.timm_tower import TimmTower, download
from ssl_bench.utils.errors import UserError, unknown
from ssl_bench.utils.weights import weights_hash
from ssl_bench.views.view import View


class Teacher(nn.Module):
    """A frozen image model, at the image size where its patches lie on the student's.

    Args:
        network: A CLIP tower, or anything that maps images to ``Tokens``.
        grid: The student's rows and columns of patches.
        patch_size: The network's, pixels.
        name: As the recipe writes it, for errors and rows.
        source: Where the weights come from, in words.
        mean: Of its input, per channel, on the scale [0, 1].
        std: Per channel.
        flags: What a reader of a row must know ("external data").

    Attributes:
        image_size: Height and width of its view, pixels.
        dim: Channels of a patch token.
        about: Name, source and hash of the weights, for rows.

    Raises:
        UserError: The network has other patches than the student at that size.
    """

    def __init__(
        self,
        network: nn.Module,
        grid: tuple[int, int],
        *,
        patch_size: int,
        name: str,
        source: str,
        mean: RGB,
        std: RGB,
        flags: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.eval().requires_grad_(False)
        self.image_size = (grid[0] * patch_size, grid[1] * patch_size)
        self.mean, self.std, self.flags = mean, std, flags
        weight = next(network.parameters())
        n_patches, self.dim = self.patches(weight.new_zeros(1, 3, *self.image_size)).shape[1:]
        if n_patches != grid[0] * grid[1]:
            raise UserError(f"teacher {name!r} has {n_patches} patches, not the student's {grid[0]} x {grid[1]}")
        self.about = {"name": name, "source": source, "sha256": weights_hash(network.state_dict())}

    def view_of(self, crop: View) -> View:
        """The student's crop as this teacher sees it: at its size, with its statistics."""
        return replace(crop, size=self.image_size, mean=self.mean, std=self.std, same=True)

    @torch.no_grad()
    def patches(self, images: Tensor) -> Tensor:
        """Patch tokens after the final norm and, where the network has one, its projection.

        Args:
            images: (B, 3, *image_size) float, normalised by ``mean`` and ``std``.

        Returns:
            (B, L, dim) float32, row by row.
        """
        network = self.network
        tokens = network.patches(images) if isinstance(network, CLIPTower) else network(images).patches
        return tokens.float()


def make_teacher(name: str, grid: tuple[int, int], network: nn.Module | None = None, source: str = "") -> Teacher:
    """The teacher that a recipe names.

    Args:
        name: ``timm:MODEL``, or the name of the network that is given.
        grid: The student's rows and columns of patches.
        network: A backbone or a ``CLIPTower``.
        source: Where the weights of the network come from, in words.

    Raises:
        UserError: The name says nothing, or the teacher cannot have the student's patches.
        RunError: The weights cannot be downloaded.
    """
    kind, _, value = name.partition(":")
    if network is not None:
        return _of_encoder(network, grid, name, source)
    if kind != "timm" or not value:
        raise unknown("teacher", name, ["clip", "clip:RECIPE", "timm:MODEL", "checkpoint:PATH"])
    tower = TimmTower(download(value), grid, name)
    flags = ("external teacher", "external data")
    size, mean, std = tower.patch_size, tower.mean, tower.std
    return Teacher(tower, grid, patch_size=size, name=name, source=tower.source, mean=mean, std=std, flags=flags)


def _of_encoder(encoder: nn.Module, grid: tuple[int, int], name: str, source: str) -> Teacher:
    """Teacher of an encoder of ours."""
    backbone = encoder.backbone if isinstance(encoder, CLIPTower) else encoder
    if not isinstance(backbone, Backbone) or not backbone.can_train:
        raise UserError(f"teacher {name!r} is a {type(encoder).__name__}; it must be a backbone")
    if not backbone.multi_crop and backbone.grid != grid:
        own = " x ".join(map(str, backbone.grid))
        raise UserError(
            f"teacher {name!r} takes one image size, of {own} patches, not the student's {grid[0]} x {grid[1]}"
        )
    size, mean, std = backbone.stages[-1].stride, backbone.mean, backbone.std
    return Teacher(encoder, grid, patch_size=size, name=name, source=source, mean=mean, std=std)
