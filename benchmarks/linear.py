"""The linear probe on cached features: a grid of heads against one head, and its accuracy against L-BFGS.

    python benchmarks/linear.py                 # 50,000 x 192, about three minutes on 2 cores
    python benchmarks/linear.py --train 5000

The features are drawn: overlapping clusters seen through an ill-conditioned linear map, which is what makes plain SGD
slow on features of real networks. Times alternate between the ways; read the ratios of medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ssl_bench.evaluations.linear import INPUTS, Linear, train_heads

CLASSES = 10


def draw(n: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features (n, dim) float32 and labels (n,) int64."""
    fixed = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, dim, generator=fixed)
    mix = torch.randn(dim, dim, generator=fixed) * torch.logspace(0, -2, dim)[:, None]
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    return (0.17 * centres[labels] + torch.randn(n, dim, generator=generator)) @ mix, labels


def main() -> None:
    """Time grids of heads, then compare accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=50_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    warnings.simplefilter("ignore", ConvergenceWarning)  # the line says how many rounds it had
    (x, y), (x_test, y_test) = draw(a.train, a.dim, 1), draw(a.test, a.dim, 2)
    protocol = Linear()
    batch_size = min(protocol.batch_size, a.train)
    steps = 10 * (a.train // batch_size)

    rates = [10 ** (-4 + 0.2 * i) for i in range(20)]
    grids = {
        "1 head": [("standardised", 0.03, 0.0)],
        "20 heads": [("standardised", lr, 0.0) for lr in rates],
        "20 heads, half whitened": [(INPUTS[i % 2], lr, 0.0) for i, lr in enumerate(rates)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in grids}
    for _ in range(a.repeats):
        for name, grid in grids.items():
            start = time.perf_counter()
            train_heads(x, y, CLASSES, grid, steps=steps, batch_size=batch_size, seed=0)
            seconds[name].append(time.perf_counter() - start)
    print(f"{a.train} x {a.dim}, 10 epochs = {steps} steps of {batch_size}, {a.threads} threads, median of {a.repeats}")
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(f"{name:26}{middle:7.2f} s{middle / statistics.median(seconds['1 head']):7.2f} x one head")

    n_dev = a.train // 10
    fit, dev = (x[n_dev:], y[n_dev:]), (x[:n_dev], y[:n_dev])
    print("accuracy, chosen on dev          dev    test")
    steps = max(steps, protocol.min_steps)
    for inputs in INPUTS:
        grid = [(inputs, lr, 0.0) for lr in protocol.base_lr]
        heads = train_heads(fit[0], fit[1], CLASSES, grid, steps=steps, batch_size=batch_size, seed=0)
        on_dev, on_test = heads.judge(*dev)[0], heads.judge(x_test, y_test)[0]
        best = int(on_dev.argmax())
        print(f"SGD, {inputs:13} lr {protocol.base_lr[best]:<8g}{on_dev[best]:8.2f}{on_test[best]:8.2f}")
    mean, std = fit[0].mean(0), fit[0].std(0)
    found = []
    for c in (0.01, 1.0, 100.0):
        model = LogisticRegression(C=c, max_iter=500).fit(((fit[0] - mean) / std).numpy(), fit[1].numpy())
        scores = [100 * model.score(((part - mean) / std).numpy(), truth) for part, truth in (dev, (x_test, y_test))]
        found.append((scores[0], scores[1], c))
    on_dev_exact, on_test_exact, c = max(found)
    print(f"L-BFGS, <= 500 rounds, C {c:<6g}{on_dev_exact:10.2f}{on_test_exact:8.2f}")


if __name__ == "__main__":
    main()
