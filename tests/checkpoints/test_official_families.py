"""Released files of EVA-02 and Hiera: each form loads completely and computes the same; others are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_bench.backbones import build_backbone, eva02
from ssl_bench.backbones.backbone import Backbone
from ssl_bench.checkpoints.encoder_file import load_encoder
from ssl_bench.commands.convert import convert
from ssl_bench.utils.errors import UserError

State = dict[str, Tensor]
PACKED, SEPARATE, HIERA = "eva02_nano_patch4_16", "eva02_pico_patch4_16", "hiera_nano_32"


@pytest.fixture(autouse=True)
def a_small_network_with_separate_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(eva02.SIZES, "eva02_pico", (24, 2, 2, True))


def network(name: str, seed: int = 0, **options: Any) -> Backbone:
    """Weights large enough for a wrong one to be seen in the features."""
    net = build_backbone(name, **options)
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.data.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return net.eval()


def junk(*names: str) -> State:
    return {name: torch.ones(3, 5) for name in names}


def rope_tables(net: Any) -> State:
    sin, cos = net.rope.get_embed(shape=list(net.grid)).chunk(2, dim=-1)
    own = {"rope.freqs_cos": cos, "rope.freqs_sin": sin}
    return own | {f"blocks.{i}.attn.{name}": value for i in range(2) for name, value in own.items()}


def renamed(state: State, names: dict[str, str]) -> State:
    for ours, theirs in names.items():
        state = {name.replace(ours, theirs): value for name, value in state.items()}
    return state


def eva02_packed(net: Backbone) -> Any:
    """Tiny and small (``modeling_pretrain.py``): fused qkv with biases of its own, packed SwiGLU of xformers."""
    state = renamed(net.state_dict(), {"mlp.fc1.": "mlp.w12.", "mlp.fc2.": "mlp.w3."})
    return {"module": state | rope_tables(net) | junk("mask_token", "lm_head.weight", "lm_head.bias")}


def eva02_separate(net: Backbone) -> Any:
    """Base and large: a matrix each of q, k and v, SwiGLU with a norm inside."""
    names = {"mlp.fc1_g.": "mlp.w1.", "mlp.fc1_x.": "mlp.w2.", "mlp.norm.": "mlp.ffn_ln.", "mlp.fc2.": "mlp.w3."}
    state = renamed(net.state_dict(), names | {"q_proj.bias": "q_bias", "v_proj.bias": "v_bias"})
    return {"model": state | rope_tables(net) | junk("mask_token", "lm_head.weight", "lm_head.bias")}


def hiera_mae(net: Backbone) -> Any:
    state = renamed(net.state_dict(), {"head.norm.": "encoder_norm."})
    decoder = junk("mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.norm1.weight")
    return {"model_state": state | decoder | junk("multi_scale_fusion_heads.0.weight", "decoder_norm.weight")}


def hiera_fine_tuned(net: Backbone) -> Any:
    state = renamed(net.state_dict(), {"head.norm.": "norm."})
    return {"model_state": state | junk("head.projection.weight", "head.projection.bias")}


FILES: dict[str, tuple[str, str, Callable[[Backbone], Any]]] = {
    "packed": ("eva02", PACKED, eva02_packed),
    "separate": ("eva02", SEPARATE, eva02_separate),
    "timm's names, packed": ("eva02", PACKED, lambda net: net.state_dict()),
    "timm's names, separate": ("eva02", SEPARATE, lambda net: net.state_dict()),
    "hiera, with its decoder": ("hiera_mae", HIERA, hiera_mae),
    "hiera, fine-tuned": ("hiera_mae", HIERA, hiera_fine_tuned),
    "hiera, timm's names": ("hiera_mae", HIERA, lambda net: net.state_dict()),
    "hiera, timm's names, fine-tuned": (
        "hiera_mae",
        HIERA,
        lambda net: net.state_dict() | junk("head.fc.weight", "head.fc.bias"),
    ),
}


def run(path: Path, content: Any, method: str, backbone: str, **options: Any) -> tuple[Any, str]:
    torch.save(content, path / "c.pth")
    lines: list[str] = []
    out = convert(path / "c.pth", method=method, backbone=backbone, out=path / "e.pt", show=lines.append, **options)
    return out, "\n".join(lines)


def assert_same(encoder: Any, net: Backbone) -> None:
    x = torch.randn(2, 3, *net.image_size, generator=torch.Generator().manual_seed(1))
    for mine, theirs in zip(encoder(x), net(x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
        assert theirs.std() > 0.05


@pytest.mark.parametrize("name", FILES)
def test_layouts(name: str, tmp_path: Path) -> None:
    method, backbone, wrap = FILES[name]
    net = network(backbone)
    out, report = run(tmp_path, wrap(net), method, backbone)
    assert "100 % of the backbone's tensors, 100 % of its parameters" in report
    loaded = load_encoder(out)
    assert_same(loaded.encoder, net)
    assert ("labels" in loaded.about["flags"]) == ("fine-tuned" in name) and loaded.about["deviations"] == []
    assert loaded.about["backbone"].get("rope_grid") is None


def test_fine_tuned_at_a_larger_size_keeps_the_scale_of_its_rotary_positions(tmp_path: Path) -> None:
    net = network("eva02_nano_patch4_24", rope_grid=4)
    state = {n: v for n, v in eva02_packed(net)["module"].items() if not n.startswith(("lm_head", "mask_token"))}
    state = {f"fc_{name}" if name.startswith("norm.") else name: value for name, value in state.items()}
    content = {"model": state | junk("head.weight", "head.bias")}
    loaded = load_encoder(run(tmp_path, content, "eva02", "eva02_nano_patch4_24")[0])
    assert loaded.about["backbone"]["rope_grid"] == 4 and "labels" in loaded.about["flags"]
    assert_same(loaded.encoder, net)


@pytest.mark.parametrize(
    ("content", "method", "backbone", "reason"),
    [
        (lambda: eva02_packed(network(PACKED)), "eva02", SEPARATE, "is missing"),
        (lambda: eva02_separate(network(SEPARATE)), "eva02", PACKED, "is missing"),
        (lambda: eva02_packed(network(PACKED)), "eva02", "eva02_nano_patch4_24", r"pos_embed is \(1, 17, 24\)"),
        (lambda: eva02_packed(network(PACKED)), "eva", "vit_nano_patch4_16", "not part of it|missing"),
        (lambda: hiera_mae(network(HIERA)), "hiera_mae", "hiera_nano_16", r"pos_embed is \(1, 256, 6\)"),
        (lambda: network("vit_nano_patch4_16").state_dict(), "hiera_mae", HIERA, "missing"),
        (
            lambda: {n: v for n, v in network(HIERA).state_dict().items() if "norm2" not in n},
            "hiera_mae",
            HIERA,
            "norm2.weight is missing",
        ),
    ],
)
def test_others_are_refused(
    content: Callable[[], Any], method: str, backbone: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"does not fit {method}.*({reason})"):
        run(tmp_path, content(), method, backbone)
    assert not (tmp_path / "e.pt").exists()


@pytest.mark.parametrize("name", ["packed", "separate", "hiera, with its decoder"])
def test_out_again_under_timms_names(name: str, tmp_path: Path) -> None:
    method, backbone, wrap = FILES[name]
    net = network(backbone)
    out, _ = run(tmp_path, wrap(net), method, backbone, format="timm")
    weights = torch.load(out, weights_only=True)
    assert weights.keys() == net.state_dict().keys()
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in weights.items())
