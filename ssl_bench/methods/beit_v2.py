"""BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers. Peng et al. 2022, arXiv 2208.06366."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.methods.beit import BEiT, masked_prediction
from ssl_bench.methods.method import Method
from ssl_bench.nn.masking import block_masking, fill_masks, masked_by_blocks
from ssl_bench.nn.optimizers import no_decay_on_vectors
from ssl_bench.teachers.vqkd import VQKDTokenizer
from ssl_bench.utils.bounds import Area, Count, Depth, OpenShare, Width
from ssl_bench.utils.errors import UserError, unknown
from ssl_bench.views.evaluation import normalize
from ssl_bench.views.view import View, random_resized_crop


class BEiTv2(Method):
    """BEiT with the codes of a semantic tokenizer, predicted a second time through the cls token of the last block.

    loss = mean over the masked patches of the batch of CE(head(patch), code) + CE(head(patch of the cls branch), code)

    The cls branch: two more blocks over the last block's cls token and an earlier block's patches, so that the cls
    token has to carry what the early patches lack. Norm and head are shared; the blocks are dropped after the training.

    Args:
        backbone: The encoder.
        tokenizer: The frozen tokenizer: ``vqkd`` or ``vqkd:RECIPE``, trained on the same images first, or
            ``checkpoint:PATH``, one trained before.
        codebook_size: Codes of the tokenizer (section 3.1).
        early_layer: The block whose patches enter the cls branch: 9 of 12, 21 of 24 (``PRETRAINING.md``). Left out:
            three quarters of the blocks.
        head_layers: Blocks of the cls branch; 0 for none.
        mask_ratio: Part of the patches that is masked, the same number in each image; 75 of 196.
        min_block: Smallest block, patches; 16 is for the paper's 14 x 14.
        crop_min: Smallest area of the crop (``datasets.py``).
    """

    paper = "Peng et al. 2022, arXiv 2208.06366"
    category = "token prediction"
    defaults = replace(BEiT.defaults, epochs=1600)  # PRETRAINING.md: ViT-B, rate 1.5e-3 at batch 2048
    needs = ("mask", "cls")
    backbone_options = BEiT.backbone_options
    deviations = (
        "the tokenizer is VQ-KD trained on the pre-training images, with the suite's teacher unless it says otherwise",
        "colours are jittered after the crop instead of before it, so contrast is that of the crop",
        "the keys of the attention have a bias, which softmax cancels; the authors' have none",
        "mixed precision, where a recipe has it, is bf16; the authors' is fp16 with a loss scaler",
    )
    teachers = ("tokenizer",)

    def __init__(
        self,
        backbone: Backbone,
        *,
        tokenizer: str = "vqkd",
        codebook_size: Width = 8192,
        early_layer: Depth | None = None,
        head_layers: Depth = 2,
        mask_ratio: OpenShare = 75 / 196,
        min_block: Count = 16,
        crop_min: Area = 0.2,
    ) -> None:
        super().__init__(backbone)
        self.n_masked = masked_by_blocks(mask_ratio, min_block, backbone.mask_grid)
        self.early_layer = max(1, backbone.depth * 3 // 4) if early_layer is None else early_layer
        if not 1 <= self.early_layer <= backbone.depth:
            raise UserError(f"early_layer is {early_layer}; {backbone.name} has the blocks 1 to {backbone.depth}")
        self.tokenizer_name, self.codebook_size = tokenizer, codebook_size
        self.min_block, self.crop_min = min_block, crop_min
        self.frozen: tuple[VQKDTokenizer, ...] = ()  # a tuple keeps it out of the parameters and the state dict
        truncated = partial(nn.init.trunc_normal_, std=0.02, a=-0.02, b=0.02)
        self.cls_pt_layers = nn.ModuleList(copy.deepcopy(backbone.block_modules()[-1]) for _ in range(head_layers))
        for i, block in enumerate(self.cls_pt_layers, start=self.early_layer + 1):
            for name, layer in block.named_modules():
                if isinstance(layer, nn.Linear):
                    truncated(layer.weight)
                    layer.weight.data.div_((2 * i) ** 0.5 if name in ("attn.proj", "mlp.fc2") else 1.0)
        self.lm_head = nn.Linear(backbone.embed_dim, codebook_size)
        truncated(self.lm_head.weight)
        nn.init.zeros_(self.lm_head.bias)

    def set_teacher(self, keyword: str, network: nn.Module | None, source: str = "") -> None:
        """Take the tokenizer.

        Raises:
            UserError: No tokenizer of that name, or one with other codes or patches than the recipe says.
        """
        if network is None:
            raise unknown(keyword, self.tokenizer_name, ["vqkd", "vqkd:RECIPE", "checkpoint:PATH"])
        if not isinstance(network, VQKDTokenizer):
            raise UserError(f"tokenizer {self.tokenizer_name!r} is a {type(network).__name__}; BEiT v2 needs a VQ-KD")
        if network.codebook_size != self.codebook_size:
            raise UserError(
                f"tokenizer {self.tokenizer_name!r} has codebook_size {network.codebook_size}, the recipe says "
                f"{self.codebook_size}; add --set codebook_size={network.codebook_size}"
            )
        if not network.encoder.multi_crop and network.encoder.grid != self.backbone.mask_grid:
            raise UserError(
                f"tokenizer {self.tokenizer_name!r} takes one image size, of other patches than the student"
            )
        self.frozen = (network.eval().requires_grad_(False),)

    @property
    def views(self) -> list[View]:
        """One crop with jittered colours, for the encoder, and again in [0, 1], for the tokenizer."""
        jitter = {"jitter": (0.4, 0.4, 0.4, 0.0), "jitter_p": 1.0}
        crop = random_resized_crop(self.backbone.image_size, self.crop_min, **jitter)
        assert self.frozen, "no tokenizer yet: set_teacher comes first"
        (rows, columns), stride = self.backbone.mask_grid, self.frozen[0].stride
        plain = replace(crop, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), same=True)
        return [crop, replace(plain, size=(rows * stride, columns * stride))]

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Cross-entropies of the codes of the masked patches, by the encoder and by the cls branch (section 3.3)."""
        images, pixels = views
        mask = self.masks(len(images))
        codes = self.tokens(pixels).flatten(1)[mask]
        patches, branch = self.both(images, mask)
        result = masked_prediction(self.lm_head(patches[mask]), codes)
        if branch is None:
            return result
        second = masked_prediction(self.lm_head(branch[mask]), codes)
        return {
            "loss": result["loss"] + second["loss"],
            "accuracy": result["accuracy"],
            "cls_accuracy": second["accuracy"],
        }

    def both(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, L, D) patches of the encoder and of the cls branch, both through the final norm."""
        seen: list[tuple[Any, Any, Tensor]] = []

        def keep(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            seen.append((args, kwargs, output))

        blocks = self.backbone.block_modules()
        chosen = [blocks[self.early_layer - 1], blocks[-1]] if len(self.cls_pt_layers) else []
        handles = [block.register_forward_hook(keep, with_kwargs=True) for block in chosen]
        try:
            patches = self.backbone(images, mask=mask).patches
        finally:
            for handle in handles:
                handle.remove()
        if not seen:
            return patches, None
        prefix = seen[0][2].shape[1] - patches.shape[1]
        x = torch.cat([seen[-1][2][:, :prefix], seen[0][2][:, prefix:]], dim=1)
        args, kwargs, _ = seen[-1]  # relative positions, say
        for block in self.cls_pt_layers:
            x = block(x, *args[1:], **kwargs)
        norm: Any = self.backbone.norm
        return patches, norm(x)[:, prefix:]

    def masks(self, batch: int) -> Tensor:
        """(B, L) bool: BEiT's blocks, then single patches until all images have equally many (section 3.2)."""
        wanted = torch.full((batch,), float(self.n_masked), device=self.device)
        grid = self.backbone.mask_grid
        blocks = block_masking(wanted, grid, self.min_block, partial(self.uniform, batch)).flatten(1)
        return fill_masks(blocks, self.n_masked, self.uniform(batch, grid[0] * grid[1]))

    def show(self, images: Tensor) -> dict[str, Tensor]:
        """What is masked, and the codes, each a colour of its own: the tokenizer's, and the predicted ones."""
        sides, mask = images.shape[-2:], self.masks(len(images))
        codes = self.tokens(F.interpolate(images, self.views[1].sides, mode="bicubic", antialias=True).clamp(0, 1))
        logits = self.lm_head(self.both(normalize(images, self.drawn_views[0]), mask)[0])
        predicted = torch.where(mask, logits.argmax(dim=2), codes.flatten(1)).view_as(codes)
        hidden = F.interpolate(mask.view(len(images), 1, *self.backbone.mask_grid).float(), sides)
        colours = torch.rand(self.codebook_size, 3, generator=torch.Generator().manual_seed(0)).to(images.device)
        shown = {"codes": codes, "predicted codes": predicted}
        return {
            "masked": images * (1 - hidden) + 0.5 * hidden,
            **{title: F.interpolate(colours[ids].movedim(-1, 1), sides) for title, ids in shown.items()},
        }

    def tokens(self, pixels: Tensor) -> Tensor:
        """(B, 3, h * stride, w * stride) in [0, 1] -> (B, h, w) int64."""
        return self.frozen[0].to(pixels.device).tokens(pixels)

    def param_groups(self) -> list[dict[str, Any]]:
        """No weight decay on vectors and the cls token; the mask token has it (BEiT's)."""
        return no_decay_on_vectors(self.named_parameters(), spared=("cls_token", "pos_embed"))
