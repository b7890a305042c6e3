"""Every command of the documentation runs, on photographs of a toy size."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_bench import cli
from ssl_bench.commands import bench

ROOT = Path(__file__).parents[1]
PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if "```sh" in page.read_text()]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two classes of small images of different sizes, the examples and a user's suite."""
    random = np.random.default_rng(0)
    for number in range(400):  # a batch of 256 must fit into 90 % of 80 % of them
        side = 32 + number % 5
        pixels = random.integers(0, 128, (side, side + 3, 3)) + (100 if number % 2 else 0)
        place = tmp_path / "photos" / ("cats", "dogs")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    os.symlink(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "results").mkdir()
    os.symlink(ROOT / "results" / "quick", tmp_path / "results" / "quick")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "default_jobs", lambda: 1)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands(page: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page.read_text()
    for suite in re.findall(r"```yaml\n(name: .*?)```", text, re.DOTALL):
        (photos / "mine.yaml").write_text(suite)
    for claims in re.findall(r"```yaml\n(claims:.*?)```", text, re.DOTALL):
        (photos / "claims.yaml").write_text(claims)
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert lines and all(line.startswith("ssl-bench ") for line in lines)
    for line in lines:
        status = cli.main(shlex.split(line)[1:])
        assert status == 0, f"{page.name}: {line}: {capsys.readouterr().err}"
