"""NNX modules that are created when their layer is built.

An NNX module creates its values in its constructor. A `LazyModule` holds the constructor call
instead. The layer then creates the values from its own seed, and a saved model can describe the
module by that call.

Importing NNX takes as long as building a small module. The first `LazyModule` imports it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import itertools
import operator
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import flax.core
import jax

from .. import _host
from .._errors import ArgumentError, ModuleError
from .._messages import value_text
from ._context import replaced
from ._whole_numbers import integer_names, whole_floats_to_integers

if TYPE_CHECKING:
    from flax import nnx

T = TypeVar("T")

RNGS = "rngs"


class LazyModule:
    """A constructor call of a `flax.nnx.Module`, which a `FlaxLayer` makes when it is built.

    `FlaxLayer(LazyModule(nnx.Linear, 3, 4), seed=1)` has the values of
    `nnx.Linear(3, 4, rngs=nnx.Rngs(1))`. Nothing is allocated before the layer is built, and the
    weights are never in memory twice.

    Attributes:
        factory: The module class, or a function that returns a module.
        arguments: The positional arguments of `factory`.
        keywords: The keyword arguments of `factory`.
    """

    def __init__(
        self, factory: Callable[..., nnx.Module], *arguments: Any, **keywords: Any
    ) -> None:
        """Store a constructor call.

        Args:
            factory: A subclass of `flax.nnx.Module`, or a function that returns an instance. If it
                has an argument `rngs`, the layer passes a `flax.nnx.Rngs`. If a module that it
                creates expects integers, whole floats are converted.
            *arguments: Positional arguments of `factory`. A `LazyModule` among them is made first,
                with the same `rngs`.
            **keywords: Keyword arguments, treated in the same way. `rngs=None` creates the module
                without random numbers.

        Raises:
            ArgumentError: `factory` is not callable, or `rngs` is not None.
        """
        from flax import nnx

        if not callable(factory) or isinstance(factory, nnx.Module):
            raise ArgumentError(
                "`factory` must be an NNX module class or a function that returns an NNX module, "
                f"got {value_text(factory)}."
            )
        if isinstance(factory, functools.partial):
            arguments = (*factory.args, *arguments)
            keywords = {**factory.keywords, **keywords}
            factory = factory.func
        if keywords.get(RNGS) is not None:
            raise ArgumentError(
                f"`rngs` must be {_host.word('none')} or missing, "
                f"got {value_text(keywords[RNGS])}: the layer creates it from its seed.",
                advice="Give the layer a `seed`.",
            )
        self.factory = factory
        self.arguments = arguments
        self.keywords = keywords

    def __repr__(self) -> str:
        given = [
            *map(repr, self.arguments),
            *(f"{name}={value!r}" for name, value in self.keywords.items()),
        ]
        name = getattr(self.factory, "__qualname__", repr(self.factory))
        return f"LazyModule({', '.join([name, *given])})"

    def make(self, rngs: nnx.Rngs) -> nnx.Module:
        """Create the module.

        Raises:
            ModuleError: The factory returns something other than an NNX module.
        """
        from flax import nnx

        arguments, keywords = (
            _make_all(values, rngs) for values in (self.arguments, self.keywords)
        )
        if _may_take_rngs(self.factory):
            keywords.setdefault(RNGS, rngs)
        with converting_whole_floats():
            module = _make_all(self.factory(*arguments, **keywords), rngs)
        if not isinstance(module, nnx.Module):
            name = getattr(self.factory, "__name__", "factory")
            raise ModuleError(
                f"`{name}` must return an instance of {_host.code('flax.nnx.Module')}, "
                f"got {value_text(module)}."
            )
        return module

    def abstractly(self, use: Callable[[nnx.Module], T]) -> T:
        """Create the module without computing values, and pass it to a function.

        Args:
            use: From the module to a result. It must not keep the module.

        Returns:
            The result of `use`.
        """
        from flax import nnx

        results: list[T] = []
        jax.eval_shape(lambda: results.append(use(self.make(nnx.Rngs(0)))))
        return results[0]


def _make_all(value: Any, rngs: nnx.Rngs) -> Any:
    """Replace each `LazyModule` in a value with its module, and copy lists and dicts.

    Containers keep their class, so that a constructor gets the arguments that were given.
    """
    if isinstance(value, LazyModule):
        return value.make(rngs)
    if isinstance(value, (list, tuple)):
        items = [_make_all(item, rngs) for item in value]
        if all(map(operator.is_, items, value)):
            return value if isinstance(value, tuple) else copy.copy(value)
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, (dict, flax.core.FrozenDict)):
        made = {name: _make_all(item, rngs) for name, item in value.items()}
        if all(made[name] is item for name, item in value.items()):
            return copy.copy(value)
        return made if type(value) is dict else type(value)(made)
    return value


def converting_whole_floats() -> contextlib.AbstractContextManager[None]:
    """Convert whole floats to integers in calls of module constructors within the block."""
    from flax import nnx

    # Modules are created all over a factory's code. The metaclass is the one place that every
    # constructor call passes. It is not documented; seen to work with flax 0.12.6 to 0.12.12.
    return replaced((type(nnx.Module), _with_whole_numbers))


def _with_whole_numbers(
    construct: Callable[..., Any], kind: type, *args: Any, **kwargs: Any
) -> Any:
    """Construct a module. Arguments whose type is an integer may be whole floats."""
    names, integers = [*parameters(kind)], integer_names(_signature_source(kind))

    def convert(value: Any, name: str) -> Any:
        return whole_floats_to_integers(value, name) if name in integers else value

    named = itertools.zip_longest(args, names[: len(args)])
    return construct(
        kind,
        *(convert(value, name) for value, name in named),
        **{name: convert(value, name) for name, value in kwargs.items()},
    )


# `replaced` looks up the method to replace by the function's name.
_with_whole_numbers.__name__ = "__call__"


def _signature_source(factory: Callable[..., Any]) -> Callable[..., Any]:
    """The function whose signature describes a factory: for a class, its constructor.

    For an NNX class, `inspect.signature` shows the arguments of Flax's metaclass instead, although
    type checkers see those of the constructor: https://github.com/google/flax/pull/4499
    """
    return factory.__init__ if isinstance(factory, type) else factory  # type: ignore[misc]


def parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The arguments of a factory without `self`. Empty if its signature cannot be read."""
    try:
        parameters = inspect.signature(_signature_source(factory)).parameters
    except (TypeError, ValueError):
        return {}
    return dict(list(parameters.items())[isinstance(factory, type) :])


def signature_text(factory: Callable[..., Any]) -> str:
    """The names of the arguments of a factory, such as `(features, *, rngs)`."""
    plain = [
        each.replace(annotation=each.empty, default=each.empty)
        for each in parameters(factory).values()
    ]
    return str(inspect.Signature(plain))


def missing_arguments(lazy: LazyModule) -> list[str]:
    """The arguments without a default, other than `rngs`, that a constructor call lacks."""
    known = parameters(lazy.factory)
    given = {RNGS, *list(known)[: len(lazy.arguments)], *lazy.keywords}
    return [
        name
        for name, each in known.items()
        if each.default is each.empty
        and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        and name not in given
    ]


def takes_rngs(factory: Callable[..., Any]) -> bool:
    """Whether a factory has an argument `rngs`."""
    formals = _host.formals(inspect.unwrap(factory))
    return RNGS in (parameters(factory) if formals is None else formals)


def _may_take_rngs(factory: Callable[..., Any]) -> bool:
    # Python sees `**kwargs` in every R function, whichever arguments it really has.
    is_foreign = _host.formals(inspect.unwrap(factory)) is not None
    return takes_rngs(factory) or (
        not is_foreign and any(p.kind is p.VAR_KEYWORD for p in parameters(factory).values())
    )


def is_nnx_module(value: Any) -> bool:
    """Whether a value is an NNX module or a `LazyModule`. Does not import NNX."""
    nnx = sys.modules.get("flax.nnx")
    return isinstance(value, LazyModule) or (nnx is not None and isinstance(value, nnx.Module))


def is_nnx_class(value: Any) -> bool:
    """Whether a value is an NNX module class. Does not import NNX."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(value, type) and issubclass(value, nnx.Module)


def class_of(module: nnx.Module | LazyModule) -> type:
    """The class of a module, or of the module that a `LazyModule` makes."""
    return module.abstractly(type) if isinstance(module, LazyModule) else type(module)
