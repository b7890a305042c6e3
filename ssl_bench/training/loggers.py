"""Where learning curves go: Lightning's CSV, TensorBoard and Weights & Biases loggers."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_bench.utils.errors import UserError, unknown

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

LOGGERS = ("csv", "tensorboard", "wandb")
DEFAULT = ("csv", "tensorboard")
METRICS = "metrics.csv"  # Lightning's name of the CSV logger's file


def check_loggers(names: Sequence[str]) -> None:
    """See that loggers are known and installed, before anything runs.

    Raises:
        UserError: One is not.

    Example:
        >>> check_loggers(("csv", "tensorboard"))
    """
    for name in names:
        if name not in LOGGERS:
            raise unknown("logger", name, LOGGERS)
        if importlib.util.find_spec(name) is None and name != "csv":
            others = ", ".join(other for other in LOGGERS if other != name)
            raise UserError(f"logger {name!r} needs the package {name}, which is not installed; others are {others}")


def make_loggers(names: Sequence[str], folder: Path, first: int) -> list[Logger]:
    """The loggers of one run, to be filled from the step at which it goes on.

    The CSV logger begins its file anew (``callbacks.Report`` has the rows of the steps before); TensorBoard is told to
    forget the steps that are done again; Weights & Biases goes on with the run of the folder's name.

    Args:
        names: Of ``LOGGERS``.
        folder: For ``metrics.csv``, ``tensorboard/`` and ``wandb/``.
        first: Steps done before.
    """
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger  # seconds, which figures don't need

    check_loggers(names)
    made: dict[str, Any] = {
        "csv": lambda: CSVLogger(folder, name="", version=""),
        "tensorboard": lambda: TensorBoardLogger(
            folder, name="", version="tensorboard", default_hp_metric=False, purge_step=first + 1
        ),
        "wandb": lambda: WandbLogger(
            name=folder.name, save_dir=folder, project="ssl-bench", id=folder.name, resume="allow"
        ),
    }
    return [made[name]() for name in dict.fromkeys(names)]
