"""What comes from outside: models, evaluators, data sets and suites."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tiny import NANO, blobs
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder

from ssl_bench import UserError, backbones, evaluate, load_data
from ssl_bench.backbones import build_backbone
from ssl_bench.checkpoints.model import load_model
from ssl_bench.cli import main
from ssl_bench.commands.leaderboard import leaderboard
from ssl_bench.config.recipe import load_recipe
from ssl_bench.config.suite import load_suite
from ssl_bench.data.datasets import Splits
from ssl_bench.evaluations.dense import feature_map
from ssl_bench.evaluations.frozen.knn import KNN
from ssl_bench.evaluations.trained.finetune import FineTune
from ssl_bench.nn.optimizers import build_optimizer
from ssl_bench.results.leaderboard.table import build
from ssl_bench.results.rows.row import read_rows
from ssl_bench.training import resume

MODEL = """
import torch

class Colours(torch.nn.Module):
    image_size = 16
    def forward(self, images):
        return torch.cat([images.mean((2, 3)), images.amax((2, 3))], 1)

def build():
    return Colours()

def broken():
    raise ValueError("no weights here")

def wrong(images=None):
    return lambda images: images.mean()
"""
DATA = """
import torch

class Squares:
    classes = ("red", "green", "blue")
    def __init__(self, n, seed):
        generator = torch.Generator().manual_seed(seed)
        self.targets = [i % 3 for i in range(n)]
        self.pixels = torch.randint(0, 60, (n, 12, 12, 3), generator=generator, dtype=torch.uint8)
        for i, label in enumerate(self.targets):
            self.pixels[i, 2:9, 2:9, label] = 220
    def __len__(self):
        return len(self.targets)
    def __getitem__(self, index):
        return self.pixels[index].numpy(), self.targets[index]

def squares():
    return Squares(48, 0), Squares(24, 1)

def alone():
    return Squares(60, 0), None
"""
BARE = """
from ssl_bench import Evaluator

class Bare(Evaluator):
    def run(self, encoder, data): ...
"""
SPREAD = """
from ssl_bench import Evaluator, Metric, Result, mean_metric

class Spread(Evaluator):
    version, metric_help, poolings = 1, {"spread": "mean distance from the mean feature"}, ("mean",)
    def run(self, encoder, data):
        features = self.features(encoder, data.test).popitem()[1]
        x = (features - features.mean(0)).norm(dim=1)
        return RETURNED
"""
METHOD = """
import torch
from ssl_bench import Method, View

class Mine(Method):
    paper, category = "mine", "contrastive"
    recipes = {"short": {"epochs": 1, "warmup_epochs": 0, "batch_size": 16}}
    @property
    def views(self):
        return [View(self.backbone.image_size)]
    def loss(self, views):
        return RETURNED
"""
SHORT = """
evaluation: finetune
epochs: 1
batch_size: 16
mixup: 0
cutmix: 0
"""
EXAMPLES = Path(__file__).parents[2] / "examples"
NEAREST_MEAN = f"{EXAMPLES / 'evaluation.py'}:NearestMean"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in {"model.py": MODEL, "own.py": DATA, "mine.py": BARE}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Models ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("test_resnet_32", 32),
        ("test_vit_160", 160),
        ("resnet18_32", 32),
        ("swin_tiny_patch4_window7_224_64", 64),
        ("vit_small_patch14_reg4_dinov2_56", 56),  # layer scale and registers
    ],
)
def test_a_model_of_timm_with_the_weights_of_a_file(here: Path, tiny_data: Splits, name: str, size: int) -> None:
    torch.manual_seed(3)
    network = build_backbone(f"timm:{name}")
    classifier = {
        "fc.weight" if "resnet" in name else "head.fc.weight" if "swin" in name else "head.weight": torch.zeros(10, 8)
    }
    torch.save({"state_dict": {**network.state_dict(), **classifier}}, here / "w.pth")
    (row,) = evaluate(f"timm:{name}@w.pth", data=tiny_data, evaluations=["knn"])
    assert row["method"] == name and row["backbone"]["name"] == f"timm:{name}" and "external weights" in row["flags"]
    assert row["weights"]["loaded_percent"] == 100 and row["recipe"] is None
    torch.save({"state_dict": {"a": torch.zeros(1)}}, here / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth does not fit timm:.* 0 % of its tensors match"):
        evaluate(f"timm:{name}@w.pth", data=tiny_data)
    (here / "w.pth").write_text("nothing")
    with pytest.raises(UserError, match="can be read safely"):
        evaluate(f"timm:{name}@w.pth", data=tiny_data)


def test_a_model_of_timm_at_another_size(here: Path, tiny_data: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its published weights, here of a file instead of the network, with positions that are resampled to the size."""
    torch.manual_seed(3)
    whole = timm.create_model("test_vit")
    torch.save(whole.state_dict(), here / "w.pth")
    create = timm.create_model

    def made(name: str, pretrained: bool = False, **options: Any) -> Any:
        more = {"pretrained_cfg_overlay": {"file": str(here / "w.pth")}} if pretrained else {}
        return create(name, pretrained=pretrained, **options, **more)

    monkeypatch.setattr(timm, "create_model", made)
    (row,) = evaluate("timm:test_vit", image_size=32, data=tiny_data, evaluations=["knn"])
    assert row["backbone"]["name"] == "timm:test_vit_32" and row["weights"]["loaded_percent"] == 100
    (same,) = evaluate("timm:test_vit_32", data=tiny_data, evaluations=["knn"])
    assert same["id"] != row["id"] or same["metrics"] == row["metrics"]


def test_a_model_of_the_hub(here: Path, tiny_data: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """As timm uploads one; its files are taken from a folder instead of the network."""
    from safetensors.torch import save_file

    (here / "hub").mkdir()
    network = build_backbone("timm:test_resnet_32")
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, here / "hub/model.safetensors")
    config = {"input_size": [3, 16, 16], "mean": [0.5] * 3, "std": [0.25] * 3, "classifier": "fc", "num_classes": 0}
    (here / "hub/config.json").write_text(json.dumps({"architecture": "test_resnet", "pretrained_cfg": config}))

    def download(repo_id: str, filename: str, **others: object) -> str:
        if repo_id != "me/mine" or not (here / "hub" / filename).exists():
            raise OSError("no such model")
        return str(here / "hub" / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    monkeypatch.setattr("timm.models._hub._get_safe_alternatives", lambda name: ["model.safetensors"])
    (row,) = evaluate("hub:me/mine", data=tiny_data, evaluations=["knn"])
    assert row["method"] == "mine" and row["backbone"]["input"] == {"mean": [0.5] * 3, "std": [0.25] * 3}
    assert row["backbone"]["name"] == "timm:test_resnet_16"
    tuned = FineTune(epochs=1, batch_size=16, warmup_epochs=0, blocks=1, randaugment="")
    (row,) = evaluate("hub:me/mine", image_size=32, data=tiny_data, evaluations=[tuned])
    assert row["backbone"]["name"] == "timm:test_resnet_32" and row["pretraining"]["images_seen"] is None
    made: Any = load_model("hub:me/mine").encoder
    loaded, images = made.state_dict(), torch.rand(2, 3, 16, 16)
    assert all(torch.equal(value, loaded[key]) for key, value in network.state_dict().items())
    assert feature_map(made, images).shape[:2] == (2, made.embed_dim)
    torch.testing.assert_close(made(images).cls, network.eval()(images).cls)
    options = {"architecture": "test_resnet", "model_args": {"act_layer": "gelu"}, "pretrained_cfg": config}
    (here / "hub/config.json").write_text(json.dumps(options))
    (other,) = evaluate("hub:me/mine", data=tiny_data, evaluations=["knn"])  # no name of timm says this network
    assert other["backbone"]["name"] == "mine"
    with pytest.raises(UserError, match="hub:me/none: no model of timm can be had from the hub"):
        evaluate("hub:me/none", data=tiny_data, evaluations=["knn"])


def test_a_model_of_torchvision(here: Path, tiny_data: Splits) -> None:
    from torchvision import models

    torch.manual_seed(3)
    torch.save(models.squeezenet1_1().state_dict(), here / "w.pth")
    options = {"data": tiny_data, "evaluations": ["knn"], "image_size": 32}
    (row,) = evaluate("torchvision:squeezenet1_1@w.pth", **options)  # type: ignore[arg-type]
    assert row["method"] == "squeezenet1_1" and row["backbone"]["parameters"] > 700_000
    options |= {"evaluations": ["finetune-short.yaml"]}
    (here / "finetune-short.yaml").write_text(SHORT)
    (row,) = evaluate("torchvision:squeezenet1_1@w.pth", **options)  # type: ignore[arg-type]
    trained = row["evaluation"]["chosen"]["trained_parameters"]
    assert trained > 700_000 and row["evaluation"]["pooling"] == "features"
    with pytest.raises(UserError, match="did you mean 'squeezenet1_1'"):
        evaluate("torchvision:squeezenet@w.pth", **options)  # type: ignore[arg-type]


def test_a_model_of_a_file_and_one_in_python_are_the_same_number(here: Path, tiny_data: Splits) -> None:
    (first,) = evaluate("model.py:build", data=tiny_data, evaluations=["linear"])
    (again,) = evaluate("model.py:Colours", data=tiny_data, evaluations=["linear"], name="model")
    assert first["id"] == again["id"] and first["method"] == "model" and first["metrics"]["top1"]["value"] > 90
    text = (here / "model.py").read_text()
    (here / "model.py").write_text(text.replace("amax", "amin"))
    (edited,) = evaluate("model.py:build", data=tiny_data, evaluations=["linear"])
    assert edited["id"] != first["id"]  # another file is another model
    for name, words in {"broken": "no weights here", "wrong": r"returns \(\) for", "none": "Choose from"}.items():
        with pytest.raises(UserError, match=words):
            evaluate(f"model.py:{name}", data=tiny_data, evaluations=["knn"])


def test_networks_and_functions_in_python(here: Path, tiny_data: Splits) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    (row,) = evaluate(network, name="conv", image_size=16, data=tiny_data, evaluations=["knn"])
    assert (row["method"], row["backbone"]["name"]) == ("conv", "conv")
    other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh())
    other.load_state_dict(network.state_dict())
    (same_weights,) = evaluate(other, name="conv", image_size=16, data=tiny_data, evaluations=["knn"])
    assert same_weights["id"] != row["id"]

    def scaled(by: float) -> object:
        return lambda images: by * F.avg_pool2d(images, 4)

    ids = set()
    for by in (1.0, 2.0):  # one source text, two functions
        (row,) = evaluate(scaled(by), name="f", image_size=16, data=tiny_data, evaluations=["knn"])  # type: ignore[arg-type]
        ids.add(row["id"])
    assert len(ids) == 2
    for of in ("return images.mean((2, 3))", "return images.amax((2, 3))"):  # in a notebook, without a file
        text = f"def f(images):\n    {of}\nclass N(nn.Module):\n    def forward(self, images):\n        {of}"
        space: dict[str, Any] = {"nn": nn, "__name__": "cell"}
        exec(compile(text, "<cell>", "exec"), space)
        for model in (space["f"], space["N"]()):
            (row,) = evaluate(model, name="f", image_size=16, data=tiny_data, evaluations=["knn"])
            ids.add(row["id"])
    assert len(ids) == 6
    assert len(list(Path("runs/features").iterdir())) == 2 * 8  # of both splits, kept apart as well
    (row,) = evaluate(build_backbone(NANO), name="mine", data=tiny_data, evaluations=["knn"])
    assert row["backbone"]["name"] == NANO
    with pytest.raises(UserError, match="both mean and std"):
        evaluate(network, mean=(0.5, 0.5, 0.5), data=tiny_data)
    with pytest.raises(UserError, match="finetune: f has nothing to train"):
        evaluate(scaled(1.0), name="f", image_size=16, data=tiny_data, evaluations=["finetune"])  # type: ignore[arg-type]


def test_from_the_command_line(here: Path, tiny_data: Splits, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["evaluate", "model.py:build", "--data", "own.py:squares", "--evaluations", f"knn,{NEAREST_MEAN}"]
    assert main([*argv, "--out", "out", "--name", "colours"]) == 0
    rows = read_rows("out")
    assert {(row["method"], row["evaluation"]["name"]) for row in rows} == {
        ("colours", "knn"),
        ("colours", "NearestMean"),
    }
    assert all(row["metrics"]["top1"]["value"] == 100 for row in rows)
    assert all(row["evaluation"]["given"] == "own.py:squares" for row in rows)
    leaderboard("out", formats=["md", "html"], show=lambda _: None)
    (table,) = build(rows)
    assert table.evaluations == ["NearestMean", "knn"] and table.standings["NearestMean"].ranks == [1]
    assert main(["evaluate", "timm:resnet99", "--data", "own.py:squares"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_the_examples(here: Path) -> None:
    model, data = f"{EXAMPLES / 'model.py'}:build", f"{EXAMPLES / 'data.py'}:stripes"
    assert main(["evaluate", model, "--data", data, "--evaluations", f"knn,{NEAREST_MEAN}", "--out", "out"]) == 0
    found = {row["evaluation"]["name"]: row["metrics"]["top1"]["value"] for row in read_rows("out")}
    assert min(found.values()) > 40  # chance is 25


# Evaluators -----------------------------------------------------------------------------------------------------------


def test_what_an_evaluator_lacks_is_said_before_anything_runs(here: Path, tiny_data: Splits) -> None:
    with pytest.raises(
        UserError, match=r"mine\.py:Bare has no version, metric_help, poolings: write version = 1, .*cls"
    ):
        evaluate("model.py:build", data=tiny_data, evaluations=["mine.py:Bare"])


def test_two_evaluations_of_one_name_are_refused(here: Path, tiny_data: Splits) -> None:
    (here / "other").mkdir()
    for folder, k in (("", 3), ("other/", 5)):
        (here / f"{folder}near.yaml").write_text(f"evaluation: knn\nk: [{k}]\nheadline_k: {k}\n")
    with pytest.raises(UserError, match=r"two evaluations are called 'near': near.yaml and other/near.yaml"):
        evaluate("model.py:build", data=tiny_data, evaluations=["near.yaml", "other/near.yaml"])
    with pytest.raises(UserError, match="two evaluations are called 'KNN'; a table can't"):
        evaluate("model.py:build", data=tiny_data, evaluations=[KNN(k=(20, 3)), KNN()])
    (row,) = evaluate("model.py:build", data=tiny_data, evaluations=["near.yaml", "near.yaml"])
    assert row["evaluation"]["name"] == "near"


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ("0.3", "run returns a float; it must be a Result"),
        (
            "Result({'spread': 0.3}, 'spread')",
            "metric 'spread' is a float; it must be a Metric, made by accuracy_metric",
        ),
        ("Result({'spread': mean_metric(x)}, 'top1')", "must be one of its metrics, 'top1'"),
        ("Result({'spread': mean_metric(x)}, 'spread', x[:3])", "correct has 3 entries for 120 test images"),
        ("Result({'spread': mean_metric(x)}, 'spread', x > 5)", "but 100 times the mean of correct is 0"),
        ("Result({'spread': mean_metric(y)}, 'spread')", "mine.py line 9: NameError: name 'y' is not defined"),
        ("Result({'spread': mean_metric(x)})", "mine.py line 9: TypeError: Result"),
        ("Result({'spread': Metric(50.0, 9, 60.0, 70.0)}, 'spread')", "is 50, outside of its interval (60 to 70)"),
    ],
)
def test_a_broken_evaluator_is_one_line_before_anything_is_trained(
    here: Path, capsys: pytest.CaptureFixture[str], returned: str, words: str
) -> None:
    (here / "mine.py").write_text(SPREAD.replace("RETURNED", returned))
    assert bench("mae", "--evaluations", "mine.py:Spread") == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1
    assert not (here / "runs").exists() and not (here / "out").exists()


def test_what_a_trial_cannot_tell_is_left_to_the_run(here: Path, tiny_data: Splits) -> None:
    text = SPREAD.replace("RETURNED", "Result({'spread': mean_metric(x, least=-100)}, 'spread')")
    (here / "mine.py").write_text(
        text.replace("x = ", "if data.train.name == 'drawn features': raise ValueError\n        x = ")
    )
    (row,) = evaluate("model.py:build", data=tiny_data, evaluations=["mine.py:Spread"])
    assert row["headline"] == "spread" and row["predictions"] is None
    assert row["evaluation"]["pooling"] == "features" and row["evaluation"]["selected_on"] == "nothing was selected"


def test_an_evaluator_without_a_headline_writes_no_row(here: Path, tiny_data: Splits) -> None:
    text = (EXAMPLES / "evaluation.py").read_text()
    (here / "none.py").write_text(text.replace('"top1", correct, chosen', '"top5", correct, chosen'))
    with pytest.raises(UserError, match="must be one of its metrics, 'top5': did you mean 'top1'"):
        evaluate("model.py:build", data=tiny_data, evaluations=["none.py:NearestMean"], out="rows")
    (here / "none.py").write_text(re.sub(r"metric_help = .*", "metric_help = {}", text))
    with pytest.raises(UserError, match="its metric_help is empty"):
        evaluate("model.py:build", data=tiny_data, evaluations=["none.py:NearestMean"], out="rows")
    assert not list(here.glob("rows/rows/*"))


# Methods, backbones, optimisers and recipes ---------------------------------------------------------------------------


def bench(method: str, *more: str) -> int:
    asked = ["bench", "quick", "--data", "own.py:squares", "--methods", method, "--seeds", "0", "--jobs", "1"]
    return main([*asked, "--evaluations", "knn", "--out", "out", *more])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("paper, category = ", "category, other = ", "Mine' has no paper; see ssl_bench.Method"),
        ("def loss", "def lose", "Mine' has no loss"),
        ("RETURNED", "self.backbone(views[0]).cls.sum()", "Mine.loss returns a tensor of shape ()"),
        ("RETURNED", "{'loss': 1.0}", "Mine.loss returns a dict whose 'loss' is a float"),
        ("RETURNED", "{'lost': self.backbone(views[0]).cls.sum()}", "Mine.loss returns a dict without 'loss'"),
        ("RETURNED", "{'loss': torch.zeros(())}", "a tensor of shape () that depends on no weight"),
        (
            "    @property",
            "    def __init__(self, backbone, *, width: int, rate=0.1): ...\n    @property",
            ": width of its constructor: each keyword after the backbone needs a default",
        ),
        ("RETURNED", "{'loss': self.backbone(views[0]).cls}", "a dict whose 'loss' is a tensor of shape (8, 24)"),
    ],
)
def test_a_broken_method_is_one_line_before_anything_runs(
    here: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, words: str
) -> None:
    (here / "method.py").write_text(METHOD.replace(old, new))
    files = {path.name for path in here.iterdir()}
    assert bench("method.py:Mine:short", "--backbone", "vit_nano_patch4_16") == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1
    assert {path.name for path in here.iterdir()} - {"__pycache__"} == files


def test_an_error_in_the_file_of_a_method_is_one_line_with_its_place(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine.py").write_text(METHOD.replace("RETURNED", "{'loss': self.backbon(views[0]).cls.sum()}"))
    asked = ["pretrain", "mine.py:Mine", "--recipe", "short", "--backbone", "vit_nano_patch4_16"]
    assert main([*asked, "--data", "own.py:squares", "--out", "run"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(
        "ssl-bench: failed: mine.py line 12: AttributeError: 'Mine' object has no attribute 'backbon'"
    )


def test_backbone_optimizer_and_recipe_of_mine(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone, lion = f"{EXAMPLES / 'backbone.py'}:SmallConv", f"{EXAMPLES / 'optimizer.py'}:Lion"
    more = ["--backbone", backbone, "--set", "batch_size=16", "epochs=1", "warmup_epochs=0", "side=16"]
    assert bench(f"{EXAMPLES / 'vicreg.py'}:VICReg:short", *more, f"optimizer={lion}") == 0
    rows = {row["method"]: row for row in read_rows("out")}
    assert set(rows) == {"VICReg", "untrained", "raw_pixels", "supervised"}
    row = rows["VICReg"]
    assert row["recipe"]["backbone"] == {"name": "SmallConv", "side": 16, "width": 32, "blocks": 3}
    assert row["recipe"]["training"]["optimizer"] == "Lion" and row["recipe"]["training"]["batch_size"] == 16
    assert {"backbone_source", "optimizer_source"} < row["identity"]["encoder"].keys()
    assert str(EXAMPLES) not in row.path.read_text()
    assert main(["check", "out"]) == 0
    (encoder,) = here.glob("runs/VICReg-*/encoder.pt")
    assert main(["evaluate", str(encoder), "--data", "own.py:squares", "--backbone", backbone, "--out", "again"]) == 0
    (again,) = (row for row in read_rows("again") if row["evaluation"]["name"] == "knn")
    assert again["id"] == row["id"] and again["metrics"] == row["metrics"]
    capsys.readouterr()
    edited = (EXAMPLES / "backbone.py").read_text().replace("nn.GELU()", "nn.ReLU()")
    (here / "backbone.py").write_text(edited)
    argv = ["evaluate", str(encoder), "--data", "own.py:squares", "--backbone", "backbone.py:SmallConv"]
    assert main(argv) == 2 and "has been edited since" in capsys.readouterr().err
    backbones._EXTERNAL.clear()
    assert main(argv[:4]) == 2 and "add --backbone path/to/file.py:SmallConv" in capsys.readouterr().err


def test_methods_of_one_name_in_two_folders(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each has rows of its own, and an edited one is trained again."""
    text = METHOD.replace("RETURNED", "{'loss': FACTOR * self.backbone(views[0]).cls.pow(2).sum()}")
    for folder, factor in (("a", "1.0"), ("b", "2.0")):
        (here / folder).mkdir()
        (here / folder / "method.py").write_text(text.replace("FACTOR", factor))
    both, small = "a/method.py:Mine:short,b/method.py:Mine:short", ("--backbone", NANO, "--set", "batch_size=16")
    assert bench(both, *small) == 0
    rows = {row["id"] for row in read_rows("out") if row["method"] == "Mine"}
    assert len(rows) == 2
    (here / "a" / "method.py").write_text(text.replace("FACTOR", "3.0"))
    capsys.readouterr()
    assert bench(both, *small) == 0 and "5 runs, 4 of them done before" in capsys.readouterr().out
    assert len({row["id"] for row in read_rows("out") if row["method"] == "Mine"} - rows) == 1


def test_a_folder_that_holds_another_encoder_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = METHOD.replace("RETURNED", "{'loss': FACTOR * self.backbone(views[0]).cls.pow(2).sum()}")
    more = ["--backbone", NANO, "--data", "own.py:squares", "--set", "epochs=1", "batch_size=16", "warmup_epochs=0"]

    def pretrained(method: str, *others: str) -> tuple[int, str]:
        status = main(["pretrain", method, *more, "--out", "run", *others])
        return status, (capsys.readouterr().err.splitlines() or [""])[-1]

    (here / "method.py").write_text(text.replace("FACTOR", "1.0"))
    assert pretrained("method.py:Mine")[0] == 0
    before = (here / "run" / "encoder.pt").read_bytes()
    assert pretrained("method.py:Mine") == (0, "run was trained before")
    (here / "method.py").write_text(text.replace("FACTOR", "1.0") + "# a comment")
    assert pretrained("method.py:Mine") == (0, "run was trained before")
    (here / "method.py").write_text(text.replace("FACTOR", "2.0"))
    said = "ssl-bench: error: run holds an encoder of Mine, seed 0, which differs in %s: name another --out"
    assert pretrained("method.py:Mine") == (2, said % "the method's file")
    (here / "method.py").write_text(text.replace("FACTOR", "1.0"))
    assert pretrained("method.py:Mine", "--seed", "1") == (2, said % "the seed")
    assert pretrained("mae") == (2, said % "its method, the method's file, the versions of its parts")
    torch.save({"weight": torch.zeros(1)}, here / "run" / "encoder.pt")
    assert pretrained("mae") == (2, "ssl-bench: error: run holds an encoder of no run: name another --out")
    (here / "run" / "encoder.pt").write_bytes(before)
    assert pretrained("method.py:Mine") == (0, "run was trained before")


def test_checkpoints_of_another_run_are_not_taken_over(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["pretrain", "mae", "--backbone", NANO, "--data", "own.py:squares", "--out", "run"]
    settings = ["epochs=1", "batch_size=16", "warmup_epochs=0"]
    usual = resume.Resume.on_train_batch_end

    def save_then_die(self: resume.Resume, *rest: Any) -> None:
        usual(self, *rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(resume.Resume.__init__, "__defaults__", (0.0,))
    monkeypatch.setattr(resume, "AGREE", 1)
    with monkeypatch.context() as patch:
        patch.setattr(resume.Resume, "on_train_batch_end", save_then_die)
        assert main([*argv, "--set", *settings]) != 0
    assert (here / "run" / "last.ckpt").exists()
    assert main([*argv, "--set", *settings, "base_lr=1e-5"]) == 2
    assert "run holds the checkpoints of another run than mae, seed 0, as it is now" in capsys.readouterr().err
    assert main([*argv, "--set", *settings]) == 0
    assert not list((here / "run").glob("*.ckpt")) and not (here / "run" / "run.id").exists()


def test_a_refused_run_leaves_no_folder(here: Path) -> None:
    argv = ["pretrain", "mae", "--backbone", NANO, "--data", "own.py:squares", "--out", "new"]
    assert main([*argv, "--set", "batch_size=4096"]) == 2 and not (here / "new").exists()


def test_an_optimizer_of_torch_and_files_that_name_code(here: Path) -> None:
    layer = {"backbone": NANO, "optimizer": "NAdam"}
    training = load_recipe("mae", None, layer).training
    weights = [{"params": [nn.Parameter(torch.zeros(2))]}]
    made = build_optimizer(weights, replace(training, betas=(0.8, 0.9)), 0.1)
    assert type(made) is torch.optim.NAdam and made.defaults["betas"] == (0.8, 0.9)
    with pytest.raises(UserError, match="did you mean 'adamw'"):
        load_recipe("mae", None, layer | {"optimizer": "adam_w"})
    with pytest.raises(UserError, match="'LBFGS' can't be built"):
        build_optimizer([*weights, {"params": [nn.Parameter(torch.zeros(2))]}], replace(training, optimizer="LBFGS"), 1)
    (here / "r.yaml").write_text("optimizer: evil.py:Evil")
    with pytest.raises(UserError, match=r"r\.yaml: optimizer names Python code"):
        load_recipe("mae", "r.yaml", {"backbone": NANO})
    (here / "method.py").write_text(METHOD)
    with pytest.raises(UserError, match="unknown recipe of Mine 'shrt': did you mean 'short'"):
        load_recipe("method.py:Mine", "shrt", {"backbone": NANO})


# Data sets ------------------------------------------------------------------------------------------------------------


class Own:
    """A data set of what it is given."""

    def __init__(self, images: list[object], labels: list[int]) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[object, int]:
        return self.images[index], self.labels[index]


def test_every_kind_of_image_is_the_same_image(tiny_data: Splits) -> None:
    pixels = blobs(6, "train", 0).images
    assert isinstance(pixels, Tensor)
    arrays = [image.permute(1, 2, 0).numpy() for image in pixels]
    kinds = {"tensor": list(pixels), "array": arrays, "PIL": [Image.fromarray(array) for array in arrays]}
    sets = {
        kind: load_data((Own(images, [0, 1, 0, 1, 0, 1]), Own(images[:2], [0, 1])))  # type: ignore[arg-type]
        for kind, images in kinds.items()
    }
    for splits in sets.values():
        assert torch.equal(splits.train.images, pixels)  # type: ignore[arg-type]
        assert splits.train.fingerprint == sets["PIL"].train.fingerprint and splits.train.classes == ("0", "1")
    grey = load_data((Own([array[..., 0] for array in arrays], [0, 1] * 3), Own(arrays[:2], [0, 1])))  # type: ignore[arg-type]
    assert torch.equal(grey.train.images[0], pixels[0, :1].expand(3, -1, -1))


@pytest.mark.parametrize(
    ("image", "labels", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), [0, 1], "is float32; it must be an image of PIL or uint8"),
        (np.zeros((4, 4, 4), np.uint8), [0, 1], r"has the shape \(4, 4, 4\); grey and RGB images are taken"),
        (torch.zeros(13, 4, 4, dtype=torch.uint8), [0, 1], "grey and RGB images are taken"),
        ("text", [0, 1], "is str"),
        (np.zeros((4, 4, 3), np.uint8), [0.5, 1], "whole numbers from 0"),
        (np.zeros((4, 4, 3), np.uint8), [-1, 1], "whole numbers from 0"),
    ],
)
def test_other_images_and_labels_are_refused_in_a_sentence(image: object, labels: list[int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_data((Own([image, image], labels), None))


def test_a_function_that_returns_data_sets(here: Path) -> None:
    splits = load_data("own.py:squares")
    assert (splits.train.name, len(splits.train), len(splits.test)) == ("squares", 48, 24)
    assert splits.train.classes == ("red", "green", "blue")
    assert load_data("own.py:alone").train.name == "alone-80-20"
    with pytest.raises(UserError, match="missing 2 required"):
        load_data("own.py:Squares")


def test_a_part_of_a_torch_data_set_has_its_labels_and_names(here: Path) -> None:
    """Labels and names are those of the set inside, unless it changes them on the way."""
    for number in range(12):
        place = here / "set" / ("cat", "dog")[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(place)
    plain, swapped = ImageFolder("set"), ImageFolder("set", target_transform=lambda label: 1 - label)
    part = Subset(Subset(plain, [11, 0, 6, 1]), range(3))
    splits = load_data((part, part))
    assert splits.train.classes == ("cat", "dog") and splits.train.labels.tolist() == [1, 0, 1]
    other = load_data((Subset(swapped, [11, 0, 6]), None)).train
    assert other.classes == ("0", "1") and other.name.endswith("80-20")
    with pytest.raises(UserError, match="are none"):
        load_data((Subset(plain, []), None))


# Suites ---------------------------------------------------------------------------------------------------------------


def test_a_suite_names_code_and_places_only_when_allowed(here: Path) -> None:
    suite = "{name: %s, description: d, data: shapes, methods: [%s], recipe: quick}"
    (here / "s.yaml").write_text(suite % ("s", "evil.py:Evil"))
    with pytest.raises(UserError, match=r"s\.yaml names Python code that would run: evil\.py:Evil.*--allow-code"):
        load_suite("s.yaml")
    assert load_suite("s.yaml", allow_code=True).methods == ["evil.py:Evil"]
    for keys in ("backbone: evil.py:Evil", "overrides: {optimizer: evil.py:Evil}", "methods: [evil.py:Evil:quick]"):
        (here / "s.yaml").write_text(f"name: s\ndescription: d\ndata: shapes\nmethods: [mae]\nrecipe: quick\n{keys}")
        if keys.startswith("methods"):
            (here / "s.yaml").write_text(suite % ("s", "evil.py:Evil:quick"))
        with pytest.raises(UserError, match=r"names Python code that would run: evil\.py:Evil"):
            load_suite("s.yaml")
    for name in ("..", "'../x'", "/tmp/x", "'a b'", "''"):
        (here / "s.yaml").write_text(suite % (name, "mae"))
        with pytest.raises(UserError, match="it names a folder"):
            load_suite("s.yaml")


def test_a_suite_with_changes_and_code_of_mine(here: Path) -> None:
    argv = ["bench", "quick", "--data", "own.py:squares", "--methods", "mae", "--seeds", "0", "--jobs", "1"]
    argv += ["--backbone", "vit_nano_patch8_32", "--image-size", "16", "--evaluations", f"knn,{NEAREST_MEAN}"]
    argv += ["--set", "epochs=1", "batch_size=16", "warmup_epochs=0", "--out", "out"]
    assert main(argv) == 0
    rows = read_rows("out")
    assert {row["method"] for row in rows} == {"mae", "untrained", "supervised", "raw_pixels"}
    assert {row["backbone"]["name"] for row in rows} == {"vit_nano_patch8_16"}
    assert {row["recipe"]["training"].get("epochs") for row in rows if row["method"] == "mae"} == {1}
