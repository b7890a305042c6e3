"""``ssl-bench export``: an encoder as safetensors with timm's keys, ``config.json`` and a model card from its rows."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save

from ssl_bench.checkpoints.encoder_file import Checkpoint, load_encoder
from ssl_bench.results.exchange import eval_results
from ssl_bench.results.rows.row import Row, read_rows
from ssl_bench.results.text import markdown_table, note_markdown, plain
from ssl_bench.utils.errors import RunError, UserError, first_line
from ssl_bench.utils.files import write_atomic

SAME = 1e-4  # largest difference, relative, between the features of timm's model and ours


def export(
    encoder: str | Path,
    *,
    out: str | Path,
    rows: Sequence[str | Path] = (),
    backbone: str | None = None,
    push: str | None = None,
) -> Path:
    """Write an encoder for others: the Python form of ``ssl-bench export``.

    ``config.json`` is timm's where timm's own model, built by it, gives the same features of noise, and
    ``timm.create_model("local-dir:FOLDER")`` then loads the folder; else it holds what ``ssl_bench`` builds the
    backbone from.

    Args:
        encoder: An encoder file.
        out: Folder for ``model.safetensors``, ``config.json`` and ``README.md``.
        rows: Folders with ``rows/``; those of these weights are the numbers of the card, and those of data sets of the
            hub are in ``.eval_results/`` as well (``results.exchange.eval_results``).
        backbone: Which backbone plain timm weights are for.
        push: Repository ORG/NAME on the Hugging Face hub to upload the folder to, by who is logged in there.

    Returns:
        The folder.

    Raises:
        UserError: No such encoder or rows, or no huggingface_hub to push with; nothing has been written.
        RunError: The upload failed.
    """
    if push and importlib.util.find_spec("huggingface_hub") is None:
        raise UserError("--push needs the package huggingface_hub, which is not installed")
    loaded = load_encoder(encoder, backbone)
    found = [row for folder in rows for row in read_rows(folder) if row["weights"]["sha256"] == loaded.sha256]
    if rows and not found:
        raise UserError(f"no row in {', '.join(map(str, rows))} is of the weights of {encoder}")
    weights = {key: value.contiguous() for key, value in loaded.encoder.state_dict().items() if key != "mask_token"}
    config = _timm_config(loaded, weights)
    folder = Path(out)
    write_atomic(folder / "model.safetensors", save(weights, metadata={"format": "pt"}))
    of_ours = {"library": "ssl-bench", "backbone": loaded.backbone, "input": loaded.input}
    write_atomic(folder / "config.json", json.dumps(config or of_ours, indent=1) + "\n")
    write_atomic(folder / "README.md", card(loaded, found, config is not None))
    for place, content in (each for row in found for each in eval_results(row).items()):
        write_atomic(folder / place, content)
    if push:
        from huggingface_hub import HfApi

        try:
            api = HfApi()
            api.create_repo(push, exist_ok=True)
            api.upload_folder(repo_id=push, folder_path=folder)
        except Exception as error:  # not logged in, no network, no such place
            raise RunError(f"{folder} is written, its upload to {push} failed: {first_line(error)}") from error
    return folder


def _timm_config(loaded: Checkpoint, weights: dict[str, torch.Tensor]) -> dict[str, Any] | None:
    """``config.json`` of timm; None where timm has no model that computes the same."""
    import timm

    encoder: Any = loaded.encoder
    name, arguments = _timm_model(encoder)
    if not timm.is_model(name):
        return None
    images = torch.randn(2, 3, *encoder.image_size, generator=torch.Generator().manual_seed(0))
    try:
        model: Any = timm.create_model(name, num_classes=0, **arguments).eval()
        model.load_state_dict(weights)
        with torch.inference_mode():
            theirs = model.forward_features(images)  # class token, registers, patches; of other networks a map
            whole, tokens = encoder.forward_features(images), encoder(images)
        pairs = [(whole, theirs)]
        if encoder.has_cls:
            pairs += [(tokens.cls, theirs[:, 0]), (tokens.patches, theirs[:, -tokens.patches.shape[1] :])]
    except Exception:  # another model than timm's
        return None
    if any(ours.shape != other.shape or (ours - other).norm() > SAME * other.norm() for ours, other in pairs):
        return None
    cfg: dict[str, Any] = {"input_size": [3, *encoder.image_size], "mean": list(encoder.mean), "std": list(encoder.std)}
    cfg |= {"num_classes": 0, "interpolation": "bicubic", "crop_pct": 0.875, "fixed_input_size": True}
    return {"architecture": name, "num_classes": 0, "model_args": arguments, "pretrained_cfg": cfg}


def _timm_model(encoder: Any) -> tuple[str, dict[str, Any]]:
    """The name of timm's class of model and the arguments that make it one of ours; a plain ViT has all of them."""
    if encoder.family != "vit":
        return encoder.name.removeprefix("timm:"), {}
    arguments = {
        "img_size": list(encoder.image_size),
        "patch_size": encoder.cell,
        "embed_dim": encoder.embed_dim,
        "depth": encoder.depth,
        "num_heads": encoder.num_heads,
        "global_pool": "token",
    }
    if (scale := encoder.spec.get("layer_scale")) is not None:
        arguments["init_values"] = scale
    if registers := encoder.spec.get("registers"):
        arguments |= {"reg_tokens": registers, "no_embed_class": True}
    if encoder.spec.get("pos_embed") == "none":
        arguments["pos_embed"] = "none"
    return "vit_base_patch16_224", arguments


def card(loaded: Checkpoint, rows: Sequence[Row], timm: bool) -> str:
    """The model card: how to load it, how it was made, and its numbers as the rows have them."""
    about, made = loaded.about, loaded.about.get("pretraining") or {}
    name = f"{loaded.method} {loaded.backbone['name']}"
    front = {"tags": ["image-feature-extraction", "self-supervised", "ssl-bench"]}
    head = yaml.safe_dump({"library_name": "timm"} | front if timm else front, sort_keys=False)
    load = (
        'model = timm.create_model("local-dir:FOLDER", pretrained=True)  # or hf-hub:ORG/NAME'
        if timm
        else "encoder = ssl_bench.backbones.build_backbone(**config['backbone'])  # of config.json"
    )
    facts = {
        "paper": about.get("paper"),
        "pre-trained on": made.get("data"),
        "epochs": made.get("epochs"),
        "images seen": made.get("images_seen"),
        "FLOPs": made.get("flops"),
        "flags": ", ".join(about.get("flags", [])),
        "input": json.dumps(loaded.input),
        "weights, SHA-256": loaded.sha256,
    }
    lines = [f"- {key}: {note_markdown(str(value))}" for key, value in facts.items() if value not in (None, "")]
    lines += [f"- differs from the paper: {note_markdown(text)}" for text in about.get("deviations", [])]
    text = f"---\n{head}---\n\n# {plain(name)}\n\n```python\n{load}\n```\n\n" + "\n".join(lines) + "\n"
    if rows:
        body = [[row["evaluation"]["name"], row["evaluation"]["data"], *_number(row)] for row in rows]
        header = ["evaluation", "data", "metric", "value", "95 % interval", "test images"]
        text += f"\n{markdown_table(header, body, 3)}\n\n"
        text += "Chosen on images held out of the training set; the test split was used once.\n"
    if about.get("recipe"):
        recipe = yaml.safe_dump(about["recipe"], sort_keys=False)
        text += f"\n## Recipe\n\n```yaml\n{recipe}```\n"
    return text


def _number(row: Row) -> list[str]:
    metric = row["metrics"][row["headline"]]
    return [
        row["headline"],
        f"{metric['value']:.2f}",
        f"{metric['low']:.2f} to {metric['high']:.2f}",
        f"{metric['n']:,}",
    ]
