"""Images in Arrow tables: Parquet files as Hugging Face lays them out, and its ``datasets`` library."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssl_bench.data.arrow_files import arrow_file, open_mapped
from ssl_bench.data.images import Cells, reason
from ssl_bench.data.reading import memory_budget
from ssl_bench.data.sources import MOST_CLASSES, TEST_NAMES, Raw, by_split, numbered
from ssl_bench.utils.errors import UserError, first_line
from ssl_bench.utils.progress import progress

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


def read_parquet(path: str) -> tuple[Raw, Raw | None]:
    """One Parquet file, or a folder of them with the split in each name, as Hugging Face lays data sets out.

    Returns:
        Training and test images; no test images when the names tell no splits apart.

    Raises:
        UserError: pyarrow or the file is missing, or the columns are others.
    """
    if os.path.isfile(path):
        return _parquet([path], None), None
    found = sorted(str(file) for file in Path(path).rglob("*.parquet"))
    if others := [file for file in found if not os.path.isfile(file)]:
        raise UserError(f"{others[0]} is not a file")
    if not found:
        raise UserError(
            f"no Parquet file at {path} (expected a file, or a folder with *train*.parquet and *test*.parquet)"
        )
    splits = by_split(found, path)
    train = _parquet(splits[0], None)
    tests = (_parquet(files, train.classes) for files in splits[1:])
    return train, next((test for test in tests if (test.labels >= 0).all()), None)  # some are published without (-1)


def _parquet(files: list[str], classes: tuple[str, ...] | None) -> Raw:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError("reading Parquet needs pyarrow: pip install pyarrow") from error
    import pyarrow as pa

    sizes, columns = [], ("", "")
    for file in progress(files, "reading Parquet"):
        try:
            about = pq.read_metadata(file)
            names = about.schema.to_arrow_schema().names
            columns = (_column(file, names, IMAGE_COLUMNS), _column(file, names, LABEL_COLUMNS))
            sizes.append(sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups)))
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {file}: {reason(error)}") from error
    mapped = arrow_file(files, columns, sum(sizes)) if sum(sizes) > memory_budget() else None
    if mapped:
        table = open_mapped(mapped)
    else:
        tables = []
        for file in files:
            try:
                tables.append(pq.read_table(file, columns=list(columns)))
            except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
                raise UserError(f"cannot read {file}: {reason(error)}") from error
        try:
            table = pa.concat_tables(tables)
        except pa.ArrowException as error:
            raise UserError(f"the columns of {files[0]} and the files beside it differ: {reason(error)}") from error
    folder = os.path.dirname(os.path.abspath(files[0]))
    return from_arrow(table, columns[0], columns[1], classes, os.path.basename(files[0]), folder, mapped)


def _column(file: str, names: Sequence[str], wanted: Sequence[str]) -> str:
    for name in wanted:
        if name in names:
            return name
    raise UserError(f"no column {' or '.join(wanted)} in {file} (its columns: {', '.join(names)})")


def from_arrow(
    table: Any,
    image: str,
    label: str,
    classes: tuple[str, ...] | None,
    name: str,
    folder: str | None = None,
    mapped: str | None = None,
) -> Raw:
    """Images and labels of an Arrow table.

    Args:
        table: Column ``image`` holds bytes, or a struct of ``bytes`` and ``path``; ``label`` integers or strings.
        image: Name of that column.
        label: Name of that column.
        classes: Class names of the training images; None when these are the training images.
        name: What to call the table in messages.
        folder: As of ``Cells``.
        mapped: As of ``Cells``.

    Raises:
        UserError: Columns of other types, labels that are missing, negative or not of the training images.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table[image]
    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(
            f"{image} of {name} is of type {column.type}; it must hold bytes, or a struct of bytes and path"
        )
    data = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
    sizes = pc.fill_null(pc.binary_length(data), 0).to_numpy().astype(np.int64)
    values = table[label]
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if not any(fits(values.type) for fits in (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string)):
        raise UserError(f"{label} of {name} is of type {values.type}; it must hold whole numbers or texts")
    if values.null_count or not len(values):
        raise UserError(f"{values.null_count} of {len(values)} rows of {name} have no {label}: expected one on each")
    if pa.types.is_integer(values.type):
        most = pc.max(values).as_py()
        if most >= MOST_CLASSES:
            raise UserError(f"{label} of {name} goes up to {most:,}: at most {MOST_CLASSES:,} classes are taken")
        labels = values.to_numpy().astype(np.int64)
        names = _names(table.schema, label, name) or tuple(str(i) for i in range(int(labels.max()) + 1))
        if classes is None and labels.min() < 0:
            raise UserError(f"{int((labels < 0).sum())} training rows of {name} have a negative {label}")
    else:
        try:
            texts = values.to_pylist()
        except UnicodeDecodeError as error:
            raise UserError(f"{label} of {name} holds a text that is not UTF-8") from error
        labels, names = numbered(texts, classes, name)
    classes = classes or names
    if labels.max() >= len(classes):
        raise UserError(f"{label} {labels.max()} in {name} is not one of the {len(classes)} training classes")
    files = (mapped, image) if mapped else None
    return Raw(Cells(column, name, np.arange(len(labels)), sizes, folder, files), labels, classes)


def _names(schema: Any, label: str, name: str) -> tuple[str, ...]:
    """Class names from the Hugging Face metadata of a schema; empty when it has none."""
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        for key in ("info", "features", label):
            found = found.get(key, {})
        names = found.get("names") or ()
        if not all(isinstance(each, str) for each in names):
            raise ValueError("a class name is no text")
        return tuple(names)
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"the Hugging Face metadata of {name} is damaged: {first_line(error)}") from error


def read_hf(name: str) -> tuple[Raw, Raw | None]:
    """A data set of the Hugging Face hub, through the ``datasets`` library.

    Raises:
        UserError: The library is not installed, the set can't be had, or its columns are others.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"hf:{name} needs the datasets library: pip install datasets") from error
    try:
        splits = datasets.load_dataset(name)
    except Exception as error:
        raise UserError(
            f"cannot load hf:{name} ({reason(error)}): check the name and the network, or use parquet:PATH"
        ) from error
    if "train" not in splits:
        raise UserError(f"hf:{name} has no train split (its splits: {', '.join(splits)})")

    def raw(split: str, classes: tuple[str, ...] | None) -> Raw:
        table = splits[split].data.table
        columns = (
            _column(f"hf:{name}", table.column_names, IMAGE_COLUMNS),
            _column(f"hf:{name}", table.column_names, LABEL_COLUMNS),
        )
        return from_arrow(table, columns[0], columns[1], classes, f"hf:{name} {split}")

    train = raw("train", None)
    tests = [raw(split, train.classes) for split in TEST_NAMES if split in splits]
    return train, next((test for test in tests if (test.labels >= 0).all()), None)
