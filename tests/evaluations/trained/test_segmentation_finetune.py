"""UPerNet: maps of every family, a training that learns, and mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_bench.backbones import build_backbone
from ssl_bench.data.datasets import ImageSet, hold_out
from ssl_bench.data.targets import Targets
from ssl_bench.evaluations.evaluator import Data
from ssl_bench.evaluations.frozen.segmentation_linear import pixel_loss
from ssl_bench.evaluations.frozen_encoder import FrozenEncoder
from ssl_bench.evaluations.trained import segmentation_finetune
from ssl_bench.evaluations.trained.segmentation_finetune import SegmentationFineTune
from ssl_bench.evaluations.trained.upernet import POOLED, UPerNet, thirds
from ssl_bench.utils.errors import UserError

FAST: dict[str, Any] = {
    **{"steps": 50, "warmup": 5, "batch_size": 8, "lr": 3e-3, "crop": 16, "stride": 16, "scale": (1.0, 1.0)},
    **{"channels": 12, "drop_path": 0.0, "weight_decay": 0.0, "layer_decay": 0.9},
}


def halves(n: int, split: str, seed: int) -> ImageSet:
    """Images of 16 px whose brighter side is of class 1, in one of two directions; some pixels have no class."""
    random = np.random.default_rng(seed)
    masks = np.zeros((n, 16, 16), np.uint8)
    for i in range(n):
        at = int(random.integers(4, 12))
        masks[i, :, at:] = 1
        masks[i] = masks[i].T if random.random() < 0.5 else masks[i]
    pixels = 40 + 150 * masks[:, None].repeat(3, 1) + random.integers(0, 30, (n, 3, 16, 16), dtype=np.uint8)
    masks[:, 0, 0] = 255
    labels = torch.zeros(n, dtype=torch.int64)
    targets = Targets(("dark", "light"), torch.from_numpy(masks))
    return ImageSet("halves", split, labels, (), f"{seed:064x}", torch.from_numpy(pixels), targets=targets)


def test_it_learns_and_leaves_the_encoder_alone() -> None:
    train = halves(40, "train", 0)
    data = Data(train, *hold_out(train), halves(16, "test", 1))
    torch.manual_seed(0)
    encoder = FrozenEncoder(build_backbone("vit_nano_patch4_16"))
    before = {key: value.clone() for key, value in encoder.encoder.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssl_bench.evaluations.frozen.segmentation_linear.distorted", lambda image, _: image)
        result = SegmentationFineTune(**FAST).run(encoder, data)
        again = SegmentationFineTune(**FAST).run(encoder, data)
    assert result.metrics["miou"].value > 75
    assert result.metrics == again.metrics and result.picture == again.picture is not None
    assert result.correct.shape == (16, 2, 2)
    assert result.chosen["blocks"] == [1, 1, 1, 2]
    assert all(torch.equal(value, encoder.encoder.state_dict()[key]) for key, value in before.items())


NETWORKS = ["vit_micro_patch8_32", "eva02_micro_patch8_32", "swin_micro_patch2_window4_32", "hiera_micro_32"]


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_of_every_family(name: str) -> None:
    model = UPerNet(build_backbone(name), 5, 8)
    scores, beside = model(torch.randn(2, 3, 64, 64))
    assert scores.shape[:2] == beside.shape[:2] == (2, 5)
    assert scores.shape[2] > beside.shape[2]  # the head is as fine as the finest map
    (scores.sum() + beside.sum()).backward()
    idle = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not {each for each in idle if not each.startswith("network.")}


def test_blocks_of_the_papers() -> None:
    assert thirds(12) == [4, 6, 8, 12]  # 3, 5, 7 and 11, counted from 0
    assert thirds(24) == [8, 12, 16, 24]  # 7, 11, 15 and 23


def test_the_head_of_the_papers() -> None:
    """Maps at strides 4 to 32, pooled to 1, 2, 3 and 6 cells; as wide as the encoder, 256 channels beside it."""
    model = UPerNet(build_backbone("vit_nano_patch16_224"), 150, 0).eval()
    seen: list[tuple[int, ...]] = []
    for scale in model.scales:
        scale.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape[1:])))
    with torch.no_grad():
        scores, beside = model(torch.zeros(1, 3, 224, 224))
    assert seen == [(24, 56, 56), (24, 28, 28), (24, 14, 14), (24, 7, 7)]
    assert scores.shape == (1, 150, 56, 56) and beside.shape == (1, 150, 14, 14)
    assert len(model.pooled) == len(POOLED) == 4 and POOLED == (1, 2, 3, 6)
    layers: Any = (model.classifier, model.auxiliary)
    assert [layer[-1].in_channels for layer in layers] == [24, 256] and [layer[-2].p for layer in layers] == [0.1, 0.1]


def test_the_loss_is_a_mean_over_pixels_with_a_class() -> None:
    scores = torch.zeros(2, 2, 2, 2)
    masks = torch.tensor([[[0, 255], [255, 255]], [[1, 1], [255, 1]]], dtype=torch.uint8)
    assert pixel_loss(scores, masks).item() == pytest.approx(np.log(2))
    scores[0] += torch.tensor([5.0, -5.0]).view(2, 1, 1)
    right, wrong = np.log1p(np.exp(-10)), np.log(2)
    assert pixel_loss(scores, masks).item() == pytest.approx((right + 3 * wrong) / 4, rel=1e-5)
    assert pixel_loss(scores, torch.full_like(masks, 255)).item() == 0


def test_the_loss_of_a_step_is_that_of_the_head_and_two_fifths_of_the_one_beside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = halves(16, "train", 0)
    data = Data(train, *hold_out(train), halves(2, "test", 1))
    seen: list[tuple[int, float]] = []

    def recorded(scores: Tensor, masks: Tensor) -> Tensor:
        found = pixel_loss(scores, masks)
        seen.append((scores.shape[-1], found.item()))
        return found

    monkeypatch.setattr(segmentation_finetune, "pixel_loss", recorded)
    torch.manual_seed(0)
    encoder = FrozenEncoder(build_backbone("vit_nano_patch4_16"))
    result = SegmentationFineTune(**FAST | {"steps": 1, "warmup": 0}).run(encoder, data)
    (fine, of_head), (coarse, of_beside) = seen
    assert fine > coarse and of_head > 0.1 and of_beside > 0.1
    assert result.chosen["final_loss"] == pytest.approx(of_head + 0.4 * of_beside, rel=1e-6)


def test_mistakes_are_one_line() -> None:
    train = halves(20, "train", 0)
    data = Data(train, *hold_out(train), train)
    with pytest.raises(UserError, match="pixels_16 has nothing to train"):
        SegmentationFineTune(**FAST).run(FrozenEncoder(build_backbone("pixels_16")), data)
    with pytest.raises(UserError, match="batch_size is 1"):
        SegmentationFineTune(batch_size=1)
