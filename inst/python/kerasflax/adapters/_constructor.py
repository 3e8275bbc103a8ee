"""The constructor call of an NNX module, inferred from the module."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import jax
import numpy as np
from flax import nnx

from ._lazy import RNGS, LazyModule, parameters, takes_rngs


def find_constructor_call(module: nnx.Module | LazyModule) -> LazyModule | None:
    """Infer the constructor call of a module from its attributes.

    An attribute with the name of a constructor argument is taken to be that argument. An argument
    that has no attribute is taken to have had its default; in Flax's own modules, these are the
    initializers, which have done their work. The call is then made abstractly, and is accepted if
    it gives the structure of the module.

    Returns:
        The class and its arguments, or None if they remain unknown.
    """
    if isinstance(module, LazyModule):
        return module
    with_rngs: list[dict[str, Any]] = [{}, {RNGS: None}] if takes_rngs(type(module)) else [{}]
    # An argument that was None may have an attribute that the constructor has computed.
    for keywords, fills_none in itertools.product(with_rngs, (False, True)):
        lazy = _guess_call(module, keywords, fills_none)
        if lazy is not None and _reproduces(lazy, module):
            return lazy
    return None


def _guess_call(
    module: nnx.Module, keywords: dict[str, Any], fills_none: bool
) -> LazyModule | None:
    attributes = vars(module)
    arguments: list[Any] = []
    keywords = dict(keywords)
    for name, parameter in parameters(type(module)).items():
        if name == RNGS or parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            # Constructors keep `*args` in a list, whose name differs between modules.
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
        lazy_arguments = [_lazy_argument(value) for value in arguments]
        return LazyModule(
            type(module),
            *lazy_arguments,
            **{name: _lazy_argument(value) for name, value in keywords.items()},
        )
    except _UnknownError:
        return None


class _UnknownError(Exception):
    """Raised if an argument contains something whose constructor call cannot be inferred."""


def _lazy_argument(value: Any) -> Any:
    """Replace each module in an argument with its constructor call."""
    if isinstance(value, nnx.Module) and not isinstance(value, (nnx.List, nnx.Dict)):
        lazy = find_constructor_call(value)
        if lazy is None:
            raise _UnknownError
        return lazy
    if isinstance(value, (list, nnx.List)):
        return [_lazy_argument(item) for item in value]
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(_lazy_argument(item) for item in value)
    if isinstance(value, (dict, nnx.Dict)):
        return {name: _lazy_argument(item) for name, item in value.items()}
    if isinstance(value, (nnx.Pytree, nnx.Variable, jax.ShapeDtypeStruct)):
        raise _UnknownError
    return value


def _reproduces(lazy: LazyModule, module: nnx.Module) -> bool:
    try:
        others = lazy.abstractly(lambda made: list(_describe_parts(made)))
    except Exception:
        # A constructor may raise anything. In any case, it was not called with these arguments.
        return False
    parts = list(_describe_parts(module))
    return len(parts) == len(others) and all(map(_is_same_description, parts, others))


def _describe_parts(module: nnx.Module) -> Iterator[tuple[Any, ...]]:
    """Describe the nodes and variables of a module.

    Yields:
        The path, the class, the shapes and dtypes of the values, and the static attributes.
    """
    for path, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Variable):
            specs = [
                (getattr(x, "shape", None), getattr(x, "dtype", None))
                for x in jax.tree.leaves(node.get_raw_value())
            ]
            yield path, type(node), specs, {}
        elif isinstance(node, nnx.RngStream):
            # Its tag names the stream that seeded it, which depends on `rngs` and not on the call.
            yield path, type(node), [], {}
        elif isinstance(node, nnx.Pytree):
            # NNX keeps attributes of its own, such as `_pytree__state`, in every node. They are not
            # documented. Their names were seen to start with "_" in flax 0.12.6 to 0.12.12.
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


def _is_same_description(part: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
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
        # A function defined inside another one is a new object after each call of the outer one.
        # It does the same if its code and the values that it captured are the same.
        return value.__code__ is other.__code__ and all(
            itertools.starmap(
                _is_same, zip(_captured_values(value), _captured_values(other), strict=True)
            )
        )
    try:
        return type(value) is type(other) and bool(value == other)
    except Exception:
        # The comparison of a foreign class may raise anything.
        return False


def _captured_values(function: FunctionType) -> list[Any]:
    """The values that a function captured when it was defined: its closure and its defaults."""
    return [
        *(cell.cell_contents for cell in function.__closure__ or ()),
        function.__defaults__,
        function.__kwdefaults__,
    ]
