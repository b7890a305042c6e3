"""What each component computes on fixed tiny inputs, beside its defaults and its version.

Every number must be the same on AVX2 and AVX-512 and with fused and plain attention, to 1e-4 of the largest in its
list. So there is no draw from a device, everything is in float32, and no answer hangs on a tie.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from lightning import seed_everything
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from tiny import NANO, blobs, tiny_settings
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbones import BACKBONES, build_backbone, family_of, keywords
from ssl_bench.backbones.backbone import Backbone
from ssl_bench.commands.pretrain import build
from ssl_bench.config.method_facts import method_facts
from ssl_bench.config.recipe import FROM_DATA, Recipe, load_recipe
from ssl_bench.data import actions, places, scenes, shapes
from ssl_bench.data.datasets import ImageSet, Splits, hold_out, load
from ssl_bench.data.targets import Search, Searches, Targets
from ssl_bench.evaluations import EVALUATIONS
from ssl_bench.evaluations.evaluator import Data
from ssl_bench.evaluations.frozen_encoder import FrozenEncoder
from ssl_bench.methods import METHODS, TEACHERS
from ssl_bench.methods.method import Method
from ssl_bench.nn.optimizers import Training
from ssl_bench.results.rows.identity import number_identity
from ssl_bench.teachers.clip_tower import build_clip_tower
from ssl_bench.teachers.dalle import Tokenizer
from ssl_bench.teachers.teacher import make_teacher
from ssl_bench.teachers.timm_tower import TimmTower
from ssl_bench.teachers.vqkd import build_vqkd
from ssl_bench.training.trainer import train
from ssl_bench.utils.identity import defaults_of
from ssl_bench.utils.versions import current_version
from ssl_bench.views.make import make_views, view_images
from ssl_bench.views.view import View

Numbers = dict[str, list[float]]
# A name that each family of backbones builds.
NAMES = {
    "vit": NANO,
    "eva02": "eva02_micro_patch8_32",
    "swin": "swin_micro_patch2_window4_32",
    "hiera": "hiera_micro_32",
    "igpt": "igpt_nano_patch4_16",
    "pixels": "pixels_16",
    "timm": "timm:test_resnet_64",
}


@dataclass(frozen=True)
class Golden:
    """One file.

    Attributes:
        component: As ``utils.versions`` names it.
        versions: Of the component, and of those that its numbers go through.
        defaults: Part -> keyword -> default.
        numbers: What it computes; lists that are compared at the scale of their largest number.
        slack: By how much single numbers may differ instead. An accuracy is a count: rounding can turn the one image
            nearest to a boundary, which nothing can exclude where the boundary is trained.
    """

    component: str
    versions: dict[str, int]
    defaults: dict[str, dict[str, Any]]
    numbers: Numbers
    slack: dict[str, float] = dataclasses.field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As the file has it."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def components() -> dict[str, Callable[[], Golden]]:
    """Every component, and what computes its file."""
    found: dict[str, Callable[[], Golden]] = {
        **{f"method {name}": partial(method, name) for name in METHODS | TEACHERS},
        **{f"backbone {family}": partial(backbone, family) for family in BACKBONES},
        **{f"evaluator {name}": partial(evaluator, name) for name in EVALUATIONS},
        "teacher tokenizer": tokenizer,
        "teacher vqkd": vqkd,
        "teacher tower": tower,
        "teacher timm": timm_tower,
        "views": views,
        "training": training,
        "features": features,
        "data shapes": drawn,
        "data images": read,
        "data scenes": drawn_scenes,
        "data clips": drawn_clips,
        "data masks": read_masks,
        "data actions": drawn_actions,
        "data depths": drawn_depths,
        "data places": drawn_places,
    }
    return {name: partial(in_float32, compute) for name, compute in found.items()}


def in_float32(compute: Callable[[], Golden]) -> Golden:
    """Compute a file in float32, also on a processor that would take bf16."""
    with patch.dict(os.environ, {"SSL_BENCH_PRECISION": "32"}):
        return compute()


def versions_of(*names: str) -> dict[str, int]:
    """Today's versions."""
    found = {name: current_version(name) for name in names}
    assert all(found.values()), found
    return {name: version for name, version in found.items() if version}


def summary(values: Tensor, n: int = 8) -> list[float]:
    """Eight numbers in which every value counts, each with another weight: of the size of their root mean square.

    Args:
        values: Any shape, float.
        n: How many.
    """
    flat = values.detach().double().flatten()
    angles = torch.arange(1, n + 1, dtype=torch.float64)[:, None] * (1 + torch.arange(len(flat), dtype=torch.float64))
    return [round(v, 7) for v in ((2 / len(flat)) ** 0.5 * (angles.cos() @ flat)).tolist()]


def plain_defaults(cls: type) -> dict[str, Any]:
    """Of a constructor, without what the data fills in."""
    return {key: value for key, value in defaults_of(cls).items() if key not in FROM_DATA}


def pixels(n: int, side: int = 16, seed: int = 3) -> Tensor:
    """(n, 3, side, side) float32, about normal, without torch's normal distribution."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, side, side, generator=generator) * 4 - 2


# Methods --------------------------------------------------------------------------------------------------------------


def method(name: str) -> Golden:
    """Three steps of training, and the encoder's features after them."""
    cls = (METHODS | TEACHERS)[name]
    recipe = small_recipe(name)
    data = blobs(24, "train", 0)
    model = build(recipe, data.classes)
    for keyword in cls.teachers:
        teacher = recipe.teachers[keyword]
        model.set_teacher(keyword, build(teacher, data.classes).encoder.eval().requires_grad_(False))
    losses: list[float] = three_steps(model, data) if cls.trains else []
    encoder: Any = model.encoder.eval().cpu()
    images = pixels(4, encoder.image_size[0]) if hasattr(encoder, "image_size") else pixels(4).sigmoid()
    with torch.no_grad():
        if hasattr(encoder, "features"):
            numbers = {f"features {p}": summary(f) for p, f in encoder.features(images, encoder.poolings[:2]).items()}
        else:
            numbers = {"code logits": summary(encoder.encoder(images))}
    return Golden(
        f"method {name}",
        versions_of(*recipe.identity(Splits(data, data))["versions"]),
        {
            "settings": plain_defaults(cls),
            "training": dataclasses.asdict(cls.defaults) if cls.trains else {},
            "backbone_options": dict(cls.backbone_options),
        },
        {"losses": losses, **numbers} if losses else numbers,
    )


def small_recipe(name: str) -> Recipe:
    """The method's defaults but for its size and three steps at a rate that moves the weights.

    Adam takes a full step for any gradient far above eps, be it rounding alone: so eps is far above rounding.
    """
    steps = {"epochs": 1, "batch_size": 8, "base_lr": 0.1, "eps": 1e-2, "warmup_epochs": 0, "precision": "32"}
    return load_recipe(name, None, {"backbone": method_facts(name).tiny_backbones[0], **tiny_settings(name), **steps})


def three_steps(model: Method, data: ImageSet) -> list[float]:
    """The losses of the training that the model's ``training_config`` asks for."""
    losses: list[Tensor] = []
    step = model.training_step

    def recorded(batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = step(batch, batch_idx)
        losses.append(loss.detach().clone())
        return loss

    model.training_step = recorded  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        train(model, data, Path(folder), "golden")
    del model.training_step
    return [round(float(loss), 7) for loss in losses]


# Shared engines -------------------------------------------------------------------------------------------------------

CROP = View(16, scale=(0.3, 1.0))
VIEWS = {
    "crop and flip": [CROP],
    "bilinear": [replace(CROP, interpolation="bilinear", flip=0.0)],
    "jitter": [replace(CROP, jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=1.0)],
    "gray, blurred": [replace(CROP, grayscale=0.5, blur=1.0, blur_sigma=(0.5, 2.0))],
    "solarized": [replace(CROP, solarize=0.5)],
    "multi-crop": [replace(CROP, count=2), View(8, scale=(0.05, 0.3), count=3)],
    "the same crop, larger": [CROP, replace(CROP, size=24, same=True, mean=(0, 0, 0), std=(1, 1, 1))],
}


def views() -> Golden:
    """Pixels of each kind of view, cut from a batch and one by one."""
    batch = torch.randint(0, 256, (4, 3, 20, 24), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    batch = F.avg_pool2d(batch.float(), 3, 1, 1).round().to(torch.uint8)  # neighbours alike, as in images
    numbers: Numbers = {}
    for name, wanted in VIEWS.items():
        cut = make_views(batch, wanted, torch.Generator().manual_seed(2))
        numbers[f"{name}, a batch"] = summary(torch.cat([view.flatten() for view in cut]))
        generators = [torch.Generator().manual_seed(i) for i in range(len(batch))]
        single = [view.flatten() for cut in view_images(list(batch), wanted, generators) for view in cut]
        numbers[f"{name}, one by one"] = summary(torch.cat(single))
    defaults = {f.name: f.default for f in dataclasses.fields(View) if f.default is not dataclasses.MISSING}
    return Golden("views", versions_of("views"), {"view": defaults}, numbers)


class Linear(Method):
    """A layer on the mean colour: what the engine does to it, and nothing of a real method."""

    paper, category, uses_labels = "none", "none", True

    def __init__(self, backbone: Backbone, *, num_classes: int) -> None:
        super().__init__(backbone)
        self.backbone = nn.Identity()  # type: ignore[assignment]
        self.head = nn.Linear(3, num_classes)

    @property
    def views(self) -> list[View]:
        """One crop."""
        return [CROP]

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Cross-entropy."""
        assert self.labels is not None
        return {"loss": F.cross_entropy(self.head(views[0].mean((2, 3))), self.labels)}


TRAININGS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adamw, clipped": {"clip_grad": 0.1, "final_weight_decay": 0.4, "warmup_epochs": 0.5, "min_lr": 0.01},
    "adamw, each tensor clipped": {"clip_grad": 0.1, "clip_per_tensor": True, "eps": 1e-3, "betas": (0.5, 0.9)},
    "sgd": {"optimizer": "sgd"},
    "lars": {"optimizer": "lars", "base_lr": 5.0},
}


def training() -> Golden:
    """Losses of a linear layer under each optimiser, schedule and clipping: also what order the images come in."""
    data, numbers = blobs(24, "train", 0), {}
    for name, options in TRAININGS.items():
        seed_everything(0, verbose=False)
        model = Linear(build_backbone(NANO), num_classes=3)
        options = {"base_lr": 1.0, "weight_decay": 0.1, "warmup_epochs": 0, **options}
        model.training_config = Training(epochs=2, batch_size=8, precision="32", **options)
        numbers[name] = three_steps(model, data)
        numbers[f"{name}, weights"] = [round(v, 7) for v in model.head.weight.flatten().tolist()]
    return Golden("training", versions_of("training", "views"), {"training": dataclasses.asdict(Training())}, numbers)


def features() -> Golden:
    """Frozen features: of images of the right size, of larger ones, which are cropped, and of a subset."""
    numbers = {}
    seed_everything(0, verbose=False)
    encoder = FrozenEncoder(build_backbone(NANO), batch_size=5)
    small = blobs(12, "test", 1)
    large = F.interpolate(small.images.float(), (27, 22), mode="nearest").to(torch.uint8)  # type: ignore[union-attr]
    sets = {"right size": small, "cropped": replace(small, images=large, fingerprint="0" * 64)}
    sets["subset"] = small.subset(torch.tensor([7, 2, 3]), "test")
    for name, images in sets.items():
        for pooling, rows in encoder.features(images, ["cls", "mean"]).items():
            numbers[f"{name}, {pooling}"] = summary(rows)
    return Golden("features", versions_of("features", "backbone vit"), {}, numbers)


# Backbones and teachers -----------------------------------------------------------------------------------------------

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "vit": [
        *({"init": init} for init in ("timm", "mae", "moco_v3", "dino", "beit")),
        *({"pos_embed": kind} for kind in ("learned", "sincos_yx", "none")),
        *({"relative_positions": kind, "layer_scale": 0.1} for kind in ("shared", "per_block")),
        {"registers": 2, "num_heads": 3},
    ],
    "eva02": [{"sub_norm": True}, {"rope_grid": 7}],
    "hiera": [{"init": "mae"}, {"pooled_stages": 1}],
    "igpt": [{"objective": "bert"}],
}


def backbone(family: str) -> Golden:
    """Features at the initial weights of each option, of masked, kept and swapped patches, and at another size."""
    cls, name = BACKBONES[family], NAMES[family]
    assert family_of(name) is cls
    numbers: Numbers = {}
    for options in [{}, *OPTIONS.get(family, [])]:
        seed_everything(0, verbose=False)
        network = build_backbone(name, **options).eval()
        title = ", ".join(f"{key} {value}" for key, value in options.items()) or "defaults"
        with torch.no_grad():
            for pooling, rows in network.features(pixels(3, network.image_size[0]), network.poolings[:4]).items():
                numbers[f"{title}: {pooling}"] = summary(rows)
    seed_everything(0, verbose=False)
    masked = {"mask_token": True} if "mask_token" in keywords(cls) else {}
    network = build_backbone(name, **masked).eval()
    images = pixels(2, network.image_size[0])
    cells = math.prod(network.mask_grid)
    order = torch.arange(cells).flip(0).repeat(2, 1)
    asked = {
        "mask": (network.can_mask, torch.arange(cells).repeat(2, 1) % 3 == 0),
        "keep": (network.can_keep, order[:, : cells // 2]),
        "swap": (network.can_swap, order),
    }
    with torch.no_grad():
        for what, (able, value) in asked.items():
            if able:
                numbers[what] = summary(network(images, **{what: value}).patches)
        if network.multi_crop and network.can_train:
            numbers["another size"] = summary(network(F.avg_pool2d(images, 2)).patches)
    defaults = {"options": plain_defaults(cls)}
    return Golden(f"backbone {family}", versions_of(f"backbone {family}"), defaults, numbers)


def tokenizer() -> Golden:
    """DALL-E's network: code logits, and the image of codes."""
    seed_everything(0, verbose=False)
    network = Tokenizer(codebook_size=16, width=8, blocks=1, stride=4).eval()
    with torch.no_grad():
        images = pixels(2).sigmoid()
        codes = torch.arange(32).view(2, 4, 4) % 16
        numbers = {"logits": summary(network.encoder(images)), "decoded": summary(network.decode(codes))}
    return Golden(
        "teacher tokenizer", versions_of("teacher tokenizer"), {"options": plain_defaults(Tokenizer)}, numbers
    )


def vqkd() -> Golden:
    """What VQ-KD's tokenizer rounds to codes, and a codebook after k-means and a step."""
    seed_everything(0, verbose=False)
    network = build_vqkd(f"vqkd_{NANO}", codebook_size=6, code_dim=4).eval()
    with torch.no_grad():
        z = network.project(pixels(2))
        spread = F.normalize(pixels(4).flatten().view(-1, 4), dim=1)
        network.quantize.start(spread, torch.arange(len(spread)) / len(spread))
        network.quantize.follow(spread[::2], network.quantize.nearest(spread[::2]))
    numbers = {"vectors": summary(z), "codebook": summary(network.quantize.weight)}
    return Golden("teacher vqkd", versions_of("teacher vqkd", "backbone vit"), {}, numbers)


def tower() -> Golden:
    """Tokens of the suite's CLIP as a teacher."""
    seed_everything(0, verbose=False)
    network = build_clip_tower(f"clip_{NANO}", out_dim=6).eval()
    teacher = make_teacher("clip", network.backbone.grid, network)
    numbers = {"patches": summary(teacher.patches(pixels(2)))}
    return Golden("teacher tower", versions_of("teacher tower", "backbone vit"), {}, numbers)


def timm_tower() -> Golden:
    """Tokens of a tower of timm at its own size and at another."""
    numbers = {}
    for grid in ((4, 4), (6, 6), (3, 5)):
        seed_everything(0, verbose=False)
        model = VisionTransformer(16, 4, num_classes=6, embed_dim=24, depth=2, num_heads=2, global_pool="token")
        nn.init.trunc_normal_(model.pos_embed, std=0.5)
        model.pretrained_cfg = {"architecture": "vit_nano_patch4_clip_16", "input_size": (3, 16, 16)}
        tokens = TimmTower(model.eval(), grid, "timm:nano")(pixels(2, 24)[:, :, : 4 * grid[0], : 4 * grid[1]])
        numbers[f"patches, {grid[0]} x {grid[1]}"] = summary(tokens.patches)
    return Golden("teacher timm", versions_of("teacher timm"), {}, numbers)


# Data -----------------------------------------------------------------------------------------------------------------


def drawn() -> Golden:
    """The fingerprint of drawn images, and what they and their factors hold."""
    found = shapes.draw(60, seed=0)
    numbers = {"pixels": summary(found.images.float()), "labels": summary(found.labels)}
    numbers["masks"] = summary(found.masks.float())
    numbers |= {name: summary(values) for name, values in found.factors.items()}
    return Golden("data shapes", versions_of("data shapes"), {"draw": plain_defaults(shapes.draw)}, numbers)


def drawn_scenes() -> Golden:
    """Drawn scenes and what is where in them."""
    found = scenes.draw_objects(20, seed=0)
    numbers = {"pixels": summary(found.images.float()), "masks": summary(found.masks.float())}
    numbers["instances"] = summary(found.instances.float())
    defaults = {"draw_objects": plain_defaults(scenes.draw_objects)}
    return Golden("data scenes", versions_of("data scenes"), defaults, numbers)


def drawn_clips() -> Golden:
    """Drawn clips and their objects."""
    found = scenes.draw_clips(3, size=32, seed=0)
    numbers = {"pixels": summary(found.images.float()), "instances": summary(found.instances.float())}
    return Golden("data clips", versions_of("data clips"), {"draw_clips": plain_defaults(scenes.draw_clips)}, numbers)


def drawn_actions() -> Golden:
    """Drawn motions."""
    found = actions.draw_actions(12, size=32, seed=0)
    numbers = {"pixels": summary(found.images.float()), "labels": summary(found.labels.float())}
    numbers["instances"] = summary(found.instances.float())
    return Golden(
        "data actions", versions_of("data actions"), {"draw_actions": plain_defaults(actions.draw_actions)}, numbers
    )


def drawn_depths() -> Golden:
    """Drawn distances."""
    found = actions.draw_depths(20, size=32, seed=0)
    numbers = {"pixels": summary(found.images.float()), "depths": summary(found.depths)}
    return Golden(
        "data depths", versions_of("data depths"), {"draw_depths": plain_defaults(actions.draw_depths)}, numbers
    )


def drawn_places() -> Golden:
    """Drawn places, and what their views are."""
    found = places.draw_places(12, size=32, seed=0)
    numbers = {"database": summary(found.database.float()), "queries": summary(found.queries.float())}
    return Golden(
        "data places", versions_of("data places"), {"draw_places": plain_defaults(places.draw_places)}, numbers
    )


def read_masks() -> Golden:
    """Masks of the layouts, with the numbers of their files looked up."""
    numbers = {}
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, {"SSL_BENCH_DATA": folder}):
        home = Path(folder) / "ADEChallengeData2016"
        ramp = torch.arange(12 * 14, dtype=torch.uint8).view(12, 14)
        for split in ("training", "validation"):
            for kind, array in (("images", ramp.expand(3, 12, 14).permute(1, 2, 0)), ("annotations", ramp % 151)):
                place = home / kind / split
                place.mkdir(parents=True)
                # A JPEG of one colour is the same with any decoder.
                array = torch.full_like(array, 60) if kind == "images" else array
                Image.fromarray(array.numpy()).save(place / f"0.{'jpg' if kind == 'images' else 'png'}")
        train = load("ade20k").train
        assert train.targets is not None
        numbers = {"pixels": summary(train.images[0].float()), "mask": summary(train.targets.mask(0).float())}
    return Golden("data masks", versions_of("data masks"), {}, numbers)


def read() -> Golden:
    """Pixels of files of several kinds, and which images our own splits hold out."""
    numbers = {}
    with tempfile.TemporaryDirectory() as folder:
        generator = torch.Generator().manual_seed(0)
        for i in range(40):
            values = torch.randint(0, 256, (5, 4, 3), generator=generator, dtype=torch.uint8)
            picture = Image.fromarray(values.numpy()).resize((14, 12), Image.Resampling.BILINEAR)
            picture = picture.convert(("RGB", "L", "RGBA", "P")[i % 4])
            place = Path(folder) / str(i % 3)
            place.mkdir(exist_ok=True)
            picture.save(place / f"{i:02}.png")
        splits = load(f"folder:{folder}")
        fit, dev = hold_out(splits.train)
        for name, images in {"train": splits.train, "test": splits.test, "fit": fit, "dev": dev}.items():
            numbers[name] = summary(torch.stack([images.images[i] for i in range(len(images))]).float())
    return Golden("data images", versions_of("data images"), {"hold_out": plain_defaults(hold_out)}, numbers)


# Evaluators -----------------------------------------------------------------------------------------------------------

BRIGHTNESS = (12, 40)  # levels
SMALL: dict[str, dict[str, Any]] = {
    "copy-detection": {"images": 20, "whitening": 60},
    "depth-linear": {"steps": 12, "warmup": 2, "batch_size": 4, "crop": (16, 16), "bins": 8, "border": (0, 0, 0, 0)},
    "clustering": {"restarts": 2, "dev_restarts": 1},
    "detection": {
        **{"steps": 3, "warmup": 0, "batch_size": 4, "lr": 0.01, "short_side": 16, "long_side": 16, "channels": 8},
        **{"hidden": 16, "mask_layers": 1, "proposals": 20, "sampled": 8},
    },
    "landmarks": {"side": 12, "kind": "cls+gem"},
    "multilabel": {"C": (1e-3, 1e-1)},
    "fewshot": {"shots": (1, 5), "episodes": 20, "dev_episodes": 4, "ways": 3},
    "finetune": {"epochs": 2, "batch_size": 24, "base_lr": 0.1, "warmup_epochs": 0.5, "randaugment": "", "mixup": 0.2},
    "knn": {"k": (1, 5, 20)},
    "linear": {"min_steps": 40, "base_lr": (1e-3, 1e-2, 1e-1), "batch_size": 64},
    "logistic": {"C": (1e-4, 1e-2, 1.0)},
    "lowshot": {"fractions": (0.1, 0.3), "draws": 2, "C": (1e-3, 1e-1)},
    "patch-linear": {"C": (1e-3, 1e-1), "patches": 2000},
    "probe": {"epochs": 2, "batch_size": 64, "base_lr": (1.0, 10.0)},
    "robustness": {"corruptions": ("gaussian_noise", "contrast"), "severities": (1, 3), "images": 60, "C": (1e-2, 1.0)},
    "segmentation-finetune": {
        **{"steps": 4, "warmup": 1, "batch_size": 4, "crop": 16, "stride": 12, "channels": 8, "drop_path": 0.0},
    },
    "segmentation-knn": {"memory": 1000},
    "segmentation-linear": {"steps": 20, "warmup": 5, "batch_size": 4, "crop": 16, "stride": 12, "lr": 0.01},
    "video-linear": {"frames": 4, "C": (1e-3, 1e-1)},
    "vos": {"frames": 3, "radius": 1},
}
FLIPPED = 0.1  # points that a few pixels at a boundary between two classes make of an IoU


def evaluator(name: str) -> Golden:
    """Every metric and choice on blurred blobs, seen by a network at initial weights."""
    cls: Any = EVALUATIONS[name]
    made = cls(**SMALL.get(name, {}))
    seed_everything(0, verbose=False)
    encoder = FrozenEncoder(build_backbone(NANO))
    data = hard_blobs()
    if name == "video-linear":  # clips of several classes
        data = Data(*(of_five(images) for images in (data.train, data.fit, data.dev, data.test)))
    with tempfile.TemporaryDirectory() as folder:
        encoder.folder = Path(folder)
        result = made.run(encoder, data)
    numbers = {metric: [round(found.value, 6)] for metric, found in result.metrics.items()}
    counts = {name: 100 / found.n for name, found in result.metrics.items() if is_count(found.value * found.n / 100)}
    if cls.task != "classification":
        counts = dict.fromkeys(numbers, FLIPPED)
    identity = number_identity({}, name, made, Splits(data.train, data.test))
    return Golden(
        f"evaluator {name}",
        versions_of(*identity["evaluation"]["versions"], "backbone vit"),
        {"settings": plain_defaults(cls)},
        {**numbers, **{f"chosen {key}": value for key, value in chosen(result.chosen)}},
        counts,
    )


def of_five(images: ImageSet) -> ImageSet:
    """Every five images a clip, whose class is that of the first."""
    assert images.targets is not None
    return replace(images, targets=replace(images.targets, clips=torch.arange(len(images)) // 5))


def is_count(value: float) -> bool:
    """Whether a number of images is whole: that of a mean over draws seldom is."""
    return abs(value - round(value)) < 1e-3


def chosen(value: Any, key: str = "") -> Iterator[tuple[str, list[float]]]:
    """The numbers in what an evaluator selected, by path."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from chosen(item, f"{key} {name}".strip())
    elif isinstance(value, bool | int | float) and math.isfinite(value):
        yield key, [round(float(value), 6)]


@cache
def hard_blobs() -> Data:
    """216, 24 and 120 noisy images of six classes, of which a good half is told apart: a bright or less bright square
    of one of three colours. Its place is a factor."""
    sets = []
    for n, split, seed in ((240, "train", 0), (120, "test", 1)):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 100, (n, 3, 16, 16), generator=generator, dtype=torch.uint8)
        rows, columns = torch.randint(0, 9, (2, n), generator=generator)
        labels = torch.arange(n) % 6
        for i, (row, column, label) in enumerate(zip(rows, columns, labels, strict=True)):
            images[i, label % 3, row : row + 8, column : column + 8] += BRIGHTNESS[label // 3]
        names = tuple("abcdef")
        masks = torch.zeros(n, 16, 16, dtype=torch.uint8)
        for i, (row, column, label) in enumerate(zip(rows, columns, labels, strict=True)):
            masks[i, row : row + 8, column : column + 8] = 1 + label
        depths = 5.0 - masks.float() / 2
        places = [np.flatnonzero(labels.numpy()[:60] == (k + shift) % 6) for shift in (0, 1, 2) for k in range(6)]
        searches = Searches(Search(*(places[6 * part + int(k)][:5] for part in range(3))) for k in labels)
        maps = {"depths": depths, "searches": searches}
        targets = Targets(("none", *names), masks, masks.sign(), torch.arange(n) // 12, **maps)
        factors = {"row": rows // 3}
        sets.append(ImageSet("blobs", split, labels, names, f"{seed:064x}", images, factors, targets=targets))
    train, test = sets
    fit, dev = hold_out(train)
    return Data(train, fit, dev, test)
