"""Encoder files: what loads, what is refused and why."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from ssl_bench.backbones.pixels import Pixels
from ssl_bench.backbones.vit import ViT
from ssl_bench.checkpoints.encoder_file import load_encoder, save_encoder
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.weights import weights_hash

NANO = {"name": "vit_nano_patch4_16"}


def test_round_trip(nano: ViT, tmp_path: Path) -> None:
    save_encoder(tmp_path / "e.pt", nano, NANO, "mae", {"flags": []})
    loaded = load_encoder(tmp_path / "e.pt")
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(loaded.encoder(x), nano.eval()(x))
    assert loaded.method == "mae" and loaded.about == {"flags": []} and loaded.loaded == 100
    assert loaded.sha256 == weights_hash(nano.state_dict()) and not loaded.encoder.training


def test_mask_token_stays_behind(tmp_path: Path) -> None:
    backbone = ViT("vit_nano_patch4_16", mask_token=True)
    save_encoder(tmp_path / "e.pt", backbone, {**NANO, "mask_token": True}, "m", {})
    assert "mask_token" not in torch.load(tmp_path / "e.pt", weights_only=True)["state_dict"]
    assert load_encoder(tmp_path / "e.pt").encoder.mask_token is None


def test_pixels_round_trip(tmp_path: Path) -> None:
    save_encoder(tmp_path / "e.pt", Pixels("pixels_16"), {"name": "pixels_16"}, "raw_pixels", {})
    assert load_encoder(tmp_path / "e.pt").encoder.image_size == (16, 16)


def test_plain_timm_weights_need_the_backbone(nano: ViT, tmp_path: Path) -> None:
    torch.save({"model": nano.state_dict()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="--backbone"):
        load_encoder(tmp_path / "w.pth")
    assert load_encoder(tmp_path / "w.pth", "vit_nano_patch4_16").method == "w"


def test_weights_of_another_backbone_are_refused(nano: ViT, tmp_path: Path) -> None:
    torch.save(nano.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"does not fit vit_nano_patch8_32.*% of its tensors match.*instead of"):
        load_encoder(tmp_path / "w.pth", "vit_nano_patch8_32")
    with pytest.raises(UserError, match=r"missing"):
        load_encoder(tmp_path / "w.pth", "vit_micro_patch4_16")
    save_encoder(tmp_path / "e.pt", nano, NANO, "mae", {})
    with pytest.raises(UserError, match="holds a vit_nano_patch4_16, not a vit_tiny_patch4_32"):
        load_encoder(tmp_path / "e.pt", "vit_tiny_patch4_32")


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "exploded"),))

    (tmp_path / "b.pth").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="can be read safely"):
        load_encoder(tmp_path / "b.pth", "vit_nano_patch4_16")
    assert not (tmp_path / "exploded").exists()


def test_no_file_and_no_state_dict(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such checkpoint"):
        load_encoder(tmp_path / "none.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="no state dict"):
        load_encoder(tmp_path / "list.pt")
