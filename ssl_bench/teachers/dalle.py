"""DALL-E's discrete VAE as a tokenizer: images to codes and back (Ramesh et al. 2021; openai/DALL-E, ``dall_e/``)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.utils.bounds import Depth, Few, Pixels, Width
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.tensor_files import read_tensors

EPS = 0.1  # pixels are mapped to [EPS, 1 - EPS], where their logit is finite (appendix A.3; ``dall_e/utils.py``)


class Tokenizer(nn.Module):
    """An encoder from images to a grid of codes and a decoder back.

    With the default values the encoder is DALL-E's released one, with its keys: 53,786,240 parameters.

    Args:
        codebook_size: Codes.
        width: Channels of the encoder's first and the decoder's last group; each next one has twice as many.
        blocks: Residual blocks of each group.
        stride: Pixels of a token's side: 2 to the power of the number of poolings.
        channels: What the decoder gives: 6 (location and log scale of each colour), 3 (location), or 0 for no decoder.
        name: What it is called in files and errors.

    Raises:
        UserError: ``stride`` is no power of 2, or ``width`` no multiple of 4.

    Example:
        >>> tokenizer = Tokenizer(codebook_size=16, width=8, blocks=1, stride=4)
        >>> tokens = tokenizer.tokens(torch.rand(2, 3, 16, 24))
        >>> tokens.shape, tokenizer.decode(tokens).shape
        (torch.Size([2, 4, 6]), torch.Size([2, 3, 16, 24]))
    """

    def __init__(
        self,
        *,
        codebook_size: Width = 8192,
        width: Width = 256,
        blocks: Depth = 2,
        stride: Pixels = 8,
        channels: Few = 6,
        name: str = "dvae",
    ) -> None:
        super().__init__()
        if stride < 1 or stride & (stride - 1):
            raise UserError(f"stride is {stride}; it must be a power of 2: 1, 2, 4, 8, 16")
        if width < 4 or width % 4:
            raise UserError(f"width is {width}; it must be a multiple of 4")
        self.spec = {"name": name, "codebook_size": codebook_size, "width": width, "blocks": blocks}
        self.spec |= {"stride": stride, "channels": channels}
        self.name, self.codebook_size, self.stride = name, codebook_size, stride
        up = [width * 2**group for group in range(stride.bit_length())]
        self.encoder = ConvNet(3, 7, [width, *up], codebook_size, blocks, (3, 3, 3, 1), nn.MaxPool2d(2))
        self.decoder: ConvNet | None = None
        if channels:
            down, grow = [width // 2, *reversed(up)], nn.Upsample(scale_factor=2)
            self.decoder = ConvNet(codebook_size, 1, down, channels, blocks, (1, 3, 3, 3), grow)

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """The most probable codes, computed in float32.

        Args:
            images: (B, 3, H, W) float in [0, 1], sides that are multiples of the stride.

        Returns:
            (B, H / stride, W / stride) int64.
        """
        with torch.autocast(images.device.type, enabled=False):
            return self.encoder(map_pixels(images.float())).argmax(dim=1)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """The image of each grid of codes.

        Args:
            tokens: (B, h, w) int64.

        Returns:
            (B, 3, h * stride, w * stride) float32 in [0, 1].
        """
        assert self.decoder is not None, "this tokenizer was built without a decoder"
        with torch.autocast(tokens.device.type, enabled=False):
            chosen = F.one_hot(tokens, self.codebook_size).movedim(-1, 1).float()
            return unmap_pixels(self.decoder(chosen)[:, :3].sigmoid())


class ConvNet(nn.Module):
    """Groups of residual blocks, with a change of resolution after each but the last: the encoder or the decoder.

    Args:
        n_in: Channels of the input.
        kernel: Side of the first convolution, pixels.
        widths: Channels after the first convolution and after each group.
        n_out: Channels of the output, which a 1 x 1 convolution makes.
        blocks: Residual blocks of each group.
        kernels: Sides of the four convolutions of a block.
        resample: Halves or doubles the resolution.
    """

    def __init__(
        self,
        n_in: int,
        kernel: int,
        widths: Sequence[int],
        n_out: int,
        blocks: int,
        kernels: Sequence[int],
        resample: nn.Module,
    ) -> None:
        super().__init__()
        groups = len(widths) - 1
        gain = 1 / (groups * blocks) ** 2
        # The convolutions next to the codes are computed in float32 whatever the precision of the rest is.
        stages: OrderedDict[str, nn.Module] = OrderedDict(input=Conv(n_in, widths[0], kernel, exact=kernel == 1))
        for g, (before, after) in enumerate(pairwise(widths), start=1):
            names = [f"block_{k + 1}" for k in range(blocks)]
            group = OrderedDict[str, nn.Module](
                (name, Block(after if k else before, after, kernels, gain)) for k, name in enumerate(names)
            )
            if g < groups:
                group["resample"] = resample
            stages[f"group_{g}"] = nn.Sequential(group)
        output = OrderedDict[str, nn.Module](relu=nn.ReLU(), conv=Conv(widths[-1], n_out, 1, exact=True))
        stages["output"] = nn.Sequential(output)
        self.blocks = nn.Sequential(stages)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in, H, W) -> (B, n_out, H', W') float32."""
        return self.blocks(x)


class Block(nn.Module):
    """x + gain * four convolutions through a quarter of the channels; a 1 x 1 convolution of x where widths differ."""

    def __init__(self, n_in: int, n_out: int, kernels: Sequence[int], gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.id_path = Conv(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        widths = [n_in, *[n_out // 4] * 3, n_out]
        for i, ((before, after), kernel) in enumerate(zip(pairwise(widths), kernels, strict=True), start=1):
            layers[f"relu_{i}"] = nn.ReLU()
            layers[f"conv_{i}"] = Conv(before, after, kernel)
        self.res_path = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in, H, W) -> (B, n_out, H, W)."""
        return self.id_path(x) + self.gain * self.res_path(x)


class Conv(nn.Module):
    """A convolution that keeps the size, with DALL-E's names and initial weights: w ~ N(0, 1 / (n_in k^2)), b = 0."""

    def __init__(self, n_in: int, n_out: int, kernel: int, *, exact: bool = False) -> None:
        super().__init__()
        self.exact = exact
        self.w = nn.Parameter(torch.randn(n_out, n_in, kernel, kernel) / (n_in * kernel**2) ** 0.5)
        self.b = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in, H, W) -> (B, n_out, H, W); in float32 if ``exact``."""
        padding = self.w.shape[-1] // 2
        if not self.exact:
            return F.conv2d(x, self.w, self.b, padding=padding)
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x.float(), self.w, self.b, padding=padding)


def map_pixels(x: Tensor) -> Tensor:
    """[0, 1] to [0.1, 0.9].

    Example:
        >>> map_pixels(torch.tensor([0.0, 0.25, 0.5, 1.0]))
        tensor([0.1000, 0.3000, 0.5000, 0.9000])
    """
    return (1 - 2 * EPS) * x + EPS


def unmap_pixels(x: Tensor) -> Tensor:
    """The inverse of ``map_pixels``, clamped to [0, 1].

    Example:
        >>> unmap_pixels(torch.tensor([0.05, 0.1, 0.5, 0.95]))
        tensor([0.0000, 0.0000, 0.5000, 1.0000])
    """
    return ((x - EPS) / (1 - 2 * EPS)).clamp(0, 1)


def perplexity(tokens: Tensor, codebook_size: int) -> Tensor:
    """exp(entropy) of how often each code occurs: 1 when it is always the same, ``codebook_size`` when all are equal.

    Args:
        tokens: int64, any shape.
        codebook_size: Codes.

    Example:
        >>> perplexity(torch.tensor([0, 0, 3, 3]), 4)
        tensor(2.)
    """
    ids = tokens.flatten()
    share = torch.full((len(ids),), 1 / len(ids), device=ids.device)
    p = ids.new_zeros(codebook_size, dtype=torch.float32).scatter_add_(0, ids, share)
    return (-p.xlogy(p).sum()).exp()


def load_dalle(path: str | Path) -> Tokenizer:
    """DALL-E's released encoder as a tokenizer without a decoder.

    Args:
        path: A state dict with the keys of ``dall_e/encoder.py``. Its shapes say which sizes the network has.

    Under ``torch.device("meta")`` nothing is read: the network has the sizes of the release, and no weights.

    Raises:
        UserError: No such file, a pickled module as it was released, or another network's weights.
    """
    if torch.get_default_device().type == "meta":
        return Tokenizer(channels=0, name="dalle").eval().requires_grad_(False)
    if not Path(path).is_file():
        raise UserError(f"no such tokenizer file: {path}")
    try:
        weights = read_tensors(Path(path))
    except Exception as error:  # torch raises many kinds for files it refuses
        raise UserError(
            f"{path} is not a plain state dict. The released encoder.pkl is a pickled module, which runs code when "
            "it is read; convert it once, where the package dall_e is installed: torch.save(torch.load('encoder.pkl', "
            "map_location='cpu', weights_only=False).state_dict(), 'dalle_encoder.pt')"
        ) from error
    try:
        count = len({key.split(".")[2] for key in weights if key.startswith("blocks.group_1.")})
        groups = len({key.split(".")[1] for key in weights if key.startswith("blocks.group_")})
        codes, width = len(weights["blocks.output.conv.w"]), len(weights["blocks.input.w"])
        sizes = {"codebook_size": codes, "width": width, "blocks": count, "stride": 2 ** (groups - 1)}
        with torch.device("meta"):  # so that no memory is taken for what doesn't fit
            Tokenizer(**sizes, channels=0, name="dalle").encoder.load_state_dict(weights)
        tokenizer = Tokenizer(**sizes, channels=0, name="dalle")
        tokenizer.encoder.load_state_dict(weights)
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError, UserError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} is not DALL-E's encoder; expected keys such as blocks.input.w ({reason})") from error
    return tokenizer.eval().requires_grad_(False)
