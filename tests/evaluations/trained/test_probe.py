"""The probe on random crops: the papers' literals, torch's own layers and optimisers, known results, its protocol."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_bench.backbones.pixels import Pixels
from ssl_bench.backbones.vit import ViT
from ssl_bench.config.protocol import load_evaluator
from ssl_bench.data.datasets import ImageSet, Splits, hold_out
from ssl_bench.data.images import pack
from ssl_bench.data.loader import Loader
from ssl_bench.evaluations.evaluator import Data, Result
from ssl_bench.evaluations.frozen_encoder import FrozenEncoder
from ssl_bench.evaluations.trained import probe, probing
from ssl_bench.evaluations.trained.probe import Probe
from ssl_bench.evaluations.trained.probing import HeadGrid, Probing, parts_of
from ssl_bench.nn.optimizers import LARS
from ssl_bench.training import resume
from ssl_bench.utils.errors import RunError, UserError
from ssl_bench.utils.seeds import step_seed
from ssl_bench.views.make import make_views
from ssl_bench.views.view import IMAGENET_MEAN, IMAGENET_STD

QUICK: dict[str, Any] = {"epochs": 3, "batch_size": 16, "base_lr": (0.3, 3.0)}


class Colours(nn.Module):
    """Pooling "mean" is the mean colour, which tells the class of a blob; "cls" the colour of one corner."""

    poolings = ("cls", "mean")
    image_size = (16, 16)
    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def features(self, images: Tensor, poolings: Sequence[str]) -> dict[str, Tensor]:
        found = {"cls": images[:, :, 0, 0], "mean": images.mean((2, 3))}
        return {pooling: found[pooling].float() for pooling in poolings}


def as_data(splits: Splits) -> Data:
    return Data(splits.train, *hold_out(splits.train, 0.25), splits.test)


@pytest.fixture
def data(tiny_data: Splits) -> Data:
    """48 training images, 12 of them dev, and 24 test images."""
    return as_data(tiny_data)


def run(
    folder: Path, data: Data, network: nn.Module | None = None, poolings: tuple[str, ...] = ("mean",), **settings: Any
) -> Result:
    encoder = FrozenEncoder(network or Colours(), folder=folder)
    return Probe(poolings=poolings, **{**QUICK, **settings}).run(encoder, data)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every `Probing` that was trained."""
    seen: list[Any] = []

    def train(method: Any, *args: Any, **options: Any) -> dict[str, Any]:
        seen.append(method)
        return original(method, *args, **options)

    original = probe.train
    monkeypatch.setattr(probe, "train", train)
    return seen


def untrained(protocol: Probe, data: Data, dim: int = 2, classes: int = 2) -> Probing:
    grid = [(lr, decay) for lr in protocol.base_lr for decay in protocol.weight_decay]
    return Probing(
        Colours(),
        parts={"mean": ("mean",)},
        choosing={"mean": protocol.head_grid(dim, classes, len(grid))},
        reporting={"mean": protocol.head_grid(dim, classes, len(grid))},
        grid=grid,
        is_fit=probe.fit_images(data),
        training_config=protocol.training_config(protocol.batch_size),
        view=protocol.view(16),
        by_epoch=protocol.schedule == "epoch",
        seed=0,
    )


def test_batch_norm_numbers() -> None:
    """Batch statistics while it learns, running ones (momentum 0.1, unbiased variance) when it predicts."""
    head_grid = HeadGrid(2, 3, 1, batch_norm=True, std=0.01, seed=0)
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 4.0]])
    a = 1.2247446418
    torch.testing.assert_close(head_grid.norm(x), torch.tensor([[-a, -a], [0, a], [a, 0]]), rtol=0, atol=1e-6)
    torch.testing.assert_close(head_grid.norm.running_mean, torch.tensor([0.3, 0.4]))
    torch.testing.assert_close(head_grid.norm.running_var, torch.tensor([1.3, 1.3]))
    torch.testing.assert_close(head_grid.heads([0]).scores(x)[:, 0], head_grid.eval()(x)[:, :, 0])


def test_lars_numbers(data: Data) -> None:
    """MAE's at its learning rate of 6.4: each head has a norm of its own, and the bias none."""
    module = untrained(Probe(base_lr=(0.1, 0.2), optimizer="lars", batch_size=16384, batch_norm=True), data)
    head_grids = [module.choosing["mean"], module.reporting["mean"]]
    for head_grid in head_grids:
        head_grid.weights[0].data = torch.tensor([[1.0, 2.0], [2.0, 0.0]])
        head_grid.biases[0].data = torch.tensor([0.5, -0.5])
    optimizer = module.configure_optimizers()
    for group in optimizer.param_groups:
        group["lr"] = module.training_config.lr * group["lr_scale"]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([6.4, 6.4, 12.8, 12.8])
    steps = [
        ([[0.985127744, 2.0049574187], [1.9900851626, -0.0049574187]], [-0.14, 0.78]),
        ([[0.9569111686, 2.0143629438], [1.9712741124, -0.0143629438]], [-1.356, 3.212]),
    ]
    for weight, bias in steps:
        for head_grid in head_grids:
            for head in range(2):
                head_grid.weights[head].grad = torch.tensor([[0.3, -0.1], [0.2, 0.1]])
                head_grid.biases[head].grad = torch.tensor([0.1, -0.2])
        optimizer.step()
        for head_grid in head_grids:
            torch.testing.assert_close(head_grid.weights[0].data, torch.tensor(weight), rtol=0, atol=1e-6)
            torch.testing.assert_close(head_grid.biases[0].data, torch.tensor(bias), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("protocol", "epochs", "expected"),
    [
        ("linear-dino", (0, 0.5, 1, 50.5, 99.5), (0.004, 0.004, 0.003999013121, 0.002, 9.868792685e-07)),
        ("linear-mae", (0, 5, 10, 50, 89, 89.5), (0, 3.2, 6.4, 3.2, 0.002467084, 0.0006168305)),
    ],
)
def test_learning_rates(
    protocol: str,
    epochs: tuple[float, ...],
    expected: tuple[float, ...],
    data: Data,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DINO's is held through an epoch, MAE's changes every step, here two an epoch."""
    evaluator: Any = load_evaluator(protocol)
    module = untrained(evaluator, data)
    optimizer = module.configure_optimizers()
    monkeypatch.setattr(Probing, "trainer", SimpleNamespace(max_steps=2 * evaluator.epochs))
    monkeypatch.setattr(Probing, "optimizers", lambda self: optimizer)
    found = []
    for epoch in epochs:
        module.on_train_batch_start({"step": int(2 * epoch), "index": torch.arange(4)}, 0)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("optimizer", "batch_norm", "batch_size"),
    [
        ("sgd", False, 16),
        ("sgd", True, 16),
        ("adamw", False, 16),
        ("lars", True, 16),
        ("sgd", False, 20),
        ("sgd", True, 20),
    ],
)
def test_each_head_equals_a_linear_layer_trained_alone(
    optimizer: str, batch_norm: bool, batch_size: int, data: Data, tmp_path: Path, trained: list[Any]
) -> None:
    """Autograd, nn.Linear, nn.BatchNorm1d and the optimiser on the same crops; fit images alone, and all images.

    Batches of 20 leave one of 8 of the 48 images at the end of an epoch.
    """
    settings = {"optimizer": optimizer, "batch_norm": batch_norm, "base_lr": (0.5, 2.0), "weight_decay": (0.0, 0.1)}
    run(tmp_path, data, **settings, batch_size=batch_size, epochs=2, schedule="step", warmup_epochs=1)
    (module,) = trained
    batches, seen = Loader(data.train, None, batch_size=batch_size, steps=6, seed=0, drop_last=False), []
    for batch in batches:
        generator = torch.Generator().manual_seed(step_seed(0, batch["step"]) + 1)
        (crops,) = make_views(batch["images"], module.views, generator)
        seen.append((crops.mean((2, 3)), batch["labels"], module.is_fit[batch["index"]]))
    start = HeadGrid(3, 3, 1, batch_norm=False, std=0.01, seed=0).weights[0].detach()
    for head_grid, spares_dev in ((module.choosing["mean"], True), (module.reporting["mean"], False)):
        for head, (base_lr, decay) in enumerate(module.grid):
            layer = nn.Linear(3, 3)
            layer.weight.data.copy_(start)
            nn.init.zeros_(layer.bias)
            norm = nn.BatchNorm1d(3, eps=1e-6, affine=False) if batch_norm else nn.Identity()
            groups = [{"params": [layer.weight], "weight_decay": decay}, {"params": [layer.bias], "weight_decay": 0.0}]
            kinds: dict[str, Any] = {
                "sgd": lambda g: torch.optim.SGD(g, lr=1.0, momentum=0.9),
                "adamw": lambda g: torch.optim.AdamW(g, lr=1.0, betas=(0.9, 0.999)),
                "lars": lambda g: LARS(g, lr=1.0, momentum=0.9),
            }
            optim = kinds[optimizer](groups)
            for step, (x, y, is_fit) in enumerate(seen):
                epoch = step / 3
                shape = epoch if epoch < 1 else 0.5 * (1 + math.cos(math.pi * (epoch - 1)))
                for group in optim.param_groups:
                    group["lr"] = base_lr * batch_size / 256 * shape
                rows = is_fit if spares_dev else slice(None)
                optim.zero_grad()
                nn.functional.cross_entropy(layer(norm(x[rows])), y[rows]).backward()
                optim.step()
            torch.testing.assert_close(head_grid.weights[head], layer.weight, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(head_grid.biases[head], layer.bias, atol=1e-5, rtol=1e-4)
            if batch_norm:
                torch.testing.assert_close(head_grid.norm.running_var, norm.running_var)


@pytest.mark.parametrize(
    ("settings", "steps", "images"),
    [
        ({"batch_size": 20}, 3 * 3, 3 * 48),
        ({"batch_size": 20, "drop_last": True}, 3 * 2, 3 * 40),
        ({"batch_size": 20, "batch_norm": True}, 3 * 3, 3 * 48),
        ({"batch_size": 47}, 3 * 2, 3 * 48),
        ({"batch_size": 47, "batch_norm": True}, 3 * 1, 3 * 47),
    ],
)
def test_the_last_batch(
    settings: dict[str, Any], steps: int, images: int, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Smaller and kept, or left out: where the protocol says so, and one image that would be normalised over itself."""
    sizes: list[int] = []
    monkeypatch.setattr(
        Probing, "training_step", lambda self, batch, i: (sizes.append(len(batch["index"])), step_of(self, batch, i))[1]
    )
    result = run(tmp_path, data, **settings, schedule="epoch")
    assert (len(sizes), sum(sizes)) == (steps, images)
    assert (result.cost["steps"], result.cost["images_seen"]) == (steps, images)
    assert result.chosen["steps"] == steps and result.chosen["diverged_heads"] == 0


@pytest.mark.parametrize(("rows", "batch_norm", "learns"), [(1, False, True), (1, True, False), (0, False, False)])
def test_too_few_fit_images_in_a_batch_teach_nothing(rows: int, batch_norm: bool, learns: bool, data: Data) -> None:
    """Heads that spare dev see only the fit images of a batch; the others learn from all of it."""
    module = untrained(Probe(batch_norm=batch_norm), data, dim=3)
    module.labels, module.fit_rows = torch.tensor([0, 1, 1]), torch.arange(3) < rows
    module.loss([torch.rand(3, 3, 16, 16)])["loss"].backward()
    assert (module.choosing["mean"].weights[0].grad is not None) == learns
    assert module.reporting["mean"].weights[0].grad.abs().sum() > 0


def test_a_head_in_a_sweep_is_the_head_alone(data: Data, tmp_path: Path, trained: list[Any]) -> None:
    run(tmp_path / "a", data, poolings=("cls", "mean"), base_lr=(0.1, 0.5, 1e30))
    run(tmp_path / "b", data, base_lr=(0.5,))
    sweep, alone = (module.reporting["mean"] for module in trained)
    torch.testing.assert_close(sweep.weights[1], alone.weights[0])
    torch.testing.assert_close(sweep.biases[1], alone.biases[0])
    assert not torch.equal(sweep.weights[0], sweep.weights[1])


def test_heads_that_choose_never_see_a_dev_image(data: Data, tmp_path: Path, trained: list[Any]) -> None:
    """Other pixels and labels in dev leave them as they are, batch norm included; those that report change."""
    run(tmp_path / "a", data, batch_norm=True)
    dev = data.dev.origin[1]  # type: ignore[index]
    labels, images = data.train.labels.clone(), data.train.decoded.clone()  # type: ignore[union-attr]
    labels[dev] = (labels[dev] + 1) % 3
    images[dev] = 255 - images[dev]
    train = replace(data.train, labels=labels, images=images)
    fit = train.subset(data.fit.origin[1], "train")  # type: ignore[index]
    changed = Data(train, fit, train.subset(dev, "dev"), data.test)
    run(tmp_path / "b", changed, batch_norm=True)
    before, after = trained
    for part, unmoved in (("choosing", True), ("reporting", False)):
        a, b = (getattr(module, part).state_dict() for module in (before, after))
        assert {torch.equal(a[key], b[key]) for key in a if "num_batches" not in key} == {unmoved}


def test_separable_classes_are_all_right_and_random_labels_are_chance(data: Data, tmp_path: Path) -> None:
    result = run(tmp_path / "a", data, epochs=20)
    assert result.metrics["top1"].value == result.metrics["top5"].value == 100.0
    assert result.correct.all() and result.correct.dtype == bool
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (720,), generator=generator)
    noise = torch.randint(256, (720, 3, 16, 16), generator=generator, dtype=torch.uint8)
    train, test = (
        replace(images, labels=labels[rows], images=noise[rows], fingerprint=f"{rows.stop:064x}")
        for images, rows in ((data.train, slice(120)), (data.test, slice(120, 720)))
    )
    result = run(tmp_path / "b", as_data(Splits(train, test)))
    assert abs(result.metrics["top1"].value - 100 / 3) < 4 * 100 * math.sqrt(2 / 9 / 600)


def test_the_winner_is_in_the_row_and_its_twin_meets_the_test_images(
    data: Data, tmp_path: Path, trained: list[Any]
) -> None:
    result = run(tmp_path, data, poolings=("cls", "mean"), weight_decay=(0.0, 1e-4))
    chosen: Any = result.chosen
    assert result.pooling == chosen["pooling"] == "mean"
    assert chosen["heads"] == 8 and chosen["diverged_heads"] == 0 and chosen["steps"] == 3 * (48 // 16)
    assert chosen["lr"] == pytest.approx(chosen["base_lr"] * 16 / 256) and chosen["lr_at_edge"] is True
    assert chosen["dev_top1_by_pooling"]["mean"] == chosen["dev_top1"] > chosen["dev_top1_by_pooling"]["cls"]
    json.dumps([chosen, result.cost])
    (module,) = trained
    head = module.grid.index((chosen["base_lr"], chosen["weight_decay"]))
    weight, bias = (part[head].detach() for part in (module.reporting["mean"].weights, module.reporting["mean"].biases))
    scores = FrozenEncoder(Colours()).features(data.test, ["mean"])["mean"] @ weight.T + bias
    np.testing.assert_array_equal(result.correct, (scores.argmax(1) == data.test.labels).numpy())


@pytest.mark.parametrize(
    ("wrong", "dev_is_right", "test_is_right"), [("reporting", True, False), ("choosing", False, True)]
)
def test_one_copy_meets_dev_and_the_other_test(
    wrong: str, dev_is_right: bool, test_is_right: bool, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the heads of one copy turned round after the training."""

    def train_then_turn(method: Any, *args: Any, **options: Any) -> dict[str, Any]:
        cost = train(method, *args, **options)
        for parameter in getattr(method, wrong).parameters():
            parameter.data.neg_()
        return cost

    train = probe.train
    monkeypatch.setattr(probe, "train", train_then_turn)
    result = run(tmp_path, data, base_lr=(3.0,), epochs=6)
    assert (result.chosen["dev_top1"] > 60) == dev_is_right  # type: ignore[operator]
    assert (result.metrics["top1"].value > 60) == test_is_right


def test_features_are_those_of_dev_and_test_alone(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine of ten training images need none: of all layers on ImageNet they would not fit a disk."""
    seen: list[int] = []

    def extract(self: FrozenEncoder, images: ImageSet, poolings: list[str]) -> dict[str, Tensor]:
        seen.append(len(images))
        return original(self, images, poolings)

    original = FrozenEncoder._extract
    monkeypatch.setattr(FrozenEncoder, "_extract", extract)
    run(tmp_path, data)
    assert seen == [12, 24]


def test_test_images_do_not_choose(data: Data, tmp_path: Path) -> None:
    before = run(tmp_path / "a", data, poolings=("cls", "mean"))
    other = replace(data.test, labels=(data.test.labels + 1) % 3, fingerprint="f" * 64)
    after = run(tmp_path / "b", replace(data, test=other), poolings=("cls", "mean"))
    assert after.chosen == before.chosen
    assert after.metrics["top1"].value < before.metrics["top1"].value


def test_twice_the_same_and_the_encoder_untouched(data: Data, tmp_path: Path, trained: list[Any]) -> None:
    """Also with drop path, which must be off, and under another state of the global generator."""
    torch.manual_seed(0)
    network = ViT("vit_nano_patch4_16", drop_path=0.9)
    weights = copy.deepcopy(network.state_dict())
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(run(tmp_path / str(seed), data, network, ("cls", "last4+mean", "layers"), batch_norm=True))
    first, second = results
    assert first.chosen == second.chosen and first.metrics == second.metrics
    np.testing.assert_array_equal(first.correct, second.correct)
    assert set(first.chosen["dev_top1_by_pooling"]) == {"cls", "last4+mean", "layer=1", "layer=2"}  # type: ignore[call-overload]
    assert all(torch.equal(weights[key], value) for key, value in network.state_dict().items())
    assert not network.training and all(p.requires_grad or k == "pos_embed" for k, p in network.named_parameters())
    assert trained[0].train().training and not trained[0].backbone.training
    cost = first.cost
    assert cost["flops"] > 0 and cost["steps"] == 9 and cost["patches_encoded"] == 0
    assert cost["patches_encoded_without_gradient"] == 16 * cost["images_seen"] == 16 * 16 * 9


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_killed_probe_resumes_bit_for_bit(
    optimizer: str, data: Data, tmp_path: Path, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def save_then_die(self: resume.Resume, trainer: Any, *_: object) -> None:
        if trainer.global_step == 5:
            self.save(trainer)
        if trainer.global_step == 7:
            raise Killed

    whole = run(tmp_path / "whole", data, optimizer=optimizer, batch_norm=True)
    with monkeypatch.context() as patch:
        patch.setattr(resume.Resume, "on_train_batch_end", save_then_die)
        with pytest.raises(Killed):
            run(tmp_path / "killed", data, optimizer=optimizer, batch_norm=True)
    steps: list[int] = []
    monkeypatch.setattr(
        Probing, "training_step", lambda self, batch, i: (steps.append(batch["step"]), step_of(self, batch, i))[1]
    )
    resumed = run(tmp_path / "killed", data, optimizer=optimizer, batch_norm=True)
    assert steps == list(range(5, 9))
    first, _, last = (module.state_dict() for module in trained)
    assert all(torch.equal(first[key], last[key]) for key in first)
    assert resumed.chosen == whole.chosen and resumed.metrics == whole.metrics


step_of = Probing.training_step


def test_large_steps_pass_the_encoder_in_pieces(
    data: Data, tmp_path: Path, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "a", data)
    monkeypatch.setattr(probing, "FORWARD", 7)
    run(tmp_path / "b", data)
    a, b = (module.reporting["mean"].weights[0] for module in trained)
    torch.testing.assert_close(a, b)


def test_images_of_several_sizes_and_a_batch_larger_than_the_data(
    data: Data, tmp_path: Path, trained: list[Any]
) -> None:
    """Crops cut by the loader's workers; the whole data set is one batch, at the learning rate of its size."""

    def ragged(images: ImageSet) -> ImageSet:
        pixels = [image if i % 2 else image[:, :14] for i, image in enumerate(images.images)]
        return replace(images, images=pack(pixels))

    mixed = as_data(Splits(ragged(data.train), ragged(data.test)))
    result = run(tmp_path, mixed, epochs=4, batch_size=1000)
    assert result.chosen["batch_size"] == 48 and result.chosen["steps"] == 4
    assert result.chosen["lr"] == pytest.approx(result.chosen["base_lr"] * 48 / 256)  # type: ignore[operator]
    assert result.metrics["top1"].value > 60
    (module,) = trained
    assert torch.equal(module.is_fit.nonzero()[:, 0], data.fit.origin[1])  # type: ignore[index]


def test_raw_pixels_are_probed_too(data: Data, tmp_path: Path) -> None:
    result = run(tmp_path, data, Pixels("pixels_16"), ("last4",), epochs=2, base_lr=(0.01,))
    assert result.pooling == "pixels" and result.cost["patches_encoded_without_gradient"] == 0


def test_diverged_heads_are_counted_and_never_win(data: Data, tmp_path: Path) -> None:
    result = run(tmp_path / "a", data, base_lr=(0.3, 1e38), weight_decay=(1.0,))
    assert result.chosen["base_lr"] == 0.3 and result.chosen["diverged_heads"] == 1
    with pytest.raises(RunError, match=r"diverged|smaller base_lr"):
        run(tmp_path / "b", data, base_lr=(1e38,), weight_decay=(1.0,))


def test_joined_poolings() -> None:
    """DINOv2's cls of the last blocks, oldest first, then the mean patch of the last one."""
    network = ViT("vit_nano_patch4_16").eval()
    images = torch.randn(2, 3, 16, 16)
    parts = parts_of(("last4+mean",), network.poolings)
    (joined,) = probing.join(network.features(images, probing.needed(parts)), parts).values()
    found = network.features(images, ["cls", "last4", "mean"])
    assert joined.shape == (2, 3 * 24)
    assert torch.equal(joined[:, 24:48], found["cls"]) and torch.equal(joined[:, 48:], found["mean"])


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("linear-dino", 1),
        ("linear-mocov3", 1),
        ("linear-mae", 1),
        ("linear-beit", 12),
        ("linear-ibot", 45),
        ("linear-moby", 1),
        ("linear-dinov2", 52),
    ],
)
def test_protocols(name: str, heads: int) -> None:
    evaluator = load_evaluator(name)
    assert isinstance(evaluator, Probe)
    offered = ("cls", "mean", "cls+mean", "last4", *(f"layer={k}" for k in range(1, 13)))
    sweep = len(evaluator.base_lr) * len(evaluator.weight_decay)
    assert sweep * len(parts_of(evaluator.poolings, offered)) == heads
    assert evaluator.batch_norm == (evaluator.optimizer == "lars") == (name == "linear-mae")
    assert evaluator.drop_last == (name in ("linear-mae", "linear-dinov2"))
    lr = {
        "linear-dino": 0.004,
        "linear-mocov3": 12,
        "linear-mae": 6.4,
        "linear-beit": 0.004,
        "linear-ibot": 36,
        "linear-moby": 1.0,
    }
    assert max(evaluator.base_lr) * evaluator.batch_size / 256 == pytest.approx(lr.get(name, 0.4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_lr": ()}, "base_lr must be > 0"),
        ({"weight_decay": (-1.0,)}, "weight_decay >= 0"),
        ({"optimizer": "adam"}, "unknown probe optimizer 'adam': did you mean 'adamw'"),
        ({"schedule": "steps"}, "unknown probe schedule 'steps': did you mean 'step'"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 1}, "batch_size 2"),
        ({"warmup_epochs": 200}, "warmup_epochs 200"),
        ({"momentum": 1.0}, "momentum 1.0"),
        ({"interpolation": "nearest"}, "unknown view interpolation"),
        ({"crop_scale": (0.5, 2.0)}, "scale"),
        ({"crop_scale": (0.5,)}, "scale"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Probe(**settings)
    assert "\n" not in str(error.value)


def test_wrong_keys_and_poolings_are_one_line(data: Data, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("evaluation: probe\nbase_lrs: [1]\n")
    with pytest.raises(UserError, match="unknown key 'base_lrs': did you mean 'base_lr'"):
        load_evaluator(str(path))
    with pytest.raises(UserError, match="no pooling in clss: choose from cls, mean"):
        run(tmp_path, data, poolings=("clss",))
