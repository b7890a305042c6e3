"""What a run would cost, from formulas alone: nothing is built, so that a plan is there at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssl_bench.backbones.vit import SIZES, parse_name
from ssl_bench.config.recipe import Recipe

IMAGES = {  # training and test images
    "imagenet1k": (1_281_167, 50_000),
    "imagenet22k": (14_197_122, 0),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "imagenette": (9_469, 3_925),
    "shapes": (10_000, 4_000),
}
# Sustained TFLOPS in training, an assumption: 40 % of the dense bf16 peak (989, 312, 91), which plain PyTorch reaches
# on ViT-B and larger with a fast loader; a CPU of 32 cores with AVX-512.
DEVICES = {"h100": 395.0, "a100": 125.0, "l40": 36.0, "cpu": 1.0}
BACKWARD = 3  # a forward and a backward pass cost three forward passes


def vit_flops(dim: int, depth: int, encoded: float, patches: float, patch_values: int) -> float:
    """Matrix products of one forward pass of a vision transformer for one image, two FLOPs a multiply-add.

    Args:
        dim: Width.
        depth: Blocks: qkv and projection take 4 dim^2 multiply-adds a token, the MLP 8 dim^2, attention 2 tokens dim.
        encoded: Patches that the blocks see; the cls token is added here.
        patches: Patches that are embedded.
        patch_values: Values of a patch: 3 x 16 x 16.

    Example:
        >>> round(vit_flops(768, 12, 196, 196, 768) / 1e9, 1)  # ViT-B/16 at 224 px
        35.1
    """
    tokens = encoded + 1
    return 2.0 * patches * patch_values * dim + depth * (24.0 * tokens * dim**2 + 4.0 * tokens**2 * dim)


def encoder_flops(backbone: str, side: float = 1.0, kept: float = 1.0) -> float:
    """One forward pass of a backbone for one image.

    Args:
        backbone: Its name.
        side: Height of the crop, as a part of the backbone's image.
        kept: Part of the patches that the blocks see.
    """
    size, patch, (height, width) = parse_name(backbone)
    dim, depth, _ = SIZES[size]
    patches = round(height * side / patch) * round(width * side / patch)
    return vit_flops(dim, depth, int(patches * kept), patches, 3 * patch**2)


def training_flops(recipe: Recipe) -> float:
    """Pre-training for one image: the encoder's views, those of a momentum encoder or teacher, and MAE's decoder.

    Projection heads, losses and frozen networks of other architectures (BEiT's tokenizer, EVA's CLIP) are left out.
    """
    name, settings = str(recipe.backbone["name"]), recipe.settings
    one = encoder_flops(name)
    if recipe.method == "mae":
        kept = encoder_flops(name, kept=1 - settings["mask_ratio"])
        _, patch, (height, width) = parse_name(name)
        patches, values = height * width // patch**2, 3 * patch**2
        # The decoder's embedding and its prediction have as many products as two patch embeddings have, or fewer.
        decoder = vit_flops(settings["decoder_dim"], settings["decoder_depth"], patches, patches, values)
        return BACKWARD * (kept + decoder)
    if recipe.method == "moco_v3":
        return 2 * BACKWARD * one + 2 * one
    if recipe.method in ("dino", "ibot"):
        _, _, (height, _) = parse_name(name)
        local = encoder_flops(name, side=(settings.get("local_size") or height * 96 / 224) / height)
        return BACKWARD * (2 * one + settings.get("n_local", 0) * local) + 2 * one
    return BACKWARD * one


def evaluation_passes(protocol: Mapping[str, Any]) -> tuple[float, float]:
    """Passes of an evaluation over the training images, and how many forward passes they cost.

    Fine-tuning trains the encoder, once more for each learning rate where there are several; a probe only encodes new
    crops in every epoch; the others encode each image once.

    Args:
        protocol: Of a protocol file.

    Example:
        >>> evaluation_passes({"evaluation": "probe", "epochs": 90}), evaluation_passes({"evaluation": "linear"})
        ((90.0, 90.0), (1.0, 1.0))
    """
    kind, epochs = protocol["evaluation"], float(protocol.get("epochs", 100))
    if kind == "finetune":
        rates = protocol.get("base_lr")
        epochs *= 1 + len(rates) if isinstance(rates, list) and len(rates) > 1 else 1
    return {"finetune": (epochs, BACKWARD * epochs), "probe": (epochs, epochs)}.get(kind, (1.0, 1.0))
