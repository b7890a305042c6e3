"""Which of our runs measures a published number: backbones of every family, and what a number's setting says."""

from __future__ import annotations

import pytest
import torch

from ssl_bench.backbones import BACKBONES, build_backbone
from ssl_bench.results.papers.matching import find_run, matching, measurement, our_backbone, released, size_of
from ssl_bench.results.papers.published import Number, published, select
from ssl_bench.results.papers.table_spec import Column, RowOf
from ssl_bench.training.without_data import built_without_data

NAMES = {
    ("ViT-Ti/16", ""): "vit_tiny_patch16_224",
    ("ViT-H/14", ""): "vit_huge_patch14_224",
    ("DeiT-S/16", ""): "vit_small_patch16_224",
    ("Swin-T/W7", ""): "swin_tiny_patch4_window7_224",
    ("Swin-B", ""): "swin_base_patch4_window7_224",
    ("Swin-B/W14", ""): "swin_base_patch4_window14_224",
    ("Hiera-T", ""): "hiera_tiny_224",
    ("Hiera-B+", ""): "hiera_base_plus_224",
    ("EVA-02-Ti/14", ""): "eva02_tiny_patch14_224",
    ("EVA-02-L/14", ""): "eva02_large_patch14_224",
    ("iGPT-L", "input 32x32"): "igpt_large_patch7_224",
}


@pytest.mark.parametrize(("printed", "setting"), NAMES)
def test_printed_backbones_have_our_names(printed: str, setting: str) -> None:
    """And the names build."""
    name = NAMES[printed, setting]
    assert our_backbone(printed, setting) == name
    if name.split("_")[0] in BACKBONES:
        with built_without_data(), torch.device("meta"):
            assert build_backbone(name).name == name


@pytest.mark.parametrize(
    ("printed", "setting"),
    [
        ("ViT-B/16", "input 384"),
        ("EVA-02-B/14", "input 448"),
        ("EVA-02-L/14", "intermediate fine-tuned, input 448"),
        ("iGPT-L", ""),
        ("iGPT-L", "input 48x48"),
        ("iGPT-XL", "input 32x32"),
        ("ViT-g/14", ""),
        ("ViT-H", ""),
        ("SwinV2-H", ""),
        ("Hiera (MAE-Lite size)", ""),
        ("RN50", ""),
    ],
)
def test_other_backbones_and_sizes_are_none_of_ours(printed: str, setting: str) -> None:
    assert our_backbone(printed, setting) == ""


def test_sizes_name_their_family() -> None:
    """So that a protocol for the base ViT is none for the base Swin."""
    sizes = [size_of(name) for name in NAMES.values()]
    assert sizes == [
        *("tiny", "huge", "small", "swin_tiny", "swin_base", "swin_base"),
        *("hiera_tiny", "hiera_base_plus", "eva02_tiny", "eva02_large", "igpt_large"),
    ]


def number_of(**wanted: str) -> Number:
    (found,) = select(published(), wanted)
    return found


def test_a_variant_is_no_run_of_ours() -> None:
    """BEiT without blockwise masking has the backbone, data and epochs of BEiT's recipe."""
    plain = {"method": "beit", "backbone": "ViT-B/16", "protocol": "finetune", "epochs": "300", "place": "Table 4"}
    column = Column("", {}, "own")
    ablation = number_of(**plain, setting="ablation: no blockwise masking")
    wanted = measurement(ablation, RowOf({}), column)
    assert wanted.variant == "ablation: no blockwise masking" and wanted.encoder.endswith(wanted.variant)
    assert find_run(wanted) == "no recipe of beit is 'ablation: no blockwise masking'"
    assert released(wanted) is None and matching(wanted, []) == ([], [])
    assert not isinstance(find_run(measurement(number_of(**plain, setting=""), RowOf({}), column)), str)


def test_settings_and_the_size_of_the_input_are_no_variants() -> None:
    slides = {"method": "mae", "backbone": "ViT-L/16", "source_kind": "survey", "protocol": "finetune"}
    number = number_of(**slides, setting="800-epoch model")
    assert measurement(number, RowOf({}, settings={"norm_pix": False}), Column("", {})).variant == ""
    assert measurement(number, RowOf({}), Column("", {})).variant == "800-epoch model"
    small = number_of(method="igpt", backbone="iGPT-L", protocol="linear", setting="input 32x32")
    assert measurement(small, RowOf({}), Column("", {})).variant == ""


def test_number_of_a_swin_asks_for_a_recipe_of_it() -> None:
    number = number_of(method="ibot", backbone="Swin-T/W7", protocol="linear", source_kind="survey")
    wanted = measurement(number, RowOf({}, stands_for={"epochs": "300"}), Column("", {}, "own"))
    assert (wanted.backbone, wanted.evaluation) == ("swin_tiny_patch4_window7_224", "linear-ibot")
    run = find_run(wanted)
    assert run == "ibot has no recipe for swin_tiny_patch4_window7_224 on imagenet1k" or not isinstance(run, str)
