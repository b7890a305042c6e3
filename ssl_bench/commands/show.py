"""One picture of what an encoder does: attention maps, the method's own reconstruction, nearest neighbours."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbones import build_backbone
from ssl_bench.checkpoints.encoder_file import Checkpoint, load_encoder, named_encoder
from ssl_bench.commands.show_dense import dense_panels
from ssl_bench.config.build import set_teachers
from ssl_bench.config.recipe import FROM_DATA, resolve_method
from ssl_bench.data.datasets import Splits, load
from ssl_bench.data.images import LARGEST, decode, reason
from ssl_bench.methods.method import Method
from ssl_bench.results.text import plain
from ssl_bench.training.without_data import built_without_data
from ssl_bench.utils.bounds import check_keywords
from ssl_bench.utils.errors import RunError, UserError, first_line
from ssl_bench.utils.files import open_regular, write_atomic
from ssl_bench.utils.references import is_reference
from ssl_bench.utils.tensor_files import read_tensors
from ssl_bench.views.evaluation import eval_images, resize_crop

FORMATS = (".png", ".pdf", ".svg", ".jpg")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
BANK = 2000  # images among which neighbours are looked for
HEADS = 6  # attention maps drawn
NEIGHBOURS = 5


def show(
    checkpoint: str | Path,
    *,
    images: str,
    out: str | Path,
    count: int = 6,
    backbone: str | None = None,
    allow_code: bool = False,
) -> Path:
    """Draw the picture of an encoder: the Python form of ``ssl-bench show``.

    Each row is an image: the crop the encoder sees; the attention of the cls token, where there is one, to the patches
    in the last block, head by head (DINO, figure 1); what the method can show of itself (reconstructions); and the
    nearest other images by the cosine of the features that k-NN uses. Of a data set with masks and no
    labels, the whole images beside their masks and those that `segmentation-knn` predicts, and beside their boxes those
    of a `detection` of fewer steps; of one with clips, frames with the true objects and those of `vos`.

    Args:
        checkpoint: An encoder file. The method's own panels need ``method.pt`` beside it, as a run leaves it.
        images: A folder of images, or a data set, whose test images are taken.
        out: The picture: .png, .pdf, .svg or .jpg.
        count: Rows.
        backbone: Which backbone plain timm weights are for.
        allow_code: Let the encoder file's recipe name a Python file with its method, which runs.

    Raises:
        UserError: No such file, a damaged one, no images in the folder, or a picture format that is not known.
    """
    out = Path(out)
    if out.suffix.lower() not in FORMATS:
        raise UserError(f"{out}: a picture ends in one of {', '.join(FORMATS)}")
    loaded = load_encoder(checkpoint, backbone)
    encoder: Any = loaded.encoder
    if not hasattr(encoder, "features"):
        raise UserError(f"{checkpoint} holds a {type(encoder).__name__}, which has no features to show")
    splits = read_data(images)
    bank = read_images(splits or images, encoder.image_size)
    picked = torch.linspace(0, len(bank) - 1, min(count, len(bank))).long().unique()
    rows = bank[picked]
    columns: list[tuple[str, Tensor]] = [("image", rows.float() / 255)]
    if getattr(encoder, "has_attention", False):
        maps = encoder.attention(eval_images(rows, encoder.image_size, encoder.mean, encoder.std))
        columns += [(f"attention, head {i + 1}", maps[:, i]) for i in range(min(HEADS, maps.shape[1]))]
    method = load_method(loaded, Path(checkpoint), allow_code)
    if method is not None:
        torch.manual_seed(0)  # the masks
        with torch.no_grad():
            columns += list(method.show(rows.float() / 255).items())
    pooling = "mean" if "mean" in encoder.poolings else encoder.poolings[0]
    nearest = neighbours(encoder, bank, picked, pooling)
    columns += [(f"neighbour {k + 1}", bank[nearest[:, k]].float() / 255) for k in range(nearest.shape[1])]
    if splits is not None and not splits.test.classes:
        columns += dense_panels(encoder, splits, spread(len(splits.test))[picked].tolist())
    return write_atomic(out, draw(columns, f"{loaded.method}, {encoder.name}; neighbours by {pooling}", out.suffix[1:]))


def read_data(source: str) -> Splits | None:
    """The data set of a name; None for a folder of images.

    Raises:
        UserError: Neither is there.
    """
    if Path(source).is_dir():
        return None
    if "/" in source and ":" not in source:
        raise UserError(f"no such folder: {source}")
    return load(source)


def spread(count: int) -> Tensor:
    """Which of so many images are taken: int64, at most `BANK`, evenly."""
    return torch.linspace(0, count - 1, min(BANK, count)).long().unique()


def read_images(source: str | Splits, size: tuple[int, int]) -> Tensor:
    """Crops of a folder of images (at any depth), or of the test images of a data set: uint8 (N, 3, *size).

    Raises:
        UserError: No image there, or one that can't be read.
    """
    if isinstance(source, Splits):
        test = source.test
        return torch.stack([resize_crop(test.images[i], size) for i in spread(len(test)).tolist()])
    folder = Path(source)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{folder}: no images in it; looked for {', '.join(SUFFIXES)}")
    crops = []
    for path in (files[int(i)] for i in np.unique(np.linspace(0, len(files) - 1, min(BANK, len(files))).astype(int))):
        try:
            with open_regular(path, LARGEST) as file:
                crops.append(resize_crop(decode(file), size))
        except Exception as error:  # Pillow raises many kinds
            raise UserError(f"{path}: {reason(error)}") from error
    return torch.stack(crops)


def load_method(loaded: Checkpoint, checkpoint: Path, allow_code: bool = False) -> Method | None:
    """The whole method behind an encoder file of a run, in eval mode; None when it can't be rebuilt from its files.

    Args:
        loaded: The encoder file.
        checkpoint: Where it lies, beside ``method.pt``.
        allow_code: Run the Python file that its recipe names, if it does.

    Raises:
        UserError: ``method.pt`` is damaged, or not of the method that the encoder file names.
    """
    weights, recipe = checkpoint.with_name("method.pt"), loaded.about.get("recipe")
    if not weights.is_file() or not recipe:
        return None
    if is_reference(recipe["method"]) and not allow_code:
        code = plain(recipe["method"])
        print(f"{checkpoint} names Python code, {code}, which is not run without --allow-code", file=sys.stderr)
        return None
    try:
        cls = resolve_method(recipe["method"])[1]
    except UserError:  # a method from outside, whose file is not known here
        return None
    if cls.show is Method.show:
        return None
    trained = {}
    for keyword, teacher in ((loaded.about.get("pretraining") or {}).get("teachers") or {}).items():
        path = checkpoint.parent.parent / teacher["run"] / "encoder.pt"
        if not path.is_file():
            return None
        trained[keyword] = load_encoder(path)
    try:
        return _load_method(cls, recipe, weights, trained)
    except (UserError, RunError) as error:
        raise UserError(f"{weights} is not of the method that {checkpoint} names: {error}") from error
    except Exception as error:  # torch raises many kinds, and a method that gets wrong settings any
        raise UserError(f"{weights} is damaged, or of another method: {first_line(error)}") from error


def _load_method(
    cls: type[Method], recipe: Mapping[str, Any], weights: Path, trained: Mapping[str, Checkpoint]
) -> Method:
    settings = {key: value for key, value in recipe["settings"].items() if key not in FROM_DATA}
    check_keywords(cls, settings, recipe["method"])
    content = read_tensors(weights)
    with built_without_data():
        shapes = cls(build_backbone(**recipe["backbone"]), **settings).state_dict()
    size = sum(value.nbytes for value in shapes.values())
    if size > 2 * weights.stat().st_size + 2**26:  # before memory is taken for it
        raise UserError(f"its weights take {size:,} bytes, and the file has {weights.stat().st_size:,}")
    method = cls(build_backbone(**recipe["backbone"]), **settings)
    files = {keyword: file for keyword in cls.teachers if (file := named_encoder(recipe["settings"][keyword]))}
    set_teachers(method, trained, files)
    method.load_state_dict(content)
    return method.eval()


@torch.no_grad()
def neighbours(encoder: nn.Module, bank: Tensor, queries: Tensor, pooling: str) -> Tensor:
    """The nearest other images.

    Args:
        encoder: With ``features``.
        bank: uint8 (N, 3, H, W).
        queries: (Q,) int64, rows of the bank.
        pooling: The features to compare.

    Returns:
        (Q, K) int64 rows of the bank, the nearest first; K is 5 or the number of other images.
    """
    network: Any = encoder
    looks = (network.image_size, network.mean, network.std)
    found = [network.features(eval_images(part, *looks), [pooling])[pooling] for part in bank.split(256)]
    features = F.normalize(torch.cat(found).float(), dim=1)
    similarity = features[queries] @ features.T
    similarity[torch.arange(len(queries)), queries] = -2  # not itself
    return similarity.topk(min(NEIGHBOURS, len(bank) - 1), dim=1).indices


def draw(columns: Sequence[tuple[str, Tensor]], title: str, kind: str) -> bytes:
    """A grid of pictures: one row an image, one column a panel; (B, 3, H, W) colours or (B, H, W) maps."""
    from matplotlib.figure import Figure

    n_rows = len(columns[0][1])
    figure = Figure(figsize=(1.25 * len(columns), 1.2 * n_rows + 0.7), layout="constrained")
    axes = figure.subplots(n_rows, len(columns), squeeze=False)
    for j, (name, pictures) in enumerate(columns):
        for i, picture in enumerate(pictures):
            axis = axes[i, j]
            axis.set_axis_off()
            if picture.ndim == 3:
                axis.imshow(picture.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
            else:
                axis.imshow(picture.numpy(), cmap="viridis", vmin=0, interpolation="nearest")
            if i == 0:
                axis.set_title(name, fontsize=7)
    figure.suptitle(title, fontsize=9)
    buffer = io.BytesIO()
    try:
        figure.savefig(buffer, format=kind, dpi=150, metadata={} if kind == "jpg" else None)
    except ValueError as error:
        raise RunError(f"cannot draw as {kind}: {error}") from error
    return buffer.getvalue()
