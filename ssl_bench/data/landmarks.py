"""Revisited Oxford and Paris (Radenović et al., CVPR 2018, arXiv:1803.11285): queries, a database, what is where."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ssl_bench.data.images import Files
from ssl_bench.data.sources import Raw
from ssl_bench.data.targets import Search, Searches, Targets
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.files import read_regular

LARGEST = 2**26  # bytes of a ground-truth file; that of Paris has 0.7 MB
MOST = 1_100_000  # images of a database: the million distractors and more
# All that arrays are made of in a pickle: a file of others may name no other code.
ALLOWED = {
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _Plain(pickle.Unpickler):
    """Reads lists, dicts, texts, numbers and arrays."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # its name in NumPy 1
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not run")
        return super().find_class(module, name)


def read_landmarks(home: Path, name: str) -> tuple[Raw, Raw]:
    """The database as training images and the queries as test images: `jpg/*.jpg` and `gnd_NAME.pkl`.

    Raises:
        UserError: No such file, or it isn't as its authors have it.
    """
    path = home / f"gnd_{name}.pkl"
    try:
        said = _Plain(io.BytesIO(read_regular(path, LARGEST)), encoding="latin1").load()
        images, queries = ([str(file) for file in said[key]] for key in ("imlist", "qimlist"))
        searches = Searches(
            Search(*(_places(each.get(key, ()), len(images)) for key in ("easy", "hard", "junk")))
            for each in said["gnd"]
        )
        if not images or len(images) > MOST or not queries or len(queries) != len(searches):
            raise ValueError(f"{len(images)} images, {len(queries)} queries and {len(searches)} searches")
        if strange := [file for file in (*images, *queries) if os.path.basename(file) != file or not file.strip(".")]:
            raise ValueError(f"{strange[0]!r} is no plain file name")
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is not there: put the data set in {home}/ as its authors lay it out, or set SSL_BENCH_DATA to the "
            "folder that has it"
        ) from error
    except UserError:
        raise
    except Exception as error:  # a pickle may raise anything
        raise UserError(f"{path} is not as its authors have it: {type(error).__name__} {error}") from error
    nothing = Search(*(np.zeros(0, np.int64) for _ in range(3)))
    return _raw(home, images, Searches([nothing] * len(images))), _raw(home, queries, searches)


def _places(said: Any, count: int) -> np.ndarray:
    found = np.array(said).reshape(-1)
    if not len(found):
        return np.zeros(0, np.int64)
    if found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= count:
        raise ValueError(f"places that are not in [0, {count})")
    return found.astype(np.int64)


def _raw(home: Path, names: list[str], searches: Searches) -> Raw:
    files = [f"jpg/{name}.jpg" for name in names]
    sizes = np.array([path.stat().st_size if (path := home / file).is_file() else 0 for file in files])
    paths = np.array([os.fsencode(file) for file in files])
    return Raw(Files(str(home), paths, sizes), np.zeros(len(names), np.int64), (), Targets(searches=searches))


def read_oxford(root: Path) -> tuple[Raw, Raw]:
    """Revisited Oxford: 4,993 images, 70 queries."""
    return read_landmarks(root / "roxford5k", "roxford5k")


def read_paris(root: Path) -> tuple[Raw, Raw]:
    """Revisited Paris: 6,322 images, 70 queries."""
    return read_landmarks(root / "rparis6k", "rparis6k")
