"""Paths of variables, chosen by pattern.

In a pattern `*` stands for any part of one name, `?` for one character, `[...]` for one of several, and `**`, as a name, for
any number of names, none included: `params/**/kernel`, `params/encoder/**`, `params/Dense_0/bias`.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence

SEPARATOR = "/"


def matching(pattern: str, paths: Iterable[str]) -> list[str]:
    """The paths that fit a pattern, in their order."""
    names = pattern.split(SEPARATOR)
    return [path for path in paths if _fits(path.split(SEPARATOR), names)]


def near(pattern: str, paths: Iterable[str], count: int = 3) -> list[str]:
    """Paths that a pattern may have meant, nearest first."""
    paths = list(paths)
    return difflib.get_close_matches(pattern, paths, count, cutoff=0) or paths[:count]


def _fits(names: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not names
    first, *rest = patterns
    if first == "**":
        return any(_fits(names[skipped:], rest) for skipped in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], first) and _fits(names[1:], rest)
