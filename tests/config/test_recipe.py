"""Recipes: typing, precedence, one-line errors; and every shipped recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_bench.config.parsing import parse_overrides
from ssl_bench.config.recipe import load_recipe, resolve_method
from ssl_bench.data.datasets import Splits
from ssl_bench.methods import METHODS, TEACHERS
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.identity import identify
from ssl_bench.utils.shipped import recipe_names, shipped

NANO = {"backbone": "vit_nano_patch4_16"}
SHIPPED = [(m, r) for m in METHODS for r in recipe_names(m)]


def test_defaults_are_the_papers() -> None:
    recipe = load_recipe("mae", None, NANO)
    assert recipe.training == METHODS["mae"].defaults
    assert recipe.settings["mask_ratio"] == 0.75 and recipe.backbone["pos_embed"] == "sincos_xy"
    assert load_recipe("moco_v3", None, NANO).backbone["init"] == "moco_v3"


def test_file_then_overrides(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("epochs: 3\nbase_lr: 1e-3\nbetas: [0.9, 0.9]\nmask_ratio: 0.5\n")
    recipe = load_recipe("mae", str(file), NANO, {"epochs": "7"})
    assert (recipe.training.epochs, recipe.training.base_lr, recipe.training.betas) == (7, 1e-3, (0.9, 0.9))
    assert recipe.settings["mask_ratio"] == 0.5


def test_identity_sees_values_and_not_how_they_were_written(tiny_data: Splits) -> None:
    def identity(**values: object) -> str:
        return identify(load_recipe("mae", None, NANO, values).identity(tiny_data))

    assert identity(epochs="7") == identity(epochs=7.0) != identity(epochs=8)
    assert identity(epochs=7) != identity(epochs=7, seed=1)
    assert identity(epochs=METHODS["mae"].defaults.epochs, mask_ratio=0.75, pos_embed="sincos_xy") == identity()


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"mask_rato": 0.5}, ["'mask_rato'", "did you mean 'mask_ratio'"]),
        ({"mask_ratio": "abc"}, ["mask_ratio is abc", "float"]),
        ({"epochs": "ten"}, ["epochs is ten", "float"]),
        ({"batch_size": "1.5"}, ["batch_size is 1.5", "int"]),
        ({"optimizer": "sgdd"}, ["optimizer 'sgdd'", "did you mean 'sgd'"]),
        ({"backbone": "vit_tiny_patch5_32"}, ["patch size 5"]),
        ({"epochs": "-1"}, ["epochs is -1"]),
    ],
)
def test_mistakes_name_the_value_and_the_choices(layer: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load_recipe("mae", None, {**NANO, **layer})
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_missing_backbone_and_wrong_method() -> None:
    with pytest.raises(UserError, match="no backbone"):
        load_recipe("mae", None)
    with pytest.raises(UserError, match="did you mean 'mae'"):
        load_recipe("mea", None)
    with pytest.raises(UserError, match="unknown recipe of methods/mae 'quik': did you mean 'quick'"):
        load_recipe("mae", "quik")


def test_broken_files(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("epochs: [1")
    with pytest.raises(UserError, match=r"r\.yaml.*not valid YAML"):
        load_recipe("mae", str(file), NANO)
    file.write_text("- 1")
    with pytest.raises(UserError, match="expected keys and values"):
        load_recipe("mae", str(file), NANO)
    file.write_text("method: moco_v3")
    with pytest.raises(UserError, match="for method 'moco_v3', not for 'mae'"):
        load_recipe("mae", str(file), NANO)
    with pytest.raises(UserError, match="no such file"):
        load_recipe("mae", "nowhere.yaml", NANO)


def test_method_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from ssl_bench import Method\nclass Mine(Method):\n    paper, category = 'p', 'c'\n"
        "    views = ()\n    def loss(self, views): ...\n"
    )
    name, cls = resolve_method(f"{file}:Mine")
    assert name == "Mine" and cls.paper == "p"
    with pytest.raises(UserError, match="did you mean 'Mine'"):
        resolve_method(f"{file}:Min")
    file.write_text(file.read_text().replace("'c'", "'self-destillation'"))
    with pytest.raises(UserError, match="category 'self-destillation': did you mean 'self-distillation'"):
        resolve_method(f"{file}:Mine")
    file.write_text("1 / 0")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        resolve_method(f"{file}:Mine")
    with pytest.raises(UserError, match="no such file"):
        resolve_method("nowhere.py:Mine")
    assert resolve_method("ssl_bench.methods.mae:MAE")[1] is METHODS["mae"]


def test_overrides_are_key_equals_value() -> None:
    assert parse_overrides(["a=b=c"]) == {"a": "b=c"}
    with pytest.raises(UserError, match="key=value"):
        parse_overrides(["a"])


@pytest.mark.parametrize(("method", "recipe"), SHIPPED)
def test_shipped_recipes_resolve(method: str, recipe: str) -> None:
    load_recipe(
        method, recipe, {} if "backbone" in (shipped("methods") / method / f"{recipe}.yaml").read_text() else NANO
    )


def test_recipes_and_methods_pair_by_name() -> None:
    folders = {p.name for p in shipped("methods").iterdir() if p.is_dir()}
    assert folders == {*METHODS, *TEACHERS}
    assert all((shipped("methods") / name / "README.md").exists() for name in folders)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("optimizer", "sgdd", "unknown optimizer 'sgdd'"),
        ("schedule", "cosine", "schedule is cosine; it must be one of step, step_inclusive, step_late, epoch"),
        ("betas", 3, r"betas is 3; it must be of type tuple\[float, float\]"),
        ("clip_grad", "a", r"clip_grad is a; it must be of type float \| None"),
        ("seed", "x", "seed is x; it must be of type int"),
        ("mask_rato", 0.5, "unknown key 'mask_rato': did you mean 'mask_ratio'"),
    ],
)
def test_wrong_values_are_named_with_what_is_valid(key: str, value: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_recipe("mae", None, {"backbone": "vit_micro_patch8_32", key: value})
