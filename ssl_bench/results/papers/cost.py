"""What a run would cost: its networks are built without data, and the FLOPs of a step counted from their shapes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from ssl_bench.backbones import build_backbone
from ssl_bench.config.build import build_with_teachers
from ssl_bench.config.recipe import Recipe
from ssl_bench.training.compute import forward_flops
from ssl_bench.training.without_data import built_without_data

IMAGES = {  # training and test images, and classes
    "imagenet1k": (1_281_167, 50_000, 1000),
    "imagenet22k": (14_197_122, 0, 21_841),
    "cifar10": (50_000, 10_000, 10),
    "cifar100": (50_000, 10_000, 100),
    "imagenette": (9_469, 3_925, 10),
    "shapes": (10_000, 4_000, 10),
}
# Sustained TFLOPS in training, an assumption: 40 % of the dense bf16 peak (989, 312, 91), which plain PyTorch reaches
# on ViT-B and larger with a fast loader; a CPU of 32 cores with AVX-512.
DEVICES = {"h100": 395.0, "a100": 125.0, "l40": 36.0, "cpu": 1.0}
PRICES = {"h100": 3.0, "a100": 1.8, "l40": 1.0, "cpu": 0.5}  # US dollars an hour of one, rented: an assumption
FLEETS = (1, 8, 64)  # devices


def fleets(hours: float, device: str) -> str:
    """What a run of so many hours on one device takes on several, if it scales, and costs.

    Example:
        >>> fleets(640.0, "h100")
        'on 1, 8, 64: 640 h, 80 h, 10 h if it scales; about 1,920 USD'
    """
    spans = ", ".join(f"{hours / count:,.3g} h" for count in FLEETS)
    return f"on {', '.join(map(str, FLEETS))}: {spans} if it scales; about {hours * PRICES[device]:,.0f} USD"


def state_bytes(recipe: Recipe) -> int:
    """Bytes of a training without activations: weights, and of those that are trained gradients and two moments."""
    with built_without_data():
        method = build_with_teachers(recipe, [f"class {i}" for i in range(10)])
    return sum(p.nbytes * (4 if p.requires_grad else 1) for p in method.parameters())


@cache
def encoder_flops(backbone: str, *, backward: bool = False) -> float:
    """One forward pass of a backbone for one image, with the backward pass if wanted.

    Args:
        backbone: Its name.
        backward: Whether the backbone is trained.
    """
    with built_without_data():
        network = build_backbone(backbone)
    return forward_flops(network, network.image_size, backward=backward)


def evaluation_passes(protocol: Mapping[str, Any]) -> tuple[float, float]:
    """How often an evaluation encodes the training images, without and with training the encoder.

    Fine-tuning trains the encoder, once more for each learning rate where there are several; a probe only encodes new
    crops in every epoch; the others encode each image once.

    Args:
        protocol: Of a protocol file.

    Example:
        >>> evaluation_passes({"evaluation": "probe", "epochs": 90}), evaluation_passes({"evaluation": "finetune"})
        ((90.0, 0.0), (0.0, 100.0))
    """
    kind, epochs = protocol["evaluation"], float(protocol.get("epochs", 100))
    rates = protocol.get("base_lr")
    if kind == "finetune":
        return 0.0, epochs * (1 + len(rates) if isinstance(rates, list) and len(rates) > 1 else 1)
    return (epochs if kind == "probe" else 1.0), 0.0
