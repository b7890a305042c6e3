"""SSTA's reconstruction: worked numbers of its divergence, and what holds whatever the values are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import NANO, blobs, tiny_recipe
from torch import Tensor
from torch.nn import functional as F

from ssl_bench.backbones import build_backbone
from ssl_bench.backbones.vit import ViT
from ssl_bench.checkpoints.encoder_file import load_encoder
from ssl_bench.commands.pretrain import run, run_folder
from ssl_bench.config.recipe import load_recipe
from ssl_bench.data.datasets import Splits, hold_out
from ssl_bench.methods.baselines import Supervised
from ssl_bench.methods.ssta import SSTA, divergence
from ssl_bench.teachers.importance import affine, by_loss, by_removal, fit_classifier
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.weights import weights_hash

P = torch.tensor([[[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]]])
Q = torch.tensor([[[0.6, 0.3, 0.1], [0.2, 0.6, 0.2], [0.3, 0.3, 0.4]]])
LABELS = torch.arange(8) % 3


def guide(seed: int, name: str = NANO) -> ViT:
    torch.manual_seed(seed)
    return ViT(name).eval()


def make(teachers: bool = True, **keywords: Any) -> SSTA:
    torch.manual_seed(0)
    method = SSTA(ViT(NANO), num_classes=3, judged=16, **keywords)
    if teachers:
        method.set_teacher("teacher", guide(5))
        method.set_teacher("assistant", guide(6))
    method.labels = LABELS
    return method


def images(n: int = 8) -> Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_divergence_numbers() -> None:
    assert divergence(P, Q).item() == pytest.approx(0.046247, abs=1e-6)
    for i, expected in enumerate([0.026812, 0.091516, 0.020411]):
        row = divergence(P[:, i : i + 1], Q[:, i : i + 1])
        assert row.item() == pytest.approx(expected, abs=1e-6)
    assert divergence(P, torch.full_like(P, 1 / 3)).item() == pytest.approx(0.271755, abs=1e-6)
    assert divergence(P, P).item() == 0
    several = divergence(P.repeat(4, 1, 1), Q.repeat(4, 1, 1)).item()  # torch's batchmean would not divide by rows
    assert several == pytest.approx(F.kl_div(Q[0].log(), P[0], reduction="batchmean").item(), abs=1e-6)


def test_zeros_do_not_give_nan() -> None:
    hard = torch.eye(3)[None]
    assert torch.isfinite(divergence(hard, hard.flip(1))) and divergence(hard, hard).item() == 0


def test_without_guides_it_is_the_supervised_baseline_to_the_bit() -> None:
    torch.manual_seed(0)
    plain = Supervised(ViT(NANO), num_classes=3)
    plain.labels = LABELS
    method = make(distillation=0.0, teacher_weight=0.0, assistant_weight=0.0)
    found, expected = method.loss([images()])["loss"], plain.loss([images()])["loss"]
    found.backward()
    expected.backward()
    assert torch.equal(found, expected) and method.views == plain.views
    ours = dict(method.named_parameters())
    assert all(torch.equal(p.grad, ours[name].grad) for name, p in plain.named_parameters() if p.requires_grad)


def test_without_the_assistant_it_is_distillation_alone() -> None:
    method = make(assistant_weight=0.0)
    assert set(method.loss([images()])) == {"loss", "top1", "attention of the teacher"}
    assert set(make().loss([images()])) >= {"attention of the teacher", "attention of the assistant"}


def test_guides_are_frozen_and_see_the_same_pixels() -> None:
    method = make()
    before = [weights_hash(g.state_dict()) for g in method._guides]
    assert not any(p.requires_grad for g in method._guides for p in g.parameters())
    assert not any("guide" in name for name in method.state_dict())
    other = guide(6)
    other.mean, other.std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (method.backbone.mean, method.backbone.std))
    pixels = images() * std + mean
    expected = (pixels - torch.tensor(other.mean).view(3, 1, 1)) / torch.tensor(other.std).view(3, 1, 1)
    torch.testing.assert_close(method._seen_by(other, images()), expected)
    method.loss([images()])["loss"].backward()
    assert [weights_hash(g.state_dict()) for g in method._guides] == before


def test_attention_that_is_the_guides_has_no_divergence() -> None:
    method = make(distillation=0.0)
    method.chosen = torch.tensor([0, 1])
    for i in range(2):
        method.backbone.load_state_dict(method._guides[i].state_dict())
        found = method.loss([images()])
        assert found[f"attention of the {('teacher', 'assistant')[i]}"].item() == pytest.approx(0, abs=1e-6)


def test_gradients_of_the_attention_reach_queries_and_keys_of_the_last_block_alone_there() -> None:
    method = make(distillation=1.0)
    loss = method.loss([images()])["attention of the assistant"]
    loss.backward()
    last = method.backbone.blocks[-1]
    q, k, v = last.attn.qkv.weight.grad.chunk(3)
    assert q[:12].abs().sum() == 0 and q[12:].abs().sum() > 0 and k[12:].abs().sum() > 0  # the student's head 1
    assert v.abs().sum() == 0 and last.attn.proj.weight.grad is None
    assert method.backbone.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def permuted(network: ViT) -> ViT:
    """The same network with the heads of its last block in the other order."""
    other = guide(0)
    other.load_state_dict(network.state_dict())
    attention: Any = other.blocks[-1].attn
    order = torch.cat([torch.arange(12, 24), torch.arange(12)])
    with torch.no_grad():
        for name in ("weight", "bias"):
            value = getattr(attention.qkv, name)
            value.copy_(value.unflatten(0, (3, 24))[:, order].flatten(0, 1))
        attention.proj.weight.copy_(attention.proj.weight[:, order])
    return other


def test_importance_follows_the_heads() -> None:
    network = guide(5).requires_grad_(False)
    other = permuted(network).requires_grad_(False)
    x = images()
    torch.testing.assert_close(network(x), other(x))
    classifier = torch.randn(25, 3)
    for importance in (lambda g: by_loss(g, x, LABELS, classifier), lambda g: by_removal(g, x)):
        torch.testing.assert_close(importance(network), importance(other).flip(0), rtol=1e-4, atol=1e-6)


def test_importance_is_the_derivative_by_the_attention() -> None:
    """|sum A dL/dA| with A made explicit, for one image."""
    network = guide(5).requires_grad_(False)
    x, classifier = images(1), torch.randn(25, 3)
    inputs: list[Tensor] = []
    handle = network.blocks[-1].register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    network(x)
    handle.remove()
    block: Any = network.blocks[-1]
    q, k, v = block.attn.qkv(block.norm1(inputs[0])).unflatten(2, (3, 2, 12)).permute(2, 0, 3, 1, 4)
    attention = (q @ k.transpose(-2, -1) * 12**-0.5).softmax(-1).requires_grad_()
    h = inputs[0] + block.attn.proj((attention @ v).transpose(1, 2).flatten(2))
    out = network.norm(h + block.mlp(block.norm2(h)))[:, 1:].mean(dim=1)
    F.cross_entropy(affine(out, classifier), LABELS[:1]).backward()
    assert attention.grad is not None
    expected = (attention * attention.grad).sum(dim=(0, 2, 3)).abs().detach()
    torch.testing.assert_close(by_loss(network, x, LABELS[:1], classifier), expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(network.open_heads(x, [0, 1])[1], attention.detach(), rtol=1e-5, atol=1e-6)


def test_the_classifier_separates_what_can_be_separated() -> None:
    x = torch.randn(60, 4) * 0.1 + F.one_hot(torch.arange(60) % 3, 4) * 2
    weight = fit_classifier(x, torch.arange(60) % 3, 3)
    assert (affine(x, weight).argmax(1) == torch.arange(60) % 3).all()


def test_the_choice_is_that_of_the_seed_and_travels_in_the_state_dict() -> None:
    data = blobs(40, "train", 0)
    first, second = make(), make()
    for method in (first, second):
        method.prepare(data)
    assert torch.equal(first.chosen, second.chosen) and torch.equal(first.classifier, second.classifier)
    assert {"chosen", "classifier"} <= set(first.state_dict())
    assert first.finish(data)["teacher"]["head"] == int(first.chosen[0])


def test_methods_of_the_suite_are_guides_and_define_the_run(tmp_path: Path) -> None:
    train, test = blobs(60, "train", 0), blobs(24, "test", 1)
    data = Splits(train, test)
    assistants = [f"mae:{tiny_recipe('mae')}", f"mpp:{tiny_recipe('mpp')}"]
    given = {"backbone": NANO, "teacher": f"supervised:{tiny_recipe('supervised')}", "epochs": 1, "batch_size": 16}
    recipes = [
        load_recipe("ssta", None, given | {"assistant": assistant, "judged": 16, "precision": "32"})
        for assistant in assistants
    ]
    folders = [run_folder(recipe, data, tmp_path) for recipe in recipes]
    assert folders[0] != folders[1]
    row = load_encoder(run(recipes[0], data, folders[0])).about
    assert row["flags"] == ["labels"]
    assert row["pretraining"]["images"] == len(hold_out(train)[0])  # dev is kept from it
    assert row["pretraining"]["teachers"]["assistant"]["method"] == "mae"
    assert row["pretraining"]["facts"]["assistant"]["name"] == assistants[0]
    own = run_folder(recipes[0].teachers["assistant"], data, tmp_path)  # the suite's own run of that method
    assert (own / "encoder.pt").is_file()
    assert recipes[0].identity(data)["teachers"]["assistant"]["method"] == "mae"


def test_what_it_refuses() -> None:
    with pytest.raises(UserError, match="assistant 'dino' is a vit_nano_patch8_16; its tokens are not those"):
        make(teachers=False).set_teacher("assistant", guide(0, "vit_nano_patch8_16"))
    with pytest.raises(UserError, match="shows no heads"):
        make(teachers=False).set_teacher("teacher", build_backbone("hiera_nano_32"))
    with pytest.raises(UserError, match="teacher 'nobody' is unknown"):
        make(teachers=False, teacher="nobody").set_teacher("teacher", None)
    with pytest.raises(UserError, match="needs two"):
        SSTA(ViT(NANO, num_heads=1), num_classes=3)
