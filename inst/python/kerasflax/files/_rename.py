"""Renaming the weights of a file, and a report of the result."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from .. import _host
from .._errors import ArgumentError
from .._messages import value_text
from .._paths import SEPARATOR

Rename = Mapping[str, "str | None"] | Callable[[str], "str | None"]
# From a path in a file to its new path, or None if the weight is left out.
Targets = Mapping[str, "str | None"]


@dataclasses.dataclass(frozen=True)
class Report:
    """How the weights in a file were assigned.

    Attributes:
        mapped: From each used path of the file to its new path.
        left_over: Paths of the file that were not used, nor skipped.
        missing: Paths of `like` that received no weight, and were not skipped.
        skipped: The new paths, in `like` or the file, that `path` and `skip` leave out.
        is_rename_unused: Whether `rename` was given and has changed no path.
    """

    mapped: Mapping[str, str]
    left_over: Sequence[str]
    missing: Sequence[str]
    skipped: Sequence[str] = ()
    is_rename_unused: bool = False

    @classmethod
    def of(
        cls,
        targets: Targets,
        expected: Iterable[str],
        skipped: Iterable[str] = (),
        *,
        is_rename_unused: bool = False,
    ) -> Report:
        """Report how targets match the expected paths, without the skipped ones."""
        wanted = dict.fromkeys(expected)
        mapped = {old: new for old, new in targets.items() if new is not None and new in wanted}
        filled = set(mapped.values())
        left_over = [old for old in targets if old not in mapped]
        missing = [path for path in wanted if path not in filled]
        return cls(mapped, left_over, missing, list(skipped), is_rename_unused)

    @property
    def is_complete(self) -> bool:
        """Whether all weights of the file were used, and none is missing or skipped."""
        return not (self.left_over or self.missing or self.skipped)

    def __str__(self) -> str:
        renamed = {
            old: new for old, new in self.mapped.items() if any(_without_common_end(old, new))
        }
        sections = {
            f"Mapped (and {len(self.mapped) - len(renamed)} unchanged)": _renamed_lines(renamed),
            "Left over": _above_the_used(self.left_over, self.mapped),
            "Missing": self.missing,
            "Skipped": _above_the_used(self.skipped, self.mapped.values()),
        }
        lines = [
            "\n".join([f"{title}:", *(f"  {path}" for path in paths)])
            for title, paths in sections.items()
            if paths
        ]
        if self.is_rename_unused:
            paths = [*self.mapped, *self.left_over]
            lines.insert(
                0,
                f"No name was changed. The file has {len(paths)} paths, such as"
                f" {', '.join(paths[:5])}.",
            )
        return "\n".join(lines)


def _renamed_lines(renamed: Mapping[str, str]) -> list[str]:
    """One line for all paths that differ only in the same names at their beginning."""
    groups: dict[tuple[str, str], list[str]] = {}
    for old, new in renamed.items():
        groups.setdefault(_without_common_end(old, new), []).append(old)
    lines = []
    for (above, new_above), paths in groups.items():
        if len(paths) == 1:
            lines.append(f"{paths[0]} -> {renamed[paths[0]]}")
        else:
            lines.append(f"{_below(above)} -> {_below(new_above)} ({len(paths)} weights)")
    return lines


def _below(above: str) -> str:
    return SEPARATOR.join([above, "**"] if above else ["**"])


def _without_common_end(old: str, new: str) -> tuple[str, str]:
    """Two paths without the names at their ends that are the same."""
    # The field of a box is not a part of a path.
    olds, news = old.removesuffix(f"{SEPARATOR}value").split(SEPARATOR), new.split(SEPARATOR)
    while olds and news and olds[-1] == news[-1]:
        olds.pop()
        news.pop()
    return SEPARATOR.join(olds), SEPARATOR.join(news)


def _above_the_used(paths: Iterable[str], used: Iterable[str]) -> list[str]:
    """The paths, with one pattern for all paths below a name that has nothing used below it."""
    above_used = {path[:end] for path in used for end, part in enumerate(path) if part == SEPARATOR}

    def shown(path: str) -> str:
        ends = (end for end, part in enumerate(path) if part == SEPARATOR)
        unused = next((path[:end] for end in ends if path[:end] not in above_used), None)
        return path if unused is None else _below(unused)

    return list(dict.fromkeys(map(shown, paths)))


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


def advice_on_mismatches(targets: Targets, *, names_differ: bool, axes_differ: bool = False) -> str:
    """Advise what to do about weights that do not fit.

    Args:
        targets: The changes that `rename` has made.
        names_differ: Whether weights are missing, and others are left over.
        axes_differ: Whether a weight has the axes of the expected one in another order.
    """
    order = ""
    if axes_differ and not names_differ:
        order = (
            "If only the order of the axes differs, as in PyTorch's files, give it:"
            f" {_host.word('transpose')}. "
        )
    renamed = [
        f"  {old} -> {new}" for old, new in targets.items() if new is not None and old != new
    ]
    if renamed and not order:
        return "\n".join(["Check `rename`, which changed these paths:", *renamed])
    if names_differ:
        return "If only the names differ, map them with `rename`."
    return f"{order}To read the others alone, list these weights in `skip`."
