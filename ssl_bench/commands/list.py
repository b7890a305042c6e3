"""What can be asked for by name: the content of ``ssl-bench list``."""

from __future__ import annotations

import itertools
import re
from typing import Any


def catalogue(what: str) -> dict[str, dict[str, Any]]:
    """Names with what is worth knowing about each, JSON-able.

    Args:
        what: methods, evaluations, datasets, backbones, suites or tables. Only what it needs is imported.
    """
    rows: dict[str, dict[str, Any]] = {}
    if what == "methods":
        from ssl_bench.config.method_facts import method_facts
        from ssl_bench.config.recipe import recipe_names
        from ssl_bench.methods import METHODS

        for name, cls in METHODS.items():
            rows[name] = {"category": cls.category, "paper": cls.paper, "recipes": recipe_names(name)}
            if backbones := method_facts(name).backbones:
                rows[name]["backbones"] = dict(backbones)
    elif what == "datasets":
        from ssl_bench.data.names import DATASETS

        rows = {name: {"description": text} for name, text in DATASETS.items()}
    elif what == "backbones":
        from ssl_bench.backbones import patterns

        rows = patterns()
    elif what == "evaluations":
        from ssl_bench.config.protocol import load_evaluator
        from ssl_bench.utils.shipped import shipped

        for path in sorted(shipped("evaluations").glob("*.yaml")):
            evaluator = load_evaluator(path.stem)
            said = {"description": first_sentence(path.read_text()), "version": evaluator.version}
            rows[path.stem] = {**said, "settings": evaluator.settings()}
    elif what == "tables":
        from ssl_bench.commands.table import list_tables

        rows = list_tables()
    else:
        from ssl_bench.config.parsing import read_yaml
        from ssl_bench.utils.shipped import shipped

        for path in sorted(shipped("results").glob("*/suite.yaml")):
            suite = read_yaml(path)
            said = {"data": suite["data"], "backbone": suite.get("backbone", "each recipe's own")}
            rows[suite["name"]] = {"description": suite["description"], **said}
    return rows


def first_sentence(text: str) -> str:
    """What the comment at the top of a file begins with, without what stands in brackets behind it.

    Example:
        >>> first_sentence("# Linear probe of BEiT (Bao et al.,\\n# ICLR 2022): a head\\n#   ssl-bench\\nepochs: 50")
        'Linear probe of BEiT'
    """
    comment = itertools.takewhile(lambda line: re.match(r"# ?\S", line), text.splitlines())
    return re.split(r" \(|(?<!al)\.( |$)|[;:] [A-Z]|;", " ".join(line.removeprefix("# ") for line in comment))[0]
