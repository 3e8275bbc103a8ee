"""Whole floats in place of integers.

An R user who writes `features = 32` passes a float, because numbers in R are floats by default. R
asks `integer_arguments` which arguments of a call must be integers, and passes integers there. What
R has passed on as a float all the same, such as an argument without a type, is converted when Flax
creates or runs a module.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import itertools
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from .. import _host
from .._errors import FieldError

Functions = Sequence[Callable[..., Any] | None]

# Arguments of Flax's and JAX's functions that must be integers, but whose types do not say so.
_INTEGER_NAMES = frozenset(
    {"M", "N", "axes", "axis", "axis_size", "in_axes", "index", "indices", "indices_or_sections"}
    | {"k", "length", "new_sizes", "newshape", "out_axes", "padding", "repeats", "reps", "seed"}
    | {"shape", "slice_size", "slice_sizes", "split", "splits", "start_index", "start_indices"}
    | {"strides", "variable_axes", "window_shape"}
)
# Functions whose `*args` are integers: methods of arrays. JAX gives the methods private names.
_INTEGER_ARGS = frozenset({"_reshape", "_transpose", "reshape", "transpose"})
# Functions that pass arguments on: the position of the function that gets them, and the number of
# arguments that it gets before them (`nn.Module.param` passes a key).
_FORWARDING: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"Module.param": (1, 1), "Module.variable": (2, 0), "partial": (0, 0)}
)


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


def integer_arguments(
    function: Callable[..., Any], positional: Functions, keywords: Mapping[str, Any]
) -> list[bool]:
    """Tell which arguments of a call must be integers.

    Args:
        function: The function or class that is called.
        positional: The positional arguments that are functions, with None for the others.
        keywords: The same for the keyword arguments.

    Returns:
        For each positional and then for each keyword argument, whether it must be an integer, or a
        sequence of integers.
    """
    if isinstance(function, functools.partial):
        held = [None] * len(function.args)
        return integer_arguments(function.func, [*held, *positional], keywords)[len(held) :]
    place, before = _FORWARDING.get(getattr(function, "__qualname__", ""), (len(positional), 0))
    if place < len(positional) and (target := positional[place]) is not None:
        passed_on = [*itertools.repeat(None, before), *positional[place + 1 :]]
        of_target = integer_arguments(target, passed_on, keywords)
        return [False] * (place + 1) + of_target[before:]
    parameters = _parameters(function)
    kinds = {p.kind: p.name for p in parameters}
    known = {p.name for p in parameters}
    names = [p.name for p in parameters if p.kind in _BY_POSITION]
    rest = kinds.get(inspect.Parameter.VAR_POSITIONAL)
    integers = {*integer_names(_annotated(function))}
    if _is_of_flax(function):
        integers |= _INTEGER_NAMES & known
    if rest is not None and getattr(function, "__name__", "") in _INTEGER_ARGS:
        integers.add(rest)
    other = kinds.get(inspect.Parameter.VAR_KEYWORD)
    got = [names[i] if i < len(names) else rest for i in range(len(positional))]
    got += [name if name in known else other for name in keywords]
    return [name in integers for name in got]


def _is_of_flax(function: Callable[..., Any]) -> bool:
    """Whether Flax, JAX or the host language defines a function, such as an initializer."""
    package = (getattr(function, "__module__", None) or "").partition(".")[0]
    return (
        package in ("flax", "jax", "jaxlib") or _host.formals(inspect.unwrap(function)) is not None
    )


_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a function, without `self` of a constructor."""
    formals = _host.formals(inspect.unwrap(function))
    if formals is not None:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return [inspect.Parameter(name, kind) for name in formals if name.isidentifier()]
    annotated = _annotated(function)
    source = annotated.__init__ if isinstance(annotated, type) else annotated  # type: ignore[misc]
    try:
        parameters = list(inspect.signature(source).parameters.values())
    except (TypeError, ValueError):
        return []
    return parameters[isinstance(function, type) :]


def _annotated(function: Callable[..., Any]) -> Any:
    """What holds the types of the arguments: for a dataclass its fields, else the constructor."""
    if not isinstance(function, type):
        return function
    is_dataclass = "__dataclass_fields__" in vars(function)
    return function if is_dataclass else function.__init__  # type: ignore[misc]


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
