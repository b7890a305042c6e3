"""What changes an identity or makes a row stale, and what does not; what `make golden` lets through."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from golden import make
from golden.compute import components, small_recipe
from tiny import NANO
from torch import Tensor

from ssl_bench.backbones import BACKBONES
from ssl_bench.backbones.vit import ViT
from ssl_bench.commands.pretrain import run_folder
from ssl_bench.config.recipe import load_recipe
from ssl_bench.data.datasets import Splits
from ssl_bench.evaluations import EVALUATIONS, frozen_encoder
from ssl_bench.evaluations.evaluator import Evaluator
from ssl_bench.evaluations.frozen.knn import KNN
from ssl_bench.methods import METHODS, TEACHERS, mae
from ssl_bench.methods.mae import MAE
from ssl_bench.nn.centering import Center
from ssl_bench.results.rows.identity import number_identity
from ssl_bench.teachers import NETWORKS, VERSIONS
from ssl_bench.training import VERSION as TRAINING_VERSION
from ssl_bench.utils import versions
from ssl_bench.utils.identity import identify, syntax_hash
from ssl_bench.utils.versions import current_version, outdated
from ssl_bench.views import VERSION as VIEWS_VERSION


def identities(data: Splits) -> dict[str, str]:
    """Hash of the identity of some methods' encoders."""
    return {name: identify(small_recipe(name).identity(data)) for name in ("mae", "dino", "eva", "clip", "untrained")}


def verdict(component: str) -> str:
    """What the golden test says of a component now."""
    old = json.loads(make.path_of(component).read_text())
    return make.complaint(old, components()[component]().plain())


def test_versions_read_from_the_source_are_those_of_the_classes() -> None:
    expected = {
        **{f"method {name}": cls.version for name, cls in (METHODS | TEACHERS).items()},
        **{f"evaluator {name}": cls.version for name, cls in EVALUATIONS.items()},
        **{f"backbone {cls.family}": cls.version for cls in BACKBONES.values()},
        **{f"teacher {name}": version for name, version in VERSIONS.items()},
        "views": VIEWS_VERSION,
        "training": TRAINING_VERSION,
        "features": frozen_encoder.VERSION,
    }
    assert {name: current_version(name) for name in expected} == expected
    assert set(TEACHERS) <= set(NETWORKS) and set(NETWORKS.values()) == set(VERSIONS)
    assert current_version("method nobody") is None and current_version("nonsense") is None


def test_only_an_older_version_is_stale() -> None:
    now = current_version("evaluator knn") or 0
    assert outdated({"evaluator knn": now, "method of_others": 1, "views": VIEWS_VERSION}) == []
    assert outdated({"evaluator knn": now - 1}) == [f"evaluator knn {now - 1}, now {now}"]
    assert outdated({"evaluator knn": now + 1}) == []  # made by a newer ssl-bench


# Nothing that leaves the numbers alone --------------------------------------------------------------------------------


def test_the_syntax_tree_is_what_counts(tmp_path: Path) -> None:
    source = Path(mae.__file__).read_text()
    commented = source.replace("def loss(", "# a comment\n    def loss(").replace('"""', "'''")
    assert commented != source and syntax_hash(commented) == syntax_hash(source)
    assert syntax_hash(source.replace("mask_ratio: OpenShare = 0.75", "mask_ratio: OpenShare = 0.8")) != syntax_hash(
        source
    )
    assert syntax_hash("async def f():\n    'text'") == syntax_hash("async def f():\n    ''")
    assert syntax_hash("x = None") != syntax_hash("x = []") != syntax_hash("x = ...")


class Wider(ViT):
    """The vision transformer with one more keyword, whose default changes nothing."""

    def __init__(
        self, name: str, *, extra: float = 0.0, init: str = "mae", mask_token: bool = False, drop_path: float = 0.0
    ) -> None:
        super().__init__(name, init=init, mask_token=mask_token, drop_path=drop_path)  # type: ignore[arg-type]
        self.extra = extra


def test_a_new_keyword_of_a_backbone_changes_no_identity(
    tiny_data: Splits, monkeypatch: pytest.MonkeyPatch, add_row: Any
) -> None:
    row = add_row("mae", 0, [True, False])
    before = identify(load_recipe("mae", None, {"backbone": NANO}).identity(tiny_data))
    monkeypatch.setattr(Wider, "__module__", ViT.__module__)  # as one of ours: a user's class is known by its file
    monkeypatch.setitem(BACKBONES, "vit", Wider)
    recipe = load_recipe("mae", None, {"backbone": NANO})
    assert recipe.backbone["extra"] == 0.0  # it is there, and written into rows
    assert identify(recipe.identity(tiny_data)) == before
    assert identify(load_recipe("mae", None, {"backbone": NANO, "extra": 1}).identity(tiny_data)) != before
    assert not row.stale


def test_a_new_keyword_of_an_evaluator_changes_no_identity(tiny_data: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(KNN):
        def __init__(self, k: tuple[int, ...] = (1, 5, 10, 20, 50, 100, 200), extra: bool = False) -> None:
            super().__init__(k=k)
            self.extra = extra

    def identity(evaluator: Evaluator) -> str:
        return identify(number_identity({}, "knn", evaluator, tiny_data))

    before = identity(KNN())
    monkeypatch.setitem(EVALUATIONS, "knn", Later)
    assert identity(Later()) != before  # Later is a class of this test file: its source counts
    monkeypatch.setattr(Later, "__module__", "ssl_bench.evaluations.frozen.knn")
    assert identity(Later()) == before != identity(Later(extra=True))


# What moves numbers ---------------------------------------------------------------------------------------------------


def test_a_changed_centre_moves_dino_and_ibot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Center, "update", lambda self, logits: None)
    for name in ("dino", "ibot"):
        said = verdict(f"method {name}")
        assert f"method {name} moved: losses went from" in said
        assert f"raise the version of what was changed (method {name}," in said
    assert not verdict("method mae")


def test_a_changed_mask_moves_mae(monkeypatch: pytest.MonkeyPatch) -> None:
    masking: Callable[..., tuple[Tensor, Tensor, Tensor]] = mae.random_masking
    monkeypatch.setattr(mae, "random_masking", lambda noise, ratio: masking(1 - noise, ratio))
    assert "method mae moved: losses went from" in verdict("method mae")


def test_a_changed_default_needs_a_version_and_then_makes_its_rows_stale(
    tiny_data: Splits, tmp_path: Path, add_row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    component, before = "method mae", identities(tiny_data)
    rows = {name: add_row(name, 0, [True, False]) for name in ("mae", "dino", "untrained")}
    right = components()[component]().plain()
    assert make.write(component, right, tmp_path) == "" and not make.moved(right, right)
    written = make.path_of(component, tmp_path).read_bytes()

    settings = {**right["defaults"]["settings"], "mask_ratio": 0.6}
    changed = {**right, "defaults": {**right["defaults"], "settings": settings}}
    said = make.write(component, changed, tmp_path)
    assert said.startswith("method mae moved: the default of mask_ratio went from 0.75 to 0.6.")
    assert said.endswith("then `make golden`") and make.path_of(component, tmp_path).read_bytes() == written

    monkeypatch.setattr(MAE, "version", 2)
    monkeypatch.setattr(versions, "current_version", lambda name: 2 if name == component else current_version(name))
    risen = {**changed, "versions": {**right["versions"], component: 2}}
    assert make.complaint(right, risen) == "method mae: method mae 1 -> 2; `make golden` writes its new numbers"
    assert make.write(component, risen, tmp_path) == "" and make.complaint(risen, risen) == ""
    assert [name for name, row in rows.items() if row.stale] == ["mae"]
    assert [name for name, value in identities(tiny_data).items() if value != before[name]] == ["mae"]


def test_a_default_is_seen_in_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAE.__init__.__kwdefaults__, "mask_ratio", 0.6)
    assert "the default of mask_ratio went from 0.75 to 0.6" in verdict("method mae")


def test_make_golden_adds_without_a_version(tmp_path: Path) -> None:
    old = components()["backbone pixels"]().plain()
    make.write("backbone pixels", old, tmp_path)
    more = {**old, "defaults": {"options": {**old["defaults"]["options"], "extra": 0}}}
    assert make.complaint(old, more).endswith("`make golden` adds it, no version is needed")
    assert make.write("backbone pixels", more, tmp_path) == ""
    assert json.loads(make.path_of("backbone pixels", tmp_path).read_text()) == more


def test_what_is_compared() -> None:
    old = {"component": "c", "versions": {"c": 1}, "defaults": {}, "numbers": {"a": [1.0, 100.0], "top1": [50.0]}}
    old["slack"] = {"top1": 2.0}

    def moved(**numbers: list[float]) -> list[str]:
        return make.moved(old, {**old, "numbers": {**old["numbers"], **numbers}})  # type: ignore[dict-item]

    assert moved(a=[1.009, 100.0], top1=[52.0]) == []  # 1e-4 of the largest; one image
    assert moved(a=[1.02, 100.0]) == ["a went from 1 to 1.02"]
    assert moved(a=[float("nan"), 100.0]) and moved(a=[1.0]) and moved(top1=[54.0])
    assert make.moved(old, {**old, "numbers": {"a": [1.0, 100.0]}}) == ["its number 'top1' is gone"]


# Methods from outside -------------------------------------------------------------------------------------------------

OUTSIDE = """
import torch
from ssl_bench import Method, View
class Mine(Method):
    paper, category = "p", "c"
    @property
    def views(self):
        return [View(16)]
    def loss(self, views):
        return {"loss": self.backbone(views[0]).cls.pow(2).mean()}
"""


def test_an_edited_method_from_outside_is_trained_again(tiny_data: Splits, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"

    def folder(text: str) -> Path:
        file.write_text(text)
        return run_folder(load_recipe(f"{file}:Mine", None, {"backbone": NANO}), tiny_data)

    before = folder(OUTSIDE)
    assert folder(OUTSIDE.replace("import torch", "import torch  # of course")) == before
    assert folder(OUTSIDE.replace("pow(2)", "pow(4)")) != before
    moved = tmp_path / "elsewhere" / "other.py"
    moved.parent.mkdir()
    moved.write_text(OUTSIDE)
    assert run_folder(load_recipe(f"{moved}:Mine", None, {"backbone": NANO}), tiny_data) == before


def test_a_teacher_from_outside_is_known_by_its_content(tiny_data: Splits, tmp_path: Path) -> None:
    def identity(path: Path) -> str:
        recipe = load_recipe("beit", None, {"backbone": NANO, "tokenizer": f"dalle:{path}"})
        return identify(recipe.identity(tiny_data))

    a, b = tmp_path / "a.pkl", tmp_path / "b.pkl"
    a.write_bytes(b"1")
    b.write_bytes(b"1")
    assert identity(a) == identity(b)
    b.write_bytes(b"2")
    assert identity(a) != identity(b)
