"""What every evaluator shares: the data it sees, the result it returns, and checks that keep wrong rows out."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ssl_bench.evaluations.pictures import Picture
from ssl_bench.metrics.metric import Metric
from ssl_bench.utils.errors import RunError, UserError, unknown
from ssl_bench.utils.identity import differing

if TYPE_CHECKING:
    from ssl_bench.data.datasets import ImageSet


class BadResult(UserError):
    """What an evaluator returns is no result; see ``Result``."""


class Encoder(Protocol):
    """All that an evaluator knows about a model.

    Attributes:
        folder: For what an evaluator must not lose when it is interrupted; emptied when its row is written.
    """

    folder: Path

    @property
    def poolings(self) -> tuple[str, ...]:
        """The features on offer: ("cls", "mean", ...), or ("pixels",) for the raw-pixel baseline."""

    def features(self, images: ImageSet, poolings: Sequence[str]) -> dict[str, Tensor]:
        """Pooling name to float32 (N, D) features on the CPU, rows aligned with `images.labels`."""

    def map_of(self, images: Tensor, blocks: Sequence[int] = (), cls: bool = False) -> Tensor:
        """Feature maps (B, D, rows, columns) float32 on the CPU of images uint8 (B, 3, H, W), as they are.

        ``blocks`` and ``cls`` are those of `dense.feature_map`, which says what an encoder may refuse.
        """

    def copy(self) -> nn.Module:
        """A copy of the network on the CPU, for evaluators that train it or look at other images through it."""


@dataclass(frozen=True, eq=False)
class Data:
    """The four splits of one data set. Everything is chosen on `dev`; `test` is looked at once, at the end.

    Attributes:
        train: All training images; the same images as `fit` and `dev` together, in any order.
        fit: Training images left after holding out `dev`.
        dev: Held-out training images.
        test: The reported split.

    Raises:
        UserError: A split is empty or the splits do not share their classes.
    """

    train: ImageSet
    fit: ImageSet
    dev: ImageSet
    test: ImageSet

    def __post_init__(self) -> None:
        for role in ("train", "fit", "dev", "test"):
            images: ImageSet = getattr(self, role)
            if len(images) == 0:
                raise UserError(f"the {role} split of {images.name!r} has no images")
            if images.classes != self.train.classes:
                raise UserError(f"the {role} split of {images.name!r} has other classes than its training images")
        if len(self.fit) + len(self.dev) != len(self.train):
            held = f"{len(self.fit)} + {len(self.dev)}"
            raise UserError(f"fit and dev of {self.train.name!r} have {held} images, train {len(self.train)}")


@dataclass(frozen=True, eq=False)
class Result:
    """What one evaluation found.

    Attributes:
        metrics: Every number, by name.
        headline: The metric that stands for the evaluation in a table.
        correct: (n,) for the n test images of the headline, which is 100 times its mean: bool, right or wrong, or a
            float in [0, 1], the share of episodes, draws, corruptions or hits that are right. Paired tests need nothing
            else. (n, C, 2) when the headline is 100 times `metrics.ratios.ratio` of it, such as intersection and union
            of C classes. (n, 1) float, of any size, what each image adds to a headline of another kind, which is 100
            times its mean. Empty (0,) when it is none of these.
        chosen: What was selected on `dev` and how it went there. JSON-able.
        pooling: The features behind the headline; left out, the only one of the evaluator's `poolings`.
        cost: What training took, where the evaluator trains: the fields of a row's `pretraining`. JSON-able.
        selected: Whether dev had anything to choose.
        picture: Some test images with what was predicted of them, for the page; see ``pictures.Gallery``.

    Raises:
        BadResult: A metric is no ``Metric``, or the headline none of the metrics.
    """

    metrics: dict[str, Metric]
    headline: str
    correct: np.ndarray[Any, np.dtype[Any]] = field(default_factory=lambda: np.zeros(0))
    chosen: dict[str, object] = field(default_factory=dict)
    pooling: str = ""
    cost: dict[str, Any] = field(default_factory=dict)
    selected: bool = True
    picture: Picture | None = None

    def __post_init__(self) -> None:
        for name, metric in self.metrics.items():
            if not isinstance(metric, Metric):
                made_by = (
                    "accuracy_metric(correct) where images are right or wrong, mean_metric(values) of a number an image"
                )
                kind = type(metric).__name__
                raise BadResult(
                    f"metric {name!r} is a {kind}; it must be a Metric, made by {made_by}, or Metric itself"
                )
        if self.headline not in self.metrics:
            what = "headline of an evaluation, which must be one of its metrics,"
            raise BadResult(str(unknown(what, self.headline, self.metrics)))
        if isinstance(self.correct, Tensor):  # of an evaluator from outside
            object.__setattr__(self, "correct", self.correct.cpu().numpy())
        if not self.chosen:
            object.__setattr__(self, "selected", False)

    def of_only_pooling(self, wanted: Sequence[str]) -> Result:
        """This result, its pooling filled in where it says none.

        Args:
            wanted: The evaluator's `poolings`.

        Raises:
            BadResult: It says none, and the evaluator has several.
        """
        if self.pooling:
            return self
        if len(wanted) != 1:
            raise BadResult(f"the result doesn't say which pooling the headline is of: one of {', '.join(wanted)}")
        return replace(self, pooling=wanted[0])


class Evaluator(ABC):
    """Evaluates an encoder on labelled images.

    The keywords of a subclass's constructor are the protocol. Each is kept, unchanged in value, under an attribute of
    the same name, so that `settings` can write it into the row.

    Attributes:
        version: Raised by every change that can move a number; tables never mix versions.
        task: What it measures the encoder at.
        joint: Whether several processes run it together, each with its share; otherwise the first does, as if alone.
        engines: Whose versions decide its numbers besides its own: "features", or "training" and "views".
        metric_help: Metric name to a one-line explanation.
        needs: What images must have, of ``ImageSet.offers``; empty where they need no more than pixels.
        encoder_needs: What the encoder must be able to, of ``backbones.ABILITIES``; suites leave the others out.
        poolings: The features to use, in order of preference, out of those an encoder offers.
        deviations: Every known difference from the published protocol, one sentence each; the key `deviations` of a
            protocol file. They travel into the rows.
    """

    version: ClassVar[int]
    task: ClassVar[str] = "classification"
    joint: ClassVar[bool] = False
    engines: ClassVar[tuple[str, ...]] = ("features",)
    metric_help: ClassVar[Mapping[str, str]]
    needs: ClassVar[str] = "labels"
    encoder_needs: tuple[str, ...] = ()
    poolings: tuple[str, ...]
    deviations: tuple[str, ...] = ()

    @abstractmethod
    def run(self, encoder: Encoder, data: Data) -> Result:
        """Choose on `data.dev`, report on `data.test`."""

    def settings(self) -> dict[str, object]:
        """The constructor's keywords and their values, with lists for tuples: what JSON can hold."""
        values = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def changed_settings(self) -> dict[str, object]:
        """The settings that differ from those that the constructor gives by itself."""
        parameters = inspect.signature(type(self)).parameters.values()
        needed = {p.name: getattr(self, p.name) for p in parameters if p.default is inspect.Parameter.empty}
        return differing(self.settings(), type(self)(**needed).settings())

    def features(self, encoder: Encoder, images: ImageSet) -> dict[str, Tensor]:
        """Checked features of one split under each pooling that is both wanted and offered.

        Returns:
            Pooling name to float32 (N, D).

        Raises:
            UserError: The encoder offers none of `poolings`.
            RunError: The features cannot be trusted; see `check_features`.
        """
        layers = getattr(encoder, "choose_layer", False)
        found = encoder.features(images, match_poolings(self.poolings, encoder.poolings, layers))
        for pooling, features in found.items():
            check_features(features, pooling, images.split, len(images))
        return found


def name_of(network: nn.Module) -> str:
    """A network's own name, or else that of its class; for messages."""
    return str(getattr(network, "name", type(network).__name__))


def match_poolings(wanted: Sequence[str], offered: Sequence[str], layers: bool = False) -> tuple[str, ...]:
    """The wanted poolings that are on offer, in the order wanted; an encoder with only one kind of feature gives that.

    Args:
        wanted: By an evaluator.
        offered: By an encoder.
        layers: Take the mean of every layer where the mean is wanted (``Backbone.choose_layer``).

    Raises:
        UserError: Nothing matches and there is more than one to choose from.

    Example:
        >>> match_poolings(("mean", "cls"), ("cls", "mean", "last4"))
        ('mean', 'cls')
        >>> match_poolings(("mean", "cls"), ("pixels",))
        ('pixels',)
        >>> match_poolings(("mean", "cls"), ("mean", "layer=1", "layer=2"), layers=True)
        ('mean', 'layer=1', 'layer=2')
    """
    if layers and "mean" in wanted:
        wanted = [*wanted, *(name for name in offered if name.startswith("layer="))]
    matched = tuple(name for name in wanted if name in offered)
    if matched:
        return matched
    if len(offered) == 1:
        return tuple(offered)
    raise UserError(f"no pooling in {', '.join(wanted) or '(none)'}: choose from {', '.join(offered)}")


def check_features(features: Tensor, pooling: str, split: str, n: int) -> None:
    """Refuse features whose accuracy would mean nothing.

    Args:
        features: (N, D) float.
        pooling: Name for the message.
        split: Name for the message.
        n: Rows there should be.

    Raises:
        RunError: Another shape, a NaN or infinity, or (with several rows) all rows equal, as after a collapse.
    """
    what = f"{pooling!r} features of the {split} split"
    if features.ndim != 2 or len(features) != n:
        raise RunError(f"{what} have shape {tuple(features.shape)}, not ({n}, D)")
    low, high = features.amin(0), features.amax(0)  # both carry a NaN or infinity along
    if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise RunError(f"{what} contain NaN or infinity")
    # float32 keeps about seven digits: a smaller relative spread than 1e-6 is rounding, not signal.
    if n > 1 and bool(((high - low) <= 1e-6 * torch.maximum(low.abs(), high.abs())).all()):
        raise RunError(f"{what} are the same for all {n} images: the encoder has collapsed")


def at_edge(value: float, grid: Sequence[float]) -> bool:
    """Whether a choice lies at either end of a grid of several."""
    return len(set(grid)) > 1 and value in (min(grid), max(grid))
