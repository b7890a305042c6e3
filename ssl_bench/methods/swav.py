"""Unsupervised Learning of Visual Features by Contrasting Cluster Assignments. Caron et al. 2020, arXiv 2006.09882."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.methods.method import Method
from ssl_bench.nn.centering import dino_loss
from ssl_bench.nn.heads import mlp
from ssl_bench.nn.optimizers import Training
from ssl_bench.utils.bounds import Area, Depth, Epochs, Few, Natural, Pixels, Positive, Sigma, Width
from ssl_bench.utils.distributed import all_mean, gather, process
from ssl_bench.utils.errors import UserError
from ssl_bench.views.multicrop import local_crops
from ssl_bench.views.view import PIL_DIFFERENCES, View, random_resized_crop


class SwAV(Method):
    """Assign a large crop to prototypes, all of them equally often, and predict the assignment from the other crops.

    loss = mean over pairs of crops u != v, u global, of CE(q_u, softmax(C z_v / T)),  q = Sinkhorn(C z / epsilon)

    Args:
        backbone: The encoder.
        hidden_dim: Width of the projector (section 4).
        out_dim: Dimension of the projections z, which are unit vectors.
        n_prototypes: Prototypes K, the rows of C, unit vectors (section 4).
        temperature: T (appendix A.1).
        epsilon: Smoothness of the assignments (appendix A.1).
        sinkhorn_iterations: Of the Sinkhorn-Knopp algorithm.
        queue_length: Projections of past batches, for each of the two global crops, that take part in the assignment;
            3840 for batches of 256 images (section 4.3), none by default, as for the paper's large batches.
        queue_epochs: Epochs before the queue is filled (section 4.3); it is used once it is full.
        freeze_prototypes: Epochs in which the prototypes stay as they are (appendix A.1).
        freeze_patch_embed: Keep the random patch projection: MoCo v3's remedy for the instability of ViTs, which helps
            SwAV too (arXiv 2104.02057, section 4.2).
        n_local: Local crops; 0 for none.
        local_size: Height of the local crops, pixels; their shape is the image's. Left out: 96/224 of it, in patches.
        global_scale: Range of the area of the two global crops.
        local_scale: Range of the area of the local crops.
        blur_sigma: Range of the blur, pixels of the view. The paper's (0.1, 2.0) is for 224 pixels.
    """

    paper = "Caron et al. 2020, arXiv 2006.09882"
    category = "contrastive"
    defaults = Training(  # MoCo v3's for its ViT-S and ViT-B with SwAV; the paper has ResNets
        epochs=300, batch_size=4096, base_lr=1.5e-4, warmup_epochs=40, weight_decay=0.1
    )
    needs = ("multi_crop",)
    backbone_options = {"pos_embed": "sincos_yx", "init": "moco_v3"}
    deviations = (
        *PIL_DIFFERENCES,
        "the backbone is a ViT with MoCo v3's initial weights, fixed positions and frozen patch projection; the "
        "paper's is a ResNet",
        "AdamW at MoCo v3's rates, without weight decay on biases and norms, instead of LARS",
        "images are normalised with 0.229 as the deviation of red; the authors' code has 0.228",
        "at other image sizes than 224 the local crops are 96/224 of the image in whole patches",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        hidden_dim: Width = 2048,
        out_dim: Width = 128,
        n_prototypes: Width = 3000,
        temperature: Positive = 0.1,
        epsilon: Positive = 0.05,
        sinkhorn_iterations: Depth = 3,
        queue_length: Natural = 0,
        queue_epochs: Epochs = 15,
        freeze_prototypes: Epochs = 1,
        freeze_patch_embed: bool = True,
        n_local: Few = 6,
        local_size: Pixels | None = None,
        global_scale: tuple[Area, Area] = (0.14, 1.0),
        local_scale: tuple[Area, Area] = (0.05, 0.14),
        blur_sigma: tuple[Sigma, Sigma] = (0.1, 2.0),
    ) -> None:
        super().__init__(backbone)
        if epsilon < 0.02:  # far below, exp(1 / epsilon) is not a float32
            raise UserError(f"epsilon is {epsilon:g}; it must be at least 0.02")
        self.temperature, self.epsilon, self.sinkhorn_iterations = temperature, epsilon, sinkhorn_iterations
        self.queue_length, self.queue_epochs, self.freeze_prototypes = queue_length, queue_epochs, freeze_prototypes
        crop = random_resized_crop(
            backbone.image_size,
            scale=global_scale,
            jitter=(0.8, 0.8, 0.8, 0.2),
            jitter_p=0.8,
            grayscale=0.2,
            blur=0.5,
            blur_sigma=blur_sigma,
            count=2,
        )
        self.crops = [crop, *local_crops(backbone, crop, n_local, local_size, local_scale)]
        if freeze_patch_embed:
            backbone.freeze_patch_embed()
        self.projector = mlp([backbone.embed_dim, hidden_dim, out_dim])
        self.prototypes = nn.Linear(out_dim, n_prototypes, bias=False)
        self.after_step()
        self.register_buffer("queue", torch.zeros(2, queue_length, out_dim))
        self.queue: Tensor

    @property
    def views(self) -> list[View]:
        """Two global crops, then the local ones, augmented alike (section 3.2, appendix B)."""
        return self.crops

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Swapped prediction (algorithm 1, with multi-crop)."""
        sizes = [views[:2], views[2:]] if views[2:] else [views]
        tokens = torch.cat([self.backbone.class_token(torch.cat(equal)) for equal in sizes])
        z = F.normalize(self.projector(tokens).float(), dim=1).unflatten(0, (len(views), -1))
        with torch.autocast(z.device.type, enabled=False):
            scores = self.prototypes(z)
            codes = torch.stack([self.codes(scores[i].detach(), self.queue[i]) for i in range(2)])
        self.fill_queue(z[:2].detach())
        usage = (scores[:2].detach() / self.temperature).softmax(dim=2).mean(dim=(0, 1))  # 1 / K each, unless collapsed
        entropy = torch.special.entr(usage).sum()
        return {"loss": dino_loss(scores, codes, self.temperature), "prototype_perplexity": entropy.exp()}

    @torch.no_grad()
    def codes(self, scores: Tensor, queue: Tensor) -> Tensor:
        """(B, K) scores of a global crop -> (B, K) assignments; the queue only makes the batch of the Sinkhorn larger.

        Rows of a queue that is not full yet have no weight. Each process takes its share of them.
        """
        if not self.queue_used:
            return sinkhorn(scores, self.epsilon, self.sinkhorn_iterations)
        rank, world = process()
        past = self.prototypes(queue.tensor_split(world)[rank])
        past = torch.where(queue[-1].any(), past, float("-inf"))
        return sinkhorn(torch.cat([scores, past]), self.epsilon, self.sinkhorn_iterations)[: len(scores)]

    @torch.no_grad()
    def fill_queue(self, z: Tensor) -> None:
        """The newest projections (2, B, C) of all processes first, the oldest drop out."""
        if self.queue_used:
            new = torch.stack([gather(of_view) for of_view in z])
            self.queue.copy_(torch.cat([new, self.queue], dim=1)[:, : self.queue_length])

    @property
    def queue_used(self) -> bool:
        """Whether there is a queue in this epoch."""
        return self.queue_length > 0 and self.epoch >= self.queue_epochs

    def before_step(self) -> None:
        """Keep the prototypes in the first epochs: without gradient AdamW leaves them alone."""
        if self.epoch < self.freeze_prototypes:
            self.prototypes.weight.grad = None

    @torch.no_grad()
    def after_step(self) -> None:
        """Prototypes are unit vectors (the authors scale them before each step, which is the same)."""
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Assign samples to prototypes, each sample once and each prototype equally often (section 3.1, listing 1).

    Args:
        scores: (B, K) float32, of the B samples of this process; a row of -inf is no sample.
        epsilon: Smoothness; towards 0 an assignment is one-hot.
        iterations: Of the two normalisations. Samples come last, so that their rows sum to 1.

    Returns:
        (B, K) float32; the assignment is that of the samples of all processes.

    Example:
        >>> sinkhorn(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.5]]), 0.5, 3).mean(dim=0)
        tensor([0.5001, 0.4999])
    """
    q = (scores.float() / epsilon).exp()
    for _ in range(iterations):
        q = q / all_mean(q.sum(dim=0))  # up to a factor that the next line takes out
        q = q / q.sum(dim=1, keepdim=True).clamp(min=1e-30)
    return q
