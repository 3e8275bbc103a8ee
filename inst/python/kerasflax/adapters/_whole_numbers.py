"""Whole floats where integers belong: R writes 32 for 32."""

from __future__ import annotations

import collections.abc
import typing
from collections.abc import Iterator
from typing import Any

from .._errors import FieldError


def whole(value: Any, field: str) -> Any:
    """The value with integers in the place of floats, itself where it has none.

    Raises:
        FieldError: A float is not whole.
    """
    if isinstance(value, (list, tuple)):
        items = [whole(item, field) for item in value]
        changed = any(new is not old for new, old in zip(items, value, strict=True))
        return tuple(items) if changed else value
    if not isinstance(value, float):
        return value
    if not value.is_integer():
        raise FieldError(f"`{field}` must be a whole number, got {value}.")
    return int(value)


def integer_names(annotated: Any) -> tuple[str, ...]:
    """The fields of a class, or the arguments of a function, whose type allows integers and no floats."""
    try:
        hints = typing.get_type_hints(annotated)
    except Exception:
        # Annotations that name what cannot be imported say nothing.
        return ()
    return tuple(name for name, hint in hints.items() if _allows_integers_alone(hint))


def _allows_integers_alone(hint: Any) -> bool:
    parts = list(_parts(hint))
    return int in parts and not any(part in parts for part in (float, complex, Any, object))


def _parts(hint: Any) -> Iterator[Any]:
    if typing.get_origin(hint) is collections.abc.Callable:
        return
    arguments = typing.get_args(hint)
    if not arguments:
        yield hint
    for argument in arguments:
        yield from _parts(argument)
