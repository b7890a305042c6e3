"""Every command of the documentation runs, on photographs of a toy size; the others are understood."""

from __future__ import annotations

import os
import pydoc
import re
import shlex
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import ssl_bench
import ssl_bench.nn
from ssl_bench import cli
from ssl_bench.arguments import make_parser
from ssl_bench.commands import bench
from ssl_bench.utils.errors import UserError

ROOT = Path(__file__).parents[1]
PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if "```sh" in page.read_text()]


FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
CHOICES = "ssl-bench list methods | evaluations"  # one line for all lists, in the README


def command_lines(page: Path) -> list[str]:
    """The lines of a page's blocks that call ssl-bench, without what the shell does around the call."""
    blocks = [text for language, text in FENCE.findall(page.read_text()) if language in ("", "sh", "console")]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line[line.index("ssl-bench ") :] for line in lines if re.search(r"(^|[ $&])ssl-bench ", line)]


READ = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if command_lines(page)]


@pytest.mark.parametrize("page", READ, ids=lambda page: page.stem)
def test_every_command_line_is_understood(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In any block, run elsewhere or not: commands, options and their values are those of the parser."""
    for line in command_lines(page):
        if line.startswith(CHOICES):
            head, *others = (part.strip() for part in line.split("|"))
            arguments = [["list", name] for name in (head.split()[-1], *others)]
        else:
            arguments = [shlex.split(line, comments=" #" in line)[1:]]
        for given in arguments:
            try:
                make_parser().parse_args(given)
            except (SystemExit, UserError) as error:
                pytest.fail(f"{page.name}: {line}: {error} {capsys.readouterr().err}")


def test_no_command_line_is_overlooked() -> None:
    found = {page.stem: len(command_lines(page)) for page in READ}
    assert found["README"] >= 20 and found["machines"] >= 5 and found["gallery"] >= 8, found


@pytest.mark.parametrize("module", [ssl_bench, ssl_bench.nn], ids=lambda module: module.__name__)
def test_the_reference_has_what_is_promised(module: ModuleType) -> None:
    """Each public name, under the place where it is defined, and nothing that isn't public."""
    text = (ROOT / "docs" / "reference.md").read_text()
    shown = {pydoc.locate(place) for place in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}
    assert None not in shown
    missing = [name for name in module.__all__ if getattr(module, name) not in shown]
    assert not missing, f"docs/reference.md lacks {', '.join(missing)}"


def test_the_reference_promises_nothing_else() -> None:
    text = (ROOT / "docs" / "reference.md").read_text().partition("## Rows")[0]
    public = [getattr(module, name) for module in (ssl_bench, ssl_bench.nn) for name in module.__all__]
    places = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert [place for place in places if pydoc.locate(place) not in public] == []


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


NOT_HERE = {  # what a line needs that a test has not
    "imagenet": "ImageNet or Imagenette",
    "_in1k": "ImageNet",
    "mae_base.pt": "weights to download",
    "mae_pretrain": "weights to download",
    "timm:": "weights to download",
    "--launcher slurm": "a cluster; tests/cluster has one",
    "bench survey": "an hour",
    "cifar100": "a second data set to download",
    "results/reproduce": "the runs of a paper",
    "vit_base": "minutes",
    "pip install": "tests/test_wheel.py installs it",
    "list methods |": "several commands in one line; tests/test_cli.py runs them",
}
INSTEAD = {  # of what a line reads: photographs of a toy size, and the encoder that an earlier line made
    r"folder:path/to/images|cifar10(?= |$)": "folder:photos",
    r"path/to/images": "photos/cats",
    r"results/folder:photos": "results/cifar10",
    r"bench folder:photos": "bench cifar10",
    r"\S*runs/(\w+)-cifar10\S+encoder\.pt": r"runs/\1-photos",
}
ADDED = {  # a toy's training, and a place of the test's own; what comes last counts
    "pretrain": ["--epochs", "0.05", "--set", "batch_size=16"],
    "bench": ["--data", "folder:photos", "--budget", "0.001", "--seeds", "0", "--evaluations", "knn", "--jobs", "1"],
    "speed": ["--set", "batch_size=16"],
    "leaderboard": ["--out", "page"],
    "claims": ["--out", "page"],
}


@pytest.mark.slow
@pytest.mark.parametrize("page", READ, ids=lambda page: page.stem)
def test_commands_at_toy_size(page: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every other line, on photographs in place of its data and for a moment in place of its epochs."""
    os.symlink(ROOT / "results" / "cifar10", photos / "results" / "cifar10")
    os.symlink(ROOT / "results" / "survey", photos / "results" / "survey")
    (photos / "my_simclr.yaml").write_text("method: simclr\nbackbone: vit_nano_patch4_32\n")
    in_sh = {
        line for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL) for line in block.splitlines()
    }
    for line in command_lines(page):
        if line in in_sh or any(part in line for part in NOT_HERE):
            continue
        for pattern, other in INSTEAD.items():
            line = re.sub(pattern, other, line)
        arguments = shlex.split(line, comments=" #" in line)[1:]
        arguments += ADDED.get(arguments[0], [])
        for at, given in enumerate(arguments):
            if match := re.fullmatch(r"runs/(\w+)-photos", given):
                (arguments[at], *_) = (str(file) for file in sorted(Path("runs").glob(f"{match[1]}*/encoder.pt")))
        assert cli.main(arguments) == 0, f"{page.name}: {line}: {capsys.readouterr().err}"
