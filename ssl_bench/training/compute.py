"""What a run costs: patches encoded, FLOPs, peak memory; and which device and precision it ran on."""

from __future__ import annotations

import contextlib
import copy
import platform
import re
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ssl_bench.backbones.backbone import Tokens

if TYPE_CHECKING:
    from ssl_bench.methods.method import Method


def best_precision(asked: str = "auto") -> str:
    """bf16-mixed where the hardware multiplies in bf16, otherwise 32; or what was asked for."""
    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    supported = (
        getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() or getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    )
    return "bf16-mixed" if supported else "32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a Lightning precision name."""
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "32")


def device_name(device: torch.device) -> str:
    """For example "NVIDIA H100", or "AMD EPYC, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    name = match[1].strip() if match else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of ``peak_memory``."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark of resident memory


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that was allocated on a GPU, or resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    match = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(match[1]) * 1024 if match else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def meter(method: Method, views: list[Tensor], precision: str) -> dict[str, float]:
    """Cost of one training image, measured on a copy of the method so that nothing in it moves.

    Args:
        method: On the training device.
        views: A small batch, as ``loss`` takes it.
        precision: As in training.

    Returns:
        ``flops`` (matrix multiplications of forward and backward, two per multiply-add), ``patches`` encoded with
        gradient, and ``patches_without_gradient`` encoded without (momentum encoders and teachers); all per image.
    """
    twin = copy.deepcopy(method)
    patches = {True: 0, False: 0}

    def count(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tokens):
            patches[torch.is_grad_enabled()] += output.patches.shape[0] * output.patches.shape[1]

    random_state = torch.get_rng_state()
    hook = torch.nn.modules.module.register_module_forward_hook(count)  # of teachers too, which are no submodules
    try:
        with FlopCounterMode(display=False) as counter:
            with autocast(views[0].device, precision):
                loss = twin.loss(views)["loss"]
            loss.backward()
    finally:
        hook.remove()
    torch.set_rng_state(random_state)
    n = len(views[0])
    return {
        "flops": counter.get_total_flops() / n,
        "patches": patches[True] / n,
        "patches_without_gradient": patches[False] / n,
    }
