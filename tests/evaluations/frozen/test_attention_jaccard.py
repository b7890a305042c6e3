"""The attention of the class token against the foreground: worked numbers, perfect and meaningless attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from panels import panels_of
from test_dense import squares
from torch import Tensor

from ssl_bench.backbones import build_backbone
from ssl_bench.backbones.vit import ViT
from ssl_bench.data.datasets import hold_out
from ssl_bench.evaluations import dense
from ssl_bench.evaluations.evaluator import Data
from ssl_bench.evaluations.frozen.attention_jaccard import AttentionJaccard, most
from ssl_bench.evaluations.frozen_encoder import FrozenEncoder
from ssl_bench.utils.errors import UserError


def test_attention_mass_of_the_authors() -> None:
    """DINO's `visualize_attention.py` on literal inputs, and the overlap with a worked truth."""
    heads = torch.tensor([[0.05, 0.30, 0.10, 0.25, 0.02, 0.08], [0.02, 0.02, 0.40, 0.02, 0.02, 0.40]])[:, None]
    assert most(heads, 0.6).int().tolist() == [[[0, 1, 0, 1, 0, 0]], [[0, 0, 1, 0, 0, 1]]]
    assert most(heads, 0.8).int().tolist() == [[[0, 1, 1, 1, 0, 0]], [[0, 0, 1, 0, 0, 1]]]
    truth = torch.tensor([[0, 1, 0, 1, 1, 0]]).bool()
    kept = most(heads, 0.6)
    jaccard = (kept & truth).sum((1, 2)) / (kept | truth).sum((1, 2))
    assert jaccard.tolist() == pytest.approx([2 / 3, 0])


class Network:
    """Its second head looks at what is red, the first at nothing in particular."""

    has_attention, mean, std = True, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def attention(self, images: Tensor) -> Tensor:
        red = (images[:, 0] > 0.1).float()
        generator = torch.Generator().manual_seed(int(1000 * images.mean()))
        return torch.stack([torch.rand(red.shape, generator=generator), red], dim=1)

    def copy(self) -> Network:
        return self

    def to(self, device: torch.device) -> Network:
        return self


@pytest.fixture(scope="module")
def data() -> Data:
    train = squares(40, "train", 0)
    return Data(train, *hold_out(train), squares(30, "test", 1))


def test_perfect_attention_is_all_right_and_noise_is_chance(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    # All of the red pixels: their equal shares pass any threshold but that of nothing.
    result = AttentionJaccard(mass=0.999999).run(Network(), data)  # type: ignore[arg-type]
    assert result.chosen["head"] == 1
    assert result.metrics["jaccard"].value == 100
    assert result.correct.tolist() == [1] * 30
    for image, front, attended in panels_of(result.picture, 3):  # pixels without class may be attended too
        assert image != attended and np.equal(front, attended).mean() > 0.6
    monkeypatch.setattr(dense, "PIXELS_PER_BATCH", 1)
    assert AttentionJaccard(mass=0.999999).run(Network(), data).metrics["jaccard"].value == 100  # type: ignore[arg-type]
    monkeypatch.setattr(Network, "attention", lambda self, images: torch.rand(len(images), 2, 8, 8))
    noise = AttentionJaccard().run(Network(), data)  # type: ignore[arg-type]
    assert noise.metrics["jaccard"].value < 35
    assert noise.metrics["best_head_of_each_image"].value >= noise.metrics["jaccard"].value


def test_a_vision_transformer_and_what_has_no_class_token(data: Data) -> None:
    result = AttentionJaccard().run(FrozenEncoder(ViT("vit_nano_patch4_8")), data)
    assert result.correct.shape == (30,)
    with pytest.raises(UserError, match="swin_nano_patch2_window2_16 has no attention of a class token"):
        AttentionJaccard().run(FrozenEncoder(build_backbone("swin_nano_patch2_window2_16")), data)


@pytest.mark.parametrize("mass", [0.0, 1.0])
def test_wrong_settings_are_named(mass: float) -> None:
    with pytest.raises(UserError, match="mass must lie between 0 and 1"):
        AttentionJaccard(mass)
