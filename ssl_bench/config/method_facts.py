"""What is known of a method beside its code: ``methods/NAME/method.yaml``, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from ssl_bench.checkpoints.layout import Layout, Variant
from ssl_bench.config.parsing import parse_class, read_yaml
from ssl_bench.utils.errors import UserError, unknown
from ssl_bench.utils.shipped import FACTS, shipped
from ssl_bench.utils.versions import registered

T = TypeVar("T")
PAPER, FAITHFUL = "paper", "faithful"


@dataclass(frozen=True)
class Release:
    """A checkpoint that the authors published.

    Args:
        file: Its name.
        backbone: Our name of its backbone.
        data: What it was pre-trained on.
        epochs: Of its pre-training.
        branch: The one it holds, where that isn't the one that the paper evaluates.
    """

    file: str = ""
    backbone: str = ""
    data: str = ""
    epochs: float = 0.0
    branch: str | None = None


@dataclass(frozen=True)
class MethodFacts:
    """The content of a ``method.yaml``; all of it may be left out.

    Args:
        checkpoint: The layout of the method's released files.
        releases: These files.
        protocols: The protocol behind each published number: what a table shows (linear, knn, finetune) -> our
            protocol, or where its values depend on the size of the backbone, size -> our protocol ("base" of a ViT,
            "swin_tiny"). "retrieval, revisited_oxford" is that of one data set, before that of the others.
        backbones: Of the families of backbones: ``paper`` where the authors ran the method on it, ``faithful`` where it
            is the same there, or a sentence on how it deviates from the paper, which travels into the rows. Whether a
            family can run at all is another matter, which ``Method.needs`` decides.
        tiny: Keywords of the constructor that make a network small enough for tests.
        tiny_backbones: Backbones on which the tests build it; the first where one is enough.
        tiny_fixed_targets: Keywords with which the targets of a fixed batch stay the same from step to step.
    """

    checkpoint: Layout = field(default_factory=Layout)
    releases: tuple[Release, ...] = ()
    protocols: Mapping[str, str | Mapping[str, str]] = field(default_factory=dict)
    backbones: Mapping[str, str] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)
    tiny_backbones: tuple[str, ...] = ("vit_nano_patch4_16",)
    tiny_fixed_targets: Mapping[str, Any] = field(default_factory=dict)

    def deviations_on(self, backbone: str) -> list[str]:
        """How a run on a backbone of this name deviates from the paper because of it; nothing where it doesn't."""
        from ssl_bench.backbones import family_of  # here, so that lists don't wait for torch

        text = self.backbones.get(family_of(backbone).family, PAPER)
        return [] if text in (PAPER, FAITHFUL) else [text]

    def release(self, backbone: str, data: str) -> Release | None:
        """The file that holds a backbone pre-trained on some data; None where the authors published none."""
        return next((r for r in self.releases if (r.backbone, r.data) == (backbone, data)), None)


@cache
def method_facts(method: str) -> MethodFacts:
    """The facts of a method of this package; none of one that comes from outside.

    Args:
        method: Its registered name.

    Raises:
        UserError: See ``read_method_facts``.
    """
    path = shipped("methods") / method / FACTS
    return read_method_facts(path) if path.is_file() else MethodFacts()


def read_method_facts(path: Path) -> MethodFacts:
    """Read a ``method.yaml``.

    Raises:
        UserError: An unknown key, a missing one or a value of the wrong type; one line that names the file.
    """
    values = read_yaml(path)
    sections = tuple(MethodFacts.__dataclass_fields__)
    for key in values:
        if key not in sections:
            raise UserError(f"{path}: {unknown('key', key, sections)}")
    releases = _list(values.get("releases", []), f"{path}: releases")
    return MethodFacts(
        _layout(values.get("checkpoint", {}), f"{path}: checkpoint"),
        tuple(_release(values, f"{path}: release {i}") for i, values in enumerate(releases, start=1)),
        _protocols(values.get("protocols", {}), f"{path}: protocols"),
        _backbones(values.get("backbones", {}), f"{path}: backbones"),
        _mapping(values.get("tiny", {}), f"{path}: tiny"),
        tuple(_list(values.get("tiny_backbones", [*MethodFacts.tiny_backbones]), f"{path}: tiny_backbones")),
        _mapping(values.get("tiny_fixed_targets", {}), f"{path}: tiny_fixed_targets"),
    )


def _layout(values: Any, origin: str) -> Layout:
    own = dict(_mapping(values, origin))
    variants = enumerate(_list(own.pop("variants", []), f"{origin}: variants"), start=1)
    typed = tuple(_typed(Variant, values, f"{origin}: variant {i}") for i, values in variants)
    return replace(_typed(Layout, own, origin), variants=typed)


def _release(values: Any, origin: str) -> Release:
    release = _typed(Release, values, origin)
    for key in ("file", "backbone", "data", "epochs"):
        if not getattr(release, key):
            raise UserError(f"{origin}: the key {key!r} is missing")
    return release


def _typed(cls: type[T], values: Any, origin: str) -> T:
    given = _mapping(values, origin)
    typed = parse_class(cls, given, origin)
    for key, value in given.items():
        if isinstance(typed[key], str) and not isinstance(value, str):
            raise UserError(f"{origin}: {key} is {value!r}; it must be a text")
    if ("mean" in given) != ("std" in given):
        raise UserError(f"{origin}: mean and std belong together")
    return cls(**{key: typed[key] for key in given})


def _protocols(values: Any, origin: str) -> dict[str, str | dict[str, str]]:
    for shown, protocol in _mapping(values, origin).items():
        by_size = protocol if isinstance(protocol, dict) else {"": protocol}
        if not by_size or not all(isinstance(text, str) for text in (*by_size, *by_size.values())):
            raise UserError(f"{origin}: {shown} is {protocol!r}; it must be a protocol, or size: protocol")
    return dict(values)


def _backbones(values: Any, origin: str) -> dict[str, str]:
    for family, text in _mapping(values, origin).items():
        if family not in registered("backbone"):
            raise UserError(f"{origin}: {unknown('family', family, registered('backbone'))}")
        if text not in (PAPER, FAITHFUL) and len(str(text).split()) < 3:
            raise UserError(f"{origin}: {family} is {text!r}; it must be {PAPER}, {FAITHFUL} or a sentence")
    return dict(values)


def _list(values: Any, origin: str) -> list[Any]:
    if not isinstance(values, list):
        raise UserError(f"{origin} must be a list, found {values!r}")
    return values


def _mapping(values: Any, origin: str) -> dict[str, Any]:
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{origin}: expected keys and values, found {values!r}")
    return values
