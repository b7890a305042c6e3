"""From a recipe to a method with its backbone, at initial weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

from lightning import seed_everything
from torch import Tensor

from ssl_bench.backbones import build_backbone
from ssl_bench.checkpoints.encoder_file import Checkpoint, named_encoder
from ssl_bench.config.recipe import FROM_DATA, Recipe
from ssl_bench.data.datasets import ImageSet
from ssl_bench.methods.method import Method
from ssl_bench.training.compute import step_cost
from ssl_bench.training.without_data import built_without_data
from ssl_bench.utils.errors import UserError, first_line
from ssl_bench.utils.identity import is_external
from ssl_bench.utils.memory import free_memory


def build(recipe: Recipe, classes: Sequence[str], images: ImageSet | None = None) -> Method:
    """The method with its backbone at the initial weights of the recipe's seed; its teachers are still to be set.

    Args:
        recipe: Resolved.
        classes: Names of the classes of the data.
        images: What the backbone takes from the training images is taken from these (``Backbone.prepare``); left out
            where weights are loaded afterwards, or none are needed.

    Raises:
        UserError: The method learns from labels, which the images don't have; or of a method of ours, values that don't
            go together, or weights that are larger than the memory.
    """
    known = {"num_classes": len(classes), "class_names": tuple(classes)}
    settings = {key: known[key] for key in FROM_DATA if key in inspect.signature(recipe.cls).parameters}
    if settings and not classes:
        raise UserError(f"{recipe.method} learns from labels, which these images don't have")
    settings |= recipe.settings
    if not is_external(recipe.cls):
        check_buildable(recipe, settings)
    seed_everything(recipe.seed, verbose=False)
    backbone = build_backbone(**recipe.backbone)
    if images is not None:
        backbone.prepare(cast("Sequence[Tensor]", images.images), recipe.seed)
    method = recipe.cls(backbone, **settings)
    method.training_config, method.seed = recipe.training, recipe.seed
    return method


def check_buildable(recipe: Recipe, settings: Mapping[str, Any]) -> None:
    """Build a method without data, so that what can't be built is said in one line before memory is taken for it.

    Args:
        recipe: Resolved.
        settings: All keywords of its method.

    Raises:
        UserError: See ``build``.
    """
    what = f"method {recipe.method!r} on {recipe.backbone['name']}"
    try:
        with built_without_data():
            method = recipe.cls(build_backbone(**recipe.backbone), **settings)
    except (ArithmeticError, AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{what} can't be built with these keys: {first_line(error)}") from error
    size = sum(tensor.nbytes for tensor in (*method.parameters(), *method.buffers()))
    if size > (free := free_memory()):
        raise UserError(f"{what} has weights of {size / 1e9:,.0f} GB; {free / 1e9:,.0f} GB of memory are free")


def check_step(recipe: Recipe, count: int = 10) -> None:
    """Take one step of a method from outside the package, without its images, to see what its ``loss`` returns.

    Args:
        recipe: Of the method.
        count: Classes of the images, which nothing is known of yet.

    Raises:
        UserError: It returns no dict with a loss. Whatever else goes wrong is left to the run that has its images.
    """
    if recipe.cls.trains and is_external(recipe.cls):
        try:
            method = build_with_teachers(recipe, [f"class {i}" for i in range(count)])
            step_cost(method, recipe.training.batch_size, count)
        except UserError:
            raise
        except Exception:  # whatever an author's code raises
            return


def build_with_teachers(recipe: Recipe, classes: Sequence[str]) -> Method:
    """Like ``build``, with teachers of the suite that are untrained too: for what depends on shapes alone."""
    method = build(recipe, classes)
    for keyword in recipe.cls.teachers:
        network: Any = None
        if keyword in recipe.teachers:
            network = build_with_teachers(recipe.teachers[keyword], classes).encoder
        elif file := named_encoder(recipe.settings[keyword]):
            network = file.encoder
        method.set_teacher(keyword, network)
    return method


def set_teachers(
    method: Method, trained: Mapping[str, Checkpoint], files: Mapping[str, Checkpoint], data: str | None = None
) -> None:
    """Hand a method its frozen networks, and flag it with what they have seen.

    Args:
        method: With ``teachers``.
        trained: Networks that the suite trained on the same images, by keyword.
        files: Encoder files, by keyword.
        data: Name of the images that the method is trained on.
    """
    for keyword in method.teachers:
        network, source = trained.get(keyword), "trained by the suite on the same images"
        if network is None and (network := files.get(keyword)):
            seen = network.about.get("pretraining", {}).get("data")
            source = f"encoder of {network.method}" + (f" trained on {seen}" if seen else "")
            method.flags += ["external data"] if seen not in (None, data) else []
        method.flags += network.about.get("flags", []) if network else []
        method.set_teacher(keyword, network.encoder.requires_grad_(False) if network else None, source)
