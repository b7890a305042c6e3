"""Frozen teachers whose patch tokens are a target: EVA's CLIP towers, or any encoder. Never part of a checkpoint."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, cast

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.layers.patch_embed import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_bench.backbones import build_backbone
from ssl_bench.backbones.backbone import Backbone, Tokens
from ssl_bench.checkpoints.encoder_file import load_encoder
from ssl_bench.checkpoints.weights import weights_hash
from ssl_bench.utils.errors import RunError, UserError, unknown
from ssl_bench.views.view import IMAGENET_MEAN, IMAGENET_STD

RGB = tuple[float, float, float]


class Teacher(nn.Module):
    """A frozen image model, at the image size where its patches lie on the student's.

    Args:
        network: A CLIP tower, or anything that maps images to ``Tokens``.
        grid: The student's rows and columns of patches.
        patch_size: The network's, pixels.
        name: As the recipe writes it, for errors and rows.
        source: Where the weights come from, in words.
        flags: What a reader of a row must know ("external data").
        data: The data set it was trained on, when a file says so.
        mean: Of its input, per channel, on the scale [0, 1].
        std: Per channel.

    Attributes:
        image_size: Height and width of its view, pixels.
        dim: Channels of a patch token.

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
        flags: list[str] | None = None,
        data: str | None = None,
        mean: RGB = IMAGENET_MEAN,
        std: RGB = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.network = network
        self.eval().requires_grad_(False)
        self.image_size = (grid[0] * patch_size, grid[1] * patch_size)
        self.mean, self.std = mean, std
        self.flags, self.data = flags or [], data
        weight = next(network.parameters())
        n_patches, self.dim = self.patches(weight.new_zeros(1, 3, *self.image_size)).shape[1:]
        if n_patches != grid[0] * grid[1]:
            raise UserError(f"teacher {name!r} has {n_patches} patches, not the student's {grid[0]} x {grid[1]}")
        self.about = {"name": name, "source": source, "sha256": weights_hash(network.state_dict())}

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


class TimmTower(nn.Module):
    """A vision transformer of timm as a map to ``Tokens``: all tokens through the final norm and the projection.

    Args:
        model: timm's model; its head, if any, is taken for the projection.
    """

    def __init__(self, model: VisionTransformer | Eva) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, images: Tensor) -> Tokens:
        """(B, 3, H, W) -> ``Tokens`` of the head's width, or the model's. The cls field is the first prefix token."""
        model = self.model
        x = model.head(model.fc_norm(model.forward_features(images)))
        return Tokens(x[:, 0], x[:, model.num_prefix_tokens :])


class CLIPTower(nn.Module):
    """The image tower of the suite's CLIP: features before its projection, tokens after it.

    Args:
        backbone: The encoder.
        projection: Into the joint space, without bias.
    """

    def __init__(self, backbone: Backbone, projection: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.projection = backbone, projection
        self.name, self.image_size = f"clip_{backbone.name}", backbone.image_size
        self.poolings, self.mean, self.std = backbone.poolings, backbone.mean, backbone.std

    @property
    def spec(self) -> dict[str, Any]:
        """What ``build_clip_tower`` makes a tower of this shape from."""
        return {**self.backbone.spec, "name": self.name, "out_dim": self.projection.out_features}

    def patches(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, L, out_dim): patch tokens through the final norm and the projection, as EVA uses CLIP."""
        return self.projection(self.backbone(images).patches)

    def features(self, images: Tensor, poolings: Sequence[str]) -> dict[str, Tensor]:
        """The backbone's, as in the paper's linear probes (appendix A.3)."""
        return self.backbone.features(images, poolings)


def build_clip_tower(name: str, out_dim: int, **backbone_options: Any) -> CLIPTower:
    """The tower that an encoder file describes: ``clip_BACKBONE``, its joint space, and the backbone's options."""
    backbone = build_backbone(name.removeprefix("clip_"), **backbone_options)
    return CLIPTower(backbone, nn.Linear(backbone.embed_dim, out_dim, bias=False))


def make_teacher(name: str, grid: tuple[int, int], network: nn.Module | None = None) -> Teacher:
    """The teacher that a recipe names.

    Args:
        name: ``timm:MODEL``, ``checkpoint:PATH``, or the name of the target network that is given.
        grid: The student's rows and columns of patches.
        network: That network, a ``CLIPTower`` that the suite trained.

    Raises:
        UserError: The name says nothing, or the teacher cannot have the student's patches.
        RunError: The weights cannot be downloaded.
    """
    kind, _, value = name.partition(":")
    if network is not None:
        # The suite's CLIP learns from class names.
        return _of_encoder(network, grid, name=name, source="trained by the suite on the same images", flags=["labels"])
    if kind == "timm" and value:
        return _of_timm(download(value), grid, name)
    if kind == "checkpoint" and value:
        loaded = load_encoder(value)
        about = loaded.about
        data = about.get("pretraining", {}).get("data")
        source = f"encoder of {loaded.method}" + (f" trained on {data}" if data else "")
        flags = list(about.get("flags", []))
        return _of_encoder(loaded.encoder, grid, name=name, source=source, flags=flags, data=data)
    raise unknown("teacher", name, ["clip", "clip:RECIPE", "timm:MODEL", "checkpoint:PATH"])


def download(name: str) -> nn.Module:
    """A timm model with its pretrained weights; under ``torch.device("meta")`` without any.

    Raises:
        UserError: timm has no weights of this name.
        RunError: They cannot be downloaded.
    """
    if not timm.is_model_pretrained(name):
        close = difflib.get_close_matches(name, timm.list_pretrained(), n=5, cutoff=0.3)
        raise unknown("timm model with pretrained weights", name, close)
    try:
        return timm.create_model(name, pretrained=torch.get_default_device().type != "meta")
    except OSError as error:  # no network, no space, or the hub's own errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"cannot download the weights of timm:{name}: {reason}") from error


def _of_timm(model: nn.Module, grid: tuple[int, int], name: str) -> Teacher:
    """Teacher of a timm model. The head of a CLIP tower is its projection; any other head is a classifier."""
    if not isinstance(model, VisionTransformer | Eva) or not isinstance(model.patch_embed, PatchEmbed):
        raise UserError(f"teacher {name!r} is a {type(model).__name__}; it must be a plain vision transformer")
    config = cast("dict[str, Any]", model.pretrained_cfg)
    tag = str(config.get("tag") or "")
    if "_clip_" not in str(config.get("architecture")) or "ft_in" in tag:  # fine-tuned towers have a classifier
        model.reset_classifier(0)
    height, width = model.patch_embed.patch_size
    if height != width:
        raise UserError(f"teacher {name!r} has patches of {height} x {width} pixels; they must be square")
    model.set_input_size(img_size=(grid[0] * height, grid[1] * width))
    inputs = resolve_model_data_config(model)
    place = config.get("hf_hub_id") or config.get("url") or "no published weights"
    return Teacher(
        TimmTower(model),
        grid,
        patch_size=height,
        name=name,
        source=f"timm {timm.__version__}, {place}",
        flags=["external teacher", "external data"],
        mean=inputs["mean"],
        std=inputs["std"],
    )


def _of_encoder(encoder: nn.Module, grid: tuple[int, int], *, name: str, **about: Any) -> Teacher:
    """Teacher of an encoder of ours."""
    backbone = encoder.backbone if isinstance(encoder, CLIPTower) else encoder
    if not isinstance(backbone, Backbone) or not backbone.can_train:
        raise UserError(f"teacher {name!r} is a {type(encoder).__name__}; it must be a backbone")
    if not backbone.multi_crop and backbone.grid != grid:
        own = " x ".join(map(str, backbone.grid))
        raise UserError(
            f"teacher {name!r} takes one image size, of {own} patches, not the student's {grid[0]} x {grid[1]}"
        )
    about |= {"mean": backbone.mean, "std": backbone.std}
    return Teacher(encoder, grid, patch_size=backbone.stages[-1].stride, name=name, **about)
