"""Compute counted from shapes: against formulas, against torch's counter, and the same wherever it is counted."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny import NANO
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ssl_bench.backbones import build_backbone
from ssl_bench.backbones.backbone import Backbone
from ssl_bench.backbones.vit import SIZES, parse_name
from ssl_bench.config.build import build, build_with_teachers
from ssl_bench.config.cost import training_flops
from ssl_bench.config.method_facts import method_facts
from ssl_bench.config.recipe import load_recipe
from ssl_bench.data.datasets import Splits
from ssl_bench.methods.baselines import Supervised
from ssl_bench.methods.clip import CLIP
from ssl_bench.methods.method import Method
from ssl_bench.nn import attention
from ssl_bench.nn.block import every_output
from ssl_bench.training import without_data as module
from ssl_bench.training.compute import best_precision, count_step, forward_flops, step_cost
from ssl_bench.training.trainer import train
from ssl_bench.training.without_data import built_without_data, shapes_alone, without_data
from ssl_bench.utils import distributed
from ssl_bench.utils.errors import UserError


def by_hand(dim: int, depth: int, tokens: int, patches: int, patch_values: int) -> float:
    """Matrix products of one forward pass of a vision transformer for one image, two FLOPs a multiply-add."""
    return 2.0 * patches * patch_values * dim + depth * (24.0 * tokens * dim**2 + 4.0 * tokens**2 * dim)


def encoder_by_hand(name: str, share: float = 1.0, tokens: float = 1.0) -> float:
    size, patch, (height, width) = parse_name(name)
    dim, depth, _ = SIZES[size]
    patches = int(height * width // patch**2 * share)
    return by_hand(dim, depth, int(patches * tokens) + 1, patches, 3 * patch**2)


def empty(name: str, **options: Any) -> Backbone:
    with built_without_data():
        return build_backbone(name, **options)


@pytest.mark.parametrize("name", ["vit_nano_patch4_16", "vit_huge_patch14_224", "vit_tiny_patch16_224x448"])
def test_forward_flops_are_those_of_the_formula(name: str) -> None:
    assert forward_flops(empty(name), parse_name(name)[2]) == encoder_by_hand(name)


def test_flops_of_vit_base() -> None:
    """17.5 billion multiply-adds for one image of 224 px (Liu et al. 2021, Swin, table 1, DeiT-B)."""
    assert forward_flops(empty("vit_base_patch16_224"), (224, 224)) == pytest.approx(2 * 17.5e9, rel=0.01)


def test_flops_of_swin_tiny() -> None:
    """4.5 billion multiply-adds (Liu et al. 2021, table 1)."""
    assert forward_flops(empty("swin_tiny_patch4_window7_224"), (224, 224)) == pytest.approx(2 * 4.5e9, rel=0.01)


@pytest.mark.parametrize("name", ["swin_micro_patch2_window4_32", "hiera_micro_32", "eva02_micro_patch8_32"])
def test_every_family_runs_without_data(name: str) -> None:
    method = build(load_recipe("moco_v3", None, {"backbone": name, **method_facts("moco_v3").tiny}), ["a"])
    assert count_step(without_data(method), 2, 1) == count_step(copy.deepcopy(method), 2, 1)


def test_a_backward_pass_costs_two_forward_passes_but_for_the_pixels() -> None:
    """No gradient of the pixels is wanted, which saves one product of the patch embedding."""
    forward = forward_flops(empty(NANO), (16, 16))
    both = forward_flops(empty(NANO), (16, 16), backward=True)
    assert both == 3 * forward - 2 * 16 * 48 * 24


def test_training_flops_of_mae_by_hand() -> None:
    """A quarter of the patches in the encoder, all of them in the decoder."""
    recipe = load_recipe("mae", "vit_large_in1k")
    encoder = encoder_by_hand("vit_large_patch16_224", tokens=0.25)
    decoder = by_hand(512, 8, 197, 196, 768) + 2 * 50 * 1024 * 512
    assert training_flops(recipe, 1000) == pytest.approx(3 * (encoder + decoder), rel=0.005)


def test_training_flops_of_dino_by_hand() -> None:
    """Ten local crops of 6 x 6 patches; the head is a hundredth and left out here."""
    recipe = load_recipe("dino", "vit_base_in1k")
    one, local = encoder_by_hand("vit_base_patch16_224"), encoder_by_hand("vit_base_patch16_224", share=36 / 196)
    assert training_flops(recipe, 1000) == pytest.approx(3 * (2 * one + 10 * local) + 2 * one, rel=0.03)


def test_own_counter_is_torchs() -> None:
    """Of a step with convolutions, attention and embeddings, on the CPU."""
    method = build(load_recipe("dino", None, {"backbone": NANO, **method_facts("dino").tiny}), ["a", "b"])
    cost = count_step(copy.deepcopy(method), 4, 2)
    for block in (*method.backbone.blocks, *method.teacher.backbone.blocks):  # fused attention would count as nothing
        block.attn.forward = lambda x, attn=block.attn, **_: plain_attention(attn, x)
    with FlopCounterMode(display=False) as counter, every_output():
        method.loss([torch.rand(4, 3, *v.sides) for v in method.views for _ in range(v.count)])["loss"].backward()
    assert cost.flops == counter.get_total_flops() / 4


def plain_attention(attn: Any, x: Tensor) -> Tensor:
    q, k, v = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return attn.proj(((q @ k.mT) * attn.scale).softmax(-1).matmul(v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("fused", [False, True])
def test_the_kind_of_attention_makes_no_difference(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does autocast, which stands for another precision."""
    method = build(load_recipe("mae", None, {"backbone": NANO, **method_facts("mae").tiny}), ["a"])
    monkeypatch.setattr(attention, "fused_attention", lambda x: fused)
    plain = step_cost(method, 8, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert step_cost(method, 8, 1) == plain == count_step(copy.deepcopy(method), 8, 1)


def test_nothing_of_the_method_or_of_random_numbers_moves(nano: Backbone) -> None:
    method = Supervised(nano, num_classes=3)
    before, state = copy.deepcopy(method.state_dict()), torch.get_rng_state()
    step_cost(method, 8, 3)
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())
    assert torch.equal(state, torch.get_rng_state()) and method.labels is None and method._step is None


def test_seeds_of_a_recipe_cost_the_same() -> None:
    """Masks are drawn by a fixed seed. iBOT masks a random number of patches."""
    costs = set()
    for seed in (0, 1):
        layer = {"backbone": NANO, **method_facts("ibot").tiny, "seed": seed}
        costs.add(step_cost(build(load_recipe("ibot", None, layer), ["a"]), 8, 1))
    assert len(costs) == 1


class Asks(Supervised):
    """An author's method that looks at values."""

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        loss = super().loss(views)["loss"]
        assert loss.item() > 0
        return {"loss": loss}


class Writes(Supervised):
    """One that fills a new tensor."""

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        pixels = torch.zeros(views[0].shape)
        pixels.copy_(views[0])
        return super().loss([pixels])


class Selects(Supervised):
    """One whose shapes depend on values."""

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        kept = views[0][views[0].mean(dim=(1, 2, 3)) > -1]
        return super().loss([kept])


@pytest.mark.parametrize("cls", [Asks, Writes, Selects])
def test_a_method_that_asks_for_values_is_measured_on_a_few_images(cls: type[Supervised], nano: Backbone) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        count_step(without_data(cls(nano, num_classes=3)), 1000, 3)
    assert step_cost(cls(nano, num_classes=3), 1000, 3) == step_cost(Supervised(nano, num_classes=3), 1000, 3)


def test_a_method_that_cannot_take_a_step_says_why(nano: Backbone) -> None:
    class Broken(Supervised):
        def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
            raise ValueError("no such loss")

    with pytest.raises(ValueError, match="no such loss"):
        step_cost(Broken(nano, num_classes=3), 8, 3)


def test_captions_are_counted_once_a_batch(nano: Backbone) -> None:
    """More images than captions: the text tower's share falls with the batch."""
    method = CLIP(nano, class_names=("a", "b"), templates=("{}",), out_dim=8, text_dim=64, text_depth=2, text_heads=2)
    small, large = (step_cost(method, images, 2) for images in (2, 64))
    assert large.flops < 0.9 * small.flops and small.patches == large.patches == 16


def test_noise_as_large_as_a_batch_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    method = build(load_recipe("dvae", None, {"backbone": NANO, **method_facts("dvae").tiny}), ["a"])
    expected = step_cost(method, 8, 1)
    monkeypatch.setattr(module, "LARGEST", 100)
    assert count_step(without_data(method), 8, 1) == expected
    with shapes_alone():
        assert torch.rand(101).is_meta and not torch.rand(100).is_meta


def test_masks_have_values_and_what_comes_of_data_has_none() -> None:
    x = torch.empty(4, 6, 8, device="meta", requires_grad=True)
    mask = torch.rand(4, 6) < 0.5
    with shapes_alone():
        assert x.device.type == "cpu"
        assert x[mask].shape == (int(mask.sum()), 8)
        y = torch.where(mask[..., None], x, 0.0)
        assert y.is_meta and y.to("cpu").is_meta and F.relu(y + mask[..., None]).is_meta
        y[mask] = 0.0
        x[mask].sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape
    assert x.device.type == "meta"


def test_frozen_networks_lose_their_data_too() -> None:
    layer = {"backbone": NANO, **method_facts("beit").tiny, "tokenizer": "dvae", "data": "shapes"}
    recipe = load_recipe("beit", None, layer)
    method: Any = without_data(build_with_teachers_of(recipe))
    assert all(p.is_meta for p in method.frozen[0].parameters())


def build_with_teachers_of(recipe: Any) -> Method:
    for teacher in recipe.teachers.values():
        teacher.settings.update(method_facts(teacher.method).tiny)
    return build_with_teachers(recipe, ["a", "b"])


def test_every_process_counts_for_itself(monkeypatch: pytest.MonkeyPatch, nano: Backbone) -> None:
    alone = step_cost(Supervised(nano, num_classes=3), 8, 3)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert distributed.process() == (1, 2)
    with distributed.one_process():
        assert distributed.process() == (0, 1)
    layer = {"backbone": NANO, **method_facts("moco_v3").tiny}
    step_cost(build(load_recipe("moco_v3", None, layer), ["a"]), 8, 1)
    assert step_cost(Supervised(nano, num_classes=3), 8, 3) == alone and distributed.process() == (1, 2)


def test_precision_can_be_chosen_for_all_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    for precision in ("32", "bf16-mixed"):
        monkeypatch.setenv("SSL_BENCH_PRECISION", precision)
        assert best_precision() == precision and best_precision("16-mixed") == "16-mixed"
    monkeypatch.setenv("SSL_BENCH_PRECISION", "bf16")
    with pytest.raises(UserError, match="SSL_BENCH_PRECISION 'bf16': did you mean 'bf16-mixed'"):
        best_precision()


@pytest.mark.parametrize("method", ["mae", "ibot"])
def test_a_row_says_what_the_plan_said(method: str, tiny_data: Splits, tmp_path: Any) -> None:
    recipe = load_recipe(method, None, {"backbone": NANO, **method_facts(method).tiny, "epochs": 1, "batch_size": 16})
    row = train(build(recipe, tiny_data.train.classes), tiny_data.train, tmp_path, "a run")
    assert row["flops"] == row["images_seen"] * training_flops(recipe, 10)
