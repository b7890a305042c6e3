"""VQ-KD, the tokenizer of BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers. arXiv 2208.06366."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.methods.method import Method
from ssl_bench.nn.optimizers import Training, no_decay_on_vectors
from ssl_bench.teachers.codes import codebook_usage
from ssl_bench.teachers.teacher import Teacher, make_teacher
from ssl_bench.teachers.vqkd import VQKDTokenizer, task_layer
from ssl_bench.utils.bounds import Area, Depth, Share, Width
from ssl_bench.utils.errors import UserError
from ssl_bench.views.view import View, random_resized_crop

if TYPE_CHECKING:
    from ssl_bench.data.datasets import ImageSet


class VQKD(Method):
    """Round each patch's token to a code of a codebook, and rebuild from the codes what a frozen teacher sees there.

    loss = mean over patches of [1 - cos(decoder(code), teacher)] + mean of (z - sg(code))^2,  z: unit vectors

    The codes take no gradient: they are moving averages of what is rounded to them. Gradients go straight through.

    Args:
        backbone: The encoder of the tokenizer.
        teacher: Whose patch tokens are rebuilt: a CLIP of the suite (``clip:RECIPE``), a tower of timm
            (``timm:MODEL``; the paper's is OpenAI's ViT-B/16) or any encoder of ours (``checkpoint:PATH``).
        codebook_size: Codes (section 3.1).
        code_dim: Their dimension (section 3.1).
        decoder_depth: Blocks of the decoder, which are the encoder's in width and heads (appendix; 1 or 3).
        decay: Of the codebook's moving average (``TOKENIZER.md``).
        crop_min: Smallest area of the crop.
    """

    paper = "Peng et al. 2022, arXiv 2208.06366"
    category = "tokenizer"
    defaults = Training(  # TOKENIZER.md; the rates, 5e-5 to 1e-6 at batch 512, are recalled
        epochs=100,
        batch_size=512,
        base_lr=2.5e-5,
        min_lr=1e-6,
        warmup_epochs=10,
        schedule="step_inclusive",
        weight_decay=1e-4,
        betas=(0.9, 0.99),
    )
    backbone_options = {"pos_embed": "learned", "init": "beit"}
    input_statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # [0, 1] -> [-1, 1]
    deviations = (
        "unless the teacher is timm:vit_base_patch16_clip_quickgelu_224.openai, it is not the paper's",
        "learning rates and the smallest area of the crop are recalled, not read in the authors' scripts",
        "the k-means that starts the codebook sees the same vectors in every process; the authors' draws its first "
        "centres from those of the first",
        "the keys of the attention have a bias, which softmax cancels; the authors' have none",
    )
    teachers = ("teacher",)

    def __init__(
        self,
        backbone: Backbone,
        *,
        teacher: str = "clip",
        codebook_size: Width = 8192,
        code_dim: Width = 32,
        decoder_depth: Depth = 3,
        decay: Share = 0.99,
        crop_min: Area = 0.08,
    ) -> None:
        super().__init__(backbone)
        if backbone.num_heads is None:
            raise UserError(f"VQ-KD's decoder has the heads of a block of its encoder, and {backbone.name} has several")
        self.teacher_name, self.crop_min = teacher, crop_min
        tokenizer = VQKDTokenizer(backbone, codebook_size=codebook_size, code_dim=code_dim, decay=decay)
        self.encode_task_layer, self.quantize = tokenizer.encode_task_layer, tokenizer.quantize
        self.decoder = VisionTransformer(
            img_size=backbone.grid,
            patch_size=1,
            in_chans=code_dim,
            num_classes=0,
            global_pool="",
            embed_dim=backbone.embed_dim,
            depth=decoder_depth,
            num_heads=backbone.num_heads,
        )
        self.decode_task_layer: nn.Sequential | None = None  # as wide as the teacher's tokens, so made with it
        self.started = False
        self._tokenizer = (tokenizer,)  # in a tuple: its parts are registered above
        self._teacher: tuple[Teacher, ...] = ()

    def set_teacher(self, keyword: str, network: nn.Module | None, source: str = "") -> None:
        """Take the teacher, and make the layers that predict its tokens."""
        teacher = make_teacher(self.teacher_name, self.backbone.grid, network, source)
        self._teacher = (teacher,)
        self.flags += teacher.flags
        self._make_head(teacher.dim)

    def _make_head(self, out: int) -> None:
        """Weights from a generator of their own: what the making of a teacher draws must not change them."""
        generator = torch.Generator().manual_seed(self.seed)
        self.decode_task_layer = task_layer(self.backbone.embed_dim, out, generator)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Also into a method that has no teacher yet, whose head is then made as the file has it."""
        if self.decode_task_layer is None and "decode_task_layer.2.bias" in state_dict:
            self._make_head(len(state_dict["decode_task_layer.2.bias"]))
        return super().load_state_dict(state_dict, *args, **kwargs)

    @property
    def teacher(self) -> Teacher:
        """The frozen teacher, on the device of the method."""
        assert self._teacher, "set_teacher comes first"
        return self._teacher[0].to(self.device)

    @property
    def views(self) -> list[View]:
        """The tokenizer's crop, and the same crop at the teacher's size; no colour augmentation."""
        crop = random_resized_crop(self.backbone.image_size, self.crop_min)
        return [crop, self.teacher.view_of(crop)]

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Cosine distance from the teacher's tokens, and the commitment (equation 3)."""
        images, teacher_view = views
        z = self.encoder.project(images)
        with torch.autocast(z.device.type, enabled=False):
            if self.progress == 0 and not self.started:
                self.quantize.start(z.detach().flatten(0, 1), self.uniform(*z.shape[:2]).flatten())
                self.started = True
            codes, ids, commitment = self.quantize(z)
        if self.training:
            self.quantize.follow(z.detach().flatten(0, 1), ids.flatten())
        assert self.decode_task_layer is not None
        tokens = self.decoder(codes.transpose(1, 2).unflatten(2, self.backbone.grid))[:, 1:]
        prediction, target = self.decode_task_layer(tokens).float(), self.teacher.patches(teacher_view)
        distance = 1 - F.cosine_similarity(prediction, target, dim=2).mean()
        return {"loss": distance + commitment, "distance": distance, "commitment": commitment}

    @property
    def encoder(self) -> VQKDTokenizer:
        """The tokenizer, without the decoder."""
        return self._tokenizer[0]

    def param_groups(self) -> list[dict[str, Any]]:
        """No weight decay on vectors, positions and the cls tokens (``optim_factory.py``)."""
        return no_decay_on_vectors(self.named_parameters(), spared=("cls_token", "pos_embed"))

    def finish(self, images: ImageSet) -> dict[str, Any]:
        """Which teacher, and how much of the codebook the training images use; a collapsed one is refused."""
        self.eval()
        remedy = "base_lr, batch_size or codebook_size"
        used = codebook_usage(self.encoder, images, self.backbone.image_size, self.device, remedy)
        return {"teacher": self.teacher.about, **used}
