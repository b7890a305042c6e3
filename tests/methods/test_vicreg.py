"""The example of a method in one file, VICReg, against worked numbers of its authors' formulas."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stubs import StubBackbone
from torch import Tensor, nn

from ssl_bench.backbones.backbone import Tokens
from ssl_bench.backbones.vit import ViT
from ssl_bench.config.recipe import resolve_method

FILE = Path(__file__).parents[2] / "examples" / "vicreg.py"
Z1 = torch.tensor([[1.0, 2, 0], [0, 1, -1], [2, 0, 1], [-1, 1, 3]])
Z2 = torch.tensor([[1.0, 1, 0], [0, 2, -1], [1, 0, 2], [-2, 1, 2]])


class _Pixels(StubBackbone):
    """A backbone whose cls token is the image itself."""

    def forward(self, x: Tensor) -> Tokens:
        return Tokens(x.flatten(1), x.flatten(1)[:, None])


@pytest.mark.parametrize(
    ("weights", "scale", "expected"),
    [
        ((1.0, 0.0, 0.0), 1.0, 0.5),
        ((0.0, 1.0, 0.0), 1.0, 0.061147),
        ((0.0, 1.0, 0.0), 0.3, 0.622555),
        ((0.0, 0.0, 1.0), 1.0, 1.648148),
        ((25.0, 25.0, 1.0), 1.0, 15.676833),
    ],
)
def test_loss_numbers(weights: tuple[float, float, float], scale: float, expected: float) -> None:
    _, method = resolve_method(f"{FILE}:VICReg")
    made = method(ViT("vit_nano_patch4_16"), weights=weights, hidden_dim=4)
    made.backbone, made.expander = _Pixels(), nn.Identity()
    views = [scale * z.view(4, 3, 1, 1) for z in (Z1, Z2)]
    assert made.loss(views)["loss"].item() == pytest.approx(expected, abs=1e-5)
