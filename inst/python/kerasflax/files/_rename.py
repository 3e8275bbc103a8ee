"""Weights of a file under other names, and what became of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from .._errors import ArgumentError

Rename = Mapping[str, "str | None"] | Callable[[str], "str | None"]
# Of each path in a file where it goes, None for nowhere.
Targets = Mapping[str, "str | None"]


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of the weights in a file.

    Attributes:
        mapped: Where each path of the file went.
        left_over: Paths of the file that went nowhere.
        missing: Paths of `like` that got nothing.
    """

    mapped: Mapping[str, str]
    left_over: Sequence[str]
    missing: Sequence[str]

    @classmethod
    def of(cls, targets: Targets, expected: Iterable[str]) -> Report:
        """What becomes of paths where others are expected."""
        wanted = dict.fromkeys(expected)
        mapped = {old: new for old, new in targets.items() if new is not None and new in wanted}
        filled = set(mapped.values())
        left_over = [old for old in targets if old not in mapped]
        return cls(mapped, left_over, [path for path in wanted if path not in filled])

    def __str__(self) -> str:
        renamed = [f"{old} -> {new}" for old, new in self.mapped.items() if old != new]
        parts = (
            (f"Mapped (and {len(self.mapped) - len(renamed)} as they were)", renamed),
            ("Left over", self.left_over),
        )
        lists = [(title, paths) for title, paths in (*parts, ("Missing", self.missing)) if paths]
        lines = [
            "\n".join([f"{title}:", *(f"  {path}" for path in paths)]) for title, paths in lists
        ]
        if not renamed:
            paths = [*self.mapped, *self.left_over]
            lines.insert(
                0,
                f"No name was changed: none of {len(paths)} fits, such as {', '.join(paths[:5])}.",
            )
        return "\n".join(lines)


def renaming(rename: Rename | None) -> Callable[[str], str | None]:
    """The function from path to path that a user has described.

    Raises:
        ArgumentError: It is no function, and no dict from regular expressions to replacements.
    """
    if rename is None:
        return lambda path: path
    if not isinstance(rename, Mapping):
        if not callable(rename):
            raise ArgumentError(
                f"`rename` must be a dict from patterns to replacements, or a function, got {rename!r}."
            )
        return rename
    try:
        patterns = [(re.compile(pattern), replacement) for pattern, replacement in rename.items()]
    except (re.error, TypeError) as error:
        raise ArgumentError(f"`rename` must have regular expressions as names: {error}.") from error

    def renamed(path: str) -> str | None:
        for pattern, replacement in patterns:
            match = pattern.fullmatch(path)
            if match:
                try:
                    return replacement if replacement is None else match.expand(replacement)
                except (re.error, IndexError, TypeError) as error:
                    raise ArgumentError(
                        f"`rename` cannot replace {path!r} by {replacement!r}: {error}."
                    ) from error
        return path

    return renamed


def targets_of(paths: Iterable[str], rename: Callable[[str], str | None]) -> Targets:
    """Of each path where it goes, None for nowhere.

    Raises:
        ArgumentError: Two go to one place, or the new path is none.
    """
    targets: dict[str, str | None] = {}
    sources: dict[str, str] = {}
    for old in paths:
        new = targets[old] = rename(old)
        if new is None:
            continue
        if not isinstance(new, str) or not (new or new == old):
            raise ArgumentError(
                f"`rename` must give a path, or None to leave a weight out; for {old!r} it gave {new!r}."
            )
        if new in sources:
            raise ArgumentError(
                f"`rename` sends two weights to {new!r}: {sources[new]!r} and {old!r}."
            )
        sources[new] = old
    return targets


def shown(targets: Targets) -> str:
    """What to say of other names where something does not fit."""
    renamed = [
        f"  {old} -> {new}" for old, new in targets.items() if new is not None and old != new
    ]
    return (
        "\n".join(["Renamed have been:", *renamed])
        if renamed
        else "Where names alone differ, `rename` can map them."
    )
