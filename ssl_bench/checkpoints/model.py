"""Models from outside as encoders: of timm, of torchvision, of a Python file, or any network or function in Python."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import load_state_dict
from torch import Tensor, nn

from ssl_bench.backbones import build_backbone, parse_timm_name
from ssl_bench.backbones.backbone import RGB, Backbone
from ssl_bench.backbones.network import PlainNetwork, checked_features
from ssl_bench.checkpoints.encoder_file import Checkpoint
from ssl_bench.checkpoints.weights import check_weights
from ssl_bench.utils.errors import UserError, first_line, unknown
from ssl_bench.utils.identity import is_external, source_hash
from ssl_bench.utils.references import is_reference, look_up
from ssl_bench.utils.tensor_files import check_parts, check_tensors
from ssl_bench.utils.weights import options_hash, weights_hash

CLASSIFIERS = ("fc", "heads", "head", "classifier")  # where torchvision's models have theirs
LIBRARIES = ("torch", "torchvision", "timm")  # their own source says nothing about a model; its weights and options do
IMAGES = (3, 224, 224)  # of a model of timm whose configuration says nothing else
PROBES = 8  # images whose features stand for what has no weights and no source to look at


class FeatureModel(nn.Module):
    """A function without weights from images to features, as evaluators see an encoder.

    Args:
        function: From (B, 3, H, W) float, normalised by ``mean`` and ``std``, to features (B, D), or to maps
            (B, D, rows, columns), which are averaged.
        name: For rows.
        image_size: Height and width of the images that it gets, pixels.
        mean: Of the images, per channel, on the scale [0, 1].
        std: Per channel, on the same scale.
    """

    poolings = ("features",)

    def __init__(
        self, function: Callable[[Tensor], Tensor], name: str, image_size: tuple[int, int], mean: RGB, std: RGB
    ) -> None:
        super().__init__()
        self.function, self.name, self.image_size, self.mean, self.std = function, name, image_size, mean, std

    def features(self, images: Tensor, poolings: Sequence[str]) -> dict[str, Tensor]:
        """``{"features": (B, D) float32}``.

        Raises:
            UserError: The function returns something else.
        """
        return {"features": checked_features(self.function(images), len(images), self.name).float()}


def is_model(text: str) -> bool:
    """Whether a text names a model, as ``load_model`` takes it, instead of an encoder file."""
    return text.startswith(("timm:", "torchvision:", "hub:")) or is_reference(text)


def load_model(
    reference: str,
    name: str | None = None,
    image_size: int | None = None,
    mean: RGB | None = None,
    std: RGB | None = None,
) -> Checkpoint:
    """The model that a text names, as `as_checkpoint` returns it.

    Args:
        reference: ``timm:NAME[@FILE]``, with timm's weights, which are downloaded, or those of a file;
            ``torchvision:NAME[@FILE]``, likewise; ``hub:ORG/MODEL``, a model of timm on the Hugging Face hub;
            ``file.py:NAME``, a network or a function that builds one.
        name: Name in tables; its own when left out.
        image_size: Pixels of the side of its images, if not its own.
        mean: Of its images, if not its own; with ``std``.
        std: Per channel, on the scale [0, 1].

    Raises:
        UserError: There is no such model, its weights can't be had or don't fill it, or it takes no such images.
    """
    if is_reference(reference):
        own, found = look_up(reference, "model", callable)
        stem = reference.rpartition(":")[0].rpartition("/")[2].removesuffix(".py").rpartition(".")[2]
        network = found if isinstance(found, nn.Module) else _built(found, reference)
        return as_checkpoint(network, name or (own if own != "build" else stem), image_size, mean, std)
    kind, _, rest = reference.partition(":")
    if kind == "hub":
        return as_checkpoint(_of_hub(rest, image_size), name or rest.rpartition("/")[2], image_size, mean, std)
    own, _, file = rest.partition("@")
    if kind == "timm":
        sized = f"{own}_{image_size}" if image_size and parse_timm_name(f"timm:{own}")[1] is None else own
        return as_checkpoint(_of_timm(sized, file), name or own, image_size, mean, std)
    network = _of_torchvision(own, file)
    return as_checkpoint(network, name or own, image_size, mean, std)


def as_checkpoint(
    network: Callable[..., Any],
    name: str | None = None,
    image_size: int | None = None,
    mean: RGB | None = None,
    std: RGB | None = None,
) -> Checkpoint:
    """A network or function as an encoder; what isn't given is taken from its attributes, or is ImageNet's.

    Args:
        network: A ``Backbone``, or as of ``PlainNetwork`` or, without weights, of ``FeatureModel``.
        name: Name in tables; that of its class or function when left out.
        image_size: Pixels of the side of its images: 224 where nothing says it.
        mean: Of its images; with ``std``.
        std: Per channel, on the scale [0, 1].

    Raises:
        UserError: ``mean`` without ``std``, values out of range, or another image size than a backbone has.
    """
    name = name or str(getattr(network, "__name__", type(network).__name__))
    if (mean is None) != (std is None) or (std is not None and min(std) <= 0):
        raise UserError(f"model {name!r}: give both mean and std, each std above 0, or none of them")
    if isinstance(network, Backbone):
        if image_size not in (None, *network.image_size):
            raise UserError(f"model {name!r} is built for {network.image_size[0]} px; build it for {image_size} px")
        encoder: Any = network
        encoder.mean, encoder.std = mean or network.mean, std or network.std
        digest = weights_hash(encoder.state_dict())
    else:
        own = getattr(network, "image_size", 224)
        height, width = (own, own) if isinstance(own, int) else tuple(own)
        size = (image_size, image_size) if image_size else (height, width)
        mean = mean or tuple(getattr(network, "mean", IMAGENET_DEFAULT_MEAN))
        std = std or tuple(getattr(network, "std", IMAGENET_DEFAULT_STD))
        encoder, digest = _plain(network, name, size, mean, std)
        encoder.spec = {"name": name, "options": options_hash(encoder)[:16]}
        encoder.seen = digest  # stands for code that no file holds, where features are kept
    about = {
        "backbone": encoder.spec,
        "flags": ["external weights"],
        "pretraining": {"data": "unknown", "fingerprint": None, "images_seen": None},
    }
    return Checkpoint(encoder.eval(), name, about, digest)


def _plain(network: Callable[..., Any], name: str, size: tuple[int, int], mean: RGB, std: RGB) -> tuple[nn.Module, str]:
    """A network or function that is no backbone as an encoder, and the hash that stands for its weights."""
    made: Any = network if hasattr(network, "__code__") else type(network)  # a function, or a class
    known = made.__module__.partition(".")[0] in LIBRARIES
    try:
        source, weighed = source_hash(made) if is_external(made) and not known else "", isinstance(network, nn.Module)
    except UserError:  # of a notebook or a session, where no file says what it does: its features do
        source, weighed = "", False
    encoder: Any
    if isinstance(network, nn.Module) and any(True for _ in network.parameters()):
        encoder = PlainNetwork(name, network=network, image_size=size, mean=mean, std=std)
    else:
        encoder = FeatureModel(network, name, size, mean, std)
    encoder.source = source
    if weighed:
        return encoder, weights_hash(encoder.state_dict())
    images = torch.rand(PROBES, 3, *size, generator=torch.Generator().manual_seed(0)) * 4 - 2
    with torch.inference_mode():
        found = encoder.eval().features(images, ["features"])["features"]
    return encoder, hashlib.sha256(found.cpu().contiguous().numpy().tobytes()).hexdigest()


def _built(build: Callable[[], Any], reference: str) -> Any:
    try:
        return build()
    except Exception as error:  # whatever a user's function raises
        raise UserError(f"model {reference!r}: building it failed: {type(error).__name__}: {error}") from error


def _of_timm(name: str, file: str) -> Backbone:
    """A model of timm with its weights."""
    encoder: Any = build_backbone(f"timm:{name}")
    config = encoder.model.pretrained_cfg
    model = ".".join(filter(None, [config["architecture"], config.get("tag")]))
    if file:
        classifier: Any = config.get("classifier") or ()
        weights = _read(file, name, [classifier] if isinstance(classifier, str) else classifier)
        check_weights(encoder, weights, Path(file), f"timm:{name}")
    else:
        try:
            size = {"img_size": encoder.image_size} if config.get("fixed_input_size") else {}  # positions are resampled
            weights = timm.create_model(model, pretrained=True, num_classes=0, **size).state_dict()
        except Exception as error:  # no such weights, or no network
            raise UserError(
                f"timm's weights of {model!r} can't be had ({first_line(error)}); name a file: timm:{name}@FILE"
            ) from error
    encoder.load_state_dict(weights)
    return encoder


def _of_hub(name: str, image_size: int | None) -> nn.Module:
    """A model of timm on the Hugging Face hub, without its classifier; its ``config.json`` says its images.

    It is a backbone, as of ``timm:NAME``, unless its file gives options beside the architecture, which no name says.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(f"hub:{name} needs the package huggingface_hub, which is not installed")
    try:
        config, architecture, options = timm.models.load_model_config_from_hf(name)
        height, width = (image_size, image_size) if image_size else config.get("input_size", IMAGES)[1:]
        usual: Any = timm.get_pretrained_cfg(architecture)
        size: dict[str, Any] = (
            {"img_size": (height, width)} if usual.fixed_input_size else {}
        )  # positions are resampled
        network: Any = timm.create_model(f"hf-hub:{name}", pretrained=True, num_classes=0, **size)
    except Exception as error:  # no such model, none of timm, or no network
        raise UserError(f"hub:{name}: no model of timm can be had from the hub ({first_line(error)})") from error
    mean, std = (tuple(network.pretrained_cfg[key]) for key in ("mean", "std"))
    if not set(options or {}) - {"img_size", "num_classes"}:
        sides = f"{height}" if height == width else f"{height}x{width}"
        encoder: Any = build_backbone(f"timm:{architecture}_{sides}")
        encoder.load_state_dict(network.state_dict())
        network = encoder
    network.image_size, network.mean, network.std = (height, width), mean, std
    return network


def _of_torchvision(name: str, file: str) -> nn.Module:
    """A model of torchvision with its weights, without its classifier."""
    from torchvision import models  # slow to import

    if name not in models.list_models(module=models):
        raise unknown("torchvision model", name, models.list_models(module=models))
    try:
        network: Any = models.get_model(name, weights=None if file else "DEFAULT")
    except Exception as error:  # no network
        raise UserError(
            f"torchvision's weights of {name!r} can't be had ({error}); name a file: torchvision:{name}@FILE"
        ) from error
    classifier = next((each for each in CLASSIFIERS if hasattr(network, each)), None)
    if classifier is None:
        raise UserError(f"torchvision:{name}: its classifier is none of {', '.join(CLASSIFIERS)}")
    setattr(network, classifier, nn.Identity())
    if file:
        weights = _read(file, name, [classifier])
        check_weights(network, weights, Path(file), f"torchvision:{name}")
        network.load_state_dict(weights)
    return network


def _read(file: str, name: str, classifiers: Sequence[str]) -> dict[str, Tensor]:
    """The weights of a file without those of its classifiers."""
    path = Path(file)
    if not path.is_file():
        raise UserError(f"no such checkpoint: {file}")
    try:
        if path.suffix != ".safetensors":
            check_parts(path)
        weights = load_state_dict(file, weights_only=True)  # finds the weights in what the file holds
        check_tensors(weights, path)
    except UserError:
        raise
    except Exception as error:  # torch and safetensors raise many kinds for files that are no checkpoint
        raise UserError(f"{file} holds no weights of {name} that can be read safely: {first_line(error)}") from error
    heads = tuple(f"{classifier}." for classifier in classifiers)
    return {key: value for key, value in weights.items() if not key.startswith(heads)}
