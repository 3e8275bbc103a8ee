"""How an NNX module was made, found out from the module."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import jax
import numpy as np
from flax import nnx

from ._lazy import RNGS, LazyModule, parameters, takes_rngs


def known_as_made(module: nnx.Module | LazyModule) -> LazyModule | None:
    """How a module was made, where the module tells: in attributes that have the names of its constructor's arguments.

    What has been found is made again, abstractly, and counts if that has the module's structure. An argument that is kept in no
    attribute is taken to have had its default; of Flax's own modules these are the initializers, whose work is done.

    Returns:
        Class and arguments; None where they remain unknown.
    """
    if isinstance(module, LazyModule):
        return module
    with_rngs: list[dict[str, Any]] = [{}, {RNGS: None}] if takes_rngs(type(module)) else [{}]
    # What stands in the place of None may have been put there by the constructor.
    for keywords, fills_none in itertools.product(with_rngs, (False, True)):
        lazy = _guessed(module, keywords, fills_none)
        if lazy is not None and _is_made_alike(lazy, module):
            return lazy
    return None


def _guessed(module: nnx.Module, keywords: dict[str, Any], fills_none: bool) -> LazyModule | None:
    attributes = vars(module)
    arguments: list[Any] = []
    keywords = dict(keywords)
    for name, parameter in parameters(type(module)).items():
        if name == RNGS or parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            # They are kept in a list, whatever its name.
            lists = [
                value for value in attributes.values() if isinstance(value, (nnx.List, list, tuple))
            ]
            if len(lists) != 1:
                return None
            arguments += lists[0]
        elif name in attributes:
            is_default = _is_same(attributes[name], parameter.default) or (
                parameter.default is None and not fills_none
            )
            if not is_default:
                keywords[name] = attributes[name]
        elif parameter.default is parameter.empty:
            return None
    try:
        lazy_arguments = [_lazy(value) for value in arguments]
        return LazyModule(
            type(module),
            *lazy_arguments,
            **{name: _lazy(value) for name, value in keywords.items()},
        )
    except _UnknownError:
        return None


class _UnknownError(Exception):
    """Raised where an argument is, or holds, something of which nobody knows how it was made."""


def _lazy(value: Any) -> Any:
    """An argument with modules in it as they were made."""
    if isinstance(value, nnx.Module) and not isinstance(value, (nnx.List, nnx.Dict)):
        lazy = known_as_made(value)
        if lazy is None:
            raise _UnknownError
        return lazy
    if isinstance(value, (list, nnx.List)):
        return [_lazy(item) for item in value]
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(_lazy(item) for item in value)
    if isinstance(value, (dict, nnx.Dict)):
        return {name: _lazy(item) for name, item in value.items()}
    if isinstance(value, (nnx.Pytree, nnx.Variable, jax.ShapeDtypeStruct)):
        raise _UnknownError
    return value


def _is_made_alike(lazy: LazyModule, module: nnx.Module) -> bool:
    try:
        others = lazy.abstractly(lambda made: list(_parts(made)))
    except Exception:
        # Whatever a constructor may raise, it was not called like this.
        return False
    parts = list(_parts(module))
    return len(parts) == len(others) and all(map(_is_same_part, parts, others))


def _parts(module: nnx.Module) -> Iterator[tuple[Any, ...]]:
    """The module's nodes and variables, each with its path, class, and what it holds but values and other parts."""
    for path, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Variable):
            specs = [
                (getattr(x, "shape", None), getattr(x, "dtype", None))
                for x in jax.tree.leaves(node.get_raw_value())
            ]
            yield path, type(node), specs, {}
        elif isinstance(node, nnx.RngStream):
            # Its tag is the name that its numbers came by when the module was made.
            yield path, type(node), [], {}
        elif isinstance(node, nnx.Pytree):
            held = {
                name: value
                for name, value in vars(node).items()
                if not name.startswith("_") and _is_static(value)
            }
            yield path, type(node), [], held
        elif isinstance(node, (jax.Array, np.ndarray, jax.ShapeDtypeStruct)):
            yield path, jax.Array, [(node.shape, node.dtype)], {}


def _is_static(value: Any) -> bool:
    return not isinstance(value, (nnx.Pytree, nnx.Variable)) and not any(
        isinstance(leaf, (nnx.Pytree, nnx.Variable, jax.Array, jax.ShapeDtypeStruct))
        for leaf in jax.tree.leaves(value)
    )


def _is_same_part(part: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    (*place, held), (*other_place, other_held) = part, other
    return (
        place == other_place
        and held.keys() == other_held.keys()
        and all(_is_same(value, other_held[name]) for name, value in held.items())
    )


def _is_same(value: Any, other: Any) -> bool:
    if value is other:
        return True
    if isinstance(value, FunctionType) and isinstance(other, FunctionType):
        # Made anew by a function, a function is never the same one: what it keeps has to be.
        return value.__code__ is other.__code__ and all(
            itertools.starmap(_is_same, zip(_kept(value), _kept(other), strict=True))
        )
    try:
        return type(value) is type(other) and bool(value == other)
    except Exception:
        # Whatever a foreign class's comparison may raise.
        return False


def _kept(function: FunctionType) -> list[Any]:
    """What a function keeps from where it was made: in its closure, and as defaults."""
    return [
        *(cell.cell_contents for cell in function.__closure__ or ()),
        function.__defaults__,
        function.__kwdefaults__,
    ]
