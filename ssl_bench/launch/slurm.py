"""Independent tasks as jobs of SLURM, through submitit; the process that asked for them waits and tells of all."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_bench.launch.pool import RunTask
from ssl_bench.utils.errors import RunError, Stopped, UserError

LOGS = Path("runs/slurm")  # what jobs say, one file each
POLL = 5.0  # seconds between two questions to the scheduler
RETRIES = 3  # of a job that vanished without a result: with its node, or at its time limit
STOPPED = "stopped: the training is saved"  # what a job ends with that a signal has stopped


@dataclass(frozen=True)
class Cluster:
    """What each job asks for; one task, one node.

    Attributes:
        partition: The cluster's own when left out.
        minutes: Time limit. A job that needs longer is queued again and goes on.
        gpus: Of the node.
        kind: "slurm", or submitit's "local": processes of this machine, for tests.
    """

    partition: str | None = None
    minutes: int = 240
    gpus: int = 0
    kind: str = "slurm"

    def __post_init__(self) -> None:
        if self.minutes < 1 or self.gpus < 0:
            raise UserError(f"time is {self.minutes} minutes and gpus {self.gpus}: at least 1 and 0")


class Job:
    """One task, made anew where it runs. Pickled by submitit, so it holds names and settings, not images."""

    def __init__(self, prepare: Callable[..., RunTask], arguments: Sequence[Any], index: int) -> None:
        self.prepare, self.arguments, self.index = prepare, arguments, index

    def __call__(self) -> str | None:
        """Run it; a line that says why, if it failed."""
        try:
            return self.prepare(*self.arguments)(self.index)
        except Stopped:  # the scheduler took the node back: the suite queues it again
            return STOPPED

    def checkpoint(self) -> Any:
        """What submitit queues again before a time limit or a preemption: the same, which goes on from its files."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def run_on_slurm(
    prepare: Callable[..., RunTask],
    arguments: Sequence[Any],
    names: Mapping[int, str],
    cluster: Cluster,
    finished: Callable[[int], None] = lambda index: None,
) -> list[str]:
    """Queue a job for each task, and wait for all. One that is queued under its name already isn't queued twice.

    A job that was stopped, or vanished without a result (a killed node), is queued again.

    Args:
        prepare: Called in each job; what it returns runs one task. A function of a module.
        arguments: Of ``prepare``; small.
        names: Index of each task -> name of its job, the same for the same task.
        cluster: What each job asks for.
        finished: Called here with the index of each task that has ended.

    Returns:
        One line for each task that failed, with the file of what it said.

    Raises:
        UserError: submitit isn't installed, or SLURM refuses the jobs.
        RunError: SLURM isn't there.
    """
    executor = _executor(cluster)
    before = _queued(cluster)
    jobs = {index: _adopted(before[name]) for index, name in names.items() if name in before}
    print(f"{len(names) - len(jobs)} jobs queued, {len(jobs)} were before; what they say: {LOGS}", file=sys.stderr)

    def submit(index: int) -> Any:
        executor.update_parameters(name=names[index])
        try:
            return executor.submit(Job(prepare, arguments, index))
        except Exception as error:  # of sbatch, in submitit's words
            raise UserError(f"SLURM refuses the job: {str(error).strip().splitlines()[-1]}") from error

    jobs |= {index: submit(index) for index in names if index not in jobs}
    failed: list[str] = []
    lost: Counter[int] = Counter()
    while jobs:
        time.sleep(POLL)
        ended = _ended(jobs, cluster)
        time.sleep(min(POLL, 1.0) if ended else 0.0)  # the file of a result can come later than the job's end
        for index in ended:
            job, line = jobs.pop(index), None
            if not job.paths.result_pickle.exists():
                lost[index] += 1
                if lost[index] <= RETRIES:
                    print(f"{names[index]}: its job {job.job_id} vanished and is queued again", file=sys.stderr)
                    jobs[index] = submit(index)
                    continue
                line = f"{names[index]}: {RETRIES + 1} jobs vanished without a result ({job.paths.stdout})"
            elif error := job.exception():
                line = f"{names[index]}: {str(error).strip().splitlines()[-1]} ({job.paths.stdout})"
            elif (line := job.result()) == STOPPED:
                print(f"{names[index]}: stopped, and is queued again", file=sys.stderr)
                jobs[index] = submit(index)
                continue
            elif line:
                line = f"{line} ({job.paths.stdout})"
            finished(index)
            failed += [line] if line else []
    return failed


def _executor(cluster: Cluster) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise UserError("--launcher slurm needs the package submitit: pip install 'ssl-bench[slurm]'") from error
    try:
        executor = submitit.AutoExecutor(folder=LOGS.absolute(), cluster=cluster.kind)
    except RuntimeError as error:  # no srun
        raise RunError(f"no SLURM here: {error}") from error
    executor.update_parameters(timeout_min=cluster.minutes, stderr_to_stdout=True)
    if cluster.gpus:
        executor.update_parameters(gpus_per_node=cluster.gpus)
    if cluster.partition and cluster.kind == "slurm":
        executor.update_parameters(slurm_partition=cluster.partition)
    return executor


def _queued(cluster: Cluster) -> dict[str, str]:
    """Name -> id of our jobs that SLURM has, waiting or running.

    Asked of ``squeue``, not ``sacct``, which needs a database that not every cluster has.

    Raises:
        RunError: SLURM doesn't answer.
    """
    if cluster.kind != "slurm":
        return {}
    command = ["squeue", "--me", "--noheader", "--format=%j|%A"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode:
        raise RunError(f"SLURM doesn't answer: {asked.stderr.strip() or 'squeue failed'}")
    return dict(line.split("|") for line in asked.stdout.split())


def _ended(jobs: Mapping[int, Any], cluster: Cluster) -> list[int]:
    """Tasks whose job has a result, or is gone."""
    if cluster.kind != "slurm":
        return [index for index, job in jobs.items() if job.done()]
    try:
        there = set(_queued(cluster).values())
    except RunError as error:  # the controller may be back the next time
        print(error, file=sys.stderr)
        return []
    return [index for index, job in jobs.items() if job.job_id not in there]


def _adopted(identifier: str) -> Any:
    """A job that an earlier command has queued."""
    import submitit

    return submitit.SlurmJob(folder=LOGS.absolute(), job_id=identifier)
