"""``ssl-bench tune``: choose keys of a recipe on images held out of the training set; the test images take no part."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ssl_bench.checkpoints.encoder_file import load_encoder
from ssl_bench.commands.pretrain import run, run_folder
from ssl_bench.config.parsing import read_yaml
from ssl_bench.config.recipe import load_recipe
from ssl_bench.data.datasets import Splits, hold_out, load
from ssl_bench.evaluations.evaluator import Data
from ssl_bench.evaluations.frozen.knn import KNN
from ssl_bench.evaluations.frozen_encoder import FrozenEncoder
from ssl_bench.training.loggers import DEFAULT
from ssl_bench.utils.errors import RunError, UserError
from ssl_bench.utils.files import content_hash, write_atomic
from ssl_bench.utils.shipped import find_yaml


def tune(
    method: str,
    *,
    space: Mapping[str, str],
    trials: int = 20,
    recipe: str | None = None,
    data: str | Splits | None = None,
    backbone: str | None = None,
    epochs: float | None = None,
    seed: int = 0,
    out: str | Path = "runs/tune",
    logger: Sequence[str] = DEFAULT,
    show: Callable[[str], Any] = print,
) -> Path:
    """Search keys of a recipe: the Python form of ``ssl-bench tune``.

    Every trial trains on the training images without dev (10 % of each class) and is judged by k-NN of dev, with the
    others as the bank; the pooling is chosen on a tenth of those. The search is optuna's tree-structured Parzen
    estimator. The same command goes on where it was stopped, and with more trials adds to what is there.

    Args:
        method: As of ``pretrain``.
        space: Key -> ``LOW..HIGH``, ``A|B|C``, or one value that all trials have; see ``choices_of``.
        trials: That succeed, those of earlier calls included.
        recipe: As of ``pretrain``.
        data: As of ``pretrain``.
        backbone: As of ``pretrain``.
        epochs: As of ``pretrain``.
        seed: Of the runs and of the search.
        out: Folder for the folder of this search: its journal, the runs, and ``best.yaml``.
        logger: As of ``pretrain``.
        show: What to do with each line.

    Returns:
        ``best.yaml``, for ``--recipe``: the recipe with the values given and the best ones found.

    Raises:
        UserError: The request is wrong, or optuna is not installed; nothing has been run.
        RunError: No trial succeeded.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError("tune needs the package optuna: pip install 'ssl-bench[tune]'")
    searched = {key: choices for key, text in space.items() if (choices := choices_of(key, text))}
    if not searched:
        raise UserError("nothing to search: --set takes KEY=LOW..HIGH or KEY=A|B|C at least once")
    given = {"data": data if isinstance(data, str) else None, "backbone": backbone, "epochs": epochs, "seed": seed}
    fixed: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    fixed |= {key: text for key, text in space.items() if key not in searched}
    for end in (0, -1):  # both ends of each range are checked before anything runs
        first = load_recipe(method, recipe, fixed | {key: choices[end] for key, choices in searched.items()})
    splits = data if isinstance(data, Splits) else load(first.data)
    fit, dev = hold_out(splits.train)
    held = Splits(fit, replace(dev, split="test"))  # a run of it never meets the test images
    asked = content_hash([first.identity(held), dict(space)])[:12]
    folder = Path(out) / f"{first.method}-{splits.train.name}-{asked}"
    folder.mkdir(parents=True, exist_ok=True)

    def score(trial: Any) -> float:
        values = {key: _suggest(trial, key, choices) for key, choices in searched.items()}
        resolved = load_recipe(method, recipe, fixed | values)
        place = run_folder(resolved, held, folder)
        encoder = load_encoder(run(resolved, held, place, logger)).encoder
        result = KNN().run(FrozenEncoder(encoder, folder=place), Data(fit, *hold_out(fit), held.test))
        top1 = result.metrics["top1"].value
        show(f"trial {trial.number}: {_said(values)}: {top1:.2f} % of dev, {place}")
        return top1

    best = _search(score, folder / "journal.log", asked, seed, trials)
    show(f"best: {_said(best.params)}: {best.value:.2f} % of dev")
    base: Mapping[str, Any] = {}
    if recipe is not None:
        own = first.cls.recipes
        base = own[recipe] if recipe in own else read_yaml(find_yaml(f"methods/{first.method}", recipe))
    chosen = {key: yaml.safe_load(value) if isinstance(value, str) else value for key, value in fixed.items()}
    head = f"# {first.method}: {best.value:.2f} % by k-NN of dev, the best of {trials} trials of ssl-bench tune.\n"
    return write_atomic(folder / "best.yaml", head + yaml.safe_dump({**base, **chosen, **best.params}, sort_keys=False))


def choices_of(key: str, text: str) -> list[Any] | None:
    """What is searched: the two ends of a range, three or more choices or two words; None for a single value.

    Example:
        >>> choices_of("base_lr", "1e-4..1e-2"), choices_of("n_local", "2..6")
        ([0.0001, 0.01], [2, 6])
        >>> choices_of("optimizer", "adamw|lars"), choices_of("epochs", "4")
        (['adamw', 'lars'], None)
    """
    if "|" in text:
        return text.split("|")
    low, dots, high = text.partition("..")
    if not dots:
        return None
    for kind in (int, float):
        try:
            ends = [kind(low), kind(high)]
        except ValueError:
            continue
        if ends[0] < ends[1]:
            return ends
    raise UserError(f"--set {key}={text}: a range is LOW..HIGH, two numbers, the smaller one first")


def _suggest(trial: Any, key: str, choices: list[Any]) -> Any:
    """A value of a trial; on a logarithmic scale where the ends are above 0 and a factor of 10 or more apart."""
    low, high = choices[0], choices[-1]
    if isinstance(low, str):
        return trial.suggest_categorical(key, choices)
    scale = {"log": low > 0 and high >= 10 * low}
    return (
        trial.suggest_int(key, low, high, **scale)
        if isinstance(low, int)
        else trial.suggest_float(key, low, high, **scale)
    )


def _search(score: Callable[[Any], float], journal: Path, name: str, seed: int, trials: int) -> Any:
    """Run what is missing of the trials and return the best; one that was stopped is run again and goes on."""
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # of a wrong request it would show a traceback
    study = optuna.create_study(
        study_name=name,
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(journal))),
        sampler=optuna.samplers.TPESampler(seed=seed),
        direction="maximize",
        load_if_exists=True,
    )
    ended = [trial.params for trial in study.trials if trial.state not in (TrialState.RUNNING, TrialState.FAIL)]
    for trial in study.trials:
        if trial.state == TrialState.RUNNING:  # killed
            study.tell(trial.number, state=TrialState.FAIL)
        if trial.state in (TrialState.RUNNING, TrialState.FAIL) and trial.params not in ended:
            study.enqueue_trial(trial.params)
            ended.append(trial.params)

    def attempt(trial: Any) -> float:
        try:
            return score(trial)
        except RunError as error:  # these values diverge: no reason to stop
            raise optuna.TrialPruned(str(error)) from error

    done = len(study.get_trials(states=(TrialState.COMPLETE,)))
    if done < trials:
        study.optimize(attempt, n_trials=trials - done)
    if not study.get_trials(states=(TrialState.COMPLETE,)):
        raise RunError(f"no trial succeeded; see {journal.parent}")
    return study.best_trial


def _said(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )
