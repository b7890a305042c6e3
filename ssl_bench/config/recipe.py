"""Recipes: from a file and command-line overrides to typed constructor keywords. jsonargparse does the typing."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from ssl_bench.backbones import EXAMPLE, check_needs, family_of, keywords, named_backbone, options_for
from ssl_bench.backbones.backbone import Backbone
from ssl_bench.checkpoints.encoder_file import load_encoder
from ssl_bench.config.parsing import parse_values, read_yaml
from ssl_bench.data import VERSIONS as DATA_VERSIONS
from ssl_bench.data.datasets import ImageSet, Splits, hold_out
from ssl_bench.methods import METHODS, TEACHERS
from ssl_bench.methods.method import Method
from ssl_bench.nn.optimizers import Training, external_optimizer, named_optimizer
from ssl_bench.teachers import NETWORKS
from ssl_bench.teachers import VERSIONS as TEACHER_VERSIONS
from ssl_bench.training import VERSION as TRAINING_VERSION
from ssl_bench.utils.bounds import Seed, types_of
from ssl_bench.utils.errors import UserError, unknown
from ssl_bench.utils.files import file_hash
from ssl_bench.utils.identity import defaults_of, differing, is_external, source_hash, source_of
from ssl_bench.utils.references import is_reference, look_up
from ssl_bench.utils.shipped import find_yaml
from ssl_bench.views import VERSION as VIEWS_VERSION

NAMED = {"backbone": named_backbone, "optimizer": named_optimizer}  # keys that may name a class of a user's file
CATEGORIES = (
    "contrastive",
    "self-distillation",
    "reconstruction",
    "token prediction",
    "feature regression",
    "baseline",
)
FROM_DATA = ("num_classes", "class_names")  # constructor keywords that the data fills in


@dataclass(frozen=True)
class Recipe:
    """Everything that defines a pre-training run, resolved: no default is left to look up.

    Args:
        method: The name in tables: a registered name, or the class name of an external method.
        cls: The method's class.
        backbone: ``{"name": ..., **keywords of its family}``.
        data: Data set, as asked for.
        seed: Seed of the weights, the order, the views and the masks.
        training: Length, batch, optimiser and schedules.
        settings: The method's own keywords.
        teachers: The recipes of the teachers that are pre-trained first, by the keyword that names them.
    """

    method: str
    cls: type[Method]
    backbone: dict[str, Any]
    data: str
    seed: int
    training: Training
    settings: dict[str, Any]
    teachers: dict[str, Recipe] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for rows and checkpoints. ``data`` is left out: rows carry its name and fingerprint."""
        return json.loads(
            json.dumps(
                {
                    "method": self.method,
                    "backbone": self.backbone,
                    "seed": self.seed,
                    "training": dataclasses.asdict(self.training) if self.cls.trains else {},
                    "settings": self.settings,
                    "teachers": {keyword: teacher.as_dict() for keyword, teacher in self.teachers.items()},
                }
            )
        )

    def images(self, data: Splits) -> ImageSet:
        """The images that the method is trained on; one that uses labels doesn't see those of dev."""
        return hold_out(data.train)[0] if self.cls.uses_labels else data.train

    def identity(self, data: Splits) -> dict[str, Any]:
        """What defines the encoder that the recipe makes of a data set, as plain values (``utils.identity``).

        Keys that have their default are left out: the version of their component stands for them. So are the precision
        and the device, which rows record.
        """
        family = family_of(self.backbone["name"])
        images = self.images(data)
        versions = {f"method {self.method}": self.cls.version, f"backbone {family.family}": family.version}
        if self.cls.trains:
            versions |= {"views": VIEWS_VERSION, "training": TRAINING_VERSION}
            versions[f"data {images.reader}"] = DATA_VERSIONS[images.reader]
        teachers = {}
        for keyword in self.cls.teachers:
            kind, _, place = str(self.settings[keyword]).partition(":")
            if network := NETWORKS.get(kind) or ("tower" if keyword in self.teachers else None):
                versions[f"teacher {network}"] = TEACHER_VERSIONS[network]
            if keyword in self.teachers:
                teachers[keyword] = self.teachers[keyword].identity(data)
            else:
                teachers[keyword] = {"kind": kind, **_external(kind, place)}
        made = self.as_dict()
        settings = {key: value for key, value in made["settings"].items() if key not in self.cls.teachers}
        backbone = defaults_of(family) | options_for(family, self.cls.backbone_options)
        return {
            "method": self.method,
            **source_of(self.cls),
            **({"backbone_source": source_hash(family)} if is_external(family) else {}),
            **({"optimizer_source": source_hash(own)} if (own := external_optimizer(self.training.optimizer)) else {}),
            "settings": differing(settings, defaults_of(self.cls)),
            "backbone": differing(made["backbone"], backbone),
            "training": differing(made["training"], dataclasses.asdict(self.cls.defaults)),
            "seed": self.seed,
            "images": images.fingerprint,
            "teachers": teachers,
            "versions": versions,
        }


def _external(kind: str, place: str) -> dict[str, Any]:
    """What defines a teacher that comes from outside: the content of its file, or the name of a published model."""
    if not Path(place).is_file():
        return {"name": place}
    if kind == "checkpoint":  # beside equal weights stands when and where they were made
        loaded = load_encoder(place)
        return {"weights": loaded.sha256, "backbone": loaded.backbone}
    return {"sha256": file_hash(place)}


def resolve_method(reference: str) -> tuple[str, type[Method]]:
    """Name and class of a method given as a registered name, ``package.module:Class`` or ``path/to/file.py:Class``.

    Raises:
        UserError: Nothing there, or not a Method.
    """
    if reference in METHODS or reference in TEACHERS:
        return reference, (METHODS | TEACHERS)[reference]
    if ":" not in reference:
        raise unknown("method", reference, [*METHODS, "package.module:Class", "path/to/file.py:Class"])
    name, cls = look_up(reference, "method class", _is_method)
    if name in METHODS or name in TEACHERS:
        raise UserError(f"method {reference!r}: the class name {name!r} is the name of a registered method; rename it")
    missing = [key for key in ("paper", "category") if not isinstance(getattr(cls, key, None), str)]
    missing += [key for key in ("views", "loss") if cls.trains and getattr(cls, key) is getattr(Method, key)]
    if missing:
        raise UserError(f"method {reference!r} has no {', '.join(missing)}; see ssl_bench.Method")
    if cls.category not in CATEGORIES and (meant := difflib.get_close_matches(cls.category, CATEGORIES, 1, 0.8)):
        raise UserError(f"method {reference!r}: category {cls.category!r}: did you mean {meant[0]!r}?")
    if bare := _bare(cls):
        raise UserError(
            f"method {reference!r}: {', '.join(bare)} of its constructor: each keyword after the backbone needs a "
            "default, and a type if its values are to be checked, as in `hidden_dim: int = 512`"
        )
    return name, cls


def _bare(cls: type) -> list[str]:
    """Keywords of a constructor, after the first, that have no default and come from no data set."""
    keywords = list(inspect.signature(cls).parameters.values())[1:]
    named = [each for each in keywords if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    return [each.name for each in named if each.default is each.empty and each.name not in FROM_DATA]


def _is_method(it: Any) -> bool:
    return inspect.isclass(it) and issubclass(it, Method) and it is not Method


def load_recipe(method: str, recipe: str | None, *layers: Mapping[str, Any], origin: str = "--set") -> Recipe:
    """Resolve a recipe: the class's defaults, then the recipe file, then each layer of overrides.

    Args:
        method: A reference (see ``resolve_method``).
        recipe: Name of a shipped recipe or of one of the class's ``recipes``, or a YAML file, which names no code; the
            class's defaults alone when left out.
        layers: Overrides, later ones win; values may be strings as typed on a command line.
        origin: What to call the layers in an error.

    Raises:
        UserError: An unknown key, a value of the wrong type or out of bounds, a backbone that can't be built or can't
            do what the method needs.
    """
    name, cls = resolve_method(method)
    values: dict[str, tuple[Any, str]] = {}
    if recipe is not None and recipe in cls.recipes:
        values |= {key: (value, f"recipe {recipe} of {name}") for key, value in cls.recipes[recipe].items()}
    elif recipe is not None and cls.recipes and not recipe.endswith((".yaml", ".yml")):
        raise unknown(f"recipe of {name}", recipe, cls.recipes)
    elif recipe is not None:
        path = find_yaml(f"methods/{name}", recipe)
        values |= {key: (value, str(path)) for key, value in read_yaml(path).items()}
        for key, (value, _) in values.items():
            if key in NAMED and is_reference(str(value)):
                raise UserError(f"{path}: {key} names Python code that would run; say it beside the file: {value}")
    for layer in layers:
        values |= {key: (value, origin) for key, value in layer.items()}
    values |= {key: (NAMED[key](str(values[key][0])), values[key][1]) for key in NAMED.keys() & values.keys()}
    stated = str(values.pop("method", (name, ""))[0])
    if stated not in (name, method):
        raise UserError(f"the recipe is for method {stated!r}, not for {name!r}")
    if "backbone" not in values:
        raise UserError(f"method {name!r}: no backbone given; use --backbone, for example {EXAMPLE}")
    family = family_of(str(values["backbone"][0]))
    types = {**types_of(Training), **types_of(cls), **types_of(family), "backbone": str, "data": str, "seed": Seed}
    parsed = parse_values(recipe_parser(cls, family), values, types)
    training = Training(**{f.name: parsed[f.name] for f in dataclasses.fields(Training)})
    settings = {key: parsed[key] for key in _keywords(cls) if key not in ("backbone", *FROM_DATA)}
    backbone = {"name": parsed["backbone"], **{key: parsed[key] for key in keywords(family)}}
    check_needs(f"method {name!r}", family, backbone, cls.needed(settings))
    teachers = {}
    for keyword in cls.teachers:
        teacher, _, its_recipe = parsed[keyword].partition(":")
        if teacher in TEACHERS or (teacher in METHODS and METHODS[teacher].trains):
            same = {"backbone": parsed["backbone"], "data": parsed["data"]}
            teachers[keyword] = load_recipe(teacher, its_recipe or None, same, origin=f"{keyword} of {name}")
    return Recipe(
        method=name,
        cls=cls,
        backbone=backbone,
        data=parsed["data"],
        seed=parsed["seed"],
        training=training,
        settings=settings,
        teachers=teachers,
    )


def recipe_parser(cls: type[Method], family: type[Backbone]) -> ArgumentParser:
    """A parser for the flat keys of a method's recipe with a backbone of a family; its help is their docstrings.

    Of what the method asks of its backbone (``backbone_options``), the family's defaults are replaced by what it has.
    """
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_argument("--backbone", type=str, default=None, help=f"for example {EXAMPLE}; `ssl-bench list backbones`")
    parser.add_argument("--data", type=str, default="shapes", help="data set")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order, views and masks")
    parser.add_class_arguments(Training)
    parser.add_class_arguments(cls, skip={"backbone", *FROM_DATA})
    parser.add_class_arguments(family, skip={"name"})
    parser.set_defaults({**dataclasses.asdict(cls.defaults), **options_for(family, cls.backbone_options)})
    return parser


def _keywords(cls: type) -> list[str]:
    parameters = list(inspect.signature(cls).parameters.values())
    return [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
