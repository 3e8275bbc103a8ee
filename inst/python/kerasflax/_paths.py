"""Paths of variables, chosen by pattern.

In a pattern `*` stands for any part of one name, `?` for one character, `[...]` for one of several, and `**`, as a name, for
any number of names, none included: `params/**/kernel`, `params/encoder/**`, `params/Dense_0/bias`.

Patterns come from files, too. The time that one takes grows with its length and that of the paths.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Sequence

from ._errors import ArgumentError

SEPARATOR = "/"
# A layer that is read from a file has no more, no longer ones, and in one no more sets; names without wildcards do not count.
MOST_PATTERNS, LONGEST, MOST_SETS = 256, 10_000, 64
_ANY = "**"
# How much of a pattern, and how many paths, an error looks at.
_SHOWN, _NEAR = 200, 1000


def is_pattern(text: str) -> bool:
    """Whether there are wildcards in it."""
    return any(character in text for character in "*?[")


def matched(pattern: str, paths: Sequence[str]) -> list[str]:
    """The paths that fit a pattern, in their order.

    Raises:
        ArgumentError: None does; the message shows those nearest to the pattern.
    """
    found = [path for path in paths if path == pattern]
    if is_pattern(pattern):
        fits = _matcher(pattern)
        found = [path for path in paths if fits(path.split(SEPARATOR))]
    if not found:
        below = f"{pattern}{SEPARATOR}"
        near = [f"{below:.{_SHOWN}}**"] if any(path.startswith(below) for path in paths) else []
        near += difflib.get_close_matches(pattern[:_SHOWN], paths[:_NEAR], cutoff=0)
        raise ArgumentError(
            f"No trainable weight has a path that fits {pattern[:_SHOWN]!r}.\n"
            + (
                f"The nearest of {len(paths)} are {', '.join(near)}."
                if near
                else "There is none to choose from."
            )
        )
    return found


def _matcher(pattern: str) -> Callable[[Sequence[str]], bool]:
    """What tells whether names fit a pattern. It is taken apart once, and of `**` in a row one counts."""
    texts = pattern.split(SEPARATOR)
    texts = [text for i, text in enumerate(texts) if text != _ANY or i == 0 or texts[i - 1] != _ANY]
    parts = [None if text == _ANY else _Part(text) for text in texts]
    return functools.partial(_fits, parts, len(parts) - parts.count(None))


def _fits(parts: Sequence[_Part | None], least: int, names: Sequence[str]) -> bool:
    if least > len(names):
        return False
    # With how many of the first names the parts so far can be filled.
    reached = {0}
    for part in parts:
        if part is None:
            reached = set(range(min(reached), len(names) + 1))
        else:
            reached = {i + 1 for i in reached if i < len(names) and part.fits(names[i])}
        if not reached:
            return False
    return len(names) in reached


class _Part:
    """A part of a pattern, for one name: an automaton whose states are the bits of an integer.

    State i has taken the first i characters of the part, of which each is a letter, a set, or any. All states move at once, so
    that the time of a name does not depend on how often a beginning of the part is found in it.
    """

    def __init__(self, text: str) -> None:
        # Bits of the states in which a letter, any character, or one of a set goes on to the next state.
        self._of_letters: dict[str, int] = {}
        self._of_any, self._of_sets = 0, list[tuple[int, str]]()
        # Bits of the states that any character leaves as they are, since a `*` is there.
        self._stays = 0
        at, last, state = 0, text.rfind("]"), 1
        while at < len(text):
            # The first character of a set is one of it, if it is the bracket that ends others.
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
        """The states in which a character goes on to the next."""
        of_sets = (state for state, text in self._of_sets if _is_of_set(text, character))
        return functools.reduce(
            int.__or__, of_sets, self._of_letters.get(character, 0) | self._of_any
        )

    def fits(self, name: str) -> bool:
        """Whether a name fits."""
        states = 1
        for character in name:
            states = (states & self._moves(character)) << 1 | states & self._stays
            if not states:
                return False
        return bool(states & self._end)


def _is_of_set(text: str, character: str) -> bool:
    """Whether a character is one of those between brackets, of which `a-z` is a range, and `!` in front means all others."""
    is_negated = text.startswith("!")
    at, is_in = int(is_negated), False
    while at < len(text) and not is_in:
        last = at + 2 * (text[at + 1 : at + 2] == "-" and at + 2 < len(text))
        is_in = text[at] <= character <= text[last]
        at = last + 1
    return is_in != is_negated
