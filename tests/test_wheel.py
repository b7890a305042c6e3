"""The wheel alone, in an empty folder: what it ships, and the examples."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
RUN = """
import sys
from pathlib import Path
import ssl_bench
from ssl_bench.cli import main
assert Path(ssl_bench.__file__).is_relative_to(sys.argv[1]), ssl_bench.__file__
small = "batch_size=64 epochs=0.5 warmup_epochs=0 side=32 width=16".split()
for argv in (
    "list suites",
    "table survey --out tables --format md",
    "evaluate own/model.py:build --data own/data.py:stripes --evaluations knn,own/evaluation.py:NearestMean --out rows",
    "pretrain own/vicreg.py:VICReg --backbone own/backbone.py:SmallConv --data own/data.py:stripes --out run --set "
    "optimizer=own/optimizer.py:Lion " + " ".join(small),
    "evaluate run/encoder.pt --backbone own/backbone.py:SmallConv --data own/data.py:stripes --out rows "
    "--evaluations knn",
    "leaderboard rows --format md,html,latex,csv,every-eval-ever,mteb",
):
    assert main(argv.split()) == 0, argv
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, cwd=folder, timeout=300)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder / "target")
    return folder / "target"


def test_the_examples_run(target: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "own", ignore=shutil.ignore_patterns("__pycache__"))
    environment = os.environ | {"PYTHONPATH": str(target), "SSL_BENCH_PRECISION": "32"}
    command = [sys.executable, "-P", "-c", RUN, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "rows" / "LEADERBOARD.md").read_text()
    assert "| model |" in page and "| VICReg |" in page and "NearestMean" in page
    assert str(tmp_path) not in page
