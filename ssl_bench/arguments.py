"""The arguments of every command."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, NoReturn

from ssl_bench.utils.bounds import (
    Between,
    Count,
    Depth,
    Epochs,
    NonNegative,
    Pixels,
    Positive,
    Seed,
    misfit,
    unbound,
)
from ssl_bench.utils.errors import UserError

Jobs = Annotated[int, Between(1, 1024)]  # processes of a machine
Rounds = Annotated[int, Between(1, 1000)]  # of a measurement
Rows = Annotated[int, Between(1, 1000)]  # of a picture


LISTS = ("methods", "evaluations", "datasets", "backbones", "suites", "suite-keys", "tables")


class Help(argparse.HelpFormatter):
    """Help that ends in the default, where there is one and the text doesn't say it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = ",".join(map(str, action.default)) if isinstance(action.default, list) else action.default
        if default in (None, False, "", argparse.SUPPRESS) or "(default" in (action.help or ""):
            return action.help
        return f"{action.help} (default: {str(default).replace('%', '%%')})"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and status 2."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, without the usage."""
        raise UserError(f"{message} (see `{self.prog} --help`)")


def make_parser() -> Parser:
    """All commands with their arguments."""
    parser = Parser(prog="ssl-bench", description=__import__("ssl_bench").__doc__)
    try:
        installed = version("ssl-bench")
    except PackageNotFoundError:
        installed = "not installed"
    parser.add_argument("--version", action="version", version=f"ssl-bench {installed}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, formatter_class=Help)

    data_help = "shapes, cifar10, folder:PATH, path/to/file.py:function, ... (see `ssl-bench list datasets`)"
    logger_help = "learning curves: csv, tensorboard, wandb (default: csv,tensorboard)"
    evaluation_help = "a name of `ssl-bench list evaluations`, a YAML file, or path/to/file.py:Class"
    backbone_help = "a name of `ssl-bench list backbones`, such as vit_small_patch16_224, or path/to/file.py:Class"
    method_help = "a name of `ssl-bench list methods`, package.module:Class, or path/to/file.py:Class"

    sub = command("list", "Name what can be asked for.")
    sub.add_argument("what", choices=LISTS)
    sub.add_argument("--json", action="store_true", help="as JSON")

    sub = command("pretrain", "Pre-train one method and write its encoder.")
    sub.add_argument("method", metavar="METHOD", help=method_help)
    sub.add_argument("--recipe", metavar="NAME|FILE", help="a shipped recipe of the method, or a YAML file")
    sub.add_argument("--data", metavar="DATA", help=data_help)
    sub.add_argument("--backbone", metavar="B", help=backbone_help)
    sub.add_argument("--epochs", type=_number(Epochs), metavar="N", help="epochs of pre-training")
    sub.add_argument("--seed", type=_number(Seed), metavar="S", help="seed of weights, order, views and masks")
    sub.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="any key of the recipe")
    sub.add_argument("--out", metavar="DIR", help="folder of the run (default: runs/...)")
    sub.add_argument("--skip-unreadable", action="store_true", help="leave unreadable images out and count them")
    sub.add_argument("--logger", type=_names, default=["csv", "tensorboard"], metavar="A,B", help=logger_help)
    text = "how several processes share the work: ddp, or fsdp, which shards the weights (default: ddp)"
    sub.add_argument("--strategy", default="ddp", metavar="ddp|fsdp", help=text)
    sub.add_argument("--keys", action="store_true", help="only print the keys of the method's recipe")

    sub = command("tune", "Search keys of a recipe on images held out of the training set (needs optuna).")
    sub.add_argument("method", metavar="METHOD", help=method_help)
    text = "searched: KEY=LOW..HIGH or KEY=A|B|C; KEY=VALUE is the same in all trials"
    sub.add_argument("--set", nargs="+", required=True, metavar="KEY=VALUES", help=text)
    sub.add_argument(
        "--trials", type=int, default=20, metavar="N", help="those of earlier calls included (default: 20)"
    )
    sub.add_argument("--recipe", metavar="NAME|FILE", help="a shipped recipe of the method, or a YAML file")
    sub.add_argument("--data", metavar="DATA", help=data_help)
    sub.add_argument("--backbone", metavar="B", help=backbone_help)
    sub.add_argument("--epochs", type=float, metavar="N", help="epochs of each trial")
    sub.add_argument("--seed", type=int, default=0, metavar="S", help="of the runs and of the search (default: 0)")
    sub.add_argument("--out", metavar="DIR", default="runs/tune", help="folder of the search (default: runs/tune)")
    sub.add_argument("--logger", type=_names, default=["csv", "tensorboard"], metavar="A,B", help=logger_help)

    sub = command("speed", "How fast a method trains on this machine, and where the time goes.")
    sub.add_argument("method", metavar="METHOD", help=method_help)
    sub.add_argument("--recipe", metavar="NAME|FILE", help="a shipped recipe of the method, or a YAML file")
    text = f"synthetic (noise in memory, the default), or {data_help}"
    sub.add_argument("--data", metavar="DATA", default="synthetic", help=text)
    sub.add_argument("--backbone", metavar="B", help=backbone_help)
    sub.add_argument("--batch", type=_number(Count), metavar="N", help="images a step, instead of the recipe's")
    sub.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="any key of the recipe")
    text = "keys in which a second setting differs; it runs in turn with the first"
    sub.add_argument("--against", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=text)
    sub.add_argument("--rounds", type=_number(Rounds), default=5, metavar="N", help="of each setting (default: 5)")
    sub.add_argument("--seconds", type=_number(Positive), default=5.0, metavar="S", help="of a round (default: 5)")
    sub.add_argument("--json", action="store_true", help="as JSON")

    sub = command("evaluate", "Evaluate an encoder and write rows.")
    text = (
        "encoder.pt of a run, timm weights with --backbone, timm:NAME[@FILE], torchvision:NAME[@FILE], "
        "hub:ORG/MODEL (timm's models there) or file.py:NAME"
    )
    sub.add_argument("checkpoint", metavar="MODEL", help=text)
    text = f"each {evaluation_help} (default: knn,linear)"
    sub.add_argument("--evaluations", type=_names, default=["knn", "linear"], metavar="A,B", help=text)
    sub.add_argument("--data", metavar="DATA", default="shapes", help=data_help)
    text = "which backbone plain timm weights are for, or the code of an encoder's: path/to/file.py:Class"
    sub.add_argument("--backbone", metavar="B", help=text)
    sub.add_argument("--name", metavar="NAME", help="of a model, in tables, if not its own")
    sub.add_argument("--image-size", type=_number(Pixels), metavar="N", help="of a model's images, if not its own")
    for key in ("mean", "std"):
        text = f"{key} of a model's images (0 to 1), if not its own"
        sub.add_argument(f"--{key}", nargs=3, type=_number(float), metavar=("R", "G", "B"), help=text)
    sub.add_argument("--out", metavar="DIR", default="results/evaluations", help="folder of the rows")
    sub.add_argument("--skip-unreadable", action="store_true", help="leave unreadable images out and count them")

    sub = command("bench", "Pre-train and evaluate everything a suite still misses, then report.")
    sub.add_argument("suite", metavar="SUITE", help="a name of `ssl-bench list suites`, or a YAML file")
    text = f"instead of the suite's; each {method_help}, or NAME:RECIPE"
    sub.add_argument("--methods", type=_names, metavar="A,B", help=text)
    sub.add_argument(
        "--evaluations", type=_names, metavar="A,B", help=f"instead of the suite's; each {evaluation_help}"
    )
    text = f"of all methods, instead of the suite's or each recipe's own: {backbone_help}"
    sub.add_argument("--backbone", metavar="B", help=text)
    sub.add_argument(
        "--image-size", type=_number(Pixels), metavar="N", help="instead of the size in the names of the backbones"
    )
    sub.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="keys of all recipes that train")
    sub.add_argument("--seeds", type=_seeds, metavar="0,1", help="instead of the suite's")
    sub.add_argument("--data", metavar="DATA", help=f"instead of the suite's: {data_help}")
    sub.add_argument("--out", metavar="DIR", help="folder of the rows (default: results/SUITE)")
    sub.add_argument(
        "--budget",
        type=_number(Positive),
        default=1.0,
        metavar="X",
        help="times the epochs of every recipe, and all that it states in epochs",
    )
    sub.add_argument(
        "--jobs", type=_number(Jobs), metavar="N", help="runs side by side (default: one a processor, one on a GPU)"
    )
    sub.add_argument("--logger", type=_names, default=["csv", "tensorboard"], metavar="A,B", help=logger_help)
    sub.add_argument("--skip-unreadable", action="store_true", help="leave unreadable images out and count them")
    sub.add_argument("--allow-code", action="store_true", help="let the suite's file name Python files, which run")
    text = "where runs go: here, or each into a job of SLURM, with the three below (default: local)"
    sub.add_argument("--launcher", default="local", metavar="local|slurm", help=text)
    sub.add_argument("--partition", metavar="NAME", help="of SLURM (default: the cluster's)")
    sub.add_argument("--time", type=int, default=240, metavar="MINUTES", help="of a job (default: 240)")
    sub.add_argument("--gpus", type=int, default=0, metavar="N", help="of a job (default: none)")
    sub.add_argument("--dry-run", action="store_true", help="only show the runs and what each costs")

    sub = command("table", "A paper's table: reported, measured, difference.")
    sub.add_argument("name", metavar="NAME", help="a name of `ssl-bench list tables`, or a YAML file")
    sub.add_argument("--rows", type=_names, metavar="DIR,DIR", help="folders with rows/ (default: results/reproduce)")
    sub.add_argument(
        "--format", type=_names, default=["terminal"], metavar="A,B", help="any of md, csv, latex, terminal"
    )
    sub.add_argument("--out", metavar="DIR", help="folder to write NAME.md, NAME.csv and NAME.tex to")

    sub = command("reproduce", "Run what a table still misses: plan and cost first.")
    sub.add_argument("name", metavar="NAME", help="a name of `ssl-bench list tables`, or a YAML file")
    sub.add_argument("--dry-run", action="store_true", help="only show the plan")
    sub.add_argument("--out", metavar="DIR", default="results/reproduce", help="folder of the rows")
    sub.add_argument("--checkpoints", metavar="DIR", default="checkpoints", help="folder of the authors' files")
    sub.add_argument("--device", default="h100", metavar="D", help="to estimate hours for: h100, a100, l40, cpu")
    sub.add_argument("--tflops", type=_number(Positive), metavar="X", help="sustained TFLOPS instead of the device's")
    sub.add_argument("--max-hours", type=_number(NonNegative), metavar="H", help="skip runs that would take longer")

    sub = command("convert", "Turn a released checkpoint into an encoder file, with a load report.")
    sub.add_argument("source", metavar="OFFICIAL", help="the file as released: .pth, .pt, .pth.tar or .safetensors")
    sub.add_argument("--method", required=True, metavar="M", help=f"the one that trained these weights: {method_help}")
    sub.add_argument("--backbone", required=True, metavar="B", help="which it is, e.g. vit_base_patch16_224")
    sub.add_argument("--out", required=True, metavar="FILE", help="the file to write")
    sub.add_argument("--branch", metavar="NAME", help="another than the paper evaluates, e.g. student")
    sub.add_argument(
        "--num-heads", type=_number(Depth), metavar="N", help="attention heads, if not those of the paper's recipe"
    )
    sub.add_argument("--pretrained-on", dest="data", default="unknown", metavar="DATA", help="data set, for the rows")
    sub.add_argument("--epochs", type=_number(Epochs), metavar="N", help="epochs of its pre-training, for the rows")
    for key in ("mean", "std"):
        text = f"{key} of its input (0 to 1), if not that of the method's released files"
        sub.add_argument(f"--{key}", nargs=3, type=_number(float), metavar=("R", "G", "B"), help=text)
    sub.add_argument("--allow-partial", action="store_true", help="take weights that don't fill the backbone")
    sub.add_argument("--format", choices=["ssl-bench", "timm"], default="ssl-bench", help="timm: a plain state dict")

    sub = command("embed", "The features of an encoder for the images of a data set, in a file.")
    sub.add_argument("encoder", metavar="ENCODER", help="an encoder file, timm:NAME, torchvision:NAME or file.py:NAME")
    sub.add_argument("data", metavar="DATA", help=data_help)
    sub.add_argument("--out", required=True, metavar="FILE", help="a .parquet file, or .npy: the features alone")
    sub.add_argument("--pooling", metavar="P", help="of those that the encoder offers (default: its first)")
    sub.add_argument("--split", metavar="train|test", help="one of the two (default: both)")
    sub.add_argument("--backbone", metavar="B", help="which backbone plain timm weights are for")
    sub.add_argument("--skip-unreadable", action="store_true", help="leave unreadable images out and count them")

    sub = command("export", "An encoder as safetensors with timm's keys, config.json and a model card.")
    sub.add_argument("encoder", metavar="ENCODER", help="an encoder file")
    sub.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    sub.add_argument(
        "--rows", type=_names, default=[], metavar="DIR,DIR", help="folders with rows/: the card's numbers"
    )
    sub.add_argument("--backbone", metavar="B", help="which backbone plain timm weights are for")
    sub.add_argument("--push", metavar="ORG/NAME", help="upload the folder to the Hugging Face hub")

    sub = command("show", "Draw attention maps, reconstructions and nearest neighbours of an encoder.")
    sub.add_argument("checkpoint", metavar="CHECKPOINT", help="encoder.pt of a run, or timm weights with --backbone")
    sub.add_argument("--images", required=True, metavar="DIR|DATA", help="a folder of images, or a data set")
    sub.add_argument("--out", required=True, metavar="FILE.png", help="the picture: .png, .pdf, .svg or .jpg")
    sub.add_argument("--count", type=_number(Rows), default=6, metavar="N", help="rows of the picture")
    sub.add_argument("--backbone", metavar="B", help="which backbone plain timm weights are for")
    text = "let the encoder file name a Python file with its method, which runs"
    sub.add_argument("--allow-code", action="store_true", help=text)

    sub = command("leaderboard", "Rank the rows of a folder, or of several in one table.")
    sub.add_argument("folder", metavar="DIR", nargs="+", help="a folder with rows/")
    text = (
        "files to write: md, csv, html, latex; of other leaderboards every-eval-ever, mteb, hugging-face (default: md)"
    )
    sub.add_argument("--format", type=_names, default=["md"], metavar="A,B", help=text)
    sub.add_argument("--sort", metavar="EVALUATION", help="evaluation to sort by")
    sub.add_argument("--methods", type=_names, default=[], metavar="A,B", help="only these methods")
    sub.add_argument("--evaluations", type=_names, default=[], metavar="A,B", help="only these evaluations")
    sub.add_argument("--categories", type=_names, default=[], metavar="A,B", help="only these categories")
    sub.add_argument("--max-flops", type=_number(float), metavar="X", help="best of each method at X FLOPs or fewer")
    sub.add_argument(
        "--max-images", type=_number(float), metavar="N", help="best of each method at N images seen or fewer"
    )
    sub.add_argument("--out", metavar="DIR", help="folder for the files (default: that of the rows, if one)")
    sub.add_argument("--figures", action="store_true", help="draw figures into figures/ there")
    sub.add_argument("--runs", metavar="DIR", help="folder of runs, for the training curves")
    sub.add_argument("--explain", action="store_true", help="say how each number is made")

    sub = command("compare", "Two rows, or two methods of a folder, side by side.")
    sub.add_argument("a", metavar="A", help="a row file (.json), or a method of --rows")
    sub.add_argument("b", metavar="B", help="likewise")
    sub.add_argument("--rows", metavar="DIR", help="a folder with rows/")
    sub.add_argument("--data", metavar="DATA", help=f"labels for wins and losses by class: {data_help}")

    sub = command("claims", "Answer claims about methods by the rows of a folder.")
    sub.add_argument("folder", metavar="DIR", help="a folder with rows/")
    sub.add_argument("--file", metavar="YAML", help="the claims (default: claims.yaml of the folder)")
    sub.add_argument("--out", metavar="DIR", help="folder for the page (default: that of the rows)")

    sub = command("check", "Whether the rows of a folder, and its leaderboard, are sound.")
    sub.add_argument("folder", metavar="DIR", help="a folder with rows/")
    return parser


def _number(hint: Any) -> Callable[[str], Any]:
    """What reads a number of a type of ``utils.bounds``."""

    def read(text: str) -> Any:
        try:
            value = unbound(hint)(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text[:60]!r} is not of type {unbound(hint).__name__}") from None
        if wrong := misfit(hint, value):
            raise argparse.ArgumentTypeError(f"{text[:60]} must be {wrong}")
        return value

    return read


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _seeds(text: str) -> list[int]:
    return [_number(Seed)(seed) for seed in _names(text)]
