"""Flax's msgpack files: written with `flax.serialization`, read without it.

The msgpack package returns the bytes of an array only as a copy in memory, and Flax copies them
again: for a file with one array of 1 GB, its `msgpack_restore` takes 3 GB. This reader reads each
array directly into its final memory. It handles only the few types that Flax writes, so it can also
check every length before it uses it.

Flax stores an array as an extension of type 1 that holds a nested msgpack value: (shape, name of
the dtype, bytes). Type 2 is a complex number, type 3 a NumPy scalar. An array above 1 GiB is a map
of a mark, its shape and its chunks.
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

from .. import _dtypes, _limits, _messages
from .._errors import FileError, VariablesError
from .._paths import SEPARATOR
from . import _sink
from ._source import Progress, Source

PyTree = Any
Array = np.ndarray[Any, Any]

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"

# NumPy's own limit.
_MOST_DIMENSIONS = 64

# The kind of a value by its first byte. In the short forms (kind, first code, end of the codes) the
# byte also contains the length or value. In the long forms (kind, struct format) that comes next.
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


def write(tree: PyTree, size: int, path: Path, progress: Progress | None = None) -> None:
    """Write nested dicts of arrays and numbers.

    The bytes are the same as those of `flax.serialization.msgpack_serialize`.

    Args:
        tree: The nested dicts.
        size: The bytes of all arrays, for `progress`.
        path: The file to create.
        progress: Called with the number of bytes written so far and their total.

    Raises:
        OSError: The file cannot be written.
        VariablesError: Flax reserves one of the names.
    """
    reserved = {
        _messages.printable(path): "a dict with this name is an array in chunks"
        for path in _reserved_paths(tree, "")
    }
    if reserved:
        raise VariablesError(
            f"Flax reserves the name {_CHUNKED!r} in `.msgpack` files.",
            problems=reserved,
            advice="Give the weight another name.",
        )
    with _sink.created(path, size, progress) as sink:
        for piece in _pieces(tree):
            sink.write(piece)


def _reserved_paths(tree: PyTree, prefix: str) -> Iterator[str]:
    """Yield the paths of names that Flax would take for the mark of an array in chunks."""
    if isinstance(tree, Mapping):
        for name, subtree in tree.items():
            if name == _CHUNKED:
                yield f"{prefix}{name}"
            yield from _reserved_paths(subtree, f"{prefix}{name}{SEPARATOR}")


def _pieces(tree: PyTree) -> Iterator[bytes]:
    # One array at a time, because Flax makes three copies of its argument.
    if isinstance(tree, Mapping):
        yield msgpack.Packer().pack_map_header(len(tree))
        for key, subtree in tree.items():
            yield msgpack.packb(key)
            yield from _pieces(subtree)
    else:
        yield flax.serialization.msgpack_serialize(tree)


def is_dict(source: Source) -> bool:
    """Whether a file that has not been read yet begins like a dict with entries."""
    code = source.head()[:1]
    return b"\x80" < code < b"\x90" or code in (b"\xde", b"\xdf")


def read(source: Source) -> dict[Any, PyTree]:
    """Read nested dicts of arrays; numbers become arrays of shape ().

    Raises:
        FileError: The file is damaged, or Flax did not write it.
    """
    try:
        tree = _Reader(source).tree()
    except (TypeError, ValueError, OverflowError) as error:
        # A value has another type, or a list another length, than expected.
        raise source.damaged(str(error)) from error
    if source.position < source.size:
        raise source.damaged(f"{source.size - source.position} bytes follow its end")
    if not isinstance(tree, dict):
        raise FileError(
            f"{str(source.path)!r} holds no dict of variables, but a value of type"
            f" {type(tree).__name__}."
        )
    return tree


class _Reader:
    def __init__(self, source: Source) -> None:
        self._source = source
        self._nodes = 0

    def tree(self, depth: int = 0) -> PyTree:
        """Read the next value, of any kind."""
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
            raise self._source.damaged("it has bytes where an array is expected")
        if kind == "text":
            return self._text(number)
        return number if number is None else np.asarray(number)

    def _header(self) -> tuple[str, Any]:
        """Read the kind of the next value, and its length, or the value itself for kind "value"."""
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
            # Each entry of a map takes at least two bytes, and each item of a list one.
            self._source.check(2 * number if kind == "map" else number)
        return kind, number

    def _expect(self, kind: str) -> Any:
        got, number = self._header()
        if got != kind:
            raise self._source.damaged(f"it has a {got} where a {kind} is expected")
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
                    raise self._source.damaged(
                        "an array in chunks has other entries before its mark"
                    )
                return self._chunked(number)
            if kind not in ("text", "value") or type(key) not in (str, int) or key in result:
                raise self._source.damaged(
                    f"the key {key!r} of a dict is a duplicate, or neither text nor an integer"
                )
            if type(key) is int and number > _limits.MOST_INTEGER_KEYS:
                raise self._source.damaged(_limits.TOO_MANY_INTEGER_KEYS)
            if result and type(key) is not type(next(iter(result))):
                raise self._source.damaged("a dict has both text and integers as keys")
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
            raise self._source.damaged(f"Flax does not write extensions of type {code}")
        if self._source.position != end:
            raise self._source.damaged("an array does not have the announced length")
        return array

    def _array_header(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Read the shape and dtype of an array, and check that its bytes come next."""
        if self._expect("list") != 3:
            raise self._source.damaged("an array must consist of a shape, a dtype and bytes")
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
            raise self._source.damaged("a shape has too many dimensions, or one that is not a size")
        return tuple(sizes)

    def _chunked(self, number: int) -> Array:
        """Read an array in chunks, after its mark, which is the key of a dict's first entry."""
        is_marked = number == 3 and self._header() == ("value", True)
        if not is_marked or self._text(self._expect("text")) != "shape":
            raise self._source.damaged("an array in chunks has no shape")
        shape = self._sizes([self._numbered(i, "value") for i in range(self._expect("map"))])
        if self._text(self._expect("text")) != "chunks":
            raise self._source.damaged("an array in chunks has no chunks")
        flat, filled = np.empty(0), 0
        for i in range(self._expect("map")):
            end = self._numbered(i, "extension") + self._source.position + 1
            if self._source.take(1)[0] != _ARRAY:
                raise self._source.damaged("a chunk is not an array")
            (size,), dtype = self._array_header()
            if i == 0:
                self._source.check(math.prod(shape) * dtype.itemsize)
                flat = np.empty(math.prod(shape), dtype)
            if dtype != flat.dtype or size > flat.size - filled:
                raise self._source.damaged("the chunks of an array do not fit together")
            self._source.fill(flat[filled : filled + size])
            filled += size
            if self._source.position != end:
                raise self._source.damaged("a chunk does not have the announced length")
        if filled != math.prod(shape) or not filled:
            raise self._source.damaged("the chunks of an array do not fit together")
        return flat.reshape(shape)

    def _numbered(self, i: int, kind: str) -> Any:
        if self._text(self._expect("text")) != str(i):
            raise self._source.damaged("the parts of an array in chunks are not numbered in order")
        return self._expect(kind)
