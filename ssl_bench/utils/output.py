"""Standard output whose reader may go before the command ends, as in ``ssl-bench bench quick | head``."""

from __future__ import annotations

import os
from typing import Any


class Patient:
    """A stream that drops what nobody reads any more: the command goes on, and writes its files."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop, a text."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            return self._drop(len(text))

    def flush(self) -> None:
        """Write, or drop, what is held back."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop(0)

    def _drop(self, count: int) -> int:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        return count
