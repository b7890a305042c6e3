"""Semantic segmentation with the encoder trained too, under UPerNet: the transfer of BEiT, MAE and iBOT to ADE20K.

Bao et al. (ICLR 2022, arXiv:2106.08254, appendix), He et al. (CVPR 2022, arXiv:2111.06377, appendix A.4) and Zhou et
al. (ICLR 2022, arXiv:2111.07832, section 4.2.2), all after MMSegmentation's recipe.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result, name_of
from ssl_bench.evaluations.frozen.segmentation_knn import SegmentationKNN, masks_shown, show_masks
from ssl_bench.evaluations.frozen.segmentation_linear import SegmentationLinear, pixel_loss, rate
from ssl_bench.evaluations.trained.network import layer_groups
from ssl_bench.evaluations.trained.upernet import UPerNet
from ssl_bench.methods.method import step_seed
from ssl_bench.metrics.segmentation import iou_parts, pixel_counts, segmentation_metrics
from ssl_bench.utils.bounds import Area, Count, Natural, NonNegative, Pixels, Positive, Rate, Seed
from ssl_bench.utils.distributed import all_mean, average_gradients, process
from ssl_bench.utils.errors import RunError, UserError
from ssl_bench.utils.progress import progress
from ssl_bench.views.evaluation import eval_images
from ssl_bench.views.execution import seeded

AUXILIARY = 0.4  # weight of the auxiliary head's loss


class SegmentationFineTune(Evaluator):
    """mIoU of an encoder that was trained with UPerNet, after the last step.

    Crops and windows are those of `SegmentationLinear`. AdamW with layer-wise decay of the learning rate, linear
    warm-up, then the rate falls to 0 in a straight line.

    Args:
        lr: Learning rate.
        weight_decay: Of AdamW; none on vectors, nor on positions and tokens.
        layer_decay: Factor on the learning rate for every block further from the head.
        drop_path: Stochastic depth of the last block.
        channels: Of the head; 0 takes the encoder's width.
        steps: Batches.
        warmup: Of them with a rising rate.
        batch_size: Crops.
        crop: Pixels of the side of crops and windows.
        stride: Pixels between two windows.
        scale: Smallest and largest factor by which images are resized.
        seed: Of everything that is drawn.

    Raises:
        UserError: A number out of range.
    """

    version: ClassVar[int] = 2
    task: ClassVar[str] = "segmentation"
    joint: ClassVar[bool] = True
    needs: ClassVar[str] = "masks"
    encoder_needs = ("train",)
    metric_help: ClassVar[dict[str, str]] = SegmentationKNN.metric_help
    poolings = ()

    def __init__(
        self,
        lr: Positive = 8e-5,
        weight_decay: NonNegative = 0.05,
        layer_decay: Area = 0.65,
        drop_path: Rate = 0.1,
        channels: Natural = 0,
        steps: Count = 160_000,
        warmup: Natural = 1500,
        batch_size: Count = 16,
        crop: Pixels = 512,
        stride: Pixels = 341,
        scale: tuple[Positive, Positive] = (0.5, 2.0),
        seed: Seed = 0,
    ) -> None:
        self.lr, self.weight_decay, self.layer_decay, self.drop_path = lr, weight_decay, layer_decay, drop_path
        self.channels, self.steps, self.warmup, self.batch_size = channels, steps, warmup, batch_size
        self.crop, self.stride, self.scale, self.seed = crop, stride, (scale[0], scale[1]), seed
        sizes: dict[str, Any] = {"batch_size": batch_size, "crop": crop, "stride": stride, "scale": self.scale}
        if batch_size < 2:
            raise UserError(f"segmentation-finetune: batch_size is {batch_size}; normalisation needs two crops")
        self.crops = SegmentationLinear(steps=steps, warmup=warmup, seed=seed, **sizes)

    def run(self, encoder: Encoder, data: Data) -> Result:
        """Train on all training images, then score test after the last step.

        Raises:
            UserError: The encoder can't be trained, or has no map of tokens of this crop.
            RunError: The training diverged, or an image can't be read any more.
        """
        assert data.train.targets is not None and data.test.targets is not None
        network: Any = encoder.copy()
        if not (isinstance(network, Backbone) and network.can_train):
            raise UserError(f"segmentation-finetune: {name_of(network)} has nothing to train")
        names = data.train.targets.classes
        with seeded(self.seed):
            model = UPerNet(network, len(names), self.channels)
        loss = self._train(model, network, data)
        model.eval()

        @torch.no_grad()
        def scores_of(window: Tensor) -> Tensor:
            return model(self._seen(network, window))[0].float().cpu()

        counts, gallery = [], masks_shown(data.test)
        for i in progress(range(len(data.test)), f"windows of {data.test.name}", len(data.test)):
            mask = data.test.targets.mask(i)
            scores = self.crops.slide(data.test.images[i], scores_of)
            predicted = F.interpolate(scores[None], mask.shape, mode="bilinear")[0].argmax(0)
            counts.append(pixel_counts(predicted, mask, len(names)))
            show_masks(gallery, data.test, i, mask, predicted)
        parts = torch.stack(counts)
        chosen: dict[str, object] = {
            "passes": self.steps * self.batch_size / len(data.train),
            "blocks": list(model.blocks),
            "final_loss": loss,
        }
        metrics, picture = segmentation_metrics(parts, names), gallery.picture()
        return Result(metrics, "miou", iou_parts(parts).numpy(), chosen, "patches", selected=False, picture=picture)

    def _seen(self, network: Any, crops: Tensor) -> Tensor:
        size = (crops.shape[-2], crops.shape[-1])
        return eval_images(crops.to(next(network.parameters()).device), size, network.mean, network.std)

    def _train(self, model: UPerNet, network: Any, data: Data) -> float:
        """The loss of the last step."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network.mask_token = None
        network.set_drop_path(self.drop_path)
        optimizer = torch.optim.AdamW(
            layer_groups(model.to(device).train(), network, self.weight_decay, self.layer_decay), self.lr
        )
        last = 0.0
        for step, (crops, masks) in enumerate(progress(self.crops.batches(data.train), "UPerNet", self.steps)):
            for group in optimizer.param_groups:
                group["lr"] = self.lr * rate(step, self.steps, self.warmup) * group["lr_scale"]
            drawn = step_seed(self.seed, step, process()[0])
            with seeded(drawn):  # dropped paths and channels
                if device.type == "cuda":
                    torch.cuda.manual_seed(drawn)
                scores, beside = model(self._seen(network, crops))
            masks = masks.to(device)
            loss = pixel_loss(scores, masks) + AUXILIARY * pixel_loss(beside, masks)
            last = all_mean(loss).item()
            if not math.isfinite(last):
                raise RunError(f"segmentation-finetune: the training diverged; lr {self.lr} needs a smaller value")
            optimizer.zero_grad()
            loss.backward()
            average_gradients(model.parameters())
            optimizer.step()
        return last
