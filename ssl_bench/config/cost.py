"""What a recipe would cost, counted before anything runs: its networks are built without data."""

from __future__ import annotations

from ssl_bench.config.build import build_with_teachers
from ssl_bench.config.recipe import Recipe
from ssl_bench.training.compute import count_step
from ssl_bench.training.without_data import built_without_data
from ssl_bench.utils.files import content_hash

_counted: dict[str, float] = {}


def training_flops(recipe: Recipe, classes: int) -> float:
    """Pre-training for one image, heads, momentum encoders and teachers included: what a row of this recipe will say.

    The length of the training makes no difference to one image. The class names of a CLIP are taken to be short.

    Args:
        recipe: Of a method that trains.
        classes: Of its data set.
    """
    kept = {key: value for key, value in recipe.as_dict().items() if key not in ("seed", "training")}
    key = content_hash({**kept, "batch_size": recipe.training.batch_size, "classes": classes})
    if key not in _counted:
        with built_without_data():
            method = build_with_teachers(recipe, [f"class {i}" for i in range(classes)])
        _counted[key] = count_step(method, recipe.training.batch_size, classes).flops
    return _counted[key]
