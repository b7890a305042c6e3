"""Random masks: MAE's worked example and counts. Block-wise masks: BEiT's trace and figures, and a naive loop."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from ssl_bench.nn.masking import ATTEMPTS, block_masking, random_masking


def test_worked_example() -> None:
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.8, 0.4], [0.05, 0.95, 0.15, 0.85, 0.25, 0.75, 0.35, 0.65]])
    keep, masked, mask = random_masking(noise, 0.75)
    x = torch.arange(16).view(2, 8)
    assert x.gather(1, keep).tolist() == [[1, 5], [8, 10]]
    assert mask.int().tolist() == [[1, 0, 1, 1, 1, 0, 1, 1], [0, 1, 0, 1, 1, 1, 1, 1]]
    assert masked.tolist() == [[3, 7, 2, 4, 6, 0], [4, 6, 7, 5, 3, 1]]


@pytest.mark.parametrize(("patches", "kept"), [(196, 49), (256, 64), (49, 12)])
def test_counts_truncate(patches: int, kept: int) -> None:
    keep, _, mask = random_masking(torch.rand(5, patches), 0.75)
    assert keep.shape == (5, kept)
    assert (mask.sum(dim=1) == patches - kept).all()


def uniform(batch: int, seed: int = 0) -> Callable[[int], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda n: torch.rand(batch, n, generator=generator)


def naive_block(target: float, grid: tuple[int, int], min_area: float, draws: list[list[float]]) -> list[list[int]]:
    """One image, cell by cell; a rectangle that doesn't fit uses up its draws of a place too."""
    mask = [[0] * grid[1] for _ in range(grid[0])]
    count, at = 0, 0
    while count < target:
        gained = 0
        for _ in range(10):
            u_area, u_aspect, u_top, u_left = draws[at]
            at += 1
            area = min_area + u_area * (target - count - min_area)
            aspect = math.exp(math.log(0.3) + u_aspect * (math.log(1 / 0.3) - math.log(0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= grid[0] or width >= grid[1]:
                continue
            top, left = int(u_top * (grid[0] - height + 1)), int(u_left * (grid[1] - width + 1))
            cells = [(r, c) for r in range(top, top + height) for c in range(left, left + width)]
            new = sum(not mask[r][c] for r, c in cells)
            if 0 < new <= target - count:
                for r, c in cells:
                    mask[r][c] = 1
                gained = new
                break
        if not gained:
            break
        count += gained
    return mask


def test_block_trace() -> None:
    """Three rectangles on 6 x 6 cells: 3 x 3 at (1, 2), 2 x 2 at (2, 0), 1 x 1 at (0, 0)."""
    draws = torch.full((1, 4 * ATTEMPTS), 0.5)
    places = ((1 + 0.5) / 4, (2 + 0.5) / 4), ((2 + 0.5) / 5, 0.5 / 5), (0.5 / 6, 0.5 / 6)
    for i, ((area, aspect), place) in enumerate(zip(((0.5, 0.5), (0.5, 0.5), (0.9, 0.4)), places, strict=True)):
        draws[0, 4 * i : 4 * i + 4] = torch.tensor([area, aspect, *place])
    mask = block_masking(torch.tensor([14.0]), (6, 6), 4, lambda n: draws)[0]
    rows = ["".join(map(str, row)) for row in mask.int().tolist()]
    assert rows == ["100000", "001110", "111110", "111110", "000000", "000000"]


@pytest.mark.parametrize(
    ("target", "grid", "min_area"),
    [(75.0, (14, 14), 16), (58.8, (14, 14), 16), (19.2, (8, 8), 4), (11.0, (4, 7), 2), (6.0, (4, 4), 16)],
)
def test_blocks_are_those_of_the_naive_loop(target: float, grid: tuple[int, int], min_area: float) -> None:
    draws = torch.rand(40, 4 * ATTEMPTS, generator=torch.Generator().manual_seed(1))
    masks = block_masking(torch.full((40,), target), grid, min_area, lambda n: draws)
    for mask, own in zip(masks, draws.double().unflatten(1, (-1, 4)).tolist(), strict=True):
        assert mask.int().tolist() == naive_block(target, grid, min_area, own)


def test_block_figures_of_beit() -> None:
    """20,000 draws of the official generator: mean 74.47, least 64, 75 in 66.6 %, centre 71.6 %, corner 4.0 %."""
    mask = block_masking(torch.full((8000,), 75.0), (14, 14), 16, uniform(8000)).float()
    count, often = mask.sum(dim=(1, 2)), mask.mean(dim=0)
    assert count.mean().item() == pytest.approx(74.47, abs=0.1)
    assert count.min() >= 62 and count.max() == 75
    assert (count == 75).float().mean().item() == pytest.approx(0.666, abs=0.02)
    assert often[6:8, 6:8].mean().item() == pytest.approx(0.716, abs=0.015)
    assert often[::13, ::13].mean().item() == pytest.approx(0.040, abs=0.006)


def test_block_figures_of_ibot() -> None:
    """Ratio 0.3 +- 0.2 for half of the crops: 49.5 % unmasked, the others 0.298 on average, 0.082 to 0.490."""
    n = 4000
    draw = torch.rand(2, n, generator=torch.Generator().manual_seed(2))
    ratio = torch.where(draw[0] < 0.5, 0.0, 0.1 + 0.4 * draw[1])
    part = block_masking(ratio * 196, (14, 14), 16, uniform(n)).float().mean(dim=(1, 2))
    assert (part == 0).float().mean().item() == pytest.approx(0.495, abs=0.03)
    assert part[part > 0].mean().item() == pytest.approx(0.298, abs=0.008)
    assert 0.07 < part[part > 0].min() < 0.1 and 0.48 < part.max() < 0.5
    assert (part <= ratio).all()
    fixed = block_masking(torch.full((1000,), 0.3 * 196), (14, 14), 16, uniform(1000)).float().mean(dim=(1, 2))
    assert fixed.mean().item() == pytest.approx(0.292, abs=0.004)
    assert fixed.min() > 0.22 and fixed.max() <= 0.3


def test_block_count_of_ibot() -> None:
    """Its generator on 8 x 8 cells at a ratio of 0.3 masks 19 with ``random.seed(123)``; here its draws, in order."""
    python = random.Random(123)
    draws, mask = torch.full((1, 4 * ATTEMPTS), 0.5, dtype=torch.float64), torch.zeros(8, 8, dtype=torch.bool)
    attempt, failures = 0, 0
    while (wanted := 0.3 * 64 - int(mask.sum())) > 0 and failures < 10:
        area, aspect = python.random(), python.random()
        size, log = 4 + area * (wanted - 4), math.log(0.3) * (1 - 2 * aspect)
        height, width = round(math.sqrt(size * math.exp(log))), round(math.sqrt(size / math.exp(log)))
        top = left = 0.5
        new = mask
        if height < 8 and width < 8:
            row, column = python.randint(0, 8 - height), python.randint(0, 8 - width)
            top, left = (row + 0.5) / (9 - height), (column + 0.5) / (9 - width)
            new = mask.clone()
            new[row : row + height, column : column + width] = True
        draws[0, 4 * attempt : 4 * attempt + 4] = torch.tensor([area, aspect, top, left])
        gained = int(new.sum()) - int(mask.sum())
        mask, failures = (new, 0) if 0 < gained <= wanted else (mask, failures + 1)
        attempt += 1
    found = block_masking(torch.tensor([0.3 * 64], dtype=torch.float64), (8, 8), 4, lambda n: draws)[0]
    assert found.sum() == 19 and torch.equal(found, mask)


def test_a_joint_batch_is_its_parts() -> None:
    """Each image has its own draws, so two processes with half of them each make the masks of the whole."""
    target, draws = torch.tensor([75.0, 30.0, 0.0, 60.0]), torch.rand(4, 4 * ATTEMPTS)
    whole = block_masking(target, (14, 14), 16, lambda n: draws)
    halves = zip(target.split(2), draws.split(2), strict=True)
    parts = [block_masking(own, (14, 14), 16, partial(torch.narrow, u, 1, 0)) for own, u in halves]
    assert torch.equal(whole, torch.cat(parts))
    assert not whole[2].any()


def test_small_grids_need_small_blocks() -> None:
    """BEiT's 16 cells don't fit 4 x 4: most images stay unmasked. Four do."""
    target = torch.full((500,), 8.0)
    assert (block_masking(target, (4, 4), 16, uniform(500)).sum(dim=(1, 2)) == 0).float().mean() > 0.8
    assert block_masking(target, (4, 4), 4, uniform(500)).float().sum(dim=(1, 2)).mean() > 7.9
