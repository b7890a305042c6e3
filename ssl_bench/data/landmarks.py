"""Revisited Oxford and Paris (Radenović et al., CVPR 2018, arXiv:1803.11285): queries, a database, what is where."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ssl_bench.data.images import Files
from ssl_bench.data.lists import is_place, size_of
from ssl_bench.data.sources import Raw
from ssl_bench.data.targets import Search, Searches, Targets
from ssl_bench.utils.errors import UserError, first_line
from ssl_bench.utils.files import read_regular
from ssl_bench.utils.plain_pickle import Array, read_plain

LARGEST = 2**25  # bytes of a ground-truth file; that of Paris has 0.7 MB
MOST = 1_000_000  # images of a database


def read_landmarks(home: Path, name: str) -> tuple[Raw, Raw]:
    """The database as training images and the queries as test images: `jpg/*.jpg` and `gnd_NAME.pkl`.

    Raises:
        UserError: No such file, or it isn't as its authors have it.
    """
    path = home / f"gnd_{name}.pkl"
    try:
        content = read_regular(path, LARGEST)
        said = read_plain(content)
        images, queries = _names(said, "imlist"), _names(said, "qimlist")
        searches = _searches(_part(said, "gnd"), len(queries), len(images), len(content))
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is not there: put the data set in {home}/ as its authors lay it out, or set SSL_BENCH_DATA to the "
            "folder that has it"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is not as its authors have it: {first_line(error)}") from error
    return _raw(home, images, Searches.nothing(len(images))), _raw(home, queries, searches)


def _part(said: Any, key: str) -> list[Any]:
    found = said.get(key) if isinstance(said, dict) else None
    if not isinstance(found, list) or not found:
        raise ValueError(f"{key} is no list, or empty")
    return found


def _names(said: Any, key: str) -> list[str]:
    names = _part(said, key)
    if len(names) > MOST:
        raise ValueError(f"{len(names):,} images; at most {MOST:,} are taken")
    for name in names:
        if not isinstance(name, str) or "/" in name or not is_place(name):
            shown = repr(name[:100]) if isinstance(name, str) else f"a {type(name).__name__}"
            raise ValueError(f"{key} has {shown}, which is no plain file name")
    return names


def _searches(said: list[Any], queries: int, count: int, most: int) -> Searches:
    """What each query should find, in at most `most` places together: a file may hold one list many times."""
    if len(said) != queries:
        raise ValueError(f"{queries} queries and {len(said)} searches")
    found = Searches()
    for each in said:
        if not isinstance(each, dict):
            raise ValueError("gnd has what is no dict")
        found.append(Search(*(_places(each.get(key, []), count) for key in ("easy", "hard", "junk"))))
        most -= sum(len(places) for places in found[-1])
        if most < 0:
            raise ValueError("gnd has more places than the file has bytes")
    return found


def _places(said: Any, count: int) -> np.ndarray:
    if isinstance(said, Array):
        found = said.values.reshape(-1)
        fits = not len(found) or (found.dtype.kind in "iu" and found.min() >= 0 and found.max() < count)
    else:
        fits = isinstance(said, (list, tuple)) and all(type(place) is int and 0 <= place < count for place in said)
        found = np.array(said if fits else [])
    if not fits:
        raise ValueError(f"places that are not in [0, {count})")
    return found.astype(np.int64)


def _raw(home: Path, names: list[str], searches: Searches) -> Raw:
    files = [f"jpg/{name}.jpg" for name in names]
    sizes = np.array([size_of(home / file) for file in files])
    paths = np.array([os.fsencode(file) for file in files])
    return Raw(Files(str(home), paths, sizes), np.zeros(len(names), np.int64), (), Targets(searches=searches))


def read_oxford(root: Path) -> tuple[Raw, Raw]:
    """Revisited Oxford: 4,993 images, 70 queries."""
    return read_landmarks(root / "roxford5k", "roxford5k")


def read_paris(root: Path) -> tuple[Raw, Raw]:
    """Revisited Paris: 6,322 images, 70 queries."""
    return read_landmarks(root / "rparis6k", "rparis6k")
