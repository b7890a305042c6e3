"""What needs a CUDA device: `benchmarks/gpu.sh` runs it, or `CUDA_VISIBLE_DEVICES=0 pytest -m gpu tests/gpu`."""

from __future__ import annotations

from pathlib import Path

import faiss
import pandas as pd
import pytest
import torch
from tiny import NANO, tiny_recipe

from ssl_bench.commands.pretrain import run
from ssl_bench.config.recipe import load_recipe
from ssl_bench.data.datasets import Splits
from ssl_bench.evaluations.solvers.neighbours import search, search_torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("method", ["mae", "moco_v3", "dino", "ibot"])
def test_a_training_runs_and_learns_numbers(method: str, tiny_data: Splits, tmp_path: Path) -> None:
    recipe = load_recipe(method, tiny_recipe(method), {"backbone": NANO, "precision": "32"})
    run(recipe, tiny_data, tmp_path, ("csv",))
    assert pd.read_csv(tmp_path / "metrics.csv")["loss"].notna().all()


def test_neighbours_are_those_of_the_cpu() -> None:
    assert faiss.get_num_gpus() > 0
    generator = torch.Generator().manual_seed(0)
    bank, queries = (torch.nn.functional.normalize(torch.randn(n, 64, generator=generator), dim=1) for n in (5000, 300))
    similarity, index = search(bank, queries, 20)
    expected, rows = search_torch(bank, queries, 20)
    torch.testing.assert_close(similarity, expected, atol=1e-5, rtol=1e-5)
    assert (index == rows).float().mean() > 0.999  # neighbours whose products are equal to rounding may change places
