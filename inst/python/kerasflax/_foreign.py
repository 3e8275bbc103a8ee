"""What another language tells of its functions and errors.

A function of R shows Python the signature `(*args, **kwargs)`, and an error in it knows nothing of tensors. R registers here
how more can be had. Without another language nothing is registered, and nothing is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Formals = Callable[[Callable[..., Any]], "Mapping[str, bool] | None"]
Advice = Callable[[BaseException], "str | None"]

_formals: Formals | None = None
_advice: Advice | None = None


def register(formals: Formals | None, advice: Advice | None) -> None:
    """Let another language tell.

    Args:
        formals: From a Python function to its arguments, in order, each with whether it has a default; None for a
            function that is not of that language.
        advice: From an exception to what its message leaves unsaid, None for nothing.
    """
    global _formals, _advice
    _formals, _advice = formals, advice


def formals(function: Callable[..., Any]) -> Mapping[str, bool] | None:
    """The arguments of a function of another language, each with whether it has a default; None where it is of Python."""
    return _formals(function) if _formals else None


def advice(error: BaseException) -> str | None:
    """What to add to the message of an exception, if anything."""
    return _advice(error) if _advice else None
