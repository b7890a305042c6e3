"""Memory that a process frees is taken again without asking the system."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssl_bench.training.compute import peak_memory, reset_peak_memory

SCRIPT = """
import resource, sys
import torch
from ssl_bench.utils.memory import keep_freed_memory

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("no glibc")
for step in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24).add(1).sum()  # 64 MB, twice
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_is_taken_again_without_page_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE"):  # a training in this process may have set it
        monkeypatch.delenv(name, raising=False)
    faults = {}
    for way in ("keep", "leave"):
        done = subprocess.run([sys.executable, "-c", SCRIPT, way], capture_output=True, text=True)
        if done.stderr.strip() == "no glibc":
            pytest.skip("another C library, or the environment sets its allocator")
        faults[way] = int(done.stdout)
    assert faults["keep"] < 2000 < 5000 < faults["leave"]


def peak_of(megabytes: int) -> float:
    reset_peak_memory(torch.device("cpu"))
    torch.ones(megabytes * 2**18).sum()
    return peak_memory(torch.device("cpu")) / 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are reset on Linux alone")
def test_what_an_earlier_task_freed_is_not_in_the_peak_of_the_next() -> None:
    code = f"from ssl_bench.utils.memory import keep_freed_memory\nfrom {Path(__file__).stem} import peak_of\n"
    code += "keep_freed_memory()\nprint(peak_of(50), peak_of(600), peak_of(50))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent)
    small, large, again = map(float, done.stdout.split())
    assert large - small > 500 and abs(again - small) < 60
