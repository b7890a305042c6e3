"""Fine-tuning against the protocol card, timm, hand-computed targets, known predictions, and its own protocol."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.nn import functional as F

from ssl_bench.backbones.pixels import Pixels
from ssl_bench.backbones.vit import SIZES, ViT
from ssl_bench.config.protocol import load_evaluator
from ssl_bench.data.datasets import ImageSet, hold_out
from ssl_bench.data.images import pack
from ssl_bench.data.loader import Loader
from ssl_bench.evaluations.evaluator import Data, Result
from ssl_bench.evaluations.frozen_encoder import FrozenEncoder
from ssl_bench.evaluations.trained import finetune
from ssl_bench.evaluations.trained.finetune import FineTune
from ssl_bench.evaluations.trained.finetuning import Classifier, RandAugment, mixing
from ssl_bench.evaluations.trained.network import Network
from ssl_bench.training import resume
from ssl_bench.utils.errors import RunError, UserError
from ssl_bench.utils.shipped import shipped
from ssl_bench.views.execution import seeded
from ssl_bench.views.make import make_views, view_images
from ssl_bench.views.view import View

PLAIN: dict[str, Any] = {"mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0, "randaugment": "", "erasing": 0.0}
QUICK: dict[str, Any] = {**PLAIN, "epochs": 2, "batch_size": 16, "base_lr": 0.02, "drop_path": 0.1, "crop_min": 0.5}
POLICY = "rand-m9-mstd0.5-inc1"


def blobs(n: int, seed: int, shuffled: bool = False) -> ImageSet:
    """Images of three classes that differ in the colour of a square, or not at all."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = torch.randint(0, 60, (n, 3, 16, 16), generator=generator, dtype=torch.uint8)
    images[torch.arange(n), labels, 2:14, 2:14] = 220
    if shuffled:
        labels = labels[torch.randperm(n, generator=generator)]
    return ImageSet("blobs", "train", labels, ("red", "green", "blue"), f"{2 * (seed + n) + shuffled:064x}", images)


def problem(n_train: int = 60, n_test: int = 30, shuffled: bool = False) -> Data:
    train = blobs(n_train, 0, shuffled)
    return Data(train, *hold_out(train, 0.2), blobs(n_test, 1, shuffled))


def frozen(backbone: ViT, folder: Path) -> FrozenEncoder:
    return FrozenEncoder(copy.deepcopy(backbone), folder=folder)


def deep(depth: int) -> ViT:
    SIZES["vit_deep"] = (8, depth, 2)
    try:
        return ViT("vit_deep_patch8_16")
    finally:
        del SIZES["vit_deep"]


def method(backbone: ViT, **settings: Any) -> Classifier:
    """What `FineTune` would train."""
    return FineTune(**{**QUICK, **settings})._classifier(backbone, blobs(32, 0), 0.1, 0)


def same(a: Result, b: Result) -> bool:
    return a.metrics == b.metrics and a.chosen == b.chosen and np.array_equal(a.correct, b.correct)


# Against the card --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "decay", "scales"),
    [
        (12, 0.65, {0: 0.003697205891, 1: 0.005688009063, 12: 0.65, 13: 1.0}),
        (12, 0.75, {0: 0.02375726402, 1: 0.03167635202}),
        (24, 0.75, {0: 0.0007525434582, 1: 0.001003391278}),
    ],
)
def test_layer_scales_of_the_card(depth: int, decay: float, scales: dict[int, float]) -> None:
    made = method(deep(depth), layer_decay=decay)
    groups = made.param_groups()
    found = {id(p): g for g in groups for p in g["params"]}
    names = dict(made.network.named_parameters())
    assert len(found) == len(names)
    for name, parameter in names.items():
        name = name.removeprefix("backbone.")
        layer = depth + 1
        if name.split(".")[0] in ("cls_token", "pos_embed", "patch_embed"):
            layer = 0
        elif name.startswith("blocks."):
            layer = int(name.split(".")[1]) + 1
        group = found[id(parameter)]
        assert group["lr_scale"] == pytest.approx(decay ** (depth + 1 - layer)), name
        assert group["lr_scale"] == pytest.approx(scales.get(layer, group["lr_scale"]), rel=1e-9)
        plain = parameter.ndim == 1 or name in ("cls_token", "pos_embed")
        assert group["weight_decay"] == (0.0 if plain else 0.05), name


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_final_norm_and_head_learn_at_the_full_rate(pooling: str, nano: ViT) -> None:
    made = method(nano, pooling=pooling, layer_decay=0.5)
    (last,) = [g for g in made.param_groups() if g["lr_scale"] == 1.0 and g["weight_decay"] == 0.0]
    norm: Any = made.network.norm if pooling == "mean" else made.network.backbone.norm
    head: Any = made.network.head
    assert {id(p) for p in last["params"]} == {id(norm.weight), id(norm.bias), id(head.bias)}


def test_rates_follow_the_card_step_by_step(nano: ViT, tmp_path: Path) -> None:
    """L2: blr 5e-4 at batch 1024, 5 warm-up epochs of 100, min 1e-6, each step."""
    config = FineTune()._training_config(5e-4, 1_281_167)
    assert config.lr == pytest.approx(2e-3)
    assert (config.batch_size, config.epochs, config.warmup_epochs, config.min_lr) == (1024, 100, 5, 1e-6)
    evaluator = FineTune(**{**QUICK, "base_lr": 0.016, "warmup_epochs": 1, "min_lr": 1e-4, "layer_decay": 0.5})
    evaluator.run(frozen(nano, tmp_path), problem(32, 3))
    (log,) = tmp_path.glob("*/metrics.csv")
    rates = pd.read_csv(log)["lr"].tolist()
    expected = [0.0, 0.5e-3, 1e-3, 1e-4 + 0.9e-3 / 2]  # two steps an epoch
    assert rates == pytest.approx(expected)


def test_every_known_protocol_value_of_mae() -> None:
    """The defaults are MAE's for ViT-B, and so is the file."""
    evaluator = load_evaluator("finetune-mae")
    assert evaluator.settings() == FineTune().settings()


# The classifier ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_classifier_equals_timm(pooling: str, nano: ViT) -> None:
    made = Network(nano, 3, pooling, None, 0.0, 0.02).eval()
    twin = timm.models.vision_transformer.VisionTransformer(
        img_size=16,
        patch_size=4,
        embed_dim=24,
        depth=2,
        num_heads=2,
        num_classes=3,
        global_pool={"mean": "avg", "cls": "token"}[pooling],
    ).eval()
    norm = {f"fc_norm.{name}": value for name, value in made.norm.state_dict().items()}
    head = {f"head.{name}": value for name, value in made.head.state_dict().items()}
    twin.load_state_dict({**made.backbone.state_dict(), **norm, **head}, strict=True)
    x = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(made(x), twin(x))


def test_drop_path_rises_linearly_and_drops_in_training_only() -> None:
    made = method(deep(4), drop_path=0.3)
    rates = [block.drop_path1.drop_prob for block in made.network.backbone.blocks]  # type: ignore[union-attr]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    x = torch.randn(64, 3, 16, 16)
    with torch.no_grad():
        made.network.head.weight.normal_()
        once, twice = (made.network(x) for _ in range(2))
        assert not torch.equal(once, twice)
        made.network.eval()
        once, twice = (made.network(x) for _ in range(2))
        assert torch.equal(once, twice)


def test_frozen_blocks_are_never_dropped() -> None:
    """DINO, iBOT and BEiT pre-train with drop path, and their encoder files say so."""
    SIZES["vit_deep"] = (8, 4, 2)
    try:
        pretrained = ViT("vit_deep_patch8_16", drop_path=0.6)
    finally:
        del SIZES["vit_deep"]
    made = method(pretrained, drop_path=0.3, blocks=2).train()
    rates = [block.drop_path1.drop_prob for block in made.network.backbone.blocks]  # type: ignore[union-attr]
    assert rates == pytest.approx([0.0, 0.0, 0.2, 0.3])
    assert rates == [block.drop_path2.drop_prob for block in made.network.backbone.blocks]  # type: ignore[union-attr]


def test_partial_fine_tuning_moves_the_last_blocks_only(nano: ViT, tmp_path: Path) -> None:
    for blocks, moving in [
        (0, ("head", "norm")),
        (1, ("backbone.blocks.1.", "head", "norm")),
        (2, ("backbone.blocks.", "head", "norm")),
        (None, ("",)),
    ]:
        evaluator = FineTune(**{**QUICK, "blocks": blocks, "drop_path": 0.0, "weight_decay": 0.5})
        encoder = frozen(nano, tmp_path / str(blocks))
        result = evaluator.run(encoder, problem(32, 6))
        (done,) = encoder.folder.glob("*/done.pt")
        after = torch.load(done, weights_only=True)["weights"]
        before = nano.state_dict()
        fresh = evaluator._classifier(copy.deepcopy(nano), problem(32, 6).train, 0.02, 0).network.state_dict()
        for name, value in after.items():
            assert torch.equal(value, fresh[name]) != name.startswith(moving), (blocks, name)
            if not name.startswith(moving):
                assert torch.equal(value, before[name.removeprefix("backbone.")])
        trained = sum(value.numel() for name, value in after.items() if name.startswith(moving))
        assert result.chosen["trained_parameters"] == trained
    with pytest.raises(UserError, match="blocks is 3; vit_nano_patch4_16 has 2"):
        FineTune(**{**QUICK, "blocks": 3}).run(frozen(nano, tmp_path), problem())


def test_fixed_positions_are_trained_too(nano: ViT) -> None:
    assert nano.pos_embed is not None and not nano.pos_embed.requires_grad
    assert all(p.requires_grad for p in method(nano).network.parameters())


# Targets and augmentation ------------------------------------------------------------------------------------------

OFF = (0.0, 0.0, 1.0, 0.5, 0.0, 0.0, "pixel")  # mixup, cutmix, mixup_p, switch_p, smoothing, erasing, erasing_mode


def test_smoothed_targets_give_the_smoothed_cross_entropy() -> None:
    x, y = torch.randn(6, 5), torch.randint(5, (6,))
    _, targets = mixing(5, *OFF[:4], 0.1, *OFF[5:])(torch.zeros(6, 3, 4, 4), y, 0)
    torch.testing.assert_close(F.cross_entropy(x, targets), F.cross_entropy(x, y, label_smoothing=0.1))


def test_mixup_by_hand() -> None:
    """Crop i is mixed with crop B - 1 - i by one share of the batch; smoothing 0.2 on two classes is 0.9 and 0.1."""
    images = torch.stack([torch.full((3, 4, 4), float(i)) for i in range(4)])
    mixed, targets = mixing(2, 0.8, *OFF[1:4], 0.2, *OFF[5:])(images.clone(), torch.tensor([0, 0, 1, 1]), 7)
    share = 1 - float(mixed[0, 0, 0, 0]) / 3
    assert 0 < share < 1
    torch.testing.assert_close(mixed, images * share + images.flip(0) * (1 - share))
    on = 0.9 * share + 0.1 * (1 - share)
    torch.testing.assert_close(targets, torch.tensor([[on, 1 - on]] * 2 + [[1 - on, on]] * 2))


def test_cutmix_targets_are_the_shares_of_the_pixels() -> None:
    images = torch.stack([torch.full((3, 8, 8), float(i)) for i in range(4)])
    cut = 0
    for seed in range(20):
        mixed, targets = mixing(4, 0.0, 1.0, *OFF[2:])(images.clone(), torch.arange(4), seed)
        for i in range(4):
            shares = [float((mixed[i] == k).float().mean()) for k in range(4)]
            torch.testing.assert_close(targets[i], torch.tensor(shares))
        cut += int(0 < float(targets[0, 0]) < 1)
    assert cut > 10


def test_mixing_is_a_function_of_the_seed_and_leaves_the_global_generators() -> None:
    mix = mixing(3, 0.8, 1.0, 1.0, 0.5, 0.1, 0.5, "pixel")
    x, y = torch.randn(8, 3, 16, 16), torch.randint(3, (8,))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), float(torch.rand(()))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    one = mix(x.clone(), y, 5)
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected
    two, other = mix(x.clone(), y, 5), mix(x.clone(), y, 6)
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    assert not torch.equal(one[0], other[0])


def test_erasing_leaves_the_share_it_should() -> None:
    images, labels = torch.zeros(400, 3, 16, 16), torch.zeros(400).long()
    erased = mixing(2, *OFF[:5], 0.25, "pixel")(images, labels, 0)[0].ne(0).flatten(1)
    assert float(erased.any(1).float().mean()) == pytest.approx(0.25, abs=0.08)
    shares = erased.float().mean(1)[erased.any(1)]
    assert float(shares.min()) > 0.01 and float(shares.max()) < 0.4  # timm: 2 % to a third of the area


def test_randaugment_at_every_magnitude() -> None:
    """At 10 timm's posterize keeps no bit."""
    image = torch.randint(1, 256, (3, 32, 32), dtype=torch.uint8)
    for magnitude in (0, 5, 10):
        augment = RandAugment(f"rand-m{magnitude}-n1-inc1", (32, 32), "bicubic")
        with seeded(0):
            dark = [int(augment(image).max()) == 0 for _ in range(300)]
        assert any(dark) == (magnitude == 10)


def test_randaugment_is_the_one_of_create_transform() -> None:
    image = torch.randint(256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = create_transform(32, is_training=True, auto_augment=POLICY, interpolation="bicubic", color_jitter=0.4)
    (policy,) = [t for t in whole.transforms if type(t).__name__ == "RandAugment"]
    ours, changed = RandAugment(POLICY, (32, 32), "bicubic"), 0
    for seed in range(20):
        with seeded(seed):
            mine = ours(image)
        with seeded(seed):
            theirs = np.asarray(policy(Image.fromarray(image.permute(1, 2, 0).numpy())))
        assert np.array_equal(mine.numpy(), theirs.transpose(2, 0, 1))
        changed += int(not torch.equal(mine, image))
    assert changed > 10


def test_views_with_an_augment_are_cut_in_workers_reproducibly() -> None:
    data = blobs(24, 0)
    plain = [View(16, scale=(0.3, 1.0), count=2)]
    views = [View(16, scale=(0.3, 1.0), count=2, augment=RandAugment(POLICY, (16, 16), "bicubic"))]

    def batches(workers: int, first: int = 0, views: list[View] = views) -> list[dict[str, Any]]:
        loader = Loader(data, views, batch_size=8, steps=4, seed=3, workers=workers)
        loader.load_state_dict({"step": first})
        return list(loader)

    alone, resumed = batches(0), batches(2, first=2)
    for one, two in zip(alone[2:], resumed, strict=True):
        assert torch.equal(one["labels"], two["labels"])
        assert all(torch.equal(a, b) for a, b in zip(one["views"], two["views"], strict=True))
    assert not torch.equal(alone[0]["views"][0], alone[0]["views"][1])
    assert "images" in batches(0, views=plain)[0]
    # The crop itself is the one without augmentation.
    image = data.images[0]
    identity = [View(16, scale=(0.3, 1.0), count=2, augment=lambda x: x)]
    cut, same = (view_images([image], views, [torch.Generator().manual_seed(5)])[0] for views in (identity, plain))
    for a, b in zip(cut, same, strict=True):
        assert torch.equal(a, b)
    generator = torch.Generator()
    batched, by_hand = (
        make_views(data.decoded[:8], v, generator.manual_seed(1))  # type: ignore[index]
        for v in (plain, identity)
    )
    assert max(float((a - b).abs().max()) for a, b in zip(batched, by_hand, strict=True)) < 0.1


def test_repeated_augmentation_is_a_batch_of_several_crops(nano: ViT) -> None:
    evaluator = FineTune(**{**QUICK, "epochs": 300, "warmup_epochs": 6, "batch_size": 48, "repeated_augmentation": 3})
    config = evaluator._training_config(0.1, 1000)
    assert (config.batch_size, config.epochs, config.warmup_epochs) == (16, 100, 2)
    assert config.lr == pytest.approx(0.1 * 48 / 256)
    assert evaluator._training_config(0.1, 10).lr == pytest.approx(0.1 * 30 / 256)
    made = method(nano, batch_size=48, repeated_augmentation=3)
    assert made.views[0].count == 3
    made.labels = torch.tensor([0, 1])
    made.network.head.weight.data.normal_()
    made.network.eval()
    crops = [torch.randn(2, 3, 16, 16) for _ in range(3)]
    whole = made.loss(crops)["loss"]
    each = torch.stack([made.loss([crop])["loss"] for crop in crops])
    torch.testing.assert_close(whole, each.mean())


@pytest.mark.parametrize(("name", "epochs"), [("finetune-deit", 300), ("finetune-mocov3", 150)])
def test_deit_changes_the_rate_once_an_epoch_of_its_own_count(name: str, epochs: int, nano: ViT) -> None:
    """timm's scheduler as DeiT's main.py steps it: 1e-6 twice, then a line to the cosine of epoch 5 at epoch 6."""
    evaluator = load_evaluator(name)
    assert isinstance(evaluator, FineTune)
    made = evaluator._classifier(nano, blobs(342, 0), evaluator.base_lr[0], 0)
    peak, per_epoch = 2.5e-4 * 1026 / 256, 10  # steps; 30 a pass over the images, three passes of theirs in one of ours
    steps = round(made.training_config.epochs * 30)
    assert steps == epochs * per_epoch
    rates = [made.learning_rate(step, steps) for step in range(steps)]
    assert all(len(set(rates[e * per_epoch : (e + 1) * per_epoch])) == 1 for e in range(epochs))
    assert rates[::per_epoch][:3] == pytest.approx([1e-6, 1e-6, 1e-6 + (peak - 1e-6) / 5])
    at_five = 1e-5 + (peak - 1e-5) * 0.5 * (1 + math.cos(math.pi * 5 / epochs))
    assert rates[6 * per_epoch] == pytest.approx(at_five)


@pytest.mark.parametrize("name", ["beit", "beit-large", "ibot", "ibot-small", "ibot-large", "eva"])
def test_warmup_of_beit_and_its_heirs_ends_at_the_peak(name: str) -> None:
    evaluator = load_evaluator(f"finetune-{name}")
    assert isinstance(evaluator, FineTune)
    config = evaluator._training_config(evaluator.base_lr[0], 1_281_167)
    steps = int(config.epochs) * 1251
    rising = int(config.warmup_epochs) * 1251
    assert config.lr_at(rising - 1, steps) == config.lr_at(rising, steps) == config.lr > config.lr_at(rising + 1, steps)


@pytest.mark.parametrize("largest", [0.0, None])
def test_no_limit_of_the_gradients(largest: float | None, nano: ViT) -> None:
    made = method(nano, clip_grad=largest)
    for p in made.parameters():
        p.grad = torch.full_like(p, 7.0)
    made.configure_gradient_clipping(torch.optim.SGD(made.parameters()))
    assert all(bool((p.grad == 7).all()) for p in made.parameters() if p.grad is not None)


# The protocol ------------------------------------------------------------------------------------------------------


def test_separable_classes_are_all_right_and_the_encoder_is_untouched(nano: ViT, tmp_path: Path) -> None:
    encoder = frozen(nano, tmp_path)
    result = FineTune(**{**QUICK, "epochs": 12}).run(encoder, problem())
    assert result.metrics["top1"].value == 100.0 and result.correct.all()
    assert result.chosen["dev_top1"] is None and result.chosen["labelled_images"] == 60
    assert result.cost["runs"] == 1 and result.cost["images_seen"] == 12 * 48 and result.cost["flops"] > 0
    assert result.cost["patches_encoded"] == 16 * result.cost["images_seen"]
    assert not encoder.encoder.training
    before = nano.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in encoder.encoder.state_dict().items())
    assert [p.requires_grad for p in encoder.encoder.parameters()] == [p.requires_grad for p in nano.parameters()]
    json.dumps([result.chosen, result.cost])


def test_random_labels_are_chance(nano: ViT, tmp_path: Path) -> None:
    result = FineTune(**QUICK).run(frozen(nano, tmp_path), problem(60, 300, shuffled=True))
    assert abs(result.metrics["top1"].value - 100 / 3) < 4 * 100 * math.sqrt(2 / 9 / 300)
    assert result.metrics["top5"].value == 100.0


HARD: dict[str, Any] = {**QUICK, "mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1, "erasing": 0.5}


def test_two_runs_are_equal_and_the_seed_counts(nano: ViT, tmp_path: Path) -> None:
    results = []
    for i, seed in enumerate((0, 0, 1)):
        torch.manual_seed(i), random.seed(i), np.random.seed(i)
        evaluator = FineTune(**{**HARD, "epochs": 1, "randaugment": POLICY, "seed": seed})
        results.append(evaluator.run(frozen(nano, tmp_path / str(i)), problem()))
    losses = [result.cost["final_loss"] for result in results]
    assert same(results[0], results[1]) and losses[0] == losses[1] != losses[2]


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def kill_after(step: int, runs: int) -> Callable[..., None]:
    """Saves at a step of the run with this number and dies two steps later."""
    begun = 0

    def end(self: resume.Resume, trainer: Any, *_: object) -> None:
        nonlocal begun
        begun += trainer.global_step == 1
        if begun == runs and trainer.global_step == step:
            self.save(trainer)
        if begun == runs and trainer.global_step == step + 2:
            raise Killed

    return end


def test_interrupted_equals_uninterrupted(nano: ViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = FineTune(**{**HARD, "base_lr": (0.02, 0.1), "ema": 0.5})
    whole = evaluator.run(frozen(nano, tmp_path / "whole"), problem())
    encoder = frozen(nano, tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(resume.Resume, "on_train_batch_end", kill_after(3, runs=2))
        with pytest.raises(Killed):
            evaluator.run(encoder, problem())
    finished = {path: path.stat().st_mtime_ns for path in encoder.folder.glob("*/done.pt")}
    assert len(finished) == 1
    trained: list[float] = []
    real = finetune.train

    def counted(made: Any, *args: Any, **others: Any) -> Any:
        trained.append(made.training_config.base_lr)
        return real(made, *args, **others)

    monkeypatch.setattr(finetune, "train", counted)
    resumed = evaluator.run(encoder, problem())
    assert same(whole, resumed) and whole.cost["final_loss"] == resumed.cost["final_loss"]
    assert whole.cost["flops"] == resumed.cost["flops"] and whole.cost["runs"] == 3
    assert trained == [0.1, whole.chosen["base_lr"]]
    assert all(path.stat().st_mtime_ns == made for path, made in finished.items())
    assert not list(encoder.folder.glob("*/last.ckpt"))
    evaluator.run(encoder, problem())
    assert len(trained) == 2


def test_weights_left_by_another_evaluation_are_not_used(nano: ViT, tmp_path: Path) -> None:
    first = FineTune(**QUICK).run(frozen(nano, tmp_path), problem())
    other = ViT("vit_nano_patch4_16")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    for evaluator, backbone, data in [
        (FineTune(**{**QUICK, "smoothing": 0.1}), nano, problem()),
        (FineTune(**QUICK), other, problem()),
        (FineTune(**QUICK), nano, problem(57)),
    ]:
        count = len(list(tmp_path.glob("*/done.pt")))
        again = evaluator.run(frozen(backbone, tmp_path), data)
        assert again.cost["final_loss"] != first.cost["final_loss"]
        assert len(list(tmp_path.glob("*/done.pt"))) == count + 1


def test_the_moving_average_is_what_is_evaluated(nano: ViT, tmp_path: Path) -> None:
    settings = {**QUICK, "epochs": 6}
    kept, losses, top1 = [], [], []
    for i, decay in enumerate((None, 0.0, 0.999999)):
        encoder = frozen(nano, tmp_path / str(i))
        result = FineTune(**{**settings, "ema": decay}).run(encoder, problem())
        (done,) = encoder.folder.glob("*/done.pt")
        kept.append(torch.load(done, weights_only=True)["weights"])
        losses.append(result.cost["final_loss"])
        top1.append(result.metrics["top1"].value)
    assert losses[0] == losses[1] == losses[2]
    assert all(torch.equal(value, kept[1][name]) for name, value in kept[0].items())
    start = FineTune(**settings)._classifier(copy.deepcopy(nano), problem().train, 0.02, 0).network.state_dict()
    for name, value in start.items():
        torch.testing.assert_close(kept[2][name], value, atol=1e-4, rtol=0)
    assert top1[0] > 90 and top1[2] < 70


def test_the_moving_average_by_hand(nano: ViT) -> None:
    made = method(nano, ema=0.9)
    head: Any = made.network.head
    start = head.weight.detach().clone()
    for change in (1.0, 2.0):
        head.weight.data.copy_(start + change)
        made.after_step()
    torch.testing.assert_close(made.encoder.head.weight, start + 0.9 * 0.1 * 1.0 + 0.1 * 2.0)
    assert made.encoder is not made.network and not any(p.requires_grad for p in made.encoder.parameters())


def test_dev_chooses_the_rate_and_test_does_not(nano: ViT, tmp_path: Path) -> None:
    data = problem()
    evaluator = FineTune(**{**QUICK, "epochs": 3, "base_lr": (1e-7, 0.02)})
    result = evaluator.run(frozen(nano, tmp_path / "a"), data)
    assert result.chosen["base_lr"] == 0.02 and result.chosen["lr_at_edge"] is True
    tried = result.chosen["dev_top1_by_base_lr"]
    assert isinstance(tried, dict) and tried["0.02"] == result.chosen["dev_top1"] > tried["1e-07"]
    # The winner is trained on all training images as if it had been the only one.
    alone = FineTune(**{**QUICK, "epochs": 3}).run(frozen(nano, tmp_path / "b"), data)
    assert np.array_equal(alone.correct, result.correct) and alone.cost["final_loss"] == result.cost["final_loss"]
    assert result.cost["runs"] == 3 and result.cost["steps"] == 3 * (3 + 3 + 3)
    data.test.labels.copy_((data.test.labels + 1) % 3)
    other = evaluator.run(frozen(nano, tmp_path / "a"), data)  # the weights are still there
    assert other.chosen == result.chosen and other.metrics["top1"].value < result.metrics["top1"].value - 20


def test_a_rate_that_diverges_never_wins(nano: ViT, tmp_path: Path) -> None:
    settings = {**QUICK, "pooling": "cls"}
    result = FineTune(**{**settings, "base_lr": (0.02, 1e30)}).run(frozen(nano, tmp_path), problem())
    assert result.chosen["base_lr"] == 0.02 and result.chosen["diverged"] == [1e30]
    with pytest.raises(RunError, match="every base_lr of"):
        FineTune(**{**settings, "base_lr": (1e29, 1e30)}).run(frozen(nano, tmp_path), problem())
    with pytest.raises(RunError, match=r"loss is nan|diverged"):
        FineTune(**{**settings, "base_lr": 1e30}).run(frozen(nano, tmp_path), problem())


def test_low_shot_averages_draws_of_labels(nano: ViT, tmp_path: Path) -> None:
    data = problem(120, 60)
    evaluator = FineTune(**{**QUICK, "fraction": 0.2, "draws": 2, "epochs": 20})
    result = evaluator.run(frozen(nano, tmp_path), data)
    assert result.chosen["labelled_images"] == 24 and result.cost["runs"] == 2
    assert 100 * result.correct.mean() == pytest.approx(result.metrics["top1"].value)
    for draw, images in enumerate(evaluator._labelled(data.train)):
        assert torch.bincount(images.labels).tolist() == [8, 8, 8]
        assert images.origin is not None and images.origin[0] is data.train
        ranks, _ = evaluator._ranks(frozen(nano, tmp_path), images, 0.02, draw, data.test)
        result.chosen[f"top1 {draw}"] = 100 * float((ranks == 0).double().mean())
    assert result.metrics["top1"].value == pytest.approx((result.chosen["top1 0"] + result.chosen["top1 1"]) / 2)  # type: ignore[operator]
    assert result.metrics["top1"].value > 60


def test_lists_name_the_labelled_images(nano: ViT, tmp_path: Path) -> None:
    class Named(Sequence[Tensor]):
        """Images that know the names of their files."""

        def __init__(self, images: Tensor, rows: np.ndarray) -> None:
            self.images, self.rows = images, rows

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, i: int) -> Tensor:  # type: ignore[override]
            return self.images[self.rows[i]]

        def key(self, i: int) -> str:
            return f"x/{self.rows[i]}.png"

        def take(self, rows: np.ndarray) -> Named:
            return Named(self.images, self.rows[rows])

    data = problem()
    train = replace(data.train, images=Named(data.train.images, np.arange(60)))  # type: ignore[arg-type]
    (tmp_path / "list.txt").write_text("\n".join(f"{i}.png" for i in range(24)))
    evaluator = FineTune(**{**QUICK, "lists": (str(tmp_path / "list.txt"),)})
    result = evaluator.run(frozen(nano, tmp_path), Data(train, *hold_out(train, 0.2), data.test))
    assert result.chosen["labelled_images"] == 24 and len(result.chosen["lists_sha256"]) == 1  # type: ignore[arg-type]
    with pytest.raises(UserError, match="without names"):
        evaluator.run(frozen(nano, tmp_path), data)


def test_images_of_several_sizes_give_a_number(nano: ViT, tmp_path: Path) -> None:
    def ragged(images: ImageSet) -> ImageSet:
        parts = [F.pad(x, (0, 3 * (i % 2), 0, 0)) for i, x in enumerate(images.images)]
        return ImageSet("ragged", "train", images.labels, images.classes, images.fingerprint, pack(parts))

    train = ragged(blobs(60, 0))
    data = Data(train, *hold_out(train, 0.2), ragged(blobs(30, 1)))
    result = FineTune(**{**QUICK, "epochs": 12}).run(frozen(nano, tmp_path), data)
    assert result.metrics["top1"].value > 90


# What users meet ---------------------------------------------------------------------------------------------------


def test_pixels_cannot_be_fine_tuned(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pixels_16 has nothing to train"):
        FineTune(**QUICK).run(FrozenEncoder(Pixels("pixels_16"), folder=tmp_path), problem())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "maen"}, "unknown fine-tuning pooling 'maen': did you mean 'mean'"),
        ({"randaugment": "rand-m9-sdt0.5"}, "'rand-m9-sdt0.5' is not a RandAugment string"),
        ({"randaugment": "rand-m9-mstd"}, "'rand-m9-mstd' is not a RandAugment string"),
        ({"randaugment": "rand-m9.5"}, "'rand-m9.5': timm cannot read it"),
        ({"randaugment": "rand-m9-tnone"}, "'rand-m9-tnone' is not a RandAugment string"),
        ({"erasing_mode": "noise"}, "unknown erasing mode 'noise'"),
        ({"interpolation": "lanczos"}, "unknown interpolation 'lanczos'"),
        ({"base_lr": ()}, "base_lr is .*; it must be above 0"),
        ({"base_lr": (0.1, -1.0)}, "base_lr is .*; it must be above 0"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0; it must lie in"),
        ({"layer_decay": 1.1}, "layer_decay is 1.1; it must lie in"),
        ({"fraction": 0.0}, "fraction is 0.0; it must lie in"),
        ({"smoothing": -0.1}, "smoothing is -0.1; it must lie in"),
        ({"ema": 1.0}, "ema is 1.0; it must be null or lie in"),
        ({"blocks": -1}, "blocks is -1; it must be null or at least 0"),
        ({"draws": 0}, "draws is 0; it must be at least 1"),
        ({"epochs": -1}, "epochs is -1"),
        ({"epochs": 0}, "epochs is 0; it must be above 0"),
        ({"betas": (0.9, 1.5)}, "betas is .*; it must lie in"),
        ({"clip_grad": -1.0}, "clip_grad is -1.0; it must be null or at least 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 32, "repeated_augmentation": 3}, "batch_size is 32; it must be a multiple of"),
        ({"batch_size": 1, "mixup": 0.8}, "batch_size is 0; it must be larger: mixup and cutmix need pairs"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FineTune(**{**QUICK, **settings})


@pytest.mark.parametrize("name", ["finetune-deit", "finetune-mocov3", "finetune-mocov3-large"])
def test_the_batch_of_deit_is_what_its_file_says(name: str) -> None:
    """342 images three times: an even number of crops, none of which mixup drops."""
    evaluator = load_evaluator(name)
    assert isinstance(evaluator, FineTune)
    config = evaluator._training_config(evaluator.base_lr[0], 1_281_167)
    assert (config.batch_size, evaluator.batch_size) == (342, 1026)
    assert config.lr == pytest.approx(5e-4 * 1026 / 512)


DENSE = ("segmentation", "detection")  # they have evaluators of their own
PROTOCOLS = [p.stem for p in shipped("evaluations").glob("*finetune*.yaml") if not p.stem.startswith(DENSE)]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_file_loads(name: str) -> None:
    evaluator = load_evaluator(name)
    assert isinstance(evaluator, FineTune)
    again = json.loads(json.dumps(evaluator.settings()))
    assert FineTune(**again).settings() == evaluator.settings()


def test_published_protocols_are_there_and_wrong_keys_are_named(tmp_path: Path) -> None:
    names = {"finetune", "finetune-mae", "finetune-beit", "finetune-deit", "finetune-eva", "lowshot-finetune"}
    assert names <= set(PROTOCOLS)
    lr = {"finetune-mae": 2e-3, "finetune-hiera": 2e-3, "finetune-simmim": 5e-3, "finetune-maskfeat": 8e-3}  # absolute
    for name, rate in lr.items():
        evaluator = load_evaluator(name)
        assert isinstance(evaluator, FineTune)
        assert evaluator.base_lr[0] * evaluator.batch_size / 256 == pytest.approx(rate)
    (tmp_path / "my.yaml").write_text("evaluation: finetune\nlayerdecay: 0.7\n")
    with pytest.raises(UserError, match="unknown key 'layerdecay': did you mean 'layer_decay'"):
        load_evaluator(str(tmp_path / "my.yaml"))
