"""Clipping of the gradient: a limit of 0 is none, as in the official scripts, and leaves every gradient as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ssl_bench.backbones.vit import ViT
from ssl_bench.methods.mae import MAE
from ssl_bench.nn.optimizers import Training


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize(("limit", "norms"), [(None, (3.0, 4.0)), (0, (3.0, 4.0)), (0.0, (3.0, 4.0)), (1.0, None)])
def test_no_limit_and_0_leave_the_gradient(nano: ViT, limit: Any, norms: Any, per_tensor: bool) -> None:
    method = MAE(nano, decoder_dim=16, decoder_depth=1, decoder_heads=2)
    method.training_config = Training(clip_grad=limit, clip_per_tensor=per_tensor)
    method.requires_grad_(False)
    a, b = nano.get_parameter("cls_token"), nano.get_parameter("norm.weight")
    for parameter, norm in ((a, 3.0), (b, 4.0)):
        parameter.requires_grad_(True)
        parameter.grad = norm * nn.functional.normalize(torch.ones_like(parameter).flatten(), dim=0).view_as(parameter)
    method.configure_gradient_clipping(torch.optim.SGD([a, b]))
    expected = norms or ((1.0, 1.0) if per_tensor else (0.6, 0.8))
    assert [float(p.grad.norm()) for p in (a, b) if p.grad is not None] == pytest.approx(expected, abs=1e-4)
