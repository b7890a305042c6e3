"""How important the attention heads of a frozen network are, and a classifier on its features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_bench.backbones.backbone import Backbone

RIDGE = 1e-3  # of the classifier


def by_loss(guide: Backbone, images: Tensor, labels: Tensor, classifier: Tensor) -> Tensor:
    """Importance (heads,) of the heads of the last block, summed over images: |sum_ij A_ij dL/dA_ij|.

    It is the derivative by a factor at the output of the head, where that is 1 (Michel et al. 2019, arXiv 1905.10650).

    Args:
        guide: Whose heads.
        images: (B, 3, H, W), normalised as the guide's.
        labels: (B,) int64; L is the cross-entropy.
        classifier: (D + 1, C) float32 on the mean patch token.
    """
    with torch.enable_grad():
        gates = images.new_ones(len(images), guide.num_heads or 0).requires_grad_()
        tokens, _ = guide.open_heads(images, gates=gates)
        loss = F.cross_entropy(affine(tokens.patches.float().mean(dim=1), classifier), labels, reduction="sum")
        (slope,) = torch.autograd.grad(loss, gates)
    return slope.abs().sum(dim=0)


@torch.no_grad()
def by_removal(guide: Backbone, images: Tensor) -> Tensor:
    """Importance (heads,) without labels, summed over images: 1 - cosine of the class token with and without the head.

    Args:
        guide: Whose heads.
        images: (B, 3, H, W), normalised as the guide's.
    """
    whole, found = guide.class_token(images).float(), []
    for head in range(guide.num_heads or 0):
        gates = images.new_ones(len(images), guide.num_heads or 0)
        gates[:, head] = 0
        tokens, _ = guide.open_heads(images, gates=gates)
        found.append((1 - F.cosine_similarity(whole, tokens.cls.float(), dim=1)).sum())
    return torch.stack(found)


def fit_classifier(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Softmax regression with a small ridge: weights and, last, the bias, (D + 1, C) float32.

    Args:
        features: (N, D) float32.
        labels: (N,) int64 in [0, classes).
        classes: C.
    """
    with torch.enable_grad():
        weight = features.new_zeros(features.shape[1] + 1, classes).requires_grad_()
        optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(affine(features, weight), labels) + RIDGE * weight[:-1].square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    return weight.detach()


def affine(features: Tensor, weight: Tensor) -> Tensor:
    """(N, D) features to (N, C) scores; the last row of the weight (D + 1, C) is the bias."""
    return features @ weight[:-1] + weight[-1]
