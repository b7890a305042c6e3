"""Files of a user's own: which file a class comes from, and what says that it has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_bench.utils.identity import source_hash, syntax_hash
from ssl_bench.utils.imports import imported_beside
from ssl_bench.utils.references import look_up


def made(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def source(path: Path) -> str:
    return source_hash(look_up(f"{path}:Mine", "class", lambda it: isinstance(it, type))[1])


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules are found."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_files_of_one_name_are_two(tmp_path: Path) -> None:
    a = made(tmp_path / "a" / "method.py", "class Mine: x = 1")
    b = made(tmp_path / "b" / "method.py", "class Mine: x = 2")
    classes = [look_up(f"{path}:Mine", "class", lambda it: isinstance(it, type))[1] for path in (a, b)]
    assert [source_hash(cls) for cls in classes] == [syntax_hash(path.read_text()) for path in (a, b)]
    again = tmp_path / "a" / ".." / "a" / "method.py"
    assert look_up(f"{again}:Mine", "class", lambda it: isinstance(it, type))[1].__module__ == classes[0].__module__


def test_a_file_is_also_what_it_imports_from_its_folder(importable: Path) -> None:
    alone = made(importable / "mine.py", "import torch\nimport json\nclass Mine: ...")
    assert source(alone) == syntax_hash(alone.read_text())  # as before such files were looked at
    mine = made(importable / "mine.py", "class Mine:\n    def f(self):\n        from losses_of_mine.info import loss\n")
    made(importable / "losses_of_mine" / "__init__.py", "")
    made(importable / "losses_of_mine" / "info.py", "from . import scale\nfrom .scale import by\nloss = 1")
    made(importable / "losses_of_mine" / "scale.py", "import mine\nby = 1")
    made(importable / "losses_of_mine" / "unused.py", "by = 1")
    names = ["losses_of_mine/__init__.py", "losses_of_mine/info.py", "losses_of_mine/scale.py"]
    assert sorted(imported_beside(mine)) == names
    before = source(mine)
    made(importable / "losses_of_mine" / "unused.py", "by = 2")
    made(importable / "losses_of_mine" / "scale.py", "import mine  # and a comment\nby = 1")
    assert source(mine) == before
    made(importable / "losses_of_mine" / "scale.py", "import mine\nby = 2")
    assert source(mine) != before


def test_installed_packages_are_left_out(importable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of an environment below the folder of a file."""
    place = importable / ".venv" / "lib" / "site-packages"
    package = made(place / "of_others" / "__init__.py", "from . import more\nclass Mine: ...")
    made(place / "of_others" / "more.py", "")
    monkeypatch.syspath_prepend(place)
    mine = made(importable / "mine.py", "import of_others\nimport os\nimport ssl_bench\nimport not_there\n")
    assert imported_beside(mine) == {} and imported_beside(package) == {}
