"""Flax's msgpack files: written by `flax.serialization`, read without it.

The msgpack package gives an array's bytes only as a copy in memory, and Flax copies that: of a file with one array of 1 GB its
`msgpack_restore` needs 3 GB. Here every array is read into the memory that it stays in. A reader of the few types that Flax
writes is also what can check each length before it is believed.

Flax keeps an array as an extension of type 1 that holds a msgpack of its own: (shape, dtype's name, bytes). Type 2 is a complex
number, type 3 a NumPy scalar. An array above 1 GiB is a map of a mark, its shape and its chunks.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.serialization
import msgpack
import numpy as np

from .. import _dtypes, _limits
from .._errors import FileError, VariablesError
from .._paths import SEPARATOR
from ._source import Source

PyTree = Any
Array = np.ndarray[Any, Any]

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"

# As NumPy has it.
_MOST_DIMENSIONS = 64

# First bytes: of the short forms, in order, where each ends; of the others, what follows.
_SHORT = (("value", 0x00, 0x80), ("map", 0x80, 0x90), ("list", 0x90, 0xA0), ("text", 0xA0, 0xC0))
_LONG = {
    **{0xC4: ("bytes", "B"), 0xC5: ("bytes", "H"), 0xC6: ("bytes", "I")},
    **{0xC7: ("extension", "B"), 0xC8: ("extension", "H"), 0xC9: ("extension", "I")},
    **{0xCA: ("value", "f"), 0xCB: ("value", "d")},
    **{0xCC: ("value", "B"), 0xCD: ("value", "H"), 0xCE: ("value", "I"), 0xCF: ("value", "Q")},
    **{0xD0: ("value", "b"), 0xD1: ("value", "h"), 0xD2: ("value", "i"), 0xD3: ("value", "q")},
    **{0xD9: ("text", "B"), 0xDA: ("text", "H"), 0xDB: ("text", "I")},
    **{0xDC: ("list", "H"), 0xDD: ("list", "I"), 0xDE: ("map", "H"), 0xDF: ("map", "I")},
}
_CONSTANTS: dict[int, tuple[str, Any]] = {
    **{0xC0: ("value", None), 0xC2: ("value", False), 0xC3: ("value", True)},
    **{0xD4 + i: ("extension", 2**i) for i in range(5)},
}


def write(tree: PyTree, path: Path) -> None:
    """Write nested dicts of arrays and numbers: the bytes are those of `flax.serialization.msgpack_serialize`.

    Raises:
        VariablesError: A name means something else in such a file.
    """
    marks = [f"  {_limits.printable(found)}" for found in _marks(tree, "")]
    if marks:
        raise VariablesError(
            "A dict with this name is an array in pieces to Flax:\n"
            + "\n".join(marks)
            + "\nGive the weight another name."
        )
    with open(path, "wb") as file:
        file.writelines(_pieces(tree))


def _marks(tree: PyTree, prefix: str) -> Iterator[str]:
    """Paths of names that Flax takes for the mark of an array in chunks."""
    if isinstance(tree, Mapping):
        for name, subtree in tree.items():
            if name == _CHUNKED:
                yield f"{prefix}{name}"
            yield from _marks(subtree, f"{prefix}{name}{SEPARATOR}")


def _pieces(tree: PyTree) -> Iterator[bytes]:
    # One array at a time, since Flax makes three copies of what it is given.
    if isinstance(tree, Mapping):
        yield msgpack.Packer().pack_map_header(len(tree))
        for key, subtree in tree.items():
            yield msgpack.packb(key)
            yield from _pieces(subtree)
    else:
        yield flax.serialization.msgpack_serialize(tree)


def read(source: Source) -> dict[Any, PyTree]:
    """Read nested dicts of arrays; numbers become arrays without dimensions.

    Raises:
        FileError: The file is truncated, or none that Flax has written.
    """
    try:
        tree = _Reader(source).tree()
    except (TypeError, ValueError, OverflowError) as error:
        # What is there is of another type, or number, than what belongs there.
        raise source.damaged(str(error)) from error
    if source.position < source.size:
        raise source.damaged(f"{source.size - source.position} bytes follow after its end")
    if not isinstance(tree, dict):
        raise FileError(
            f"{str(source.path)!r} holds no dict of variables, but one {type(tree).__name__}."
        )
    return tree


class _Reader:
    def __init__(self, source: Source) -> None:
        self._source = source
        self._nodes = 0

    def tree(self, depth: int = 0) -> PyTree:
        """The next value, whatever it is."""
        self._nodes += 1
        if depth > _limits.DEEPEST or self._nodes > _limits.MOST_VALUES:
            raise self._source.damaged(_limits.TOO_MANY)
        kind, number = self._header()
        if kind == "map":
            return self._map(number, depth)
        if kind == "list":
            return [self.tree(depth + 1) for _ in range(number)]
        if kind == "extension":
            return self._extension(number)
        if kind == "bytes":
            raise self._source.damaged("there are bytes where an array is expected")
        if kind == "text":
            return self._text(number)
        return number if number is None else np.asarray(number)

    def _header(self) -> tuple[str, Any]:
        """Of the next value its kind, and its length or, of kind "value", itself."""
        code = self._source.take(1)[0]
        if code in _CONSTANTS:
            kind, number = _CONSTANTS[code]
        elif code in _LONG:
            kind, form = _LONG[code]
            (number,) = struct.unpack(f">{form}", self._source.take(struct.calcsize(form)))
        elif code >= 0xE0:
            kind, number = "value", code - 0x100
        elif code >= 0xC0:
            raise self._source.damaged(f"msgpack has no type {code:#x}")
        else:
            kind, start = next((kind, start) for kind, start, end in _SHORT if start <= code < end)
            number = code - start
        if kind != "value":
            # The least that a map's entries and a list's take is two bytes and one.
            self._source.check(2 * number if kind == "map" else number)
        return kind, number

    def _expect(self, kind: str) -> Any:
        got, number = self._header()
        if got != kind:
            raise self._source.damaged(f"a {kind} is expected, and there is a {got}")
        return number

    def _text(self, length: int) -> str:
        if length > _limits.LONGEST_NAME:
            raise self._source.damaged(f"a name has {length} bytes")
        return self._source.take(length).decode()

    def _map(self, number: int, depth: int) -> PyTree:
        result: dict[Any, PyTree] = {}
        for _ in range(number):
            kind, key = self._header()
            key = self._text(key) if kind == "text" else key
            if key == _CHUNKED:
                if result:
                    raise self._source.damaged("an array in chunks has other parts before its mark")
                return self._chunked(number)
            if kind not in ("text", "value") or type(key) not in (str, int) or key in result:
                raise self._source.damaged(
                    f"the name {key!r} in a dict is no text or integer, or is there twice"
                )
            if type(key) is int and number > _limits.MOST_NUMBERED:
                raise self._source.damaged(_limits.TOO_MANY_NUMBERED)
            if result and type(key) is not type(next(iter(result))):
                raise self._source.damaged("a dict has both texts and integers as names")
            result[key] = self.tree(depth + 1)
        return result

    def _extension(self, length: int) -> Array:
        code = self._source.take(1)[0]
        self._source.check(length)
        end = self._source.position + length
        if code == _COMPLEX:
            real, imaginary = (self._expect("value") for _ in range(self._expect("list")))
            array = np.asarray(complex(real, imaginary))
        elif code in (_ARRAY, _SCALAR):
            shape, dtype = self._array_header()
            array = np.empty(shape, dtype)
            self._source.fill(array)
        else:
            raise self._source.damaged(f"Flax writes no extension of type {code}")
        if self._source.position != end:
            raise self._source.damaged("an array does not fill the space that it announced")
        return array

    def _array_header(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype of the array whose bytes come next, as many as these two need."""
        if self._expect("list") != 3:
            raise self._source.damaged("an array has other parts than shape, dtype and bytes")
        shape = self._sizes([self._expect("value") for _ in range(self._expect("list"))])
        dtype = _dtypes.named(self._text(self._expect("text")))
        length = self._expect("bytes")
        if math.prod(shape) * dtype.itemsize != length:
            raise self._source.damaged(
                f"an array of {dtype} and shape {shape} cannot have {length} bytes"
            )
        return shape, dtype

    def _sizes(self, sizes: Sequence[Any]) -> tuple[int, ...]:
        if len(sizes) > _MOST_DIMENSIONS or not all(
            type(size) is int and 0 <= size < 2**63 for size in sizes
        ):
            raise self._source.damaged("a shape holds something else than sizes, or too many")
        return tuple(sizes)

    def _chunked(self, number: int) -> Array:
        """The array whose mark has been read, as the name of a dict's first entry."""
        is_marked = number == 3 and self._header() == ("value", True)
        if not is_marked or self._text(self._expect("text")) != "shape":
            raise self._source.damaged("an array in chunks has no shape")
        shape = self._sizes([self._numbered(i, "value") for i in range(self._expect("map"))])
        if self._text(self._expect("text")) != "chunks":
            raise self._source.damaged("an array in chunks has no chunks")
        flat, done = np.empty(0), 0
        for i in range(self._expect("map")):
            end = self._numbered(i, "extension") + self._source.position + 1
            if self._source.take(1)[0] != _ARRAY:
                raise self._source.damaged("a chunk is no array")
            (size,), dtype = self._array_header()
            if i == 0:
                self._source.check(math.prod(shape) * dtype.itemsize)
                flat = np.empty(math.prod(shape), dtype)
            if dtype != flat.dtype or size > flat.size - done:
                raise self._source.damaged("the chunks of an array do not fit together")
            self._source.fill(flat[done : done + size])
            done += size
            if self._source.position != end:
                raise self._source.damaged("a chunk does not fill the space that it announced")
        if done != math.prod(shape) or not done:
            raise self._source.damaged("the chunks of an array do not fit together")
        return flat.reshape(shape)

    def _numbered(self, i: int, kind: str) -> Any:
        if self._text(self._expect("text")) != str(i):
            raise self._source.damaged("the parts of an array in chunks are not numbered")
        return self._expect(kind)
