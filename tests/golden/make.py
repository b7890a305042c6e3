"""Golden numbers on disk: ``make golden`` writes what may change, and refuses what needs a new version.

Run from the root of the checkout: PYTHONPATH=tests python -m golden.make [--new] [COMPONENT ...]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from golden.compute import components

FOLDER = Path(__file__).parent
TOLERANCE = 1e-4


def path_of(component: str, folder: Path = FOLDER) -> Path:
    """``tests/golden/method-mae.json``."""
    return folder / f"{component.replace(' ', '-')}.json"


def moved(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs beyond the tolerance, in words: what an unchanged version may not do."""
    return [*_defaults(old["defaults"], new["defaults"]), *_numbers(old["numbers"], new["numbers"], old["slack"])]


def added(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What is new beside what there was: needs no version."""
    found = [
        f"{part}.{key}" for part, has in new["defaults"].items() for key in has if key not in old["defaults"][part]
    ]
    return found + [name for name in new["numbers"] if name not in old["numbers"]]


def risen(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The versions that differ: "method mae 1 -> 2"."""
    names = [name for name, version in new["versions"].items() if old["versions"].get(name, 0) != version]
    return [f"{name} {old['versions'].get(name)} -> {new['versions'][name]}" for name in names]


def complaint(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What must be done about a component; empty where nothing has to."""
    found, up = moved(old, new), risen(old, new)
    if found and not up:
        return (
            f"{new['component']} moved: {'; '.join(found[:3])}{' ...' if len(found) > 3 else ''}. If that is meant, "
            f"raise the version of what was changed ({', '.join(new['versions'])}), then `make golden`"
        )
    if up or found:
        return f"{new['component']}: {', '.join(up)}; `make golden` writes its new numbers"
    if more := added(old, new):
        return f"{new['component']} has {', '.join(more[:3])} besides; `make golden` adds it, no version is needed"
    return ""


def _defaults(old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for part, keys in old.items():
        for key, value in keys.items():
            if key not in new.get(part, {}):
                yield f"its keyword {key} is gone"
            elif new[part][key] != value:
                yield f"the default of {key} went from {value!r} to {new[part][key]!r}"


def _numbers(
    old: Mapping[str, Sequence[float]], new: Mapping[str, Sequence[float]], slack: Mapping[str, float]
) -> Iterator[str]:
    for name, values in old.items():
        if name not in new:
            yield f"its number {name!r} is gone"
        elif len(values) != len(new[name]):
            yield f"{name} went from {len(values)} to {len(new[name])} numbers"
        else:
            allowed = max(TOLERANCE * max(map(abs, values), default=0.0), 1.001 * slack.get(name, 0.0))
            a, b = max(zip(values, new[name], strict=True), key=lambda pair: abs(pair[0] - pair[1]), default=(0.0, 0.0))
            if not abs(a - b) <= allowed:
                yield f"{name} went from {a:.6g} to {b:.6g}"


def write(component: str, new: Mapping[str, Any], folder: Path = FOLDER, *, anyway: bool = False) -> str:
    """Write a file, unless its numbers moved and no version did.

    Args:
        component: Its name.
        new: What it computes now.
        folder: Of the files.
        anyway: Write whatever there was.

    Returns:
        Why not; empty when it is written or was right.
    """
    path = path_of(component, folder)
    old = json.loads(path.read_text()) if path.is_file() else None
    if old is not None and not anyway:
        if moved(old, new) and not risen(old, new):
            return complaint(old, new)
        if not complaint(old, new):
            return ""
    path.write_text(_text(new) + "\n")
    return ""


def _text(value: Any, indent: str = "") -> str:
    """JSON with a line for each keyword and each list."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value)
    inner = indent + " "
    lines = [f"{inner}{json.dumps(key)}: {_text(item, inner)}" for key, item in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 when a file was refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("components", nargs="*", help='for example "method mae"; all when left out')
    parser.add_argument("--new", action="store_true", help="write all anew, whatever moved: before versions count")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    known = components()
    for name in given.components:
        if name not in known:
            parser.error(f"unknown component {name!r}; there are {', '.join(known)}")
    refused = [
        text for name in given.components or known if (text := write(name, known[name]().plain(), anyway=given.new))
    ]
    for text in refused:
        print(text, file=sys.stderr)
    return int(bool(refused))


if __name__ == "__main__":
    sys.exit(main())
