"""Values that nobody means, and how often they are tried."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssl_bench.utils.errors import RunError, UserError

SOME, MANY = 4, 120  # cases of each kind, in `make test` and in `make test-all`
MOST_SECONDS = 60  # of all processors together, for a case
MOST_GROWTH = 2**20  # kB, of the largest memory that the process has had
HOW_MANY = pytest.mark.parametrize("examples", [SOME, pytest.param(MANY, marks=pytest.mark.slow)])

NUMBERS: list[Any] = [0, -1, 1, 2, 7, 2**31, -(2**63), 2**64, 10**400, 0.0, -0.5, 1.5, 1e-300, 1e39, 1e308]
NUMBERS += [math.nan, math.inf, -math.inf]
TEXTS = ["", " ", "nan", "1e999", "-1", "9" * 5000, "[", "[" * 2000, "{}", "null", "\x00", "\ud800", "é\u202e", "../x"]
TEXTS += [
    "x" * 10_000,
    "/dev/zero",
    "file.py:Name",
    "mae:quick",
    "checkpoint:/dev/zero",
    "timm:",
    "vit_huge_patch1_4096",
]
plain = st.one_of(
    st.sampled_from([*NUMBERS, *TEXTS, None, True, False]), st.integers(), st.floats(), st.text(max_size=20)
)
values = st.recursive(
    plain,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


def try_many(examples: int, cases: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Call ``check`` with cases, the same ones on every machine; each in bounded time, all in bounded memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def test(case: Any) -> None:
        start = time.process_time()
        check(case)
        assert time.process_time() - start < MOST_SECONDS
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_GROWTH

    quiet = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    quiet(given(cases)(test))()


@contextmanager
def one_line_at_most(words: str = "") -> Iterator[None]:
    """Whatever is wrong is said in one line, with these words in it; anything but that fails."""
    try:
        yield
    except (UserError, RunError) as error:
        text = str(error)
        if "\n" in text or words not in text or len(text) > 20_000:
            pytest.fail(f"not one line with {words!r}: {text[:1000]}")


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A nested value with one part replaced."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    old = value.get(path[0]) if isinstance(value, dict) else value[path[0]]
    copy[path[0]] = replaced(old, path[1:], new)
    return copy


def paths(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every part of a nested value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [above, *(path for key, item in items for path in paths(item, (*above, key)))]
