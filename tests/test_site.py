"""The documentation site builds without a warning, and its pages show the files that they include."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    quiet = {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | quiet, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def text_of(page: Path) -> str:
    """What a page shows of code, every run of spaces as one."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", page.read_text())))


def test_included_files_are_shown(site: Path) -> None:
    source = (ROOT / "docs" / "adding.md").read_text()
    included = re.findall(r'^--8<-- "(.+)"$', source, re.MULTILINE)
    assert len(included) >= 6 and "--8" not in re.sub(r'^--8<-- ".+"$', "", source, flags=re.MULTILINE)
    shown = text_of(site / "adding" / "index.html")
    for name in included:
        assert re.sub(r"\s+", " ", (ROOT / name).read_text()).strip() in shown, name


def test_every_page_of_the_repository_has_its_place(site: Path) -> None:
    cards = {card.parent.name for card in ROOT.glob("methods/*/README.md")}
    assert {page.parent.name for page in site.glob("methods/*/index.html")} == cards
    protocols = {file.stem for file in ROOT.glob("evaluations/*.yaml")}
    assert {page.parent.name for page in site.glob("protocols/*/index.html")} == protocols
    notebooks = {file.stem for file in ROOT.glob("examples/*.ipynb")}
    assert {page.parent.name for page in site.glob("notebooks/*/index.html")} == notebooks and len(notebooks) == 2
    guides = {page.stem for page in ROOT.glob("docs/*.md")} - {"index"} | {
        "protocols",
        "methods",
        "contributing",
        "changelog",
    }
    assert all((site / name / "index.html").is_file() for name in guides)
    assert 'id="ssl_bench.methods.method.Method"' in (site / "reference" / "index.html").read_text()
