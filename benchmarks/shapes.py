"""How hard is `shapes`? Prints the calibration table of the built-in data set.

    python benchmarks/shapes.py                                     # probes only
    python benchmarks/shapes.py --supervised-minutes 4              # and a supervised ViT at patch 8
    python benchmarks/shapes.py --supervised-minutes 8 --patch-size 4

A test of representation must be out of reach of raw pixels and of a network that has learnt nothing, and within reach
of one that has learnt: the set is tuned until pixels and untrained backbones stay at 40 % or less and supervised
training of a small ViT passes 90 %, and on nothing else, least of all on a self-supervised method. The leak rows should
be near chance (10 %). Every linear row is the best of three penalties *on the test images*, an upper bound.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings

import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from timm.layers.config import set_fused_attn
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_bench.data.shapes import CLASSES, draw


def knn(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 20, temperature: float = 0.07
) -> float:
    """Percent correct of the cosine-similarity vote of Wu et al. 2018 (arXiv 1805.01978); features `(N, D)`."""
    train, test = F.normalize(train.float(), dim=1), F.normalize(test.float(), dim=1)
    correct = 0
    for rows, labels in zip(test.split(500), test_labels.split(500), strict=True):
        similarity, index = (rows @ train.T).topk(k, dim=1)
        votes = F.one_hot(train_labels[index], len(CLASSES)) * (similarity / temperature).exp().unsqueeze(2)
        correct += int((votes.sum(1).argmax(1) == labels).sum())
    return 100 * correct / len(test)


def linear(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Percent correct of logistic regression on standardised features `(N, D)`, best of three penalties on the test."""
    scaler = StandardScaler().fit(train.numpy())
    x, y = scaler.transform(train.numpy()), scaler.transform(test.numpy())
    best = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for c in (1e-4, 1e-2, 1.0):
            model = LogisticRegression(C=c, max_iter=60).fit(x, train_labels.numpy())
            best = max(best, 100 * float(model.score(y, test_labels.numpy())))
    return best


def histogram(images: Tensor, bins: int = 8) -> Tensor:
    """Per-channel colour histogram: `(N, 3, H, W)` uint8 -> `(N, 3 * bins)` fractions."""
    index = images.flatten(2).long() * bins // 256
    return torch.stack([(index == b).float().mean(2) for b in range(bins)], 2).flatten(1)


def sincos_positions(dim: int, side: int) -> Tensor:
    """Fixed 2-D sine-cosine positions with a zero row for the cls token, `(1, 1 + side**2, dim)`."""
    frequency = 10000 ** -(torch.arange(dim // 4) / (dim // 4))
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in (column, row)]
    grid = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1)
    return torch.cat([torch.zeros(1, dim), grid]).unsqueeze(0)


def build_vit(size: int, patch_size: int, dim: int = 96, depth: int = 4, heads: int = 3) -> VisionTransformer:
    """The small backbone of the table: fixed positions, Xavier-uniform weights, mean pooling for the classifier."""
    vit = VisionTransformer(
        img_size=size,
        patch_size=patch_size,
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        num_classes=len(CLASSES),
        global_pool="avg",
    )
    for module in vit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(vit.patch_embed.proj.weight.view(dim, -1))
    vit.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
    vit.pos_embed = nn.Parameter(sincos_positions(dim, size // patch_size), requires_grad=False)
    return vit


def normalise(images: Tensor) -> Tensor:
    """uint8 -> about zero mean and unit variance."""
    return (images.float() / 255 - 0.5) / 0.25


@torch.no_grad()
def vit_features(vit: VisionTransformer, images: Tensor) -> dict[str, Tensor]:
    """Final normalised tokens pooled two ways: `cls` and `mean`, each `(N, D)`."""
    vit.eval()
    tokens = [vit.forward_features(normalise(batch)) for batch in images.split(500)]
    return {"cls": torch.cat([t[:, 0] for t in tokens]), "mean": torch.cat([t[:, 1:].mean(1) for t in tokens])}


def augment(images: Tensor) -> Tensor:
    """Crop and flip: a shift by up to an eighth of the side, mirrored at the border, and a flip half of the time."""
    n, _, size, _ = images.shape
    pad = size // 8
    padded = F.pad(normalise(images), (pad,) * 4, mode="reflect")
    top, left = torch.randint(0, 2 * pad + 1, (2, n, 1))
    rows, columns = top + torch.arange(size), left + torch.arange(size)
    columns = torch.where(torch.rand(n, 1) < 0.5, columns, columns.flip(1))
    return padded[torch.arange(n).view(n, 1, 1), :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def supervised(
    images: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, *, patch_size: int, minutes: float, lr: float
) -> None:
    """Train the small ViT with labels for a time budget and print its accuracy on the way."""
    vit = build_vit(images.shape[-1], patch_size)
    parameters = [p for p in vit.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05, betas=(0.9, 0.98))
    start, spent, epoch, next_report = time.perf_counter(), 0.0, 0, 0.25
    while spent < 1:
        vit.train()
        for rows in torch.randperm(len(images)).split(128):
            spent = (time.perf_counter() - start) / (60 * minutes)
            if spent >= 1:
                break
            for group in optimizer.param_groups:  # warm-up over 3 % of the budget, then cosine to zero
                group["lr"] = lr * min(spent / 0.03, 0.5 * (1 + math.cos(math.pi * spent)))
            with torch.autocast("cpu", torch.bfloat16):
                logits = vit(augment(images[rows]))
            optimizer.zero_grad()
            F.cross_entropy(logits.float(), labels[rows]).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        epoch += 1
        if spent >= next_report:
            next_report += 0.25
            vit.eval()
            with torch.no_grad():
                guess = torch.cat([vit(normalise(batch)).argmax(1) for batch in test.split(500)])
            per_class = [
                f"{100 * float((guess == c)[test_labels == c].float().mean()):.0f}" for c in range(len(CLASSES))
            ]
            accuracy = 100 * float((guess == test_labels).float().mean())
            name = f"supervised ViT, patch {patch_size}"
            budget = f"epoch {epoch}, {spent * minutes:.1f} min"
            print(f"{name:<34} {accuracy:>14.1f}   {budget}, by class {' '.join(per_class)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--train", type=int, default=10_000, help="training images (seed 0)")
    parser.add_argument("--test", type=int, default=2_000, help="test images (seed 1)")
    parser.add_argument("--patch-size", type=int, default=8, help="patch of the supervised ViT")
    parser.add_argument(
        "--supervised-minutes", type=float, default=0, help="budget of supervised training; 0 leaves it out"
    )
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate of supervised training")
    parser.add_argument("--skip-probes", action="store_true", help="only supervised training")
    args = parser.parse_args()
    torch.manual_seed(0)
    set_fused_attn(False)  # on CPU the plain products are faster in bfloat16

    start = time.perf_counter()
    train, test = draw(args.train, size=args.size, seed=0), draw(args.test, size=args.size, seed=1)
    seconds = time.perf_counter() - start
    print(f"{args.train} + {args.test} images of {args.size} px drawn in {seconds:.1f} s\n")
    y, y_test = train.labels, test.labels
    print(f"{'percent correct on the test images':<34} {'20-NN':>6} {'linear':>7}")

    def probe(name: str, x: Tensor, x_test: Tensor) -> None:
        print(f"{name:<34} {knn(x, y, x_test, y_test):>6.1f} {linear(x, y, x_test, y_test):>7.1f}", flush=True)

    if not args.skip_probes:
        probe("raw pixels", train.images.flatten(1) / 255, test.images.flatten(1) / 255)
        for patch_size in (8, 4):
            vit = build_vit(args.size, patch_size)
            x, x_test = vit_features(vit, train.images), vit_features(vit, test.images)
            for pooling in x:
                probe(f"untrained ViT, patch {patch_size}, {pooling}", x[pooling], x_test[pooling])
        probe("leak: colour histogram", histogram(train.images), histogram(test.images))
        probe("leak: mean colour", train.images.float().mean((2, 3)), test.images.float().mean((2, 3)))
        names = [name for name in train.factors if name != "shape"]
        stacked = [torch.stack([f[name].float() for name in names], 1) for f in (train.factors, test.factors)]
        probe("leak: all factors but the class", *stacked)
    if args.supervised_minutes > 0:
        supervised(
            train.images,
            y,
            test.images,
            y_test,
            patch_size=args.patch_size,
            minutes=args.supervised_minutes,
            lr=args.lr,
        )


if __name__ == "__main__":
    main()
