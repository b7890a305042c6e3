"""The picture beside a row: some test images with what was predicted of them."""

from __future__ import annotations

import hashlib

from ssl_bench.results.rows.row import Row
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.files import read_regular

LARGEST = 2**18  # bytes; ``evaluations.pictures`` writes no larger one
START = b"\x89PNG\r\n\x1a\n"


def read_picture(row: Row) -> bytes | None:
    """The PNG file of a row; None if the row has none.

    The name comes from a file of others and never leads out of the folder.

    Raises:
        UserError: It is missing, larger than `LARGEST`, or not the picture of its row.
    """
    stated = row.values.get("picture")
    if stated is None:
        return None
    path = row.path.with_suffix(".png")
    if stated["file"] != path.name:
        raise UserError(f"{row.path}: its picture is named {stated['file']!r}, not {path.name!r}")
    try:
        content = read_regular(path, LARGEST)
    except FileNotFoundError as error:
        raise UserError(f"its picture, {path.name}, is missing") from error
    if hashlib.sha256(content).hexdigest() != stated["sha256"] or not content.startswith(START):
        raise UserError(f"{path} is not the picture that its row was written with")
    return content
