"""Initial weights of the backbone, as each paper's code has them."""

from __future__ import annotations

from timm.models.vision_transformer import VisionTransformer
from torch import nn


def init_mae(vit: VisionTransformer) -> None:
    """MAE's initial weights (``models_mae.py``): Xavier, qkv as one matrix; cls token N(0, 0.02); the patch
    projection as a matrix, its bias left at torch's default."""
    for module in vit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(vit.patch_embed.proj.weight.flatten(1))
    assert vit.cls_token is not None
    nn.init.normal_(vit.cls_token, std=0.02)


def init_moco_v3(vit: VisionTransformer) -> None:
    """MoCo v3's initial weights (``vits.py``): Xavier with q, k and v as three square matrices; cls token N(0, 1e-6);
    the patch projection as a matrix, its bias 0."""
    init_mae(vit)
    for name, module in vit.named_modules():
        if name.endswith("attn.qkv"):
            bound = (6 / (module.weight.shape[0] // 3 + module.weight.shape[1])) ** 0.5
            nn.init.uniform_(module.weight, -bound, bound)
    nn.init.zeros_(vit.patch_embed.proj.bias)
    assert vit.cls_token is not None
    nn.init.normal_(vit.cls_token, std=1e-6)


def init_dino(vit: VisionTransformer) -> None:
    """DINO's initial weights: truncated normal of std 0.02, biases 0; the patch projection at torch's default."""
    for module in vit.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    vit.patch_embed.proj.reset_parameters()
    for token in (vit.cls_token, vit.pos_embed):
        if token is not None and token.requires_grad:
            nn.init.trunc_normal_(token, std=0.02)


def init_beit(vit: VisionTransformer, std: float = 0.02) -> None:
    """BEiT's initial weights: normal, truncated at one sigma (which leaves a deviation of 0.54 std), biases 0; the two
    projections back into the residual stream of block i divided by sqrt(2 i)."""
    for module in vit.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=std, a=-std, b=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for token in (vit.cls_token, vit.pos_embed):
        if isinstance(token, nn.Parameter) and token.requires_grad:
            nn.init.trunc_normal_(token, std=std, a=-std, b=std)
    for i, block in enumerate(vit.blocks, start=1):
        for projection in (block.attn.proj, block.mlp.fc2):  # type: ignore[union-attr]
            projection.weight.data.div_((2 * i) ** 0.5)  # type: ignore[union-attr, operator]


INITS = {"mae": init_mae, "moco_v3": init_moco_v3, "dino": init_dino, "beit": init_beit}
