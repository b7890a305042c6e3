"""Pictures: attention that is attention, panels of every method that has some, neighbours, and wrong requests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from test_pretrain import recipe

from ssl_bench.backbones.vit import ViT
from ssl_bench.checkpoints.encoder_file import load_encoder
from ssl_bench.commands.pretrain import run
from ssl_bench.commands.show import load_method, neighbours, read_images, show
from ssl_bench.commands.show_dense import dense_panels
from ssl_bench.data.datasets import DRAWN, Splits, load
from ssl_bench.evaluations.pictures import colours
from ssl_bench.utils.errors import UserError

NANO = "vit_nano_patch4_16"


@pytest.fixture
def folder(tiny_data: Splits, tmp_path: Path) -> Path:
    """Eight images in two sub-folders."""
    for i in range(8):
        path = tmp_path / "images" / f"{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tiny_data.train.images[i].permute(1, 2, 0).numpy()).save(path)
    return tmp_path / "images"


@pytest.mark.parametrize(
    "options", [{}, *({"relative_positions": kind} for kind in ("shared", "per_block")), {"registers": 2}]
)
def test_attention_is_what_the_block_multiplies_the_values_with(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    vit = ViT(NANO, **options).eval()  # type: ignore[arg-type]
    for name, table in vit.named_parameters():
        if name.endswith("relative_position_bias_table"):
            torch.nn.init.normal_(table)
    images = torch.randn(2, 3, 16, 16)
    seen: list[torch.Tensor] = []
    attention = vit.blocks[-1].attn
    attention.attn_drop.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):  # the path without fused attention
        vit(images)
    expected = seen[0][:, :, 0, vit.num_prefix_tokens :].float().unflatten(2, (4, 4))
    maps = vit.attention(images)
    assert maps.shape == (2, 2, 4, 4)
    torch.testing.assert_close(maps, expected, atol=2e-2, rtol=0)


@pytest.mark.parametrize(
    ("method", "panels"),
    [
        ("mae", ["masked", "predicted"]),
        ("mpp", ["corrupted", "predicted"]),
        ("beit", ["masked", "codes", "predicted codes"]),
    ],
)
def test_methods_show_themselves(method: str, panels: list[str], tiny_data: Splits, folder: Path) -> None:
    path = run(recipe(method, epochs=0.5), tiny_data, folder.parent / "run")
    rebuilt = load_method(load_encoder(path), path)
    assert rebuilt is not None
    images = read_images(str(folder), (16, 16)).float() / 255
    with torch.no_grad():
        shown = rebuilt.show(images)
    assert list(shown) == panels
    for picture in shown.values():
        assert picture.shape == images.shape and torch.isfinite(picture).all()
    changed = (shown[panels[0]] - images).abs().amax(dim=1) > 1e-3
    assert 0 < changed.float().mean() < 1  # some patches are hidden, not all
    out = show(path, images=str(folder), out=folder.parent / f"{method}.png", count=3)
    assert Image.open(out).size[0] > 500


def test_mae_predicts_what_it_says(tiny_data: Splits, folder: Path) -> None:
    """A decoder that returns the normalised target gives back the image."""
    from ssl_bench.methods.mae import MAE, patchify
    from ssl_bench.views.evaluation import normalize

    torch.manual_seed(0)
    method = MAE(ViT(NANO), decoder_dim=16, decoder_depth=1, decoder_heads=2)
    images = torch.rand(3, 3, 16, 16)
    patches = patchify(normalize(images, method.views[0]), 4)
    exact = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    order = torch.rand(3, 16).argsort(dim=1)[..., None].expand_as(exact)  # all are masked
    method.reconstruct = lambda x: (exact.gather(1, order), order)  # type: ignore[method-assign]
    torch.testing.assert_close(method.show(images)["predicted"], images, atol=1e-4, rtol=0)


def test_neighbours_are_the_nearest_others() -> None:
    torch.manual_seed(0)
    vit = ViT(NANO).eval()
    bank = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    bank[4] = bank[1]
    nearest = neighbours(vit, bank, torch.tensor([1, 4]), "mean")
    assert nearest.shape == (2, 5)
    assert nearest[:, 0].tolist() == [4, 1]
    assert all(row not in others for row, others in zip([1, 4], nearest.tolist(), strict=True))


def test_wrong_requests_are_named(tiny_data: Splits, folder: Path, tmp_path: Path) -> None:
    path = run(recipe("mae", epochs=0.2), tiny_data, tmp_path / "run")
    with pytest.raises(UserError, match=r"\.png, \.pdf"):
        show(path, images=str(folder), out=tmp_path / "x.txt")
    with pytest.raises(UserError, match="no such folder"):
        show(path, images=str(tmp_path / "nowhere" / "here"), out=tmp_path / "x.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in it"):
        show(path, images=str(tmp_path / "empty"), out=tmp_path / "x.png")
    (folder / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"bad\.jpg: not an image"):
        show(path, images=str(folder), out=tmp_path / "x.png")


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ("scenes@32", ["whole", "truth", "segmentation-knn", "boxes", "detection, 2 steps"]),
        ("clips@32", ["truth, frame 0%", *(f"{who}, frame {t}%" for t in (25, 50, 90) for who in ("truth", "vos"))]),
    ],
)
def test_masks_and_clips_are_shown_beside_what_is_predicted(
    data: str, names: list[str], nano: ViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssl_bench.commands.show_dense.STEPS", 2)
    monkeypatch.setitem(DRAWN, data.removesuffix("@32"), (32, 20, 2 if data[0] == "c" else 12))
    splits = load(data)
    columns = dict(dense_panels(nano, splits, [1, 9]))
    assert list(columns) == names
    assert all(each.shape == (2, 3, 32, 32) and 0 <= each.min() <= each.max() <= 1 for each in columns.values())
    if data[0] == "s":
        assert splits.test.targets is not None
        assert torch.equal(columns["truth"][1], colours(splits.test.targets.mask(9)[None])[0])
    weights = tmp_path / "weights.pt"
    torch.save(nano.state_dict(), weights)
    out = show(weights, images=data, out=tmp_path / "x.png", count=2, backbone=NANO)
    assert Image.open(out).width > Image.open(out).height


def test_colours_of_classes_differ() -> None:
    found = colours(torch.arange(256)[None, None])[0, :, 0].T
    assert len(found[:64].unique(dim=0)) == 64
