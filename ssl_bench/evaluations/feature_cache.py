"""Features on disk: written as they are extracted, memory-mapped by every run that asks for the same ones."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssl_bench.utils.distributed import process, share
from ssl_bench.utils.files import content_hash, locked
from ssl_bench.utils.weights import options_hash, weights_hash

ROOT = Path("runs/features")
FORMAT = 1
CRC_BLOCK = 2**22  # bytes read at once


class FeatureCache:
    """The features of one encoder on one split: `<pooling>.npy`, float32 (N, D), and `<pooling>.json`, what they are.

    Several processes may share a folder: one at a time extracts, files appear complete, and a file that was cut off or
    changed since it was written is extracted again. The folder can be deleted whenever no command runs.

    Args:
        root: Where the folders of all encoders are.
        key: JSON-able; everything that decides a feature, with the hash of the weights as "weights" and the fingerprint
            of the images as "images".
        n: Images.
    """

    def __init__(self, root: Path, key: Mapping[str, Any], n: int) -> None:
        self.key, self.n = {"format": FORMAT, **key}, n
        self._read: dict[str, Tensor] = {}
        self.folder = root / f"{key['weights'][:16]}-{key['images'][:12]}-{content_hash(self.key)[:8]}"

    @contextlib.contextmanager
    def extracting(self, poolings: Sequence[str]) -> Iterator[list[str]]:
        """Hold the folder against other runs; yields the poolings that it still lacks."""
        rank, world = process()
        with locked(self.folder) if rank == 0 else contextlib.nullcontext():
            missing = [[pooling for pooling in poolings if self.read(pooling) is None]] if rank == 0 else [[]]
            if world > 1:
                torch.distributed.broadcast_object_list(missing)
            yield missing[0]

    def read(self, pooling: str) -> Tensor | None:
        """The features, memory-mapped; None when they are not there or not what was written."""
        path = self.folder / f"{pooling}.npy"
        if pooling in self._read:  # checked before
            return self._read[pooling]
        if not path.with_suffix(".json").exists():
            return None
        try:
            about = json.loads(path.with_suffix(".json").read_text())
            rows = np.load(path, mmap_mode="c", allow_pickle=False)  # "c": whoever writes gets pages of their own
            if about == self._about(pooling, rows.shape[1], _crc(path)) and rows.shape[0] == self.n:
                self._read[pooling] = torch.from_numpy(rows)
                return self._read[pooling]
        except (OSError, ValueError, IndexError, EOFError):
            pass
        print(f"{path} is damaged: its features are extracted again", file=sys.stderr)
        return None

    def fill(
        self, poolings: Sequence[str], batch_size: int, extract: Callable[[int, int], Iterator[Mapping[str, Tensor]]]
    ) -> None:
        """Write features; several processes write a share each. What a killed run left is not extracted again.

        Args:
            poolings: Which.
            batch_size: Images a batch. Shares and restarts begin at a batch, so that they don't move a bit.
            extract: From the images [start, end) to batches, pooling -> (B, D) float32.

        Raises:
            OSError: The disk is full, or the folder can't be written; nothing is left behind.
        """
        rank, world = process()
        start, end = share(self.n, batch_size)
        try:
            parts = {p: _Part(self.folder / f".{p}.{rank}-of-{world}.npy", self.n) for p in poolings}
            done = min(end - start, *(part.rows for part in parts.values()))
            done = done if done == end - start else done // batch_size * batch_size
            for part in parts.values():
                part.continue_at(done)
            for found in extract(start + done, end):
                for pooling, part in parts.items():
                    part.append(found[pooling])
            for part in parts.values():
                part.file.close()
            self._together()
            if rank == 0:
                for pooling in poolings:
                    self._finish(pooling, world)
            self._together()
        except OSError:
            for pooling in poolings:
                self._clear(pooling)
            raise

    def _finish(self, pooling: str, world: int) -> None:
        """Join the shares and put them in place."""
        shares = [self.folder / f".{pooling}.{rank}-of-{world}.npy" for rank in range(world)]
        with shares[0].open("ab") as whole:
            for other in shares[1:]:
                part = _Part(other, self.n)
                part.file.seek(part.begin)
                shutil.copyfileobj(part.file, whole)
                part.file.close()
        path = self.folder / f"{pooling}.npy"
        dim = np.load(shares[0], mmap_mode="r", allow_pickle=False).shape[1]
        about = self._about(pooling, dim, _crc(shares[0]))
        note = self.folder / f".{pooling}.json"
        note.write_text(json.dumps(about, indent=1) + "\n")
        os.replace(shares[0], path)
        os.replace(note, path.with_suffix(".json"))
        self._clear(pooling)

    def _about(self, pooling: str, dim: int, crc: int) -> dict[str, Any]:
        return {**self.key, "pooling": pooling, "shape": [self.n, dim], "dtype": "float32", "crc32": crc}

    def _clear(self, pooling: str) -> None:
        for path in self.folder.glob(f".{pooling}.*"):
            path.unlink(missing_ok=True)

    def _together(self) -> None:
        if process()[1] > 1:
            torch.distributed.barrier()


class _Part:
    """One process's share of a pooling: an .npy file with the header of the whole, to which batches are appended."""

    def __init__(self, path: Path, n: int) -> None:
        self.n, self.dim, self.begin = n, 0, 0
        self.file = path.open("r+b" if path.exists() else "w+b")
        with contextlib.suppress(ValueError):  # nothing there yet
            np.lib.format.read_magic(self.file)
            (_, self.dim), _, _ = np.lib.format.read_array_header_1_0(self.file)
            self.begin = self.file.tell()

    @property
    def rows(self) -> int:
        """Whole rows that are there."""
        return (os.fstat(self.file.fileno()).st_size - self.begin) // (4 * self.dim) if self.dim else 0

    def continue_at(self, row: int) -> None:
        """Drop the rows from `row` on."""
        self.dim = self.dim if row else 0
        self.file.truncate(self.begin + 4 * self.dim * row if row else 0)
        self.file.seek(0, os.SEEK_END)

    def append(self, rows: Tensor) -> None:
        """Add (B, D) float32."""
        if not self.dim:
            self.dim = rows.shape[1]
            need, free = 4 * self.n * self.dim, shutil.disk_usage(self.file.name).free
            if need > free:  # before hours of work
                raise OSError(errno.ENOSPC, f"features take {need:,} bytes, the disk has {free:,}", self.file.name)
            header = {"descr": "<f4", "fortran_order": False, "shape": (self.n, self.dim)}
            np.lib.format.write_array_header_1_0(self.file, header)
        self.file.write(np.ascontiguousarray(rows.numpy(), dtype="<f4").data)


def encoder_key(encoder: nn.Module) -> dict[str, str]:
    """Hashes of an encoder's weights and of its options: two of equal weights may differ in those."""
    tensors = {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}
    return {"weights": weights_hash(tensors), "options": options_hash(encoder)}


def _crc(path: Path) -> int:
    """Checksum of a file: against rot and cut-off copies, not against people."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(CRC_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc
