"""Limits on the size of a tree of variables, in a file or before it is written.

Readers and writers share the limits, so that every tree that can be written can also be read. No
program creates a tree near these limits for its own use. Without them, a small file could cost any
amount of time and memory: trees are walked recursively, and a path repeats every name above a
weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ._paths import SEPARATOR

DEEPEST = 256
MOST_VALUES = 2**20
# Elements of one array, more than any real one has. JAX ends the process if the product of an
# array's sizes overflows.
MOST_ELEMENTS = 2**48
# An attacker can choose numbers that collide as dict keys, so that building a dict takes time
# quadratic in their count; Python randomizes the hashes of strings only. A file of variables has
# integer keys, which are cheap to compare, and models number their layers with them. A saved model
# can also have floats, tuples and other nested keys in a dict, which cost more to hash and compare
# and which real modules rarely have, so its limit is lower.
MOST_INTEGER_KEYS = 2**12
MOST_CONFIG_KEYS_NOT_TEXT = 2**9
# Bytes of one name in UTF-8.
LONGEST_NAME = 2**16
# Characters of all paths together. Each name counts as a few characters more, for its overhead in
# memory.
_LONGEST_PATHS = 2**28
_NAME_OVERHEAD = 8
TOO_MANY = f"it nests deeper than {DEEPEST} levels, or holds more than {MOST_VALUES} values"
TOO_MANY_INTEGER_KEYS = f"a dict has more than {MOST_INTEGER_KEYS} integer keys"
_TOO_LONG = f"its paths have more than {_LONGEST_PATHS} characters"


def problem_of_tree(tree: Any) -> str | None:
    """Explain why nested dicts, lists and tuples are too large; None if they are not.

    The check itself does not recurse, so it handles a tree of any depth.
    """
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
            if len(value) > MOST_INTEGER_KEYS and isinstance(next(iter(value)), int):
                return TOO_MANY_INTEGER_KEYS
            for name, child in value.items():
                size = len(name) if isinstance(name, str) else 0
                stack.append((child, depth + 1, above + size + _NAME_OVERHEAD))
        elif isinstance(value, (list, tuple)):
            stack.extend((child, depth + 1, above + _NAME_OVERHEAD) for child in value)
        else:
            length += above
        if length > _LONGEST_PATHS:
            return _TOO_LONG
    return None


def problem_of_paths(paths: Iterable[str]) -> str | None:
    """Explain why a tree with weights at these paths is too large; None if it is not."""
    paths = list(paths)
    depths = [path.count(SEPARATOR) + 1 for path in paths]
    if len(paths) > MOST_VALUES or max(depths, default=0) > DEEPEST:
        return TOO_MANY
    if sum(map(len, paths)) + _NAME_OVERHEAD * sum(depths) > _LONGEST_PATHS:
        return _TOO_LONG
    # Count the nodes only if needed: paths may share the dicts above their weights.
    return TOO_MANY if sum(depths) > MOST_VALUES and _nodes(paths) > MOST_VALUES else None


def _nodes(paths: Iterable[str]) -> int:
    """Count the dicts and weights in nested dicts with weights at these paths."""
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
    """Explain why no file can hold a name; None if files can."""
    if isinstance(name, int):
        return None if -(2**63) <= name < 2**64 else "the name is an integer of more than 64 bits"
    if name.isascii() and len(name) <= LONGEST_NAME:
        return None
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return f"the name {name!r} is not valid Unicode"
    return f"a name has more than {LONGEST_NAME} bytes" if size > LONGEST_NAME else None
