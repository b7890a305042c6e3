"""ssl-bench: self-supervised vision methods on shared backbones, under stated protocols, in one comparable table.

Everything that an author outside the package needs is importable from here and from ``ssl_bench.nn``; nothing else is
promised to stay.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_bench.backbones.backbone import Backbone as Backbone
    from ssl_bench.backbones.backbone import Stage as Stage
    from ssl_bench.backbones.backbone import Tokens as Tokens
    from ssl_bench.commands.bench import bench as bench
    from ssl_bench.commands.claims import claims as claims
    from ssl_bench.commands.compare import compare as compare
    from ssl_bench.commands.convert import convert as convert
    from ssl_bench.commands.embed import embed as embed
    from ssl_bench.commands.evaluate import evaluate as evaluate
    from ssl_bench.commands.export import export as export
    from ssl_bench.commands.leaderboard import leaderboard as leaderboard
    from ssl_bench.commands.pretrain import pretrain as pretrain
    from ssl_bench.commands.reproduce import reproduce as reproduce
    from ssl_bench.commands.show import show as show
    from ssl_bench.commands.speed import speed as speed
    from ssl_bench.commands.table import table as table
    from ssl_bench.commands.tune import tune as tune
    from ssl_bench.data.datasets import ImageSet as ImageSet
    from ssl_bench.data.datasets import Splits as Splits
    from ssl_bench.data.datasets import load as load_data
    from ssl_bench.evaluations.evaluator import Data as Data
    from ssl_bench.evaluations.evaluator import Encoder as Encoder
    from ssl_bench.evaluations.evaluator import Evaluator as Evaluator
    from ssl_bench.evaluations.evaluator import Result as Result
    from ssl_bench.methods.method import Method as Method
    from ssl_bench.metrics.intervals import mean_metric as mean_metric
    from ssl_bench.metrics.metric import Metric as Metric
    from ssl_bench.metrics.metric import accuracy_metric as accuracy_metric
    from ssl_bench.nn.optimizers import Training as Training
    from ssl_bench.utils.bounds import Epochs as Epochs
    from ssl_bench.utils.errors import RunError as RunError
    from ssl_bench.utils.errors import UserError as UserError
    from ssl_bench.views.view import View as View

# Imported on first use, so that `ssl-bench --help` doesn't wait for torch. Public name -> module, name there.
_PLACES = {
    "Backbone": ("ssl_bench.backbones.backbone", "Backbone"),
    "Data": ("ssl_bench.evaluations.evaluator", "Data"),
    "Encoder": ("ssl_bench.evaluations.evaluator", "Encoder"),
    "Epochs": ("ssl_bench.utils.bounds", "Epochs"),
    "Evaluator": ("ssl_bench.evaluations.evaluator", "Evaluator"),
    "ImageSet": ("ssl_bench.data.datasets", "ImageSet"),
    "Method": ("ssl_bench.methods.method", "Method"),
    "Metric": ("ssl_bench.metrics.metric", "Metric"),
    "Result": ("ssl_bench.evaluations.evaluator", "Result"),
    "RunError": ("ssl_bench.utils.errors", "RunError"),
    "Splits": ("ssl_bench.data.datasets", "Splits"),
    "Stage": ("ssl_bench.backbones.backbone", "Stage"),
    "Tokens": ("ssl_bench.backbones.backbone", "Tokens"),
    "Training": ("ssl_bench.nn.optimizers", "Training"),
    "UserError": ("ssl_bench.utils.errors", "UserError"),
    "View": ("ssl_bench.views.view", "View"),
    "accuracy_metric": ("ssl_bench.metrics.metric", "accuracy_metric"),
    "bench": ("ssl_bench.commands.bench", "bench"),
    "claims": ("ssl_bench.commands.claims", "claims"),
    "compare": ("ssl_bench.commands.compare", "compare"),
    "convert": ("ssl_bench.commands.convert", "convert"),
    "embed": ("ssl_bench.commands.embed", "embed"),
    "evaluate": ("ssl_bench.commands.evaluate", "evaluate"),
    "export": ("ssl_bench.commands.export", "export"),
    "leaderboard": ("ssl_bench.commands.leaderboard", "leaderboard"),
    "load_data": ("ssl_bench.data.datasets", "load"),
    "mean_metric": ("ssl_bench.metrics.intervals", "mean_metric"),
    "pretrain": ("ssl_bench.commands.pretrain", "pretrain"),
    "reproduce": ("ssl_bench.commands.reproduce", "reproduce"),
    "show": ("ssl_bench.commands.show", "show"),
    "speed": ("ssl_bench.commands.speed", "speed"),
    "table": ("ssl_bench.commands.table", "table"),
    "tune": ("ssl_bench.commands.tune", "tune"),
}
__all__ = [
    "Backbone",
    "Data",
    "Encoder",
    "Epochs",
    "Evaluator",
    "ImageSet",
    "Method",
    "Metric",
    "Result",
    "RunError",
    "Splits",
    "Stage",
    "Tokens",
    "Training",
    "UserError",
    "View",
    "accuracy_metric",
    "bench",
    "claims",
    "compare",
    "convert",
    "embed",
    "evaluate",
    "export",
    "leaderboard",
    "load_data",
    "mean_metric",
    "pretrain",
    "reproduce",
    "show",
    "speed",
    "table",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        module, attribute = _PLACES[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'ssl_bench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
