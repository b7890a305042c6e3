"""Pre-training end to end: the same seed, a killed run, a diverged loss, the file it writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import IO

import pandas as pd
import pytest
import timm
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import tiny_recipe, tiny_settings

from ssl_bench.checkpoints.encoder_file import load_encoder
from ssl_bench.commands.bench import bench
from ssl_bench.commands.evaluate import evaluate
from ssl_bench.commands.pretrain import pretrain, run, run_folder
from ssl_bench.config.method_facts import method_facts
from ssl_bench.config.recipe import Recipe, load_recipe
from ssl_bench.data.datasets import Splits
from ssl_bench.data.images import pack
from ssl_bench.evaluations.frozen_encoder import FrozenEncoder
from ssl_bench.methods import METHODS
from ssl_bench.methods.method import Method
from ssl_bench.training import monitor, resume
from ssl_bench.utils.errors import RunError, UserError

TRAINED = [name for name, cls in METHODS.items() if cls.trains]


def recipe(method: str, **values: object) -> Recipe:
    layer = {
        "backbone": method_facts(method).tiny_backbones[0],
        "batch_size": 8,
        "warmup_epochs": 1,
        "base_lr": 1e-2,
        "epochs": 2,
    }
    return load_recipe(method, None, {**layer, **tiny_settings(method), **values})


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize("method", TRAINED)
def test_same_seed_same_weights_and_another_seed_others(method: str, tiny_data: Splits, tmp_path: Path) -> None:
    a = weights(run(recipe(method), tiny_data, tmp_path / "a"))
    b = weights(run(recipe(method), tiny_data, tmp_path / "b"))
    c = weights(run(recipe(method, seed=1), tiny_data, tmp_path / "c"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize(("method", "step"), [("mae", 1), ("mae", 7), *((method, 5) for method in TRAINED)])
def test_killed_run_resumes_bit_for_bit(
    method: str, step: int, tiny_data: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights(run(recipe(method), tiny_data, tmp_path / "whole"))
    with monkeypatch.context() as patch:

        def save_then_die(self: resume.Resume, trainer: object, *_: object) -> None:
            if trainer.global_step == step:  # type: ignore[attr-defined]
                self.save(trainer)  # type: ignore[arg-type]
            if trainer.global_step == step + 2:  # type: ignore[attr-defined]
                raise Killed

        patch.setattr(resume.Resume, "on_train_batch_end", save_then_die)
        with pytest.raises(Killed):
            run(recipe(method), tiny_data, tmp_path / "killed")
    assert not (tmp_path / "killed" / "encoder.pt").exists()
    resumed = weights(run(recipe(method), tiny_data, tmp_path / "killed"))
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    curves = [pd.read_csv(tmp_path / name / "metrics.csv") for name in ("whole", "killed")]
    pd.testing.assert_frame_equal(*curves)
    assert curves[0]["step"].tolist() == list(range(1, 13 - 2 * METHODS[method].uses_labels))
    whole_events, killed_events = (events(tmp_path / name / "tensorboard") for name in ("whole", "killed"))
    assert whole_events == killed_events and {"loss", "lr", "weight_decay", "knn", "effective_rank"} <= set(
        whole_events
    )
    assert [step for step, _ in killed_events["loss"]] == curves[0]["step"].tolist()
    assert ("momentum" in killed_events) == (METHODS[method].current_momentum is not Method.current_momentum)


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: tag -> (step, value)."""
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@pytest.mark.parametrize("names", [(), ("csv",), ("tensorboard",)])
def test_only_the_loggers_asked_for(names: tuple[str, ...], tiny_data: Splits, tmp_path: Path) -> None:
    run(recipe("mae"), tiny_data, tmp_path / "r", names)
    files = {path.name for path in (tmp_path / "r").glob("[!.]*")}
    places = {"csv": "metrics.csv", "tensorboard": "tensorboard"}
    assert files == {"encoder.pt", "method.pt", *(places[name] for name in names)}


@pytest.mark.parametrize(
    ("names", "message"),
    [(("cvs",), "unknown logger 'cvs'.*csv, tensorboard, wandb"), (("wandb",), "'wandb' needs the package wandb")],
)
def test_wrong_loggers_are_named_at_once(names: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=message):
        pretrain("mae", data="not there", logger=names)
    with pytest.raises(UserError, match=message):
        bench("not there", logger=names)


def test_encoder_file_says_how_it_was_made_and_loads_into_timm(tiny_data: Splits, tmp_path: Path) -> None:
    path = run(recipe("mae"), tiny_data, tmp_path / "r")
    checkpoint = load_encoder(path)
    made = checkpoint.about["pretraining"]
    assert made["images_seen"] == 96 and made["patches_per_image"] == 4 and made["patches_encoded"] == 384
    assert made["flops"] > 0 and made["wall_seconds"] > 0 and made["peak_memory_bytes"] > 1e6
    assert checkpoint.about["recipe"] == recipe("mae").as_dict()
    plain = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, num_classes=0
    ).eval()
    plain.load_state_dict(weights(path), strict=True)
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(plain.forward_features(x)[:, 0], checkpoint.encoder(x).cls)


def test_patches_of_the_momentum_encoder_are_counted_apart(tiny_data: Splits, tmp_path: Path) -> None:
    made = load_encoder(run(recipe("moco_v3"), tiny_data, tmp_path / "r")).about["pretraining"]
    assert made["patches_per_image"] == 32 and made["patches_encoded_without_gradient"] == 32 * made["images_seen"]


def test_teachers_are_trained_first_once_and_told_in_the_file(tiny_data: Splits, tmp_path: Path) -> None:
    made = load_encoder(run(recipe("beit"), tiny_data, tmp_path / "a")).about
    (target,) = made["pretraining"]["teachers"].values()
    assert target["method"] == "dvae" and target["flops"] > 0 and 2 <= target["facts"]["codes_used"] <= 64
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert folders == sorted(["a", target["run"]])
    changed = (tmp_path / target["run"] / "encoder.pt").stat().st_mtime_ns
    run(recipe("beit", seed=1), tiny_data, tmp_path / "b")
    assert (tmp_path / target["run"] / "encoder.pt").stat().st_mtime_ns == changed
    assert recipe("beit").as_dict()["teachers"]["tokenizer"]["settings"]["codebook_size"] == 64
    assert load_encoder(run(recipe("eva"), tiny_data, tmp_path / "c")).about["flags"] == ["labels"]


def test_encoder_files_are_teachers(tiny_data: Splits, tmp_path: Path) -> None:
    first = run(recipe("supervised"), tiny_data, tmp_path / "first")
    second = run(recipe("eva", teacher=f"checkpoint:{first}"), tiny_data, tmp_path / "second")
    about = load_encoder(second).about
    told, name = about["pretraining"]["facts"]["teacher"], tiny_data.train.name
    assert about["flags"] == ["labels"] and about["pretraining"]["teachers"] == {}
    assert told["name"] == f"checkpoint:{first}" and told["source"] == f"encoder of supervised trained on {name}"
    assert told["sha256"] == load_encoder(first).sha256
    (row,) = evaluate(second, evaluations=["knn"], data=tiny_data, out=tmp_path / "rows")
    assert (
        row["pretraining"]["facts"]["teacher"]["name"]
        == row["recipe"]["settings"]["teacher"]
        == "checkpoint:encoder.pt"
    )
    assert str(tmp_path) not in row.path.read_text()
    other = replace(tiny_data, train=replace(tiny_data.train, name="other"))
    third = run(recipe("eva", teacher=f"checkpoint:{first}"), other, tmp_path / "third")
    assert load_encoder(third).about["flags"] == ["external data", "labels"]
    dvae = load_recipe("dvae", tiny_recipe("dvae"), {"backbone": "vit_nano_patch4_16"})
    tokenizer = run(dvae, tiny_data, tmp_path / "dvae")
    beit = run(recipe("beit", tokenizer=f"checkpoint:{tokenizer}"), tiny_data, tmp_path / "beit")
    assert load_encoder(beit).about["pretraining"]["teachers"] == {}
    with pytest.raises(UserError, match=r"no such checkpoint: nowhere\.pt"):
        run(recipe("beit", tokenizer="checkpoint:nowhere.pt"), tiny_data, tmp_path / "none")


def test_a_tokenizer_is_no_encoder_to_judge(tiny_data: Splits, tmp_path: Path) -> None:
    path = run(load_recipe("dvae", tiny_recipe("dvae"), {"backbone": "vit_nano_patch4_16"}), tiny_data, tmp_path)
    with pytest.raises(UserError, match="a Tokenizer has no features"):
        FrozenEncoder(load_encoder(path).encoder)


def test_labels_of_dev_images_stay_unseen(tiny_data: Splits, tmp_path: Path) -> None:
    about = load_encoder(run(recipe("supervised"), tiny_data, tmp_path / "r")).about
    assert about["flags"] == ["labels"] and about["pretraining"]["images"] < len(tiny_data.train)


def test_diverged_loss_is_an_error_and_leaves_no_encoder(tiny_data: Splits, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="smaller base_lr"):
        run(recipe("mae", base_lr=1e30, warmup_epochs=0), tiny_data, tmp_path / "r")
    assert not (tmp_path / "r" / "encoder.pt").exists()


def test_batch_larger_than_the_data(tiny_data: Splits, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size 64 is larger than the 48"):
        run(recipe("mae", batch_size=64), tiny_data, tmp_path / "r")


def test_full_disk_while_saving(tiny_data: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object, file: IO[bytes]) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resume.torch, "save", full)
    monkeypatch.setattr(resume.Resume, "__init__", _eager(resume.Resume.__init__))
    with pytest.raises(RunError, match=r"last\.ckpt: No space left"):
        run(recipe("mae"), tiny_data, tmp_path / "r")
    assert {p.name for p in (tmp_path / "r").iterdir()} == {".lock", "metrics.csv", "tensorboard"}


def _eager(original):  # type: ignore[no-untyped-def]
    def init(self, path, at_least_every=0.0):  # type: ignore[no-untyped-def]
        original(self, path, at_least_every)

    return init


def test_folder_depends_on_recipe_and_images(tiny_data: Splits) -> None:
    one = run_folder(recipe("mae"), tiny_data)
    assert one == run_folder(recipe("mae"), tiny_data) != run_folder(recipe("mae", seed=1), tiny_data)
    assert one.name.startswith("mae-blobs-0-")


def test_collapse_meters() -> None:
    spread = monitor.collapse_meters(torch.randn(512, 16, generator=torch.Generator().manual_seed(0)))
    assert spread["feature_std"] == pytest.approx(1, abs=0.05) and spread["effective_rank"] > 14
    line = monitor.collapse_meters(torch.randn(512, 1) * torch.ones(16))
    assert line["effective_rank"] == pytest.approx(1, abs=0.1)


def test_images_of_several_sizes_train_and_are_monitored(tiny_data: Splits, tmp_path: Path) -> None:
    train = tiny_data.train
    assert train.decoded is not None
    ragged = [image[:, : 16 - i % 3] for i, image in enumerate(train.decoded)]
    packed = replace(train, images=pack(ragged))
    assert packed.decoded is None
    run(recipe("mae"), Splits(packed, tiny_data.test), tmp_path / "r")
    assert pd.read_csv(tmp_path / "r" / "metrics.csv")["knn"].count() == 4


def test_images_without_labels(tiny_data: Splits, tmp_path: Path) -> None:
    """They are trained on like others, but for methods that learn from labels."""
    bare = Splits(
        *(replace(images, classes=(), labels=images.labels * 0) for images in (tiny_data.train, tiny_data.test))
    )
    about = load_encoder(run(recipe("mae"), bare, tmp_path / "mae")).about
    assert about["pretraining"]["flops"] > 0
    with pytest.raises(UserError, match="supervised learns from labels, which these images don't have"):
        run(recipe("supervised"), bare, tmp_path / "supervised")
