"""What evaluations cost: k-NN and the linear grid on drawn features, and every frozen protocol on a real encoder.

    python benchmarks/evaluations.py knn               # 10,000 queries x 50,000 x 192, two minutes on 2 cores
    python benchmarks/evaluations.py knn --large       # 500 queries x 1.28 million x 384, ten minutes, 9 GB
    python benchmarks/evaluations.py linear            # 20 heads against one, and against logistic regression
    python benchmarks/evaluations.py all ENCODER.pt --data cifar10

Rounds alternate between the ways, so that other load on the machine hits all of them: read the ratios of medians, and
on a busy machine those of processor time. Peak memory is that of a fresh process beyond the features (Linux).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import faiss
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ssl_bench.checkpoints.encoder_file import load_encoder
from ssl_bench.config.protocol import load_evaluator
from ssl_bench.data.datasets import hold_out, load
from ssl_bench.evaluations.evaluator import Data
from ssl_bench.evaluations.frozen.knn import KNN
from ssl_bench.evaluations.frozen.linear import Linear, train_heads
from ssl_bench.evaluations.frozen_encoder import FrozenEncoder
from ssl_bench.evaluations.solvers.neighbours import normalize

CLASSES = 10
FROZEN = "knn,linear,logistic,fewshot,retrieval,clustering,diagnostics"
Problem = tuple[Tensor, Tensor, Tensor, Tensor]


# k-NN ----------------------------------------------------------------------------------------------------------------


def problem(bank: int, queries: int, dim: int) -> Problem:
    """Features of overlapping clusters (bank, bank labels, queries, query labels), not normalised."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, dim, generator=generator)
    labels = torch.randint(CLASSES, (bank + queries,), generator=generator)
    x = torch.empty(bank + queries, dim)
    for rows, of in zip(x.split(8192), labels.split(8192), strict=True):
        rows.copy_(centres[of] + 3.5 * torch.randn(len(rows), dim, generator=generator))
    return x[:bank], labels[:bank], x[bank:], labels[bank:]


def faiss_flat(p: Problem) -> None:
    """Plain FAISS: copies normalised, an index filled, one search; no vote."""
    bank, queries = p[0].numpy().copy(), p[2].numpy().copy()
    faiss.normalize_L2(bank)
    faiss.normalize_L2(queries)
    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(bank)
    index.search(queries, 200)


def grid(p: Problem, half: bool = False) -> dict[tuple[int, float], float]:
    """Ours: every k and temperature of the protocol."""
    bank, bank_labels, queries, labels = p
    protocol = KNN(half=half)
    found = protocol.ranks(bank, bank_labels, queries, labels, CLASSES, sorted(protocol.k), protocol.temperature)
    return {key: 100 * float((rank == 0).double().mean()) for key, rank in found.items()}


def grid_half(p: Problem) -> dict[tuple[int, float], float]:
    """The same with `half`."""
    return grid(p, half=True)


def dino_loop(p: Problem, k: int = 200, temperature: float = 0.07) -> float:
    """One k the way DINO's evaluation does it: 100 chunks, topk, one-hot votes, sort."""
    bank, queries = normalize(p[0]).T, normalize(p[2])
    correct, step = 0, max(1, len(queries) // 100)
    candidates = p[1].view(1, -1)
    for x, y in zip(queries.split(step), p[3].split(step), strict=True):
        similarity, index = (x @ bank).topk(k, largest=True, sorted=True)
        near = candidates.expand(len(x), -1).gather(1, index)
        one_hot = torch.zeros(len(x) * k, CLASSES).scatter_(1, near.view(-1, 1), 1)
        weights = (similarity / temperature).exp()
        votes = (one_hot.view(len(x), -1, CLASSES) * weights[:, :, None]).sum(1)
        correct += int((votes.sort(1, descending=True).indices[:, 0] == y).sum())
    return 100 * correct / len(queries)


WAYS: dict[str, Callable[[Problem], object]] = {f.__name__: f for f in (faiss_flat, grid, grid_half, dino_loop)}


def resident_bytes(line: str) -> int:
    """Resident memory of this process: "VmRSS" now, "VmHWM" at its highest since the last reset."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(text.split()[1]) * 1024 for text in status if text.startswith(line))


def knn(a: argparse.Namespace) -> None:
    """Time all ways in turn and print one line each."""
    bank, queries, dim = (1_281_167, 500, 384) if a.large else (a.bank, a.queries, a.dim)
    p = problem(bank, queries, dim)
    if a.memory_of:
        WAYS[a.memory_of]((p[0][:2000], p[1][:2000], p[2][:200], p[3][:200]))  # threads and libraries are up
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS
        before = resident_bytes("VmRSS")
        WAYS[a.memory_of](p)
        print(resident_bytes("VmHWM") - before)
        return
    ways = {name: way for name, way in WAYS.items() if not (a.large and way is dino_loop)}  # 5 queries a chunk there
    times = rounds({name: lambda way=way: way(p) for name, way in ways.items()}, a.repeats)  # type: ignore[misc]
    print(f"{queries} queries, bank {bank} x {dim}, k to 200, {a.threads} threads, median of {a.repeats}")
    table(times, "faiss_flat")
    exact, fast = grid(p), grid_half(p)
    print(f"top1 at k = 200: exact {exact[200, 0.07]:.2f}, half {fast[200, 0.07]:.2f}", end="")
    print("" if a.large else f", DINO's loop {dino_loop(p):.2f}")
    print(
        f"largest difference of half over the grid {max(abs(exact[key] - fast[key]) for key in exact):.3f}", flush=True
    )
    for name in ways:
        command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f"{name:12}{int(found) / 1e6:8.0f} MB beyond the features")


# The linear grid -----------------------------------------------------------------------------------------------------


def linear(a: argparse.Namespace) -> None:
    """A grid of heads against one head, and its accuracy against logistic regression.

    The features are overlapping clusters seen through an ill-conditioned linear map, which is what makes plain SGD slow
    on features of real networks.
    """
    warnings.simplefilter("ignore", ConvergenceWarning)
    (x, y), (x_test, y_test) = draw(a.bank, a.dim, 1), draw(a.queries, a.dim, 2)
    protocol = Linear()
    batch_size = min(protocol.batch_size, a.bank)
    steps = 10 * (a.bank // batch_size)
    rates = [10 ** (-4 + 0.2 * i) for i in range(20)]
    grids = {f"{count} heads": [("standardised", lr, 0.0) for lr in rates[-count:]] for count in (1, 20)}
    ways = {
        name: lambda heads=heads: train_heads(x, y, CLASSES, heads, steps=steps, batch_size=batch_size, seed=0)
        for name, heads in grids.items()
    }
    print(f"{a.bank} x {a.dim}, 10 epochs = {steps} steps of {batch_size}, {a.threads} threads, median of {a.repeats}")
    table(rounds(ways, a.repeats), "1 heads")  # type: ignore[arg-type]

    n_dev = a.bank // 10
    fit, dev = (x[n_dev:], y[n_dev:]), (x[:n_dev], y[:n_dev])
    steps = max(steps, protocol.min_steps)
    choices = [(kind, lr, 0.0) for kind in protocol.inputs for lr in protocol.base_lr]
    heads = train_heads(*fit, CLASSES, choices, steps=steps, batch_size=batch_size, seed=0)
    on_dev = heads.evaluate(*dev)
    best = max(range(len(choices)), key=on_dev.__getitem__)
    print(f"SGD, {choices[best][0]}, lr {choices[best][1]:g}: test {heads.evaluate(x_test, y_test)[best][0]:.2f}")
    mean, std = fit[0].mean(0), fit[0].std(0)
    found = []
    for c in (0.01, 1.0, 100.0):
        model = LogisticRegression(C=c, max_iter=500).fit(((fit[0] - mean) / std).numpy(), fit[1].numpy())
        scores = [100 * model.score(((part - mean) / std).numpy(), truth) for part, truth in (dev, (x_test, y_test))]
        found.append((*scores, c))
    print(f"scikit-learn's logistic regression, C {max(found)[2]:g}: test {max(found)[1]:.2f}")


def draw(n: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features (n, dim) float32 and labels (n,) int64."""
    fixed = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, dim, generator=fixed)
    mix = torch.randn(dim, dim, generator=fixed) * torch.logspace(0, -2, dim)[:, None]
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    return (0.17 * centres[labels] + torch.randn(n, dim, generator=generator)) @ mix, labels


# Every protocol on one encoder ---------------------------------------------------------------------------------------


def every(a: argparse.Namespace) -> None:
    """Seconds of the extraction and of each protocol, and their sum against extraction + max(20 %, 6 s)."""
    splits = load(a.data)
    fit, dev = hold_out(splits.train)
    data = Data(splits.train, fit, dev, splits.test)
    evaluators = {name: load_evaluator(name) for name in a.evaluations.split(",")}
    poolings = list(dict.fromkeys(pooling for evaluator in evaluators.values() for pooling in evaluator.poolings))
    with tempfile.TemporaryDirectory() as folder:
        encoder = FrozenEncoder(load_encoder(a.checkpoint).encoder, poolings, cache=Path(folder))
        wanted = [pooling for pooling in poolings if pooling in encoder.poolings]

        def extract() -> None:
            for images in (data.train, data.test):
                encoder.features(images, wanted)

        seconds = {"extraction": timed(extract)}
        seconds["from the cache"] = timed(encoder.kept.clear, extract)
        for name, evaluator in evaluators.items():
            seconds[name] = timed(lambda evaluator=evaluator: evaluator.run(encoder, data))  # type: ignore[misc]
    print(f"{a.data}: {len(data.train)} + {len(data.test)} images, {', '.join(wanted)}, {a.threads} threads")
    for name, (wall, cpu) in seconds.items():
        print(f"{name:20}{wall:8.2f} s{cpu:8.2f} s of processors")
    extraction, rest = seconds["extraction"][0], sum(wall for wall, _ in list(seconds.values())[2:])
    allowed = max(0.2 * extraction, 6.0)
    print(f"{'all but extraction':20}{rest:8.2f} s, allowed {allowed:.2f} s: {'held' if rest <= allowed else 'missed'}")


# Timing --------------------------------------------------------------------------------------------------------------


def timed(*ways: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of all processors, for calls one after the other."""
    wall, cpu = time.perf_counter(), time.process_time()
    for way in ways:
        way()
    return time.perf_counter() - wall, time.process_time() - cpu


def rounds(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Medians of `timed` over rounds of all ways."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            found[name].append(timed(way))
    return {name: (_median(w for w, _ in times), _median(c for _, c in times)) for name, times in found.items()}


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def table(times: dict[str, tuple[float, float]], base: str) -> None:
    """One line a way, with ratios to the base."""
    print(f"{'':12}{'s':>8}{'ratio':>8}{'cpu s':>9}{'ratio':>8}")
    for name, (wall, cpu) in times.items():
        ratios = wall / times[base][0], cpu / times[base][1]
        print(f"{name:12}{wall:8.2f}{ratios[0]:8.2f}{cpu:9.2f}{ratios[1]:8.2f}", flush=True)


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for run in (knn, linear):
        sub = commands.add_parser(run.__name__, help=run.__doc__.splitlines()[0] if run.__doc__ else None)
        sub.add_argument("--bank", type=int, default=50_000, help="training images")
        sub.add_argument("--queries", type=int, default=10_000, help="test images")
        sub.add_argument("--dim", type=int, default=192)
        sub.add_argument("--repeats", type=int, default=5)
        sub.set_defaults(run=run)
        if run is knn:
            sub.add_argument("--large", action="store_true", help="ImageNet's size")
            sub.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    sub = commands.add_parser("all", help="every frozen protocol on one encoder")
    sub.add_argument("checkpoint")
    sub.add_argument("--data", default="cifar10")
    sub.add_argument("--evaluations", default=FROZEN)
    sub.set_defaults(run=every)
    for sub in commands.choices.values():
        sub.add_argument("--threads", type=int, default=torch.get_num_threads())
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    faiss.omp_set_num_threads(a.threads)
    a.run(a)


if __name__ == "__main__":
    main()
