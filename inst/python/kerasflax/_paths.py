"""Paths of variables, chosen by pattern.

In a pattern `*` stands for any part of one name, `?` for one character, `[...]` for one of several, and `**`, as a name, for
any number of names, none included: `params/**/kernel`, `params/encoder/**`, `params/Dense_0/bias`.

Patterns come from files, too. The time that one takes grows with its length and, at most, with the square of a path's.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Sequence

from ._errors import ArgumentError

SEPARATOR = "/"
# A layer that is read from a file has no more, and no longer ones; names without wildcards are not counted.
MOST_PATTERNS, LONGEST = 256, 10_000
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
            + (f"The nearest of {len(paths)} are {', '.join(near)}." if near else "There is none to choose from.")
        )
    return found


def _matcher(pattern: str) -> Callable[[Sequence[str]], bool]:
    """What tells whether names fit a pattern. It is taken apart once, and of `**` in a row one counts."""
    parts = pattern.split(SEPARATOR)
    parts = [part for i, part in enumerate(parts) if part != _ANY or i == 0 or parts[i - 1] != _ANY]
    tokens = [None if part == _ANY else _tokens(part) for part in parts]
    return functools.partial(_fits, tokens, len(tokens) - tokens.count(None))


# Of a part of a pattern: a character, a test of one, or None for any number of them.
_Token = str | Callable[[str], bool] | None


def _fits(parts: Sequence[Sequence[_Token] | None], least: int, names: Sequence[str]) -> bool:
    if least > len(names):
        return False
    # With how many of the first names the parts so far can be filled.
    reached = {0}
    for part in parts:
        if part is None:
            reached = set(range(min(reached), len(names) + 1))
        else:
            reached = {i + 1 for i in reached if i < len(names) and _fits_name(names[i], part)}
        if not reached:
            return False
    return len(names) in reached


def _fits_name(name: str, tokens: Sequence[_Token]) -> bool:
    """Whether a name fits a part: the last `*` takes one character more whenever what follows it does not fit."""
    if len(tokens) - tokens.count(None) > len(name):
        return False
    at = token = 0
    star, taken = -1, 0
    while at < len(name):
        if token < len(tokens) and tokens[token] is None:
            star, taken = token, at
            token += 1
        elif token < len(tokens) and _is_one(name[at], tokens[token]):
            at, token = at + 1, token + 1
        elif star >= 0:
            taken += 1
            at, token = taken, star + 1
        else:
            return False
    return all(each is None for each in tokens[token:])


def _is_one(character: str, token: _Token) -> bool:
    return token(character) if callable(token) else token == character


def _tokens(part: str) -> list[_Token]:
    tokens: list[_Token] = []
    at, last = 0, part.rfind("]")
    while at < len(part):
        # The first character of a set is one of it, if it is the bracket that ends others.
        end = part.find("]", at + 2 + (part[at + 1 : at + 2] == "!")) if part[at] == "[" and at < last else -1
        if end > 0:
            tokens.append(functools.cache(functools.partial(_is_of_set, part[at + 1 : end])))
            at = end
        elif part[at] != "*":
            tokens.append(_is_any if part[at] == "?" else part[at])
        elif not tokens or tokens[-1] is not None:
            tokens.append(None)
        at += 1
    return tokens


def _is_any(character: str) -> bool:
    return True


def _is_of_set(text: str, character: str) -> bool:
    """Whether a character is one of those between brackets, of which `a-z` is a range, and `!` in front means all others."""
    is_negated = text.startswith("!")
    at, is_in = int(is_negated), False
    while at < len(text) and not is_in:
        last = at + 2 * (text[at + 1 : at + 2] == "-" and at + 2 < len(text))
        is_in = text[at] <= character <= text[last]
        at = last + 1
    return is_in != is_negated
