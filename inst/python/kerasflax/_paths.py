"""Paths of variables, and patterns that match them.

In a pattern, `*` matches any part of a name, `?` one character, and `[...]` one of several
characters. `**` as a whole name matches any number of names, including none. Examples:
`params/**/kernel`, `params/encoder/**`, `params/Dense_0/bias`.

Patterns may come from files. The time to match one is bounded: it grows with its length and with
the length of the paths.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ._errors import ArgumentError

SEPARATOR = "/"
Patterns = str | Sequence[str] | None
# Limits for a layer from a file: the number of patterns, the length of a pattern in characters, and
# the number of sets in a pattern. Names without wildcards do not count.
MOST_PATTERNS, LONGEST, MOST_SETS = 256, 10_000, 64
_ANY = "**"
# How many characters of a pattern, and how many paths, an error message considers.
_SHOWN, _NEAR = 200, 1000


def names_of_leaves(tree: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the names that lead to each leaf of nested dicts, which must be within the limits."""
    if isinstance(tree, Mapping):
        for name, subtree in tree.items():
            yield from names_of_leaves(subtree, (*above, str(name)))
    elif tree is not None:
        yield above


def has_separator(tree: Any) -> bool:
    """Whether any name in nested dicts contains a separator."""
    dicts = [tree]
    while dicts:
        for name, below in dicts.pop().items():
            if isinstance(name, str) and SEPARATOR in name:
                return True
            if isinstance(below, dict):
                dicts.append(below)
    return False


@dataclasses.dataclass(frozen=True)
class OtherLevel:
    """How paths must change to be the expected ones: below a prefix, or without one.

    Attributes:
        prefixes: What the paths lack, or what they have too much.
        is_lacking: Whether they lack it.
        is_choice: Whether each of the prefixes alone is enough.
    """

    prefixes: tuple[str, ...]
    is_lacking: bool
    is_choice: bool

    @classmethod
    def of(cls, given: Iterable[str], expected: Iterable[str]) -> OtherLevel | None:
        """Compare paths; None if one is as expected, or if no level makes one expected."""
        given, expected = set(given), set(expected)
        if given & expected:
            return None
        for longer, shorter in ((given, expected), (expected, given)):
            found: dict[str, set[str]] = {}
            for path in longer:
                for prefix, rest in _cuts(path):
                    if rest in shorter:
                        found.setdefault(prefix, set()).add(rest)
            if found:
                most = max(map(len, found.values()))
                best = sorted(prefix for prefix, rests in found.items() if len(rests) == most)
                # Otherwise, each prefix serves a part of the paths.
                is_choice = longer is given or most == len(set().union(*found.values()))
                return cls(tuple(best if is_choice else sorted(found)), shorter is given, is_choice)
        return None


def _cuts(path: str) -> Iterator[tuple[str, str]]:
    """Each beginning of a path with the rest of the path."""
    at = path.find(SEPARATOR)
    while at >= 0:
        yield path[:at], path[at + 1 :]
        at = path.find(SEPARATOR, at + 1)


def is_pattern(text: str) -> bool:
    """Whether a text contains wildcards."""
    return any(character in text for character in "*?[")


def matched(pattern: str, paths: Sequence[str], what: str = "trainable weight") -> list[str]:
    """Select the paths that match a pattern, in their order.

    Args:
        pattern: The pattern.
        paths: The paths.
        what: What messages call the thing with a path.

    Raises:
        ArgumentError: No path matches. The message lists the nearest ones.
    """
    found = list(filter(matcher(pattern), paths))
    if not found:
        near = list(itertools.islice(_wider(pattern, paths[:_NEAR]), 1))
        near += difflib.get_close_matches(pattern[:_SHOWN], paths[:_NEAR], cutoff=0)
        problem = f"No {what} has a path that matches {pattern[:_SHOWN]!r}"
        if not near:
            raise ArgumentError(f"{problem}: there are no {what}s.", advice="Remove the pattern.")
        raise ArgumentError(
            f"{problem}.",
            advice=f"Correct the pattern: the nearest of {len(paths)} are {', '.join(near)}.",
        )
    return found


def _wider(pattern: str, paths: Sequence[str]) -> Iterator[str]:
    """Find patterns that have more names at one end or both, and match a path."""
    if len(pattern) <= _SHOWN:
        for wider in (f"{pattern}/**", f"**/{pattern}", f"**/{pattern}/**"):
            if any(map(matcher(wider), paths)):
                yield wider


class Selection:
    """The weights that `path` selects and `skip` does not exclude, by patterns of their paths.

    Args:
        path: One or more patterns, or None for all weights.
        skip: One or more patterns, or None.

    Raises:
        ArgumentError: An argument is not a pattern or a list of patterns.
    """

    def __init__(self, path: Patterns = None, skip: Patterns = None) -> None:
        self._path = _patterns(path, "path")
        self._skip = _patterns(skip, "skip") or []
        self.is_all = path is None and skip is None
        self._selects = [matcher(pattern) for pattern in self._path or []]
        self._skips = [matcher(pattern) for pattern in self._skip]

    def __contains__(self, path: object) -> bool:
        if not isinstance(path, str):
            return False
        is_in = self._path is None or any(selects(path) for selects in self._selects)
        return is_in and not any(skips(path) for skips in self._skips)

    def check(self, paths: Sequence[str], others: Sequence[str] = ()) -> None:
        """Check that each pattern matches a path, and that something is selected.

        Args:
            paths: The paths to select from.
            others: Paths that are left out in any case, so that `skip` may name them.

        Raises:
            ArgumentError: A pattern matches nothing, or `skip` excludes all that `path` selects.
        """
        selected = paths
        if self._path is not None:
            lists = [matched(pattern, paths, "weight") for pattern in self._path]
            selected = list(dict.fromkeys(path for found in lists for path in found))
        for pattern in self._skip:
            if not any(map(matcher(pattern), others)):
                matched(pattern, selected, "weight" if self._path is None else "weight of `path`")
        if selected and not any(path in self for path in selected):
            which = "every weight" if self._path is None else "every weight that `path` selects"
            raise ArgumentError(f"`skip` excludes {which}.", advice="Exclude fewer weights.")


def _patterns(value: Patterns, argument: str) -> list[str] | None:
    if value is None:
        return None
    patterns = [value] if isinstance(value, str) else value
    is_list = isinstance(patterns, Sequence) and not isinstance(patterns, bytes)
    if not is_list or not patterns or not all(isinstance(each, str) for each in patterns):
        raise ArgumentError(
            f"`{argument}` must be a pattern of paths, or a list of patterns, got {value!r}."
        )
    return list(patterns)


def matcher(pattern: str) -> Callable[[str], bool]:
    """Parse a pattern into a function that says whether a path matches."""
    if not is_pattern(pattern):
        return pattern.__eq__
    is_match = _matcher(pattern)
    return lambda path: is_match(path.split(SEPARATOR))


def _matcher(pattern: str) -> Callable[[Sequence[str]], bool]:
    """Parse a pattern into a function that matches names. Adjacent `**` count as one."""
    texts = pattern.split(SEPARATOR)
    texts = [text for i, text in enumerate(texts) if text != _ANY or i == 0 or texts[i - 1] != _ANY]
    parts = [None if text == _ANY else _Part(text) for text in texts]
    return functools.partial(_match_parts, parts, len(parts) - parts.count(None))


def _match_parts(parts: Sequence[_Part | None], least: int, names: Sequence[str]) -> bool:
    """Whether the parts of a pattern match names. None is `**`; `least` is the number of others."""
    if least > len(names):
        return False
    # The numbers of leading names that the parts so far can match.
    reached = {0}
    for part in parts:
        if part is None:
            reached = set(range(min(reached), len(names) + 1))
        else:
            reached = {i + 1 for i in reached if i < len(names) and part.matches(names[i])}
        if not reached:
            return False
    return len(names) in reached


class _Part:
    """The part of a pattern for one name: an automaton whose states are the bits of an integer.

    In state i, the first i characters of the part have matched. Each character is a letter, a set,
    or any character. All states move at once, so that matching a name takes the same time no matter
    how often a beginning of the part occurs in it.
    """

    def __init__(self, text: str) -> None:
        # Bits of the states from which a letter, any character, or a set leads to the next state.
        self._of_letters: dict[str, int] = {}
        self._of_any, self._of_sets = 0, list[tuple[int, str]]()
        # Bits of the states that remain after any character, because of a `*`.
        self._stays = 0
        at, last, state = 0, text.rfind("]"), 1
        while at < len(text):
            # A closing bracket belongs to the set if it is the set's first character.
            end = (
                text.find("]", at + 2 + (text[at + 1 : at + 2] == "!"))
                if text[at] == "[" and at < last
                else -1
            )
            if text[at] == "*":
                self._stays |= state
            else:
                if end > 0:
                    self._of_sets.append((state, text[at + 1 : end]))
                    at = end
                elif text[at] == "?":
                    self._of_any |= state
                else:
                    self._of_letters[text[at]] = self._of_letters.get(text[at], 0) | state
                state <<= 1
            at += 1
        self._end = state
        self._moves = functools.cache(self._moves_by)

    def _moves_by(self, character: str) -> int:
        """The states from which a character leads to the next state."""
        of_sets = (state for state, text in self._of_sets if _is_in_set(text, character))
        return functools.reduce(
            int.__or__, of_sets, self._of_letters.get(character, 0) | self._of_any
        )

    def matches(self, name: str) -> bool:
        """Whether the part matches a name."""
        states = 1
        for character in name:
            states = (states & self._moves(character)) << 1 | states & self._stays
            if not states:
                return False
        return bool(states & self._end)


def _is_in_set(text: str, character: str) -> bool:
    """Whether a character is in a set such as `abc`, `a-z`, or `!a-z`, which means all others."""
    is_negated = text.startswith("!")
    at, is_in = int(is_negated), False
    while at < len(text) and not is_in:
        last = at + 2 * (text[at + 1 : at + 2] == "-" and at + 2 < len(text))
        is_in = text[at] <= character <= text[last]
        at = last + 1
    return is_in != is_negated
