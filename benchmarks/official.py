"""A step of ours against the arithmetic of the official code, on one thread in fp32: MAE, MoCo v3, DINO, iBOT.

    python benchmarks/official.py [--size tiny|small] [--methods mae,dino] [--seconds 20]

The reference is written from the method cards' equations, as the official scripts compute: attention as two matrix
products and a softmax, AdamW and moving averages parameter by parameter, a log-softmax for each pair of views, and in
iBOT the head and the loss of every patch, masked or not. Ours is the product's: the method's loss, its optimiser, what
it does after a step, and how its process keeps memory. Both take random crops and have networks of the same sizes. They
run in turn, each in a process of its own, and processor time is compared, so that other load on the machine matters
little. Beside the ratio: the rate of FLOPs (counted once, of ours) as a share of a matrix product's in the same run.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.config.build import build
from ssl_bench.config.recipe import load_recipe
from ssl_bench.training.compute import step_cost
from ssl_bench.utils.memory import keep_freed_memory

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "backbone": "vit_tiny_patch4_32",
        "mae": (32, {"decoder_dim": 192, "decoder_depth": 4, "decoder_heads": 3}),
        "moco_v3": (16, {}),
        "dino": (8, {"out_dim": 4096, "n_local": 6, "local_size": 16}),
        "ibot": (4, {"n_local": 6, "local_size": 16}),
    },
    "small": {
        "backbone": "vit_small_patch16_224",
        "mae": (4, {}),
        "moco_v3": (2, {}),
        "dino": (1, {}),
        "ibot": (1, {"n_local": 8}),
    },
}
Step = Callable[[list[Tensor]], None]


# The reference -------------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); each branch is dropped for an image with probability ``drop``."""

    def __init__(self, dim: int, heads: int, drop: float = 0.0) -> None:
        super().__init__()
        self.heads, self.drop = heads, drop
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-2, -1)) * (d // self.heads) ** -0.5).softmax(dim=-1)
        x = x + self.dropped(self.proj((weights @ v).transpose(1, 2).reshape(b, n, d)))
        return x + self.dropped(self.fc2(F.gelu(self.fc1(self.norm2(x)))))

    def dropped(self, x: Tensor) -> Tensor:
        if not (self.training and self.drop):
            return x
        keep = 1 - self.drop
        return x.div(keep) * (keep + torch.rand(len(x), 1, 1)).floor()


class Encoder(nn.Module):
    """A ViT of the sizes of one of ours."""

    def __init__(self, ours: Any, drop: float = 0.0, masked: bool = False) -> None:
        super().__init__()
        dim, depth = ours.embed_dim, len(ours.block_modules())
        self.patch = ours.cell
        self.embed = nn.Conv2d(3, dim, self.patch, self.patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.randn(1, 1 + ours.grid[0] * ours.grid[1], dim) * 0.02)
        self.layers = nn.ModuleList(Layer(dim, ours.num_heads, drop * i / (depth - 1)) for i in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mask_token = nn.Parameter(torch.zeros(1, dim)) if masked else None

    def forward(self, images: Tensor, keep: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        if mask is not None:
            assert self.mask_token is not None
            x = x.clone()
            x[mask] = self.mask_token.to(x.dtype).expand(int(mask.sum()), -1)
        table = self.positions[:, 1:]
        if table.shape[1] != x.shape[1]:
            old, new = int(table.shape[1] ** 0.5), int(x.shape[1] ** 0.5)
            grid = table.reshape(1, old, old, -1).permute(0, 3, 1, 2)
            grid = F.interpolate(grid, size=(new, new), mode="bicubic")
            table = grid.permute(0, 2, 3, 1).flatten(1, 2)
        x = x + table
        if keep is not None:
            x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([(self.cls + self.positions[:, :1]).expand(len(x), -1, -1), x], dim=1)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Head(nn.Module):
    """DINO's: an MLP, unit vectors, a weight-normalised last layer."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        widths = (dim, 2048), (2048, 2048), (2048, 256)
        a, b, c = (nn.Linear(*width) for width in widths)
        self.mlp = nn.Sequential(a, nn.GELU(), b, nn.GELU(), c)
        self.g, self.v = nn.Parameter(torch.ones(out_dim, 1)), nn.Parameter(torch.randn(out_dim, 256))

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(self.mlp(x), dim=-1)
        return F.linear(x, self.g * self.v / self.v.norm(dim=1, keepdim=True))


def contrastive_mlp(widths: Sequence[int]) -> nn.Sequential:
    """MoCo v3's projector or predictor."""
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        last = i == len(widths) - 2
        layers += [nn.Linear(widths[i], widths[i + 1], bias=False), nn.BatchNorm1d(widths[i + 1], affine=not last)]
        layers += [] if last else [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def finished(network: nn.Module, clip: float | None, teacher: nn.Module | None) -> Callable[[Tensor], None]:
    """What follows a loss: the gradient, clipped for each parameter, AdamW and the moving average one by one."""
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, weight_decay=0.05, foreach=False, fused=False)

    def step(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        for p in trained if clip else ():
            if p.grad is not None:
                scale = (clip or 0.0) / (p.grad.norm() + 1e-6)
                if scale < 1:
                    p.grad.mul_(scale)
        optimizer.step()
        if teacher is not None:
            average(teacher, network, 0.996)

    return step


@torch.no_grad()
def average(target: nn.Module, source: nn.Module, momentum: float) -> None:
    """Parameter by parameter."""
    own = dict(source.named_parameters())
    for name, p in target.named_parameters():
        p.mul_(momentum).add_((1 - momentum) * own[name].detach())


def mae(ours: Any) -> Step:
    """Encode a quarter of the patches, decode all, compare all, count the masked ones."""
    encoder, (dim, depth, heads) = Encoder(ours.backbone), (ours.mask_token.shape[-1], len(ours.decoder_blocks), 0)
    heads = ours.decoder_blocks[0].attn.num_heads
    n, p = ours.backbone.grid[0] * ours.backbone.grid[1], ours.patch_size
    decoder = nn.ModuleDict(
        {
            "embed": nn.Linear(ours.backbone.embed_dim, dim),
            "layers": nn.Sequential(*(Layer(dim, heads) for _ in range(depth))),
            "norm": nn.LayerNorm(dim, eps=1e-6),
            "out": nn.Linear(dim, 3 * p * p),
        }
    )
    network = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    token = nn.Parameter(torch.zeros(1, 1, dim))
    network.register_parameter("token", token)
    positions, end = torch.randn(1, 1 + n, dim), finished(network, None, None)

    def step(views: list[Tensor]) -> None:
        (images,) = views
        order = torch.rand(len(images), n).argsort(dim=1)
        restore, kept = order.argsort(dim=1), n // 4
        x = decoder["embed"](encoder(images, keep=order[:, :kept]))
        tokens = torch.cat([x[:, 1:], token.repeat(len(x), n - kept, 1)], dim=1)
        tokens = tokens.gather(1, restore[..., None].repeat(1, 1, dim))
        x = torch.cat([x[:, :1], tokens], dim=1) + positions
        prediction = decoder["out"](decoder["norm"](decoder["layers"](x)))[:, 1:]
        b, side = len(images), images.shape[-1] // p
        target = torch.einsum("nchpwq->nhwpqc", images.reshape(b, 3, side, p, side, p)).reshape(b, n, -1)
        target = (target - target.mean(dim=-1, keepdim=True)) / (target.var(dim=-1, keepdim=True) + 1e-6) ** 0.5
        each, mask = ((prediction - target) ** 2).mean(dim=-1), (restore >= kept).float()
        end((each * mask).sum() / mask.sum())

    return step


def moco_v3(ours: Any) -> Step:
    """Queries of both views, the moving average, keys of both views, two cross-entropies."""
    dim = ours.backbone.embed_dim
    base = nn.Sequential(Encoder(ours.backbone), contrastive_mlp([dim, 4096, 4096, 256]))
    base[0].embed.requires_grad_(False)
    base[0].positions.requires_grad_(False)
    momentum, predictor = copy.deepcopy(base).requires_grad_(False), contrastive_mlp([256, 4096, 256])
    end = finished(nn.ModuleList([base, predictor]), None, None)

    def encode(network: nn.Sequential, x: Tensor) -> Tensor:
        return network[1](network[0](x)[:, 0])

    def step(views: list[Tensor]) -> None:
        q = [predictor(encode(base, x)) for x in views]
        with torch.no_grad():
            average(momentum, base, 0.99)
            k = [encode(momentum, x) for x in views]
        pairs = ((q[0], k[1]), (q[1], k[0]))
        logits = [F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / 0.2 for a, b in pairs]
        end(sum((F.cross_entropy(s, torch.arange(len(s))) * 0.4 for s in logits), torch.zeros(())))

    return step


def dino(ours: Any) -> Step:
    """A forward pass for each size of crops, one of the head, a log-softmax for each pair of views."""
    student = nn.ModuleList([Encoder(ours.backbone, 0.1), Head(ours.backbone.embed_dim, ours.center.center.shape[1])])
    student[1].g.requires_grad_(False)
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    center, end = torch.zeros(1, ours.center.center.shape[1]), finished(student, 3.0, teacher)

    def step(views: list[Tensor]) -> None:
        both = torch.cat(views[:2])
        tokens = [student[0](both)[:, 0], student[0](torch.cat(views[2:]))[:, 0]]
        out = (student[1](torch.cat(tokens)) / 0.1).chunk(len(views))
        with torch.no_grad():
            logits = teacher[1](teacher[0](both)[:, 0])
            targets = ((logits - center) / 0.04).softmax(dim=-1).chunk(2)
        end(pairs_of(targets, out))
        center.mul_(0.9).add_(0.1 * logits.mean(dim=0, keepdim=True))

    return step


def pairs_of(targets: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """Mean cross-entropy of the teacher's views with the student's other views, pair by pair."""
    terms = [
        torch.sum(-target * F.log_softmax(said, dim=-1), dim=-1).mean()
        for u, target in enumerate(targets)
        for v, said in enumerate(student)
        if u != v
    ]
    return torch.stack(terms).mean()


def ibot(ours: Any) -> Step:
    """DINO's, and head, softmax and cross-entropy of every patch of the two large crops."""
    student = nn.ModuleList(
        [Encoder(ours.backbone, 0.1, masked=True), Head(ours.backbone.embed_dim, ours.center.center.shape[1])]
    )
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    teacher[0].register_parameter("mask_token", None)
    k, end = ours.center.center.shape[1], finished(student, 3.0, teacher)
    center, center2 = torch.zeros(1, k), torch.zeros(1, 1, k)

    def step(views: list[Tensor]) -> None:
        both, mask = torch.cat(views[:2]), ours.masks(len(views[0]))
        said = student[1](student[0](both, mask=mask)) / 0.1
        local = student[1](student[0](torch.cat(views[2:])))[:, 0] / 0.1
        with torch.no_grad():
            logits = teacher[1](teacher[0](both))
            targets = ((logits[:, 0] - center) / 0.04).softmax(dim=-1).chunk(2)
            of_patches = ((logits[:, 1:] - center2) / 0.04).softmax(dim=-1).chunk(2)
        out = [*said[:, 0].chunk(2), *local.chunk(len(views) - 2)]
        patch = []
        for target, patches, m in zip(of_patches, said[:, 1:].chunk(2), mask.float().chunk(2), strict=True):
            each = torch.sum(-target * F.log_softmax(patches, dim=-1), dim=-1)
            patch.append(((each * m).sum(dim=-1) / m.sum(dim=-1).clamp(min=1.0)).mean())
        end(pairs_of(targets, out) + torch.stack(patch).mean())
        center.mul_(0.9).add_(0.1 * logits[:, 0].mean(dim=0, keepdim=True))
        center2.mul_(0.9).add_(0.1 * logits[:, 1:].mean(dim=1).mean(dim=0).view(1, 1, -1))

    return step


REFERENCES: dict[str, Callable[[Any], Step]] = {"mae": mae, "moco_v3": moco_v3, "dino": dino, "ibot": ibot}


# The comparison ------------------------------------------------------------------------------------------------------


def product(method: Any) -> Step:
    """Our step on given crops."""
    optimizer = method.configure_optimizers()
    for group in optimizer.param_groups:
        group["lr"] = 1e-6

    def step(views: list[Tensor]) -> None:
        loss = method.loss(views)["loss"]
        optimizer.zero_grad()
        loss.backward()
        method.before_step()
        method.configure_gradient_clipping(optimizer)
        optimizer.step()
        method.after_step()

    return step


def serve(name: str, size: str, way: str, orders: Connection) -> None:
    """In a process of its own: do a step, or a matrix product, when asked, and say the processor seconds it took."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if way == "ours":
        keep_freed_memory()
    batch, settings = SIZES[size][name]
    keys = {"backbone": SIZES[size]["backbone"], "batch_size": batch, "precision": "32", **settings}
    method = build(load_recipe(name, None, keys), ["a", "b"])
    method.epoch, method.progress = 2.0, 0.1  # every layer is trained
    orders.send(step_cost(method, batch, 2).flops * batch)
    step = product(method) if way == "ours" else REFERENCES[name](method)
    sides = [view.sides for view in method.views for _ in range(view.count)]
    views, a = [torch.randn(batch, 3, *side) for side in sides], torch.randn(1024, 1024)
    for order in iter(orders.recv, "end"):
        start = time.process_time()
        step(views) if order == "step" else a @ a
        orders.send(time.process_time() - start)


def compare(name: str, size: str, seconds: float) -> str:
    """A line of the table."""
    spawn, ways, processes, flops = multiprocessing.get_context("spawn"), {}, [], 0.0
    for way in ("reference", "ours"):
        ways[way], theirs = spawn.Pipe()
        processes.append(spawn.Process(target=serve, args=(name, size, way, theirs), daemon=True))
        processes[-1].start()
        flops = ways[way].recv()

    def seconds_of(way: str, order: str) -> float:
        ways[way].send(order)
        return float(ways[way].recv())

    times: dict[str, list[float]] = {"reference": [], "ours": [], "matrix": []}
    spent, number = 0.0, 0
    while number < 4 or spent < seconds:
        for way in ways:
            taken = seconds_of(way, "step")
            spent += taken
            times[way] += [taken] if number else []
        times["matrix"].append(seconds_of("ours", "matrix"))
        number += 1
    for orders, process in zip(ways.values(), processes, strict=True):
        orders.send("end")
        process.join()
    batch = SIZES[size][name][0]
    ratios = [one / other for one, other in zip(times["reference"], times["ours"], strict=True)]
    rate, matrix = flops / statistics.median(times["ours"]), 2 * 1024**3 / statistics.median(times["matrix"])
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} pairs"
    speed = f"{batch / statistics.median(times['ours']):.4g} images/s, {rate / 1e9:.1f} GFLOP/s"
    share = f"{100 * rate / matrix:.0f} % of a matrix product's {matrix / 1e9:.1f}"
    return f"{name:8} {size:5} batch {batch:3}: {statistics.median(ratios):.2f}x ({spread}); {speed} = {share}"


def main() -> None:
    """Print a line a method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--methods", default=",".join(REFERENCES))
    parser.add_argument("--seconds", type=float, default=20.0, help="processor seconds of each method")
    arguments = parser.parse_args()
    for name in arguments.methods.split(","):
        print(compare(name, arguments.size, arguments.seconds), flush=True)


if __name__ == "__main__":
    main()
