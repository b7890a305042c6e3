"""Images are normalised as the encoder was trained with, wherever one is looked at, trained further or compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import NANO, blobs
from torch import Tensor

from ssl_bench.backbones.vit import ViT
from ssl_bench.checkpoints.encoder_file import load_encoder, save_encoder
from ssl_bench.commands.evaluate import run_evaluations
from ssl_bench.commands.show import neighbours
from ssl_bench.config.protocol import load_evaluator
from ssl_bench.data.datasets import Splits
from ssl_bench.evaluations.dense import feature_map
from ssl_bench.evaluations.frozen.attention_jaccard import _Attention
from ssl_bench.evaluations.frozen_encoder import FrozenEncoder
from ssl_bench.evaluations.trained.detector import detector
from ssl_bench.evaluations.trained.finetune import FineTune
from ssl_bench.evaluations.trained.finetuning import RandAugment
from ssl_bench.evaluations.trained.probe import Probe
from ssl_bench.evaluations.trained.probing import Probing, parts_of
from ssl_bench.evaluations.trained.segmentation_finetune import SegmentationFineTune
from ssl_bench.methods.eva import EVA
from ssl_bench.methods.mae import MAE
from ssl_bench.methods.mpp import MPP
from ssl_bench.teachers.teacher import make_teacher
from ssl_bench.views.make import make_views
from ssl_bench.views.view import IMAGENET_MEAN, IMAGENET_STD

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # BEiT's
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def backbone(statistics: Any = HALF, seed: int = 0) -> ViT:
    torch.manual_seed(seed)
    made = ViT(NANO).eval()
    if statistics:
        made.mean, made.std = statistics
    return made


def normalised(images: Tensor, statistics: Any) -> Tensor:
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in statistics)
    return (images.float() / 255 - mean) / std


@pytest.mark.parametrize("statistics", [HALF, CLIP, (IMAGENET_MEAN, IMAGENET_STD)])
def test_features_are_those_of_images_normalised_by_hand(statistics: Any, tmp_path: Path) -> None:
    network, images = backbone(statistics), blobs(12, "train", 0)
    assert images.decoded is not None
    with torch.no_grad():
        expected = network.features(normalised(images.decoded, statistics), ["mean"])["mean"]
    torch.testing.assert_close(FrozenEncoder(network).features(images, ["mean"])["mean"], expected)
    cached = FrozenEncoder(network, cache=tmp_path)
    torch.testing.assert_close(cached.features(images, ["mean"])["mean"], expected)


def test_cached_features_of_other_statistics_are_not_taken(tmp_path: Path) -> None:
    images = blobs(12, "train", 0)
    a, b = (FrozenEncoder(backbone(s), cache=tmp_path).features(images, ["mean"])["mean"] for s in (HALF, None))
    assert not torch.allclose(a, b, atol=1e-3)
    assert len(list(tmp_path.glob("*/mean.npy"))) == 2


def test_what_trains_further_sees_the_same() -> None:
    images = blobs(12, "train", 0)
    assert images.decoded is not None
    whole = {"crop_min": 1.0, "randaugment": "", "epochs": 1, "batch_size": 4}
    classifier = FineTune(**whole)._classifier(backbone(), images, 1e-3, 0)  # type: ignore[arg-type]
    protocol = Probe(crop_scale=(1.0, 1.0), poolings=("mean",))
    probing = Probing(
        backbone(),
        parts=parts_of(("mean",), ("mean",)),
        choosing={},
        reporting={},
        grid=[],
        is_fit=torch.ones(12, dtype=torch.bool),
        training_config=protocol.training_config(12),
        view=protocol.view((16, 16)),
        by_epoch=True,
        seed=0,
    )
    for method in (classifier, probing):
        (view,) = method.drawn_views
        assert (view.mean, view.std) == HALF
        # Crops of whole square images are the images, flipped or not.
        (seen,) = make_views(images.decoded, [view], torch.Generator().manual_seed(0))
        by_hand = normalised(images.decoded, HALF)
        same = [
            min((a - b).abs().max(), (a - b.flip(2)).abs().max()) < 1e-5 for a, b in zip(seen, by_hand, strict=True)
        ]
        assert sum(same) >= 10  # a ratio of 1 is not always drawn
    augment = FineTune(crop_min=1.0)._classifier(backbone(CLIP), images, 1e-3, 0).view.augment
    assert isinstance(augment, RandAugment)
    (ops,) = [stage.ops for stage in augment.transform.transforms if hasattr(stage, "ops")]
    assert ops[0].kwargs["fillcolor"] == tuple(round(255 * value) for value in CLIP[0])


class Recorded(torch.nn.Module):
    """What a network is given stands where its map or its attention would be."""

    image_size, cell, can_train, multi_crop, name = (16, 16), 1, True, True, "recorded"

    def __init__(self, statistics: Any) -> None:
        super().__init__()
        self.mean, self.std = statistics

    def attention(self, images: Tensor) -> Tensor:
        return images

    def feature_maps(self, images: Tensor, blocks: Any) -> list[Tensor]:
        return [images]

    def features(self, images: Tensor, poolings: Any) -> None: ...

    has_map = True


@pytest.mark.parametrize("statistics", [HALF, CLIP])
@torch.no_grad()
def test_dense_evaluations_see_the_same(statistics: Any) -> None:
    network, pixels = backbone(statistics), blobs(4, "train", 0).decoded
    assert pixels is not None
    seen = normalised(pixels, statistics)

    def same(found: Tensor) -> None:
        torch.testing.assert_close(found.float(), seen, atol=1e-5, rtol=1e-5)

    same(FrozenEncoder(Recorded(statistics)).map_of(pixels, (1,)))
    same(_Attention(Recorded(statistics)).map_of(pixels))
    same(SegmentationFineTune()._seen(network, pixels))
    torch.testing.assert_close(_Attention(network).map_of(pixels), network.attention(seen))
    encoder = FrozenEncoder(network)
    encoder.precision = "32"
    torch.testing.assert_close(encoder.map_of(pixels).to(seen), feature_map(network, seen), atol=1e-5, rtol=1e-4)

    small: dict[str, Any] = {"channels": 8, "hidden": 8, "mask_layers": 1, "proposals": 4, "sampled": 4}
    transform: Any = detector(network, 3, frozen=True, sides=(16, 16), **small).transform
    assert (transform.image_mean, transform.image_std) == tuple(map(list, statistics))
    given, _ = transform([each.float() / 255 for each in pixels])  # what `Detection` hands over: pixels in [0, 1]
    same(given.tensors[:, :, :16, :16])


def test_a_released_file_keeps_them_from_disk_to_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    splits = Splits(blobs(60, "train", 0), blobs(30, "test", 1))
    rows = []
    for name, statistics in (("half", HALF), ("usual", (IMAGENET_MEAN, IMAGENET_STD))):
        network = backbone(statistics)
        given = {"mean": list(statistics[0]), "std": list(statistics[1])}
        save_encoder(tmp_path / f"{name}.pt", network, network.spec, "beit", {"recipe": None, "input": given})
        loaded = load_encoder(tmp_path / f"{name}.pt")
        assert (loaded.encoder.mean, loaded.encoder.std) == statistics
        (row,) = run_evaluations(loaded, {"knn": load_evaluator("knn")}, splits, tmp_path / "rows", None)
        assert row["backbone"]["input"] == given == row["identity"]["encoder"]["input"]
        images = splits.train
        assert images.decoded is not None
        with torch.no_grad():
            expected = network.features(normalised(images.decoded, statistics), ["cls"])["cls"]
        torch.testing.assert_close(FrozenEncoder(loaded.encoder).features(images, ["cls"])["cls"], expected)
        rows.append(row)
    assert rows[0]["weights"] == rows[1]["weights"] and rows[0]["id"] != rows[1]["id"]


def test_pictures_and_teachers_see_the_same() -> None:
    network, images = backbone(), blobs(8, "test", 0).decoded
    assert images is not None
    with torch.no_grad():
        features = torch.nn.functional.normalize(network.features(normalised(images, HALF), ["mean"])["mean"], dim=1)
    similarity = features @ features.T - 3 * torch.eye(8)
    found = neighbours(network, images, torch.arange(8), "mean")
    assert torch.equal(found, similarity.topk(5, dim=1).indices)
    teacher = make_teacher("it", (4, 4), network)
    assert (teacher.mean, teacher.std) == HALF


@pytest.mark.parametrize(("cls", "expected"), [(EVA, CLIP), (MPP, HALF), (MAE, (IMAGENET_MEAN, IMAGENET_STD))])
def test_a_method_gives_its_encoder_the_statistics_of_its_paper(cls: Any, expected: Any) -> None:
    method = cls(ViT(NANO, **cls.backbone_options), **({"min_block": 1} if cls is EVA else {}))
    if cls is EVA:
        method.set_teacher("teacher", backbone((IMAGENET_MEAN, IMAGENET_STD)), "a test")
    assert (method.encoder.mean, method.encoder.std) == expected
    assert (method.drawn_views[0].mean, method.drawn_views[0].std) == expected
    own = cls(backbone_of_its_own(cls), **({"min_block": 1} if cls is EVA else {}))
    assert own.encoder.mean == (0.1, 0.2, 0.3)  # a backbone that brings its own keeps it


def backbone_of_its_own(cls: Any) -> ViT:
    made = ViT(NANO, **cls.backbone_options)
    made.mean = (0.1, 0.2, 0.3)
    return made
