"""Every protocol says how it differs from its paper's, and so does every row that it makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ssl_bench.backbones.vit import ViT
from ssl_bench.checkpoints.encoder_file import Checkpoint
from ssl_bench.commands.evaluate import run_evaluations
from ssl_bench.config.protocol import load_evaluator
from ssl_bench.data.datasets import Splits
from ssl_bench.evaluations.evaluator import Evaluator, Result
from ssl_bench.metrics.metric import accuracy_metric
from ssl_bench.results.rows.row import Row
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.shipped import shipped

PROTOCOLS = sorted(path.stem for path in shipped("evaluations").glob("*.yaml"))
OURS = {"factors", "fewshot", "finetune", "label-efficiency", "lowshot-finetune", "patch-linear", "retrieval-train"}


def written(name: str) -> list[str]:
    return yaml.safe_load((shipped("evaluations") / f"{name}.yaml").read_text())["deviations"]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_states_its_deviations(name: str) -> None:
    """Sentences without capital and full stop, as those of methods; none only where no paper has the protocol."""
    said = written(name)
    assert bool(said) == (name not in OURS)
    assert len(set(said)) == len(said)
    assert all(isinstance(text, str) and " " in text.strip() == text and not text.endswith(".") for text in said)
    assert load_evaluator(name).deviations == tuple(said)


def test_they_stand_in_the_row(tmp_path: Path, nano: ViT, tiny_data: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every protocol, whatever it measures."""
    monkeypatch.chdir(tmp_path)
    evaluators = {name: load_evaluator(name) for name in PROTOCOLS}
    right = tiny_data.test.labels.numpy() == 0

    def run(self: Evaluator, *_: object) -> Result:
        return Result({"top1": accuracy_metric(right)}, "top1", right, {}, "cls")

    for evaluator in evaluators.values():
        monkeypatch.setattr(type(evaluator), "run", run)
        monkeypatch.setattr(type(evaluator), "needs", "")
    run_evaluations(Checkpoint(nano, "m", {}, "c" * 64), evaluators, tiny_data, tmp_path, None)
    stated = {}
    for path in (tmp_path / "rows").glob("*.json"):
        evaluation = Row.read(path)["evaluation"]
        stated[evaluation["name"]] = evaluation["deviations"]
    assert stated == {name: written(name) for name in PROTOCOLS}


@pytest.mark.parametrize("value", ["text", "[1]", "['']", "{a: b}", "null"])
def test_what_is_no_list_of_sentences_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"evaluation: knn\ndeviations: {value}\n")
    with pytest.raises(UserError, match=r"mine\.yaml: deviations is .*; it must be a list of sentences"):
        load_evaluator(str(path))
