"""iGPT against the worked numbers and invariants of its code (openai/image-gpt)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny import blobs

from ssl_bench.backbones import build_backbone
from ssl_bench.checkpoints.encoder_file import load_encoder
from ssl_bench.commands.convert import convert
from ssl_bench.commands.pretrain import run
from ssl_bench.config.build import build
from ssl_bench.config.recipe import load_recipe
from ssl_bench.data.datasets import Splits
from ssl_bench.evaluations.frozen.knn import KNN
from ssl_bench.evaluations.frozen_encoder import FrozenEncoder
from ssl_bench.methods.igpt import IGPT, prediction_loss
from ssl_bench.training.compute import step_cost
from ssl_bench.utils.errors import UserError

NANO = "igpt_nano_patch4_16"
LOGITS = torch.tensor([[[1.0, 2, 0], [0, 0, 0], [3, 1, 2]], [[0, 1, 0], [2, 0, 1], [1, 1, 1]]])
COLORS, MASK = torch.tensor([[1, 0, 2], [0, 0, 1]]), torch.tensor([[1, 0, 1], [0, 1, 0]]).bool()


def make(objective: str = "ar", seed: int = 0) -> IGPT:
    torch.manual_seed(seed)
    return IGPT(build_backbone(NANO, objective=objective))


def test_loss_numbers() -> None:
    each = [[0.4076059, 1.0986123, 1.4076060], [1.5514446, 0.4076060, 1.0986123]]
    for place in range(6):
        one = torch.arange(6).view(2, 3) == place
        found = 2 * prediction_loss(LOGITS, COLORS, one).item()  # the other image counts as 0
        assert found == pytest.approx(each[place // 3][place % 3], abs=1e-6)
    assert prediction_loss(LOGITS, COLORS).item() == pytest.approx(0.9952478, abs=1e-6)
    assert prediction_loss(LOGITS, COLORS, MASK).item() == pytest.approx(0.6576060, abs=1e-6)  # not the flat .7409393


def test_an_image_without_masked_places_gives_no_nan() -> None:
    mask = MASK.clone()
    mask[1] = False
    expected = (0.4076059 + 1.4076060) / 2 / 2
    assert prediction_loss(LOGITS, COLORS, mask).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_the_first_loss_is_that_of_a_guess(objective: str) -> None:
    method = make(objective)
    assert method.loss([torch.rand(4, 3, 16, 16) * 2 - 1])["loss"].item() == pytest.approx(math.log(512), abs=1e-5)


def test_every_place_is_counted_as_encoded() -> None:
    for objective in ("ar", "bert"):
        assert step_cost(make(objective), 4, 1).patches == 16


def test_gradients_reach_the_network_once_the_head_has_moved() -> None:
    for objective in ("ar", "bert"):
        method = make(objective)
        torch.nn.init.normal_(method.head.weight)
        method.loss([torch.rand(4, 3, 16, 16) * 2 - 1])["loss"].backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())


def test_each_place_is_masked_with_the_same_probability() -> None:
    method = make("bert")
    share = torch.cat([method.masks(100) for _ in range(20)]).float()
    assert share.mean().item() == pytest.approx(0.15, abs=0.01)
    assert share.sum(dim=1).unique().numel() > 3  # not a fixed count


def test_masked_colours_are_not_seen() -> None:
    method = make("bert")
    torch.nn.init.normal_(method.head.weight)
    colors = torch.randint(0, 512, (1, 16))
    mask = torch.arange(16)[None] == 5
    other = colors.masked_fill(mask, 3)
    torch.testing.assert_close(method.logits(colors, mask), method.logits(other, mask))


def test_completions_keep_what_is_given_and_follow_the_prediction() -> None:
    method = make().eval()
    torch.nn.init.normal_(method.head.weight)
    colors = torch.randint(0, 512, (3, 8))
    completed = method.complete(colors)
    assert completed.shape == (3, 16) and torch.equal(completed[:, :8], colors)
    method.head.weight.data *= 1e6  # the most probable colour has all the probability
    completed = method.complete(colors)
    assert torch.equal(method.logits(completed).argmax(dim=2)[:, 8:], completed[:, 8:])
    assert method.complete(colors[:, :0]).shape == (3, 16)


@pytest.mark.parametrize(
    ("objective", "titles"),
    [("ar", ["palette", "upper half", "completed", "sample"]), ("bert", ["palette", "masked", "predicted"])],
)
def test_pictures(objective: str, titles: list[str]) -> None:
    images = torch.rand(2, 3, 16, 16)
    shown = make(objective).eval().show(images)
    assert list(shown) == titles
    assert all(
        picture.shape == images.shape and picture.min() >= 0 and picture.max() <= 1 for picture in shown.values()
    )
    if objective == "ar":
        assert torch.equal(shown["completed"][:, :, :8], shown["palette"][:, :, :8])
        assert (shown["upper half"][:, :, 8:] == 0.5).all()


def test_defaults_are_the_papers() -> None:
    view = make().views[0]
    assert (view.ratio, view.flip, view.jitter_p) == ((1.0, 1.0), 0.0, 0.0)
    assert IGPT.defaults.lr == pytest.approx(3e-3) and IGPT.defaults.betas == (0.9, 0.95)
    assert IGPT.defaults.weight_decay == 0 and IGPT.defaults.epochs * 1281167 / 128 == pytest.approx(1e6, rel=1e-3)


def test_the_palette_is_that_of_the_training_images_and_travels_in_the_file(tmp_path: Path) -> None:
    data = blobs(64, "train", 0)
    steps = {"backbone": NANO, "epochs": 1, "batch_size": 16, "warmup_epochs": 0, "precision": "32"}
    recipe = load_recipe("igpt", None, steps)
    encoder = load_encoder(run(recipe, Splits(data, data), tmp_path / "igpt")).encoder
    palette = build(recipe, data.classes, data).backbone.palette
    assert torch.equal(encoder.palette, palette)
    assert not torch.equal(palette, build(recipe, data.classes).backbone.palette)  # evenly spaced without images
    untrained = load_recipe("untrained", None, {"backbone": NANO})
    start = load_encoder(run(untrained, Splits(data, data), tmp_path / "untrained")).encoder
    assert torch.equal(start.palette, palette)  # a method is compared with the network it started from


def test_evaluators_choose_among_the_layers() -> None:
    encoder = FrozenEncoder(build_backbone(NANO))
    data = blobs(24, "train", 0)
    assert list(KNN(k=(1, 20)).features(encoder, data)) == ["mean", "layer=1", "layer=2"]


@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_released_files_convert(objective: str, tmp_path: Path) -> None:
    method = make(objective)
    file, out = tmp_path / "igpt.pth", tmp_path / "encoder.pt"
    weights = {name.removeprefix("backbone."): value for name, value in method.state_dict().items()}
    weights = {"wtet" if name == "head.weight" else name: value for name, value in weights.items()}
    torch.save(weights, file)
    said: list[str] = []
    convert(file, method="igpt", backbone=NANO, out=out, show=said.append)
    assert any("100 % of the backbone's tensors" in line for line in said)
    loaded = load_encoder(out)
    assert loaded.encoder.objective == objective and loaded.input == {"mean": [0.5] * 3, "std": [0.5] * 3}
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(loaded.encoder(x), method.backbone.eval()(x))
    torch.save({name: value for name, value in weights.items() if name != "palette"}, file)
    with pytest.raises(UserError, match="palette is missing"):
        convert(file, method="igpt", backbone=NANO, out=out, show=said.append)
