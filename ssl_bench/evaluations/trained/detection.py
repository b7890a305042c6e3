"""Detection and instance segmentation: Mask R-CNN trained on an encoder that is frozen, or trained with it.

After the transfer of MAE and ViTDet (He et al., CVPR 2022, arXiv:2111.06377, section 5; Li et al. 2022,
arXiv:2203.16527), with torchvision's Mask R-CNN instead of detectron2's: not the papers' head, not their numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.data.datasets import ImageSet
from ssl_bench.data.targets import Objects
from ssl_bench.evaluations.dense import in_threads, shuffled_batches
from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result, name_of
from ssl_bench.evaluations.frozen.segmentation_linear import rate
from ssl_bench.evaluations.pictures import SURE, Gallery, boxed
from ssl_bench.evaluations.trained.detector import detector
from ssl_bench.evaluations.trained.network import layer_groups
from ssl_bench.metrics.detection import Found, contributions, detection_metrics, match, pair_iou
from ssl_bench.utils.bounds import Area, Count, Few, Natural, NonNegative, Pixels, Positive, Rate, Seed, Width
from ssl_bench.utils.distributed import all_mean, average_gradients, part, process
from ssl_bench.utils.errors import RunError, UserError
from ssl_bench.utils.progress import progress
from ssl_bench.utils.seeds import step_seed
from ssl_bench.views.execution import seeded

INSIDE = 0.5  # of a mask's pixels, what is more is the object


class Detection(Evaluator):
    """Average precision of COCO, of boxes and of masks, after the last step.

    Heads are torchvision's: a region proposal network, a box head of two layers, a mask head of convolutions, on the
    maps of `detector.Pyramid`. AdamW; linear warm-up, then the rate falls to 0 in a straight line. Training images are
    resized and flipped, nothing more.

    Args:
        frozen: Whether the encoder is left as it is.
        lr: Learning rate.
        weight_decay: Of AdamW; none on vectors, nor on positions and tokens.
        layer_decay: Factor on the learning rate for every block further from the head, where the encoder is trained.
        drop_path: Stochastic depth of the last block, likewise.
        clip_grad: Largest global gradient norm; no limit with 0.
        steps: Batches.
        warmup: Of them with a rising rate.
        batch_size: Images.
        short_side: Pixels to which images are resized, unless the long side then had more than `long_side`.
        long_side: Pixels.
        channels: Of the maps of the pyramid and of the mask head.
        hidden: Width of the box head.
        mask_layers: Convolutions of the mask head.
        proposals: That are looked at, of an image.
        sampled: Of them that the heads learn from, of an image.
        seed: Of everything that is drawn.

    Raises:
        UserError: A number out of range.
    """

    version: ClassVar[int] = 1
    task: ClassVar[str] = "detection"
    joint: ClassVar[bool] = True
    needs: ClassVar[str] = "objects"
    metric_help: ClassVar[dict[str, str]] = {
        "ap": "average precision of boxes, mean over overlaps of 0.5 to 0.95 and classes (COCO), percent",
        "ap50": "the same at an overlap of 0.5, percent; ap75 at 0.75",
        "ap_small": "the same of objects below 32 x 32 pixels, percent; ap_medium, ap_large above 96 x 96",
        "mask_ap": "average precision of masks, percent; likewise mask_ap50 and so on",
    }
    poolings = ()

    def __init__(
        self,
        frozen: bool = True,
        lr: Positive = 1e-4,
        weight_decay: NonNegative = 0.1,
        layer_decay: Area = 0.7,
        drop_path: Rate = 0.1,
        clip_grad: NonNegative = 1.0,
        steps: Count = 90_000,
        warmup: Natural = 1000,
        batch_size: Count = 16,
        short_side: Pixels = 800,
        long_side: Pixels = 1333,
        channels: Width = 256,
        hidden: Width = 1024,
        mask_layers: Few = 4,
        proposals: Count = 1000,
        sampled: Count = 512,
        seed: Seed = 0,
    ) -> None:
        self.frozen, self.lr, self.weight_decay, self.layer_decay = frozen, lr, weight_decay, layer_decay
        self.drop_path, self.clip_grad, self.steps, self.warmup = drop_path, clip_grad, steps, warmup
        self.batch_size, self.short_side, self.long_side = batch_size, short_side, long_side
        self.channels, self.hidden, self.mask_layers = channels, hidden, mask_layers
        self.proposals, self.sampled, self.seed = proposals, sampled, seed
        if short_side > long_side:
            raise UserError(f"detection: short_side is {short_side}, more than long_side, {long_side}")

    @property
    def encoder_needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """Weights, where they are trained."""
        return () if self.frozen else ("train",)

    def run(self, encoder: Encoder, data: Data) -> Result:
        """Train on all training images, then score test after the last step.

        Raises:
            UserError: The encoder has no map of tokens of this size, or nothing to train.
            RunError: The training diverged, or an image can't be read any more.
        """
        assert data.test.targets is not None
        model, loss = self.fit(encoder, data.train)
        boxes: list[Found] = []
        masks: list[Found] = []
        gallery = Gallery(len(data.test), "image", "true boxes", f"predicted boxes of a score above {SURE}")
        for i, found in enumerate(self.predict(model, data.test)):
            truth = data.test.targets.objects(i)
            boxes += compared(i, found, truth, "boxes")
            masks += compared(i, found, truth, "masks")
            if i in gallery:
                image, sure = data.test.images[i], found["scores"] > SURE
                seen = boxed(image, found["boxes"][sure], found["labels"][sure])
                gallery.add(i, image, boxed(image, truth.boxes, truth.labels), seen)
        metrics = detection_metrics(boxes, len(data.test)) | detection_metrics(masks, len(data.test), "mask_")
        if "ap" not in metrics:
            raise RunError(f"detection: no image of {data.test.name} {data.test.split} shows an object")
        chosen: dict[str, object] = {
            "passes": self.steps * self.batch_size / len(data.train),
            "final_loss": loss,
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }
        correct, picture = contributions(boxes, len(data.test)), gallery.picture()
        return Result(metrics, "ap", correct, chosen, "patches", selected=False, picture=picture)

    def fit(self, encoder: Encoder, images: ImageSet) -> tuple[MaskRCNN, float]:
        """The detector after the last step, and its loss there."""
        assert images.targets is not None
        network: Any = encoder.copy()
        if not self.frozen and not (isinstance(network, Backbone) and network.can_train):
            raise UserError(f"detection: {name_of(network)} has nothing to train")
        with seeded(self.seed):
            model = detector(
                network,
                len(images.targets.classes),
                frozen=self.frozen,
                channels=self.channels,
                hidden=self.hidden,
                mask_layers=self.mask_layers,
                proposals=self.proposals,
                sampled=self.sampled,
                sides=(self.short_side, self.long_side),
            )
        return model, self._train(model, images)

    def _train(self, model: MaskRCNN, images: ImageSet) -> float:
        """The loss of the last step."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        pyramid: Any = model.backbone
        if not self.frozen:
            pyramid.network.mask_token = None
            pyramid.network.set_drop_path(self.drop_path)
        decay = 1.0 if self.frozen else self.layer_decay
        groups = layer_groups(model.to(device).train(), pyramid.network, self.weight_decay, decay)
        optimizer = torch.optim.AdamW(groups, self.lr)
        last = 0.0
        for step, (pictures, truths) in enumerate(progress(self._batches(images, device), "detection", self.steps)):
            for group in optimizer.param_groups:
                group["lr"] = self.lr * rate(step, self.steps, self.warmup) * group["lr_scale"]
            drawn = step_seed(self.seed, step, process()[0])
            with seeded(drawn):  # which anchors and proposals are learnt from
                if device.type == "cuda":
                    torch.cuda.manual_seed(drawn)
                loss = torch.stack(list(model(pictures, truths).values())).sum()
            last = all_mean(loss).item()
            if not np.isfinite(last):
                raise RunError(f"detection: the training diverged; lr {self.lr} needs a smaller value")
            optimizer.zero_grad()
            loss.backward()
            average_gradients(model.parameters())
            if self.clip_grad:
                torch.nn.utils.clip_grad_norm_(model.parameters(), self.clip_grad)
            optimizer.step()
        return last

    def _batches(
        self, images: ImageSet, device: torch.device
    ) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
        """Pictures (3, H, W) float32 in [0, 1] and what is to be found in each, this process's of `steps` batches."""
        random = np.random.default_rng(self.seed)
        for at in shuffled_batches(len(images), self.batch_size, self.steps, random):
            turned = (random.random(self.batch_size) < 0.5).tolist()
            pairs = in_threads(lambda k, at=at, turned=turned: _example(images, at[k], turned[k]), part(len(at)))  # type: ignore[misc]
            yield (
                [picture.to(device) for picture, _ in pairs],
                [{key: value.to(device) for key, value in truth.items()} for _, truth in pairs],
            )

    @torch.no_grad()
    def predict(self, model: MaskRCNN, images: ImageSet) -> Iterator[dict[str, Tensor]]:
        """Of each image the detections: boxes (D, 4), labels and scores (D,), masks (D, H, W) bool."""
        device = next(model.parameters()).device
        model.eval()
        for start in progress(range(0, len(images), self.batch_size), f"detections in {images.name}"):
            pictures = [images.images[i] for i in range(start, min(start + self.batch_size, len(images)))]
            for found in model([(picture.float() / 255).to(device) for picture in pictures]):
                yield {**{k: v.cpu() for k, v in found.items()}, "masks": found["masks"][:, 0].cpu() > INSIDE}


def _example(images: ImageSet, index: int, turned: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """A picture and its objects as torchvision wants them; a crowd is nothing to learn from."""
    assert images.targets is not None
    picture, objects = images.images[index].float() / 255, images.targets.objects(index)
    if picture.shape[1:] != objects.masks.shape[1:]:
        raise RunError(f"detection: image {index} of {images.name} {images.split} has another size than its masks")
    boxes, masks = objects.boxes.clone(), objects.masks
    if turned:
        picture, masks = picture.flip(-1), masks.flip(-1)
        boxes[:, [0, 2]] = picture.shape[-1] - boxes[:, [2, 0]]
    kept = ~objects.crowd & (boxes[:, 2:] > boxes[:, :2]).all(1)
    truth = {"boxes": boxes[kept], "labels": objects.labels[kept], "masks": masks[kept].to(torch.uint8)}
    return picture, truth


def compared(image: int, found: dict[str, Tensor], truth: Objects, kind: str) -> list[Found]:
    """What became of the detections of an image; `kind` is "boxes" or "masks".

    How large an object is, its ground truth says, of boxes too: the area of the outline, as in COCO's `cocoeval.py`.
    Where it doesn't, the box or the mask does.
    """
    seen, there = found[kind], getattr(truth, kind)
    overlap = pair_iou(seen, there, truth.crowd)
    objects = truth.labels, _areas(there) if truth.areas is None else truth.areas, truth.crowd
    return match(image, overlap, found["scores"], found["labels"], _areas(seen), objects)


def _areas(shapes: Tensor) -> Tensor:
    """(K,) float64 of boxes (K, 4) or masks (K, H, W)."""
    if shapes.ndim == 3:
        return shapes.sum((1, 2)).double()
    return (shapes[:, 2:] - shapes[:, :2]).double().prod(1)
