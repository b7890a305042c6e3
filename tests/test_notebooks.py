"""The notebooks run from their first cell to the last, in an empty folder and without a download."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


def cells(notebook: Path) -> list[str]:
    content = json.loads(notebook.read_text())
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_form(notebook: Path) -> None:
    assert all(compile(cell, notebook.name, "exec") for cell in cells(notebook))
    text = notebook.read_text()
    assert "/tmp" not in text and "/home" not in text and len(text) < 40_000
    assert '"output_type": "error"' not in text and '"outputs": [\n    {' in text  # it was run


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    space: dict[str, object] = {"__name__": "__main__"}
    for cell in cells(notebook):
        exec(compile(cell, notebook.name, "exec"), space)
    assert list(tmp_path.glob("results/rows/*.json"))
