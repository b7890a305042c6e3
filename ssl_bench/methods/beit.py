"""BEiT: BERT Pre-Training of Image Transformers. Bao, Dong, Piao, Wei, ICLR 2022, arXiv 2106.08254."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.methods.method import Method
from ssl_bench.nn.masking import block_masking, masked_mean
from ssl_bench.nn.optimizers import Training, no_decay_on_vectors
from ssl_bench.teachers.dalle import Tokenizer, load_dalle
from ssl_bench.utils.bounds import Area, Count, OpenShare, Pixels, Width
from ssl_bench.utils.errors import UserError, unknown
from ssl_bench.views.evaluation import normalize
from ssl_bench.views.view import View, random_resized_crop


class BEiT(Method):
    """Mask blocks of patches and predict the codes that a frozen tokenizer gives them.

    loss = mean over the masked patches of the batch of CE(head(patch), code)

    Args:
        backbone: The encoder.
        tokenizer: The frozen tokenizer: ``dvae`` or ``dvae:RECIPE``, trained on the same images first;
            ``checkpoint:PATH``, one trained before; or ``dalle:PATH``, the encoder that OpenAI released, as a plain
            state dict, the paper's.
        codebook_size: Codes of the tokenizer (8192 in DALL-E's).
        stride: Pixels of the tokenizer's image for each patch, its stride (8 in DALL-E's).
        mask_ratio: Largest part of the patches that is masked; 75 of 196 (section 2.3, ``run_beit_pretraining.py``).
        min_block: Smallest block, patches; 16 is for the paper's 14 x 14 (algorithm 1).
        crop_min: Smallest area of the crop (``datasets.py``).
    """

    paper = "Bao et al. 2021, arXiv 2106.08254"
    category = "token prediction"
    defaults = Training(  # README and ``run_beit_pretraining.py``: ViT-B, ImageNet-1k, rate 1.5e-3 at batch 2048
        epochs=800,
        batch_size=2048,
        base_lr=1.875e-4,
        min_lr=1e-5,
        warmup_epochs=10,
        schedule="step_inclusive",
        weight_decay=0.05,
        clip_grad=3.0,
    )
    needs = ("mask",)
    backbone_options = {
        "pos_embed": "none",
        "relative_positions": "shared",
        "init": "beit",
        "layer_scale": 0.1,
        "drop_path": 0.1,
        "mask_token": True,
    }
    deviations = (
        "unless the tokenizer is dalle:PATH, it is a dVAE trained on the pre-training images instead of DALL-E's",
        "colours are jittered after the crop instead of before it, so contrast is that of the crop",
        "codes are computed in 32 bit; DALL-E's on a GPU in 16 bit, so a few differ",
        "the keys of the attention have a bias, which softmax cancels; the authors' have none",
        "mixed precision, where a recipe has it, is bf16; the authors' is fp16 with a loss scaler",
    )
    teachers = ("tokenizer",)

    def __init__(
        self,
        backbone: Backbone,
        *,
        tokenizer: str = "dvae",
        codebook_size: Width = 8192,
        stride: Pixels = 8,
        mask_ratio: OpenShare = 75 / 196,
        min_block: Count = 16,
        crop_min: Area = 0.08,
    ) -> None:
        super().__init__(backbone)
        rows, columns = backbone.mask_grid
        self.n_masked = round(mask_ratio * rows * columns)
        if min_block > self.n_masked:
            raise UserError(
                f"min_block is {min_block}, more than the {self.n_masked} patches to mask of {rows} x {columns} "
                f"(mask_ratio {mask_ratio:g}); about a fifth of them is the paper's share: {max(1, self.n_masked // 5)}"
            )
        self.tokenizer_name, self.codebook_size, self.stride = tokenizer, codebook_size, stride
        self.min_block, self.crop_min = min_block, crop_min
        self.frozen: tuple[Tokenizer, ...] = ()  # a tuple keeps the tokenizer out of the parameters and the state dict
        self.lm_head = nn.Linear(backbone.embed_dim, codebook_size)
        nn.init.trunc_normal_(self.lm_head.weight, std=0.02, a=-0.02, b=0.02)
        nn.init.zeros_(self.lm_head.bias)

    def set_teacher(self, keyword: str, network: nn.Module | None, source: str = "") -> None:
        """Take the tokenizer, or read DALL-E's.

        Raises:
            UserError: No tokenizer of that name, or one with other codes or another stride than the recipe says.
        """
        if network is None:
            kind, _, path = self.tokenizer_name.partition(":")
            if kind != "dalle" or not path:
                raise unknown(keyword, self.tokenizer_name, ["dvae", "dvae:RECIPE", "dalle:PATH", "checkpoint:PATH"])
            network = load_dalle(path)
            self.flags += ["external teacher", "external data"]
        if not isinstance(network, Tokenizer):
            raise UserError(f"tokenizer {self.tokenizer_name!r} is a {type(network).__name__}; BEiT needs a dVAE")
        for key in ("codebook_size", "stride"):
            if getattr(network, key) != getattr(self, key):
                raise UserError(
                    f"tokenizer {self.tokenizer_name!r} has {key} {getattr(network, key)}, the recipe says "
                    f"{getattr(self, key)}; add --set {key}={getattr(network, key)}"
                )
        self.frozen = (network.eval().requires_grad_(False),)

    @property
    def views(self) -> list[View]:
        """One crop with jittered colours, for the encoder, and again in [0, 1], for the tokenizer."""
        jitter = {"jitter": (0.4, 0.4, 0.4, 0.0), "jitter_p": 1.0}
        crop = random_resized_crop(self.backbone.image_size, self.crop_min, **jitter)
        rows, columns = self.backbone.mask_grid
        plain = replace(crop, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="lanczos", same=True)
        return [crop, replace(plain, size=(rows * self.stride, columns * self.stride))]

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of the codes of the masked patches (section 2.3)."""
        images, pixels = views
        mask = self.masks(len(images))
        patches = self.backbone(images, mask=mask).patches
        logits = self.lm_head(patches[mask])
        return masked_prediction(logits, self.tokens(pixels).flatten(1)[mask])

    def masks(self, batch: int) -> Tensor:
        """(B, L) bool, blocks of masked patches (section 2.3, algorithm 1)."""
        wanted = torch.full((batch,), float(self.n_masked), device=self.device)
        return block_masking(wanted, self.backbone.mask_grid, self.min_block, partial(self.uniform, batch)).flatten(1)

    def show(self, images: Tensor) -> dict[str, Tensor]:
        """What is masked, the image through its codes, and with the predicted codes in the masked places."""
        sides, tokenizer = images.shape[-2:], self.frozen[0]
        codes = self.tokens(F.interpolate(images, self.views[1].sides, mode="bicubic", antialias=True).clamp(0, 1))
        mask = self.masks(len(images))
        logits = self.lm_head(self.backbone(normalize(images, self.drawn_views[0]), mask=mask).patches)
        predicted = torch.where(mask, logits.argmax(dim=2), codes.flatten(1)).view_as(codes)
        hidden = F.interpolate(mask.view(len(images), 1, *self.backbone.mask_grid).float(), sides)
        shown = {"masked": images * (1 - hidden) + 0.5 * hidden}
        if tokenizer.decoder is not None:  # DALL-E's released encoder comes without
            shown["codes"] = F.interpolate(tokenizer.decode(codes), sides)
            shown["predicted codes"] = F.interpolate(tokenizer.decode(predicted), sides)
        return shown

    def tokens(self, pixels: Tensor) -> Tensor:
        """(B, 3, h * stride, w * stride) in [0, 1] -> (B, h, w) int64."""
        assert self.frozen, "no tokenizer yet: set_teacher comes first"
        return self.frozen[0].to(pixels.device).tokens(pixels)

    def param_groups(self) -> list[dict[str, Any]]:
        """No weight decay on vectors and the cls token (``optim_factory.py``); the mask token has it."""
        return no_decay_on_vectors(self.named_parameters(), spared=("cls_token", "pos_embed"))


def masked_prediction(logits: Tensor, codes: Tensor) -> dict[str, Tensor]:
    """Loss and accuracy: one flat mean over the masked patches of all images, and of all processes.

    Args:
        logits: (M, codebook size).
        codes: (M,) int64.

    Example:
        >>> logits = torch.tensor([[2, 0.5, -1, 0], [0.1, 0.2, 0.3, 0.4], [-1, 3, 0, 1]])
        >>> result = masked_prediction(logits, torch.tensor([0, 3, 2]))
        >>> round(result["loss"].item(), 7), round(result["accuracy"].item(), 4)
        (1.5900226, 0.6667)
    """
    every = torch.ones_like(codes, dtype=torch.bool)
    loss = masked_mean(F.cross_entropy(logits.float(), codes, reduction="none"), every)
    return {"loss": loss, "accuracy": masked_mean((logits.detach().argmax(dim=1) == codes).float(), every)}
