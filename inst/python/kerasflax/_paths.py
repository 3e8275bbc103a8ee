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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ._errors import ArgumentError

SEPARATOR = "/"
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


def matched(pattern: str, paths: Sequence[str]) -> list[str]:
    """Select the paths that match a pattern, in their order.

    Raises:
        ArgumentError: No path matches. The message lists the nearest ones.
    """
    found = [path for path in paths if path == pattern]
    if is_pattern(pattern):
        is_match = _matcher(pattern)
        found = [path for path in paths if is_match(path.split(SEPARATOR))]
    if not found:
        below = f"{pattern}{SEPARATOR}"
        near = [f"{below:.{_SHOWN}}**"] if any(path.startswith(below) for path in paths) else []
        near += difflib.get_close_matches(pattern[:_SHOWN], paths[:_NEAR], cutoff=0)
        what = f"No trainable weight has a path that matches {pattern[:_SHOWN]!r}"
        if not near:
            raise ArgumentError(
                f"{what}: there are no trainable weights.", advice="Remove the pattern."
            )
        raise ArgumentError(
            f"{what}.",
            advice=f"Correct the pattern: the nearest of {len(paths)} are {', '.join(near)}.",
        )
    return found


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
