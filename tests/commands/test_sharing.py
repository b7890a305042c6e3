"""Features and encoders for others: embed and export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file
from test_doors import DATA

from ssl_bench import embed, evaluate, export, load_data
from ssl_bench.backbones import build_backbone
from ssl_bench.checkpoints.encoder_file import load_encoder, save_encoder
from ssl_bench.cli import main
from ssl_bench.results.rows.row import checksum_of
from ssl_bench.utils.errors import RunError, UserError

NANO = "vit_nano_patch4_16"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own.py").write_text(DATA)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved(path: Path, name: str = NANO, **options: object) -> Path:
    torch.manual_seed(0)
    backbone = build_backbone(name, **options)
    about = {
        "paper": "He et al.",
        "flags": [],
        "deviations": ["a | b"],
        "input": {"mean": list(backbone.mean), "std": list(backbone.std)},
        "backbone": backbone.spec,
    }
    save_encoder(path, backbone, backbone.spec, "mine", about)
    return path


def test_features_are_those_of_the_encoder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved(here / "encoder.pt")
    assert main(["embed", str(file), "own.py:squares", "--out", "f.parquet", "--pooling", "mean"]) == 0
    table = pq.read_table(here / "f.parquet")
    assert table.column_names == ["split", "index", "label", "features"] and table.num_rows == 72
    assert table.schema.metadata[b"pooling"] == b"mean" and table["label"][1].as_py() == "green"
    matrix = np.load(embed(str(file), "own.py:squares", out="f.npy", pooling="mean"))
    assert matrix.dtype == np.float32 and np.array_equal(matrix, np.array(table["features"].to_pylist(), np.float32))
    test = np.load(embed(str(file), "own.py:squares", out="t.npy", pooling="mean", split="test"))
    assert np.array_equal(test, matrix[48:])
    assert len(load_data("own.py:squares").test) == len(test)
    for argv, words in (
        (["--out", "f.csv"], "a .parquet or a .npy file"),
        (["--out", "f.npy", "--pooling", "maen"], "did you mean 'mean'"),
    ):
        assert main(["embed", str(file), "own.py:squares", *argv]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("options", [{}, {"layer_scale": 0.1, "num_heads": 1}, {"registers": 2}, {"pos_embed": "none"}])
def test_timm_loads_what_was_exported(here: Path, options: dict[str, object]) -> None:
    file = saved(here / "encoder.pt", **options)
    (row,) = evaluate(str(file), data="own.py:squares", evaluations=["knn"], out="rows")
    folder = export(file, out=here / "folder", rows=["rows"])
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    encoder = load_encoder(file).encoder
    images = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        assert torch.allclose(model(images), encoder(images).cls, atol=1e-5)
    assert list(model.pretrained_cfg["input_size"]) == [3, 16, 16]  # a tuple in some versions of timm
    card = (folder / "README.md").read_text()
    assert "library_name: timm" in card and f"| knn | squares | top1 | {row['metrics']['top1']['value']:.2f} |" in card
    assert row["weights"]["sha256"] in card and "a \\| b" in card and str(here) not in card


def test_numbers_of_data_sets_of_the_hub_go_with_the_encoder(here: Path) -> None:
    file = saved(here / "encoder.pt")
    (row,) = evaluate(str(file), data="own.py:squares", evaluations=["knn"], out="rows")
    assert not (export(file, out=here / "without", rows=["rows"]) / ".eval_results").exists()
    values = json.loads(row.path.read_text())
    values["evaluation"]["given"] = "hf:me/squares"
    row.path.write_text(json.dumps(values | {"checksum": checksum_of(values)}))
    folder = export(file, out=here / "with", rows=["rows"])
    (entry,) = yaml.safe_load((folder / ".eval_results" / "me-squares-knn.yaml").read_text())
    assert entry["dataset"] == {"id": "me/squares", "task_id": "knn"}
    assert entry["value"] == row["metrics"]["top1"]["value"]


def test_what_timm_does_not_have_says_how_it_is_built(here: Path) -> None:
    file = saved(here / "encoder.pt", relative_positions="shared")
    folder = export(file, out=here / "folder")
    config = json.loads((folder / "config.json").read_text())
    assert config["library"] == "ssl-bench" and "timm" not in (folder / "README.md").read_text().partition("---\n\n")[0]
    again = build_backbone(**config["backbone"])
    again.load_state_dict(load_file(folder / "model.safetensors"))
    (here / "rows" / "rows").mkdir(parents=True)
    with pytest.raises(UserError, match="no row in"):
        export(file, out=here / "folder", rows=["rows"])


def test_uploads_only_when_asked(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []

    class Api:
        def create_repo(self, repo_id: str, exist_ok: bool) -> None:
            calls.append(("create", repo_id))

        def upload_folder(self, repo_id: str, folder_path: Path) -> None:
            calls.append(("upload", repo_id))
            if repo_id == "me/none":
                raise OSError("not logged in")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    file = saved(here / "encoder.pt")
    export(file, out=here / "folder")
    assert calls == []
    export(file, out=here / "folder", push="me/mine")
    assert calls == [("create", "me/mine"), ("upload", "me/mine")]
    with pytest.raises(RunError, match="its upload to me/none failed: not logged in"):
        export(file, out=here / "folder", push="me/none")
