"""How large a tree of variables may be, in a file and to be written: what is written can be read, and no file costs more.

No tree that a program has made for itself comes near these numbers. Without them a small file could take any time and memory: a
tree is walked by recursion, and a path repeats all names above a weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ._paths import SEPARATOR

DEEPEST = 256
MOST_VALUES = 2**20
# Of names in one dict that are integers: they can be chosen so that a dict of them takes the square of their number in time.
MOST_NUMBERED = 2**12
# Of one name, in UTF-8.
LONGEST_NAME = 2**16
# Of all paths together, in characters; what surrounds a name in memory counts as some characters more.
_LONGEST_PATHS = 2**28
_AROUND_NAME = 8
TOO_MANY = f"it nests deeper than {DEEPEST} levels, or holds more than {MOST_VALUES} values"
TOO_MANY_NUMBERED = f"a dict has more than {MOST_NUMBERED} integers as names"
_TOO_LONG = f"its paths have more than {_LONGEST_PATHS} characters"


def problem_of_tree(tree: Any) -> str | None:
    """What makes nested dicts, lists and tuples too large, None if nothing does; their depth does not matter here."""
    values, length = 0, 0
    stack = [(tree, 0, 0)]
    while stack:
        value, depth, above = stack.pop()
        values += 1
        if depth > DEEPEST or values > MOST_VALUES:
            return TOO_MANY
        if isinstance(value, np.ndarray):
            length += above
        elif isinstance(value, (dict, Mapping)):
            if len(value) > MOST_NUMBERED and isinstance(next(iter(value)), int):
                return TOO_MANY_NUMBERED
            for name, child in value.items():
                size = len(name) if isinstance(name, str) else 0
                stack.append((child, depth + 1, above + size + _AROUND_NAME))
        elif isinstance(value, (list, tuple)):
            stack.extend((child, depth + 1, above + _AROUND_NAME) for child in value)
        else:
            length += above
        if length > _LONGEST_PATHS:
            return _TOO_LONG
    return None


def problem_of_paths(paths: Iterable[str]) -> str | None:
    """What makes a tree too large that has weights at such paths, None if nothing does."""
    paths = list(paths)
    depths = [path.count(SEPARATOR) + 1 for path in paths]
    if len(paths) > MOST_VALUES or max(depths, default=0) > DEEPEST:
        return TOO_MANY
    if sum(map(len, paths)) + _AROUND_NAME * sum(depths) > _LONGEST_PATHS:
        return _TOO_LONG
    # Each name may be a dict of its own, or one that many paths have in common.
    return TOO_MANY if sum(depths) > MOST_VALUES and _nodes(paths) > MOST_VALUES else None


def _nodes(paths: Iterable[str]) -> int:
    """How many dicts and weights nested dicts have with weights at such paths."""
    count, before = 0, list[str]()
    for path in sorted(paths):
        names = path.split(SEPARATOR)
        common = next(
            (i for i, pair in enumerate(zip(names, before, strict=False)) if pair[0] != pair[1]),
            len(before),
        )
        count, before = count + len(names) - min(common, len(names)), names
    return count


def problem_of_name(name: str | int) -> str | None:
    """Why no file can have a name in it, None if it can."""
    if isinstance(name, int):
        return None if -(2**63) <= name < 2**64 else "the name is an integer of more than 64 bits"
    if name.isascii() and len(name) <= LONGEST_NAME:
        return None
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return f"the name {name!r} is no text of Unicode"
    return f"a name has more than {LONGEST_NAME} bytes" if size > LONGEST_NAME else None


def names_of_leaves(tree: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The names that lead to each leaf of nested dicts that are not too large."""
    if isinstance(tree, Mapping):
        for name, subtree in tree.items():
            yield from names_of_leaves(subtree, (*above, str(name)))
    elif tree is not None:
        yield above


def has_separator(tree: Any) -> bool:
    """Whether a name in nested dicts has a separator in it."""
    dicts = [tree]
    while dicts:
        for name, below in dicts.pop().items():
            if isinstance(name, str) and SEPARATOR in name:
                return True
            if isinstance(below, dict):
                dicts.append(below)
    return False


def printable(path: str) -> str:
    """A path for a message, with what is no Unicode escaped."""
    return path.encode(errors="backslashreplace").decode()
