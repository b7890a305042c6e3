"""The linear probe against autograd, scikit-learn's logistic regression, known predictions, and its own protocol."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from stubs import FixedFeatures
from torch import Tensor, nn

from ssl_bench.data.datasets import ImageSet
from ssl_bench.evaluations.evaluator import Data, Result
from ssl_bench.evaluations.frozen.linear import Linear, train_heads
from ssl_bench.evaluations.heads import standardisation
from ssl_bench.utils.errors import RunError, UserError

QUICK = {"min_steps": 200, "base_lr": (0.003, 0.03, 0.3)}


def image_set(split: str, labels: Tensor, classes: int) -> ImageSet:
    pixels = torch.zeros(len(labels), 3, 1, 1, dtype=torch.uint8)
    return ImageSet("toy", split, labels, tuple(f"c{i}" for i in range(classes)), "0" * 64, pixels)


def as_problem(
    train: dict[str, Tensor], train_labels: Tensor, test: dict[str, Tensor], test_labels: Tensor, classes: int
) -> tuple[FixedFeatures, Data]:
    whole, order = image_set("train", train_labels, classes), torch.arange(len(train_labels))
    n_dev = max(1, len(order) // 5)
    fit, dev = whole.subset(order[n_dev:], "fit"), whole.subset(order[:n_dev], "dev")
    return FixedFeatures({"train": train, "test": test}), Data(whole, fit, dev, image_set("test", test_labels, classes))


def correlated(n: int, seed: int, classes: int = 5, dim: int = 32) -> tuple[Tensor, Tensor]:
    """Overlapping clusters seen through an ill-conditioned map with an offset, as features of a network are."""
    fixed = torch.Generator().manual_seed(3)
    centres, mix = torch.randn(classes, dim, generator=fixed), torch.randn(dim, dim, generator=fixed)
    mix = mix * torch.logspace(0, -1, dim)[:, None]
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    x = 0.5 * centres[labels] + torch.randn(n, dim, generator=generator)
    return x @ mix + 5 * torch.randn(dim, generator=fixed), labels


def realistic(n_train: int = 1000, n_test: int = 1000) -> tuple[FixedFeatures, Data]:
    """Pooling "mean" carries the class, "cls" nothing."""
    (x, y), (x_test, y_test) = correlated(n_train, 1), correlated(n_test, 2)
    noise = torch.randn(n_train + n_test, 8, generator=torch.Generator().manual_seed(4))
    train, test = {"cls": noise[:n_train], "mean": x}, {"cls": noise[n_train:], "mean": x_test}
    return as_problem(train, y, test, y_test, 5)


def top1(result: Result) -> float:
    return result.metrics["top1"].value


def test_steps_equal_autograd_and_torch_sgd() -> None:
    """Each fused head follows its own nn.Linear trained by autograd, SGD with momentum, and a cosine."""
    (x, y), steps, batch = correlated(100, 1), 7, 32
    grid = [("standardised", 2.4, 0.0), ("whitened", 0.08, 0.1), ("standardised", 0.08, 0.1)]
    heads = train_heads(x, y, 5, grid, steps=steps, batch_size=batch, seed=9)
    order = torch.Generator().manual_seed(9)
    batches = [index for _ in range(3) for index in torch.randperm(100, generator=order).split(batch)[:3]][:steps]
    standard = (x.double() - x.double().mean(0)) / x.double().std(0, correction=0)
    values, vectors = torch.linalg.eigh(standard.T @ standard / 100)
    for h, (kind, base_lr, decay) in enumerate(grid):
        z, lr = standard, base_lr * 32 / 256
        if kind == "whitened":
            z = standard @ (vectors / (values + 1e-4).sqrt())
        layer = nn.Linear(z.shape[1], 5, dtype=torch.float64)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        groups = [{"params": [layer.weight], "weight_decay": decay}, {"params": [layer.bias]}]
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
        for step, index in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(z[index]), y[index]).backward()
            optimizer.step()
        torch.testing.assert_close(heads.scores(x)[:, h], layer(z).detach().float(), atol=1e-3, rtol=1e-3)


def test_within_half_a_point_of_exact_logistic_regression() -> None:
    (x, y), (x_test, y_test) = correlated(1500, 1), correlated(4000, 2)
    encoder, data = as_problem({"mean": x}, y, {"mean": x_test}, y_test, 5)
    result = Linear().run(encoder, data)
    z, z_test = ((part - x.mean(0)).double() / x.std(0) for part in (x, x_test))
    n_dev = len(data.dev)

    def model(c: float) -> LogisticRegression:
        return LogisticRegression(C=c, max_iter=5000)

    def dev_score(c: float) -> float:
        return float(model(c).fit(z[n_dev:].numpy(), y[n_dev:].numpy()).score(z[:n_dev].numpy(), y[:n_dev].numpy()))

    best = max((0.1, 1.0, 10.0, 100.0), key=dev_score)
    exact = 100 * model(best).fit(z.numpy(), y.numpy()).score(z_test.numpy(), y_test.numpy())
    assert 50 < exact < 95  # neither trivial nor hopeless
    assert top1(result) == pytest.approx(exact, abs=0.5)


def test_separable_classes_are_all_right_and_random_labels_are_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    y, y_test = torch.randint(10, (600,), generator=generator), torch.randint(10, (2000,), generator=generator)
    x, x_test = (20 * torch.eye(10, 16)[part] + torch.randn(len(part), 16, generator=generator) for part in (y, y_test))
    encoder, data = as_problem({"cls": x}, y, {"cls": x_test}, y_test, 10)
    result = Linear(**QUICK).run(encoder, data)
    assert top1(result) == 100.0
    assert result.correct.all()
    assert result.metrics["top5"].value == 100.0
    random = torch.randint(10, (600,), generator=generator)
    encoder, data = as_problem({"cls": x}, random, {"cls": x_test}, torch.randint(10, (2000,), generator=generator), 10)
    result = Linear(**QUICK).run(encoder, data)
    assert abs(top1(result) - 10) < 4 * 100 * math.sqrt(0.1 * 0.9 / 2000)
    assert abs(result.metrics["top5"].value - 50) < 4 * 100 * math.sqrt(0.5 * 0.5 / 2000)


def test_test_images_do_not_choose() -> None:
    encoder, data = realistic()
    before = Linear(**QUICK).run(encoder, data)
    assert encoder.asked.count("test") == 1
    assert encoder.asked[-1] == "test"
    data.test.labels.copy_(data.test.labels.flip(0))
    encoder.of["test"] = {name: torch.randn_like(x) for name, x in encoder.of["test"].items()}
    after = Linear(**QUICK).run(encoder, data)
    assert after.chosen == before.chosen
    assert top1(after) < top1(before) - 20
    assert before.pooling == before.chosen["pooling"] == "mean"
    json.dumps(before.chosen)


def test_dev_labels_do_choose() -> None:
    encoder, data = realistic()
    before = Linear(**QUICK).run(encoder, data)
    data.dev.labels.copy_(torch.randint(5, (len(data.dev),), generator=torch.Generator().manual_seed(0)))
    after = Linear(**QUICK).run(encoder, data)
    assert after.chosen["dev_top1"] < before.chosen["dev_top1"] - 20  # type: ignore[operator]


def test_the_winner_is_trained_again_on_all_training_images() -> None:
    encoder, data = realistic()
    result = Linear(**QUICK, batch_size=100).run(encoder, data)
    lr = result.chosen["lr"]
    assert isinstance(lr, float)
    assert lr == pytest.approx(result.chosen["base_lr"] * 100 / 256)
    x = encoder.of["train"]["mean"]
    grid = [(result.chosen["input"], result.chosen["base_lr"], 0.0)]
    head = train_heads(x, data.train.labels, 5, grid, steps=200, batch_size=100, seed=0)  # type: ignore[arg-type]
    right = head.scores(encoder.of["test"]["mean"])[:, 0].argmax(1) == data.test.labels
    np.testing.assert_array_equal(result.correct, right.numpy())
    assert result.metrics["top1"].n == 1000
    assert top1(result) == pytest.approx(100 * right.double().mean().item())


def test_selection_reports_each_pooling_and_the_edge_of_the_grid() -> None:
    encoder, data = realistic()

    def chosen(*base_lr: float) -> dict[str, object]:
        protocol = Linear(min_steps=200, base_lr=base_lr, weight_decay=(0.01,), inputs=("standardised",))
        return protocol.run(encoder, data).chosen

    found = chosen(1e-7, 0.03, 1e4)  # too small to leave the first gradient's direction; so large that decay diverges
    assert found["base_lr"] == 0.03
    assert found["lr_at_edge"] is False
    assert found["heads"] == 6
    by_pooling = found["dev_top1_by_pooling"]
    assert isinstance(by_pooling, dict)
    assert by_pooling["mean"] == found["dev_top1"] > by_pooling["cls"]
    assert chosen(1e-7, 0.03)["lr_at_edge"] is True
    assert chosen(0.03)["lr_at_edge"] is False  # no grid, no edge


def test_two_runs_are_bit_identical_and_the_seed_counts() -> None:
    (x, y), (z, _) = correlated(500, 1), correlated(300, 2)

    def logits(seed: int) -> Tensor:
        grid = [("standardised", 0.1, 0.0), ("whitened", 0.3, 0.0)]
        return train_heads(x, y, 5, grid, steps=50, batch_size=64, seed=seed).scores(z)

    torch.manual_seed(1)
    first = logits(0)
    torch.manual_seed(2)  # the global generator plays no part
    assert torch.equal(first, logits(0))
    assert not torch.equal(first, logits(1))


def test_heads_do_not_disturb_each_other() -> None:
    (x, y), (z, _) = correlated(500, 1), correlated(300, 2)

    def logits(*lrs: float) -> Tensor:
        grid = [("standardised", lr, 0.0) for lr in lrs]
        return train_heads(x, y, 5, grid, steps=50, batch_size=64, seed=0).scores(z)

    together, alone = logits(3e38, 0.1, 0.3), logits(0.1)
    assert not torch.isfinite(together[:, 0]).all()
    torch.testing.assert_close(together[:, 1], alone[:, 0], atol=1e-4, rtol=1e-4)


def test_diverged_heads_are_counted_and_never_win() -> None:
    encoder, data = realistic()
    result = Linear(min_steps=200, base_lr=(0.03,), weight_decay=(0.0, 1e4)).run(encoder, data)
    assert result.chosen["diverged_heads"] == 4
    assert result.chosen["weight_decay"] == 0.0
    with pytest.raises(RunError, match="all 4 heads diverged"):
        Linear(min_steps=200, base_lr=(0.03,), weight_decay=(1e4,)).run(encoder, data)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_scale_and_offset_of_each_dimension_do_not_matter(scale: float) -> None:
    encoder, data = realistic()
    before = Linear(**QUICK).run(encoder, data)
    each = torch.logspace(-3, 3, 32) * scale
    for split in encoder.of.values():
        split["mean"] = (split["mean"] + 20) * each
    after = Linear(**QUICK).run(encoder, data)
    assert (after.correct == before.correct).mean() > 0.99
    assert after.chosen["base_lr"] == before.chosen["base_lr"]


def test_dimensions_that_do_not_vary_are_ignored() -> None:
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 7.0
    x[:, 2] = 1000 + 1e-5 * x[:, 2]  # below float32 rounding at 1000
    mean, scale = standardisation(x)
    assert scale[1:].tolist() == [0, 0]
    torch.testing.assert_close(((x - mean) * scale)[:, 0].std(correction=0), torch.tensor(1.0))


def test_permuted_classes_permute_the_head() -> None:
    encoder, data = realistic()
    before = Linear(**QUICK).run(encoder, data)
    new = torch.tensor([3, 0, 1, 4, 2])
    for split in (data.train, data.fit, data.dev, data.test):
        split.labels.copy_(new[split.labels])
    after = Linear(**QUICK).run(encoder, data)
    assert (after.correct == before.correct).mean() > 0.99
    assert after.chosen["base_lr"] == before.chosen["base_lr"]


def test_duplicated_test_set_keeps_the_accuracy() -> None:
    encoder, data = realistic()
    before = Linear(**QUICK).run(encoder, data)
    encoder.of["test"] = {name: x.repeat(2, 1) for name, x in encoder.of["test"].items()}
    twice = Data(data.train, data.fit, data.dev, image_set("test", data.test.labels.repeat(2), 5))
    after = Linear(**QUICK).run(encoder, twice)
    assert top1(after) == pytest.approx(top1(before), abs=0.1)
    assert (after.correct[:1000] == after.correct[1000:]).mean() > 0.999


def test_whitening_needs_ten_images_a_dimension_or_no_alternative() -> None:
    encoder, data = realistic(n_train=350)  # fit: 280 images for 32 dimensions of "mean", 8 of "cls"
    assert Linear(**QUICK).run(encoder, data).chosen["heads"] == 3 + 6
    assert Linear(**QUICK, inputs=("whitened",)).run(encoder, data).chosen["heads"] == 6


def test_small_sets_get_enough_steps() -> None:
    encoder, data = realistic(n_train=40, n_test=3)
    result = Linear().run(encoder, data)
    assert result.chosen["steps"] == Linear().min_steps
    assert result.metrics["top1"].n == 3
    assert Linear(epochs=7, min_steps=0, batch_size=8).run(encoder, data).chosen["steps"] == 7 * 40 / 8


def test_one_class_is_always_right() -> None:
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    encoder, data = as_problem({"cls": x}, torch.zeros(30).long(), {"cls": x}, torch.zeros(30).long(), 1)
    result = Linear(**QUICK).run(encoder, data)
    assert top1(result) == 100.0
    assert result.metrics["top5"].value == 100.0


def test_features_made_in_inference_mode_are_fine() -> None:
    encoder, data = realistic(n_train=200)
    with torch.inference_mode():
        encoder.of = {split: {name: x * 1 for name, x in found.items()} for split, found in encoder.of.items()}
    assert top1(Linear(**QUICK).run(encoder, data)) > 30


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_lr": ()}, "base_lr must be > 0"),
        ({"base_lr": (0.1, -1.0)}, "base_lr must be > 0"),
        ({"weight_decay": ()}, "weight_decay >= 0"),
        ({"inputs": ("whitend",)}, "unknown linear input 'whitend': did you mean 'whitened'"),
        ({"inputs": ()}, "unknown linear input"),
        ({"epochs": 0}, "epochs and batch_size must be at least 1"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Linear(**settings)  # type: ignore[arg-type]
