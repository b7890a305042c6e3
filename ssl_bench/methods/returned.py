"""What is wrong with what the `loss` of a method returns."""

from __future__ import annotations

import torch
from torch import Tensor


def wrong_loss(found: object) -> str:
    """What was returned, in words, where it is no dict with a scalar "loss" to learn from; empty where it is one.

    Example:
        >>> wrong_loss({"lost": 1.0}), wrong_loss(0.5), wrong_loss({"loss": torch.zeros(2)})
        ("a dict without 'loss'", 'a float', "a dict whose 'loss' is a tensor of shape (2,)")
    """
    if not isinstance(found, dict):
        return _kind(found)
    if "loss" not in found:
        return "a dict without 'loss'"
    loss, depends = found["loss"], ""
    if isinstance(loss, Tensor) and loss.numel() == 1:
        if loss.requires_grad or not torch.is_grad_enabled():
            return ""
        depends = " that depends on no weight"
    return f"a dict whose 'loss' is {_kind(loss)}{depends}"


def _kind(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
