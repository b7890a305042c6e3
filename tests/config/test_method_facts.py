"""What is known of a method beside its code: every shipped file is read, wrong ones are refused in one line."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from ssl_bench.backbones import BACKBONES, family_of
from ssl_bench.checkpoints.layout import Variant
from ssl_bench.config.method_facts import MethodFacts, method_facts, read_method_facts
from ssl_bench.config.recipe import FROM_DATA, load_recipe
from ssl_bench.methods import METHODS, TEACHERS
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.shipped import FACTS, recipe_names, shipped


@pytest.mark.parametrize("name", METHODS | TEACHERS)
def test_every_method_has_its_facts(name: str) -> None:
    folder = shipped("methods") / name
    assert (folder / FACTS).is_file() and (folder / "README.md").is_file()
    facts = method_facts(name)
    cls = (METHODS | TEACHERS)[name]
    settings = {key: value for key, value in facts.tiny.items() if key not in FROM_DATA}
    layer = {"backbone": facts.tiny_backbones[0]}
    if cls.trains:
        load_recipe(name, None, layer | settings, origin=FACTS)
        load_recipe(name, None, layer | dict(facts.tiny_fixed_targets), origin=FACTS)
    for family in facts.backbones:
        able = BACKBONES[family].abilities(next(iter(BACKBONES[family].patterns())))
        assert set(cls.needed({"n_local": 0})) <= able, family
    for release in facts.releases:
        family_of(release.backbone)
        assert release.epochs > 0
    for variant in facts.checkpoint.variants:
        load_recipe(name, None, layer | variant.backbone, origin=FACTS)
    for protocol in facts.protocols.values():
        for file in [protocol] if isinstance(protocol, str) else protocol.values():
            assert (shipped("evaluations") / f"{file}.yaml").is_file()


# F: the authors run it; f: the same there; d: a deviation that rows name; -: refused.
TABLE = {
    "moco_v3": "F f d d",
    "dino": "F f F d",
    "esvit": "F f F d",
    "moby": "F f F f",
    "ibot": "F f F -",
    "beit": "F f d -",
    "eva": "F f d -",
    "eva02": "f F d -",
    "mpp": "F f - -",  # it swaps patches, which Swin can't
    "simmim": "F f F -",
    "mae": "F d - -",
    "hiera_mae": "- - - F",
    "simclr": "f f f f",
    "byol": "f f f f",
    "swav": "f f f d",  # Hiera has no local crops
    "clip": "F d d d",
    "igpt": "- - - -",  # on a network of its own
    "maskfeat": "F f d -",
    "ssta": "F - - -",
}


@pytest.mark.parametrize("name", TABLE)
def test_which_goes_with_which(name: str) -> None:
    marks = []
    for family in ("vit", "eva02", "swin", "hiera"):
        able = BACKBONES[family].abilities(next(iter(BACKBONES[family].patterns())), mask_token=True)
        said = method_facts(name).backbones.get(family)
        runs = set((METHODS | TEACHERS)[name].needed({"n_local": 0})) <= able
        assert runs == (said is not None), family
        marks.append({None: "-", "paper": "F", "faithful": "f"}.get(said, "d"))
    assert " ".join(marks) == TABLE[name]


def test_the_facts_are_no_recipe() -> None:
    assert Path(FACTS).stem not in recipe_names("mae")
    with pytest.raises(UserError, match=r"unknown recipe of methods/mae 'method'.*quick"):
        load_recipe("mae", "method")


def test_a_method_from_outside_has_none() -> None:
    assert method_facts("VICReg") == MethodFacts()


def test_everything_in_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / FACTS).write_text("""
checkpoint: {branch: teacher, not_encoder: [a_*], rename: {b: c}, flags: [labels],
             variants: [{backbone: {init: mae}, not_encoder: [d], holds: {e: 3}, mean: [0, 0, 0], std: [1, 1, 1]}],
             mean: [0.1, 0.2, 0.3], std: [1, 1, 1]}
releases: [{file: f.pth, backbone: vit_small_patch16_224, data: cifar10, epochs: 3, branch: student}]
protocols: {linear: linear, finetune: {base: finetune}}
backbones: {vit: paper, eva02: faithful, hiera: on Hiera it is another}
tiny: {width: 2}
tiny_backbones: [hiera_nano_32]
tiny_fixed_targets: {momentum: 1.0}
""")
    facts = read_method_facts(tmp_path / FACTS)
    empty = MethodFacts()
    assert all(getattr(facts, f.name) != getattr(empty, f.name) for f in fields(MethodFacts))
    assert all(getattr(facts.checkpoint, f.name) != f.default for f in fields(facts.checkpoint))
    (variant,) = facts.checkpoint.variants
    assert all(getattr(variant, f.name) != getattr(Variant(), f.name) for f in fields(variant))
    assert facts.checkpoint.mean == (0.1, 0.2, 0.3) and facts.checkpoint.rename == {"b": "c"}
    release = facts.release("vit_small_patch16_224", "cifar10")
    assert release is not None and release.epochs == 3 and release.branch == "student"
    assert facts.release("vit_small_patch16_224", "cifar100") is None
    assert facts.deviations_on("hiera_tiny_224") == ["on Hiera it is another"]
    assert not any(map(facts.deviations_on, ("vit_base_patch16_224", "eva02_micro_patch8_32", "timm:resnet50")))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tinny: {}", "unknown key 'tinny': did you mean 'tiny'"),
        ("checkpoint: {brunch: x}", "checkpoint: unknown key 'brunch': did you mean 'branch'"),
        ("checkpoint: {branch: [x]}", r"checkpoint: branch is \['x'\]; it must be a text"),
        ("checkpoint: {not_encoder: x}", "checkpoint: not_encoder is x; it must be of type tuple"),
        ("checkpoint: {mean: [0.5, 0.5]}", r"checkpoint: mean is \[0\.5, 0\.5\]; it must be"),
        ("checkpoint: {mean: [0.5, 0.5, 0.5]}", "checkpoint: mean and std belong together"),
        ("checkpoint: {variants: x}", "checkpoint: variants must be a list, found 'x'"),
        ("checkpoint: {variants: [{hold: {}}]}", "checkpoint: variant 1: unknown key 'hold': did you mean 'holds'"),
        ("checkpoint: {variants: [{holds: {a: x}}]}", "checkpoint: variant 1: holds is .*; it must be of type dict"),
        ("checkpoint: x", "checkpoint: expected keys and values, found 'x'"),
        ("releases: {}", r"releases must be a list, found \{\}"),
        ("releases: [{file: f, backbone: b, data: d}]", "release 1: the key 'epochs' is missing"),
        ("releases: [{file: f, backbone: b, data: d, epochs: many}]", "release 1: epochs is many; it must be of"),
        ("releases: [{file: f, url: u}]", "release 1: unknown key 'url'"),
        ("protocols: {linear: 3}", "protocols: linear is 3; it must be a protocol, or size: protocol"),
        ("protocols: {linear: {base: [x]}}", "protocols: linear is .* it must be a protocol"),
        ("backbones: {vot: paper}", "backbones: unknown family 'vot': did you mean 'vit'"),
        ("backbones: {vit: papers}", "backbones: vit is 'papers'; it must be paper, faithful or a sentence"),
        ("tiny: [1]", r"tiny: expected keys and values, found \[1\]"),
        ("tiny: {1: 2}", r"tiny: expected keys and values, found \{1: 2\}"),
        ("tiny: {", "not valid YAML"),
    ],
)
def test_wrong_files(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / FACTS).write_text(text)
    with pytest.raises(UserError, match=f"{FACTS}.*{words}") as error:
        read_method_facts(tmp_path / FACTS)
    assert "\n" not in str(error.value)
