"""ssl-bench: self-supervised vision methods on one shared ViT, judged by stated protocols, in one comparable table."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_bench.backbone import Backbone as Backbone
    from ssl_bench.convert import convert as convert
    from ssl_bench.evaluate import evaluate as evaluate
    from ssl_bench.evaluations.evaluator import Evaluator as Evaluator
    from ssl_bench.methods.method import Method as Method
    from ssl_bench.pretrain import pretrain as pretrain
    from ssl_bench.results.leaderboard import leaderboard as leaderboard
    from ssl_bench.results.reproduce import reproduce as reproduce
    from ssl_bench.results.tables import table as table
    from ssl_bench.show import show as show
    from ssl_bench.suite import bench as bench

# Imported on first use, so that `ssl-bench --help` doesn't wait for torch.
_PLACES = {
    "Backbone": "ssl_bench.backbone",
    "Evaluator": "ssl_bench.evaluations.evaluator",
    "Method": "ssl_bench.methods.method",
    "bench": "ssl_bench.suite",
    "convert": "ssl_bench.convert",
    "evaluate": "ssl_bench.evaluate",
    "leaderboard": "ssl_bench.results.leaderboard",
    "pretrain": "ssl_bench.pretrain",
    "reproduce": "ssl_bench.results.reproduce",
    "show": "ssl_bench.show",
    "table": "ssl_bench.results.tables",
}
__all__ = [
    "Backbone",
    "Evaluator",
    "Method",
    "bench",
    "convert",
    "evaluate",
    "leaderboard",
    "pretrain",
    "reproduce",
    "show",
    "table",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'ssl_bench' has no attribute {name!r}")


class _Package(ModuleType):
    """Where a module and its function have one name, the package's attribute is the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PLACES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
