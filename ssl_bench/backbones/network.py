"""Any network from outside behind the contract, for evaluators alone: its features, and its map where it has one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssl_bench.backbones.backbone import RGB, Backbone, Stage, Tokens
from ssl_bench.utils.errors import UserError, first_line

POOL = "avgpool"  # what torchvision's ConvNets and Swins call the layer that averages their map


class PlainNetwork(Backbone):
    """A network from images to features as one block: all of its weights are of one layer.

    What comes out is (B, D), or a map (B, D, rows, columns), which is averaged. Of a network that averages a map by
    itself, in a submodule ``avgpool``, the map is what that submodule gets. Without one nothing dense is evaluated.

    Args:
        name: For rows.
        network: From (B, 3, H, W) float, normalised by ``mean`` and ``std``.
        image_size: Height and width of the images that it gets, pixels.
        mean: Of the images, per channel, on the scale [0, 1].
        std: Per channel, on the same scale.

    Raises:
        UserError: The network can't take such images, or returns something else.
    """

    family = "plain"
    mask_token = None
    poolings = ("features",)

    def __init__(self, name: str, *, network: nn.Module, image_size: tuple[int, int], mean: RGB, std: RGB) -> None:
        super().__init__()
        self.network, self.name, self.image_size, self.mean, self.std = network.eval(), name, image_size, mean, std
        features, found = self._try(image_size)
        self.embed_dim = features.shape[1]
        self.cell = 1 if found is None else -(-image_size[0] // found.shape[2])
        self.stages = (Stage(1, self.embed_dim, self.cell),)
        self.has_map = found is not None and found.shape[1:] == (self.embed_dim, *self.grid)
        larger = (image_size[0] + self.cell, image_size[1] + self.cell)
        self.multi_crop = self.has_map and self._gives_map_of(larger)

    def forward(
        self, images: Tensor, mask: Tensor | None = None, keep: Tensor | None = None, swap: Tensor | None = None
    ) -> Tokens:
        """See ``Backbone.forward``; there are neither masks nor dropped nor exchanged patches."""
        assert mask is None and keep is None and swap is None, "plain networks take whole images"
        features, found = self._run(images)
        return Tokens(features, features[:, None] if found is None else found.flatten(2).transpose(1, 2))

    def features(self, images: Tensor, poolings: Sequence[str]) -> dict[str, Tensor]:
        """``{"features": (B, D) float32}``."""
        return {"features": self(images).cls.float()}

    def block_tokens(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        """See ``Backbone.block_tokens``; there is one block."""
        return [self(images)]

    @property
    def layer_ids(self) -> dict[str, int]:
        """All in the one block."""
        return {name: 1 for name, _ in self.named_parameters()}

    def block_modules(self) -> Sequence[nn.Module]:
        """Nothing is known of them."""
        return []

    def drop_final_norm(self) -> None:
        """Nothing says which it is: it stays."""

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (B, D), and the map (B, D', rows, columns) if there is one."""
        pool, seen = getattr(self.network, POOL, None), []
        hook = pool.register_forward_pre_hook(lambda _, given: seen.append(given[0])) if pool is not None else None
        try:
            out: Any = self.network(images)
        finally:
            if hook is not None:
                hook.remove()
        maps = [x for x in (out, *seen) if isinstance(x, Tensor) and x.ndim == 4]
        return checked_features(out, len(images), self.name), max(maps, key=Tensor.numel, default=None)

    def _try(self, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        try:
            with torch.inference_mode():
                return self._run(torch.zeros(1, 3, *size, device=next(self.network.parameters()).device))
        except UserError:
            raise
        except Exception as error:  # whatever somebody's network raises
            why = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"model {self.name!r} takes no images of {size[0]} x {size[1]} pixels ({why})") from error

    def _gives_map_of(self, size: tuple[int, int]) -> bool:
        """Whether images of another size give a map as large as they should."""
        try:
            found = self._try(size)[1]
        except UserError:  # one size alone
            return False
        return found is not None and tuple(found.shape[2:]) == self.grid_of(size)


def checked_features(found: Any, images: int, name: str) -> Tensor:
    """What a model from outside returns as features (B, D) float; maps (B, D, rows, columns) are averaged.

    Args:
        found: The output.
        images: B.
        name: Of the model, for the message.

    Raises:
        UserError: It is something else.
    """
    if isinstance(found, Tensor) and found.ndim == 4:
        found = found.mean(dim=(2, 3))
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != images:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        wanted = f"({images}, D), or ({images}, D, rows, columns)"
        raise UserError(f"model {name!r} returns {shape} for {images} images; features must be {wanted}")
    return found
