"""Whole floats in place of integers.

An R user who writes `features = 32` passes a float, because numbers in R are floats by default.
"""

from __future__ import annotations

import collections.abc
import typing
from collections.abc import Iterator
from typing import Any

from .._errors import FieldError


def whole_floats_to_integers(value: Any, field: str) -> Any:
    """Convert whole floats to integers.

    Args:
        value: Any value. Lists and tuples are searched; a list with a float becomes a tuple.
        field: The field or argument, for the message.

    Returns:
        The converted value, or `value` itself if it contains no float.

    Raises:
        FieldError: A float is not whole.
    """
    if isinstance(value, (list, tuple)):
        items = [whole_floats_to_integers(item, field) for item in value]
        changed = any(new is not old for new, old in zip(items, value, strict=True))
        return tuple(items) if changed else value
    if not isinstance(value, float):
        return value
    if not value.is_integer():
        raise FieldError(f"`{field}` must be a whole number, got {value}.")
    return int(value)


def integer_names(annotated: Any) -> tuple[str, ...]:
    """Fields of a class or arguments of a function whose type allows integers but not floats."""
    try:
        hints = typing.get_type_hints(annotated)
    except Exception:
        # Resolving annotations may fail in any way, such as for types that are not imported.
        return ()
    return tuple(name for name, hint in hints.items() if _excludes_floats(hint))


def _excludes_floats(hint: Any) -> bool:
    types = list(_leaf_types(hint))
    return int in types and not any(kind in types for kind in (float, complex, Any, object))


def _leaf_types(hint: Any) -> Iterator[Any]:
    if typing.get_origin(hint) is collections.abc.Callable:
        return
    arguments = typing.get_args(hint)
    if not arguments:
        yield hint
    for argument in arguments:
        yield from _leaf_types(argument)
