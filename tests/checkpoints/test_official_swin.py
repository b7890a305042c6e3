"""Released Swin checkpoints: each layout loads completely and computes what its own network did; others are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from ssl_bench.backbones.swin import SIZES, Swin
from ssl_bench.checkpoints.encoder_file import load_encoder
from ssl_bench.checkpoints.official import branches
from ssl_bench.commands.convert import convert
from ssl_bench.utils.errors import UserError

NAME = "swin_nano_patch2_window2_16"
DIM, DEPTHS, HEADS = SIZES["swin_nano"]
State = dict[str, Tensor]


def swin(seed: int = 0, window: int = 2) -> nn.Module:
    """timm's own network, with weights large enough for a wrong one to be seen."""
    shape: dict[str, Any] = {"embed_dim": DIM, "depths": DEPTHS, "num_heads": HEADS, "window_size": window}
    net = SwinTransformer(img_size=16, patch_size=2, num_classes=0, global_pool="", **shape)
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.data.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return net.eval()


def official(net: nn.Module) -> State:
    """``swin_transformer.py``: merging layers end their stage; windows and masks are buffers."""
    state = {name.replace("layers.1.downsample", "layers.0.downsample"): v for name, v in net.state_dict().items()}
    for stage in range(len(DEPTHS)):
        for block in range(DEPTHS[stage]):
            at = f"layers.{stage}.blocks.{block}"
            state[f"{at}.attn.relative_position_index"] = torch.zeros(4, 4, dtype=torch.int64)
            if block % 2 and stage == 0:
                state[f"{at}.attn_mask"] = torch.zeros(16, 4, 4)
    assert list(state) != list(net.state_dict())
    return state


def under(prefix: str, *states: State) -> State:
    return {f"{prefix}{name}": value for state in states for name, value in state.items()}


def junk(*names: str) -> State:
    return {name: torch.ones(3, 5) for name in names}


def head(name: str = "head") -> State:
    return junk(*(f"{name}.{part}" for part in ("mlp.0.weight", "last_layer.weight_g", "last_layer.weight_v")))


def moby(net: nn.Module) -> Any:
    both = under("encoder.", official(net)) | under("encoder_k.", official(swin(9)))
    heads = junk("projector.linear_hidden.1.weight", "projector_k.linear_out.weight", "predictor.linear_out.bias")
    return {"model": both | heads | junk("queue1", "queue2", "queue_ptr"), "epoch": 299, "max_accuracy": 0.0}


def esvit(net: nn.Module, *heads: str) -> Any:
    own = [head(name) for name in heads or ("head", "head_dense")]
    student = under("module.", official(swin(9)), *own)
    return {"student": student, "teacher": official(net) | under("", *own), "dino_loss": junk("center", "center_grid")}


def ibot(net: nn.Module) -> Any:
    student = under("module.backbone.", official(swin(9)), junk("masked_embed")) | under("module.", head())
    return {"student": student, "teacher": under("backbone.", official(net)) | head(), "ibot_loss": junk("center2")}


FILES: dict[str, tuple[str, Callable[[nn.Module], Any]]] = {
    "moby": ("moby", moby),
    "esvit": ("esvit", esvit),
    "esvit, view term alone": ("dino", lambda net: esvit(net, "head")),
    "ibot": ("ibot", ibot),
    "ibot, checkpoint_teacher": ("ibot", lambda net: {"state_dict": official(net)}),
    "timm's names": ("dino", lambda net: net.state_dict()),
}


def run(content: Any, folder: Path, method: str, backbone: str = NAME, **options: Any) -> tuple[Path, str]:
    lines: list[str] = []
    torch.save(content, folder / "c.pth")
    out = folder / "out.pt"
    convert(folder / "c.pth", method=method, backbone=backbone, out=out, show=lines.append, **options)
    return out, "\n".join(lines)


@pytest.mark.parametrize("name", FILES)
def test_layouts(name: str, tmp_path: Path) -> None:
    method, wrap = FILES[name]
    net = swin()
    out, report = run(wrap(net), tmp_path, method)
    assert "100 % of the backbone's tensors, 100 % of its parameters" in report
    loaded = load_encoder(out)
    assert loaded.loaded == 100 and "labels" not in loaded.about["flags"] and not loaded.about["deviations"]
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    expected = net.forward_features(x).flatten(1, 2)
    tokens = loaded.encoder(x)
    torch.testing.assert_close(tokens.patches, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens.cls, expected.mean(1), rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1


def test_out_again_into_plain_timm(tmp_path: Path) -> None:
    net, again = swin(), swin(3)
    out, _ = run(moby(net), tmp_path, "moby", format="timm")
    again.load_state_dict(torch.load(out, weights_only=True), strict=True)
    for name, value in again.state_dict().items():
        assert torch.equal(value, net.state_dict()[name])


def test_a_backbone_is_one_branch() -> None:
    assert list(branches(moby(swin()))) == ["encoder", "encoder_k"]
    assert list(branches(esvit(swin()))) == ["student", "teacher"]
    assert list(branches({"model": official(swin())})) == ["model"]


def test_simmim_has_the_same_names() -> None:
    state = branches({"model": under("encoder.", official(swin()), junk("mask_token")) | junk("decoder.0.weight")})
    assert set(Swin.from_official(state["encoder"])) >= set(swin().state_dict())


@pytest.mark.parametrize("right", ["moby", "esvit", "ibot"])
@pytest.mark.parametrize("wrong", ["moby", "esvit", "ibot", "dino"])
def test_files_of_another_method_are_refused(right: str, wrong: str, tmp_path: Path) -> None:
    """But iBOT's, whose teacher looks like one of DINO and of EsViT without a region head."""
    if wrong in (right, *(("esvit", "dino") if right == "ibot" else ())):
        return
    with pytest.raises(UserError, match=r"does not fit|another method's"):
        run(FILES[right][1](swin()), tmp_path, wrong)
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize(
    ("content", "backbone", "reason"),
    [
        (lambda: esvit(swin(window=3)), NAME, r"relative_position_bias_table is \(25, 1\) instead of \(9, 1\)"),
        (lambda: esvit(swin()), "vit_nano_patch4_16", "does not fit esvit with vit_nano_patch4_16"),
        (lambda: esvit(swin()), "swin_micro_patch2_window4_32", "does not fit esvit with swin_micro"),
        (
            lambda: {"teacher": {k: v for k, v in official(swin()).items() if "downsample.norm.bias" not in k}},
            NAME,
            r"layers\.1\.downsample\.norm\.bias is missing",
        ),
    ],
)
def test_weights_that_do_not_fill_the_backbone_are_refused(
    content: Callable[[], Any], backbone: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason):
        run(content(), tmp_path, "esvit", backbone)
