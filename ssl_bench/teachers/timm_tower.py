"""Vision transformers of timm with their published weights, as teachers."""

from __future__ import annotations

import difflib
from typing import Any, cast

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.layers.patch_embed import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_bench.backbones.backbone import Tokens
from ssl_bench.backbones.positions import resample_positions
from ssl_bench.utils.errors import RunError, UserError, first_line, unknown


class TimmTower(nn.Module):
    """A vision transformer of timm as a map to ``Tokens``: all tokens through the final norm and the projection.

    Args:
        model: timm's model. The head of a CLIP tower is its projection; any other head is a classifier and is dropped.
        grid: Rows and columns of patches that its images have.
        name: As the recipe writes it, for errors.

    Attributes:
        patch_size: Pixels.
        mean: Of its input, per channel, on the scale [0, 1].
        std: Per channel.
        source: Where the weights come from, in words.

    Raises:
        UserError: No plain vision transformer, or its patches aren't square.
    """

    def __init__(self, model: nn.Module, grid: tuple[int, int], name: str) -> None:
        super().__init__()
        if not isinstance(model, VisionTransformer | Eva) or not isinstance(model.patch_embed, PatchEmbed):
            raise UserError(f"teacher {name!r} is a {type(model).__name__}; it must be a plain vision transformer")
        config = cast("dict[str, Any]", model.pretrained_cfg)
        tag = str(config.get("tag") or "")
        if "_clip_" not in str(config.get("architecture")) or "ft_in" in tag:  # fine-tuned towers have a classifier
            model.reset_classifier(0)
        height, width = model.patch_embed.patch_size
        if height != width:
            raise UserError(f"teacher {name!r} has patches of {height} x {width} pixels; they must be square")
        old, positions = model.patch_embed.dynamic_feat_size(model.patch_embed.img_size), model.pos_embed
        model.set_input_size(img_size=(grid[0] * height, grid[1] * width))
        if positions is not None:  # timm resamples them with antialiasing, the authors of EVA without
            prefix = positions.shape[1] - old[0] * old[1]
            model.pos_embed = nn.Parameter(resample_positions(positions.detach(), old, grid, prefix, "size"))
        inputs = resolve_model_data_config(model)
        place = config.get("hf_hub_id") or config.get("url") or "no published weights"
        self.model: Any = model
        self.patch_size, self.mean, self.std = height, inputs["mean"], inputs["std"]
        self.source = f"timm {timm.__version__}, {place}"

    def forward(self, images: Tensor) -> Tokens:
        """(B, 3, H, W) -> ``Tokens`` of the head's width, or the model's. The cls field is the first prefix token."""
        model = self.model
        x = model.head(model.fc_norm(model.forward_features(images)))
        return Tokens(x[:, 0], x[:, model.num_prefix_tokens :])


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
        raise RunError(f"cannot download the weights of timm:{name}: {first_line(error)}") from error
