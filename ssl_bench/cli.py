"""The command line: parse, call one function, print."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from ssl_bench.utils.errors import RunError, Stopped, UserError

# Nothing heavy is imported up here: `ssl-bench --help` predictions at once.


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and status 2."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, without the usage."""
        raise UserError(f"{message} (see `{self.prog} --help`)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Status 0: done; 1: something asked for failed; 2: the request is wrong; 128 + N: by signal N."""
    try:
        arguments = make_parser().parse_args(argv)
        return int(arguments.run(arguments) or 0)
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
    except BrokenPipeError:  # the reader of our output has gone, as in `ssl-bench list methods | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _say(f"failed: {error.filename or 'the system'}: {error.strerror or error}", 1)


def _say(line: str, status: int) -> int:
    from ssl_bench.results.text import plain  # names of files in errors may be other people's

    print("ssl-bench: " + plain(line), file=sys.stderr)
    return status


def make_parser() -> Parser:
    """All commands with their arguments."""
    parser = Parser(prog="ssl-bench", description=__import__("ssl_bench").__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    data_help = "shapes, cifar10, folder:PATH, parquet:PATH, ... (see `ssl-bench list datasets`)"
    logger_help = "learning curves: csv, tensorboard, wandb (default: csv,tensorboard)"
    method_help = "a name of `ssl-bench list methods`, package.module:Class, or path/to/file.py:Class"

    sub = command("list", run_list, "Name what can be asked for.")
    sub.add_argument("what", choices=["methods", "evaluations", "datasets", "backbones", "suites", "tables"])
    sub.add_argument("--json", action="store_true", help="as JSON")

    sub = command("pretrain", run_pretrain, "Pre-train one method and write its encoder.")
    sub.add_argument("method", metavar="METHOD", help=method_help)
    sub.add_argument("--recipe", metavar="NAME|FILE", help="a shipped recipe of the method, or a YAML file")
    sub.add_argument("--data", metavar="DATA", help=data_help)
    sub.add_argument("--backbone", metavar="B", help="e.g. vit_small_patch16_224; all: ssl-bench list backbones")
    sub.add_argument("--epochs", type=float, metavar="N", help="epochs of pre-training")
    sub.add_argument("--seed", type=int, metavar="S", help="seed of weights, order, views and masks")
    sub.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="any key of the recipe")
    sub.add_argument("--out", metavar="DIR", help="folder of the run (default: runs/...)")
    sub.add_argument("--skip-unreadable", action="store_true", help="leave unreadable images out and count them")
    sub.add_argument("--logger", type=_names, default=["csv", "tensorboard"], metavar="A,B", help=logger_help)
    sub.add_argument("--keys", action="store_true", help="only print the keys of the method's recipe")

    sub = command("evaluate", run_evaluate, "Evaluate an encoder and write rows.")
    sub.add_argument("checkpoint", metavar="CHECKPOINT", help="encoder.pt of a run, or timm weights with --backbone")
    sub.add_argument("--evaluations", type=_names, default=["knn", "linear"], metavar="A,B", help="protocols")
    sub.add_argument("--data", metavar="DATA", default="shapes", help=data_help)
    sub.add_argument("--backbone", metavar="B", help="which backbone plain timm weights are for")
    sub.add_argument("--out", metavar="DIR", default="results/evaluations", help="folder of the rows")
    sub.add_argument("--skip-unreadable", action="store_true", help="leave unreadable images out and count them")

    sub = command("bench", run_bench, "Pre-train and evaluate everything a suite still misses, then report.")
    sub.add_argument("suite", metavar="SUITE", help="a name of `ssl-bench list suites`, or a YAML file")
    sub.add_argument("--methods", type=_names, metavar="A,B", help=f"instead of the suite's; each {method_help}")
    sub.add_argument("--seeds", type=_seeds, metavar="0,1", help="instead of the suite's")
    sub.add_argument("--data", metavar="DATA", help=f"instead of the suite's: {data_help}")
    sub.add_argument("--out", metavar="DIR", help="folder of the rows (default: results/SUITE)")
    sub.add_argument("--budget", type=float, default=1.0, metavar="X", help="times the epochs of every recipe")
    sub.add_argument("--jobs", type=int, metavar="N", help="runs side by side (default: one a processor, one on a GPU)")
    sub.add_argument("--logger", type=_names, default=["csv", "tensorboard"], metavar="A,B", help=logger_help)
    sub.add_argument("--skip-unreadable", action="store_true", help="leave unreadable images out and count them")

    sub = command("table", run_table, "A paper's table: reported, measured, difference.")
    sub.add_argument("name", metavar="NAME", help="a name of `ssl-bench list tables`, or a YAML file")
    sub.add_argument("--rows", type=_names, metavar="DIR,DIR", help="folders with rows/ (default: results/reproduce)")
    sub.add_argument("--format", type=_names, default=["terminal"], metavar="md,csv,terminal", help="what to show")
    sub.add_argument("--out", metavar="DIR", help="folder to write NAME.md and NAME.csv to")

    sub = command("reproduce", run_reproduce, "Run what a table still misses: plan and cost first.")
    sub.add_argument("name", metavar="NAME", help="a name of `ssl-bench list tables`, or a YAML file")
    sub.add_argument("--dry-run", action="store_true", help="only show the plan")
    sub.add_argument("--out", metavar="DIR", default="results/reproduce", help="folder of the rows")
    sub.add_argument("--checkpoints", metavar="DIR", default="checkpoints", help="folder of the authors' files")
    sub.add_argument("--device", default="h100", metavar="D", help="to estimate hours for: h100, a100, l40, cpu")
    sub.add_argument("--tflops", type=float, metavar="X", help="sustained TFLOPS instead of the device's")
    sub.add_argument("--max-hours", type=float, metavar="H", help="skip runs that would take longer")

    sub = command("convert", run_convert, "Turn a released checkpoint into an encoder file, with a load report.")
    sub.add_argument("source", metavar="OFFICIAL", help="the file as released: .pth, .pt, .pth.tar or .safetensors")
    sub.add_argument("--method", required=True, metavar="M", help=f"the one that trained these weights: {method_help}")
    sub.add_argument("--backbone", required=True, metavar="B", help="which it is, e.g. vit_base_patch16_224")
    sub.add_argument("--out", required=True, metavar="FILE", help="the file to write")
    sub.add_argument("--branch", metavar="NAME", help="another than the paper evaluates, e.g. student")
    sub.add_argument("--num-heads", type=int, metavar="N", help="attention heads, if not those of the paper's recipe")
    sub.add_argument("--pretrained-on", dest="data", default="unknown", metavar="DATA", help="data set, for the rows")
    sub.add_argument("--epochs", type=float, metavar="N", help="epochs of its pre-training, for the rows")
    for key in ("mean", "std"):
        text = f"{key} of its input (0 to 1), if not that of the method's released files"
        sub.add_argument(f"--{key}", nargs=3, type=float, metavar=("R", "G", "B"), help=text)
    sub.add_argument("--allow-partial", action="store_true", help="take weights that don't fill the backbone")
    sub.add_argument("--format", choices=["ssl-bench", "timm"], default="ssl-bench", help="timm: a plain state dict")

    sub = command("show", run_show, "Draw attention maps, reconstructions and nearest neighbours of an encoder.")
    sub.add_argument("checkpoint", metavar="CHECKPOINT", help="encoder.pt of a run, or timm weights with --backbone")
    sub.add_argument("--images", required=True, metavar="DIR|DATA", help="a folder of images, or a data set")
    sub.add_argument("--out", required=True, metavar="FILE.png", help="the picture: .png, .pdf, .svg or .jpg")
    sub.add_argument("--count", type=int, default=6, metavar="N", help="rows of the picture")
    sub.add_argument("--backbone", metavar="B", help="which backbone plain timm weights are for")

    sub = command("leaderboard", run_leaderboard, "Rank the rows of a folder.")
    sub.add_argument("folder", metavar="DIR", help="a folder with rows/")
    sub.add_argument("--format", type=_names, default=["md"], metavar="md,csv,html,latex", help="files to write")
    sub.add_argument("--sort", metavar="EVALUATION", help="evaluation to sort by")
    sub.add_argument("--methods", type=_names, default=[], metavar="A,B", help="only these methods")
    sub.add_argument("--evaluations", type=_names, default=[], metavar="A,B", help="only these evaluations")
    sub.add_argument("--categories", type=_names, default=[], metavar="A,B", help="only these categories")
    sub.add_argument("--max-flops", type=float, metavar="X", help="best of each method at X FLOPs or fewer")
    sub.add_argument("--max-images", type=float, metavar="N", help="best of each method at N images seen or fewer")
    sub.add_argument("--figures", action="store_true", help="draw figures into DIR/figures")
    sub.add_argument("--runs", metavar="DIR", help="folder of runs, for the training curves")

    sub = command("compare", run_compare, "Two rows, or two methods of a folder, side by side.")
    sub.add_argument("a", metavar="A", help="a row file (.json), or a method of --rows")
    sub.add_argument("b", metavar="B", help="likewise")
    sub.add_argument("--rows", metavar="DIR", help="a folder with rows/")
    sub.add_argument("--data", metavar="DATA", help=f"labels for wins and losses by class: {data_help}")

    sub = command("check", run_check, "Whether the rows of a folder, and its leaderboard, are sound.")
    sub.add_argument("folder", metavar="DIR", help="a folder with rows/")
    return parser


def run_list(a: argparse.Namespace) -> None:
    """``ssl-bench list``."""
    from ssl_bench.commands.list import catalogue

    rows = catalogue(a.what)
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
        from ssl_bench.backbones import EXAMPLE, family_of
        from ssl_bench.config.recipe import recipe_parser, resolve_method

        parser = recipe_parser(resolve_method(a.method)[1], family_of(a.backbone or EXAMPLE))
        print(parser.format_help().split("\n\n", 1)[1])
        return
    from ssl_bench.commands.pretrain import pretrain
    from ssl_bench.config.parsing import parse_overrides
    from ssl_bench.utils.distributed import is_first

    options = _options(a, "method", "set", "keys")
    target = pretrain(a.method, overrides=parse_overrides(a.set), **options)
    if is_first():
        print(target)


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

    failed = bench(a.suite, **_options(a, "suite"))
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


def run_show(a: argparse.Namespace) -> None:
    """``ssl-bench show``."""
    from ssl_bench.commands.show import show

    print(show(**_options(a)))


def run_leaderboard(a: argparse.Namespace) -> None:
    """``ssl-bench leaderboard``."""
    from ssl_bench.commands.leaderboard import leaderboard
    from ssl_bench.results.leaderboard.selection import Selection

    selection = Selection(tuple(a.methods), tuple(a.evaluations), tuple(a.categories), a.max_flops, a.max_images)
    leaderboard(a.folder, formats=a.format, sort=a.sort, selection=selection, figures=a.figures, runs=a.runs)


def run_compare(a: argparse.Namespace) -> None:
    """``ssl-bench compare``."""
    from ssl_bench.commands.compare import compare

    compare(a.a, a.b, rows=a.rows, data=a.data)


def run_check(a: argparse.Namespace) -> int:
    """``ssl-bench check``."""
    from ssl_bench.commands.check import check

    return 1 if check(a.folder) else 0


def _options(a: argparse.Namespace, *others: str) -> dict[str, Any]:
    """The arguments of a command that are keywords of its function, without those named."""
    return {key: value for key, value in vars(a).items() if key not in ("run", *others)}


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _seeds(text: str) -> list[int]:
    return [int(seed) for seed in _names(text)]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} ({text})" for key, text in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    sys.exit(main())
