"""What a run costs: patches encoded, FLOPs, peak memory; and which device and precision it ran on."""

from __future__ import annotations

import contextlib
import copy
import os
import platform
import re
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ssl_bench.backbones.backbone import Tokens
from ssl_bench.methods.method import Method
from ssl_bench.nn.block import every_output
from ssl_bench.training.without_data import shapes_alone, without_data
from ssl_bench.utils.distributed import one_process
from ssl_bench.utils.errors import unknown
from ssl_bench.utils.memory import release_freed_memory

FEW = 8  # images on which a method is measured whose cost can't be counted from shapes


def best_precision(asked: str = "auto") -> str:
    """bf16-mixed where the hardware multiplies in bf16, otherwise 32; or what was asked for.

    The environment variable SSL_BENCH_PRECISION (32 or bf16-mixed) says what "auto" is instead of the hardware.

    Raises:
        UserError: It says something else.
    """
    if asked != "auto":
        return asked
    if given := os.environ.get("SSL_BENCH_PRECISION"):
        if given not in ("32", "bf16-mixed"):
            raise unknown("precision in SSL_BENCH_PRECISION", given, ["32", "bf16-mixed"])
        return given
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    supported = (
        getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() or getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    )
    return "bf16-mixed" if supported else "32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a Lightning precision name: 32, which its trainer calls 32-true, bf16-mixed or 16-mixed.

    Example:
        >>> [autocast(torch.device("cpu"), name)._enabled for name in ("32", "32-true", "bf16-mixed")]
        [False, False, True]
    """
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision.endswith("-mixed"))


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
        release_freed_memory()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark of resident memory


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that was allocated on a GPU, or resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    match = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(match[1]) * 1024 if match else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Cost(NamedTuple):
    """Of one training image: forward and backward pass of one step, shared out among its images."""

    flops: float  # of matrix products and convolutions, 2 per multiply-add; whole blocks, attention as products
    patches: float  # encoded with gradient
    patches_without_gradient: float  # encoded without: by momentum encoders and teachers

    def encodings(self, method: Method) -> float:
        """Whole images that the backbone could encode instead, without gradient; 1 where nothing encodes patches.

        The backward pass is taken for two forward passes.
        """
        rows, columns = method.backbone.grid
        return max(1.0, (3 * self.patches + self.patches_without_gradient) / (rows * columns))


def step_cost(method: Method, images: int, classes: int) -> Cost:
    """What one training step costs, counted from shapes: the same on every machine and in every precision.

    A copy of the method takes a step at the end of its schedules, in one process, on a batch without data. Where the
    author's code asks for values, it takes the step on its own device, on a few images of noise.

    Args:
        method: On any device; nothing in it moves.
        images: The batch size: similarities to all other images, or captions that several share, depend on it.
        classes: The labels are 0 to ``classes - 1``, in turn.

    Returns:
        The mean over the batch. Random masks are drawn by a fixed seed, as many as there are images.
    """
    try:
        return count_step(without_data(method), images, classes)
    except Exception:  # whatever an author's code raises that meets a tensor without data
        return count_step(copy.deepcopy(method), min(images, FEW), classes)


def count_step(method: Method, images: int, classes: int) -> Cost:
    """Like ``step_cost``, with this very method, which is used up: without data if its weights have none.

    A method without data is made by ``without_data``, or within ``built_without_data()``.
    """
    empty = all(parameter.is_meta for parameter in method.parameters())
    if empty:
        method._device = torch.device("cpu")  # where masks are drawn
    method.seed, method._step, method._draws = 0, 0, 0
    method.progress, method.epoch = 1.0, float(method.training_config.epochs)
    device = torch.device("meta") if empty else method.device

    def step() -> None:
        sides = [view.sides for view in method.views for _ in range(view.count)]
        method.labels = torch.arange(images, device=method.device) % max(1, classes)
        method.checked_loss([torch.rand(images, 3, *side, device=device) for side in sides])["loss"].backward()

    return Cost(*(number / images for number in _count(step, device)))


def forward_flops(network: Callable[[Tensor], Tokens], image_size: tuple[int, int], *, backward: bool = False) -> float:
    """FLOPs of encoding one image, and of the backward pass if wanted.

    Args:
        network: Made within ``built_without_data()``.
        image_size: Height and width, pixels.
        backward: Whether to count the backward pass too.

    Example:
        >>> from ssl_bench.backbones import build_backbone
        >>> from ssl_bench.training.without_data import built_without_data
        >>> with built_without_data():
        ...     network = build_backbone("vit_base_patch16_224")
        >>> round(forward_flops(network, (224, 224)) / 1e9, 1)
        35.1
    """

    def run() -> None:
        tokens = network(torch.empty(1, 3, *image_size, device="meta"))
        if backward:
            (tokens.cls.sum() + tokens.patches.sum()).backward()

    return _count(run, torch.device("meta"))[0]


def _count(run: Callable[[], None], device: torch.device) -> tuple[int, int, int]:
    """FLOPs of a computation, and the patches that backbones encode in it with and without gradient."""
    patches = {True: 0, False: 0}

    def count(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tokens):
            patches[torch.is_grad_enabled()] += output.patches.shape[0] * output.patches.shape[1]

    hook = torch.nn.modules.module.register_module_forward_hook(count)  # of teachers too, which are no submodules
    plain = sdpa_kernel(SDPBackend.MATH)  # fused attention would count as free on some processors
    shapes = shapes_alone() if device.type == "meta" else contextlib.nullcontext()
    gpu = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(gpu), one_process(), every_output(), shapes, plain:
            torch.default_generator.manual_seed(0)
            if gpu:
                torch.cuda.manual_seed(0)
            with _FLOPs() as flops:
                run()
    finally:
        hook.remove()
    return flops.total, patches[True], patches[False]


class _FLOPs(TorchDispatchMode):
    """Adds up torch's formulas. Its own ``FlopCounterMode`` keeps an account of each module too, at twice the time."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result
