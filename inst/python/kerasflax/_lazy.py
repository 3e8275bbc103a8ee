"""NNX modules that are made when their layer is built, and how a module was made, found out from the module.

An NNX module makes its values when it is made. A `LazyModule` is how to make one: with it a layer makes the values, from its
own seed, and a saved model says in a few words what its module is.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx

from . import _foreign
from ._errors import ArgumentError, ModuleError
from ._running import replaced
from ._whole import integer_names, whole

T = TypeVar("T")

_RNGS = "rngs"


class LazyModule:
    """How to make a `flax.nnx.Module`: a `FlaxLayer` makes it when it is built, of its own seed.

    `FlaxLayer(LazyModule(nnx.Linear, 3, 4), seed=1)` has the values of `nnx.Linear(3, 4, rngs=nnx.Rngs(1))`. Nothing is
    allocated before, and nothing twice.

    Attributes:
        factory: What makes it.
        arguments: Its arguments by position.
        keywords: Its arguments by name.
    """

    def __init__(self, factory: Callable[..., nnx.Module], *arguments: Any, **keywords: Any) -> None:
        """Say how a module is made.

        Args:
            factory: A class of `flax.nnx.Module`, or a function that returns an instance. Where it takes `rngs`, it is given
                `flax.nnx.Rngs`. Where a module that it makes asks for integers, whole floats do.
            *arguments: Its other arguments. A LazyModule among them is made first, with the same `rngs`.
            **keywords: Likewise, by name. `rngs=None` makes the module without random numbers.

        Raises:
            ArgumentError: `factory` cannot be called, or `rngs` is something else.
        """
        if not callable(factory) or isinstance(factory, nnx.Module):
            raise ArgumentError(
                f"A class of modules, or a function of `rngs` that makes one, is needed, got {type(factory).__name__}."
            )
        if keywords.get(_RNGS) is not None:
            raise ArgumentError("`rngs` is given by the layer when it makes the module; give the layer a `seed`.")
        self.factory = factory
        self.arguments = arguments
        self.keywords = keywords

    def __repr__(self) -> str:
        given = [*map(repr, self.arguments), *(f"{name}={value!r}" for name, value in self.keywords.items())]
        return f"LazyModule({', '.join([getattr(self.factory, '__qualname__', repr(self.factory)), *given])})"

    def make(self, rngs: nnx.Rngs) -> nnx.Module:
        """Make the module.

        Raises:
            ModuleError: The factory returns something else.
        """
        arguments, keywords = (_made(values, rngs) for values in (self.arguments, self.keywords))
        if _may_take_rngs(self.factory):
            keywords.setdefault(_RNGS, rngs)
        with whole_numbers_do():
            module = _made(self.factory(*arguments, **keywords), rngs)
        if not isinstance(module, nnx.Module):
            name = getattr(self.factory, "__name__", "The factory")
            raise ModuleError(f"{name} must make a `flax.nnx.Module`, got {type(module).__name__}: {module!r:.80}")
        return module

    def abstractly(self, use: Callable[[nnx.Module], T]) -> T:
        """What a function returns of the module, when it is made without computing values; it must not keep the module."""
        results: list[T] = []
        jax.eval_shape(lambda: results.append(use(self.make(nnx.Rngs(0)))))
        return results[0]


def _made(value: Any, rngs: nnx.Rngs) -> Any:
    if isinstance(value, LazyModule):
        return value.make(rngs)
    if isinstance(value, list) or type(value) is tuple:
        return type(value)(_made(item, rngs) for item in value)
    return {name: _made(item, rngs) for name, item in value.items()} if isinstance(value, dict) else value


def whole_numbers_do() -> contextlib.AbstractContextManager[None]:
    """Let whole floats do for integers in the constructors of all modules that are made in the block."""
    return replaced((type(nnx.Module), _with_whole_numbers))


def _with_whole_numbers(construct: Callable[..., Any], kind: type, *args: Any, **kwargs: Any) -> Any:
    """Make a module, with integers in the place of whole floats where the constructor's types ask for these."""
    names, integers = [*_parameters(kind)], integer_names(_function(kind))
    named = itertools.zip_longest(args, names[: len(args)])
    return construct(
        kind,
        *(whole(value, name) if name in integers else value for value, name in named),
        **{name: whole(value, name) if name in integers else value for name, value in kwargs.items()},
    )


# The metaclass's method that it takes the place of.
_with_whole_numbers.__name__ = "__call__"


def _function(factory: Callable[..., Any]) -> Callable[..., Any]:
    """What has the arguments' names and types: of a class its constructor, since Flax's metaclass shows none."""
    return factory.__init__ if isinstance(factory, type) else factory  # type: ignore[misc]


def _parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        parameters = inspect.signature(_function(factory)).parameters
    except (TypeError, ValueError):
        return {}
    return dict(list(parameters.items())[isinstance(factory, type) :])


def takes_rngs(factory: Callable[..., Any]) -> bool:
    """Whether it has an argument `rngs`, as what makes modules has."""
    formals = _foreign.formals(inspect.unwrap(factory))
    return _RNGS in (_parameters(factory) if formals is None else formals)


def _may_take_rngs(factory: Callable[..., Any]) -> bool:
    # An R function shows Python `**kwargs`, and takes what it takes.
    is_foreign = _foreign.formals(inspect.unwrap(factory)) is not None
    return takes_rngs(factory) or (not is_foreign and any(p.kind is p.VAR_KEYWORD for p in _parameters(factory).values()))


# How a module was made --------------------------------------------------------------------------------------------------


def is_made(value: Any) -> bool:
    """Whether it is a module that a constructor has made, or how to make one."""
    return isinstance(value, (nnx.Module, LazyModule))


def class_of(module: nnx.Module | LazyModule) -> type:
    """The module's class."""
    return module.abstractly(type) if isinstance(module, LazyModule) else type(module)


def known_as_made(module: nnx.Module | LazyModule) -> LazyModule | None:
    """How a module was made, where the module tells: in attributes that have the names of its constructor's arguments.

    What has been found is made again, abstractly, and counts if that has the module's structure. An argument that is kept in no
    attribute is taken to have had its default; of Flax's own modules these are the initializers, whose work is done.

    Returns:
        Class and arguments; None where they remain unknown.
    """
    if isinstance(module, LazyModule):
        return module
    with_rngs: list[dict[str, Any]] = [{}, {_RNGS: None}] if takes_rngs(type(module)) else [{}]
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
    for name, parameter in _parameters(type(module)).items():
        if name == _RNGS or parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            # They are kept in a list, whatever its name.
            lists = [value for value in attributes.values() if isinstance(value, (nnx.List, list, tuple))]
            if len(lists) != 1:
                return None
            arguments += lists[0]
        elif name in attributes:
            is_default = _is_same(attributes[name], parameter.default) or (parameter.default is None and not fills_none)
            if not is_default:
                keywords[name] = attributes[name]
        elif parameter.default is parameter.empty:
            return None
    try:
        lazy_arguments = [_lazy(value) for value in arguments]
        return LazyModule(type(module), *lazy_arguments, **{name: _lazy(value) for name, value in keywords.items()})
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
            specs = [(getattr(x, "shape", None), getattr(x, "dtype", None)) for x in jax.tree.leaves(node.get_raw_value())]
            yield path, type(node), specs, {}
        elif isinstance(node, nnx.RngStream):
            # Its tag is the name that its numbers came by when the module was made.
            yield path, type(node), [], {}
        elif isinstance(node, nnx.Pytree):
            held = {name: value for name, value in vars(node).items() if not name.startswith("_") and _is_static(value)}
            yield path, type(node), [], held
        elif isinstance(node, (jax.Array, np.ndarray, jax.ShapeDtypeStruct)):
            yield path, jax.Array, [(node.shape, node.dtype)], {}


def _is_static(value: Any) -> bool:
    return not isinstance(value, (nnx.Pytree, nnx.Variable)) and not any(
        isinstance(leaf, (nnx.Pytree, nnx.Variable, jax.Array, jax.ShapeDtypeStruct)) for leaf in jax.tree.leaves(value)
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
    return [*(cell.cell_contents for cell in function.__closure__ or ()), function.__defaults__, function.__kwdefaults__]
