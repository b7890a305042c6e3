"""Every keyword of every method, backbone, evaluator and of the training: bounds in its type, one line for what breaks
them, nothing built or allocated before."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
import yaml
from hostile.cases import HOW_MANY, one_line_at_most, try_many, values
from hypothesis import strategies as st
from tiny import tiny_settings

from ssl_bench import cli
from ssl_bench.backbones import BACKBONES, build_backbone
from ssl_bench.config.build import check_buildable
from ssl_bench.config.method_facts import method_facts
from ssl_bench.config.protocol import load_evaluator
from ssl_bench.config.recipe import load_recipe
from ssl_bench.evaluations import EVALUATIONS
from ssl_bench.methods import METHODS, TEACHERS
from ssl_bench.nn.optimizers import Training
from ssl_bench.utils.bounds import misfit, types_of
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.identity import defaults_of

OURS = {**METHODS, **TEACHERS}
CLASSES: dict[str, type] = {**OURS, **BACKBONES, **EVALUATIONS, "training": Training}
FROM_DATA = {"num_classes": 3, "class_names": ("a", "b", "c")}
NANO = {"vit": "vit_nano_patch4_16", "eva02": "eva02_nano_patch4_16", "swin": "swin_nano_patch2_window2_16"}
NANO |= {"hiera": "hiera_nano_16", "igpt": "igpt_nano_patch4_16", "pixels": "pixels_16", "timm": "timm:resnet18_32"}


def unbounded(hint: Any) -> Iterator[Any]:
    """The numbers in a type that may be anything."""
    if get_origin(hint) is Annotated:
        return
    if hint in (int, float):
        yield hint
    for part in get_args(hint):
        yield from unbounded(part)


def known(method: str) -> dict[str, Any]:
    """The keywords that data would fill in."""
    return {key: value for key, value in FROM_DATA.items() if key in types_of(OURS[method])}


@pytest.mark.parametrize("name", CLASSES)
def test_every_number_has_bounds_which_its_default_keeps(name: str) -> None:
    hints = types_of(CLASSES[name])
    for key in inspect.signature(CLASSES[name]).parameters.keys() & hints.keys():
        assert key in ("mean", "std") or not list(unbounded(hints[key])), key
    for key, default in defaults_of(CLASSES[name]).items():
        assert key not in hints or not misfit(hints[key], default), key
    if name in OURS:
        for field, value in dataclasses.asdict(OURS[name].defaults).items():
            assert not misfit(types_of(Training)[field], value), field


@pytest.mark.parametrize(
    ("method", "key", "value", "words"),
    [
        ("mae", "seed", -1, "seed is -1; it must be in [0, 4294967295]"),
        ("mae", "betas", [2, 3], "betas is [2, 3]; it must be each in [0, 1)"),
        ("mae", "eps", 0, "eps is 0; it must be in (0, 1e+38]"),
        ("mae", "drop_path", 2, "drop_path is 2; it must be in [0, 1)"),
        ("mae", "decoder_heads", 0, "decoder_heads is 0; it must be in [1, 256]"),
        ("mae", "decoder_heads", 3, "decoder_dim is 512; it must be a multiple of 3, the decoder_heads"),
        ("hiera_mae", "decoder_heads", 3, "decoder_dim is 512; it must be a multiple of 3, the decoder_heads"),
        ("clip", "text_heads", 7, "text_dim is 512; it must be a multiple of 7, the text_heads"),
        ("mae", "decoder_dim", 0, "decoder_dim is 0; it must be in [1, 1048576]"),
        ("mae", "decoder_dim", 7, "decoder_dim is 7; it must be a multiple of 4"),
        ("mae", "registers", -1, "registers is -1; it must be in [0, 1024]"),
        ("mae", "num_heads", 0, "num_heads is 0; it must be in [1, 256] or null"),
        ("mae", "epochs", "1e308", "epochs is 1e308; it must be in [0, 1000000]"),
        ("mae", "mask_ratio", 1.5, "mask_ratio is 1.5; it must be in (0, 1)"),
        ("mae", "mask_ratio", 1.0, "mask_ratio is 1.0; it must be in (0, 1)"),
        ("mae", "base_lr", "nan", "base_lr is nan; it must be"),
        ("mae", "base_lr", "1e999", "base_lr is 1e999; it must be a finite number"),
        ("mae", "backbone", "vit_huge_patch1_4096", "16,777,216 patches; at most 4,096 pixels a side and 16,384"),
        ("mae", "backbone", "vit_micro_patch8_" + "9" * 5000, "unknown backbone"),
        ("mae", "decoder_depth", 10**9, "decoder_depth is 1000000000; it must be in [1, 256]"),
        ("dino", "blur_sigma", [0.1, 1e9], "blur_sigma is [0.1, 1000000000.0]; it must be each in (0, 1000]"),
    ],
)
def test_one_line_before_anything_is_built(method: str, key: str, value: Any, words: str) -> None:
    given = {"backbone": NANO["hiera" if method == "hiera_mae" else "vit"], key: value}

    def make() -> None:
        recipe = load_recipe(method, None, given)
        check_buildable(recipe, known(method) | recipe.settings)

    with pytest.raises(UserError) as caught:
        make()
    assert words in str(caught.value) and len(str(caught.value)) < 2500 and "\n" not in str(caught.value)


def test_weights_larger_than_the_memory_are_not_allocated() -> None:
    recipe = load_recipe("mae", None, {"backbone": NANO["vit"], "decoder_dim": 2**20, "decoder_depth": 200})
    with pytest.raises(UserError, match=r"method 'mae' on vit_nano_patch4_16 has weights of [\d,]+ GB"):
        check_buildable(recipe, recipe.settings)


def test_a_method_from_outside_is_checked_by_its_types(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from ssl_bench import Method\nfrom ssl_bench.utils.bounds import Share\n"
        "class Mine(Method):\n    paper, category = 'p', 'c'\n"
        "    def __init__(self, backbone, *, ratio: Share = 0.5, size: int = 1, loose=1):\n"
        "        super().__init__(backbone)\n"
        "    views = ()\n"
        "    def loss(self, views): ...\n"
    )
    for key, value, words in (("ratio", 2, r"in \[0, 1\]"), ("size", 2**70, "64 bits"), ("ratio", "inf", "float")):
        with pytest.raises(UserError, match=words):
            load_recipe(f"{file}:Mine", None, {"backbone": NANO["vit"], key: value})
    assert load_recipe(f"{file}:Mine", None, {"backbone": NANO["vit"], "loose": 3}).settings["loose"] == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["pretrain", "mae", "--seed", "-1"],
        ["pretrain", "mae", "--seed", "9" * 5000],
        ["pretrain", "mae", "--epochs", "1e308"],
        ["pretrain", "mae", "--epochs", "nan"],
        ["bench", "quick", "--jobs", "1000000"],
        ["bench", "quick", "--jobs", "0"],
        ["bench", "quick", "--seeds", "0,-1"],
        ["bench", "quick", "--seeds", "0,x"],
        ["bench", "quick", "--budget", "inf"],
        ["bench", "quick", "--image-size", "0"],
        ["convert", "x.pth", "--method", "mae", "--backbone", NANO["vit"], "--out", "y", "--num-heads", "0"],
        ["evaluate", "timm:resnet18", "--mean", "0", "0", "nan"],
        ["show", "e.pt", "--images", ".", "--out", "x.png", "--count", "-5"],
        ["reproduce", "mae", "--tflops", "0"],
        ["leaderboard", ".", "--max-flops", "nan"],
    ],
    ids=" ".join,
)
def test_numbers_of_the_command_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("ssl-bench: error: ") and said.count("\n") == 1


@HOW_MANY
def test_any_value_of_any_key_of_a_recipe(examples: int) -> None:
    """A method with each of its keys, those of its backbone and of the training."""

    def one(name: str) -> st.SearchStrategy[Any]:
        backbone = "pixels_16" if name == "raw_pixels" else method_facts(name).tiny_backbones[0]
        family = BACKBONES[backbone.split("_")[0]]
        keys = {*types_of(OURS[name]), *types_of(family), *types_of(Training), "seed", "data", "backbone"} - {"name"}
        return st.tuples(st.just(name), st.just(backbone), st.sampled_from(sorted(keys)), values)

    def check(case: tuple[str, str, str, Any]) -> None:
        name, backbone, key, value = case
        with one_line_at_most():
            recipe = load_recipe(name, None, {"backbone": backbone, **tiny_settings(name), key: value})
            check_buildable(recipe, known(name) | recipe.settings)

    try_many(examples, st.sampled_from(sorted(OURS)).flatmap(one), check)


@HOW_MANY
def test_any_option_of_a_backbone_from_a_file(examples: int) -> None:
    def one(family: str) -> st.SearchStrategy[Any]:
        keys = sorted({*types_of(BACKBONES[family])} - {"name"}) or ["x"]
        return st.tuples(st.just(family), st.sampled_from(keys), values)

    def check(case: tuple[str, str, Any]) -> None:
        family, key, value = case
        with one_line_at_most():
            build_backbone(NANO[family], **{key: value})

    try_many(examples, st.sampled_from(sorted(BACKBONES)).flatmap(one), check)


@HOW_MANY
def test_any_value_of_any_key_of_a_protocol(examples: int, tmp_path: Path) -> None:
    def one(kind: str) -> st.SearchStrategy[Any]:
        return st.tuples(st.just(kind), st.sampled_from(sorted(types_of(EVALUATIONS[kind]))), values)

    def check(case: tuple[str, str, Any]) -> None:
        kind, key, value = case
        path = tmp_path / "protocol.yaml"
        try:
            path.write_text(yaml.safe_dump({"evaluation": kind, key: value}))
        except (UnicodeEncodeError, ValueError, yaml.YAMLError):  # no file can hold it
            return
        with one_line_at_most("protocol.yaml"):
            load_evaluator(str(path))

    try_many(examples, st.sampled_from(sorted(EVALUATIONS)).flatmap(one), check)
