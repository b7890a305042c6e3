"""Parquet that doesn't fit into memory: a copy in Arrow's format, of which every process maps what it looks at."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_bench.data.images import reason
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.files import content_hash, locked, remove_leftovers, replacing
from ssl_bench.utils.progress import progress

ROWS = 256  # of a batch; the bytes of its images must stay below 2 GB


def arrow_file(files: Sequence[str], columns: Sequence[str], size: int) -> str:
    """The columns of Parquet files in one file of Arrow's, in ``arrow/`` of the folder of data sets.

    It is made once, by one process, and made anew when a file has changed. Images in Parquet are in compressed pages,
    of which none can be had without its neighbours; in Arrow's file each stands by itself.

    Args:
        files: Of the same columns.
        columns: Those to take.
        size: Their bytes, about.

    Raises:
        UserError: A file can't be read, has other columns, or the disk is too small.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(os.environ.get("SSL_BENCH_DATA", "data")) / "arrow"
    which = content_hash([[os.path.abspath(file) for file in files], list(columns)])[:16]
    state = content_hash([[(about := os.stat(file)).st_size, about.st_mtime_ns] for file in files])[:16]
    path = folder / f"{which}-{state}.arrow"
    try:
        with locked(folder):
            if path.exists():
                return str(path)
            remove_leftovers(folder)
            for older in folder.glob(f"{which}-*.arrow"):
                older.unlink()
            if size > (free := shutil.disk_usage(folder).free):
                raise UserError(
                    f"{files[0]} and what is beside it take {size:,} bytes, more than fit into memory, and {folder}, "
                    f"where a copy would be mapped, has {free:,} free; set SSL_BENCH_DATA to a folder with more"
                )
            with replacing(path) as (out, _):
                schema = _plain(pq.read_schema(files[0]), columns)
                with pa.ipc.new_file(out, schema) as writer:
                    for file in progress(files, f"copying Parquet to {path}"):
                        parquet = pq.ParquetFile(file)
                        if not _plain(parquet.schema_arrow, columns).equals(schema):
                            raise UserError(f"the columns of {files[0]} and of {file} beside it differ")
                        for group in range(parquet.num_row_groups):  # empty columns are wrong in batches of several
                            for batch in parquet.iter_batches(ROWS, row_groups=[group], columns=list(columns)):
                                writer.write_table(pa.Table.from_batches([batch]).cast(schema))
    except UserError:
        raise
    except (OSError, ValueError, UnicodeDecodeError, pa.ArrowException) as error:
        raise UserError(f"cannot copy {files[0]} and what is beside it to {path}: {reason(error)}") from error
    return str(path)


def _plain(schema: Any, columns: Sequence[str]) -> Any:
    """The schema of some columns, without dictionaries, which would differ from batch to batch."""
    import pyarrow as pa

    fields = [schema.field(name) for name in columns]
    fields = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field for field in fields
    ]
    return pa.schema(fields, schema.metadata)


def open_mapped(path: str) -> Any:
    """The table in a file of Arrow's; nothing is read before it is looked at."""
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(path)).read_all()
