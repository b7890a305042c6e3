"""A method is one Python file, one folder and one line in METHODS: a new one, added to a copy of the package, does all
that a method does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COPIED = ["ssl_bench", "methods", "evaluations", "results/tables", "results/published.csv", "examples"]
COPIED += ["tests/conftest.py", "tests/tiny.py", "tests/row_fixtures.py", "tests/methods/test_contract.py"]

CODE = '''"""RotNet, Gidaris et al. 2018, arXiv 1803.07728: which of four rotations was an image turned by?"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.methods.method import Method
from ssl_bench.views.view import View


class RotNet(Method):
    """Predict the rotation of an image.

    Args:
        backbone: The encoder.
        hidden_dim: Width of the classifier's hidden layer.
    """

    paper = "Gidaris et al. 2018, arXiv 1803.07728"
    category = "token prediction"
    backbone_options = {"pos_embed": "learned"}

    def __init__(self, backbone: Backbone, *, hidden_dim: int = 4096) -> None:
        super().__init__(backbone)
        self.classifier = nn.Sequential(nn.Linear(backbone.embed_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, 4))

    @property
    def views(self) -> list[View]:
        size = min(self.backbone.image_size)
        return [View((size, size), scale=(0.5, 1.0))]

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        turned = torch.cat([torch.rot90(views[0], k, (2, 3)) for k in range(4)])
        labels = torch.arange(4, device=turned.device).repeat_interleave(len(views[0]))
        return {"loss": F.cross_entropy(self.classifier(self.backbone(turned).cls).float(), labels)}
'''
FACTS = """
checkpoint:
  branch: trunk
  not_encoder: [rotation_head.*]
  rename: {layers: blocks, final: norm}
  flags: [external data]
  mean: [0.5, 0.5, 0.5]
  std: [0.25, 0.25, 0.25]
releases: [{file: rotnet_base.pth, backbone: vit_base_patch16_224, data: imagenet1k, epochs: 30}]
protocols: {linear: linear-dino}
tiny: {hidden_dim: 8}
"""
# What a user does with it, in one process.
USE = """
import json, sys
from pathlib import Path
import torch
from PIL import Image
from ssl_bench import cli
from ssl_bench.backbones.vit import SIZES, ViT
from ssl_bench.checkpoints.encoder_file import load_encoder
import ssl_bench
assert Path(ssl_bench.__file__).is_relative_to(Path.cwd()), ssl_bench.__file__

SIZES["vit_nano"] = (24, 2, 2)
generator = torch.Generator().manual_seed(0)
for split, n in (("train", 12), ("test", 6)):
    for c in ("cat", "dog"):
        Path("pets", split, c).mkdir(parents=True)
        for i in range(n):
            pixels = torch.randint(100 * (c == "dog"), 250, (16, 16, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(Path("pets", split, c, f"{i}.png"))


def run(*argv):
    assert cli.main(list(argv)) == 0, argv


run("list", "methods")
data = ("--data", "folder:pets")
run("pretrain", "rotnet", "--recipe", "toy", "--backbone", "vit_nano_patch4_16", *data, "--out", "run")
run("evaluate", "run/encoder.pt", *data, "--out", "rows", "--evaluations", "knn")

theirs = ViT("vit_nano_patch4_16", pos_embed="learned").eval()
file = {"trunk.rotation_head.weight": torch.ones(4, 24)}
for name, value in theirs.state_dict().items():
    first, dot, rest = name.partition(".")
    file[f"trunk.{dict(blocks='layers', norm='final').get(first, first)}{dot}{rest}"] = value
torch.save({"state_dict": file}, "released.pth")
run("convert", "released.pth", "--method", "rotnet", "--backbone", "vit_nano_patch4_16", "--out", "released.pt")
loaded = load_encoder("released.pt")
images = torch.randn(2, 3, 16, 16)
torch.testing.assert_close(loaded.encoder(images), theirs(images))
assert loaded.loaded == 100 and loaded.encoder.std == (0.25,) * 3 and "external data" in loaded.about["flags"]
run("evaluate", "released.pt", *data, "--out", "rows", "--evaluations", "knn")
run("leaderboard", "rows")

from ssl_bench.results.papers.matching import Measurement, how_to_fill
encoder = ("rotnet", "vit_base_patch16_224", "ViT-B/16", "imagenet1k", 30.0, ())
print(how_to_fill(Measurement(*encoder, "linear-dino", "imagenet1k", "top1")))

import pytest
chosen = "rotnet and (gradients_reach or same_seed or survive_saving)"
assert pytest.main(["-vv", "tests/methods/test_contract.py", "-k", chosen]) == 0
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package with RotNet in it."""
    for name in COPIED:
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "ssl_bench" / "methods" / "rotnet.py").write_text(CODE)
    folder = tmp_path / "methods" / "rotnet"
    folder.mkdir()
    (folder / "README.md").write_text("# RotNet\n")
    (folder / "toy.yaml").write_text("hidden_dim: 16\nepochs: 1\nbatch_size: 8\nwarmup_epochs: 0\n")
    (folder / "method.yaml").write_text(FACTS)
    registry = tmp_path / "ssl_bench" / "methods" / "__init__.py"
    text = registry.read_text()
    for line, new in (
        ("from ssl_bench.methods.mpp import MPP\n", "from ssl_bench.methods.rotnet import RotNet\n"),
        ('    "mae": MAE,\n', '    "rotnet": RotNet,\n'),
    ):
        assert line in text
        text = text.replace(line, line + new)
    registry.write_text(text)
    return tmp_path


def test_a_new_method_does_all_that_a_method_does(copy: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", USE], cwd=copy, env=env, capture_output=True, text=True, check=False)
    said = done.stdout
    assert done.returncode == 0, said[-3000:] + done.stderr[-3000:]
    listed = next(line for line in said.splitlines() if line.startswith("rotnet"))
    assert "Gidaris et al. 2018" in listed and "toy" in listed
    assert "the trunk as rotnet" in said and "100 % of the backbone's tensors, 100 % of its parameters" in said
    ranking = (copy / "rows" / "LEADERBOARD.md").read_text()
    assert ranking.count("rotnet") >= 2  # trained here, and released
    assert "`ssl-bench convert rotnet_base.pth --method rotnet --backbone vit_base_patch16_224" in said
    assert "test_same_seed_same_loss[rotnet]" in said and "3 passed" in said  # the contract suite runs over it
