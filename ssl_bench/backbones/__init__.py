"""The families of backbones behind one contract, and what builds one from its name."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.backbones.eva02 import EVA02
from ssl_bench.backbones.hiera import Hiera
from ssl_bench.backbones.igpt import ImageGPT
from ssl_bench.backbones.pixels import Pixels
from ssl_bench.backbones.swin import Swin
from ssl_bench.backbones.timm_model import TimmModel
from ssl_bench.backbones.timm_model import parse_timm_name as parse_timm_name
from ssl_bench.backbones.vit import ViT
from ssl_bench.utils.bounds import check_keywords
from ssl_bench.utils.errors import UserError, unknown
from ssl_bench.utils.references import is_reference, look_up

# The beginning of the names that a family builds -> its class.
BACKBONES: dict[str, type[Backbone]] = {
    "vit": ViT,
    "eva02": EVA02,
    "swin": Swin,
    "hiera": Hiera,
    "igpt": ImageGPT,
    "pixels": Pixels,
    "timm": TimmModel,
}
# What a method can ask of a backbone (`Method.needs`), in words.
ABILITIES = {
    "train": "has weights to train",
    "mask": "replaces masked patches by a learned token",
    "keep": "encodes a subset of its patches",
    "swap": "exchanges the embeddings of patches",
    "units": "keeps whole mask units of several tokens",
    "cls": "has a class token",
    "multi_crop": "takes images of other sizes",
    "heads": "shows the attention of its heads",
    "attention": "shows the attention of its class token",
    "palette": "reads pixels as colours of a palette",
}
EXAMPLE = "vit_small_patch16_224"  # for errors and help
_EXTERNAL: dict[str, type[Backbone]] = {}  # classes of users' files that this process was told of, by their name


def named_backbone(text: str) -> str:
    """The name of a backbone in recipes, files and rows: the text itself, or of ``file.py:Class`` the class's name.

    The class is then known in this process alone: files and rows never name code.

    Raises:
        UserError: The file has no such class, or the class has a name of this package's backbones.
    """
    if not is_reference(text):
        return text
    name, cls = look_up(text, "backbone class", _is_backbone)
    if re.split(r"[_:]", name, maxsplit=1)[0] in BACKBONES:
        raise UserError(f"backbone {text!r}: the class name {name!r} is taken by a family of this package; rename it")
    cls.family = name
    _EXTERNAL[name] = cls
    return name


def _is_backbone(it: Any) -> bool:
    return inspect.isclass(it) and issubclass(it, Backbone) and it is not Backbone


def family_of(name: str) -> type[Backbone]:
    """The family that builds a backbone of this name; the name is checked, nothing is built.

    Raises:
        UserError: There is none; it lists what there is.

    Example:
        >>> family_of("vit_micro_patch8_32").family
        'vit'
    """
    if name in _EXTERNAL:
        return _EXTERNAL[name]
    prefix = re.split(r"[_:]", name, maxsplit=1)[0]
    if prefix not in BACKBONES:
        raise unknown("backbone", name, patterns())
    BACKBONES[prefix].check_name(name)
    return BACKBONES[prefix]


def build_backbone(name: str, **options: Any) -> Backbone:
    """A backbone at initial weights, drawn from torch's global generator.

    Args:
        name: For example ``vit_small_patch16_224``; see ``patterns``.
        options: Keywords of the family's class.

    Raises:
        UserError: Unknown name or option, or a value that the option can't have; it lists those that are valid.
    """
    cls: Any = family_of(name)
    check_keywords(cls, options, name)
    return cls(name, **options)


def patterns() -> dict[str, dict[str, Any]]:
    """The names that all families build, with facts worth listing."""
    return {
        pattern: {"family": cls.family, **facts}
        for cls in BACKBONES.values()
        for pattern, facts in cls.patterns().items()
    }


def keywords(cls: type[Backbone]) -> list[str]:
    """The options of a family.

    Example:
        >>> keywords(Pixels)
        []
    """
    return [p.name for p in inspect.signature(cls).parameters.values() if p.kind is p.KEYWORD_ONLY]


def options_for(cls: type[Backbone], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Of the options that a paper asks for, those that a family has; where it has not, its own defaults hold.

    Example:
        >>> options_for(ViT, {"init": "dino", "no_such_option": 1})
        {'init': 'dino'}
    """
    types = get_type_hints(cls.__init__)
    known = {key: value for key, value in wanted.items() if key in keywords(cls)}
    return {
        key: value
        for key, value in known.items()
        if get_origin(types[key]) is not Literal or value in get_args(types[key])
    }


def check_needs(what: str, family: type[Backbone], spec: Mapping[str, Any], needs: Iterable[str]) -> None:
    """Refuse a backbone that can't do what is asked of it.

    Args:
        what: Who asks, for the error.
        family: The backbone's class.
        spec: ``{"name": ..., **options}`` of the backbone; nothing is built.
        needs: Any of ``ABILITIES``.

    Raises:
        UserError: It names what is missing, and the options that stand in the way or the backbones that have it all.

    Example:
        >>> check_needs("method 'mae'", ViT, {"name": "vit_micro_patch8_32"}, ["keep"])
    """
    needs, name = list(needs), spec["name"]
    missing = [need for need in needs if need not in family.abilities(**spec)]
    if not missing:
        return
    wanted = f"{what} needs a backbone that {' and '.join(ABILITIES[need] for need in missing)}"
    if set(needs) <= family.abilities(name):
        raise UserError(f"{wanted}; {name} does not with {_in_the_way(family, spec, missing)}")
    able = [pattern for cls in BACKBONES.values() for pattern in cls.patterns() if set(needs) <= cls.abilities(pattern)]
    raise UserError(f"{wanted}; {name} does not. Backbones that do: {', '.join(able)}")


def _in_the_way(family: type[Backbone], spec: Mapping[str, Any], missing: Iterable[str]) -> str:
    """The options without which nothing would be missing: "mask_token false"."""
    guilty = []
    for option, value in spec.items():
        others = {key: v for key, v in spec.items() if key != option}
        if option != "name" and not set(missing).isdisjoint(family.abilities(**others)):
            guilty.append(f"{option} {json.dumps(value)}")
    return ", ".join(guilty)
