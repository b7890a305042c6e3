"""Errors of predicted depths (Eigen et al., NeurIPS 2014, arXiv:1406.2283)."""

from __future__ import annotations

from torch import Tensor

LEAST = 1e-3  # metres: predictions are clipped to this and the largest depth that counts


def depth_errors(predicted: Tensor, truth: Tensor, max_depth: float) -> dict[str, float]:
    """Of one image, over the pixels whose depth is known and at most ``max_depth``; empty if there is none.

    Args:
        predicted: (H, W) metres.
        truth: (H, W) metres; 0 is unknown.
        max_depth: Metres.

    Returns:
        "a1", "a2", "a3", "abs_rel" in percent, "rmse" in metres, "sq_rel" in metres times 100, and "rmse_log", "log10"
        and "silog" times 100.

    Example:
        >>> import torch
        >>> errors = depth_errors(torch.tensor([[2.0, 4.0]]), torch.tensor([[2.0, 5.0]]), 10.0)
        >>> errors["a1"], round(errors["rmse"], 4), round(errors["abs_rel"], 2)
        (50.0, 0.7071, 10.0)
    """
    known = (truth > LEAST) & (truth <= max_depth)
    p, t = predicted[known].double().clamp(LEAST, max_depth), truth[known].double()
    if not len(t):
        return {}
    ratio, log = (p / t).maximum(t / p), p.log() - t.log()
    found = {f"a{k}": 100 * float((ratio < 1.25**k).double().mean()) for k in (1, 2, 3)}
    return {
        **found,
        "rmse": float(((p - t) ** 2).mean().sqrt()),
        "abs_rel": 100 * float(((p - t).abs() / t).mean()),
        "sq_rel": 100 * float(((p - t) ** 2 / t).mean()),
        "rmse_log": 100 * float((log**2).mean().sqrt()),
        "log10": 100 * float((p.log10() - t.log10()).abs().mean()),
        "silog": 100 * float(((log**2).mean() - log.mean() ** 2).clamp(min=0).sqrt()),
    }
