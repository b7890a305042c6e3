"""An encoder with a linear classifier: what is fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.utils.errors import UserError, unknown

POOLINGS = ("mean", "cls")


class Network(nn.Module):
    """An encoder and a linear classifier: what is fine-tuned. Its features are its logits.

    Args:
        backbone: The encoder, which is taken over: its drop path, final norm and what needs gradients change.
        classes: Number of classes.
        pooling: "mean": the final norm is replaced by a new one behind the mean of the patches, as in MAE's
            ``models_vit.py``; "cls" keeps it. Of a ``PlainNetwork`` the one vector that it gives, as it is.
        blocks: How many of the last blocks are trained; all and the embeddings when None; the head alone when 0.
        drop_path: Stochastic depth of the last block, rising linearly from 0 at the first; trained blocks only.
        head_init: Standard deviation of the head's weights, a normal truncated at 2.

    Raises:
        UserError: There are fewer blocks, or no such pooling.
    """

    poolings = ("logits",)

    def __init__(
        self, backbone: Backbone, classes: int, pooling: str, blocks: int | None, drop_path: float, head_init: float
    ) -> None:
        super().__init__()
        depth = backbone.last_layer - 1
        if blocks is not None and blocks > depth:
            raise UserError(f"finetune: blocks is {blocks}; {backbone.name} has {depth}")
        pooling = pooled_by(pooling, backbone.poolings)
        if pooling not in backbone.poolings:
            raise unknown(f"fine-tuning pooling of {backbone.name}", pooling, set(POOLINGS) & set(backbone.poolings))
        self.backbone, self.pooling = backbone, pooling
        self.image_size, self.mean, self.std = backbone.image_size, backbone.mean, backbone.std
        backbone.mask_token = None
        backbone.set_drop_path(drop_path, blocks)  # instead of the pre-training's
        if pooling == "mean":
            backbone.drop_final_norm()
        for name, layer in backbone.layer_ids.items():
            trained = blocks is None or (blocks > 0 and layer > depth - blocks)
            backbone.get_parameter(name).requires_grad_(trained)
        self.norm = nn.LayerNorm(backbone.embed_dim, eps=1e-6) if pooling == "mean" else nn.Identity()
        self.head = nn.Linear(backbone.embed_dim, classes)
        nn.init.trunc_normal_(self.head.weight, std=head_init)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, C) float32."""
        network = self.backbone
        pooled = network.mean_of(network(images)) if self.pooling == "mean" else network.class_token(images)
        with torch.autocast(images.device.type, enabled=False):  # in bf16, classes would often tie
            return self.head(self.norm(pooled.float()))

    def features(self, images: Tensor, poolings: Sequence[str]) -> dict[str, Tensor]:
        """``{"logits": (B, C)}``."""
        return {"logits": self(images)}


def pooled_by(wanted: str, offered: Sequence[str]) -> str:
    """The pooling in front of the head: of an encoder that gives one vector, as a ``PlainNetwork``, this.

    Example:
        >>> pooled_by("mean", ("features",)), pooled_by("mean", ("cls", "mean"))
        ('features', 'mean')
    """
    return offered[0] if tuple(offered) == ("features",) else wanted


def layer_groups(
    network: nn.Module, backbone: nn.Module, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Groups of the parameters that are trained: one or two a layer; what isn't of the encoder is of the last layer.

    Each has lr_scale = layer_decay^(last layer - layer): BEiT's rule (``optim_factory.py``) and MAE's
    (``util/lr_decay.py``). Vectors, positions and tokens take no weight decay.

    Args:
        network: An encoder with a head.
        backbone: The encoder; one that isn't trained need not be a ``Backbone``.
        weight_decay: Of the others.
        layer_decay: Factor on the learning rate a layer.
    """
    encoder: Any = backbone
    own = {id(parameter): name for name, parameter in backbone.named_parameters()}
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    plain: set[str] = set()
    layers: dict[str, int] = {}
    if any(id(parameter) in own for parameter in trained):
        layers, plain = encoder.layer_ids, encoder.no_weight_decay()
    last = encoder.last_layer if layers else 0
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for parameter in trained:
        name = own.get(id(parameter), "")
        layer = layers[name] if name else last
        decays = parameter.ndim > 1 and name not in plain
        new: dict[str, Any] = {
            "params": [],
            "lr_scale": layer_decay ** (last - layer),
            "weight_decay": weight_decay if decays else 0.0,
        }
        groups.setdefault((layer, decays), new)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]
