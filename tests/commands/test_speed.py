"""The speed of a training: what is measured adds up, and what is slow is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny import NANO, blobs, tiny_recipe

from ssl_bench.backbones.vit import ViT
from ssl_bench.cli import main
from ssl_bench.commands.speed import speed
from ssl_bench.data.loader import Loader
from ssl_bench.methods.method import Method
from ssl_bench.training.callbacks import Report
from ssl_bench.training.compute import Cost
from ssl_bench.training.monitor import Monitor
from ssl_bench.utils.stopwatch import Stopwatch, part

QUICK: dict[str, Any] = {"backbone": NANO, "rounds": 2, "seconds": 0.05}


def test_two_settings_side_by_side() -> None:
    lines: list[str] = []
    keys = {"epochs": 1}
    found = speed(
        "moco_v3", recipe=tiny_recipe("moco_v3"), overrides=keys, against={"batch_size": 4}, show=lines.append, **QUICK
    )
    assert [fact["batch_size"] for fact in found] == [8, 4]
    for fact in found:
        assert len(fact["image_rates"]) == len(fact["matrix_rates"]) == 2
        assert fact["images_per_second"] > 0 and fact["memory"] > 0
        assert fact["flops_per_second"] == pytest.approx(fact["images_per_second"] * fact["cost"]["flops"])
        assert all(fact["split"][name] > 0 for name in ("data", "views", "forward", "backward", "optimiser", "EMA"))
        assert fact["once"]["monitor"] > 0 and fact["once"]["checkpoint"] > 0
        assert not fact["waits_for_data"]
    text = "\n".join(lines)
    assert "| batch\\_size=4 |" in text and "Images/s of the second setting by the first" in text


def test_a_slow_loader_is_the_bottleneck(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gather = Loader._gather

    def slow(self: Loader, pixels: Any) -> Any:
        for batch in gather(self, pixels):
            time.sleep(0.2)
            yield batch

    monkeypatch.setattr(Loader, "_gather", slow)
    (fact,) = speed("mae", recipe=tiny_recipe("mae"), overrides={"epochs": 1}, **{**QUICK, "rounds": 1})
    assert fact["waits_for_data"] and fact["split"]["data"] > 0.15
    assert "Data is the bottleneck" in capsys.readouterr().out


def test_command_prints_json_and_refuses_what_does_not_train(capsys: pytest.CaptureFixture[str]) -> None:
    request = ["speed", "mae", "--recipe", tiny_recipe("mae"), "--backbone", NANO, "--rounds", "1", "--seconds", "0.05"]
    assert main([*request, "--batch", "4", "--json", "--set", "epochs=1"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["batch_size"] == 4
    assert main(["speed", "raw_pixels", "--backbone", NANO]) == 2
    assert "has nothing to train" in capsys.readouterr().err


def test_parts_within_parts_count_once() -> None:
    with Stopwatch() as watch:
        with part("outer"):
            time.sleep(0.02)
            with part("inner"):
                time.sleep(0.05)
        with part("outer"):
            pass
    assert watch.calls == {"outer": 2, "inner": 1}
    assert 0.02 <= watch.seconds["outer"] < 0.05 <= watch.seconds["inner"]
    with part("nothing runs"):
        pass
    assert "nothing runs" not in watch.seconds


def test_the_monitor_takes_what_the_training_can_spare(nano: ViT) -> None:
    found = {}
    for images in (1e3, 2e5, 1e9):
        monitor = Monitor("mae", Report("mae"), blobs(600, "train", 0), blobs(600, "test", 1))
        monitor.fit_to(images)
        found[images] = (monitor.times, len(monitor.sets[0]), len(monitor.sets[1]))
    assert found == {1e3: (4, 128, 128), 2e5: (4, 250, 250), 1e9: (4, 512, 512)}
    method = Method(nano)  # 16 patches
    assert Cost(1.0, 8.0, 16.0).encodings(method) == 2.5 and Cost(1.0, 0.0, 0.0).encodings(method) == 1


@pytest.mark.slow
def test_what_is_for_a_gpu_is_rehearsed_and_what_fails_is_not_done(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = ["bash", "benchmarks/gpu.sh", "--toy", str(tmp_path), "tests", "small_mae", "compile_ibot", "suite_1"]
    env = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(root)}
    assert subprocess.run(command, cwd=root, env=env).returncode == 0
    assert json.loads((tmp_path / "small_mae.txt").read_text())[0]["images_per_second"] > 0
    wrong = subprocess.run(
        ["bash", "benchmarks/gpu.sh", "--toy", str(tmp_path), "base_mae"], cwd=root, env={**env, "IMAGES": "none"}
    )
    assert wrong.returncode == 1 and not (tmp_path / "base_mae.done").exists()
