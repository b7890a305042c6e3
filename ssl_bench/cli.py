"""The command line: parse, call one function, print."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Sequence
from typing import Any

from ssl_bench.arguments import make_parser
from ssl_bench.utils.errors import RunError, Stopped, UserError, first_line
from ssl_bench.utils.memory import keep_freed_memory
from ssl_bench.utils.output import Patient
from ssl_bench.utils.references import external_line

# Nothing heavy is imported up here: `ssl-bench --help` prints at once.


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Status 0: done; 1: something asked for failed; 2: the request is wrong; 128 + N: by signal N."""
    output: Any = Patient(sys.stdout)
    with contextlib.redirect_stdout(output):
        try:
            return _run(argv)
        finally:
            output.flush()


def _run(argv: Sequence[str] | None) -> int:
    keep_freed_memory()
    try:
        arguments = make_parser().parse_args(argv)
        return int(RUNS[arguments.command](arguments) or 0)
    except UserError as error:
        return _say(f"error: {error}", 2)
    except RunError as error:
        return _say(f"failed: {error}", 1)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not break the clean-up
        return _say(
            "interrupted: finished rows and the last checkpoint are kept; the same command goes on from there", 1
        )
    except Stopped as stop:
        return _say(f"stopped by {stop.name}: the training is saved; the same command goes on from there", stop.status)
    except OSError as error:
        return _say(f"failed: {error.filename or 'the system'}: {error.strerror or error}", 1)
    except Exception as error:  # of the file of a user: where it is; of ours: whole
        if not (place := external_line(error)):
            raise
        return _say(f"failed: {place}: {type(error).__name__}: {first_line(error)}", 1)


def _say(line: str, status: int) -> int:
    from ssl_bench.results.text import plain  # names of files in errors may be other people's

    print("ssl-bench: " + plain(line), file=sys.stderr)
    return status


def run_list(a: argparse.Namespace) -> None:
    """``ssl-bench list``."""
    from ssl_bench.commands.list import catalogue

    rows = catalogue(a.what, settings=a.json)
    if a.json:
        print(json.dumps(rows, indent=1))
        return
    width = max(map(len, rows), default=0)
    for name, values in rows.items():
        said = (v if k == "description" else f"{k}: {_plain(v)}" for k, v in values.items() if k != "settings")
        print(f"{name:{width}}  " + "; ".join(said))


def run_pretrain(a: argparse.Namespace) -> None:
    """``ssl-bench pretrain``."""
    if a.keys:
        from ssl_bench.backbones import EXAMPLE, family_of, named_backbone
        from ssl_bench.config.recipe import recipe_parser, resolve_method

        parser = recipe_parser(resolve_method(a.method)[1], family_of(named_backbone(a.backbone or EXAMPLE)))
        print(parser.format_help().split("\n\n", 1)[1])
        return
    from ssl_bench.commands.pretrain import pretrain
    from ssl_bench.config.parsing import parse_overrides
    from ssl_bench.utils.distributed import is_first

    options = _options(a, "method", "set", "keys")
    target = pretrain(a.method, overrides=parse_overrides(a.set), **options)
    if is_first():
        print(target)


def run_tune(a: argparse.Namespace) -> None:
    """``ssl-bench tune``."""
    from ssl_bench.commands.tune import tune
    from ssl_bench.config.parsing import parse_overrides

    print(tune(a.method, space=parse_overrides(a.set), **_options(a, "method", "set")))


def run_speed(a: argparse.Namespace) -> None:
    """``ssl-bench speed``."""
    from ssl_bench.commands.speed import speed
    from ssl_bench.config.parsing import parse_overrides

    options = _options(a, "method", "set", "against", "json")
    speed(a.method, overrides=parse_overrides(a.set), against=parse_overrides(a.against), as_json=a.json, **options)


def run_evaluate(a: argparse.Namespace) -> None:
    """``ssl-bench evaluate``."""
    from ssl_bench.commands.evaluate import evaluate

    rows = evaluate(a.checkpoint, **_options(a, "checkpoint"))
    for row in rows:
        metric = row["metrics"][row["headline"]]
        found = f"{metric['value']:.2f} ({metric['low']:.2f} to {metric['high']:.2f}, n = {metric['n']:,})"
        print(f"{row['evaluation']['name']:10} {row['headline']} {found}  {row.path}")


def run_bench(a: argparse.Namespace) -> int:
    """``ssl-bench bench``."""
    from ssl_bench.commands.bench import bench
    from ssl_bench.config.parsing import parse_overrides
    from ssl_bench.launch.slurm import Cluster

    cluster = Cluster(a.partition, a.time, a.gpus)
    options = _options(a, "suite", "set", "partition", "time", "gpus")
    failed = bench(a.suite, overrides=parse_overrides(a.set) or None, cluster=cluster, **options)
    for line in failed:
        _say(f"failed: {line}", 1)
    return 1 if failed else 0


def run_table(a: argparse.Namespace) -> None:
    """``ssl-bench table``."""
    from ssl_bench.commands.table import table

    table(a.name, rows=a.rows, formats=a.format, out=a.out)


def run_reproduce(a: argparse.Namespace) -> int:
    """``ssl-bench reproduce``."""
    from ssl_bench.commands.reproduce import reproduce

    return 1 if reproduce(a.name, **_options(a, "name")) else 0


def run_convert(a: argparse.Namespace) -> None:
    """``ssl-bench convert``."""
    from ssl_bench.commands.convert import convert

    print(convert(**_options(a)))


def run_embed(a: argparse.Namespace) -> None:
    """``ssl-bench embed``."""
    from ssl_bench.commands.embed import embed

    print(embed(a.encoder, a.data, **_options(a, "encoder", "data")))


def run_export(a: argparse.Namespace) -> None:
    """``ssl-bench export``."""
    from ssl_bench.commands.export import export

    print(export(a.encoder, **_options(a, "encoder")))


def run_show(a: argparse.Namespace) -> None:
    """``ssl-bench show``."""
    from ssl_bench.commands.show import show

    print(show(**_options(a)))


def run_leaderboard(a: argparse.Namespace) -> None:
    """``ssl-bench leaderboard``."""
    from ssl_bench.commands.leaderboard import leaderboard
    from ssl_bench.results.leaderboard.selection import Selection

    selection = Selection(tuple(a.methods), tuple(a.evaluations), tuple(a.categories), a.max_flops, a.max_images)
    leaderboard(
        a.folder, formats=a.format, sort=a.sort, selection=selection, out=a.out, figures=a.figures, runs=a.runs,
        explain=a.explain,
    )  # fmt: skip


def run_compare(a: argparse.Namespace) -> None:
    """``ssl-bench compare``."""
    from ssl_bench.commands.compare import compare

    compare(a.a, a.b, rows=a.rows, data=a.data)


def run_claims(a: argparse.Namespace) -> None:
    """``ssl-bench claims``."""
    from ssl_bench.commands.claims import claims

    claims(a.folder, file=a.file, out=a.out)


def run_check(a: argparse.Namespace) -> int:
    """``ssl-bench check``."""
    from ssl_bench.commands.check import check

    return 1 if check(a.folder) else 0


def _options(a: argparse.Namespace, *others: str) -> dict[str, Any]:
    """The arguments of a command that are keywords of its function, without those named."""
    return {key: value for key, value in vars(a).items() if key not in ("command", *others)}


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} ({text})" for key, text in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


RUNS = {
    "list": run_list,
    "pretrain": run_pretrain,
    "tune": run_tune,
    "speed": run_speed,
    "evaluate": run_evaluate,
    "bench": run_bench,
    "table": run_table,
    "reproduce": run_reproduce,
    "convert": run_convert,
    "embed": run_embed,
    "export": run_export,
    "show": run_show,
    "leaderboard": run_leaderboard,
    "compare": run_compare,
    "claims": run_claims,
    "check": run_check,
}


if __name__ == "__main__":
    sys.exit(main())
