"""What defines a number: how its encoder was made, and how and on what it was evaluated.

A row keeps this identity as plain values, so that its id can be computed from the row alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssl_bench.checkpoints.encoder_file import Checkpoint
from ssl_bench.data import VERSIONS
from ssl_bench.data.datasets import Splits
from ssl_bench.evaluations import EVALUATIONS, frozen_encoder
from ssl_bench.evaluations.evaluator import Evaluator
from ssl_bench.training import VERSION as TRAINING_VERSION
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.identity import defaults_of, differing, source_of
from ssl_bench.views import VERSION as VIEWS_VERSION

ENGINES = {"features": frozen_encoder.VERSION, "training": TRAINING_VERSION, "views": VIEWS_VERSION}


def encoder_identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """What defines an encoder: its recipe and images (``Recipe.identity``), or for external weights these weights.

    To the weights belongs what they don't show: of the backbone, such as the number of heads, and of its input.

    Raises:
        UserError: The file was trained by an ssl-bench that kept no identity.
    """
    if checkpoint.about.get("recipe"):
        if "identity" not in checkpoint.about:
            raise UserError(f"this encoder of {checkpoint.method} is older than versions: pre-train it again")
        return checkpoint.about["identity"]
    cls: Any = type(checkpoint.encoder)
    backbone = differing(checkpoint.backbone, defaults_of(cls))
    versions = {f"backbone {cls.family}": cls.version} if hasattr(cls, "family") else {}
    looks = {"backbone": backbone, "input": checkpoint.input}
    source = getattr(checkpoint.encoder, "source", "")
    made = {"source": source} if source else source_of(cls)
    return {"weights": checkpoint.sha256, **looks, **made, "versions": versions}


def number_identity(encoder: dict[str, Any], name: str, evaluator: Evaluator, data: Splits) -> dict[str, Any]:
    """What defines a number.

    Args:
        encoder: ``encoder_identity``, or ``Recipe.identity`` of one that is not trained yet.
        name: Name or file of the protocol.
        evaluator: With its settings.
        data: What it is evaluated on.
    """
    kind, images = evaluator_name(evaluator), data.test
    versions = {f"evaluator {kind}": evaluator.version, f"data {images.reader}": VERSIONS[images.reader]}
    evaluation = {
        "name": Path(name).stem,
        "evaluator": kind,
        **source_of(type(evaluator)),
        "settings": evaluator.changed_settings(),
        "images": {"train": data.train.fingerprint, "test": images.fingerprint},
        "versions": versions | {engine: ENGINES[engine] for engine in evaluator.engines},
    }
    return {"encoder": encoder, "evaluation": evaluation}


def evaluator_name(evaluator: Evaluator) -> str:
    """The registered name of an evaluator's class, or the name of a class from outside."""
    cls = type(evaluator)
    return next((name for name, known in EVALUATIONS.items() if known is cls), cls.__name__)
