"""A trial of an evaluator from outside, so that a mistake in it is said before anything is trained."""

from __future__ import annotations

import copy
import inspect
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ssl_bench.data.datasets import ImageSet, hold_out
from ssl_bench.evaluations.evaluator import BadResult, Data, Evaluator, Result
from ssl_bench.utils.errors import UserError, first_line, line_of

CLASSES, EACH, WIDTH = 4, 60, 16  # of the drawn features: enough that 10 % of them are a dev split of every class
PLAIN = ("", "labels")  # what an evaluator may need of the images to be tried


class _NotOnTrial(Exception):
    """The evaluator asks for what drawn features can't give; it is not tried."""


class _Drawn:
    """Features around one random centre a class, of any pooling that is asked for."""

    def __init__(self, poolings: Sequence[str], folder: Path) -> None:
        self.poolings, self.folder = tuple(poolings), folder

    def features(self, images: ImageSet, poolings: Sequence[str]) -> dict[str, Tensor]:
        """Pooling name to (N, WIDTH); the same for the same images in any split."""
        own = images.images if isinstance(images.images, Tensor) else torch.zeros(len(images), 1)
        noise = own.float().flatten(1)[:, :WIDTH] / 255 - 0.5
        centres = torch.eye(CLASSES, WIDTH)
        return {name: centres[images.labels] + noise + 0.1 * at for at, name in enumerate(poolings)}

    def map_of(self, images: Tensor, blocks: Sequence[int] = (), cls: bool = False) -> Tensor:
        """None here."""
        raise _NotOnTrial

    def copy(self) -> nn.Module:
        """None here."""
        raise _NotOnTrial


def try_out(name: str, evaluator: Evaluator) -> None:
    """Run an evaluator from outside on a few drawn features, and look at what it returns.

    Not tried are ours, those that train, and those that need more of an image than its class. What a trial can't tell
    from data that are too few (a ``ValueError``, say) is left to the run.

    Raises:
        UserError: A mistake in its code, or something that is no result of these test images.
    """
    own = type(evaluator).__module__.partition(".")[0] == "ssl_bench"
    if own or "training" in evaluator.engines or evaluator.needs not in PLAIN or evaluator.encoder_needs:
        return
    data = _data()
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        encoder = _Drawn(evaluator.poolings, Path(folder))
        try:
            result: object = copy.deepcopy(evaluator).run(encoder, data)
            if not isinstance(result, Result):
                raise BadResult(f"run returns a {type(result).__name__}; it must be a Result")
            _check(result.of_only_pooling(evaluator.poolings), len(data.test))
        except BadResult as error:
            raise UserError(f"evaluator {name}: {error}") from error
        except (TypeError, NameError, AttributeError) as error:
            if getattr(error, "obj", None) is encoder:
                return  # of a real encoder it may know more
            file = inspect.getsourcefile(type(evaluator))
            place = line_of(error, lambda frame: frame.f_code.co_filename == file)
            where = f"drawn features, {place}" if place else "drawn features"
            raise UserError(
                f"evaluator {name} fails on {where}: {type(error).__name__}: {first_line(error)}"
            ) from error
        except Exception:
            return


def _data() -> Data:
    """Splits of CLASSES classes with EACH training images; noise for pixels."""
    random = torch.Generator().manual_seed(0)
    classes = tuple(f"class {number}" for number in range(CLASSES))

    def images(split: str, each: int) -> ImageSet:
        pixels = torch.randint(0, 256, (CLASSES * each, 3, 8, 8), generator=random, dtype=torch.uint8)
        return ImageSet("drawn features", split, torch.arange(CLASSES * each) % CLASSES, classes, "0" * 64, pixels)

    train = images("train", EACH)
    return Data(train, *hold_out(train), images("test", EACH // 2))


def _check(result: Result, n: int) -> None:
    """What ``Result`` says of `correct` and the headline, which the row's check would refuse after the training."""
    correct, headline = result.correct, result.metrics[result.headline]
    value = headline.value
    if not headline.low <= value <= headline.high:
        raise BadResult(
            f"the headline {result.headline!r} is {value:.4g}, outside of its interval ({headline.low:.4g} to "
            f"{headline.high:.4g}); see ssl_bench.Metric"
        )
    if correct.size and len(correct) != n:
        raise BadResult(f"correct has {len(correct)} entries for {n} test images; see ssl_bench.Result")
    if correct.size and correct.ndim < 3 and not np.isclose(100 * correct.mean(), value, rtol=1e-3, atol=1e-3):
        mean = f"{100 * float(correct.mean()):.4g}"
        raise BadResult(
            f"the headline {result.headline!r} is {value:.4g}, but 100 times the mean of correct is {mean}; give in "
            "correct, as (n, 1), what each image adds, or leave it out (no paired tests then)"
        )
