"""The suite's CLIP against formulas written out, and what its captions, scale and towers must do."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from two_processes import in_two

from ssl_bench.backbones.vit import ViT
from ssl_bench.data.datasets import Splits
from ssl_bench.methods.clip import CLIP, contrastive_loss
from ssl_bench.teachers.clip_tower import CLIPTower
from ssl_bench.teachers.text_tower import TextTower, tokenize
from ssl_bench.utils.distributed import gather_with_gradient
from ssl_bench.utils.errors import UserError
from ssl_bench.views.make import make_views
from ssl_bench.views.view import View

NAMES = ("red", "green", "pale blue")


def make(**keywords: Any) -> CLIP:
    torch.manual_seed(0)
    small: dict[str, Any] = {"out_dim": 8, "text_dim": 16, "text_depth": 2, "text_heads": 2}
    return CLIP(ViT("vit_nano_patch4_16", **CLIP.backbone_options), class_names=NAMES, **{**small, **keywords})


@pytest.fixture
def clip() -> CLIP:
    return make()


def naive_loss(logits: Tensor, classes: list[int]) -> float:
    """For every image the mean over its positive captions of -ln softmax, the same for captions, averaged."""
    total, n = 0.0, len(classes)
    for rows in (logits.tolist(), logits.T.tolist()):
        for i, row in enumerate(rows):
            positives = [j for j in range(n) if classes[j] == classes[i]]
            log_sum = math.log(sum(map(math.exp, row)))
            total += sum(log_sum - row[j] for j in positives) / len(positives)
    return total / (2 * n)


@pytest.mark.parametrize("classes", [[0, 1, 2, 3, 4], [0, 1, 0, 2, 0], [1, 1, 1, 1, 1]])
def test_loss_against_a_naive_formula(classes: list[int]) -> None:
    logits = 3 * torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    loss = contrastive_loss(logits, torch.tensor(classes)).item()
    assert loss == pytest.approx(naive_loss(logits, classes), abs=1e-5)


def test_different_captions_give_the_papers_loss() -> None:
    """Figure 3: cross-entropy with the labels 0 .. n-1 along both axes."""
    logits = torch.randn(6, 6)
    labels = torch.arange(6)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(contrastive_loss(logits, torch.tensor([4, 2, 0, 1, 5, 3])), expected)


def test_equal_captions_do_not_push_each_other_apart() -> None:
    """Perfect features of two classes with two images each: the loss is at its minimum ln 2, its gradient 0."""
    classes = torch.tensor([0, 1, 0, 1])
    features = F.one_hot(classes).float().requires_grad_()
    loss = contrastive_loss(100 * features @ features.T, classes)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-5)
    assert features.grad is not None and features.grad.abs().max() < 1e-4


def test_loss_of_a_batch_by_hand(clip: CLIP) -> None:
    images, clip.labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 2, 2, 1])
    torch.manual_seed(3)
    template = (torch.rand(4) * 5).long()
    texts = torch.stack(
        [clip.text_tower(clip.captions[c, t][None])[0] for c, t in zip([0, 2, 2, 1], template, strict=True)]
    )
    features = clip.backbone(images).cls @ clip.projection.weight.T
    logits = torch.tensor([[F.cosine_similarity(i, t, dim=0).item() for t in texts] for i in features]) / 0.07
    torch.manual_seed(3)
    scalars = clip.loss([images])
    assert scalars["loss"].item() == pytest.approx(naive_loss(logits, [0, 2, 2, 1]), abs=1e-4)
    right = [[0, 2, 2, 1][int(row.argmax())] == c for row, c in zip(logits, [0, 2, 2, 1], strict=True)]
    assert scalars["top1"].item() == pytest.approx(100 * sum(right) / 4)
    assert scalars["scale"].item() == pytest.approx(1 / 0.07, rel=1e-5)


def test_captions_name_the_classes(clip: CLIP) -> None:
    def text(tokens: Tensor) -> str:
        return bytes(tokens[tokens > 0].tolist()).decode()

    assert clip.captions.shape[:2] == (3, 5)
    assert text(clip.captions[2, 0]) == "\x02a photo of a pale blue.\x03"
    assert text(clip.captions[0, 4]) == "\x02red\x03"
    assert not any("captions" in key for key in clip.state_dict())


def test_every_template_is_drawn_and_encoded_once(clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def record(tokens: Tensor) -> Tensor:
        seen.append(tokens)
        return torch.randn(len(tokens), 8)

    monkeypatch.setattr(clip.text_tower, "forward", record)
    clip.labels = torch.zeros(64, dtype=torch.long)
    clip.loss([torch.randn(64, 3, 16, 16)])
    assert len(seen[0]) == len(seen[0].unique(dim=0)) == 5


def test_bytes_of_other_scripts_are_kept() -> None:
    (row,) = tokenize(["é"]).tolist()
    assert row == [2, 0xC3, 0xA9, 3]


def test_text_feature_is_causal_and_ends_at_the_mark() -> None:
    """What follows the end mark changes nothing; every byte before it does."""
    torch.manual_seed(0)
    tower = TextTower(16, 2, 2, 8, 4).eval()
    tokens = torch.tensor([[2, 97, 98, 99, 3, 0, 0, 0]])
    feature = tower(tokens)
    for place in range(8):
        other = tokens.clone()
        other[0, place] = 100
        if place != 4:
            assert torch.equal(tower(other), feature) == (place > 4)


def test_image_feature_is_the_projected_cls_and_patches_share_the_projection(clip: CLIP) -> None:
    encoder = clip.eval().encoder
    assert isinstance(encoder, CLIPTower) and encoder.backbone is clip.backbone
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(encoder.patches(images), clip.projection(clip.backbone(images).patches))
    torch.testing.assert_close(encoder.features(images, ["cls"])["cls"], clip.backbone(images).cls)
    assert not any("tower.backbone" in key for key in clip.state_dict())  # held once


def test_scale_is_clamped_at_100_after_a_step(clip: CLIP) -> None:
    clip.log_scale.data.fill_(7.0)
    clip.after_step()
    assert clip.log_scale.exp().item() == pytest.approx(100, rel=1e-5)
    clip.log_scale.data.fill_(2.0)
    clip.after_step()
    assert clip.log_scale.item() == 2.0


def test_gains_biases_and_the_scale_are_not_decayed(clip: CLIP) -> None:
    names = {id(p): n for n, p in clip.named_parameters()}
    decayed, spared = ([names[id(p)] for p in group["params"]] for group in clip.param_groups())
    assert "log_scale" in spared and all("norm" in n or n.endswith("bias") or n == "log_scale" for n in spared)
    assert {"text_tower.embed.weight", "projection.weight", "backbone.pos_embed"} <= set(decayed)


def test_initial_weights_of_the_text_tower() -> None:
    tower = TextTower(64, 3, 4, 10, 32)
    stds = {name: p.std().item() for name, p in tower.named_parameters()}
    assert stds["embed.weight"] == pytest.approx(0.02, rel=0.05)
    assert stds["blocks.0.attn.qkv.weight"] == pytest.approx(64**-0.5, rel=0.05)
    assert stds["blocks.2.mlp.fc1.weight"] == pytest.approx(128**-0.5, rel=0.05)
    for name in ("attn.proj", "mlp.fc2"):
        assert stds[f"blocks.1.{name}.weight"] == pytest.approx((64 * 6) ** -0.5, rel=0.05)
    assert stds["blocks.1.attn.qkv.bias"] == 0


def test_it_learns_and_says_its_zero_shot_accuracy(tiny_data: Splits) -> None:
    """Three colours are learned in a few steps; untrained the accuracy is that of chance or near."""
    torch.manual_seed(0)
    clip = CLIP(
        ViT("vit_nano_patch4_16", **CLIP.backbone_options),
        class_names=tiny_data.test.classes,
        templates=("{}", "a {}"),
        **{"out_dim": 8, "text_dim": 16, "text_depth": 1, "text_heads": 2},
    )
    images = tiny_data.test.images
    assert isinstance(images, Tensor)
    before = clip.finish(tiny_data.test)["zero_shot_top1_train"]
    optimizer = torch.optim.AdamW(clip.train().param_groups(), lr=1e-3, weight_decay=0.0)
    clip.labels = tiny_data.test.labels
    view = View(16, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    (pixels,) = make_views(images, [view], torch.Generator().manual_seed(0))
    for _ in range(90):
        scalars = clip.loss([pixels])
        optimizer.zero_grad()
        scalars["loss"].backward()
        optimizer.step()
        clip.after_step()
    assert before < 70 and scalars["top1"] == 100
    assert clip.finish(tiny_data.test)["zero_shot_top1_train"] == 100


def test_templates_without_a_place_for_the_name_are_refused() -> None:
    with pytest.raises(UserError, match=r"each must have a \{\} for the class name"):
        make(templates=("a photo",))
    with pytest.raises(UserError, match="templates"):
        make(templates=())


def test_defaults_are_the_papers() -> None:
    d = CLIP.defaults
    assert d.lr == pytest.approx(5e-4) and (d.batch_size, d.epochs, d.weight_decay) == (32768, 32, 0.2)
    assert (d.betas, d.eps) == ((0.9, 0.98), 1e-6) and CLIP.uses_labels
    assert d.warmup_epochs * 400e6 / 32768 == pytest.approx(2000, rel=0.01)


def test_gathered_features_carry_gradients(tmp_path: Path) -> None:
    """Two processes with half of the batch each: averaged gradients are those of the joint loss."""
    in_two(_half, tmp_path, seconds=60, group=True)
    halves = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(2)]
    expected = _gradient(torch.arange(8.0).view(8, 1))
    torch.testing.assert_close(torch.tensor(halves).mean(dim=0), torch.tensor(expected), rtol=1e-4, atol=1e-6)


def _gradient(x: Tensor) -> list[float]:
    """Gradient of the loss of a toy model in its two weights."""
    w = torch.tensor([0.3, -0.7], requires_grad=True)
    features = gather_with_gradient(torch.cat([torch.sin(x * w[0]), torch.cos(x)], dim=1))
    texts = gather_with_gradient(torch.cat([torch.cos(x * w[1]), torch.sin(x)], dim=1))
    contrastive_loss(features @ texts.T, torch.arange(8) % 3).backward()
    assert w.grad is not None
    return w.grad.tolist()


def _half(rank: int, folder: Path) -> None:
    (folder / str(rank)).write_text(json.dumps(_gradient(torch.arange(8.0).view(8, 1).chunk(2)[rank])))
