"""Independent tasks in several processes of this machine."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ssl_bench.data.reading import memory_budget, processors
from ssl_bench.utils.errors import STOPPING, Stopped

SAVING = 25.0  # seconds that processes have to save; SLURM and torchrun kill 30 s after their signal
VISIBLE = "CUDA_VISIBLE_DEVICES"
RunTask = Callable[[int], str | None]  # runs the task of an index; a line that says why, if it failed


def default_jobs() -> int:
    """Tasks to run side by side: one a processor where small networks would leave a second thread half idle, and where
    the memory allows 3 GB for each; one on each GPU."""
    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return max(1, min(processors(), memory_budget() * 2 // 3_000_000_000))


def run_in_pool(
    prepare: Callable[..., RunTask],
    arguments: Sequence[Any],
    indices: Sequence[int],
    jobs: int,
    finished: Callable[[int], None] = lambda index: None,
) -> list[str]:
    """Run tasks in ``jobs`` processes that share the processors.

    Args:
        prepare: Called once in each process; what it returns runs one task. A function of a module.
        arguments: Of ``prepare``; tensors among them are shared, not copied.
        indices: The tasks, in the order to start them.
        jobs: Processes.
        finished: Called here with the index of each task that has ended.

    Returns:
        One line for each task that failed.

    Raises:
        Stopped: SIGTERM, SIGUSR1 or SIGHUP came; the processes got it too and have saved what they were doing.
    """
    context = torch.multiprocessing.get_context("spawn")
    queue, results = context.SimpleQueue(), context.SimpleQueue()
    for index in [*indices, *[None] * jobs]:
        queue.put(index)
    threads = max(1, processors() // jobs)
    # No daemons: those may not start the processes that decode images which are not held in memory.
    workers = [context.Process(target=_worker, args=(prepare, arguments, queue, results, threads)) for _ in range(jobs)]
    # Ctrl-C reaches every process of the terminal: the workers are started ignoring it, and this process ends them.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    _start(workers)
    signal.signal(signal.SIGINT, handler)
    failed: list[str] = []
    left = len(indices)
    came: list[int] = []  # signals
    before = {signum: signal.signal(signum, lambda signum, _: came.append(signum)) for signum in _watched()}
    try:
        while left:
            while results.empty():
                if came:
                    _pass_on(came[0], workers)
                    raise Stopped(came[0])
                if not any(worker.is_alive() for worker in workers) and results.empty():
                    return [
                        *failed,
                        f"{left} runs: the processes that ran them have died (out of memory?); try --jobs 1",
                    ]
                time.sleep(0.05)
            index, line = results.get()
            left -= 1
            finished(index)
            failed += [line] if line else []
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        for worker in workers:
            worker.join(5 if not left else 0)
            worker.kill()  # nothing is lost: every file is written atomically
    return failed


def _start(workers: Sequence[Any]) -> None:
    """Start processes, each seeing one of several GPUs."""
    shown = {key: value for key, value in os.environ.items() if key == VISIBLE}
    for worker, gpu in zip(workers, itertools.cycle(_gpus()), strict=False):
        if gpu:
            os.environ[VISIBLE] = gpu
        worker.start()
    os.environ.pop(VISIBLE, None)
    os.environ.update(shown)


def _gpus() -> list[str]:
    """Each GPU as the environment names it; one empty name where there aren't several."""
    named = os.environ.get(VISIBLE, "")
    found = named.split(",") if named else [str(gpu) for gpu in range(torch.cuda.device_count())]
    return found if len(found) > 1 and torch.cuda.is_available() else [""]


def _watched() -> list[int]:
    """The signals that ask a suite to stop; only the main thread may watch, and nohup is respected."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [signum for signum in STOPPING if signal.getsignal(signum) is not signal.SIG_IGN]


def _pass_on(signum: int, workers: Sequence[Any]) -> None:
    """Tell the processes, and wait until they have saved."""
    for worker in workers:
        if worker.is_alive():
            os.kill(worker.pid, signum)
    until = time.monotonic() + SAVING
    for worker in workers:
        worker.join(max(0.0, until - time.monotonic()))


def _worker(prepare: Callable[..., RunTask], arguments: Sequence[Any], queue: Any, results: Any, threads: int) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    torch.multiprocessing.set_start_method(None, force=True)  # the platform's again: spawned decoders take seconds each
    run_task = prepare(*arguments)
    while (index := queue.get()) is not None:
        results.put((index, run_task(index)))


def _die_with_parent() -> None:
    """A killed suite must not go on in the background and race with the one that is started next."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
