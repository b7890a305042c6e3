"""Pickles of anyone, read without running anything: lists, dicts, texts, numbers, and NumPy's arrays of them.

``pickle.Unpickler`` calls what a file names. NumPy's names alone can crash a process: ``ndarray`` takes any bytes for
addresses of objects. So do a tuple of a million levels as a key, and a place in the memo that is a large number. Here
the steps of a file are taken one by one, those that plain data are written with and no others.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

MOST = 2_500_000  # steps of a file; a text or a number takes one or two
KINDS = re.compile(r"[iu][1248]|f[248]|b1|[SU][1-9]\d{0,3}")  # of arrays: numbers and texts, never objects
VALUES = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
VALUES |= {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
VALUES |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Array:
    """What a file holds for an array.

    Attributes:
        values: The array; it can't be written to.
    """

    def __init__(self, *_: Any) -> None:
        self.values: np.ndarray = np.zeros(0, np.int64)

    def build(self, state: tuple[Any, ...]) -> None:
        """Take its content: version, shape, type, whether columns come first, bytes."""
        _, shape, kind, columns_first, content = state
        self.values = _array(kind, shape, content, "F" if columns_first is True else "C")


class _Kind:
    """The type of an array."""

    def __init__(self, name: Any, *_: Any) -> None:
        if not isinstance(name, str) or not KINDS.fullmatch(name):
            raise ValueError("it has an array of neither numbers nor texts")
        self.dtype = np.dtype(name)

    def build(self, state: tuple[Any, ...]) -> None:
        """Take the order of its bytes; a type made of others has more."""
        if state[1] not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise ValueError("it has an array of neither numbers nor texts")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Name(NamedTuple):
    """Code that a file names, "module name"."""

    text: str


def _array(kind: Any, shape: Any, content: Any, order: str = "C") -> np.ndarray:
    content = content.encode("latin1") if isinstance(content, str) else content  # as Python 2 writes bytes
    if not isinstance(kind, _Kind) or not isinstance(shape, tuple) or not isinstance(content, bytes):
        raise ValueError("it has an array that is none")
    if len(shape) > 8 or not all(isinstance(side, int) and 0 <= side < 2**31 for side in shape):
        raise ValueError("it has an array of a shape that can't be")
    if math.prod(shape) * kind.dtype.itemsize != len(content):
        raise ValueError("it has an array whose shape its bytes don't fill")
    flat = np.frombuffer(content, kind.dtype) if content else np.zeros(0, kind.dtype)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _scalar(kind: Any, content: Any) -> Any:
    return _array(kind, (), content).item()


def _from_buffer(content: Any, kind: Any, shape: Any, order: str) -> Array:
    found = Array()
    found.values = _array(kind, shape, bytes(content) if isinstance(content, bytearray) else content, order)
    return found


def _encoded(text: str, _: Any) -> bytes:
    return text.encode("latin1")  # how the old protocols hold bytes


CALLS: dict[str, Callable[..., Any]] = {
    "numpy._core.multiarray _reconstruct": Array,
    "numpy._core.multiarray scalar": _scalar,
    "numpy._core.numeric _frombuffer": _from_buffer,
    "numpy dtype": _Kind,
    "_codecs encode": _encoded,
}


def read_plain(content: bytes) -> Any:
    """What a pickle holds, where that is plain data.

    It takes memory and time in proportion to the steps and bytes of the file. What it holds may contain one value in
    many places, or itself: count before you copy.

    Args:
        content: The file, of any protocol. The texts of Python 2 are read as Latin-1.

    Returns:
        Lists, tuples, dicts with keys of text, texts, bytes, numbers, None and `Array`.

    Raises:
        ValueError: It is cut off, has too many steps, or holds anything else.

    Example:
        >>> import pickle
        >>> found = read_plain(pickle.dumps({"a": [1, 2.5], "b": np.arange(3)}))
        >>> found["a"], found["b"].values
        ([1, 2.5], array([0, 1, 2]))
    """
    try:
        return _read(content)
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"it is no pickle ({type(error).__name__})") from error


def _read(content: bytes) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    left = len(content)  # bytes that arrays may take: of each its own

    def since_mark() -> list[Any]:
        at = marks.pop()
        found = stack[at:]
        del stack[at:]
        return found

    def charged(arguments: Any) -> Any:
        nonlocal left
        left -= sum(len(each) for each in arguments if isinstance(each, (str, bytes, bytearray)))
        if left < 0 or not isinstance(arguments, tuple):
            raise ValueError("it has more in its arrays than in the file")
        return arguments

    for step, (opcode, value, _) in enumerate(pickletools.genops(content)):
        if step == MOST:
            raise ValueError(f"it has more than {MOST:,} steps")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case name if name in VALUES:
                stack.append(value)
            case name if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                marks.append(len(stack))
            case "LIST":
                stack.append(since_mark())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack[-TUPLES[opcode.name] :] = [tuple(stack[-TUPLES[opcode.name] :])]
            case "DICT":
                stack.append(_put({}, since_mark()))
            case "APPEND":
                _extend(stack[-2], [stack.pop()])
            case "APPENDS":
                items = since_mark()
                _extend(stack[-1], items)
            case "SETITEM":
                key, item = stack[-2:]
                del stack[-2:]
                _put(stack[-1], [key, item])
            case "SETITEMS":
                items = since_mark()
                _put(stack[-1], items)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[int(value)] = stack[-1]  # type: ignore[arg-type]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[int(value)])  # type: ignore[arg-type]
            case "GLOBAL":
                stack.append(_named(str(value)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_named(f"{module} {name}" if isinstance(module, str) and isinstance(name, str) else ""))
            case "REDUCE":
                arguments, function = charged(stack.pop()), stack.pop()
                if not isinstance(function, _Name) or function.text not in CALLS:
                    raise ValueError("it calls what is not run")
                stack.append(CALLS[function.text](*arguments))
            case "BUILD":
                state = charged(stack.pop())
                if not isinstance(stack[-1], (Array, _Kind)):
                    raise ValueError("it has an object of a class")
                stack[-1].build(state)
            case "STOP":
                return stack.pop()
            case name:
                raise ValueError(f"it has the step {name}, which plain data have not")
    raise ValueError("it is cut off")


def _extend(target: Any, items: list[Any]) -> None:
    if not isinstance(target, list):
        raise ValueError("it adds to what is no list")
    target.extend(items)


def _put(target: Any, items: list[Any]) -> Any:
    if not isinstance(target, dict) or len(items) % 2 or not all(isinstance(key, str) for key in items[::2]):
        raise ValueError("it has a dict whose keys are no texts")
    target.update(zip(items[::2], items[1::2], strict=True))
    return target


def _named(text: str) -> _Name:
    text = text.replace("numpy.core.", "numpy._core.")  # its name in NumPy 1
    if text not in CALLS and text != "numpy ndarray":  # which is named for each array, and never called here
        raise ValueError(f"it names {text[:80]!r}, which is not run")
    return _Name(text)
