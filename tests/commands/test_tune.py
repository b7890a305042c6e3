"""The search on dev: what it sees, that it goes on, what it writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from ssl_bench import tune
from ssl_bench.commands import tune as module
from ssl_bench.config.recipe import load_recipe
from ssl_bench.data.datasets import Splits
from ssl_bench.utils.errors import RunError, UserError

SPACE = {"base_lr": "1e-4..1e-2", "mask_ratio": "0.5|0.75", "batch_size": "16"}


def search(data: Splits, **options: Any) -> Path:
    given = {"space": SPACE, "backbone": "vit_nano_patch4_16", "epochs": 1, "logger": ["csv"], "out": "tuned"}
    return tune("mae", data=data, **{**given, **options})


def test_a_search_sees_no_test_image_and_goes_on(
    tmp_path: Path, tiny_data: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown: list[str] = []
    ran: list[Splits] = []
    run = module.run

    def counted(recipe: Any, data: Splits, *rest: Any) -> Path:
        ran.append(data)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return run(recipe, data, *rest)

    monkeypatch.setattr(module, "run", counted)
    without = replace(tiny_data, test=replace(tiny_data.test, images=None))  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        search(without, trials=3, show=shown.append)
    best = search(without, trials=3, show=shown.append)
    assert len(shown) == 4 and len(ran) == 4  # a trial, then the stopped one and the third, and the best
    assert all(len(data.train) + len(data.test) == len(tiny_data.train) for data in ran)
    assert search(without, trials=3, show=shown.append) == best and len(ran) == 4
    found = yaml.safe_load(best.read_text())
    assert 1e-4 <= found["base_lr"] <= 1e-2 and found["batch_size"] == 16 and found["epochs"] == 1
    assert load_recipe("mae", str(best)).settings["mask_ratio"] in (0.5, 0.75)


def test_what_cannot_be_searched(tmp_path: Path, tiny_data: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for space, words in (
        ({"mask_ratio": "0.5"}, "nothing to search"),
        ({"mask_ratio": "0.9..0.1"}, "the smaller one first"),
        ({"mask_ratio": "0.5..2"}, "mask_ratio"),
        ({"mask_ration": "0.5..0.6"}, "did you mean 'mask_ratio'"),
    ):
        with pytest.raises(UserError, match=words):
            search(tiny_data, space=space)
    assert not Path("tuned").exists()

    def fails(*_: Any) -> Path:
        raise RunError("the loss is NaN")

    monkeypatch.setattr(module, "run", fails)
    with pytest.raises(RunError, match="no trial succeeded"):
        search(tiny_data, trials=2)

    def refuses(*_: Any) -> Path:
        raise UserError("batch_size 256 is larger")

    monkeypatch.setattr(module, "run", refuses)
    with pytest.raises(UserError, match="batch_size 256 is larger"):
        search(tiny_data, trials=2)
    assert optuna.logging.get_verbosity() == optuna.logging.ERROR  # below, it prints the traceback
