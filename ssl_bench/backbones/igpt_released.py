"""iGPT's released weights under the names of ``igpt.py``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from ssl_bench.backbones.palette import COLORS

PARTS = {  # of a block: theirs -> ours
    "ln_1": "norm1",
    "ln_2": "norm2",
    "attn.c_attn": "attn.qkv",
    "attn.c_proj": "attn.proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
OTHERS = {"wte": "wte", "wpe": "wpe", "sos": "sos", "ln_f": "norm.weight", "clusters": "palette"}
OTHERS |= {"wtet": "head.weight", "lm_head": "head.weight"}


def released_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """Weights of the authors' TensorFlow model, or of its port in the transformers library, as ``igpt.py`` has them.

    Args:
        content: By name: ``model/h0/attn/q_proj``, each projection (heads, D / heads, D), a matrix ``w`` (inputs,
            outputs); or ``transformer.h.0.attn.c_attn.weight``, matrices (inputs, outputs), the start vector the last
            row of ``wte``. ``palette`` or ``clusters`` is (512, 3), the authors' ``kmeans_centers.npy``. Whatever else
            there is stays as it is.
    """
    found: dict[str, Any] = {}
    for name, value in content.items():
        path = re.sub(r"^(model|transformer)\.|\.(w|g|weight)$", "", str(name).replace("/", "."))
        match = re.fullmatch(r"h\.?(\d+)\.(\S+)", path)
        block, part = (f"blocks.{match[1]}", match[2]) if match else ("", path)
        if block and (part in ("attn.bias", "attn.masked_bias") or (part.endswith("bias") and not value.any())):
            continue  # a constant mask; the port's biases, which are all zero
        if block and part in ("attn.q_proj", "attn.k_proj", "attn.v_proj"):
            if part == "attn.q_proj":
                separate = [content[str(name).replace("q_proj", f"{which}_proj")].flatten(0, 1) for which in "qkv"]
                found[f"{block}.attn.qkv.weight"] = torch.cat(separate)
        elif block:
            ours = f"{block}.{PARTS[part]}.weight" if part in PARTS else name
            found[ours] = value.flatten(0, -2).T if part in PARTS and value.ndim > 1 else value
        elif path == "wte" and len(value) == COLORS + 1:
            found |= {"wte": value[:COLORS], "sos": value[COLORS]}
        else:
            found[OTHERS.get(path, name)] = value
    return found
