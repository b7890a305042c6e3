"""MaskFeat against the worked numbers of its target (mmpretrain) and the invariants of its loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_bench.backbones.vit import ViT
from ssl_bench.checkpoints.encoder_file import load_encoder
from ssl_bench.commands.convert import convert
from ssl_bench.methods.maskfeat import MaskFeat, feature_loss
from ssl_bench.nn.hog import by_patch, draw, from_patches, histograms
from ssl_bench.utils.errors import UserError

NANO = "vit_nano_patch4_16"


def make(**keywords: Any) -> MaskFeat:
    torch.manual_seed(0)
    return MaskFeat(ViT(NANO, **MaskFeat.backbone_options), **{"min_block": 1, "cell": 2, **keywords})


def test_histogram_numbers() -> None:
    i, j = torch.arange(16.0)[:, None].expand(16, 16), torch.arange(16.0).expand(16, 16)
    image = torch.stack([i / 16, j / 16, ((3 * i + 5 * j) % 16) / 16])[None]
    found = histograms(image, 8)[0, :, :, 0, 0]
    one = torch.eye(9)
    third = torch.tensor([0.2685126, 0, 0, 0.9440468, 0.1005088, 0, 0.1630173, 0, 0])
    torch.testing.assert_close(found, torch.stack([one[0], one[4], third]), rtol=0, atol=1e-5)


def test_histograms_by_an_independent_loop() -> None:
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    padded = F.pad(image, (1, 1, 1, 1), mode="reflect")[0, 0].tolist()
    bell = [math.exp(-0.5 * ((n - 3.5) / 4) ** 2) for n in range(8)]
    sums = torch.zeros(9, 2, 2)
    for r in range(8):
        for c in range(8):
            p = [row[c : c + 3] for row in padded[r : r + 3]]
            gx = p[0][0] + 2 * p[1][0] + p[2][0] - p[0][2] - 2 * p[1][2] - p[2][2]
            gy = p[0][0] + 2 * p[0][1] + p[0][2] - p[2][0] - 2 * p[2][1] - p[2][2]
            which = math.floor(math.atan2(gx, gy) / math.pi * 9) % 9
            sums[which, r // 4, c // 4] += math.hypot(gx, gy) * bell[r] * bell[c]
    torch.testing.assert_close(histograms(image, 4)[0, 0], sums / sums.norm(dim=0), rtol=1e-4, atol=1e-5)


def test_brightness_and_contrast_do_not_matter() -> None:
    image = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(histograms(image * 3 + 1, 4), histograms(image, 4), rtol=1e-3, atol=1e-3)
    assert torch.equal(histograms(torch.ones(1, 3, 8, 8), 4), torch.zeros(1, 3, 9, 2, 2))


def test_order_of_a_patch() -> None:
    found = torch.arange(2 * 3 * 9 * 4 * 6.0).view(2, 3, 9, 4, 6)
    patches = by_patch(found, 2)
    assert patches.shape == (2, 6, 108)
    expected = found[1, :, :, 2:4, 4:6].flatten()  # the last patch: channel, bin, cell row, cell column
    assert torch.equal(patches[1, -1], expected)
    assert torch.equal(from_patches(patches, (2, 3), 2), found)


def test_a_stroke_lies_along_the_edge() -> None:
    image = torch.zeros(1, 3, 16, 16)
    image[:, :, :, 8:] = 1  # a vertical edge
    picture = draw(histograms(image, 8), 8)
    assert picture.shape == (1, 3, 16, 16)
    rows, columns = picture[0, 0, :8, :8].sum(1), picture[0, 0, :8, :8].sum(0)
    assert columns.max() > 2 * rows.max() - 4 and rows.min() > 0


def test_visible_patches_do_not_count() -> None:
    prediction, target = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    mask = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 1]]).bool()
    expected = (prediction - target).square().mean(-1)[mask].mean()
    torch.testing.assert_close(feature_loss(prediction, target, mask), expected)
    torch.testing.assert_close(feature_loss(prediction + 9 * ~mask[..., None], target, mask), expected)


def test_masked_pixels_are_not_seen() -> None:
    method = make().eval()
    images, mask = torch.rand(1, 3, 16, 16), torch.zeros(1, 16, dtype=torch.bool)
    mask[:, -1] = True
    other = images.clone()
    other[:, :, 12:, 12:] = 9
    torch.testing.assert_close(method.backbone(images, mask=mask), method.backbone(other, mask=mask))


def test_the_papers_sizes() -> None:
    with torch.device("meta"):
        method = MaskFeat(ViT("vit_base_patch16_224", **MaskFeat.backbone_options))
    assert method.n_masked == 78 and method.head.out_features == 108 and method.cells == 2
    view = method.views[0]
    assert (view.scale, view.interpolation, view.flip) == ((0.5, 1.0), "bicubic", 0.5)
    assert MaskFeat.defaults.lr == pytest.approx(1.6e-3) and MaskFeat.defaults.clip_grad == 0.02


def test_masks_of_the_papers_size() -> None:
    """mmpretrain's generator, 78 cells and blocks of 15: 77.57 on average, 78 in 72 %."""
    masks = MaskFeat(ViT("vit_nano_patch16_224", **MaskFeat.backbone_options)).masks(3000)
    counts = masks.sum(dim=1).float()
    assert counts.max() == 78 and counts.mean().item() == pytest.approx(77.57, abs=0.1)
    assert (counts == 78).float().mean().item() == pytest.approx(0.72, abs=0.03)


def test_weight_decay_spares_vectors_and_the_mask_token() -> None:
    method = make()
    names = {id(p): n for n, p in method.named_parameters()}
    decayed, spared = ([names[id(p)] for p in group["params"]] for group in method.param_groups())
    assert "backbone.mask_token" in spared and "backbone.cls_token" in decayed and "head.bias" in spared


def test_pictures() -> None:
    images = torch.rand(2, 3, 16, 16)
    shown = make().eval().show(images)
    assert list(shown) == ["masked", "HOG", "predicted"]
    assert all(p.shape == images.shape and p.min() >= 0 and p.max() <= 1 for p in shown.values())


@pytest.mark.parametrize(
    ("given", "words"), [({"min_block": 9}, "more than the 6 patches"), ({"cell": 3}, "must divide the 4 pixels")]
)
def test_what_it_refuses(given: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(**given)


def as_mmpretrain(method: MaskFeat) -> dict[str, Tensor]:
    names = {
        "patch_embed.proj": "patch_embed.projection",
        "blocks.": "layers.",
        "norm1.": "ln1.",
        "norm2.": "ln2.",
        "mlp.fc1": "ffn.layers.0.0",
        "mlp.fc2": "ffn.layers.1",
    }
    out = {}
    for name, value in method.backbone.state_dict().items():
        theirs = f"ln1.{name.removeprefix('norm.')}" if name.startswith("norm.") else name
        for ours, other in names.items():
            theirs = theirs.replace(ours, other)
        out[f"backbone.{theirs}"] = value
    return {"state_dict": out | {f"neck.fc.{name}": value for name, value in method.head.state_dict().items()}}


def test_mmpretrains_files_convert(tmp_path: Path) -> None:
    method, said = make(), list[str]()
    torch.save(as_mmpretrain(method), tmp_path / "maskfeat.pth")
    out = convert(tmp_path / "maskfeat.pth", method="maskfeat", backbone=NANO, out=tmp_path / "e.pt", show=said.append)
    assert any("100 % of the backbone's tensors" in line for line in said)
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(load_encoder(out).encoder(x), method.eval().backbone(x))
    with pytest.raises(UserError, match="holds no vision transformer"):
        convert(tmp_path / "maskfeat.pth", method="mpp", backbone=NANO, out=tmp_path / "f.pt", show=said.append)
