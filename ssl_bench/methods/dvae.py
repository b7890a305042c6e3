"""The discrete VAE of DALL-E, BEiT's tokenizer. Ramesh et al., ICML 2021, arXiv 2102.12092."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.methods.method import Method
from ssl_bench.nn.ema import ema_update
from ssl_bench.nn.optimizers import Training
from ssl_bench.nn.schedules import cosine
from ssl_bench.teachers.codes import codebook_usage
from ssl_bench.teachers.dalle import Tokenizer, map_pixels, perplexity
from ssl_bench.utils.bounds import Area, Depth, Epochs, NonNegative, Pixels, Positive, Share, Width
from ssl_bench.views.view import View, random_resized_crop

if TYPE_CHECKING:
    from ssl_bench.data.datasets import ImageSet


class DVAE(Method):
    """Encode an image as a grid of codes from a codebook, relaxed by Gumbel-softmax, and decode it.

    loss = -mean over pixels of ln p(x | z) + beta / (3 stride^2) * mean over tokens of KL(q(z | x), uniform)

    The tokenizer that others use is the moving average. It replaces the backbone, of which only the grid is taken.

    Args:
        backbone: Gives the grid of tokens: as many as it has patches.
        codebook_size: Codes.
        width: Channels of the first group; each next group of the encoder has twice as many (256 in the release).
        blocks: Residual blocks of each group.
        stride: Pixels of a token's side: 2 to the power of the number of poolings.
        likelihood: Of a pixel: logit-Laplace (appendix A.3), or l2 for the squared error.
        temperature: Of the relaxation, at the start (appendix A.2).
        final_temperature: Of the relaxation, from ``temperature_epochs`` on.
        temperature_epochs: Epochs of the cosine between the two; the paper's 150,000 steps in epochs of ImageNet-1k.
        kl_weight: beta, from ``kl_epochs`` on; it keeps the codebook in use.
        kl_epochs: Epochs of the cosine from 0 to beta; the paper's 5,000 steps in epochs of ImageNet-1k.
        momentum: Of the moving average of the weights (appendix A.2).
        crop_min: Smallest area of the crop; the authors cut 8/9 of the shorter side (listing 1).
    """

    paper = "Ramesh et al. 2021, arXiv 2102.12092"
    category = "tokenizer"
    defaults = Training(  # appendix A.2: 1.2 million steps of 512 images
        epochs=480, batch_size=512, base_lr=5e-5, min_lr=1.25e-6, warmup_epochs=0, weight_decay=1e-4
    )
    deviations = (
        "the training ends with the decay of the learning rate, after 1.2 of the paper's 3 million steps",
        "crops are antialiased bilinear instead of by area, with a random size instead of a fixed one",
        "the training images are the suite's; the paper's are 250 million pairs from the internet",
        "schedules and the scale of the objective are the paper's text (appendix A); its code for them is not public",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        codebook_size: Width = 8192,
        width: Width = 256,
        blocks: Depth = 2,
        stride: Pixels = 8,
        likelihood: Literal["logit_laplace", "l2"] = "logit_laplace",
        temperature: Positive = 1.0,
        final_temperature: Positive = 1 / 16,
        temperature_epochs: Epochs = 60,
        kl_weight: NonNegative = 6.6,
        kl_epochs: Epochs = 2,
        momentum: Share = 0.999,
        crop_min: Area = 0.79,
    ) -> None:
        super().__init__(backbone)
        del self.backbone  # never used, so neither trained nor saved
        self.likelihood, self.momentum, self.crop_min = likelihood, momentum, crop_min
        self.temperature, self.final_temperature = temperature, final_temperature
        self.temperature_epochs, self.kl_weight, self.kl_epochs = temperature_epochs, kl_weight, kl_epochs
        self.size = (backbone.grid[0] * stride, backbone.grid[1] * stride)
        self.tokenizer = Tokenizer(
            codebook_size=codebook_size,
            width=width,
            blocks=blocks,
            stride=stride,
            channels=6 if likelihood == "logit_laplace" else 3,
        )
        self.average = copy.deepcopy(self.tokenizer).requires_grad_(False)

    @property
    def views(self) -> list[View]:
        """One crop of nearly the whole image, flipped at random, in [0, 1]."""
        plain = {"interpolation": "bilinear", "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
        return [random_resized_crop(self.size, self.crop_min, **plain)]

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """The negative evidence lower bound under the relaxation (section 2.1)."""
        x = map_pixels(views[0])
        logits = self.tokenizer.encoder(x)
        gumbel = -(-self.uniform(*logits.shape).clamp(min=1e-20).log()).log()
        z = ((logits + gumbel) / self.current_temperature).softmax(dim=1)
        assert self.tokenizer.decoder is not None
        prediction = self.tokenizer.decoder(z)
        if self.likelihood == "logit_laplace":
            error = logit_laplace(x, *prediction.chunk(2, dim=1))
        else:
            error = (prediction.sigmoid() - x).square().mean()
        kl = kl_to_uniform(logits)
        loss = error + self.current_kl_weight / (3 * self.tokenizer.stride**2) * kl
        used = perplexity(logits.detach().argmax(dim=1), logits.shape[1])
        return {"loss": loss, "error": error, "kl": kl, "perplexity": used}

    @property
    def current_temperature(self) -> float:
        """Of the relaxation: a cosine, then constant."""
        return cosine(min(1.0, self.epoch / self.temperature_epochs), self.temperature, self.final_temperature)

    @property
    def current_kl_weight(self) -> float:
        """beta: a cosine from 0, then constant."""
        return cosine(min(1.0, self.epoch / self.kl_epochs), 0.0, self.kl_weight)

    def after_step(self) -> None:
        """The moving average of the weights."""
        ema_update(self.average, self.tokenizer, self.momentum)

    @property
    def encoder(self) -> nn.Module:
        """The tokenizer at the moving average."""
        return self.average

    def param_groups(self) -> list[dict[str, Any]]:
        """Weight decay on every tensor (appendix A.2)."""
        return [{"params": list(self.tokenizer.parameters())}]

    def finish(self, images: ImageSet) -> dict[str, Any]:
        """How much of the codebook the training images use; a collapsed one is refused."""
        remedy = "kl_weight, temperature or base_lr"
        return codebook_usage(self.average, images, self.size, self.device, remedy)


def logit_laplace(x: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
    """Mean over pixels of -ln p(x), where logit(x) has a Laplace distribution (appendix A.3).

    p(x) = exp(-|logit(x) - location| / b) / (2 b x (1 - x)),  b = exp(log_scale)

    Args:
        x: Values in (0, 1).
        location: Of the same shape.
        log_scale: Of the same shape.

    Example:
        >>> import torch
        >>> logit_laplace(torch.tensor(0.5), torch.tensor(0.0), torch.tensor(0.0))  # p = 2
        tensor(-0.6931)
    """
    distance = (x.logit() - location).abs() * (-log_scale).exp()
    return (distance + log_scale + (2 * x * (1 - x)).log()).mean()


def kl_to_uniform(logits: Tensor) -> Tensor:
    """Mean over tokens of KL(softmax(logits) || uniform), nats.

    Args:
        logits: (B, codes, h, w) float32.

    Example:
        >>> import torch
        >>> kl_to_uniform(torch.tensor([100.0, 0.0, 0.0, 0.0]).view(1, 4, 1, 1))  # certain: ln 4
        tensor(1.3863)
    """
    log_q = logits.log_softmax(dim=1)
    return (log_q.exp() * (log_q + math.log(logits.shape[1]))).sum(dim=1).mean()
