"""Rows in the formats of other leaderboards, against what these accept."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from huggingface_hub import parse_eval_result_entries
from row_fixtures import sealed

from ssl_bench.commands.leaderboard import leaderboard
from ssl_bench.results import exchange
from ssl_bench.results.rows.row import Row, read_rows
from ssl_bench.utils.errors import UserError

ROWS = Path(__file__).parents[2] / "results" / "quick"
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
DETAILS = {
    **TEXTS,
    "required": ["deployment_type", "model_availability"],
    "properties": {
        "deployment_type": {"enum": ["self_deployed", "externally_managed", "unknown"]},
        "model_availability": {"enum": ["open_weights", "closed_weights", "unknown"]},
    },
}
# What eval.schema.json of every-eval-ever 0.3.0 (MIT) demands of the fields that are written; no other field may be.
EVERY_EVAL_EVER: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": [
        *("schema_version", "evaluation_id", "retrieved_timestamp", "source_metadata", "model_info", "eval_library"),
        "evaluation_results",
    ],
    "properties": {
        "schema_version": {"type": "string"},
        "evaluation_id": {"type": "string"},
        "retrieved_timestamp": {"type": "string"},
        "source_metadata": {
            "required": ["source_type", "source_organization_name", "evaluator_relationship"],
            "properties": {
                "source_type": {"enum": ["documentation", "evaluation_run"]},
                "evaluator_relationship": {"enum": ["first_party", "third_party", "collaborative", "other"]},
            },
        },
        "eval_library": {**TEXTS, "required": ["name", "version"]},
        "model_info": {
            "required": ["name", "id", "additional_details"],
            "properties": {
                "name": {"type": "string"},
                "id": {"type": "string", "pattern": "^[^/]+/[^/]+$"},
                "developer": {"type": "string"},
                "inference_engine": TEXTS,
                "additional_details": DETAILS,
            },
        },
        "evaluation_results": {
            "type": "array",
            "items": {
                "required": ["evaluation_name", "source_data", "metric_config", "score_details"],
                "properties": {
                    "evaluation_result_id": {"type": "string"},
                    "evaluation_name": {"type": "string"},
                    "evaluation_timestamp": {"type": "string"},
                    "source_data": {
                        "required": ["dataset_name", "source_type"],
                        "properties": {
                            "dataset_name": {"type": "string"},
                            "source_type": {"const": "other"},
                            "additional_details": TEXTS,
                        },
                    },
                    "metric_config": {
                        "required": ["lower_is_better", "min_score", "max_score"],
                        "properties": {
                            "lower_is_better": {"type": "boolean"},
                            "score_type": {"const": "continuous"},
                            "min_score": {"anyOf": [{"type": "number"}, {"enum": ["Infinity", "-Infinity"]}]},
                            "max_score": {"type": "number"},
                            "additional_details": TEXTS,
                        },
                    },
                    "score_details": {
                        "required": ["score"],
                        "properties": {
                            "score": {"type": "number"},
                            "details": TEXTS,
                            "uncertainty": {
                                "properties": {
                                    "confidence_interval": {
                                        "required": ["lower", "upper"],
                                        "additionalProperties": {"type": "number"},
                                    },
                                    "num_samples": {"type": "integer"},
                                }
                            },
                        },
                    },
                },
            },
        },
    },
}
# What mteb 2.26 (`results/task_result.py`, TaskResult; Apache-2.0) demands of a file.
MTEB: dict[str, Any] = {
    "required": ["dataset_revision", "task_name", "mteb_version", "scores", "evaluation_time"],
    "additionalProperties": False,
    "properties": {
        "dataset_revision": {"type": "string"},
        "task_name": {"type": "string"},
        "mteb_version": {"type": ["string", "null"]},
        "evaluation_time": {"type": ["number", "null"]},
        "kg_co2_emissions": {"type": ["number", "null"]},
        "date": {"type": "number"},
        "scores": {
            "additionalProperties": {
                "type": "array",
                "items": {
                    "required": ["main_score", "hf_subset", "languages"],
                    "properties": {
                        "main_score": {"type": "number", "minimum": 0, "maximum": 1},
                        "hf_subset": {"type": "string"},
                        "languages": {"type": "array", "minItems": 1},
                    },
                },
            }
        },
    },
}


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return read_rows(ROWS)


def changed(row: Row, **evaluation: Any) -> Row:
    values = json.loads(json.dumps(row.values))
    values["evaluation"] |= evaluation
    return Row(row.path, sealed(values))


def test_every_eval_ever(rows: list[Row]) -> None:
    files = exchange.every_eval_ever(rows)
    found = {}
    for place, text in files.items():
        # data/COLLECTION/DEVELOPER/MODEL/UUID4.json, of which the model is that of the file
        assert re.fullmatch(
            r"data/ssl-bench/[\w.-]+/[\w.-]+/[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\.json",
            place,
        )
        content = json.loads(text)
        jsonschema.validate(content, EVERY_EVAL_EVER)
        assert place.startswith(f"data/ssl-bench/{content['model_info']['id']}/")
        for result in content["evaluation_results"]:
            found[result["evaluation_result_id"]] = result["score_details"]
    assert found.keys() == {row["id"] for row in rows if row["evaluation"]["evaluator"] != "diagnostics"}
    for row in rows:
        metric = row["metrics"][row["headline"]]
        interval = found[row["id"]]["uncertainty"]["confidence_interval"]
        assert (found[row["id"]]["score"], interval["lower"]) == (metric["value"], metric["low"])
    assert files == exchange.every_eval_ever(rows[::-1])  # the same rows give the same bytes


def test_mteb(rows: list[Row]) -> None:
    files = exchange.mteb(rows)
    assert len(files) == len(rows)
    for place, text in files.items():
        content = json.loads(text)
        jsonschema.validate(content, MTEB)
        assert re.fullmatch(rf"results/[\w.-]+__[\w.-]+/[0-9a-f]{{40}}/{content['task_name']}\.json", place)
    values = {round(row["metrics"][row["headline"]]["value"] / 100, 6) for row in rows}
    assert values == {json.loads(text)["scores"]["test"][0]["main_score"] for text in files.values()}


def test_mteb_reads_it(rows: list[Row], tmp_path: Path) -> None:
    """With mteb itself, where it is installed; it needs more than this package does."""
    results = pytest.importorskip("mteb.results")
    (tmp_path / "one.json").write_text(next(iter(exchange.mteb(rows).values())))
    assert 0 < results.TaskResult.from_disk(tmp_path / "one.json").get_score() < 1


def test_hugging_face(rows: list[Row]) -> None:
    assert not exchange.hugging_face(rows)  # no data set of the hub
    row = changed(rows[0], given="hf:uoft-cs/cifar10")
    ((place, text),) = exchange.hugging_face([row]).items()
    name, _, file = place.partition("/.eval_results/")
    assert file == f"uoft-cs-cifar10-{row['evaluation']['name']}.yaml" and name.count("/") == 1
    (entry,) = parse_eval_result_entries(yaml.safe_load(text))
    assert (entry.dataset_id, entry.task_id) == ("uoft-cs/cifar10", row["evaluation"]["name"])
    assert entry.value == row["metrics"]["top1"]["value"] and "95 % interval" in str(entry.notes)
    for given, data in (("hf:a/b#100", "b-100"), ("hf:a/b", "b-80-20"), ("folder:b", "b")):  # not its own images alone
        assert not exchange.hugging_face([changed(rows[0], given=given, data=data)])


def test_names_and_times_of_others(rows: list[Row]) -> None:
    row = changed(rows[0], data="../../etc/x y", name="k/nn")
    for kind in ("every-eval-ever", "mteb"):
        (place,) = exchange.FORMATS[kind]([row])
        assert ".." not in place and " " not in place
    values = json.loads(json.dumps(rows[0].values))
    values["made"]["time"] = "yesterday"
    with pytest.raises(UserError, match="made at 'yesterday', which is no time"):
        exchange.mteb([Row(rows[0].path, sealed(values))])


def test_from_the_leaderboard(tmp_path: Path) -> None:
    said: list[str] = []
    formats = ["md", *exchange.FORMATS]
    leaderboard(ROWS, formats=formats, out=tmp_path, show=said.append)
    assert {path.name for path in tmp_path.iterdir()} == {"LEADERBOARD.md", "every-eval-ever", "mteb"}
    assert any(line.startswith("mteb: 48 files in ") for line in said)
    assert any(line.startswith("hugging-face: no row that it takes") for line in said)
    with pytest.raises(UserError, match="did you mean 'mteb'"):
        leaderboard(ROWS, formats=["mtep"], out=tmp_path, show=said.append)
