"""What the papers' recipes are known to hold, read again from the authors' code and papers, against our files."""

from __future__ import annotations

from typing import Any

import pytest

from ssl_bench.config.recipe import load_recipe
from ssl_bench.methods import METHODS, TEACHERS
from ssl_bench.utils.shipped import recipe_names

# Rates are absolute: base_lr times batch over 256. Keys are those of the training, the method and the backbone.
MAE = {"lr": 2.4e-3, "batch_size": 4096, "epochs": 1600, "warmup_epochs": 40, "weight_decay": 0.05, "min_lr": 0.0}
MAE |= {"betas": (0.9, 0.95), "clip_grad": None, "mask_ratio": 0.75, "norm_pix": True, "crop_min": 0.2, "eps": 1e-8}
MAE |= {"decoder_dim": 512, "decoder_depth": 8, "decoder_heads": 16}
BEIT = {"lr": 1.5e-3, "batch_size": 2048, "epochs": 800, "warmup_epochs": 10, "weight_decay": 0.05, "min_lr": 1e-5}
BEIT |= {"betas": (0.9, 0.999), "clip_grad": 3.0, "drop_path": 0.1, "layer_scale": 0.1, "schedule": "step_inclusive"}
BEIT |= {"codebook_size": 8192, "min_block": 16, "crop_min": 0.08, "eps": 1e-8}
BEIT2 = BEIT | {"epochs": 1600, "crop_min": 0.2, "early_layer": 9, "head_layers": 2}
EVA = {"lr": 1e-3, "batch_size": 4096, "epochs": 150, "warmup_epochs": 2, "weight_decay": 0.05, "min_lr": 1e-5}
EVA |= {"betas": (0.9, 0.98), "eps": 1e-6, "clip_grad": 3.0, "drop_path": 0.1, "schedule": "step_inclusive"}
EVA2 = EVA | {"lr": 1.5e-3, "batch_size": 2048, "warmup_epochs": 1, "drop_path": 0.0, "patch_gradient": 0.1}
SMALL = EVA2 | {"lr": 3e-3, "batch_size": 4000, "epochs": 240}
HIERA = {"lr": 8e-4, "batch_size": 4096, "epochs": 1600, "warmup_epochs": 40, "weight_decay": 0.05, "mask_ratio": 0.6}
HIERA |= {"betas": (0.9, 0.95), "min_lr": 0.0, "decoder_dim": 512, "decoder_depth": 8, "decoder_heads": 16}
DINO: dict[str, Any] = {"lr": 2e-3, "batch_size": 1024, "epochs": 300, "warmup_epochs": 10, "min_lr": 1e-6}
DINO |= {"weight_decay": 0.04, "final_weight_decay": 0.4, "clip_grad": 3.0, "clip_per_tensor": True, "drop_path": 0.1}
DINO |= {"out_dim": 65536, "momentum": 0.996, "freeze_last_layer": 1, "norm_last_layer": False, "n_local": 8}
DINO |= {"teacher_temperature": 0.07, "warmup_teacher_temperature": 0.04, "warmup_teacher_epochs": 30}
DINO |= {"global_scale": (0.4, 1.0), "local_scale": (0.05, 0.4), "schedule": "step_inclusive"}
DINO |= {"student_temperature": 0.1, "center_momentum": 0.9, "hidden_dim": 2048, "bottleneck_dim": 256}
MANY = {"n_local": 10, "global_scale": (0.25, 1.0), "local_scale": (0.05, 0.25)}
BASE = {"lr": 3e-3, "epochs": 400, "min_lr": 2e-6, "clip_grad": 0.3, "warmup_teacher_epochs": 50}
BASE |= {"freeze_last_layer": 3, "norm_last_layer": True}
ESVIT = DINO | {"lr": 1e-3, "batch_size": 512}
IBOT = DINO | MANY | {"out_dim": 8192, "teacher_patch_temperature": 0.07, "shared_head": True}
IBOT |= {"shared_head_teacher": True, "pred_ratio": (0.0, 0.3), "pred_ratio_var": (0.0, 0.2), "pred_start_epoch": 0}
IBOT |= {"lambda1": 1.0, "lambda2": 1.0, "pred_shape": "block"}
IBOT_BASE = IBOT | BASE | {"global_scale": (0.32, 1.0), "local_scale": (0.05, 0.32)}
MOCO = {"lr": 2.4e-3, "batch_size": 4096, "epochs": 300, "warmup_epochs": 40, "weight_decay": 0.1, "min_lr": 0.0}
MOCO |= {"betas": (0.9, 0.999), "clip_grad": None, "temperature": 0.2, "momentum": 0.99, "crop_min": 0.08}
MOCO |= {"hidden_dim": 4096, "out_dim": 256, "freeze_patch_embed": True, "schedule": "step", "drop_path": 0.0}
MOBY = {"lr": 1e-3, "batch_size": 512, "epochs": 300, "warmup_epochs": 5, "weight_decay": 0.05, "min_lr": 5e-6}
MOBY |= {"warmup_lr": 5e-7, "clip_grad": 5.0, "drop_path": 0.2, "temperature": 0.2, "momentum": 0.99}
MOBY |= {"queue_size": 4096, "hidden_dim": 4096, "out_dim": 256, "crop_min": 0.08, "schedule": "step_late"}
SIMMIM = {"lr": 4e-4, "batch_size": 2048, "epochs": 800, "warmup_epochs": 10, "weight_decay": 0.05, "warmup_lr": 2e-6}
SIMMIM |= {"clip_grad": 5.0, "mask_patch": 32, "mask_ratio": 0.6, "lr_drops": (0.875,), "crop_min": 0.67}
OURS = {"lr": 2.4e-3, "batch_size": 4096, "epochs": 300, "warmup_epochs": 40, "weight_decay": 0.1, "clip_grad": None}
SSTA = {"lr": 1e-3, "batch_size": 1024, "epochs": 300, "warmup_epochs": 5, "weight_decay": 0.05, "min_lr": 1e-5}
SSTA |= {"drop_path": 0.1, "label_smoothing": 0.1, "distillation": 0.5, "clip_grad": None}
SSTA |= {"teacher_weight": 1.0, "assistant_weight": 1.0}
IGPT = {"batch_size": 128, "warmup_epochs": 1, "weight_decay": 0.0, "betas": (0.9, 0.95), "mask_ratio": 0.15}

EXPECTED: dict[str, dict[str, Any]] = {
    "mae vit_base_in1k": MAE,
    "mae vit_large_in1k": MAE,
    "beit vit_base_in1k": BEIT,
    "beit vit_large_in1k": BEIT | {"layer_scale": 1e-5},
    "beit_v2 vit_base_in1k": BEIT2,
    "beit_v2 vit_base_in1k_300ep": BEIT2 | {"epochs": 300, "betas": (0.9, 0.98), "drop_path": 0.0},
    "beit_v2 vit_large_in1k": BEIT2 | {"layer_scale": 1e-5, "early_layer": 21},
    "vqkd in1k": {"batch_size": 512, "epochs": 100, "warmup_epochs": 10, "betas": (0.9, 0.99), "weight_decay": 1e-4}
    | {"codebook_size": 8192, "code_dim": 32, "decoder_depth": 3, "decay": 0.99},
    "eva vit_base_in1k": EVA,
    "eva vit_large_in1k": EVA,
    "eva02 eva02_tiny_in1k": SMALL,
    "eva02 eva02_small_in1k": SMALL,
    "eva02 eva02_base_in1k": EVA2,
    "eva02 eva02_large_in1k": EVA2 | {"drop_path": 0.1},
    "hiera_mae hiera_tiny_in1k": HIERA | {"drop_path": 0.0},
    "hiera_mae hiera_small_in1k": HIERA | {"drop_path": 0.0},
    "hiera_mae hiera_base_in1k": HIERA | {"drop_path": 0.2},
    "hiera_mae hiera_large_in1k": HIERA | {"drop_path": 0.2},
    "dino vit_small_in1k_100ep": DINO
    | {"lr": 1e-3, "batch_size": 512, "epochs": 100, "teacher_temperature": 0.04, "warmup_teacher_epochs": 0}
    | {"norm_last_layer": True},
    "dino vit_small_in1k_300ep": DINO,
    "dino vit_small_in1k": DINO | MANY | {"epochs": 800, "min_lr": 1e-5, "clip_grad": None, "precision": "32"},
    "dino vit_base_in1k": DINO | MANY | BASE | {"precision": "32"},
    "dino swin_tiny_in1k": ESVIT,
    "esvit swin_tiny_in1k": ESVIT,
    "esvit swin_small_in1k": ESVIT,
    "ibot vit_small_in1k": IBOT | {"epochs": 800},
    "ibot vit_base_in1k": IBOT_BASE,
    "ibot vit_large_in1k": IBOT_BASE | {"epochs": 250},
    "ibot swin_tiny_in1k": IBOT | {"pred_start_epoch": 50},
    "ibot swin_tiny_window14_in1k": IBOT | {"lr": 5e-4 * 1040 / 256, "batch_size": 1040, "pred_start_epoch": 50},
    "moco_v3 vit_small_in1k": MOCO | {"num_heads": 12},
    "moco_v3 vit_base_in1k": MOCO,
    "moby vit_small_in1k": MOBY,
    "moby swin_tiny_in1k": MOBY,
    "moby swin_tiny_in1k_100ep": MOBY | {"epochs": 100},
    "mpp vit_base_in1k": {"lr": 2e-4, "batch_size": 4096, "betas": (0.9, 0.999), "mask_ratio": 0.5}
    | {"mask_share": 0.8, "swap_share": 0.1, "target": "mean_color"},
    "simmim vit_base_in1k": SIMMIM | {"drop_path": 0.1, "layer_scale": 0.1, "betas": (0.9, 0.999)},
    "simmim swin_base_in1k": SIMMIM,
    "maskfeat vit_base_in1k": {"lr": 1.6e-3, "batch_size": 2048, "epochs": 300, "warmup_epochs": 30, "min_lr": 1e-6}
    | {"clip_grad": 0.02, "weight_decay": 0.05, "mask_ratio": 0.4, "min_block": 15, "crop_min": 0.5, "cell": 8},
    "simclr vit_small_in1k": OURS | {"temperature": 0.1},
    "simclr vit_base_in1k": OURS | {"temperature": 0.1},
    "byol vit_small_in1k": OURS | {"lr": 1.6e-3, "weight_decay": 0.03, "momentum": 0.99},
    "byol vit_base_in1k": OURS | {"lr": 1.6e-3, "weight_decay": 0.03, "momentum": 0.99},
    "swav vit_small_in1k": OURS | {"n_prototypes": 3000, "epsilon": 0.05, "temperature": 0.1, "n_local": 6},
    "swav vit_base_in1k": OURS | {"n_prototypes": 3000, "sinkhorn_iterations": 3, "hidden_dim": 2048, "out_dim": 128},
    "ssta vit_tiny_in1k": SSTA,
    "ssta vit_small_in1k": SSTA,
    "igpt igpt_small_in1k": IGPT | {"lr": 3e-3},
    "igpt igpt_medium_in1k": IGPT,
    "igpt igpt_large_in1k": IGPT,
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_recipe_holds_the_published_values(name: str) -> None:
    recipe = load_recipe(*name.split())
    found = dict(recipe.backbone) | dict(recipe.settings) | vars(recipe.training)
    expected = dict(EXPECTED[name])
    if "lr" in expected:
        assert recipe.training.lr == pytest.approx(expected.pop("lr"))
    assert {key: found.get(key, 0.0 if key == "drop_path" else "missing") for key in expected} == expected


def test_every_recipe_for_imagenet_is_there() -> None:
    """But the dVAE's, whose paper trains on other images."""
    shipped = {
        f"{method} {name}" for method in (*METHODS, *TEACHERS) for name in recipe_names(method) if "in1k" in name
    }
    assert shipped == {*EXPECTED, "dvae in1k"}


def test_steps_of_a_paper_that_counts_steps() -> None:
    """MPP: 10,000 steps of warm-up and 100,000 in all, of 313 an epoch; iGPT: a million, of 10,009."""
    mpp, igpt = load_recipe("mpp", "vit_base_in1k").training, load_recipe("igpt", "igpt_large_in1k").training
    assert (mpp.warmup_epochs * 1_281_167 / 4096, mpp.epochs * 1_281_167 / 4096) == pytest.approx((1e4, 1e5), rel=2e-3)
    assert igpt.epochs * 1_281_167 / 128 == pytest.approx(1e6, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "patches", "masked"),
    [("beit vit_base_in1k", 196, 75), ("eva vit_base_in1k", 196, 78), ("eva02 eva02_base_in1k", 256, 105)],
)
def test_masked_patches_of_the_papers(name: str, patches: int, masked: int) -> None:
    assert round(load_recipe(*name.split()).settings["mask_ratio"] * patches) == masked
