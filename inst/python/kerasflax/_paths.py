"""Paths of variables, chosen by pattern.

In a pattern `*` stands for any part of one name, `?` for one character, `[...]` for one of several, and `**`, as a name, for
any number of names, none included: `params/**/kernel`, `params/encoder/**`, `params/Dense_0/bias`.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence

from ._errors import ArgumentError

SEPARATOR = "/"


def matched(pattern: str, paths: Sequence[str]) -> list[str]:
    """The paths that fit a pattern, in their order.

    Raises:
        ArgumentError: None does; the message shows those nearest to the pattern.
    """
    found = [path for path in paths if _fits(path.split(SEPARATOR), pattern.split(SEPARATOR))]
    if not found:
        below = f"{pattern}{SEPARATOR}"
        near = [f"{below}**"] if any(path.startswith(below) for path in paths) else []
        near += difflib.get_close_matches(pattern, paths, cutoff=0)
        raise ArgumentError(
            f"No trainable weight has a path that fits {pattern!r}.\n"
            + (f"The nearest of {len(paths)} are {', '.join(near)}." if near else "There is none to choose from.")
        )
    return found


def _fits(names: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not names
    first, *rest = patterns
    if first == "**":
        return any(_fits(names[skipped:], rest) for skipped in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], first) and _fits(names[1:], rest)
