"""Renaming the weights of a file, and a report of the result."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from .. import _host
from .._errors import ArgumentError
from .._messages import value_text

Rename = Mapping[str, "str | None"] | Callable[[str], "str | None"]
# From a path in a file to its new path, or None if the weight is left out.
Targets = Mapping[str, "str | None"]


@dataclasses.dataclass(frozen=True)
class Report:
    """How the weights in a file were assigned.

    Attributes:
        mapped: From each used path of the file to its new path.
        left_over: Paths of the file that were not used.
        missing: Paths of `like` that received no weight.
    """

    mapped: Mapping[str, str]
    left_over: Sequence[str]
    missing: Sequence[str]

    @classmethod
    def of(cls, targets: Targets, expected: Iterable[str]) -> Report:
        """Report how targets match the expected paths."""
        wanted = dict.fromkeys(expected)
        mapped = {old: new for old, new in targets.items() if new is not None and new in wanted}
        filled = set(mapped.values())
        left_over = [old for old in targets if old not in mapped]
        return cls(mapped, left_over, [path for path in wanted if path not in filled])

    def __str__(self) -> str:
        renamed = [f"{old} -> {new}" for old, new in self.mapped.items() if old != new]
        sections = {
            f"Mapped (and {len(self.mapped) - len(renamed)} unchanged)": renamed,
            "Left over": self.left_over,
            "Missing": self.missing,
        }
        lines = [
            "\n".join([f"{title}:", *(f"  {path}" for path in paths)])
            for title, paths in sections.items()
            if paths
        ]
        if not renamed:
            paths = [*self.mapped, *self.left_over]
            lines.insert(
                0,
                f"No name was changed. The file has {len(paths)} paths, such as"
                f" {', '.join(paths[:5])}.",
            )
        return "\n".join(lines)


def rename_function(rename: Rename | None) -> Callable[[str], str | None]:
    """Convert a `rename` argument to a function from path to path.

    Raises:
        ArgumentError: It is neither a function nor a dict from regular expressions to replacements.
    """
    if rename is None:
        return lambda path: path
    if not isinstance(rename, Mapping):
        if not callable(rename):
            raise ArgumentError(
                f"`rename` must be {_host.word('dict')} from patterns to replacements,"
                f" or a function, got {value_text(rename)}."
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
    """Rename each path.

    Raises:
        ArgumentError: A new path is not a path, or two weights get the same path.
    """
    targets: dict[str, str | None] = {}
    sources: dict[str, str] = {}
    for old in paths:
        new = targets[old] = rename(old)
        if new is None:
            continue
        if not isinstance(new, str) or not (new or new == old):
            raise ArgumentError(
                f"`rename` must return a path, or {_host.word('none')} to leave a weight out;"
                f" for {old!r} it returned {value_text(new)}."
            )
        if new in sources:
            raise ArgumentError(
                f"`rename` sends two weights to {new!r}: {sources[new]!r} and {old!r}."
            )
        sources[new] = old
    return targets


def rename_advice(targets: Targets) -> str:
    """Advise how to fix names that do not fit, with the changes that `rename` has made."""
    renamed = [
        f"  {old} -> {new}" for old, new in targets.items() if new is not None and old != new
    ]
    return (
        "\n".join(["Check `rename`, which changed these paths:", *renamed])
        if renamed
        else "If only the names differ, map them with `rename`."
    )
