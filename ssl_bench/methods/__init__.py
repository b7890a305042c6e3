"""The methods, by name. One outside this package is named ``package.module:Class`` or ``path/to/file.py:Class``."""

from __future__ import annotations

from ssl_bench.methods.baselines import RawPixels, Supervised, Untrained
from ssl_bench.methods.mae import MAE
from ssl_bench.methods.method import Method
from ssl_bench.methods.moco_v3 import MoCoV3

METHODS: dict[str, type[Method]] = {
    "raw_pixels": RawPixels,
    "untrained": Untrained,
    "supervised": Supervised,
    "mae": MAE,
    "moco_v3": MoCoV3,
}
BASELINES = ("raw_pixels", "untrained", "supervised")
# Frozen networks that other methods compare with: pre-trained like a method, never a row of their own.
TARGETS: dict[str, type[Method]] = {}
