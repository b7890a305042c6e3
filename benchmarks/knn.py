"""k-NN on cached features: the whole grid of k and temperatures against a plain FAISS search and DINO's loop.

    python benchmarks/knn.py                    # 10,000 queries, 50,000 x 192 bank, about a minute on 2 cores
    python benchmarks/knn.py --repeats 1 --bank 5000 --queries 1000

Rounds alternate between the ways, so that other load on the machine hits all of them; read the ratios of medians. Peak
memory is measured in a fresh process each, beyond what is resident once the features exist (Linux).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import torch
from torch import Tensor

from ssl_bench.evaluations.knn import KNN, normalize, ranks, search

CLASSES = 10
Problem = tuple[Tensor, Tensor, Tensor, Tensor]


def problem(bank: int, queries: int, dim: int) -> Problem:
    """Normalised features of overlapping clusters (bank, bank labels, queries, query labels)."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, dim, generator=generator)
    labels = torch.randint(CLASSES, (bank + queries,), generator=generator)
    x = normalize(centres[labels] + 3.5 * torch.randn(bank + queries, dim, generator=generator))
    return x[:bank].clone(), labels[:bank], x[bank:].clone(), labels[bank:]


def gemm(p: Problem) -> None:
    """The matrix product alone, 1,024 queries at a time."""
    for block in p[2].split(1024):
        block @ p[0].T


def faiss_flat(p: Problem) -> None:
    """A plain FAISS index and one search, no vote."""
    index = faiss.IndexFlatIP(p[0].shape[1])
    index.add(p[0].numpy())
    index.search(p[2].numpy(), 200)


def grid(p: Problem) -> dict[tuple[int, float], float]:
    """Ours: every k and temperature of the protocol."""
    bank, bank_labels, queries, labels = p
    protocol = KNN()
    similarity, index = search(bank, queries, max(protocol.k))
    found = ranks(similarity, bank_labels[index], labels, CLASSES, sorted(protocol.k), protocol.temperature)
    return {key: 100 * float((rank == 0).double().mean()) for key, rank in found.items()}


def dino_loop(p: Problem, k: int = 20, temperature: float = 0.07) -> float:
    """One k the way DINO's evaluation does it: 100 chunks, topk, one-hot votes, sort."""
    bank, bank_labels, queries, labels = p
    correct, step = 0, len(queries) // 100
    candidates = bank_labels.view(1, -1)
    for x, y in zip(queries.split(step), labels.split(step), strict=True):
        similarity, index = (x @ bank.T).topk(k, largest=True, sorted=True)
        near = candidates.expand(len(x), -1).gather(1, index)
        one_hot = torch.zeros(len(x) * k, CLASSES).scatter_(1, near.view(-1, 1), 1)
        weights = (similarity / temperature).exp()
        votes = (one_hot.view(len(x), -1, CLASSES) * weights[:, :, None]).sum(1)
        correct += int((votes.sort(1, descending=True).indices[:, 0] == y).sum())
    return 100 * correct / len(queries)


def dino_200(p: Problem) -> float:
    """The same with k = 200, the largest of the protocol."""
    return dino_loop(p, k=200)


WAYS: dict[str, Callable[[Problem], object]] = {f.__name__: f for f in (gemm, faiss_flat, grid, dino_loop, dino_200)}


def resident_bytes(line: str) -> int:
    """Resident memory of this process: "VmRSS" now, "VmHWM" at its highest since the last reset."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(text.split()[1]) * 1024 for text in status if text.startswith(line))


def main() -> None:
    """Time all ways in turn and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    faiss.omp_set_num_threads(a.threads)
    p = problem(a.bank, a.queries, a.dim)
    if a.memory_of:
        small = (p[0][:2000], p[1][:2000], p[2][:200], p[3][:200])
        WAYS[a.memory_of](small)  # threads and libraries are up
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS
        before = resident_bytes("VmRSS")
        WAYS[a.memory_of](p)
        print(resident_bytes("VmHWM") - before)
        return

    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(a.repeats):
        for name, way in WAYS.items():
            start = time.perf_counter()
            way(p)
            seconds[name].append(time.perf_counter() - start)
    sizes = ["--bank", str(a.bank), "--queries", str(a.queries), "--dim", str(a.dim), "--threads", str(a.threads)]
    base = statistics.median(seconds["faiss_flat"])
    print(f"{a.queries} queries, bank {a.bank} x {a.dim}, {a.threads} threads, median of {a.repeats}")
    print(f"{'':12}{'s':>8}{'min s':>8}{'x FAISS':>9}{'extra MB':>10}")
    for name, times in seconds.items():
        command = [sys.executable, __file__, *sizes, "--memory-of", name]
        memory = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        middle = statistics.median(times)
        print(f"{name:12}{middle:8.2f}{min(times):8.2f}{middle / base:9.2f}{memory / 1e6:10.0f}")
    found = grid(p)
    print(f"top1 at k = 20: grid {found[20, 0.07]:.2f}, DINO's loop {dino_loop(p):.2f}")
    print(f"top1 at k = 200: grid {found[200, 0.07]:.2f}, DINO's loop {dino_200(p):.2f}")


if __name__ == "__main__":
    main()
