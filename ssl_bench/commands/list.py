"""What can be asked for by name: the content of ``ssl-bench list``."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path
from typing import Any


def catalogue(what: str, *, settings: bool = False) -> dict[str, dict[str, Any]]:
    """Names with what is worth knowing about each, JSON-able.

    Args:
        what: methods, evaluations, datasets, backbones, suites, suite-keys or tables. Only settings need torch.
        settings: With every keyword of the evaluations.
    """
    rows: dict[str, dict[str, Any]] = {}
    if what == "methods":
        from ssl_bench.config.method_facts import method_facts
        from ssl_bench.utils.shipped import recipe_names
        from ssl_bench.utils.versions import registered, stated

        for name in registered("method"):
            category, paper = (stated(f"method {name}", key) for key in ("category", "paper"))
            rows[name] = {"category": category, "paper": paper, "recipes": recipe_names(name)}
            if backbones := method_facts(name).backbones:
                rows[name]["backbones"] = dict(backbones)
    elif what == "datasets":
        from ssl_bench.data.names import DATASETS

        rows = {name: {"description": text} for name, text in DATASETS.items()}
    elif what == "backbones":
        from ssl_bench.utils.versions import registered, returned

        for family in registered("backbone"):
            for pattern, facts in returned(f"backbone {family}", "patterns").items():
                rows[pattern] = {"family": family, **facts}
    elif what == "evaluations":
        from ssl_bench.config.parsing import read_yaml
        from ssl_bench.utils.shipped import shipped
        from ssl_bench.utils.versions import current_version

        for path in sorted(shipped("evaluations").glob("*.yaml")):
            version = current_version(f"evaluator {read_yaml(path)['evaluation']}")
            rows[path.stem] = {"description": first_sentence(path.read_text()), "version": version}
            if settings:
                from ssl_bench.config.protocol import load_evaluator

                rows[path.stem]["settings"] = load_evaluator(path.stem).settings()
    elif what == "suite-keys":
        rows = suite_keys()
    elif what == "tables":
        from ssl_bench.results.papers.published import published
        from ssl_bench.results.papers.table_spec import read_definition, table_names

        for name in table_names():
            table = read_definition(name)
            found = [table.number(row, column, published()) for row in table.rows for column in table.columns]
            count = sum(number is not None for number in found)
            rows[name] = {"description": table.title, "rows": len(table.rows), "numbers": count}
    else:
        from ssl_bench.config.parsing import read_yaml
        from ssl_bench.utils.shipped import shipped

        for path in sorted(shipped("results").glob("*/suite.yaml")):
            suite = read_yaml(path)
            said = {"data": suite["data"], "backbone": suite.get("backbone", "each recipe's own")}
            rows[suite["name"]] = {"description": suite["description"], **said}
    return rows


def suite_keys() -> dict[str, dict[str, Any]]:
    """What a suite's file may hold, as the class of suites documents it; read from its source, which needs torch."""
    import docstring_parser

    source = ast.parse((Path(__file__).parents[1] / "config" / "suite.py").read_text())
    suite = next(each for each in source.body if isinstance(each, ast.ClassDef) and each.name == "Suite")
    types = {
        field.target.id: ast.unparse(field.annotation)
        for field in suite.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }
    about = docstring_parser.parse(ast.get_docstring(suite) or "").params
    return {
        key.arg_name: {"type": types[key.arg_name], "description": re.sub(r"\s+", " ", key.description or "")}
        for key in about
    }


def first_sentence(text: str) -> str:
    """What the comment at the top of a file begins with, without what stands in brackets behind it.

    Example:
        >>> first_sentence("# Linear probe of BEiT (Bao et al.,\\n# ICLR 2022): a head\\n#   ssl-bench\\nepochs: 50")
        'Linear probe of BEiT'
    """
    comment = itertools.takewhile(lambda line: re.match(r"# ?\S", line), text.splitlines())
    return re.split(r" \(|(?<!al)\.( |$)|[;:] [A-Z]|;", " ".join(line.removeprefix("# ") for line in comment))[0]
