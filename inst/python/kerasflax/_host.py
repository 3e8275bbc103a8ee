"""What another language tells of its functions and errors.

A function of R shows Python the signature `(*args, **kwargs)`, an error in it knows nothing of tensors, and Python cannot find
it by its name. R registers here how more can be had. Without another language nothing is registered, and nothing is told.
"""

from __future__ import annotations

import keyword
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ._errors import FieldError

Formals = Callable[[Callable[..., Any]], "Mapping[str, bool] | None"]
Advice = Callable[[BaseException], "str | None"]
Named = Callable[[str], "Callable[..., Any] | None"]
Name = Callable[[Callable[..., Any]], "str | None"]
Words = Callable[[str], str]

_formals: Formals | None = None
_advice: Advice | None = None
_named: Named | None = None
_name: Name | None = None
_words: Words | None = None


def register(
    formals: Formals | None,
    advice: Advice | None,
    named: Named | None,
    name: Name | None,
    words: Words | None = None,
) -> None:
    """Let another language tell.

    Args:
        formals: From a Python function to its arguments, in order, each with whether it has a default; None for a
            function that is not of that language.
        advice: From an exception to what its message leaves unsaid, None for nothing.
        named: From a name to the function that the user has defined under it, None where there is none.
        name: From a Python function to the name under which `named` finds it, None where it does not.
        words: From a message that speaks of Python's things to one that speaks of the language's.
    """
    global _formals, _advice, _named, _name, _words
    _formals, _advice, _named, _name, _words = formals, advice, named, name, words


def formals(function: Callable[..., Any]) -> Mapping[str, bool] | None:
    """The arguments of a function of another language, each with whether it has a default; None where it is of Python."""
    return _formals(function) if _formals else None


def advice(error: BaseException) -> str | None:
    """What to add to the message of an exception, if anything."""
    return _advice(error) if _advice else None


def named(name: str) -> Callable[..., Any] | None:
    """The function that the user has defined under a name in another language, if any."""
    return _named(name) if _named else None


def name(function: Callable[..., Any]) -> str | None:
    """The name under which the user has defined a function of another language, if it is still found under it."""
    return _name(function) if _name else None


def words(text: str) -> str:
    """A message as the user's language says it."""
    return _words(text) if _words else text


def refuse_taken_names(class_name: str, names: Iterable[str], base: type) -> None:
    """Check the names of fields and methods of a class of modules that another language defines.

    Raises:
        FieldError: A name that Python or Flax has taken.
    """
    for name in names:
        if keyword.iskeyword(name) or hasattr(base, name):
            owner = "Python" if keyword.iskeyword(name) else "every Flax module"
            raise FieldError(
                f"{name!r} is a word of {owner}: a field or method of {class_name} needs another name."
            )
