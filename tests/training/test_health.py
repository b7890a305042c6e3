"""Trainings that go wrong are named soon, with what to try; early low rank of self-distillation is no alarm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from row_fixtures import AddRow
from tiny import tiny_recipe

from ssl_bench.checkpoints.encoder_file import load_encoder
from ssl_bench.commands.evaluate import run_evaluations
from ssl_bench.commands.leaderboard import leaderboard
from ssl_bench.commands.pretrain import run
from ssl_bench.config.protocol import load_evaluator
from ssl_bench.config.recipe import Recipe, load_recipe
from ssl_bench.data.datasets import Splits
from ssl_bench.methods.mae import MAE
from ssl_bench.results.leaderboard.table import build
from ssl_bench.training import health, monitor
from ssl_bench.utils.errors import RunError
from ssl_bench.utils.flags import COLLAPSED


def recipe(method: str = "mae", **values: object) -> Recipe:
    usual = {"backbone": "vit_nano_patch4_16", "batch_size": 8, "epochs": 2, "base_lr": 1e-3}
    return load_recipe(method, str(tiny_recipe(method)), {**usual, **values})


def steps_of(monkeypatch: pytest.MonkeyPatch, change: Any) -> list[int]:
    """MAE, whose loss at each step of (0, 1, ...) is changed; returns the steps that were done."""
    done: list[int] = []
    real = MAE.loss

    def loss(self: MAE, views: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        found = real(self, views)
        if self._step is None:  # the cost is measured
            return found
        done.append(self._step)
        return {**found, "loss": change(found["loss"], self._step)}

    monkeypatch.setattr(MAE, "loss", loss)
    return done


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda loss, step: loss * (float("nan") if step >= 4 else 1),
            r"the loss is nan at step 5; try a smaller base_lr",
        ),
        (lambda loss, step: loss * (1e6 if step >= 4 else 1), r"the loss has exploded from \S+ to \S+ at step 5; try"),
    ],
)
def test_nan_and_explosion_end_the_training_at_once(
    change: Any, words: str, tiny_data: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = steps_of(monkeypatch, change)
    with pytest.raises(health.Diverged, match=words):
        run(recipe(), tiny_data, tmp_path)
    assert max(done) == 4 and not (tmp_path / "encoder.pt").exists()


def test_between_two_looks_a_spike_is_none_and_a_lasting_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        global_step, max_steps = 0, 100_000

    def feed(losses: list[float]) -> int:
        """The step at which it ends, or 0."""
        watch, trainer = health.Health("x"), Fake()
        for step, loss in enumerate(losses, 1):
            trainer.global_step = step
            try:
                watch.on_train_batch_end(trainer, None, {"loss": torch.tensor(loss)}, None, 0)  # type: ignore[arg-type]
            except health.Diverged:
                return step
        return 0

    assert feed([2.0] * 99 + [1e9] + [2.0] * 200) == 0
    assert feed([2.0] * 150 + [1e9] * 200) == 300  # the first look after a hundred steps of it
    assert feed([2.0] * 150 + [float("nan")] * 200) == 200
    assert feed([0.001 * step for step in range(1000)]) == 0


@pytest.fixture
def equal_features(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Times at which the features of all images are nearly equal, as parts of the training."""
    when: list[float] = []
    real = monitor.collapse_meters

    def meters(features: torch.Tensor) -> dict[str, float]:
        meters.count += 1  # type: ignore[attr-defined]
        same = features[:1] + 1e-5 * features
        return real(same if meters.count / 4 in when else features)  # type: ignore[attr-defined]

    meters.count = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(monitor, "collapse_meters", meters)
    return when


def test_a_collapse_that_recovers_is_said_and_not_marked(
    tiny_data: Splits, tmp_path: Path, equal_features: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    equal_features += [0.25, 0.5]
    about = load_encoder(run(recipe(), tiny_data, tmp_path)).about
    said = capsys.readouterr().err
    assert said.count("WARNING: mae, seed 0: collapsed at step ") == 2 and "step 3 (" in said
    assert "feature std 0.0000 of 1: the features of all images point the same way); try a smaller base_lr" in said
    assert about["flags"] == []


def drawn(count: int, dim: int, rank: float, kind: str, seed: int) -> torch.Tensor:
    """Features of an effective rank: a few strong directions, the others weak and equal, or weaker and weaker."""
    low, high = 1e-6, 1e2
    for _ in range(60):
        middle = (low * high) ** 0.5
        s = torch.arange(1, dim + 1).double() ** (-1 / middle) if kind == "power" else torch.full((dim,), middle / 100)
        s[0] = 1
        if kind == "two":
            s[1] = min(1.0, middle)
        low, high = (middle, high) if torch.special.entr(s / s.sum()).sum().exp() < rank else (low, middle)
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) * s.float()


@pytest.mark.parametrize("kind", ["line", "two", "power"])
@pytest.mark.parametrize(("dim", "count"), [(64, 128), (192, 128), (768, 128), (768, 512), (192, 40), (192, 8)])
def test_few_images_raise_no_false_flag_and_show_a_collapse(kind: str, dim: int, count: int) -> None:
    def reasons(rank: float, seed: int) -> list[str]:
        meters = monitor.collapse_meters(drawn(count, dim, rank, kind, seed))
        return health.collapse(meters["effective_rank"], meters["feature_std"], dim, count)

    assert not any(reasons(rank, seed) for rank in (2.0, 2.5, 6.0) for seed in range(10 if dim < 700 else 3))
    found = [reasons(1.1, seed) for seed in range(3)]
    assert all(len(each) == 1 and "along a line" in each[0] for each in found) or count < 40


@pytest.mark.parametrize(("precision", "half"), [("32", False), ("bf16-mixed", True)])
def test_a_look_has_the_precision_of_the_training(
    precision: str, half: bool, tiny_data: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16 it takes eight times as long where a processor does not compute in it."""
    seen: list[bool] = []
    real = monitor.Monitor.measure

    def measure(self: monitor.Monitor, method: Any) -> dict[str, float]:
        layer = method.backbone.blocks[0].register_forward_hook(
            lambda *_: seen.append(torch.is_autocast_enabled("cpu"))
        )
        found = real(self, method)
        layer.remove()
        return found

    monkeypatch.setattr(monitor.Monitor, "measure", measure)
    run(recipe(precision=precision), tiny_data, tmp_path)
    assert seen and set(seen) == {half}


def test_of_a_handful_of_images_nothing_is_said() -> None:
    for count in range(1, health.FEW):
        assert health.collapse(1.0, 0.0, 192, count) == []
    alike = torch.ones(16, 192) + 1e-6 * torch.randn(16, 192)
    meters = monitor.collapse_meters(alike)
    assert len(health.collapse(meters["effective_rank"], meters["feature_std"], 192, 16)) == 1


def test_an_encoder_that_ends_collapsed_has_no_rank(
    tiny_data: Splits, tmp_path: Path, equal_features: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    equal_features += [1.0]
    encoder = load_encoder(run(recipe(), tiny_data, tmp_path / "run"))
    (row,) = run_evaluations(encoder, {"knn": load_evaluator("knn")}, tiny_data, tmp_path, None)
    assert row["flags"] == [COLLAPSED]
    assert row["warnings"] == ["its features had collapsed at the end of the training: it has no rank"]


def test_a_collapsed_row_is_in_the_table_without_a_rank(add_row: AddRow, tmp_path: Path) -> None:
    right = torch.arange(60) % 3 > 0
    rows = [add_row("good", 0, right), add_row("bad", 0, ~right), add_row("best", 0, right | True, flags=[COLLAPSED])]
    (table,) = build(rows)
    ranks = dict(zip((each.label for each in table.aggregates), table.standings["linear"].ranks, strict=True))
    assert ranks == {"best": None, "good": 1, "bad": 2}
    shown: list[str] = []
    leaderboard(tmp_path, formats=("md", "csv", "html", "latex"), figures=True, show=shown.append)
    ranked = "\n".join(shown).partition("Ranks")[2]
    assert "–" in next(line for line in ranked.splitlines() if "best" in line)


def test_a_dead_codebook_ends_the_training_in_its_second_half(
    tiny_data: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    codes = monitor.Monitor.codes

    def dead(self: monitor.Monitor, method: Any, late: bool) -> dict[str, float]:
        seen.append(method.trainer.global_step)
        method.encoder.tokens = lambda pixels: torch.zeros(len(pixels), 16, dtype=torch.long)
        return codes(self, method, late)

    monkeypatch.setattr(monitor.Monitor, "codes", dead)
    with pytest.raises(
        RunError, match=r"dvae, seed 0: the codebook is dead: the perplexity of its 64 codes is 1\.0; try"
    ):
        run(recipe("dvae"), tiny_data, tmp_path)
    assert seen == [3, 6, 9]
    assert not (tmp_path / "encoder.pt").exists()
