"""``ssl-bench speed``: how fast a method trains on this machine, where the time goes, and what a setting changes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, cast

import numpy as np
import torch

from ssl_bench.backbones import build_backbone
from ssl_bench.config.build import build_with_teachers
from ssl_bench.config.recipe import Recipe, load_recipe
from ssl_bench.data.datasets import ImageSet, hold_out, load
from ssl_bench.methods.method import Method
from ssl_bench.results.papers.cost import IMAGES
from ssl_bench.results.text import markdown_table
from ssl_bench.training.speed import PARTS, WARM, Setting, Speed, measure
from ssl_bench.training.without_data import built_without_data
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.memory import free_memory

SYNTHETIC = "synthetic"  # noise, held in memory at the backbone's size: no file is read, no worker runs
MOST = 2**28  # bytes of noise
CLASSES = 10  # of noise
SLOW = 0.1  # of a step spent waiting for data: more is said


def speed(
    method: str,
    *,
    recipe: str | None = None,
    data: str = SYNTHETIC,
    backbone: str | None = None,
    batch: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    against: Mapping[str, Any] | None = None,
    rounds: int = 5,
    seconds: float = 5.0,
    as_json: bool = False,
    show: Callable[[str], Any] = print,
) -> list[dict[str, Any]]:
    """Train a method for some seconds and say how fast that was: the Python form of ``ssl-bench speed``.

    The real training loop runs, on this machine, at the start of the recipe's schedules. With ``against`` a second
    setting runs in turn with the first, round by round. Teachers of the suite are there, untrained.

    Args:
        method: As of ``pretrain``.
        recipe: As of ``pretrain``.
        data: As of ``pretrain``, or ``synthetic``: noise in memory, of the size of the recipe's data.
        backbone: As of ``pretrain``.
        batch: Instead of the recipe's ``batch_size``.
        overrides: Other keys of the recipe.
        against: Keys of the recipe, ``data`` and ``backbone`` among them, in which the second setting differs.
        rounds: How often each setting is measured.
        seconds: Of a round of one setting, about.
        as_json: Show JSON instead of Markdown.
        show: What to do with the text.

    Returns:
        What was found of each setting, as plain values: the fields of ``training.speed.Speed`` and what follows from
        them.

    Raises:
        UserError: The request is wrong.
    """
    given = {"backbone": backbone, "batch_size": batch}
    first = {key: value for key, value in given.items() if value is not None} | dict(overrides or {})
    layers = [first, *([first | dict(against)] if against else [])]
    names = ["", ", ".join(f"{key}={value}" for key, value in (against or {}).items())]
    settings = [
        _setting(method, recipe, layer, str(layer.get("data", data)), name)
        for layer, name in zip(layers, names, strict=False)
    ]
    found = measure(settings, rounds=rounds, seconds=seconds)
    facts = [_facts(speed, setting) for speed, setting in zip(found, settings, strict=True)]
    if as_json:
        show(json.dumps(facts, indent=1))
    else:
        for line in _report(found, settings):
            show(line)
    return facts


def _setting(method: str, recipe: str | None, layer: Mapping[str, Any], data: str, name: str) -> Setting:
    keys = {key: value for key, value in layer.items() if key != "data"}
    resolved = load_recipe(method, recipe, keys if data == SYNTHETIC else keys | {"data": data})
    if not resolved.cls.trains:
        raise UserError(f"{resolved.method} has nothing to train, so there is no speed of it")
    if data == SYNTHETIC:
        images, total = _noise(resolved), IMAGES.get(resolved.data.partition("#")[0], (0,))[0]
    else:
        images = resolved.images(load(data))
        total = len(images)
    size = resolved.training.batch_size
    steps = round(resolved.training.epochs * (max(total, len(images)) // size))
    build = partial(_build, resolved, images)
    name = name or f"{resolved.method} on {resolved.backbone['name']}"
    return Setting(name, build, images, hold_out(images), max(steps, WARM + 2))


def _build(recipe: Recipe, images: ImageSet) -> Method:
    method = build_with_teachers(recipe, images.classes)
    if hasattr(method, "backbone"):
        method.backbone.prepare(cast(Any, images.images), recipe.seed)
    method.prepare(images)
    return method


def _noise(recipe: Recipe) -> ImageSet:
    """As many images as CIFAR-10's suite has, or as memory allows."""
    with built_without_data():
        sides = build_backbone(**recipe.backbone).image_size
    most = min(MOST, free_memory() // 8) // (3 * sides[0] * sides[1])
    count = max(recipe.training.batch_size, 4 * CLASSES, min(most, 10_000))
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, *sides), dtype=np.uint8))
    names = tuple(f"class {i}" for i in range(CLASSES))
    return ImageSet(SYNTHETIC, "train", torch.arange(count) % CLASSES, names, f"{count:064x}", pixels)


def _facts(speed: Speed, setting: Setting) -> dict[str, Any]:
    """Plain values."""
    return {
        **asdict(speed),
        "cost": speed.cost._asdict(),
        "data": setting.images.name,
        "images_per_second": speed.images,
        "patches_per_second": speed.images * speed.cost.patches,
        "flops_per_second": speed.flops,
        "matrix_flops_per_second": speed.matrix,
        "share_of_matrix_rate": speed.flops / speed.matrix,
        "waits_for_data": speed.waiting > SLOW,
        "run_steps": setting.steps,
        "run_hours": setting.steps * speed.batch_size / speed.images / 3600,
    }


def _report(found: list[Speed], settings: list[Setting]) -> list[str]:
    """Markdown: a column a setting."""
    facts = [_facts(speed, setting) for speed, setting in zip(found, settings, strict=True)]
    rows = [
        ["images/s", *(f"{fact['images_per_second']:,.4g}" for fact in facts)],
        ["patches with gradient/s", *(f"{fact['patches_per_second']:,.4g}" for fact in facts)],
        ["GFLOP/s", *(f"{fact['flops_per_second'] / 1e9:,.4g}" for fact in facts)],
        ["of a matrix product's", *(f"{100 * fact['share_of_matrix_rate']:.0f} %" for fact in facts)],
        ["matrix product, GFLOP/s", *(f"{speed.matrix / 1e9:,.4g}" for speed in found)],
        ["ms a step", *(f"{1000 * speed.batch_size / speed.images:,.4g}" for speed in found)],
    ]
    for name in (*PARTS, "loop"):
        rows.append([f"– {name}", *(_part(speed, name) for speed in found)])
    rows += [
        ["peak memory, MB", *(f"{speed.memory / 1e6:,.0f}" for speed in found)],
        ["a whole run", *(f"{fact['run_steps']:,} steps, {fact['run_hours']:.3g} h" for fact in facts)],
    ]
    for name in found[0].shares:
        rows.append([f"– {name} of it", *(f"{100 * speed.shares[name]:.2f} %" for speed in found)])
    lines = [markdown_table(["", *(speed.name for speed in found)], rows, left=1), ""]
    for fact in facts:
        lines.append(
            f"{fact['name']}: batch {fact['batch_size']} of {fact['data']}, {fact['precision']}, {fact['device']}"
        )
        if fact["waits_for_data"]:
            lines.append("  Data is the bottleneck: images come more slowly than the step takes them.")
    if len(found) == 2:
        ratios = [b / a for a, b in zip(*(speed.image_rates for speed in found), strict=True)]
        text = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f} in {len(ratios)} rounds)"
        lines.append(f"Images/s of the second setting by the first: {text}")
    return lines


def _part(speed: Speed, name: str) -> str:
    return f"{1000 * speed.split[name]:,.3g} ({100 * speed.split[name] / sum(speed.split.values()):.1f} %)"
