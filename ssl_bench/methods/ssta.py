"""SSTA: Self-supervised Models are Good Teaching Assistants for ViTs. Wu et al., ICML 2022. A reconstruction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.methods.method import Method
from ssl_bench.nn.optimizers import Training
from ssl_bench.teachers.importance import affine, by_loss, by_removal, fit_classifier
from ssl_bench.utils.bounds import Area, Count, NonNegative, Share, Width
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.weights import weights_hash
from ssl_bench.views.evaluation import eval_images, resize_crop
from ssl_bench.views.view import View, random_resized_crop

if TYPE_CHECKING:
    from ssl_bench.data.datasets import ImageSet

GUIDES, BATCH = ("teacher", "assistant"), 64  # heads are judged on so many images at a time


class SSTA(Method):
    """Learn labels, the answers of a supervised teacher, and where its most important head and that of a
    self-supervised assistant look.

    loss = (1 - a) CE(student, label) + a CE(student, teacher's class)
         + b_T KL(teacher's attention || student's head 0) + b_A KL(assistant's attention || student's head 1)

    Args:
        backbone: The student.
        num_classes: Classes of the data.
        teacher: The supervised network: ``supervised`` or ``supervised:RECIPE``, trained first on the same images; or
            ``checkpoint:PATH``, an encoder trained before.
        assistant: The self-supervised one: ``dino``, ``mae``, ... with or without ``:RECIPE``, or ``checkpoint:PATH``.
        distillation: Weight a of the teacher's class against the label (DeiT's hard distillation: 0.5).
        teacher_weight: Weight b_T of the teacher's attention.
        assistant_weight: Weight b_A of the assistant's attention.
        judged: Training images on which the two heads are chosen, and the teacher's classifier is fitted.
        label_smoothing: Of the labels (DeiT: 0.1).
        crop_min: Smallest area of the crop.
    """

    paper = "Wu et al. 2022, ICML 2022"
    category = "feature regression"
    defaults = Training(  # DeiT's (arXiv 2012.12877, table 9): 5e-4 for 512 images
        epochs=300, batch_size=1024, base_lr=2.5e-4, min_lr=1e-5, warmup_epochs=5, weight_decay=0.05
    )
    needs = ("heads",)
    backbone_options = {"drop_path": 0.1}
    uses_labels = True
    teachers = GUIDES
    deviations = (
        "a reconstruction from the abstract, without the authors' code, which is not published, and the paper's text: "
        "the loss, the choice of heads, the layer and all values are ours; not to be compared with the paper's numbers",
        "no mixup, cutmix, RandAugment, erasing or repeated augmentation, with which DeiT trains",
        "the classifiers read the mean patch token; DeiT's read the cls token and a distillation token",
        "the teacher's classifier is a linear one fitted to its frozen features, because encoder files have none",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: Width,
        teacher: str = "supervised",
        assistant: str = "dino",
        distillation: Share = 0.5,
        teacher_weight: NonNegative = 1.0,
        assistant_weight: NonNegative = 1.0,
        judged: Count = 2048,
        label_smoothing: Share = 0.1,
        crop_min: Area = 0.2,
    ) -> None:
        super().__init__(backbone)
        if (backbone.num_heads or 0) < 2:
            raise UserError(
                f"{backbone.name} has {backbone.num_heads} attention heads; SSTA needs two of its last block"
            )
        self.names = {"teacher": teacher, "assistant": assistant}
        self.distillation, self.judged = distillation, judged
        self.weights = {"teacher": teacher_weight, "assistant": assistant_weight}
        self.label_smoothing, self.crop_min, self.num_classes = label_smoothing, crop_min, num_classes
        self.head = nn.Linear(backbone.embed_dim, num_classes)
        self.sources: dict[str, str] = {}
        self._guides: tuple[Backbone, ...] = ()  # a tuple keeps them out of the parameters and the state dict
        self.chosen: Tensor
        self.classifier: Tensor
        self.register_buffer("chosen", torch.zeros(2, dtype=torch.long))  # a head of each guide

    def set_teacher(self, keyword: str, network: nn.Module | None, source: str = "") -> None:
        """Take a guide; the teacher comes first.

        Raises:
            UserError: No network of that name, one that does not show its heads, or one with other tokens.
        """
        guide: Any = network
        named = f"{keyword} {self.names[keyword]!r}"
        if not getattr(guide, "has_heads", False):
            found = "unknown" if network is None else f"a {type(network).__name__}, which shows no heads"
            raise UserError(f"{named} is {found}; SSTA takes a ViT as METHOD, METHOD:RECIPE or checkpoint:PATH")
        if _tokens_of(guide) != _tokens_of(self.backbone):
            raise UserError(f"{named} is a {guide.name}; its tokens are not those of {self.backbone.name}")
        self.sources[keyword] = source
        self._guides = (*self._guides, guide.eval().requires_grad_(False))
        if keyword == "teacher":
            self.register_buffer("classifier", torch.zeros(guide.embed_dim + 1, self.num_classes))

    def guide(self, keyword: str) -> Backbone:
        """A guide, on the device of the method."""
        assert len(self._guides) == len(GUIDES), "set_teacher comes first"
        return self._guides[GUIDES.index(keyword)].to(self.device)

    @property
    def views(self) -> list[View]:
        """One crop, flipped at random: the guides see the same pixels."""
        return [random_resized_crop(self.backbone.image_size, self.crop_min)]

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Labels, the teacher's class, and the two heads."""
        (images,) = views
        assert self.labels is not None
        tokens, own = self.backbone.open_heads(images, (0, 1))
        logits = self.head(tokens.patches.mean(dim=1)).float()
        label = F.cross_entropy(logits, self.labels, label_smoothing=self.label_smoothing)
        scalars = {"top1": 100 * (logits.argmax(1) == self.labels).float().mean()}
        loss = (1 - self.distillation) * label
        for i, keyword in enumerate(GUIDES):
            distilled = self.distillation if keyword == "teacher" else 0.0
            if not (self.weights[keyword] or distilled):
                continue
            guide = self.guide(keyword)
            with torch.no_grad():
                guided, theirs = guide.open_heads(self._seen_by(guide, images), self.chosen[i : i + 1])
            scalars[f"attention of the {keyword}"] = divergence(theirs[:, 0], own[:, i])
            loss = loss + self.weights[keyword] * scalars[f"attention of the {keyword}"]
            if distilled:
                hard = affine(guided.patches.float().mean(dim=1), self.classifier).argmax(dim=1)
                loss = loss + distilled * F.cross_entropy(logits, hard)
        return {"loss": loss, **scalars}

    def _seen_by(self, guide: Backbone, images: Tensor) -> Tensor:
        """The student's pixels (B, 3, H, W), normalised as the guide's."""
        own, theirs = ((images.new_tensor(b.mean), images.new_tensor(b.std)) for b in (self.backbone, guide))
        gain, shift = own[1] / theirs[1], (own[0] - theirs[0]) / theirs[1]
        return images * gain.view(3, 1, 1) + shift.view(3, 1, 1)

    def prepare(self, images: ImageSet) -> None:
        """Fit the teacher's classifier, and choose the most important head of each guide, on clean images."""
        generator = torch.Generator().manual_seed(self.seed)
        index = torch.randperm(len(images), generator=generator)[: self.judged]
        size, labels = self.backbone.image_size, images.labels[index].to(self.device)
        pixels = torch.stack([resize_crop(images.images[i], size) for i in index.tolist()]).to(self.device)
        teacher, assistant = (self.guide(keyword) for keyword in GUIDES)
        seen = [eval_images(pixels, size, guide.mean, guide.std).split(BATCH) for guide in (teacher, assistant)]
        with torch.no_grad():
            features = torch.cat([teacher(x).patches.float().mean(dim=1) for x in seen[0]])
        self.classifier = fit_classifier(features, labels, self.num_classes)
        batches = zip(seen[0], labels.split(BATCH), strict=True)
        judged = [sum(by_loss(teacher, x, y, self.classifier) for x, y in batches)]
        judged += [sum(by_removal(assistant, x) for x in seen[1])]
        self.chosen = torch.stack([total.argmax() for total in judged])  # type: ignore[union-attr]

    def finish(self, images: ImageSet) -> dict[str, Any]:
        """Who guided, by which head."""
        return {
            keyword: {
                "name": self.names[keyword],
                "source": self.sources[keyword],
                "head": int(self.chosen[i]),
                "sha256": weights_hash(self._guides[i].state_dict()),
            }
            for i, keyword in enumerate(GUIDES)
        }


def divergence(target: Tensor, attention: Tensor) -> Tensor:
    """KL(target || attention), mean over images and tokens.

    Args:
        target: (B, N, N) float32, rows sum to 1.
        attention: (B, N, N) float32, the student's.

    Example:
        >>> p = torch.tensor([[[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]]])
        >>> q = torch.tensor([[[0.6, 0.3, 0.1], [0.2, 0.6, 0.2], [0.3, 0.3, 0.4]]])
        >>> round(divergence(p, q).item(), 6)
        0.046247
    """
    logs = [rows.clamp(min=1e-8).log() for rows in (target, attention)]
    return (target * (logs[0] - logs[1])).sum(dim=2).mean()


def _tokens_of(backbone: Backbone) -> tuple[Any, ...]:
    """What must be the same for attention to be compared token by token."""
    return backbone.image_size, backbone.grid, backbone.spec.get("registers", 0)
