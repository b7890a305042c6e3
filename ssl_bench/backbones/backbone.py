"""The contract of every backbone: what methods train, evaluators see and pictures show. One subclass a family."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, cast

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.drop import DropPath, calculate_drop_path_rates
from torch import Tensor, nn

from ssl_bench.backbones.pooling import Pooled
from ssl_bench.backbones.pooling import Stage as Stage
from ssl_bench.backbones.pooling import Tokens as Tokens
from ssl_bench.utils.errors import UserError, unknown

RGB = tuple[float, float, float]


class Backbone(Pooled, ABC):
    """An image encoder. A family subclasses this and timm's class, in this order, and keeps timm's state-dict keys.

    The constructor takes the name, and the family's own options as keywords alone; these become keys of recipes (those
    in ``utils.starts.NOT_AT_START`` must leave the initial features as they are, draws included). It sets ``name``,
    ``image_size``, ``embed_dim``, ``cell``, ``stages`` and, where ``can_mask``, ``mask_token``.

    Attributes:
        family: Stable name of the family; part of the identity of whatever was trained with it.
        version: Raised by every change that can move what equal options compute, initial weights included.
        can_train: There are weights to train.
        can_mask: ``forward(mask=...)`` works when the backbone was built with ``mask_token=True``; so ``can_keep`` and
            ``can_swap``, always.
        has_units: What ``keep`` names are units of several tokens, and ``unit_tokens`` works.
        has_cls: There is a class token.
        multi_crop: Images may have another size than ``image_size``.
        has_attention: ``attention`` works.
        has_heads: ``open_heads`` works.
        has_map: The tokens that come out are a map of the image; all families of ours.
        has_palette: Pixels are read as colours of a palette (iGPT), and ``tokens``, ``colors`` and ``encode`` work.
        choose_layer: The family's papers choose the layer that is probed: whoever compares poolings compares all layers
            where other families have the mean alone.
        name: In timm's grammar, image size last.
        image_size: Height and width, pixels.
        embed_dim: Channels D of the tokens that come out.
        cell: Pixels of the side of what one entry of ``mask`` or ``keep`` stands for; the sides of images are multiples
            of it.
        stages: The network's stages in order.
        mask_token: The learned (1, 1, D') embedding of masked patches; None when built without one.
        num_heads: Attention heads of a block, which no weights show; None where blocks differ or have none.
        mean: Of the input, per channel, on the scale [0, 1]; whoever feeds the backbone normalises with it.
        std: Per channel, on the same scale.
        spec: ``{"name": ..., **options}``, defaults included: what ``build_backbone`` makes this backbone from.
    """

    family: ClassVar[str]
    version: ClassVar[int] = 1
    can_train: ClassVar[bool] = True
    can_mask: ClassVar[bool] = False
    can_keep: ClassVar[bool] = False
    can_swap: ClassVar[bool] = False
    has_units: ClassVar[bool] = False
    has_attention: ClassVar[bool] = False
    has_heads: ClassVar[bool] = False
    has_palette: ClassVar[bool] = False
    choose_layer: ClassVar[bool] = False
    has_cls: bool = False
    multi_crop: bool = False
    has_map: bool = True

    name: str
    image_size: tuple[int, int]
    embed_dim: int
    cell: int
    stages: tuple[Stage, ...]
    mask_token: nn.Parameter | None
    num_heads: int | None = None
    mean: RGB = IMAGENET_DEFAULT_MEAN
    std: RGB = IMAGENET_DEFAULT_STD
    spec: dict[str, Any]

    def __new__(cls, *name: str, **options: Any) -> Self:
        """Remember what this backbone is built from; copying and unpickling call it without arguments."""
        self = super().__new__(cls)
        if name:
            parameters = inspect.signature(cls).parameters.values()
            defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
            object.__setattr__(self, "spec", {"name": name[0], **defaults, **options})
        return self

    # What a family says of itself, without building it ---------------------------------------------------------------

    @classmethod
    def check_name(cls, name: str) -> None:
        """Refuse a name that this family cannot build; of a class of a user's file, any but its own.

        Raises:
            UserError: Unknown size, or an image size that the patches don't divide.
        """
        if name not in cls.patterns():
            raise unknown("backbone", name, cls.patterns())

    @classmethod
    def patterns(cls) -> dict[str, dict[str, Any]]:
        """The names that this family builds, as ``vit_small_patch{P}_{IMAGE}``, each with facts worth listing."""
        return {cls.__name__: {}}

    @classmethod
    def abilities(cls, name: str, **options: Any) -> frozenset[str]:
        """Which of ``backbones.ABILITIES`` a backbone of this name has; options that aren't given stand in no way."""
        said = {"train": cls.can_train, "keep": cls.can_keep, "swap": cls.can_swap, "units": cls.has_units}
        said["mask"] = cls.can_mask and options.get("mask_token", True)
        said |= {"cls": cls.has_cls, "multi_crop": cls.multi_crop, "palette": cls.has_palette, "heads": cls.has_heads}
        said["attention"] = cls.has_attention
        return frozenset(ability for ability, has in said.items() if has)

    @classmethod
    def read_released(cls, content: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
        """The content of a released file under this family's names, and the options that it shows; as it is by default.

        For families whose authors have other names or shapes than ``checkpoints.official`` knows.
        """
        return content, {}

    # What a family computes ------------------------------------------------------------------------------------------

    @abstractmethod
    def forward(
        self, images: Tensor, mask: Tensor | None = None, keep: Tensor | None = None, swap: Tensor | None = None
    ) -> Tokens:
        """Encode images.

        Args:
            images: (B, 3, H, W) float, normalised by ``mean`` and ``std``.
            mask: (B, cells) bool; True = the embedding of the cell is replaced by ``mask_token``.
            keep: (B, K) int64, K the same for all; encode just these cells. Their tokens come out cell by
                cell, in the order in which they are given, or in raster order in families that say so.
            swap: (B, cells) int64; the cell whose embedding stands in each place (before masking and positions).

        Returns:
            Tokens after the final norm: one for each place of ``grid``, or those of the cells that were kept.
        """

    @abstractmethod
    def block_tokens(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        """What comes out of single blocks, from one forward pass.

        Args:
            images: As of ``forward``.
            blocks: Numbers 1 to ``depth``, counted over all stages, rising.

        Returns:
            After each the tokens, of its stage's width and grid; those of the last stage alone through the final norm
            (EsViT's rule, ``eval_linear.py``).
        """

    @property
    @abstractmethod
    def layer_ids(self) -> dict[str, int]:
        """Every parameter's layer: 0 the embeddings, i the block i, ``last_layer`` the final norm."""

    @abstractmethod
    def block_modules(self) -> Sequence[nn.Module]:
        """The ``depth`` blocks in order; for the family's and this class's own use."""

    def class_token(self, images: Tensor) -> Tensor:
        """The ``cls`` of ``forward`` alone, (B, 3, H, W) -> (B, D), for methods that read no patches.

        Where a family can, it doesn't compute what only they need.
        """
        return self(images).cls

    def attention(self, images: Tensor) -> Tensor:
        """Attention of the class token to the patches in the last block, where ``has_attention``.

        From (B, 3, H, W) to (B, heads, rows, columns) float32; with class and register tokens the weights sum to 1.
        """
        raise UserError(f"{self.name} has no attention of a class token to the patches")

    @classmethod
    def from_official(cls, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights as the family's authors name them, under timm's names; those with other names stay as they are."""
        return weights

    def unit_tokens(self, images: Tensor, keep: Tensor) -> list[Tensor]:
        """Tokens of the kept units after each stage, where ``has_units``: what the fusion of Hiera's MAE takes.

        In the last stage a unit still has 2 x 2 tokens, as in that pre-training.

        Args:
            images: (B, 3, H, W) float, normalised.
            keep: (B, K) int64.

        Returns:
            (B, K, rows, columns, C) for each stage, without the final norm: the tokens of each unit in raster order,
            the units too.
        """
        raise UserError(f"{self.name} has no mask units")

    def final_norm(self, tokens: Tensor) -> Tensor:
        """(..., D) tokens of the last stage through the final norm; for methods that fuse stages before it."""
        return cast(Any, self).norm(tokens)

    def open_heads(
        self, images: Tensor, heads: Sequence[int] | Tensor = (), gates: Tensor | None = None
    ) -> tuple[Tokens, Tensor]:
        """Encode images, and show the attention of heads of the last block, where ``has_heads``; with gradients.

        Args:
            images: As of ``forward``.
            heads: Which heads to show; int64 if they are a tensor.
            gates: (B, ``num_heads``) float; what the output of each head of that block is multiplied by.

        Returns:
            The tokens; (B, len(heads), N, N) float32, the attention from each token (row) to each, class and register
            tokens first. Rows sum to 1.
        """
        raise UserError(f"{self.name} does not show the attention of its heads")

    def fit_weight(self, name: str, value: Tensor) -> Tensor:
        """A released tensor as this backbone has it: positions of another image size are resized by a family's rule."""
        return value

    def prepare(self, images: Sequence[Tensor], seed: int) -> None:
        """Take from the training images what no gradient finds, before anything is made of this backbone; by default
        nothing.

        Args:
            images: uint8 (3, H, W) each, of any size.
            seed: Of whatever is drawn.
        """

    def drop_final_norm(self) -> None:
        """Take the final norm away for good, for heads that bring their own."""
        self.add_module("norm", nn.Identity())

    # What follows from that ------------------------------------------------------------------------------------------

    @property
    def num_params(self) -> int:
        """Parameters without the mask token, fixed position tables included: what timm's model has."""
        return sum(p.numel() for name, p in self.named_parameters() if name != "mask_token")

    def no_weight_decay(self) -> set[str]:
        """Parameters that are no vectors and yet take no weight decay: what timm's class says."""
        return set(getattr(super(), "no_weight_decay", set)())

    def freeze_patch_embed(self) -> None:
        """Keep the random patch projection: MoCo v3's remedy for instability (arXiv 2104.02057, section 4.2).

        Networks without one, which have convolutions instead, stay as they are.
        """
        for name, parameter in self.named_parameters():
            if "patch_embed" in name.split("."):
                parameter.requires_grad_(False)

    def set_drop_path(self, rate: float, last: int | None = None) -> None:
        """Stochastic depth instead of the present one: rising linearly from 0 at the first block.

        ``rate`` is that of the last block; only the ``last`` blocks have any, all when left out.
        """
        first = 0 if last is None else self.depth - last
        rates: Any = calculate_drop_path_rates(rate, self.depth)
        for i, block in enumerate(self.block_modules()):
            for name in [name for name, _ in block.named_children() if name.startswith("drop_path")]:
                setattr(block, name, DropPath(rates[i] if i >= first else 0.0).train(self.training))
