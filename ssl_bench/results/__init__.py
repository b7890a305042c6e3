"""Rows, leaderboards and paper tables: what was measured, and what people read.

``ssl_bench.results.load(DIR)`` gives the rows of a folder as a pandas DataFrame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_bench.results.frame import load as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from ssl_bench.results.frame import load  # here, because pandas takes a second

        return load
    raise AttributeError(f"module 'ssl_bench.results' has no attribute {name!r}")
