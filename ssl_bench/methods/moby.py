"""Self-Supervised Learning with Swin Transformers. Xie et al., 2021, arXiv 2105.04553."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.methods.method import Method
from ssl_bench.nn.ema import EMATeacher
from ssl_bench.nn.heads import mlp
from ssl_bench.nn.optimizers import Training
from ssl_bench.nn.schedules import cosine
from ssl_bench.utils.bounds import Area, Positive, Share, Sigma, Width
from ssl_bench.utils.distributed import gather
from ssl_bench.utils.errors import UserError
from ssl_bench.views.view import PIL_DIFFERENCES, View, byol_pair, random_resized_crop


class MoBY(Method):
    """MoCo v2 with BYOL's predictor, views and momentum: tell an image's other view from the past ones in a queue.

    loss = info_nce(p1, z2, queue2) + info_nce(p2, z1, queue1),  info_nce(p, z, Q) = CE([p z, p Q] / T, 0), unit vectors

    Only the online encoder has drop path. Each kind of view has a queue of its own keys.

    Args:
        backbone: The online encoder.
        hidden_dim: Width of the projector and the predictor (``models/moby.py``).
        out_dim: Dimension of the queries and keys.
        temperature: T (section 3).
        momentum: Momentum of the target at the start; a cosine takes it to 1 (section 3).
        queue_size: Keys in each queue (section 3); a multiple of the batch size.
        crop_min: Smallest area of the crops (``data/build.py``).
        blur_sigma: Range of the blur, pixels of the view. The paper's (0.1, 2.0) is for 224 pixels.
    """

    paper = "Xie et al. 2021, arXiv 2105.04553"
    category = "contrastive"
    defaults = Training(  # section 4.1 and moby_main.py, whose rates are for a batch of 512: 1e-3, 5e-7 and 5e-6
        epochs=300,
        batch_size=512,
        base_lr=5e-4,
        warmup_epochs=5,
        warmup_lr=5e-7,
        min_lr=5e-6,
        schedule="step_late",
        weight_decay=0.05,
        clip_grad=5.0,
    )
    backbone_options = {"pos_embed": "learned", "init": "dino", "drop_path": 0.2}
    deviations = (
        *PIL_DIFFERENCES,
        "mixed precision, where a recipe has it, is bf16; the authors' is fp16 with a loss scaler",
        "a training that is resumed goes on with its momentum; in the authors' code that starts anew",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        hidden_dim: Width = 4096,
        out_dim: Width = 256,
        temperature: Positive = 0.2,
        momentum: Share = 0.99,
        queue_size: Width = 4096,
        crop_min: Area = 0.08,
        blur_sigma: tuple[Sigma, Sigma] = (0.1, 2.0),
    ) -> None:
        super().__init__(backbone)
        self.temperature, self.momentum, self.crop_min = temperature, momentum, crop_min
        self.blur_sigma = blur_sigma
        self.projector = mlp([backbone.embed_dim, hidden_dim, out_dim])
        self.predictor = mlp([out_dim, hidden_dim, out_dim])
        self.target = EMATeacher(backbone, self.projector)
        for name in ("queue1", "queue2"):
            self.register_buffer(name, F.normalize(torch.randn(out_dim, queue_size), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
        self.queue1: Tensor
        self.queue2: Tensor
        self.queue_ptr: Tensor

    @property
    def views(self) -> list[View]:
        """The asymmetric pair: the first always blurred, the second seldom, and sometimes solarised (BYOL's)."""
        size, smallest, sigma = self.backbone.image_size, self.crop_min, self.blur_sigma
        return byol_pair(random_resized_crop(size, smallest, interpolation="bilinear", blur_sigma=sigma))

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Both terms. The target moves between the queries and the keys, which join the queues last."""
        x1, x2 = views
        p1, p2 = self.query(x1), self.query(x2)
        with torch.no_grad():
            self.target.follow(self.backbone, self.projector, self.current_momentum)
            z1, z2 = self.key(x1), self.key(x2)
        queue1, queue2 = self.queue1.clone(), self.queue2.clone()  # the backward pass needs them as they are now
        loss = info_nce(p1, z2, queue2, self.temperature) + info_nce(p2, z1, queue1, self.temperature)
        for queue, keys in ((self.queue1, z1), (self.queue2, z2)):
            pointer = enqueue(queue, gather(keys), self.queue_ptr)
        self.queue_ptr.copy_(pointer)
        return {"loss": loss}

    def query(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, out_dim) float32 unit vectors."""
        return F.normalize(self.predictor(self.projector(self.backbone.class_token(x))).float(), dim=1)

    def key(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, out_dim) float32 unit vectors, from the target, which stays in train mode."""
        return F.normalize(self.target.head(self.target.backbone.class_token(x)).float(), dim=1)

    @property
    def current_momentum(self) -> float:
        """Cosine from ``momentum`` to 1 over the training."""
        return cosine(self.progress, self.momentum, 1.0)


def info_nce(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each query between its own key and all keys of a queue (equation 1).

    Args:
        queries: (N, C) unit vectors.
        keys: (N, C), of the same images.
        queue: (C, Q), a past key in each column.
        temperature: T.

    Example:
        >>> round(info_nce(torch.ones(2, 1), torch.ones(2, 1), torch.ones(1, 4096), 0.2).item(), 6)  # ln 4097
        8.31801
    """
    logits = torch.cat([(queries * keys).sum(dim=1, keepdim=True), queries @ queue], dim=1) / temperature
    return F.cross_entropy(logits.float(), torch.zeros(len(logits), dtype=torch.long, device=logits.device))


@torch.no_grad()
def enqueue(queue: Tensor, keys: Tensor, pointer: Tensor) -> Tensor:
    """Write keys over the oldest ones.

    Args:
        queue: (C, Q), changed in place.
        keys: (N, C).
        pointer: (1,) int64, the column to begin with.

    Returns:
        The next pointer.

    Raises:
        UserError: N does not divide Q.

    Example:
        >>> queue = torch.zeros(1, 4)
        >>> pointer = enqueue(queue, torch.ones(2, 1), torch.tensor([2]))
        >>> queue.tolist(), pointer.tolist()
        ([[0.0, 0.0, 1.0, 1.0]], [0])
    """
    size = queue.shape[1]
    if size % len(keys):
        raise UserError(f"queue_size {size} must be a multiple of the batch_size {len(keys)}")
    columns = torch.arange(len(keys), device=queue.device) + pointer
    queue.index_copy_(1, columns, keys.T.to(queue.dtype))
    return (pointer + len(keys)) % size
