"""Whether weights fill a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ssl_bench.utils.errors import UserError


def check_weights(encoder: nn.Module, weights: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Refuse weights that don't fill the encoder completely.

    Raises:
        UserError: Names the file, the backbone, the percentage and the first key at fault.
    """
    own = encoder.state_dict()
    bad = [k for k, v in own.items() if k in weights and weights[k].shape != v.shape]
    missing = [k for k in own if k not in weights]
    unexpected = [k for k in weights if k not in own and not k.startswith("head.")]
    if not (bad or missing or unexpected):
        return
    loaded = 100 * (1 - (len(bad) + len(missing)) / max(1, len(own)))
    first = (
        f"{bad[0]} is {tuple(weights[bad[0]].shape)} instead of {tuple(own[bad[0]].shape)}"
        if bad
        else f"{missing[0]} is missing"
        if missing
        else f"{unexpected[0]} is not part of it"
    )
    raise UserError(
        f"{path} does not fit {name}: {loaded:.0f} % of its tensors match ({len(bad)} of another shape, "
        f"{len(missing)} missing, {len(unexpected)} unexpected); {first}"
    )
