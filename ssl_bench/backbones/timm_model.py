"""Any other model of timm behind the contract, for methods that need neither masks nor dropped patches."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import Any

import timm
import torch
from timm.layers.drop import DropPath
from timm.models._manipulate import group_parameters
from torch import Tensor, nn

from ssl_bench.backbones.backbone import Backbone, Stage, Tokens
from ssl_bench.backbones.names import check_size
from ssl_bench.utils.bounds import Rate
from ssl_bench.utils.errors import UserError, unknown

NORMS = ("norm", "fc_norm", "head.norm")  # where timm's classes have their final norm


class TimmModel(Backbone):
    """A model of timm with its own image size and normalisation, at timm's random initial weights.

    ``Tokens.cls`` is what timm's classifier would see, where that is as wide as the patches; their mean otherwise. The
    outputs that timm calls features (the blocks of a transformer, the stages of a ConvNet) count as blocks.

    Args:
        name: ``timm:`` and timm's name, with another image size behind it where the model takes one:
            ``timm:resnet18``, ``timm:resnet18_64``, ``timm:vit_small_patch14_reg4_dinov2_224``.
        drop_path: Stochastic depth of the last block, rising from 0 as timm's class has it.

    Raises:
        UserError: timm has no such model, or it can't be built for this image size.

    Example:
        >>> TimmModel("timm:resnet18_64")(torch.zeros(2, 3, 64, 64)).patches.shape
        torch.Size([2, 4, 512])
    """

    family = "timm"
    mask_token = None

    def __init__(self, name: str, *, drop_path: Rate = 0.0) -> None:
        super().__init__()
        model, size = parse_timm_name(name)
        config: Any = timm.get_pretrained_cfg(model)
        self.model = _create(name, model, size, drop_path)
        self.name, self.image_size = name, size or tuple(config.input_size[1:])
        self.mean, self.std = tuple(config.mean), tuple(config.std)
        self.embed_dim = self.model.num_features
        self.prefix = getattr(self.model, "num_prefix_tokens", None) or 0
        self.has_cls = self.prefix > 0 and getattr(self.model, "global_pool", "") == "token"
        self.multi_crop = not config.fixed_input_size
        levels = [(info["num_chs"], info["reduction"]) for info in self.model.feature_info]
        self.stages = tuple(Stage(len(list(same)), *level) for level, same in groupby(levels))
        self.cell = self.stages[-1].stride
        if config.fixed_input_size and any(side % self.cell for side in self.image_size):
            raise UserError(f"backbone {name!r}: the sides of the image must be multiples of {self.cell} pixels")
        self.layers = group_parameters(self.model, self.model.group_matcher(coarse=False), reverse=True)
        self.register_state_dict_post_hook(_to_timm)
        self.register_load_state_dict_pre_hook(_from_timm)

    @classmethod
    def check_name(cls, name: str) -> None:
        """See ``parse_timm_name``."""
        parse_timm_name(name)

    @classmethod
    def patterns(cls) -> dict[str, dict[str, Any]]:
        """All of timm."""
        return {"timm:{MODEL}": {"description": "any of timm's models, as timm.list_models() names them"}}

    @classmethod
    def abilities(cls, name: str, **options: Any) -> frozenset[str]:
        """Whether it takes other sizes and has a class token depends on the model."""
        has_cls, multi_crop = (False, True) if "{" in name else _facts(name)
        return frozenset(["train", *(["cls"] if has_cls else []), *(["multi_crop"] if multi_crop else [])])

    def forward(
        self, images: Tensor, mask: Tensor | None = None, keep: Tensor | None = None, swap: Tensor | None = None
    ) -> Tokens:
        """See ``Backbone.forward``; there are neither masks nor dropped nor exchanged patches."""
        assert mask is None and keep is None and swap is None, "models of timm take whole images"
        x = self.model.forward_features(images)
        if x.ndim == 4:
            channels_last = getattr(self.model, "output_fmt", None) == "NHWC"
            patches = x.flatten(1, 2) if channels_last else x.flatten(2).transpose(1, 2)
        else:
            patches = x[:, self.prefix :]
        if self.model.head_hidden_size == self.embed_dim:
            return Tokens(self.model.forward_head(x, pre_logits=True), patches)
        return Tokens(patches.mean(dim=1), patches)

    def block_tokens(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        """See ``Backbone.block_tokens``; the class token of a block is what ``mean_of`` makes of its patches."""
        outputs = self.model.forward_intermediates(
            images, indices=[block - 1 for block in blocks], norm=True, output_fmt="NCHW", intermediates_only=True
        )
        patches = [output.flatten(2).transpose(1, 2) for output in outputs]
        return [Tokens(tokens.mean(dim=1), tokens) for tokens in patches]

    @property
    def poolings(self) -> tuple[str, ...]:
        """The mean and, where timm's classifier sees one, the class token."""
        return ("cls", "mean") if self.has_cls else ("mean",)

    def features(self, images: Tensor, poolings: Sequence[str]) -> dict[str, Tensor]:
        """See ``Backbone.features``."""
        for pooling in poolings:
            self.pooling_blocks(pooling)
        tokens = self(images)
        return {pooling: tokens.cls.float() if pooling == "cls" else self.mean_of(tokens) for pooling in poolings}

    @property
    def layer_ids(self) -> dict[str, int]:
        """timm's own (``group_matcher``): the final norm counts to the last block."""
        return {f"model.{name}": layer for name, layer in self.layers.items()}

    @property
    def last_layer(self) -> int:
        """The head alone."""
        return max(self.layers.values()) + 1

    def block_modules(self) -> Sequence[nn.Module]:
        """timm's classes share no list of their blocks."""
        return []

    def set_drop_path(self, rate: float, last: int | None = None) -> None:
        """See ``Backbone.set_drop_path``; models without stochastic depth stay without."""
        count = self.last_layer - 1
        for name, module in list(self.model.named_modules()):
            at, _, leaf = name.rpartition(".")
            if not leaf.startswith("drop_path") or not isinstance(module, nn.Identity | DropPath):
                continue
            layer = max(layer for key, layer in self.layers.items() if key.startswith(f"{at}."))
            p = rate * (layer - 1) / max(1, count - 1) if last is None or layer > count - last else 0.0
            setattr(self.model.get_submodule(at), leaf, DropPath(p).train(self.training))

    def drop_final_norm(self) -> None:
        """See ``Backbone.drop_final_norm``."""
        for path in NORMS:
            at, _, leaf = path.rpartition(".")
            parent = self.model.get_submodule(at) if not at or hasattr(self.model, at) else None
            if isinstance(getattr(parent, leaf, None), nn.Module):
                setattr(parent, leaf, nn.Identity())
        names = {name for name, _ in self.model.named_parameters()}
        self.layers = {name: layer for name, layer in self.layers.items() if name in names}


def parse_timm_name(name: str) -> tuple[str, tuple[int, int] | None]:
    """timm's name and the image size, if one is given, of ``timm:NAME``; a whole name of timm's goes first.

    Example:
        >>> parse_timm_name("timm:resnet18_64"), parse_timm_name("timm:mobilenetv3_large_100")
        (('resnet18', (64, 64)), ('mobilenetv3_large_100', None))
    """
    model, size = name.removeprefix("timm:"), None
    match = re.fullmatch(r"(.+)_([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", model)
    if not _known(model) and match and _known(match[1]):
        model, size = match[1], (int(match[2]), int(match[3] or match[2]))
    if not name.startswith("timm:") or not _known(model):
        stem = model.split(".")[0]
        close = difflib.get_close_matches(stem, timm.list_models(), n=5, cutoff=0.3)
        raise unknown("timm model", model, close)
    if size:
        check_size(name, size, min(*size, 16))
    return model, size


def _known(model: str) -> bool:
    return timm.is_model(model) and timm.get_pretrained_cfg(model, allow_unregistered=False) is not None


@cache
def _facts(name: str) -> tuple[bool, bool]:
    """Whether the model has a class token, and whether it takes other image sizes; built without its weights."""
    with torch.device("meta"):
        built = TimmModel(name)
    return built.has_cls, built.multi_crop


def _create(name: str, model: str, size: tuple[int, int] | None, drop_path: float) -> Any:
    """timm's model without its classifier."""
    options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    if size and timm.get_pretrained_cfg(model).fixed_input_size:  # type: ignore[union-attr]
        options["img_size"] = size
    try:
        return timm.create_model(model, pretrained=False, num_classes=0, **options)
    except (TypeError, AssertionError, ValueError) as error:
        given = ", ".join(f"{key} {value}" for key, value in options.items())
        raise UserError(f"timm cannot build {name!r} with {given or 'its defaults'}: {error}") from error


def _to_timm(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    """Keys as timm's own model has them."""
    for key in [key for key in state_dict if key.startswith(f"{prefix}model.")]:
        state_dict[prefix + key.removeprefix(f"{prefix}model.")] = state_dict.pop(key)


def _from_timm(module: nn.Module, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
    """timm's keys as this module has them."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        state_dict[f"{prefix}model.{key.removeprefix(prefix)}"] = state_dict.pop(key)
