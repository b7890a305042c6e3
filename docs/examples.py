"""Examples of docstrings as code: this project heads them "Example:", griffe knows "Examples:" alone."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Renames the heading while the site is built; otherwise an example is a quotation, and its lists are links."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called with everything that has a docstring."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
