"""Released checkpoints: each layout loads completely and computes what its own network did; others are refused."""

from __future__ import annotations

import argparse
import pickle
import sys
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_bench import cli
from ssl_bench.backbones.vit import SIZES, ViT
from ssl_bench.checkpoints.encoder_file import load_encoder, save_encoder
from ssl_bench.checkpoints.official import branches
from ssl_bench.commands.convert import convert, timm_state_dict
from ssl_bench.commands.evaluate import run_evaluations
from ssl_bench.config.protocol import load_evaluator
from ssl_bench.config.recipe import load_recipe
from ssl_bench.data.datasets import Splits
from ssl_bench.utils.errors import UserError

NANO = "vit_nano_patch4_16"
SHAPE = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0, "global_pool": ""}
BEIT = {"use_abs_pos_emb": False, "use_shared_rel_pos_bias": True, "init_values": 0.1}  # a BEiT in timm
PER_BLOCK = {"use_abs_pos_emb": False, "use_rel_pos_bias": True, "init_values": 0.1}  # the same, fine-tuned
ABSOLUTE = {"init_values": None}  # beit_base_patch16_224_pt1k_800ep.pth
EVA = {"init_values": None}  # an EVA is a timm Beit with absolute positions and no layer scale
State = dict[str, Tensor]
RECIPES: dict[Any, Any] = {}


@pytest.fixture(autouse=True)
def recipes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolving a recipe takes longer than converting a tiny file; each is resolved once for this module."""

    def load_once(method: str, recipe: str | None, given: dict[str, Any], origin: str) -> Any:
        key = (method, recipe, *given.items())
        if key not in RECIPES:
            RECIPES[key] = load_recipe(method, recipe, given, origin=origin)
        return RECIPES[key]

    monkeypatch.setattr(sys.modules["ssl_bench.commands.convert"], "load_recipe", load_once)


def randomise(net: nn.Module, seed: int) -> nn.Module:
    """Weights large enough for a wrong one to be seen in the features."""
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.data.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return net.eval()


def sincos(dim: int, side: int, column_first: bool) -> Tensor:
    """The tables of MAE (column first) and MoCo v3 (row first), cell by cell."""
    table = np.zeros((1 + side * side, dim))
    for row in range(side):
        for column in range(side):
            axes = (column, row) if column_first else (row, column)
            angles = [axis / 10000 ** (k / (dim / 4)) for axis in axes for k in range(dim // 4)]
            half = dim // 4
            table[1 + row * side + column] = np.concatenate(
                [f(angles[i : i + half]) for i in (0, half) for f in (np.sin, np.cos)]
            )
    return torch.from_numpy(table).float()[None]


def vit(seed: int = 0, positions: str = "learned", size: int = 16, **shape: Any) -> nn.Module:
    net = randomise(VisionTransformer(img_size=size, **(SHAPE | shape)), seed)
    if positions != "learned":
        net.pos_embed.data = sincos(net.embed_dim, size // 4, positions == "sincos_xy")
    return net


def beit(seed: int = 0, size: int = 16, **options: Any) -> nn.Module:
    return randomise(Beit(img_size=size, **SHAPE, **options), seed)


def under(prefix: str, *states: State) -> State:
    return {f"{prefix}{name}": value for state in states for name, value in state.items()}


def junk(*names: str) -> State:
    return {name: torch.ones(3, 5) for name in names}


DECODER = junk("mask_token", "decoder_embed.weight", "decoder_pos_embed", "decoder_blocks.0.attn.qkv.weight")
DECODER |= junk("decoder_blocks.0.norm1.weight", "decoder_norm.bias", "decoder_pred.weight")
HEAD = junk("mlp.0.weight", "last_layer.weight_g", "last_layer.weight_v")
NEW_HEAD = junk("mlp.0.weight", "last_layer.parametrizations.weight.original0", "last_layer2.weight_v")
INDEX = {"rel_pos_bias.relative_position_index": torch.zeros(17, 17, dtype=torch.int64)}
LM = junk("mask_token", "lm_head.weight", "lm_head.bias")
CLS_BRANCH = junk("cls_pt_layers.0.norm1.weight", "cls_pt_layers.0.gamma_1", "cls_pt_layers.1.attn.qkv.weight")


def mae(net: nn.Module) -> Any:
    return {"model": net.state_dict() | DECODER, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "epoch": 799}


def moco_v3(net: nn.Module) -> Any:
    other = vit(9, "sincos_yx").state_dict() | junk("head.0.weight", "head.7.running_mean")
    own = net.state_dict() | junk("head.0.weight", "head.6.weight", "head.7.num_batches_tracked")
    both = under("base_encoder.", own) | under("momentum_encoder.", other) | junk("predictor.0.weight")
    return {"epoch": 300, "arch": "vit_small", "state_dict": under("module.", both)}


def dino(net: nn.Module, head: State = HEAD) -> Any:
    student = under("module.backbone.", vit(9).state_dict()) | under("module.head.", head)
    teacher = under("backbone.", net.state_dict()) | under("head.", head)
    return {"student": student, "teacher": teacher, "epoch": 100, "dino_loss": junk("center")}


def ibot(net: nn.Module) -> Any:
    content = dino(net, NEW_HEAD)
    content["student"] |= junk("module.backbone.masked_embed")
    return content | {"ibot_loss": junk("center", "center2")}


def beit_file(net: nn.Module) -> Any:
    return {"model": net.state_dict() | INDEX | LM}


def beit_per_block(net: nn.Module) -> Any:
    state = net.state_dict()
    table = state.pop("rel_pos_bias.relative_position_bias_table")
    for i in range(2):
        state[f"blocks.{i}.attn.relative_position_bias_table"] = table.clone()
        state[f"blocks.{i}.attn.relative_position_index"] = INDEX["rel_pos_bias.relative_position_index"]
    return {"model": state}


def beit_fine_tuned(net: nn.Module) -> Any:
    """modeling_finetune.py: a table a block, and the norm after the mean of the patches."""
    state = net.state_dict() | junk("head.weight", "head.bias")
    for i in range(2):
        state[f"blocks.{i}.attn.relative_position_index"] = INDEX["rel_pos_bias.relative_position_index"]
    for kind in ("weight", "bias"):
        state[f"fc_norm.{kind}"] = state.pop(f"norm.{kind}")
    return {"model": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}


def linear_probe(net: nn.Module) -> Any:
    """main_linprobe.py: a head of batch norm without weights, and a linear layer."""
    statistics = {"head.0.running_mean": torch.ones(24), "head.0.num_batches_tracked": torch.tensor(7)}
    return {"model": net.state_dict() | statistics | junk("head.0.running_var", "head.1.weight", "head.1.bias")}


def eva(net: nn.Module) -> Any:
    net.half().float()  # what the file has lost
    return {"module": {name: value.half() for name, value in (net.state_dict() | LM).items()}}


NAMES = ("mae", "moco_v3", "dino", "ibot", "beit", "eva", "mpp")
FILES: dict[str, tuple[str, Callable[[], nn.Module], Callable[[nn.Module], Any]]] = {
    "mae": ("mae", lambda: vit(positions="sincos_xy"), mae),
    "mae, encoder only": ("mae", lambda: vit(positions="sincos_xy"), lambda net: {"model": net.state_dict()}),
    "mae, fine-tuned": ("mae", vit, lambda net: {"model": net.state_dict() | junk("head.weight", "head.bias")}),
    "moco_v3": ("moco_v3", lambda: vit(positions="sincos_yx"), moco_v3),
    "dino": ("dino", vit, dino),
    "dino, newer weight norm": ("dino", vit, lambda net: dino(net, NEW_HEAD)),
    "dino, backbone only": ("dino", vit, lambda net: net.state_dict()),
    "ibot": ("ibot", vit, ibot),
    "ibot, checkpoint_teacher": ("ibot", vit, lambda net: {"state_dict": net.state_dict()}),
    "beit": ("beit", lambda: beit(**BEIT), beit_file),
    "beit, deepspeed": ("beit", lambda: beit(**BEIT), lambda net: {"module": net.state_dict() | INDEX | LM}),
    "beit, one table a block": ("beit", lambda: beit(**BEIT), beit_per_block),
    "beit_v2": ("beit_v2", lambda: beit(**BEIT), lambda net: {"model": net.state_dict() | INDEX | LM | CLS_BRANCH}),
    "beit_v2, module": ("beit_v2", lambda: beit(**BEIT), lambda net: {"module": net.state_dict() | LM | CLS_BRANCH}),
    "beit_v2, fine-tuned": ("beit_v2", lambda: beit(**PER_BLOCK), beit_fine_tuned),
    "eva": ("eva", lambda: beit(**EVA), eva),
    "mae, linear probe": ("mae", lambda: vit(positions="sincos_xy"), linear_probe),
    "beit, fine-tuned": ("beit", lambda: beit(**PER_BLOCK), beit_fine_tuned),
    "beit, absolute positions": (
        "beit",
        lambda: beit(**ABSOLUTE),
        lambda net: {"model": net.state_dict() | LM | {"lm_head.bias": torch.zeros(8192)}},
    ),
    "eva, L with its decoder": (
        "eva",
        lambda: vit(positions="sincos_xy"),
        lambda net: {"model": net.state_dict() | DECODER | {"decoder_pred.bias": torch.zeros(1024)}},
    ),
    "eva, L": ("eva", lambda: vit(positions="sincos_xy"), lambda net: {"model": net.state_dict()}),
    "mpp": ("mpp", vit, lambda net: net.state_dict() | junk("mask_token", "head.weight", "head.bias")),
    "compiled, in DDP": ("dino", vit, lambda net: {"teacher": under("module._orig_mod.backbone.", net.state_dict())}),
    "compiled blocks": (
        "dino",
        vit,
        lambda net: {k.replace("blocks.1.", "blocks.1._orig_mod."): v for k, v in net.state_dict().items()},
    ),
    "Lightning": (
        "dino",
        vit,
        lambda net: {
            "state_dict": under("student.backbone.", vit(9).state_dict())
            | under("teacher.backbone.", net.state_dict()),
            "pytorch-lightning_version": "2.6.6",
            "optimizer_states": [],
        },
    ),
}


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def run(path: Path, method: str, backbone: str = NANO, **options: Any) -> tuple[Path, str]:
    """Convert and return the encoder file and the load report."""
    lines: list[str] = []
    out = path.with_name("encoder.pt")
    return convert(path, method=method, backbone=backbone, out=out, **options, show=lines.append), "\n".join(lines)


def assert_same(encoder: Any, net: nn.Module, size: int = 16) -> None:
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    tokens, expected = encoder(x), net.forward_features(x)
    torch.testing.assert_close(tokens.cls, expected[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens.patches, expected[:, 1:], rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1


@pytest.mark.parametrize("name", FILES)
def test_layouts(name: str, tmp_path: Path) -> None:
    method, make, wrap = FILES[name]
    net = make()
    out, report = run(write(tmp_path / "official.pth", wrap(net)), method)
    assert "100 % of the backbone's tensors, 100 % of its parameters" in report
    loaded = load_encoder(out)
    assert_same(loaded.encoder, net)
    assert loaded.method == method and loaded.loaded == 100
    assert ("labels" in loaded.about["flags"]) == ("fine-tuned" in name)


@pytest.mark.parametrize("name", NAMES)
def test_out_again_into_plain_timm(name: str, tmp_path: Path) -> None:
    method, make, wrap = FILES[name]
    source = write(tmp_path / "official.pth", wrap(make()))
    encoder = load_encoder(run(source, method)[0]).encoder
    out = convert(source, method=method, backbone=NANO, out=tmp_path / "t.pth", format="timm", show=lambda _: None)
    kind, options = ("beit_base_patch16_224", BEIT) if method == "beit" else ("vit_small_patch16_224", {})
    options = options and options | {"use_rel_pos_bias": False}
    net = timm.create_model(kind, img_size=16, **SHAPE, **options).eval()
    net.load_state_dict(torch.load(out, weights_only=True), strict=True)
    assert_same(encoder, net)


def test_a_pre_trained_k_bias_is_a_no_op_in_timm(tmp_path: Path) -> None:
    spec = {"name": NANO, "pos_embed": "none", "relative_positions": "shared", "layer_scale": 0.1}
    ours = randomise(ViT(**spec), 0)
    save_encoder(tmp_path / "e.pt", ours, spec, "beit", {})
    net = beit(1, **BEIT)
    net.load_state_dict(timm_state_dict(tmp_path / "e.pt"), strict=True)
    assert_same(ours, net)
    convert(tmp_path / "e.pt", method="beit", backbone=NANO, out=tmp_path / "t.pth", format="timm")
    net.load_state_dict(torch.load(tmp_path / "t.pth", weights_only=True), strict=True)
    with pytest.raises(UserError, match="an encoder file already"):
        convert(tmp_path / "e.pt", method="beit", backbone=NANO, out=tmp_path / "t.pth")


def test_moco_v3_vit_small_has_12_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "vit_small", (24, 2, 6))  # as the real one but for its width and depth
    net = vit(positions="sincos_yx", num_heads=12)
    source = write(tmp_path / "vit-s-300ep.pth.tar", {"state_dict": under("module.base_encoder.", net.state_dict())})
    out, report = run(source, "moco_v3", "vit_small_patch4_16")
    assert "12 heads" in report
    assert_same(load_encoder(out).encoder, net)


def test_heads_can_be_given(tmp_path: Path) -> None:
    source = write(tmp_path / "c.pth", vit(num_heads=3).state_dict())
    out, report = run(source, "dino", num_heads=3)
    assert "3 heads" in report
    assert_same(load_encoder(out).encoder, vit(num_heads=3))


def test_the_other_branch(tmp_path: Path) -> None:
    source = write(tmp_path / "c.pth", dino(vit()))
    assert_same(load_encoder(run(source, "dino", branch="student")[0]).encoder, vit(9))
    out, report = run(source, "dino")
    assert "the teacher as dino" in report and load_encoder(out).about["source"]["branch"] == "teacher"
    with pytest.raises(
        UserError, match=r"unknown branch 'techer': did you mean 'teacher'\? Choose from: student, teacher"
    ):
        run(source, "dino", branch="techer")


def test_a_student_of_ibot_must_be_asked_for(tmp_path: Path) -> None:
    source = write(tmp_path / "checkpoint_student.pth", {"state_dict": vit().state_dict() | junk("masked_embed")})
    with pytest.raises(UserError, match=r"holds the student, but ibot is evaluated with the teacher.*--branch student"):
        run(source, "ibot")
    assert_same(load_encoder(run(source, "ibot", branch="student")[0]).encoder, vit())


PAIRS = [pair for pair in permutations(NAMES, 2) if set(pair) != {"dino", "ibot"}]  # whose teachers look the same


@pytest.mark.parametrize(("right", "wrong"), PAIRS)
def test_files_of_another_method_are_refused(right: str, wrong: str, tmp_path: Path) -> None:
    _, make, wrap = FILES[right]
    with pytest.raises(UserError, match=r"does not fit|another method's"):
        run(write(tmp_path / "c.pth", wrap(make())), wrong)
    assert not (tmp_path / "encoder.pt").exists()


def test_another_methods_encoder_alone_is_told_by_its_positions(tmp_path: Path) -> None:
    source = write(tmp_path / "c.pth", {"model": vit(positions="sincos_xy").state_dict()})
    with pytest.raises(UserError, match="its positions are sincos_xy, those of dino are learned"):
        run(source, "dino")
    with pytest.raises(UserError, match="its positions are sincos_xy, those of moco_v3 are sincos_yx"):
        run(source, "moco_v3")


def without(name: str) -> Callable[[State], Any]:
    return lambda state: state.pop(name)


WRONG: dict[str, tuple[Callable[[State], Any], str]] = {
    "a tensor missing": (
        without("blocks.1.mlp.fc1.bias"),
        r"96\.6 % of its tensors match \(1 missing\); blocks\.1\.mlp",
    ),
    "no patch projection": (without("patch_embed.proj.weight"), "patch_embed.proj.weight is missing"),
    "no positions": (without("pos_embed"), "pos_embed is missing"),
    "another shape": (
        lambda state: state.update({"norm.bias": torch.zeros(23)}),
        r"1 misshaped\); norm\.bias is \(23,\) instead of \(24,\)",
    ),
    "deeper": (
        lambda state: state.update(under("blocks.2.", {"norm1.weight": torch.ones(24)})),
        r"100 % of its tensors match \(1 unexpected\); blocks\.2\.norm1\.weight is not part of it",
    ),
    "positions of no square": (
        lambda state: state.update(pos_embed=torch.zeros(1, 9, 24)),
        r"pos_embed is \(1, 9, 24\) instead of \(1, 17, 24\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_weights_that_do_not_fill_the_backbone_are_refused(name: str, tmp_path: Path) -> None:
    change, reason = WRONG[name]
    state = vit().state_dict()
    change(state)
    source = write(tmp_path / "c.pth", {"teacher": under("backbone.", state)})
    with pytest.raises(UserError, match=f"c.pth does not fit dino with {NANO}: .*{reason}"):
        run(source, "dino")
    assert not (tmp_path / "encoder.pt").exists()
    loaded = load_encoder(run(source, "dino", allow_partial=True)[0])
    assert loaded.about["deviations"]


def test_other_depth_and_patch_size(tmp_path: Path) -> None:
    source = write(tmp_path / "c.pth", vit().state_dict())
    with pytest.raises(UserError, match="missing"):
        run(source, "dino", "vit_tiny_patch4_16")
    with pytest.raises(UserError, match=r"patch_embed\.proj\.weight is \(24, 3, 4, 4\) instead of \(24, 3, 8, 8\)"):
        run(source, "dino", "vit_nano_patch8_32")


def test_a_table_for_each_block_goes_out_into_plain_timm(tmp_path: Path) -> None:
    net = beit(**PER_BLOCK)
    source = write(tmp_path / "c.pth", beit_fine_tuned(net))
    encoder = load_encoder(run(source, "beit")[0]).encoder
    assert encoder.relative_positions == "per_block"
    out = convert(source, method="beit", backbone=NANO, out=tmp_path / "t.pth", format="timm", show=lambda _: None)
    again = beit(3, **PER_BLOCK)
    again.load_state_dict(torch.load(out, weights_only=True), strict=True)
    assert_same(encoder, again)


def test_tables_of_blocks_are_resized(tmp_path: Path) -> None:
    out, report = run(write(tmp_path / "c.pth", beit_fine_tuned(beit(size=24, **PER_BLOCK))), "beit")
    assert "resized       2  blocks" in report and "100 % of the backbone's tensors" in report
    assert load_encoder(out).encoder.blocks[1].attn.relative_position_bias_table.shape == (52, 2)


@pytest.mark.parametrize(
    ("method", "make", "reason"),
    [
        # as BEiT with absolute positions, but for the length of their heads, or without any
        ("beit", lambda: beit(**ABSOLUTE).state_dict() | LM, r"blocks\.0\.ls1\.gamma is missing"),
        ("beit", lambda: vit().state_dict(), r"blocks\.0\.ls1\.gamma is missing"),
        # tables of blocks are BEiT's alone
        ("eva", lambda: beit(**PER_BLOCK).state_dict(), "pos_embed is missing"),
        # MAE's decoder predicts pixels: 3 x 16 x 16 values
        (
            "eva",
            lambda: vit(positions="sincos_xy").state_dict() | DECODER | {"decoder_pred.bias": torch.zeros(768)},
            "decoder_embed.weight is not part of it",
        ),
        ("dino", lambda: linear_probe(vit())["model"], r"head\.0\.running_mean is not part of it"),
    ],
)
def test_files_that_only_look_like_a_variant_are_refused(
    method: str, make: Callable[[], State], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"c.pth does not fit {method}.*({reason})"):
        run(write(tmp_path / "c.pth", {"model": make()}), method)


# What its images look like ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("mae", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("beit", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("beit, fine-tuned", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("beit, absolute positions", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("eva", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    ],
)
def test_statistics_of_the_input_are_the_authors(
    name: str, mean: tuple[float, ...], std: tuple[float, ...], tmp_path: Path
) -> None:
    method, make, wrap = FILES[name]
    loaded = load_encoder(run(write(tmp_path / "c.pth", wrap(make())), method)[0])
    assert loaded.about["input"] == {"mean": list(mean), "std": list(std)}
    assert (loaded.encoder.mean, loaded.encoder.std) == (mean, std)


def test_statistics_of_the_input_can_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = str(write(tmp_path / "c.pth", vit().state_dict())), str(tmp_path / "e.pt")
    base = ["convert", source, "--method", "dino", "--backbone", NANO, "--out", out]
    assert cli.main([*base, "--mean", "0.1", "0.2", "0.3", "--std", "1", "1", "0.5"]) == 0
    assert "input      mean 0.1 0.2 0.3, std 1.0 1.0 0.5" in capsys.readouterr().out
    assert load_encoder(out).encoder.mean == (0.1, 0.2, 0.3)
    assert cli.main([*base, "--mean", "0.1", "0.2", "0.3"]) == 2
    assert "--mean and --std belong together" in capsys.readouterr().err
    assert cli.main([*base, "--mean", "0", "0", "0", "--std", "1", "0", "1"]) == 2
    assert "--std 1.0 0.0 1.0: each must be above 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given", [{"mean": [0, 0, 0]}, {"mean": [0, 0, 0], "std": [1, 0, 1]}, [1], {"mean": 1, "std": 1}]
)
def test_wrong_statistics_in_an_encoder_file_are_refused(given: Any, tmp_path: Path) -> None:
    content = {"format": 1, "method": "mae", "encoder": {"name": NANO}, "about": {"input": given}}
    torch.save({**content, "state_dict": ViT(NANO).state_dict()}, tmp_path / "e.pt")
    with pytest.raises(UserError, match=r"e\.pt.* (about\.input|input is )"):
        load_encoder(tmp_path / "e.pt")


def test_partial_weights_say_so(tmp_path: Path) -> None:
    state = vit().state_dict()
    del state["blocks.0.mlp.fc1.weight"]
    source = write(tmp_path / "c.pth", state)
    first = load_encoder(run(source, "dino", allow_partial=True)[0])
    again = load_encoder(run(source, "dino", allow_partial=True)[0])
    assert first.loaded == pytest.approx(100 * 29 / 30) and first.sha256 == again.sha256
    assert first.about["deviations"][0].startswith("96.6 % of its tensors match (1 missing)")


def test_positions_are_resized(tmp_path: Path) -> None:
    net = vit(size=32)
    out, report = run(write(tmp_path / "c.pth", net.state_dict()), "dino", "vit_nano_patch4_16")
    assert "resized       1  pos_embed" in report
    loaded = load_encoder(out)
    assert loaded.about["deviations"] == ["pos_embed resized from (1, 65, 24) to (1, 17, 24)"]
    large = ViT("vit_nano_patch4_32", pos_embed="learned", init="timm", resample="dino").eval()
    large.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(loaded.encoder(x), large(x))  # as when small images are given to the large network


@pytest.mark.parametrize(("method", "kind"), [("mae", "sincos_xy"), ("moco_v3", "sincos_yx")])
def test_fixed_positions_are_computed_for_another_grid(method: str, kind: str, tmp_path: Path) -> None:
    state = {"model": vit(positions=kind, size=32).state_dict()}
    encoder = load_encoder(run(write(tmp_path / "c.pth", state), method, "vit_nano_patch4_16")[0]).encoder
    torch.testing.assert_close(encoder.pos_embed, vit(positions=kind).pos_embed, rtol=0, atol=1e-6)


def test_relative_positions_are_resized(tmp_path: Path) -> None:
    net = beit(size=24, **BEIT)
    table = net.rel_pos_bias.relative_position_bias_table.data
    rows, columns = torch.meshgrid(torch.linspace(-5, 5, 11), torch.linspace(-5, 5, 11), indexing="ij")
    table[:-3] = (rows + 10 * columns).reshape(-1, 1)  # linear, so any interpolation keeps it
    out, report = run(write(tmp_path / "c.pth", beit_file(net)), "beit")
    assert "resized       1  rel_pos_bias" in report
    resized = load_encoder(out).encoder.rel_pos_bias.relative_position_bias_table
    assert torch.equal(resized[-3:], table[-3:]) and resized.shape == (52, 2)
    grid = resized[:-3, 0].reshape(7, 7)
    torch.testing.assert_close(grid, -grid.flip(0, 1))
    assert (grid.diff(dim=0) > 0).all() and (grid.diff(dim=1) > 0).all()


def test_fine_tuned_for_mean_pooling(tmp_path: Path) -> None:
    net = vit()
    state = net.state_dict() | junk("head.weight", "head.bias")
    for kind in ("weight", "bias"):
        state[f"fc_norm.{kind}"] = state.pop(f"norm.{kind}")
    out, report = run(write(tmp_path / "c.pth", {"model": state}), "mae")
    loaded = load_encoder(out)
    assert "note: fine-tuned weights: the norm after the mean" in report and "labels" in loaded.about["flags"]
    assert_same(loaded.encoder, net)


def test_what_an_encoder_file_says(tmp_path: Path) -> None:
    source = write(tmp_path / "beit_base.pth", beit_file(beit(**BEIT)))
    about = load_encoder(run(source, "beit", data="imagenet1k")[0]).about
    assert about["recipe"] is None and about["pretraining"]["data"] == "imagenet1k" and about["loaded"] == 100
    assert about["flags"] == ["external weights", "external teacher"] and about["deviations"] == []
    assert "2106.08254" in about["paper"] and about["source"]["file"] == "beit_base.pth"
    unknown = load_encoder(run(source, "beit")[0]).about["pretraining"]
    assert unknown["data"] == "unknown" and "epochs" not in unknown
    assert load_encoder(run(source, "beit", epochs=800)[0]).about["pretraining"]["epochs"] == 800
    with pytest.raises(UserError, match="--epochs 0: it must be above 0"):
        run(source, "beit", epochs=0)


def test_converted_weights_are_evaluated_as_external_weights(tiny_data: Splits, tmp_path: Path) -> None:
    rows = []
    for seed in (0, 1):
        state = vit(seed).state_dict()
        if seed:
            del state["norm.bias"]
        loaded = load_encoder(run(write(tmp_path / "c.pth", state), "dino", allow_partial=True)[0])
        rows += run_evaluations(loaded, {"knn": load_evaluator("knn")}, tiny_data, tmp_path, suite=None)
    assert rows[0]["id"] != rows[1]["id"] and not rows[0].stale
    assert [row["method"] for row in rows] == ["dino", "dino"] and rows[0]["recipe"] is None
    assert rows[0]["backbone"]["pos_embed"] == "learned" and rows[0]["pretraining"]["data"] == "unknown"
    assert rows[0]["weights"]["loaded_percent"] == 100 and 96 < rows[1]["weights"]["loaded_percent"] < 97


# Files -------------------------------------------------------------------------------------------------------------


def test_safetensors(tmp_path: Path) -> None:
    save_file(vit().state_dict(), tmp_path / "w.safetensors")
    assert_same(load_encoder(run(tmp_path / "w.safetensors", "dino")[0]).encoder, vit())
    (tmp_path / "bad.safetensors").write_bytes(b"not really")
    with pytest.raises(UserError, match="damaged, incomplete or no checkpoint"):
        run(tmp_path / "bad.safetensors", "dino")


def test_plain_values_beside_the_weights_are_read(tmp_path: Path) -> None:
    values = {"args": argparse.Namespace(out=tmp_path, lr=1e-3), "best": np.float64(78.2), "step": np.int64(3)}
    for zipped in (True, False):  # torch's format since 2020, and the one before
        torch.save({"teacher": vit().state_dict(), **values}, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
        run(tmp_path / "c.pth", "dino")
    old = (tmp_path / "c.pth").read_bytes().replace(b"numpy._core", b"numpy.core")  # before NumPy 2
    (tmp_path / "c.pth").write_bytes(old)
    run(tmp_path / "c.pth", "dino")


def test_nothing_is_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return (open, (str(tmp_path / "exploded"), "w"))

    path = write(tmp_path / "c.pth", {"model": vit().state_dict(), "args": argparse.Namespace(x=Bomb())})
    with pytest.raises(UserError, match=r"holds a pickled (_?io|builtins)\.open.*if you trust the file"):
        run(path, "mae")
    path.write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(UserError):
        run(path, "mae")
    assert not (tmp_path / "exploded").exists()


def spoil(path: Path, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "truncated":
        write(path, vit().state_dict())
        path.write_bytes(path.read_bytes()[:5000])
    elif kind in ("list", "no network"):
        write(path, [1, 2] if kind == "list" else {"model": {"conv1.weight": torch.ones(2)}})
    elif kind != "none":
        start = {"empty": b"", "html": b"\n<!DOCTYPE html>", "lfs": b"version https://git-lfs.github.com/spec/v1"}
        path.write_bytes(start.get(kind, np.random.default_rng(0).bytes(500)))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("none", "no such checkpoint"),
        ("folder", "is a folder"),
        ("empty", "is empty"),
        ("html", "a web page"),
        ("lfs", "a pointer"),
        ("truncated", "damaged, incomplete or no checkpoint"),
        ("random bytes", "damaged, incomplete or no checkpoint"),
        ("list", "holds no state dict but a list"),
        ("no network", "holds no vision transformer"),
    ],
)
def test_files_that_are_no_checkpoint(
    kind: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.pth"
    spoil(path, kind)
    argv = ["convert", str(path), "--method", "mae", "--backbone", NANO, "--out", str(tmp_path / "e.pt")]
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert words in error and str(path) in error and error.count("\n") == 1


# The command -------------------------------------------------------------------------------------------------------


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = str(write(tmp_path / "c.pth", dino(vit()))), str(tmp_path / "e.pt")
    base = ["convert", source, "--method", "dino", "--backbone", NANO, "--out", out]
    assert cli.main([*base, "--branch", "student", "--pretrained-on", "cifar10"]) == 0
    printed = capsys.readouterr().out
    assert "the student as dino" in printed and printed.splitlines()[-1] == out
    assert load_encoder(out).about["pretraining"]["data"] == "cifar10"
    assert cli.main([*base, "--format", "timm"]) == 0
    VisionTransformer(img_size=16, **SHAPE).load_state_dict(torch.load(out, weights_only=True))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"--method": "dyno"}, "unknown method 'dyno': did you mean 'dino'"),
        ({"--method": "raw_pixels"}, "no pre-trained backbone"),
        ({"--backbone": "vit_nano_patch5_16"}, "patch size 5"),
        ({"--backbone": "resnet50"}, "unknown backbone 'resnet50'"),
        ({"--format": "onnx"}, "--format"),
        ({"--num-heads": "5"}, "num_heads 5 does not divide"),
        ({"--branch": "momentum"}, "Choose from: student, teacher"),
        ({"--out": "."}, "--out . is a folder"),
    ],
)
def test_wrong_requests(
    changed: dict[str, str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(write(tmp_path / "c.pth", dino(vit())))
    options = {"--method": "dino", "--backbone": NANO, "--out": str(tmp_path / "e.pt")} | changed
    assert cli.main(["convert", source, *(word for pair in options.items() for word in pair)]) == 2
    assert words in capsys.readouterr().err
    assert cli.main(["convert", source, "--method", "dino", "--backbone", NANO, "--out", source]) == 2


def test_branches_are_found_by_structure() -> None:
    state = vit().state_dict()
    assert branches({"state_dict": under("encoder_q.", state) | under("encoder_k.", state)}).keys() == {
        "encoder_q",
        "encoder_k",
    }
    assert branches({"model": state, "model_ema": state}).keys() == {"model", "model_ema"}
    assert not branches({"weights": [1, 2], 3: {"x": torch.ones(1)}})
