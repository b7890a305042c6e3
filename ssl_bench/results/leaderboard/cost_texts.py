"""What the pre-training of an aggregate took, in words."""

from __future__ import annotations

import numpy as np

from ssl_bench.results.leaderboard.aggregate import Aggregate
from ssl_bench.results.rows.row import Row

SPENT = ("views", "epochs", "patches", "FLOPs", "time", "memory")


def trained(row: Row) -> bool:
    """Whether the encoder was pre-trained here."""
    return bool(row["pretraining"] and row["pretraining"]["images_seen"])


def cost_texts(aggregate: Aggregate) -> list[str]:
    """What the pre-training took, as text, in the order of ``SPENT``."""
    made = [row["pretraining"] for row in aggregate.rows if trained(row)]
    if not made:
        return ["–"] * len(SPENT)
    first, values = made[0], cost_values(aggregate)
    patches = f"{first['patches_per_image']:g}"
    if first["patches_encoded_without_gradient"]:
        patches += f" ({first['patches_encoded_without_gradient'] / first['images_seen']:g})"
    seconds, memory = values["time"], values["memory"]
    return [
        aggregate.first["views"] or "–",
        f"{first['epochs']:g}",
        patches,
        f"{first['flops']:.1e}",
        f"{seconds:.0f} s" if seconds < 6000 else f"{seconds / 3600:.1f} h",
        f"{memory / 1e6:,.0f} MB",
    ]


def cost_values(aggregate: Aggregate) -> dict[str, float]:
    """The numbers behind ``cost_texts``: those of ``SPENT`` but the views; nothing without pre-training."""
    made = [row["pretraining"] for row in aggregate.rows if trained(row)]
    if not made:
        return {}
    first = made[0]
    return {
        "epochs": first["epochs"],
        "patches": first["patches_per_image"],
        "FLOPs": first["flops"],
        "time": float(np.mean([m["wall_seconds"] for m in made])),
        "memory": max(m["peak_memory_bytes"] for m in made),
    }


def teacher_texts(aggregate: Aggregate) -> list[str]:
    """One sentence for each teacher: what it is, what it cost, and how its outputs are used."""
    spent = aggregate.first["pretraining"] or {}
    said = []
    for keyword, teacher in spent.get("teachers", {}).items():
        numbers = {key: value for key, value in teacher["facts"].items() if key != "teacher"}
        texts = [f"{key.replace('_', ' ')} {value:g}" for key, value in numbers.items()]
        if "teacher" in teacher["facts"]:  # a tokenizer that has a teacher itself
            texts.append(f"its teacher {teacher['facts']['teacher']['name']}")
        facts = ", ".join(texts)
        said.append(
            f"{aggregate.label}: {keyword} {teacher['method']}, trained on the same images in "
            f"{teacher['wall_seconds']:.0f} s and {teacher['flops']:.1e} FLOPs, which come on top; {facts}"
        )
    if not said and "teacher" in spent.get("facts", {}):
        about = spent["facts"]["teacher"]
        said.append(f"{aggregate.label}: teacher {about['name']}, {about['source']}")
    return said
