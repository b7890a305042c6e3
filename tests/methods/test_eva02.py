"""EVA-02 against the worked numbers of its code (baaivision/EVA, EVA-02) and the invariants of its loss."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from timm.layers.mlp import GluMlp, SwiGLU
from torch import Tensor, nn

from ssl_bench.backbones import build_backbone
from ssl_bench.methods.eva02 import EVA02MIM
from ssl_bench.nn.losses import cosine_loss
from ssl_bench.teachers.clip_tower import CLIPTower
from ssl_bench.utils.errors import UserError

X = torch.tensor([[1.0, 2.0], [-1.0, 0.5]])
W1, B1 = torch.tensor([[0.1, 0.2], [-0.3, 0.4], [0.5, -0.6]]), torch.tensor([0.01, 0.02, 0.03])
W2, B2 = torch.tensor([[0.7, -0.1], [0.2, 0.3], [-0.4, 0.5]]), torch.tensor([-0.01, 0, 0.02])
W3, B3 = torch.tensor([[1, 0, -1], [0.5, 0.5, 0.5]]), torch.tensor([0.1, -0.1])
NORMED = [[1.8450902, -0.1000001], [2.3020773, -0.1000001]]
PLAIN = [[0.3967507, 0.0382105], [0.2594526, -0.1916982]]


def tower(out_dim: int = 10) -> CLIPTower:
    torch.manual_seed(5)
    clip = CLIPTower(build_backbone("eva02_micro_patch8_32"), nn.Linear(96, out_dim, bias=False))
    return clip.eval().requires_grad_(False)


def make(**keywords: Any) -> EVA02MIM:
    torch.manual_seed(0)
    options = {key: EVA02MIM.backbone_options[key] for key in ("patch_gradient", "mask_token")}
    method = EVA02MIM(build_backbone("eva02_micro_patch8_32", **options), **{"min_block": 2, **keywords})
    method.set_teacher("teacher", tower())
    return method


@pytest.fixture
def eva() -> EVA02MIM:
    return make()


def test_packed_swiglu_numbers() -> None:
    """Tiny and small: the first half of the packed matrix is the gate."""
    mlp = GluMlp(2, 6, 2, act_layer=nn.SiLU, gate_last=False)
    state = {"fc1.weight": torch.cat([W1, W2]), "fc1.bias": torch.cat([B1, B2]), "fc2.weight": W3, "fc2.bias": B3}
    mlp.load_state_dict(state)
    torch.testing.assert_close(mlp(X), torch.tensor(PLAIN), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("norm", "expected"), [(None, PLAIN), (nn.LayerNorm, NORMED)])
def test_swiglu_numbers(norm: Any, expected: list[list[float]]) -> None:
    """Base and large: separate matrices, and the norm inside."""
    mlp = SwiGLU(2, 3, 2, norm_layer=norm and partial(norm, eps=1e-6))
    names = {"fc1_g": (W1, B1), "fc1_x": (W2, B2), "fc2": (W3, B3)}
    for name, (weight, bias) in names.items():
        layer = getattr(mlp, name)
        layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
    hidden = mlp.act(mlp.fc1_g(X)) * mlp.fc1_x(X)
    inside = [[0.1561391, 0.2608935, -0.1406116], [-0.0038190, -0.0163058, -0.1632716]]
    torch.testing.assert_close(hidden, torch.tensor(inside), rtol=0, atol=1e-6)
    torch.testing.assert_close(mlp(X), torch.tensor(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("depth", "factor"), [(12, 1.7827097), (24, 1.9675368)])
def test_factor_of_the_initial_weights(depth: int, factor: float) -> None:
    assert math.sqrt(math.log(2 * depth)) == pytest.approx(factor, abs=1e-6)


def test_initial_weights_relative_to_xavier() -> None:
    torch.manual_seed(0)
    block: Any = build_backbone("eva02_tiny_patch14_224", sub_norm=True).blocks[5]
    attention, mlp = block.attn, block.mlp
    layers = {name: getattr(attention, name) for name in ("q_proj", "k_proj", "v_proj", "proj")}
    layers |= {name: getattr(mlp, name) for name in ("fc1_g", "fc1_x", "fc2")}
    for name, layer in layers.items():
        ratio = layer.weight.std().item() / math.sqrt(2 / sum(layer.weight.shape))
        assert ratio == pytest.approx(1.0 if name in ("q_proj", "k_proj") else 1.783, rel=0.02)


def test_head_is_xavier_normal_and_always_the_same() -> None:
    heads = []
    for draws in (0, 7):
        method = EVA02MIM(build_backbone("eva02_micro_patch8_32", mask_token=True), min_block=2)
        torch.rand(draws)  # whatever is drawn while a teacher is made
        method.set_teacher("teacher", tower(out_dim=1024))
        assert method.head.weight is not None and method.head.bias is not None and method.head.bias.eq(0).all()
        heads.append(method.head.weight.data)
    assert heads[0].shape == (1024, 96) and torch.equal(*heads)
    assert heads[0].std().item() == pytest.approx(math.sqrt(2 / (1024 + 96)), rel=0.02)


def test_loss_by_hand(eva: EVA02MIM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mask token in place of the embedding, before cls and positions; the head at masked patches; the whole image for
    the teacher."""
    mask = torch.rand(3, 16) < 0.4
    monkeypatch.setattr(eva, "masks", lambda batch: mask)
    images, seen = torch.randn(3, 3, 32, 32), torch.randn(3, 3, 32, 32)
    b: Any = eva.backbone
    for p in b.parameters():
        nn.init.normal_(p, std=0.1)
    x = b.patch_embed(images).flatten(1, 2)
    x[mask] = b.mask_token[0, 0]
    x = torch.cat([b.cls_token.expand(3, -1, -1), x], dim=1) + b.pos_embed
    rope = b.rope.get_embed(shape=[4, 4])
    for block in b.blocks:
        x = block(x, rope=rope)
    predicted = eva.head(b.norm(x)[:, 1:][mask])
    wanted = eva.teacher.patches(seen)[mask]
    expected = -torch.stack([p @ t / p.norm() / t.norm() for p, t in zip(predicted, wanted, strict=True)]).mean()
    torch.testing.assert_close(eva.loss([images, seen])["loss"], expected, rtol=1e-4, atol=1e-5)


def test_cosine_numbers() -> None:
    prediction, target = torch.tensor([[[1.0, 2, 3], [-1, 0.5, 0.25]]]), torch.tensor([[[2, 1, 0.5], [0.3, -0.2, 0.1]]])
    loss = cosine_loss(prediction, target, torch.ones(1, 2, dtype=torch.bool))
    assert loss.item() == pytest.approx(0.11664233, abs=1e-6)


def test_masked_pixels_do_not_reach_the_student(eva: EVA02MIM, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.rand(2, 16) < 0.5
    monkeypatch.setattr(eva, "masks", lambda batch: mask)
    images = torch.randn(2, 3, 32, 32)
    pixels = mask.view(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    other = torch.where(pixels, 99.0, images)
    assert eva.loss([images, images])["loss"] == eva.loss([other, images])["loss"]
    assert eva.loss([images, images])["loss"] != eva.loss([images, other])["loss"]


def test_masks_are_the_papers() -> None:
    """16 x 16 patches: never more than 105, 104.4 on average, exactly 105 in about 65 %."""
    with torch.device("meta"):
        method = EVA02MIM(build_backbone("eva02_tiny_patch14_224", mask_token=True))
    assert method.n_masked == 105
    method._device = torch.device("cpu")
    counts = method.masks(2000).sum(dim=1).float()
    assert counts.max() == 105 and counts.mean().item() == pytest.approx(104.4, abs=0.3)
    assert (counts == 105).float().mean().item() == pytest.approx(0.65, abs=0.06)


def test_a_tenth_of_the_gradient_reaches_the_patch_embedding() -> None:
    def gradient(method: EVA02MIM) -> Tensor:
        method.masks = lambda batch: torch.eye(16, dtype=torch.bool)[:batch]  # type: ignore[method-assign]
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        method.loss([images, images])["loss"].backward()
        backbone: Any = method.backbone
        return backbone.patch_embed.proj.weight.grad

    reduced, full = make(), make()
    backbone: Any = full.backbone
    backbone.patch_gradient = 1.0
    torch.testing.assert_close(gradient(reduced), 0.1 * gradient(full), rtol=1e-3, atol=1e-6)


def test_teacher_is_no_part_of_the_method_and_a_saved_method_loads_without_it(eva: EVA02MIM) -> None:
    assert {n for n in eva.state_dict() if not n.startswith("backbone.")} == {"head.weight", "head.bias"}
    other = EVA02MIM(build_backbone("eva02_micro_patch8_32", mask_token=True), min_block=2)
    other.load_state_dict(eva.state_dict())
    for name, value in eva.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    with pytest.raises(AssertionError, match="set_teacher comes first"):
        _ = other.teacher


def test_weight_decay_spares_vectors_positions_and_cls(eva: EVA02MIM) -> None:
    names = {id(p): n for n, p in eva.named_parameters()}
    groups = eva.param_groups()
    decayed = {names[id(p)] for group in groups if "weight_decay" not in group for p in group["params"]}
    spared = {names[id(p)] for group in groups if group.get("weight_decay") == 0 for p in group["params"]}
    assert {"head.weight", "backbone.mask_token", "backbone.patch_embed.proj.weight"} <= decayed
    assert {"backbone.pos_embed", "backbone.cls_token", "head.bias", "backbone.blocks.0.attn.q_bias"} <= spared


def test_student_views_and_defaults_are_the_papers(eva: EVA02MIM) -> None:
    student, teacher = eva.views
    assert (student.sides, teacher.sides, teacher.same) == ((32, 32), (32, 32), True)
    for view in (student, teacher):
        assert (view.scale, view.interpolation, view.flip, view.jitter_p, view.blur) == ((0.2, 1), "bicubic", 0.5, 0, 0)
    assert eva.backbone.mean == EVA02MIM.input_statistics[0]  # type: ignore[index]
    d = EVA02MIM.defaults
    assert d.lr == pytest.approx(1.5e-3) and (d.betas, d.eps, d.clip_grad) == ((0.9, 0.98), 1e-6, 3.0)
    assert (d.epochs, d.warmup_epochs, d.weight_decay, d.min_lr) == (150, 1, 0.05, 1e-5)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"min_block 16 does not fit 7 masked patches of 4 x 4: .* 1 to 7"):
        EVA02MIM(build_backbone("eva02_micro_patch8_32", mask_token=True))
    with pytest.raises(UserError, match="replaces masked patches by a learned token"):
        EVA02MIM(build_backbone("hiera_micro_32"))
