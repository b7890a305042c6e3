"""A batch computed in parts is the batch computed at once, where the loss is a mean over images; blocks likewise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tiny import NANO, tiny_recipe
from torch import Tensor, nn

from ssl_bench.backbones.vit import ViT
from ssl_bench.commands.pretrain import run
from ssl_bench.config.build import build
from ssl_bench.config.recipe import Recipe, load_recipe
from ssl_bench.data.datasets import Splits
from ssl_bench.methods.mae import MAE
from ssl_bench.nn.accumulation import parts_of
from ssl_bench.nn.centering import Center
from ssl_bench.nn.ema import ema_update
from ssl_bench.nn.optimizers import Training
from ssl_bench.training.blocks import prepare_blocks
from ssl_bench.training.trainer import train
from ssl_bench.utils.errors import UserError


def recipe(method: str, **keys: object) -> Recipe:
    still = {"drop_path": 0.0, "precision": "32", "epochs": 2, "base_lr": 1e-2, "batch_size": 8}
    return load_recipe(method, tiny_recipe(method), {"backbone": NANO, **still, **keys})


@pytest.mark.parametrize("method", ["mae", "dino", "ibot"])
def test_parts_give_the_curve_and_the_weights_of_the_whole(method: str, tiny_data: Splits, tmp_path: Path) -> None:
    for name, parts in (("whole", 1), ("parts", 2)):
        run(recipe(method, accumulate=parts), tiny_data, tmp_path / name, ("csv",))
    whole, parts_ = (pd.read_csv(tmp_path / name / "metrics.csv") for name in ("whole", "parts"))
    assert len(whole) >= 8
    pd.testing.assert_frame_equal(parts_, whole, rtol=2e-4, atol=1e-5)
    a, b = (torch.load(tmp_path / name / "method.pt", weights_only=True) for name in ("whole", "parts"))
    a, b = (found.get("weights", found) for found in (a, b))
    assert a.keys() == b.keys()
    for key, value in a.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(b[key], value, rtol=2e-3, atol=2e-4, msg=key)


def test_momentum_encoder_and_centre_move_once_a_step() -> None:
    target, source = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.zeros_(target.weight)
    nn.init.ones_(source.weight)
    center = Center(1, 0.9)
    for part in parts_of({"index": torch.arange(6.0)[:, None]}, 3):
        ema_update(target, source, 0.9)
        center.update(part["index"])
    assert target.weight.item() == pytest.approx(0.1)
    assert center.center.item() == pytest.approx(0.1 * 2.5)  # of the mean of 0 to 5


def test_moco_moves_its_keys_once_and_trains_in_parts(tiny_data: Splits, tmp_path: Path) -> None:
    run(recipe("moco_v3", accumulate=2, epochs=1), tiny_data, tmp_path / "parts", ("csv",))
    assert pd.read_csv(tmp_path / "parts" / "metrics.csv")["loss"].notna().all()


def test_no_part_is_differentiated_under_autocast(
    tiny_data: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that are kept in float32 would have gradients in bf16."""
    seen: list[bool] = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            seen.append(torch.is_autocast_enabled("cpu"))
            return grad

    real = MAE.loss
    monkeypatch.setattr(MAE, "loss", lambda self, views: {"loss": Watched.apply(real(self, views)["loss"])})
    run(recipe("mae", accumulate=2, epochs=1, precision="bf16-mixed"), tiny_data, tmp_path / "run", ())
    assert len(seen) > 2 and not any(seen)


def test_blocks_that_nothing_names_are_refused() -> None:
    method = build(recipe("simclr", backbone="timm:resnet18_32"), ["a"])
    with pytest.raises(
        UserError, match="checkpoint: nothing says what the blocks of timm:resnet18_32 are; leave it out"
    ):
        prepare_blocks(method, Training(checkpoint=True))


def test_parts_must_be_equal(nano: ViT, tiny_data: Splits, tmp_path: Path) -> None:
    method = MAE(nano, decoder_dim=16, decoder_depth=1, decoder_heads=2)
    method.training_config = Training(batch_size=8, accumulate=3, precision="32")
    with pytest.raises(UserError, match="accumulate 3: 3 equal parts of batch_size 8 can't be"):
        train(method, tiny_data.train, tmp_path, "mae", loggers=())


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("mae", {}),
        ("mae", {"drop_path": 0.5}),
        # Crops of 65 and of 17 tokens, which a CPU attends to in different ways.
        ("dino", {"backbone": "vit_micro_patch2_16", "local_size": 8}),
        ("hiera_mae", {"backbone": "hiera_micro_16"}),
        ("esvit", {"backbone": "swin_nano_patch2_window2_16"}),
    ],
)
def test_checkpointed_blocks_have_the_same_gradients(name: str, keys: dict[str, object]) -> None:
    gradients = []
    for checkpoint in (False, True):
        method = build(recipe(name, **keys), ["a"])
        prepare_blocks(method, Training(checkpoint=checkpoint))
        method.seed, method._step = 0, 0
        names = set(method.state_dict())
        torch.manual_seed(1)
        method.loss([torch.randn(4, 3, *v.sides) for v in method.views for _ in range(v.count)])["loss"].backward()
        gradients.append({name: p.grad for name, p in method.named_parameters() if p.grad is not None})
    assert names == set(method.state_dict()) and gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.slow
def test_compiled_blocks_train_to_the_same_loss(tiny_data: Splits, tmp_path: Path) -> None:
    for name, compiled in (("eager", False), ("compiled", True)):
        run(recipe("mae", compile=compiled, epochs=1), tiny_data, tmp_path / name, ("csv",))
    eager, compiled_ = (pd.read_csv(tmp_path / name / "metrics.csv") for name in ("eager", "compiled"))
    pd.testing.assert_frame_equal(compiled_, eager, rtol=1e-3, atol=1e-4)
