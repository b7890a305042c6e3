"""The discrete VAE: DALL-E's architecture, its pixel map and likelihood, schedules, and the check for collapse."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from ssl_bench.backbones.vit import ViT
from ssl_bench.data.datasets import Splits
from ssl_bench.methods.dvae import DVAE, kl_to_uniform, logit_laplace
from ssl_bench.teachers.dalle import Conv, ConvNet, Tokenizer, load_dalle, map_pixels, perplexity, unmap_pixels
from ssl_bench.utils.errors import RunError, UserError
from ssl_bench.views.evaluation import resize_crop


@pytest.fixture
def dvae(nano: ViT) -> DVAE:
    torch.manual_seed(1)
    return DVAE(nano, codebook_size=16, width=8, blocks=1, stride=2, temperature_epochs=4, kl_epochs=2)


def small(**changes: int) -> Tokenizer:
    return Tokenizer(**{"codebook_size": 16, "width": 8, "blocks": 1, "stride": 4} | changes)  # type: ignore[arg-type]


def test_the_released_encoder() -> None:
    with torch.device("meta"):
        tokenizer = Tokenizer()
    encoder, weights = tokenizer.encoder, tokenizer.encoder.state_dict()
    assert sum(p.numel() for p in encoder.parameters()) == 53_786_240
    assert weights["blocks.input.w"].shape == (256, 3, 7, 7)
    assert weights["blocks.group_2.block_1.id_path.w"].shape == (512, 256, 1, 1)
    assert "blocks.group_1.block_1.id_path.w" not in weights and "blocks.group_2.block_2.id_path.w" not in weights
    shapes = [tuple(weights[f"blocks.group_4.block_2.res_path.conv_{i}.w"].shape) for i in (1, 2, 3, 4)]
    assert shapes == [(512, 2048, 3, 3), (512, 512, 3, 3), (512, 512, 3, 3), (2048, 512, 1, 1)]
    assert weights["blocks.output.conv.w"].shape == (8192, 2048, 1, 1) and len(weights["blocks.output.conv.b"]) == 8192
    assert encoder.blocks.group_4.block_1.gain == 1 / 64  # type: ignore[union-attr]


def test_the_released_decoder() -> None:
    with torch.device("meta"):
        decoder = Tokenizer().decoder
    assert isinstance(decoder, ConvNet)
    weights = decoder.state_dict()
    assert weights["blocks.input.w"].shape == (128, 8192, 1, 1)
    shapes = [tuple(weights[f"blocks.group_1.block_1.res_path.conv_{i}.w"].shape) for i in (1, 2, 3, 4)]
    assert shapes == [(512, 128, 1, 1), (512, 512, 3, 3), (512, 512, 3, 3), (2048, 512, 3, 3)]
    assert weights["blocks.output.conv.w"].shape == (6, 256, 1, 1)


def test_initial_weights() -> None:
    conv = Conv(64, 128, 3)
    assert conv.w.std().item() == pytest.approx(1 / math.sqrt(64 * 9), rel=0.02) and not conv.b.any()


def test_forward_against_plain_layers() -> None:
    """The encoder written out by hand, with the weights under their released names."""
    tokenizer, x = small(stride=2), torch.rand(2, 3, 8, 12)
    w = tokenizer.encoder.state_dict()

    def conv(x: torch.Tensor, name: str) -> torch.Tensor:
        weight = w[f"blocks.{name}.w"]
        return nn.functional.conv2d(x, weight, w[f"blocks.{name}.b"], padding=(weight.shape[-1] - 1) // 2)

    y = conv(x, "input")
    for g in (1, 2):
        name = f"group_{g}.block_1"
        z = y
        for i in (1, 2, 3, 4):
            z = conv(z.clamp(min=0), f"{name}.res_path.conv_{i}")
        y = (conv(y, f"{name}.id_path") if g == 2 else y) + z / 2**2
        y = nn.functional.max_pool2d(y, 2) if g == 1 else y
    torch.testing.assert_close(tokenizer.encoder(x), conv(y.clamp(min=0), "output.conv"))


def test_pixel_map_numbers() -> None:
    torch.testing.assert_close(map_pixels(torch.tensor([0, 0.25, 0.5, 1])), torch.tensor([0.1, 0.3, 0.5, 0.9]))
    expected = torch.tensor([0, 0, 0.5, 1])
    torch.testing.assert_close(unmap_pixels(torch.tensor([0.05, 0.1, 0.5, 0.95])), expected)


def test_tokens_are_the_most_probable_codes_of_mapped_pixels() -> None:
    tokenizer, images = small(), torch.rand(2, 3, 16, 24)
    logits = tokenizer.encoder(0.8 * images + 0.1)
    assert torch.equal(tokenizer.tokens(images), logits.max(dim=1).indices)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # codes don't depend on the precision of the training
        assert torch.equal(tokenizer.tokens(images), logits.max(dim=1).indices)


def test_decoding_gives_pixels() -> None:
    tokenizer = small(stride=2)
    codes = torch.randint(0, 16, (2, 3, 4))
    images = tokenizer.decode(codes)
    assert images.shape == (2, 3, 6, 8) and images.min() >= 0 and images.max() <= 1
    assert not torch.equal(images[0], tokenizer.decode((codes + 1) % 16)[0])


def test_logit_laplace_is_a_density() -> None:
    """It integrates to 1 over (0, 1), and agrees with its formula."""
    x = torch.linspace(1e-6, 1 - 1e-6, 400_001, dtype=torch.float64)
    location, log_scale = torch.tensor(0.7, dtype=torch.float64), torch.tensor(-0.5, dtype=torch.float64)
    b = math.exp(-0.5)
    density = torch.exp(-(torch.log(x / (1 - x)) - 0.7).abs() / b) / (2 * b * x * (1 - x))
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-4)
    assert logit_laplace(x, location, log_scale).item() == pytest.approx(-density.log().mean().item(), abs=1e-9)


def test_kl_and_perplexity() -> None:
    assert kl_to_uniform(torch.zeros(2, 8192, 2, 2)).item() == pytest.approx(0, abs=1e-5)
    assert kl_to_uniform(torch.eye(4).view(1, 4, 2, 2) * 200).item() == pytest.approx(math.log(4), abs=1e-5)
    q = torch.tensor([0.5, 0.25, 0.125, 0.125])
    expected = math.log(4) - sum(-p * math.log(p) for p in q.tolist())
    assert kl_to_uniform(q.log().view(1, 4, 1, 1)).item() == pytest.approx(expected, abs=1e-6)
    assert perplexity(torch.zeros(5, dtype=torch.long), 8).item() == pytest.approx(1)
    assert perplexity(torch.arange(8).view(2, 4), 8).item() == pytest.approx(8, abs=1e-5)
    entropy = sum(-p * math.log(p) for p in (0.5, 0.25, 0.25))
    assert perplexity(torch.tensor([0, 0, 1, 7]), 8).item() == pytest.approx(math.exp(entropy), abs=1e-5)


def test_loss_is_the_bound(dvae: DVAE) -> None:
    """With a tiny temperature the relaxed codes are the sampled ones, and the loss can be written out."""
    x = torch.rand(3, 3, 8, 8)
    dvae.epoch, dvae.temperature = 1.0, 1e-6
    dvae.final_temperature = dvae.temperature
    torch.manual_seed(4)
    scalars = dvae.loss([x])
    torch.manual_seed(4)
    logits = dvae.tokenizer.encoder(0.8 * x + 0.1)
    gumbel = -(-torch.rand(3, 16, 4, 4).log()).log()
    chosen = nn.functional.one_hot((logits + gumbel).argmax(dim=1), 16).permute(0, 3, 1, 2).float()
    location, log_scale = dvae.tokenizer.decoder(chosen).split(3, dim=1)  # type: ignore[misc]
    target = 0.8 * x + 0.1
    b = log_scale.exp()
    density = torch.exp(-((target / (1 - target)).log() - location).abs() / b) / (2 * b * target * (1 - target))
    q = logits.softmax(dim=1)
    kl = (q * (q * 16).log()).sum(dim=1).mean()
    expected = -density.log().mean() + 3.3 / (3 * 2 * 2) * kl  # half of the way of beta's cosine
    assert scalars["loss"].item() == pytest.approx(expected.item(), abs=1e-5)


def test_schedules(dvae: DVAE) -> None:
    values = []
    for epoch in (0, 1, 2, 4, 9):
        dvae.epoch = epoch
        values.append((dvae.current_temperature, dvae.current_kl_weight))
    middle = 1 / 16 + (15 / 16) * 0.5
    assert values[0] == pytest.approx((1.0, 0.0)) and values[1][1] == pytest.approx(3.3)
    assert values[2] == pytest.approx((middle, 6.6)) and values[3] == values[4] == pytest.approx((1 / 16, 6.6))


def test_square_error_has_three_channels(nano: ViT) -> None:
    dvae = DVAE(nano, codebook_size=16, width=8, blocks=1, stride=2, likelihood="l2")
    scalars = dvae.loss([torch.rand(2, 3, 8, 8)])
    scalars["loss"].backward()
    assert 0 < scalars["error"].item() < 1
    assert all(p.grad is not None for p in dvae.tokenizer.parameters())


def test_the_average_is_what_others_use(dvae: DVAE) -> None:
    dvae.loss([torch.rand(2, 3, 8, 8)])["loss"].backward()
    key = "encoder.blocks.input.b"
    before = dvae.average.state_dict()[key].clone()
    for p in dvae.tokenizer.parameters():
        p.data.add_(1.0)
    dvae.after_step()
    torch.testing.assert_close(dvae.average.state_dict()[key], before + 1 - dvae.momentum)
    assert dvae.encoder is dvae.average
    assert not any(p.requires_grad for p in dvae.average.parameters())
    (group,) = dvae.param_groups()
    assert len(group["params"]) == sum(1 for _ in dvae.tokenizer.parameters())


def test_the_backbone_gives_the_grid_alone(dvae: DVAE) -> None:
    assert dvae.views[0].sides == (8, 8) and not any("backbone" in name for name in dvae.state_dict())
    oblong = DVAE(ViT("vit_nano_patch4_16x24"), codebook_size=16, width=8, blocks=1, stride=4)
    assert oblong.views[0].sides == (16, 24) and oblong.views[0].std == (1.0, 1.0, 1.0)
    assert DVAE.defaults.lr == pytest.approx(1e-4)


def test_finish_counts_codes_and_refuses_a_collapse(
    dvae: DVAE, tiny_data: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in tokenizer that quantises the mean grey of each token to 16 levels."""

    def grey(x: torch.Tensor) -> torch.Tensor:
        return (nn.functional.avg_pool2d(x, 2).mean(dim=1) * 15).round().long()

    monkeypatch.setattr(dvae.average, "tokens", grey)
    facts = dvae.finish(tiny_data.train)
    images = resize_crop(torch.stack([tiny_data.train.images[i] for i in range(48)]), 8)
    _, count = grey(images / 255).unique(return_counts=True)
    entropy = -sum(p * math.log(p) for p in (count / count.sum()).tolist())
    assert facts == {
        "codebook_size": 16,
        "codes_used": len(count),
        "code_perplexity": pytest.approx(math.exp(entropy), abs=0.01),
        "codes_measured_on": 48,
    }
    monkeypatch.setattr(dvae.average, "tokens", lambda x: torch.zeros(len(x), 4, 4, dtype=torch.long))
    with pytest.raises(RunError, match=r"collapsed: the perplexity of its 16 codes is 1\.0"):
        dvae.finish(tiny_data.train)


def test_a_tokenizer_is_rebuilt_from_its_spec() -> None:
    tokenizer = small(channels=3)
    twin = Tokenizer(**tokenizer.spec)  # type: ignore[arg-type]
    twin.load_state_dict(tokenizer.state_dict())
    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(twin.tokens(images), tokenizer.tokens(images)) and twin.spec == tokenizer.spec


def test_released_weights_load_from_a_state_dict(tmp_path: Path) -> None:
    source = small(blocks=2)
    path = tmp_path / "dalle_encoder.pt"
    torch.save(source.encoder.state_dict(), path)
    loaded = load_dalle(path)
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(loaded.tokens(images), source.tokens(images)) and loaded.stride == 4
    assert loaded.decoder is None and not any(p.requires_grad for p in loaded.parameters())


def test_files_that_are_not_the_encoder_are_explained(tmp_path: Path) -> None:
    pickled, other = tmp_path / "encoder.pkl", tmp_path / "vit.pt"
    torch.save(small().encoder, pickled)
    with pytest.raises(UserError, match=r"pickled module.*convert it once.*state_dict\(\)"):
        load_dalle(pickled)
    torch.save({"head.weight": torch.zeros(2)}, other)
    with pytest.raises(UserError, match=r"vit\.pt is not DALL-E's encoder; expected keys such as blocks\.input\.w"):
        load_dalle(other)
    with pytest.raises(UserError, match="no such tokenizer file"):
        load_dalle(tmp_path / "none.pt")
    for wrong, message in (({"stride": 3}, "power of 2"), ({"width": 6}, "multiple of 4")):
        with pytest.raises(UserError, match=message):
            small(**wrong)
