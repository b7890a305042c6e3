"""What the papers' protocols are known to hold, read again from the authors' code and papers, against our files."""

from __future__ import annotations

from typing import Any

import pytest

from ssl_bench.config.protocol import load_evaluator

# Rates are absolute, for the protocol's own batch.
FINETUNE = {
    **dict.fromkeys(("weight_decay",), 0.05),
    **{"mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1, "randaugment": "rand-m9-mstd0.5-inc1", "erasing": 0.25},
    **{"erasing_mode": "pixel", "mixup_p": 1.0, "switch_p": 0.5, "min_lr": 1e-6, "clip_grad": None},
    **{"betas": [0.9, 0.999], "batch_size": 1024, "repeated_augmentation": 1, "ema": None},
}


def finetune(lr: Any, layer_decay: float, epochs: int, warmup: int, drop_path: float, **more: Any) -> dict[str, Any]:
    shape = {"layer_decay": layer_decay, "epochs": epochs, "warmup_epochs": warmup, "drop_path": drop_path}
    return FINETUNE | shape | {"lr": lr, "pooling": "mean", "head_init": 2e-5} | more


BEIT, IBOT = [2e-3, 3e-3, 4e-3, 5e-3], [8e-4, 9e-4, 1e-3, 2e-3]
DEIT = {"repeated_augmentation": 3, "min_lr": 1e-5, "warmup_lr": 1e-6, "pooling": "cls", "head_init": 0.02}
DEIT |= {"batch_size": 1026, "schedule": "epoch"}  # theirs is 1024; ours is three crops of 342 images
PIXELS = {"norm": True, "steps": 40_000, "warmup": 1500, "batch_size": 16, "crop": 512, "stride": 341}
PIXELS |= {"scale": [0.5, 2.0]}

EXPECTED: dict[str, dict[str, Any]] = {
    # One image label, the encoder trained too.
    "finetune-mae": finetune([2e-3], 0.65, 100, 5, 0.1),
    "finetune-mae-large": finetune([4e-3], 0.75, 50, 5, 0.2),
    "finetune-mae-huge": finetune([4e-3], 0.75, 50, 5, 0.3),
    "finetune-beit": finetune(BEIT, 0.65, 100, 20, 0.1),
    "finetune-beit-large": finetune([2e-3, 3e-3, 4e-3, 5e-3], 0.75, 50, 5, 0.2),
    "finetune-beit-v2": finetune([5e-4], 0.6, 100, 20, 0.2),
    "finetune-beit-v2-large": finetune([2e-4], 0.8, 50, 5, 0.2),
    "finetune-ibot-small": finetune(IBOT, 0.75, 200, 20, 0.1, pooling="cls"),
    "finetune-ibot": finetune(IBOT, 0.65, 100, 20, 0.2, pooling="cls"),
    "finetune-ibot-large": finetune(IBOT, 0.75, 50, 5, 0.4, pooling="cls"),
    "finetune-deit": finetune([5e-4 * 1026 / 512], 1.0, 300, 5, 0.1, **DEIT),
    "finetune-mocov3": finetune([5e-4 * 1026 / 512], 1.0, 150, 5, 0.1, **DEIT),
    "finetune-mocov3-large": finetune([5e-4 * 1026 / 512], 1.0, 100, 5, 0.5, **DEIT),
    "finetune-simmim": finetune([5e-3], 0.65, 100, 20, 0.1, batch_size=2048, clip_grad=5.0, warmup_lr=1e-6),
    "finetune-maskfeat": finetune([8e-3], 0.65, 100, 20, 0.1, batch_size=2048),
    "finetune-hiera": finetune([2e-3], 0.7, 100, 5, 0.1, erasing=0.0),  # the base network
    "finetune-eva": finetune([1e-4], 0.7, 30, 3, 0.1, mixup=0.0, cutmix=0.0, erasing=0.0, min_lr=0.0, ema=0.9999),
    # One image label, a linear layer.
    "linear-mae": {"optimizer": "lars", "lr": [6.4], "batch_size": 16384, "epochs": 90, "warmup_epochs": 10}
    | {"momentum": 0.9, "batch_norm": True, "init_std": 0.01, "schedule": "step", "interpolation": "bicubic"},
    "linear-mocov3": {"optimizer": "sgd", "lr": [12.0], "batch_size": 1024, "epochs": 90, "schedule": "epoch"}
    | {"momentum": 0.9, "warmup_epochs": 0, "weight_decay": [0.0], "interpolation": "bilinear", "poolings": ["cls"]},
    "linear-dino": {"optimizer": "sgd", "lr": [0.004], "batch_size": 1024, "epochs": 100, "schedule": "epoch"}
    | {"momentum": 0.9, "warmup_epochs": 0, "weight_decay": [0.0], "init_std": 0.01, "poolings": ["last4"]},
    "linear-dino-base": {"lr": [0.004], "epochs": 100, "poolings": ["cls+mean"]},
    "linear-ibot": {"lr": [4 * k * 10.0**e for e in range(-4, 1) for k in range(1, 10)], "poolings": ["last4"]}
    | {"optimizer": "sgd", "batch_size": 1024, "epochs": 100, "schedule": "epoch", "weight_decay": [0.0]},
    "linear-ibot-base": {"lr": [4 * k * 10.0**e for e in range(-4, 1) for k in range(1, 10)], "poolings": ["cls+mean"]},
    "linear-beit": {"optimizer": "adamw", "lr": [0.004], "weight_decay": [1e-4], "batch_size": 1024, "epochs": 50}
    | {"init_std": 0.01, "poolings": ["layers"], "schedule": "epoch"},
    "linear-moby": {"optimizer": "sgd", "lr": [1.0], "batch_size": 512, "epochs": 100, "warmup_epochs": 5}
    | {"momentum": 0.9, "weight_decay": [0.0], "interpolation": "bilinear"},
    "linear-dinov2": {"epochs": 10, "schedule": "step", "poolings": ["cls", "cls+mean", "last4", "last4+mean"]}
    | {"lr": [4 * k * 10.0**e for e in (-5, -4, -3, -2) for k in (1, 2, 5)] + [0.4]},
    "knn-dino": {"k": [10, 20, 100, 200], "temperature": [0.07], "headline_k": 20, "poolings": ["cls"]},
    "lowshot-dino": {"fractions": [0.01, 0.1], "C": [10.0], "intercept": False, "inputs": "normalised"},
    # A class, a mask or a depth of every pixel.
    "segmentation-linear": PIXELS | {"lr": 1e-3, "weight_decay": 1e-4, "blocks": []},
    "segmentation-linear-ibot": PIXELS
    | {"lr": 8e-4, "weight_decay": 0.05, "blocks": [4, 6, 8, 12], "steps": 160_000, "norm": False},
    "segmentation-finetune": {key: PIXELS[key] for key in ("warmup", "batch_size", "crop", "stride", "scale")}
    | {"lr": 8e-5, "weight_decay": 0.05, "layer_decay": 0.65, "drop_path": 0.1, "steps": 160_000},
    "segmentation-finetune-ibot-small": {
        key: PIXELS[key] for key in ("warmup", "batch_size", "crop", "stride", "scale")
    }
    | {"lr": 3e-5, "weight_decay": 0.05, "layer_decay": 0.9, "drop_path": 0.1, "steps": 160_000},
    "segmentation-knn": {"memory": 102_400, "k": 30, "temperature": 0.02},
    "depth-linear": {"lr": 5e-3, "weight_decay": 0.01, "steps": 38_400, "warmup": 12_800, "clip_grad": 35.0}
    | {"batch_size": 16, "crop": [416, 544], "bins": 256, "max_depth": 10.0},
    "detection-coco": {"lr": 1e-4, "weight_decay": 0.1, "layer_decay": 0.7, "drop_path": 0.1}
    | {"channels": 256, "short_side": 800, "long_side": 1333, "frozen": False},
    # Tracks, actions, copies, places, attention.
    "vos": {"frames": 7, "radius": 12, "topk": 5, "temperature": 0.1, "short_side": 480},
    "video-linear": {"frames": 8, "over_time": "average"},
    "copy-detection": {"kind": "cls+gem", "whitening": 20_000},
    "landmarks": {"scales": [1.0, 0.70710678, 0.5], "side": 512, "kind": "cls", "k": [1, 5, 10]},
    "landmarks-dino-oxford": {"scales": [1.0], "side": 224, "kind": "cls", "k": [1, 5, 10]},
    "attention-jaccard": {"mass": 0.6},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_protocol_holds_the_published_values(name: str) -> None:
    settings = load_evaluator(name).settings()
    expected = dict(EXPECTED[name])
    if isinstance(expected.get("lr"), list):
        rates: Any = settings["base_lr"]
        absolute = [rate * settings["batch_size"] / 256 for rate in rates]  # type: ignore[operator]
        assert absolute == pytest.approx(expected.pop("lr"))
    assert {key: settings[key] for key in expected} == expected
