"""Rows in the formats of other leaderboards: Every Eval Ever, mteb and the Hugging Face hub.

They hold headlines alone, of evaluations that can be ranked: the larger the better; percent, unless the evaluator is
from outside.
Nothing is said that a row doesn't know: who sends files on states who he is.
"""

from __future__ import annotations

import datetime
import json
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import yaml

from ssl_bench.results.frame import quick_hash
from ssl_bench.results.leaderboard.significance import UNRANKED
from ssl_bench.results.rows.row import Row
from ssl_bench.utils.errors import UserError

Files = dict[str, str]  # path below the folder of the format -> content
SCHEMA_VERSION = "0.3.0"  # of Every Eval Ever
NOTHING = "no row that it takes (hugging-face: data sets hf:ORG/NAME with a test split of their own; none: diagnostics)"


def every_eval_ever(rows: Sequence[Row]) -> Files:
    """A file for each model, ``data/ssl-bench/DEVELOPER/MODEL/UUID.json`` (evaleval/every_eval_ever, schema 0.3.0).

    The developer is the library that a model's name begins with, else ssl-bench; availability of weights and the
    organisation are "unknown".
    """
    files = {}
    for name, found in _by_model(rows):
        stamp = f"{max(map(_made, found)).timestamp():.0f}"
        first = found[0]
        details = {
            "deployment_type": "self_deployed",
            "model_availability": "unknown",
            "backbone": first["backbone"]["name"],
            "parameters": str(first["backbone"]["parameters"]),
            "weights_sha256": first["weights"]["sha256"],
            "category": str(first["category"]),
            "flags": ", ".join(first["flags"]),
        }
        content = {
            "schema_version": SCHEMA_VERSION,
            "evaluation_id": f"ssl-bench/{name}/{stamp}",
            "retrieved_timestamp": stamp,
            "source_metadata": {
                "source_name": "ssl-bench",
                "source_type": "evaluation_run",
                "source_organization_name": "unknown",
                "evaluator_relationship": "other",
            },
            "eval_library": {"name": "ssl-bench", "version": str(first["code"].get("package", "unknown"))},
            "model_info": {
                "name": first["method"],
                "id": name,
                "developer": name.partition("/")[0],
                "inference_engine": {"name": "torch", "version": first["made"]["torch"]},
                "additional_details": {key: value for key, value in details.items() if value},
            },
            "evaluation_results": [_result(row) for row in found],
        }
        text = _json(content)
        identifier = uuid.UUID(quick_hash(content)[:32], version=4)  # the same rows give the same name
        files[f"data/ssl-bench/{name}/{identifier}.json"] = text
    return files


def _result(row: Row) -> dict[str, Any]:
    evaluation, metric = row["evaluation"], row["metrics"][row["headline"]]
    interval = {"lower": metric["low"], "upper": metric["high"], "confidence_level": 0.95}
    images = evaluation["images"]
    return {
        "evaluation_result_id": row["id"],
        "evaluation_name": f"{evaluation['data']}/{evaluation['name']}",
        "evaluation_timestamp": _made(row).isoformat(),
        "source_data": {
            "dataset_name": evaluation["data"],
            "source_type": "other",
            "additional_details": {
                "split": evaluation["split"],
                "test_images": str(images["test"]),
                "train_images": str(images["train"]),
                "test_fingerprint": evaluation["fingerprints"]["test"],
                "train_fingerprint": evaluation["fingerprints"]["train"],
            },
        },
        "metric_config": {
            "evaluation_description": f"{evaluation['evaluator']} {evaluation['version']}; {evaluation['selected_on']}",
            "metric_name": row["headline"],
            **({"metric_unit": "percent"} if row.in_percent else {}),
            "lower_is_better": False,
            "score_type": "continuous",
            "min_score": 0.0 if metric["value"] >= 0 else "-Infinity",
            "max_score": 100.0,
            "additional_details": {"settings": json.dumps(evaluation["settings"]), "pooling": evaluation["pooling"]},
        },
        "score_details": {
            "score": metric["value"],
            "details": {"seed": str((row["recipe"] or {}).get("seed", "none"))},
            "uncertainty": {"confidence_interval": interval, "num_samples": metric["n"]},
        },
    }


def mteb(rows: Sequence[Row]) -> Files:
    """A file for each number, ``results/MODEL/REVISION/TASK.json``, as mteb's ``TaskResult.to_disk`` writes it.

    The task is named after the data and the evaluation, so that it is no task of mteb's: protocols differ. Scores are
    from 0 to 1 there, and images have the language eng-Latn. The revision is the hash of the weights, that of the data
    the fingerprint of its test images.
    """
    files = {}
    for name, found in _by_model(rows):
        for row in found:
            evaluation, value = row["evaluation"], round(row["metrics"][row["headline"]]["value"] / 100, 6)
            task = _safe(f"{evaluation['data']}-{evaluation['name']}")
            scores = {row["headline"]: value, "main_score": value, "hf_subset": "default", "languages": ["eng-Latn"]}
            content = {
                "dataset_revision": evaluation["fingerprints"]["test"],
                "task_name": task,
                "mteb_version": None,
                "scores": {"test": [scores]},
                "evaluation_time": None,
                "kg_co2_emissions": None,
                "date": _made(row).timestamp(),
            }
            folder = f"results/{name.replace('/', '__')}/{row['weights']['sha256'][:40]}"
            files[f"{folder}/{task}.json"] = _json(content)
    return files


def hugging_face(rows: Sequence[Row]) -> Files:
    """``MODEL/.eval_results/TASK.yaml``, of which the folder belongs into the repository of the model."""
    return {
        f"{name}/{place}": text
        for name, found in _by_model(rows)
        for row in found
        for place, text in eval_results(row).items()
    }


def eval_results(row: Row) -> Files:
    """``.eval_results/TASK.yaml`` of one row, for the repository of its model on the Hugging Face hub.

    The hub takes results of data sets that are there and state their tasks in an ``eval.yaml``: rows of ``hf:ORG/NAME``
    on its own test split, with the evaluation as the name of the task. Of others there is no file.
    """
    if (dataset := hub_data(row)) is None or row["evaluation"]["evaluator"] in UNRANKED:
        return {}
    metric, task = row["metrics"][row["headline"]], row["evaluation"]["name"]
    unit = " in percent" if row.in_percent else ""
    interval = f"{metric['low']:.2f} to {metric['high']:.2f}"
    entry = {
        "dataset": {"id": dataset, "task_id": task},
        "value": metric["value"],
        "date": _made(row).isoformat(),
        "notes": f"ssl-bench: {row['headline']}{unit}, 95 % interval {interval} over {metric['n']:,} test images",
    }
    text = yaml.safe_dump([entry], sort_keys=False, allow_unicode=True)
    return {f".eval_results/{_safe(dataset)}-{_safe(task)}.yaml": text}


def hub_data(row: Row) -> str | None:
    """The data set of the hub that a row was measured on, whole and with its own test split; None of any other."""
    kind, _, name = (row["evaluation"].get("given") or "").partition(":")
    return name if kind == "hf" and "#" not in name and not row["evaluation"]["data"].endswith("-80-20") else None


FORMATS: dict[str, Callable[[Sequence[Row]], Files]] = {
    "every-eval-ever": every_eval_ever,
    "mteb": mteb,
    "hugging-face": hugging_face,
}


def _by_model(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """The rows of each encoder under the name DEVELOPER/MODEL, in the order of their ids."""
    models: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["id"]):
        if row["evaluation"]["evaluator"] not in UNRANKED:
            models.setdefault(_model(row), []).append(row)
    yield from sorted(models.items())


def _model(row: Row) -> str:
    library, _, rest = row["backbone"]["name"].partition(":")
    known = (library, rest) if not row["recipe"] and rest else ("ssl-bench", f"{row['method']}-{library}")
    return f"{_safe(known[0])}/{_safe(known[1])}-{row['weights']['sha256'][:12]}"


def _made(row: Row) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(row["made"]["time"]).astimezone(datetime.UTC)
    except (OverflowError, TypeError, ValueError) as error:
        raise UserError(f"{row.path}: it was made at {row['made']['time']!r}, which is no time") from error


def _safe(text: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "unnamed"


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
