"""ssl-bench: self-supervised vision methods on one shared ViT, judged by stated protocols, in one comparable table."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_bench.backbone import Backbone as Backbone
    from ssl_bench.evaluate import evaluate as evaluate
    from ssl_bench.evaluations.evaluator import Evaluator as Evaluator
    from ssl_bench.methods.method import Method as Method
    from ssl_bench.pretrain import pretrain as pretrain
    from ssl_bench.results.leaderboard import leaderboard as leaderboard
    from ssl_bench.suite import bench as bench

# Imported on first use, so that `ssl-bench --help` doesn't wait for torch.
_PLACES = {
    "Backbone": "ssl_bench.backbone",
    "Evaluator": "ssl_bench.evaluations.evaluator",
    "Method": "ssl_bench.methods.method",
    "bench": "ssl_bench.suite",
    "evaluate": "ssl_bench.evaluate",
    "leaderboard": "ssl_bench.results.leaderboard",
    "pretrain": "ssl_bench.pretrain",
}
__all__ = ["Backbone", "Evaluator", "Method", "bench", "evaluate", "leaderboard", "pretrain"]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'ssl_bench' has no attribute {name!r}")
