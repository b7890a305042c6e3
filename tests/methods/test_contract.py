"""What every registered method, and an external one, must do. A new method is tested by being in METHODS."""

from __future__ import annotations

import copy
import inspect
import pickle
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from tiny import NANO
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from ssl_bench.backbones import build_backbone, family_of, options_for
from ssl_bench.config.method_facts import method_facts
from ssl_bench.config.recipe import resolve_method
from ssl_bench.methods import METHODS, TEACHERS
from ssl_bench.methods.method import Method
from ssl_bench.nn.optimizers import clip_each
from ssl_bench.nn.sharding import average_gradients, clip_norm, shard, step_apart, unshard
from ssl_bench.training.compute import count_step
from ssl_bench.training.without_data import without_data
from ssl_bench.utils.distributed import all_mean
from ssl_bench.views.make import make_views

ROOT = Path(__file__).parents[2]
EXTERNAL = f"{ROOT / 'examples' / 'vicreg.py'}:VICReg"
# Run in two processes too; MASKED says which patches of 2 crops x 8 images are masked.
BATCH_NORM = {f"{name} with batch norm": name for name in ("dino", "ibot")}
MASKED = {
    "ibot, one process without a mask": torch.arange(2 * 8 * 16).view(2, 8, 16) % 5
    < 2 * (torch.arange(8) > 3)[:, None],
    "ibot, one masked patch": torch.arange(2 * 8 * 16).view(2, 8, 16) == 7,
    "ibot, no masked patch": torch.zeros(2, 8, 16, dtype=torch.bool),
}
IN_TWO = dict.fromkeys(MASKED, "ibot") | BATCH_NORM
TRAINED = [*(name for name, cls in (METHODS | TEACHERS).items() if cls.trains), EXTERNAL]
# Beside each method on the first of its `tiny_backbones`, "METHOD on BACKBONE" for the others.
CASES = [*TRAINED, *(f"{name} on {other}" for name in TRAINED for other in method_facts(name).tiny_backbones[1:])]
ON_VIT = [name for name in TRAINED if method_facts(name).tiny_backbones[0] == NANO]


def tiny(name: str) -> dict[str, Any]:
    """Small heads, for speed alone."""
    return {"hidden_dim": 16} if name == EXTERNAL else dict(method_facts(name).tiny)


def make(case: str, backbone: str = "", seed: int = 0, **keywords: Any) -> Method:
    torch.manual_seed(seed)
    name, _, other = case.partition(" on ")
    backbone = backbone or other or method_facts(name).tiny_backbones[0]
    cls = resolve_method(name)[1]
    options = options_for(family_of(backbone), cls.backbone_options)
    options |= {"drop_path": keywords.pop("drop_path")} if "drop_path" in keywords else {}
    method = cls(build_backbone(backbone, **options), **{**tiny(name), **keywords})
    for keyword in cls.teachers:
        method.set_teacher(keyword, make(keyword_default(cls, keyword), backbone, seed=5).encoder)
    return method


def keyword_default(cls: type[Method], keyword: str) -> str:
    """The teacher that a method trains when nothing else is asked for."""
    return inspect.signature(cls).parameters[keyword].default.split(":")[0]


def batch(method: Method, n: int = 8, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = max(method.views[0].sides)
    images = torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)
    method.labels = torch.arange(n) % 3
    return make_views(images, method.views, generator)


@pytest.mark.parametrize("name", CASES)
def test_loss_is_a_finite_scalar_and_gradients_reach_what_trains(name: str) -> None:
    method = make(name)
    views = batch(method)
    assert len(views) == sum(view.count for view in method.views)
    loss = method.loss(views)["loss"]
    assert loss.shape == () and torch.isfinite(loss)
    loss.backward()
    assert all(p.grad is None for p in method.parameters() if not p.requires_grad)
    without = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    if name not in ("dvae", "igpt"):  # which have a network of their own, or a head that is zero at first
        first = method.backbone.block_modules()[0]
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in first.parameters())


@pytest.mark.parametrize("name", CASES)
def test_loss_falls_on_a_fixed_batch(name: str) -> None:
    method = make(name, **method_facts(name.partition(" on ")[0]).tiny_fixed_targets)
    views = batch(method)
    optimizer = torch.optim.AdamW(method.param_groups(), lr=3e-3, weight_decay=0.0)
    losses = []
    for _ in range(40):
        torch.manual_seed(0)  # the same masks
        loss = method.loss(views)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", CASES)
def test_same_seed_same_loss(name: str) -> None:
    def once() -> float:
        method = make(name)
        views = batch(method)
        torch.manual_seed(3)
        return method.loss(views)["loss"].item()

    assert once() == once()


@pytest.mark.parametrize("name", [name for name in CASES if name != "dvae"])
def test_encoder_gives_features_that_survive_saving(name: str) -> None:
    method, other = make(name), make(name, seed=1)
    x = torch.randn(4, 3, *method.encoder.image_size)
    features = method.eval().encoder.features(x, ["mean"])["mean"]
    assert features.shape == (4, method.encoder.embed_dim)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    torch.testing.assert_close(other.eval().encoder.features(x, ["mean"])["mean"], features)


@pytest.mark.parametrize("name", CASES)
def test_runs_in_bf16(name: str) -> None:
    method = make(name)
    views = batch(method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method.loss(views)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)


@pytest.mark.parametrize("name", ON_VIT)
@pytest.mark.parametrize("backbone", ["vit_nano_patch8_32", "vit_micro_patch4_16"])
def test_works_with_another_backbone(name: str, backbone: str) -> None:
    method = make(name, backbone)
    assert torch.isfinite(method.loss(batch(method))["loss"])


@pytest.mark.parametrize("name", ON_VIT)
def test_works_on_a_grid_that_is_not_square(name: str) -> None:
    method = make(name, "vit_nano_patch4_16x24")
    views = batch(method)
    assert views[0].shape[-2:] == (16, 24)
    assert torch.isfinite(method.loss(views)["loss"])


@pytest.mark.parametrize("name", CASES)
def test_compute_is_counted_from_shapes(name: str) -> None:
    """On tensors without data, and the same on real ones: FLOPs, and patches with and without gradient."""
    method = make(name)
    assert count_step(without_data(method), 8, 3) == count_step(copy.deepcopy(method), 8, 3)


@pytest.mark.parametrize("name", TRAINED)
def test_method_says_what_it_is(name: str) -> None:
    cls = resolve_method(name)[1]
    kinds = {"contrastive", "self-distillation", "reconstruction", "token prediction", "feature regression"}
    kinds |= {"baseline", "teacher", "tokenizer"}
    assert cls.category in kinds and cls.paper and cls.__doc__ and "Args:" in cls.__doc__


@pytest.mark.parametrize("name", [*METHODS, *TEACHERS])
def test_card_lists_the_deviations(name: str) -> None:
    cls = resolve_method(name)[1]
    card = (ROOT / "methods" / name / "README.md").read_text()
    listed = card.partition("**What differs from the paper.**\n\n- ")[2].partition("\n\n")[0]
    assert tuple(" ".join(line.split()) for line in listed.split("\n- ") if line) == cls.deviations


@pytest.fixture(scope="module")
def two_processes() -> dict[str, Any]:
    """Every method's losses and weights after two steps in two gloo processes, from one pair of processes."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = mp.get_context("fork" if sys.platform == "linux" else "spawn")  # a fork has imported everything
    results = context.SimpleQueue()
    processes = [context.Process(target=_process, args=(rank, port, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found: dict[str, Any] = {}
    while len(found) < 2 * len([*CASES, *IN_TWO]):
        if not results.empty():
            found |= [pickle.loads(results.get())]
        elif not all(process.is_alive() for process in processes):
            break  # whoever is missing fails its own test
        time.sleep(0.02)
    for process in processes:
        process.kill()
    return found


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("name", [*CASES, *IN_TWO])
def test_two_processes_are_one_with_the_joint_batch(name: str, sharded: bool, two_processes: dict[str, Any]) -> None:
    """Weights in both, as DDP has them, and sharded, as FSDP does."""
    losses, weights = _two_steps(name)
    in_two = two_processes[name, sharded]
    assert in_two[0] == pytest.approx(losses, rel=2e-5, abs=1e-5)
    assert in_two[1].keys() == weights.keys()
    for key, value in weights.items():
        torch.testing.assert_close(
            in_two[1][key], value, rtol=1e-6, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )


def _process(rank: int, port: int, results: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for name in [*CASES, *IN_TWO]:
        for sharded in (False, True):
            outcome = _two_steps(name, rank, 2, sharded)
            if rank == 0:
                results.put(pickle.dumps(((name, sharded), outcome)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _two_steps(
    name: str, rank: int = 0, world: int = 1, sharded: bool = False
) -> tuple[list[float], dict[str, Tensor]]:
    """Two SGD steps, the second clipped, on this process's part of a batch of eight; the mean gradients of all."""
    settings = {"batch_norm": True} if name in IN_TWO else {}
    method = make(IN_TWO.get(name, name), drop_path=0.0, **settings)  # every process draws its own drop path
    if name in MASKED:
        method.masks = lambda batch: MASKED[name].chunk(world, dim=1)[rank].flatten(0, 1)  # type: ignore[assignment]
    method.seed = 3
    if sharded:
        shard(method, init_device_mesh("cpu", (world,)), "training_step")
    optimizer = torch.optim.SGD(method.param_groups(), lr=0.01, weight_decay=0.1)
    if sharded:
        step_apart(optimizer)
    losses = []
    for step in range(2):
        method._step, method._draws, method.progress, method.epoch = step, 0, step / 2, float(step)
        views = [view.chunk(world)[rank] for view in batch(method, seed=step)]
        assert method.labels is not None
        loss = method.training_step({"views": views, "labels": method.labels.chunk(world)[rank], "step": step}, 0)
        optimizer.zero_grad()
        loss.backward()
        if sharded:
            average_gradients(method)
        for p in method.parameters() if world > 1 and not sharded else ():
            if p.grad is not None:
                torch.distributed.all_reduce(p.grad)
                p.grad /= world
        method.before_step()
        if step:  # the first one shows the scale of the gradients
            clip_each(method.parameters(), 0.5)
            clip_norm(method.parameters(), 0.8)
            for group in optimizer.param_groups:
                group["lr"] = 0.03
        optimizer.step()
        method.after_step()
        losses.append(all_mean(loss).item())
    unshard(method)
    return losses, {key: value.clone() for key, value in method.state_dict().items()}
