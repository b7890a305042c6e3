"""Methods on backbones of every family, from the recipe to the row; pairs that don't fit, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_settings

from ssl_bench.backbones import build_backbone
from ssl_bench.checkpoints.encoder_file import load_encoder
from ssl_bench.commands.evaluate import run_evaluations
from ssl_bench.commands.pretrain import pretrain, run
from ssl_bench.commands.show import show
from ssl_bench.config.protocol import load_evaluator
from ssl_bench.config.recipe import load_recipe
from ssl_bench.data.datasets import Splits
from ssl_bench.evaluations.trained.finetune import FineTune
from ssl_bench.methods import METHODS
from ssl_bench.methods.method import Method
from ssl_bench.utils.errors import UserError
from ssl_bench.views.view import IMAGENET_MEAN, View

VICREG = f"{Path(__file__).parents[2] / 'examples' / 'vicreg.py'}:VICReg"
QUICK = {"batch_size": 8, "warmup_epochs": 0, "epochs": 1, "base_lr": 1e-2}


@pytest.mark.parametrize("backbone", ["timm:test_resnet_32", "timm:test_vit_32"])
def test_a_model_of_timm_from_the_recipe_to_the_row(
    backbone: str, tiny_data: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(VICREG, None, {**QUICK, "hidden_dim": 16, "backbone": backbone})
    assert recipe.backbone == {"name": backbone, "drop_path": 0.0}
    path = run(recipe, tiny_data, tmp_path / "run")
    start = load_encoder(run(load_recipe("untrained", None, {"backbone": backbone}), tiny_data, tmp_path / "start"))
    loaded = load_encoder(path)
    trained = dict(loaded.encoder.named_parameters())
    assert any(not torch.equal(value, trained[name]) for name, value in start.encoder.named_parameters())
    assert not any(key.startswith("model.") for key in torch.load(path, weights_only=True)["state_dict"])
    evaluators = {name: load_evaluator(name) for name in ("knn", "linear")}
    evaluators["finetune"] = FineTune(epochs=1, batch_size=16, warmup_epochs=0, blocks=1, randaugment="")
    rows = run_evaluations(loaded, evaluators, tiny_data, tmp_path / "rows", suite=None)
    for row in rows:
        assert row["backbone"]["name"] == backbone and row["method"] == "VICReg"
        assert 0 <= row["metrics"]["top1"]["value"] <= 100
    assert rows[0]["pretraining"]["patches_per_image"] > 0
    assert show(path, images=str(picture(tmp_path)), out="picture.png").is_file()


def picture(folder: Path) -> Path:
    from PIL import Image

    images = folder / "images"
    images.mkdir()
    for i in range(3):
        Image.new("RGB", (40, 40), (80 * i, 0, 0)).save(images / f"{i}.png")
    return images


@pytest.mark.parametrize(
    ("method", "backbone"),
    [
        ("dino", "timm:test_resnet_32"),
        ("dino", "swin_micro_patch2_window4_32"),
        ("ibot", "swin_micro_patch2_window4_32"),
        ("mae", "eva02_micro_patch8_32"),
        ("moco_v3", "hiera_micro_32"),
        ("mpp", "eva02_micro_patch8_32"),
    ],
)
def test_methods_train_on_other_families(method: str, backbone: str, tiny_data: Splits, tmp_path: Path) -> None:
    recipe = load_recipe(method, None, {**QUICK, **tiny_settings(method), "backbone": backbone})
    loaded = load_encoder(run(recipe, tiny_data, tmp_path / "run"))
    assert loaded.encoder.name == backbone
    feature = loaded.encoder.features(torch.randn(2, 3, 32, 32), ["mean"])["mean"]
    assert torch.isfinite(feature).all()


@pytest.mark.parametrize(
    ("method", "backbone", "words"),
    [
        ("mae", "timm:resnet18", ["'mae' needs", "subset of its patches", "has a class token", "vit_", "eva02_"]),
        ("mae", "hiera_micro_32", ["'mae' needs", "has a class token"]),
        ("ibot", "hiera_micro_32", ["'ibot' needs", "learned token", "other sizes", "swin_"]),
        ("mpp", "swin_micro_patch2_window4_32", ["'mpp' needs", "exchanges"]),
        ("dino", "hiera_micro_32", ["'dino' needs", "other sizes", "timm:{MODEL}"]),
        ("supervised", "pixels_32", ["'supervised' needs", "weights to train"]),
        ("dino", "swin_micro_patch2_window5_31", ["31 x 31", "multiple of 8"]),
    ],
)
def test_what_does_not_fit_is_one_line_before_anything_runs(
    method: str, backbone: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        pretrain(method, backbone=backbone)
    said = str(error.value)
    assert all(word in said for word in words) and "\n" not in said
    assert not list(tmp_path.iterdir())
    assert backbone.split("_")[0] not in said.partition("Backbones that do")[2]


def test_how_a_pair_deviates_travels_into_the_encoder(tiny_data: Splits, tmp_path: Path) -> None:
    said = {}
    for name in ("vit_micro_patch8_32", "hiera_micro_32"):
        recipe = load_recipe("moco_v3", None, {**QUICK, **tiny_settings("moco_v3"), "backbone": name})
        said[name] = load_encoder(run(recipe, tiny_data, tmp_path / name)).about["deviations"]
    own, other = said.values()
    assert own == list(METHODS["moco_v3"].deviations)
    assert other[:-1] == own and other[-1].startswith("on Hiera the feature is the mean")


def test_dino_without_local_crops_needs_one_size() -> None:
    assert load_recipe("dino", None, {"backbone": "hiera_micro_32", "n_local": 0}).backbone["name"] == "hiera_micro_32"


def test_options_of_one_family_are_not_those_of_another() -> None:
    with pytest.raises(UserError, match=r"unknown key 'pos_embed'.*drop_path"):
        load_recipe("dino", None, {"backbone": "swin_micro_patch2_window4_32", "pos_embed": "learned"})
    recipe = load_recipe("dino", None, {"backbone": "swin_micro_patch2_window4_32"})
    assert recipe.backbone["drop_path"] == 0.1 and "pos_embed" not in recipe.backbone  # of the paper's options


def test_views_are_normalised_as_the_backbone_wants_them() -> None:
    class Two(Method):
        paper, category = "none", "baseline"

        @property
        def views(self) -> list[View]:
            return [View(32), View(32, mean=(0, 0, 0), std=(1, 1, 1)), View(32, same=True)]

    drawn = Two(build_backbone("timm:test_vit_32")).drawn_views
    assert [view.mean for view in drawn] == [(0.5, 0.5, 0.5), (0, 0, 0), IMAGENET_MEAN]
