"""iGPT's network against the worked numbers of its code (openai/image-gpt), and its palette."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ssl_bench.backbones import build_backbone, check_needs, family_of
from ssl_bench.backbones import igpt as module
from ssl_bench.backbones.igpt import ImageGPT, activation
from ssl_bench.backbones.igpt_released import released_names
from ssl_bench.backbones.palette import decode_colors, fit_palette, nearest_colors, sample_colors
from ssl_bench.methods.igpt import prediction_loss
from ssl_bench.utils.errors import UserError

PALETTE = torch.tensor([[-1.0, -1, -1], [1, 1, 1], [0, 0, 0], [0.5, -0.5, 0]])


def small(objective: str = "ar", seed: int = 0) -> ImageGPT:
    torch.manual_seed(seed)
    network = build_backbone("igpt_micro_patch4_16", objective=objective).eval()
    assert isinstance(network, ImageGPT)
    return network


def toy(monkeypatch: pytest.MonkeyPatch, objective: str) -> ImageGPT:
    """One layer of width 2 with one head on three places and three colours, as the worked example has it."""
    monkeypatch.setitem(module.SIZES, "igpt_toy", (2, 1, 1))
    network = ImageGPT("igpt_toy_1x3", objective=objective)  # type: ignore[arg-type]
    network.wte = nn.Parameter(torch.tensor([[1, 0], [0, 1], [0.5, -0.5]]))
    network.wpe.data = torch.tensor([[0.1, 0], [0, 0.2], [-0.1, 0.1]])
    if network.sos is not None:
        network.sos.data = torch.tensor([0.3, -0.2])
    q, k, v = torch.eye(2), torch.tensor([[0.0, 1], [1, 0]]), torch.tensor([[1, 0.5], [-0.5, 1]])
    block = network.blocks[0]
    block.attn.qkv.weight.data = torch.cat([q, k, v])
    block.attn.proj.weight.data = torch.eye(2)
    for layer in (block.mlp.fc1, block.mlp.fc2):
        layer.weight.data.zero_()
    return network


def test_norm_and_activation_numbers() -> None:
    norm = nn.RMSNorm(4, eps=1e-5)
    for x, expected in (
        ([1.0, 2, 3, 4], [0.3651481, 0.7302963, 1.0954444, 1.4605925]),
        ([-1.0, 0, 1, 0.5], [-1.3333215, 0, 1.3333215, 0.6666607]),
    ):
        torch.testing.assert_close(norm(torch.tensor(x)), torch.tensor(expected))
    expected = torch.tensor([-0.1542042, 0, 0.3503884, 1.9356586])
    torch.testing.assert_close(activation(torch.tensor([-1, 0, 0.5, 2])), expected)


def test_palette_numbers() -> None:
    pixels = [[-0.9, -0.8, -1], [0.2, 0.1, -0.1], [0.6, -0.4, 0.1], [0.9, 0.6, 0.7], [0.25, -0.25, 0]]
    assert nearest_colors(torch.tensor(pixels), PALETTE).tolist() == [0, 2, 3, 1, 2]  # a tie: the lower index
    levels = (255 * decode_colors(PALETTE, torch.arange(4))).round().int().tolist()
    assert levels == [[0, 0, 0], [255, 255, 255], [128, 128, 128], [191, 64, 128]]


TOY_AR = [
    [[1.998291, -2.080831, -0.041270], [0.504844, 1.430371, 0.967608], [0.719469, 1.146634, 0.933052]],
    [[1.998291, -2.080831, -0.041270], [1.657955, -0.539396, 0.559279], [1.688177, -0.615775, 0.536201]],
]
TOY_BERT = [
    [[-0.089736, 2.087686, 0.998976], [0.930810, 0.839378, 0.885094], [1.759190, -0.807768, 0.475711]],
    [[0.398003, 1.561990, 0.979997], [1.200848, 0.398498, 0.799673], [0.076923, 1.921588, 0.999256]],
]
COLORS = torch.tensor([[1, 0, 2], [0, 0, 1]])
WTET = torch.tensor([[1, -1], [0, 2], [0.5, 0.5]])


@pytest.mark.parametrize(
    ("objective", "logits", "loss"), [("ar", TOY_AR, 1.686354), ("bert", TOY_BERT, 0.864685)], ids=["ar", "bert"]
)
def test_whole_model_numbers(
    monkeypatch: pytest.MonkeyPatch, objective: str, logits: list[list[list[float]]], loss: float
) -> None:
    """A flat mean over the masked places would be 0.902786."""
    network = toy(monkeypatch, objective)
    mask = torch.tensor([[1, 0, 1], [0, 1, 0]]).bool() if objective == "bert" else None
    found = network.encode(COLORS, mask)[0] @ WTET.T
    torch.testing.assert_close(found, torch.tensor(logits), rtol=0, atol=2e-6)
    assert prediction_loss(found, COLORS, mask).item() == pytest.approx(loss, abs=2e-6)
    assert (network.sos is None) == (objective == "bert")


@torch.no_grad()
def test_what_comes_later_and_the_place_itself_are_not_seen() -> None:
    network = small()
    colors = torch.randint(0, 512, (2, 16))
    changed = colors.clone()
    changed[:, 5:] = 7
    first, other = network.encode(colors)[0], network.encode(changed)[0]
    torch.testing.assert_close(first[:, :6], other[:, :6])
    assert not torch.allclose(first[:, 6:], other[:, 6:])


@torch.no_grad()
def test_one_place_after_the_other_is_the_whole_sequence() -> None:
    network = small()
    colors = torch.randint(0, 512, (2, 16))
    whole, past = network.encode(colors)[0], [()] * network.depth
    parts = [network.encode(colors[:, :4], past=past)[0]]  # type: ignore[arg-type]
    parts += [network.encode(colors[:, i : i + 1], past=past)[0] for i in range(3, 15)]  # type: ignore[arg-type]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


@torch.no_grad()
def test_layers_are_read_through_the_norm_of_the_next_block() -> None:
    network = small()
    seen: list[Tensor] = []
    network.blocks[2].norm1.weight.mul_(2)
    network.blocks[2].norm1.register_forward_hook(lambda m, args, output: seen.append(output))
    feature = network.features(torch.rand(2, 3, 16, 16), ["layer=2"])["layer=2"]
    torch.testing.assert_close(feature, seen[0].mean(dim=1))
    assert network.choose_layer


@torch.no_grad()
def test_a_token_is_the_mean_of_its_pixels() -> None:
    network = small()
    network.prepare([torch.full((3, 16, 16), v, dtype=torch.uint8) for v in range(0, 256, 16)], seed=0)
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    even = images.clone()
    even[:, :, 4:8, 8:12] = images[:, :, 4:8, 8:12].mean(dim=(2, 3), keepdim=True)
    assert torch.equal(network.tokens(images), network.tokens(even))
    shown = network.colors(network.tokens(images))
    assert shown.shape == images.shape and shown[:, :, 4:8, 8:12].std() >= 0
    assert (shown[0, :, 4:8, 8:12] == shown[0, :, 4:5, 8:9]).all()


def test_the_palette_fits_its_images_and_the_seed_decides() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 20, 24), generator=generator, dtype=torch.uint8)
    colors = sample_colors(images, (10, 12), seed=1)
    assert colors.shape == (4800, 3) and colors.abs().max() <= 1
    first, again = fit_palette(colors, 64, seed=1), fit_palette(colors, 64, seed=1)
    assert torch.equal(first, again) and not torch.equal(first, fit_palette(colors, 64, seed=2))
    near = lambda palette: (colors - palette[nearest_colors(colors, palette)]).square().sum(dim=1).mean()  # noqa: E731
    assert near(first) < 0.7 * near(colors[:64])
    assert fit_palette(colors[:10], 64, seed=0).shape == (64, 3)  # fewer colours than centres


def test_initial_weights_and_sizes() -> None:
    counts = {
        "igpt_small_32": 76,
        "igpt_medium_32": 455,
        "igpt_large_32": 1362,
    }  # millions (section 3.3), less the head
    for name, millions in counts.items():
        with torch.device("meta"):
            assert build_backbone(name).num_params / 1e6 == pytest.approx(millions, abs=1)
    block, dim = small().blocks[1], 96
    stds = {block.attn.qkv: dim**-0.5, block.attn.proj: (dim * 4) ** -0.5, block.mlp.fc1: 0.02, block.mlp.fc2: 0.02}
    for layer, std in stds.items():
        assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
    assert not any("bias" in name for name, _ in small().named_parameters())


def test_the_papers_image_of_32_pixels() -> None:
    with torch.device("meta"):
        network = build_backbone("igpt_small_patch7_224")
    assert network.grid == (32, 32) and network.cell == 7 and network.image_size == (224, 224)


@pytest.mark.parametrize("name", ["igpt_tiny_32", "igpt_small", "igpt_small_patch5_32"])
def test_wrong_names(name: str) -> None:
    with pytest.raises(UserError):
        build_backbone(name)


def test_what_it_refuses() -> None:
    network, x = small(), torch.zeros(1, 3, 16, 16)
    mask = torch.zeros(1, 16, dtype=torch.bool)
    for given in ({"mask": mask}, {"keep": torch.zeros(1, 1, dtype=torch.long)}):
        with pytest.raises(UserError, match="encodes whole images"):
            network(x, **given)
    with pytest.raises(UserError, match="takes images of 16 x 16 pixels, not 32 x 32"):
        network(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UserError, match='does not with objective "ar"'):
        check_needs("method 'x'", family_of(network.name), network.spec, ["mask"])
    with pytest.raises(UserError, match=r"colours of a palette; vit_micro_patch8_32 does not. Backbones.*igpt_small"):
        check_needs("method 'x'", family_of("vit_micro_patch8_32"), {"name": "vit_micro_patch8_32"}, ["palette"])


def as_tensorflow(network: ImageGPT) -> dict[str, Tensor]:
    """The weights as the authors' shards have them, the palette beside them."""
    heads, dim = network.num_heads or 1, network.embed_dim
    out = {"wte": network.wte, "wpe": network.wpe, "palette": network.palette, "wtet": torch.zeros(512, dim)}
    out |= {"ln_f/g": network.norm.weight} | ({"sos": network.sos} if network.sos is not None else {})
    for i, block in enumerate(network.blocks):
        q, k, v = block.attn.qkv.weight.chunk(3)
        out |= {f"h{i}/attn/{n}_proj": w.unflatten(0, (heads, -1)) for n, w in zip("qkv", (q, k, v), strict=True)}
        out |= {f"h{i}/attn/c_proj": block.attn.proj.weight.T.unflatten(0, (heads, -1))}
        out |= {f"h{i}/mlp/c_fc/w": block.mlp.fc1.weight.T, f"h{i}/mlp/c_proj/w": block.mlp.fc2.weight.T}
        out |= {f"h{i}/ln_1/g": block.norm1.weight, f"h{i}/ln_2/g": block.norm2.weight}
    return {f"model/{name}" if name != "palette" else name: value.detach().clone() for name, value in out.items()}


def as_transformers(network: ImageGPT) -> dict[str, Tensor]:
    """The weights as the transformers library has them."""
    assert network.sos is not None
    out = {"wte.weight": torch.cat([network.wte, network.sos[None]]), "wpe.weight": network.wpe}
    out |= {"ln_f.weight": network.norm.weight}
    for i, block in enumerate(network.blocks):
        dim = network.embed_dim
        out |= {f"h.{i}.attn.c_attn.weight": block.attn.qkv.weight.T, f"h.{i}.attn.c_attn.bias": torch.zeros(3 * dim)}
        out |= {f"h.{i}.attn.c_proj.weight": block.attn.proj.weight.T, f"h.{i}.attn.c_proj.bias": torch.zeros(dim)}
        out |= {f"h.{i}.attn.bias": torch.ones(1, 1, 16, 16).tril(), f"h.{i}.attn.masked_bias": torch.tensor(-1e4)}
        out |= {f"h.{i}.mlp.c_fc.weight": block.mlp.fc1.weight.T, f"h.{i}.mlp.c_proj.weight": block.mlp.fc2.weight.T}
        out |= {f"h.{i}.ln_1.weight": block.norm1.weight, f"h.{i}.ln_2.weight": block.norm2.weight}
    out = {f"transformer.{name}": value.detach().clone() for name, value in out.items()}
    return out | {"lm_head.weight": torch.zeros(512, network.embed_dim), "clusters": network.palette}


@pytest.mark.parametrize(("layout", "objective"), [("tf", "ar"), ("tf", "bert"), ("transformers", "ar")])
def test_released_names(layout: str, objective: str) -> None:
    network = small(objective)
    weights = released_names(as_tensorflow(network) if layout == "tf" else as_transformers(network))
    assert weights.pop("head.weight").shape == (512, 96)
    assert weights.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=0)
