"""ssl-bench: self-supervised vision methods on one shared ViT, judged by stated protocols, in one comparable table."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_bench.backbones.vit import Backbone as Backbone
    from ssl_bench.commands.bench import bench as bench
    from ssl_bench.commands.convert import convert as convert
    from ssl_bench.commands.evaluate import evaluate as evaluate
    from ssl_bench.commands.leaderboard import leaderboard as leaderboard
    from ssl_bench.commands.pretrain import pretrain as pretrain
    from ssl_bench.commands.reproduce import reproduce as reproduce
    from ssl_bench.commands.show import show as show
    from ssl_bench.commands.table import table as table
    from ssl_bench.evaluations.evaluator import Evaluator as Evaluator
    from ssl_bench.methods.method import Method as Method

# Imported on first use, so that `ssl-bench --help` doesn't wait for torch.
_PLACES = {
    "Backbone": "ssl_bench.backbones.vit",
    "Evaluator": "ssl_bench.evaluations.evaluator",
    "Method": "ssl_bench.methods.method",
    "bench": "ssl_bench.commands.bench",
    "convert": "ssl_bench.commands.convert",
    "evaluate": "ssl_bench.commands.evaluate",
    "leaderboard": "ssl_bench.commands.leaderboard",
    "pretrain": "ssl_bench.commands.pretrain",
    "reproduce": "ssl_bench.commands.reproduce",
    "show": "ssl_bench.commands.show",
    "table": "ssl_bench.commands.table",
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
