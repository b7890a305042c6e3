"""Two processes of one machine, as torchrun starts them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch


def in_two(work: Callable[..., object], *arguments: Any, seconds: float = 300, group: bool = False) -> None:
    """``work(rank, *arguments)`` in two forked processes; both must end well.

    Args:
        work: What it finds it writes to files.
        arguments: The others of ``work``.
        seconds: Until they are killed.
        group: Join them by gloo before; otherwise that is left to ``work``.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("fork")  # which has imported everything
    processes = [context.Process(target=_process, args=(rank, port, group, work, arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]


def _process(rank: int, port: int, group: bool, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    torchrun = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {**world, **torchrun, "CUDA_VISIBLE_DEVICES": ""}
    try:
        if group:
            torch.distributed.init_process_group("gloo")
        work(rank, *arguments)
        if group:
            torch.distributed.barrier()
        os._exit(0)  # without what pytest does at its end
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)
