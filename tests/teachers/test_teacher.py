"""Teachers: timm towers, encoder files, the suite's CLIP. No test downloads anything."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_bench.backbones.vit import ViT
from ssl_bench.teachers import teacher as teacher_module
from ssl_bench.teachers.clip_tower import CLIPTower, build_clip_tower
from ssl_bench.teachers.teacher import make_teacher
from ssl_bench.utils.errors import RunError, UserError
from ssl_bench.utils.weights import weights_hash

NANO = "vit_nano_patch4_16"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)


def tower(architecture: str = "vit_tiny_patch7_clip_28", tag: str = "openai", **keywords: Any) -> VisionTransformer:
    """A CLIP tower as timm builds it, small and with random weights."""
    torch.manual_seed(0)
    model = VisionTransformer(
        **{
            **dict(img_size=28, patch_size=7, embed_dim=24, depth=2, num_heads=2, num_classes=10),
            **dict(pre_norm=True, global_pool="token"),
            **keywords,
        }
    )
    config: Any = {
        **dict(architecture=architecture, tag=tag, hf_hub_id=f"timm/{architecture}.{tag}", input_size=(3, 28, 28)),
        **dict(mean=CLIP_MEAN, std=(0.27, 0.26, 0.28), interpolation="bicubic", crop_pct=1.0),
    }
    model.pretrained_cfg = config
    for p in model.parameters():  # timm's zeros would hide a head or a norm that is left out
        nn.init.normal_(p, std=0.3)
    return model.eval()


def teacher_of(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, grid: tuple[int, int] = (4, 4)
) -> teacher_module.Teacher:
    monkeypatch.setattr(teacher_module, "download", lambda name: model)
    return make_teacher("timm:a_tower", grid)


def by_hand(model: Any, images: Tensor) -> Tensor:
    """CLIP's tower step by step: patches, cls, positions, pre-norm, blocks, post-norm, projection of every patch."""
    x = model.patch_embed.proj(images).flatten(2).transpose(1, 2)
    x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1) + model.pos_embed
    x = model.norm_pre(x)
    for block in model.blocks:
        x = block(x)
    return model.norm(x)[:, 1:] @ model.head.weight.T + model.head.bias


def test_clip_tower_of_timm_is_normed_and_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tower()
    teacher = teacher_of(model, monkeypatch)
    images = torch.randn(2, 3, 28, 28)
    assert (teacher.image_size, teacher.dim) == ((28, 28), 10)
    torch.testing.assert_close(teacher.patches(images), by_hand(model, images).detach(), rtol=1e-4, atol=1e-5)
    assert teacher.mean == CLIP_MEAN and teacher.std == (0.27, 0.26, 0.28)
    assert teacher.flags == ("external teacher", "external data")
    assert "timm/vit_tiny_patch7_clip_28.openai" in teacher.about["source"]
    assert teacher.about["name"] == "timm:a_tower" and len(teacher.about["sha256"]) == 64


@pytest.mark.parametrize(
    ("architecture", "tag"),
    [("vit_tiny_patch7_clip_28", "openai_ft_in12k_in1k"), ("vit_tiny_patch7_28", "augreg_in21k")],
)
def test_a_classifier_is_no_projection(architecture: str, tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tower(architecture, tag)
    images = torch.randn(1, 3, 28, 28)
    expected = model.forward_features(images)[:, 1:]
    torch.testing.assert_close(teacher_of(model, monkeypatch).patches(images), expected.detach())


def test_norm_after_pooling_counts_as_the_final_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tower("vit_tiny_patch7_28", "mae", global_pool="avg", pre_norm=False)
    assert isinstance(model.norm, nn.Identity) and isinstance(model.fc_norm, nn.LayerNorm)
    images = torch.randn(1, 3, 28, 28)
    expected = model.fc_norm(model.forward_features(images)[:, 1:])
    torch.testing.assert_close(teacher_of(model, monkeypatch).patches(images), expected.detach())


@pytest.mark.parametrize("grid", [(4, 4), (2, 5), (6, 6)])
def test_view_of_the_teacher_has_the_patches_of_the_student(
    grid: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = teacher_of(tower(), monkeypatch, grid)
    assert teacher.image_size == (7 * grid[0], 7 * grid[1])
    assert teacher.patches(torch.randn(1, 3, *teacher.image_size)).shape == (1, grid[0] * grid[1], 10)


@pytest.mark.parametrize("no_embed_class", [False, True])
def test_positions_of_another_grid_are_resampled_without_antialiasing(
    no_embed_class: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in EVA's code; timm's own rule differs where the grid shrinks."""
    model = tower(no_embed_class=no_embed_class)
    prefix = 0 if no_embed_class else 1
    table = model.pos_embed.detach().clone()
    cells = table[:, prefix:].reshape(1, 4, 4, 24).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(cells, size=(2, 3), mode="bicubic", align_corners=False, antialias=False)
    teacher_of(model, monkeypatch, (2, 3))
    torch.testing.assert_close(model.pos_embed[:, prefix:], expected.flatten(2).transpose(1, 2))
    torch.testing.assert_close(model.pos_embed[:, :prefix], table[:, :prefix])
    smooth = nn.functional.interpolate(cells, size=(2, 3), mode="bicubic", align_corners=False, antialias=True)
    assert (expected - smooth).abs().max() > 0.05


def test_eva_towers_of_timm_work(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Eva(
        img_size=28,
        patch_size=7,
        embed_dim=24,
        depth=2,
        num_heads=2,
        num_classes=10,
        global_pool="token",
        use_rot_pos_emb=True,
        ref_feat_shape=(4, 4),
    )
    model.pretrained_cfg = tower("eva02_tiny_patch7_clip_28", "merged2b").pretrained_cfg
    teacher = teacher_of(model, monkeypatch, (3, 3))
    assert teacher.patches(torch.randn(2, 3, 21, 21)).shape == (2, 9, 10)


def test_teacher_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = teacher_of(tower(pos_drop_rate=0.5), monkeypatch)
    images = torch.randn(1, 3, 28, 28, requires_grad=True)
    assert not teacher.patches(images).requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    assert torch.equal(teacher.patches(images), teacher.patches(images))  # no dropout


def test_patches_lie_where_they_are_in_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without blocks a patch token depends on its own pixels alone, so one pixel finds its place in the rows."""
    teacher = teacher_of(tower(depth=0), monkeypatch, (2, 5))
    images = torch.zeros(1, 3, *teacher.image_size)
    changed = images.clone()
    changed[0, :, 7 + 3, 2 * 7 + 1] = 5.0  # second row, third column
    moved = (teacher.patches(changed) - teacher.patches(images)).abs().sum(dim=2)[0]
    assert moved.nonzero().flatten().tolist() == [7]


def test_other_models_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"timm:a_tower.*ResNet.*must be a plain vision transformer"):
        teacher_of(timm.create_model("test_resnet", pretrained=False), monkeypatch)
    with pytest.raises(UserError, match=r"7 x 14 pixels; they must be square"):
        teacher_of(tower(img_size=28, patch_size=(7, 14)), monkeypatch)


def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> nn.Module:
        raise OSError("Name or service not known\nsecond line")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(RunError, match=r"^cannot download the weights of timm:vit_b\S+: Name or service not known$"):
        make_teacher("timm:vit_base_patch16_clip_224.openai", (14, 14))


@pytest.mark.parametrize("name", ["clipp", "timm:", "checkpoint:", "vit_base_patch16_clip_224"])
def test_unknown_teachers_are_named(name: str) -> None:
    with pytest.raises(UserError, match=f"unknown teacher '{name}'.*checkpoint:PATH"):
        make_teacher(name, (4, 4))


def test_unknown_timm_names_get_close_ones() -> None:
    with pytest.raises(UserError, match=r"vit_base_patch16_clip_224\.openai"):
        make_teacher("timm:vit_base_patch16_clip_224.openaj", (14, 14))


def test_an_encoder_is_a_teacher(nano: ViT) -> None:
    teacher = make_teacher("checkpoint:a.pt", (4, 4), nano, "encoder of mae")
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(teacher.patches(images), nano.eval()(images).patches.detach())
    assert (teacher.flags, teacher.dim, teacher.mean) == ((), 24, nano.mean)
    sha256 = weights_hash(nano.state_dict())
    assert teacher.about == {"name": "checkpoint:a.pt", "source": "encoder of mae", "sha256": sha256}
    assert make_teacher("clip", (2, 3), nano).patches(torch.randn(1, 3, 8, 12)).shape == (1, 6, 24)


def test_relative_positions_keep_their_grid() -> None:
    encoder = ViT(NANO, pos_embed="none", relative_positions="shared")
    assert make_teacher("clip", (4, 4), encoder).image_size == (16, 16)
    with pytest.raises(UserError, match="one image size, of 4 x 4 patches, not the student's 2 x 3"):
        make_teacher("clip", (2, 3), encoder)


def test_the_suites_clip_projects_its_patches(nano: ViT) -> None:
    clip = CLIPTower(nano, nn.Linear(24, 10, bias=False))
    teacher = make_teacher("clip:quick", (4, 4), clip)
    images = torch.randn(2, 3, 16, 16)
    expected = nano(images).patches @ clip.projection.weight.T
    torch.testing.assert_close(teacher.patches(images), expected.detach())
    assert teacher.dim == 10 and not clip.training


def test_another_network_is_no_teacher() -> None:
    with pytest.raises(UserError, match="'dvae:quick' is a Linear; it must be a backbone"):
        make_teacher("dvae:quick", (4, 4), nn.Linear(2, 2))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pos_embed": "learned", "layer_scale": 0.1, "registers": 2, "num_heads": 4},
        {"pos_embed": "none", "relative_positions": "shared"},
    ],
)
def test_a_clip_tower_is_built_again_from_its_spec(options: dict[str, Any]) -> None:
    clip = CLIPTower(ViT(NANO, **options), nn.Linear(24, 10, bias=False)).eval()
    for p in clip.parameters():
        nn.init.normal_(p, std=0.3)
    assert clip.spec["name"] == f"clip_{NANO}"
    again = build_clip_tower(**clip.spec).eval()
    again.load_state_dict(clip.state_dict())
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(again.patches(images), clip.patches(images))
    assert again.features(images, ["cls+mean"])["cls+mean"].shape == (2, 48)
