"""NNX modules that are made when their layer is built.

An NNX module makes its values when it is made. A `LazyModule` is how to make one: with it a layer makes the values, from its
own seed, and a saved model says in a few words what its module is.

NNX takes as long to import as a small module to build: it is imported by the first `LazyModule`, and not before.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import jax

from .. import _host
from .._errors import ArgumentError, ModuleError
from ._context import replaced
from ._whole_numbers import integer_names, whole

if TYPE_CHECKING:
    from flax import nnx

T = TypeVar("T")

RNGS = "rngs"


class LazyModule:
    """How to make a `flax.nnx.Module`: a `FlaxLayer` makes it when it is built, of its own seed.

    `FlaxLayer(LazyModule(nnx.Linear, 3, 4), seed=1)` has the values of `nnx.Linear(3, 4, rngs=nnx.Rngs(1))`. Nothing is
    allocated before, and nothing twice: it is the way to a layer without a second copy of the weights in memory.

    Attributes:
        factory: What makes it.
        arguments: Its arguments by position.
        keywords: Its arguments by name.
    """

    def __init__(
        self, factory: Callable[..., nnx.Module], *arguments: Any, **keywords: Any
    ) -> None:
        """Say how a module is made.

        Args:
            factory: A class of `flax.nnx.Module`, or a function that returns an instance. Where it takes `rngs`, it is given
                `flax.nnx.Rngs`. Where a module that it makes asks for integers, whole floats do.
            *arguments: Its other arguments. A LazyModule among them is made first, with the same `rngs`.
            **keywords: Likewise, by name. `rngs=None` makes the module without random numbers.

        Raises:
            ArgumentError: `factory` cannot be called, or `rngs` is something else.
        """
        from flax import nnx

        if not callable(factory) or isinstance(factory, nnx.Module):
            raise ArgumentError(
                f"A class of modules, or a function of `rngs` that makes one, is needed, got {type(factory).__name__}."
            )
        if keywords.get(RNGS) is not None:
            raise ArgumentError(
                "`rngs` is given by the layer when it makes the module; give the layer a `seed`."
            )
        self.factory = factory
        self.arguments = arguments
        self.keywords = keywords

    def __repr__(self) -> str:
        given = [
            *map(repr, self.arguments),
            *(f"{name}={value!r}" for name, value in self.keywords.items()),
        ]
        return f"LazyModule({', '.join([getattr(self.factory, '__qualname__', repr(self.factory)), *given])})"

    def make(self, rngs: nnx.Rngs) -> nnx.Module:
        """Make the module.

        Raises:
            ModuleError: The factory returns something else.
        """
        from flax import nnx

        arguments, keywords = (_made(values, rngs) for values in (self.arguments, self.keywords))
        if _may_take_rngs(self.factory):
            keywords.setdefault(RNGS, rngs)
        with whole_numbers_do():
            module = _made(self.factory(*arguments, **keywords), rngs)
        if not isinstance(module, nnx.Module):
            name = getattr(self.factory, "__name__", "The factory")
            raise ModuleError(
                f"{name} must make a `flax.nnx.Module`, got {type(module).__name__}: {module!r:.80}"
            )
        return module

    def abstractly(self, use: Callable[[nnx.Module], T]) -> T:
        """What a function returns of the module, when it is made without computing values; it must not keep the module."""
        from flax import nnx

        results: list[T] = []
        jax.eval_shape(lambda: results.append(use(self.make(nnx.Rngs(0)))))
        return results[0]


def _made(value: Any, rngs: nnx.Rngs) -> Any:
    if isinstance(value, LazyModule):
        return value.make(rngs)
    if isinstance(value, list) or type(value) is tuple:
        return type(value)(_made(item, rngs) for item in value)
    return (
        {name: _made(item, rngs) for name, item in value.items()}
        if isinstance(value, dict)
        else value
    )


def whole_numbers_do() -> contextlib.AbstractContextManager[None]:
    """Let whole floats do for integers in the constructors of all modules that are made in the block."""
    from flax import nnx

    return replaced((type(nnx.Module), _with_whole_numbers))


def _with_whole_numbers(
    construct: Callable[..., Any], kind: type, *args: Any, **kwargs: Any
) -> Any:
    """Make a module, with integers in the place of whole floats where the constructor's types ask for these."""
    names, integers = [*parameters(kind)], integer_names(_function(kind))
    named = itertools.zip_longest(args, names[: len(args)])
    return construct(
        kind,
        *(whole(value, name) if name in integers else value for value, name in named),
        **{
            name: whole(value, name) if name in integers else value
            for name, value in kwargs.items()
        },
    )


# The metaclass's method that it takes the place of.
_with_whole_numbers.__name__ = "__call__"


def _function(factory: Callable[..., Any]) -> Callable[..., Any]:
    """What has the arguments' names and types: of a class its constructor, since Flax's metaclass shows none."""
    return factory.__init__ if isinstance(factory, type) else factory  # type: ignore[misc]


def parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The arguments of what makes modules, but for `self`; none where they cannot be told."""
    try:
        parameters = inspect.signature(_function(factory)).parameters
    except (TypeError, ValueError):
        return {}
    return dict(list(parameters.items())[isinstance(factory, type) :])


def takes_rngs(factory: Callable[..., Any]) -> bool:
    """Whether it has an argument `rngs`, as what makes modules has."""
    formals = _host.formals(inspect.unwrap(factory))
    return RNGS in (parameters(factory) if formals is None else formals)


def _may_take_rngs(factory: Callable[..., Any]) -> bool:
    # An R function shows Python `**kwargs`, and takes what it takes.
    is_foreign = _host.formals(inspect.unwrap(factory)) is not None
    return takes_rngs(factory) or (
        not is_foreign and any(p.kind is p.VAR_KEYWORD for p in parameters(factory).values())
    )


def is_made(value: Any) -> bool:
    """Whether it is a module that a constructor has made, or how to make one."""
    nnx = sys.modules.get("flax.nnx")
    return isinstance(value, LazyModule) or (nnx is not None and isinstance(value, nnx.Module))


def class_of(module: nnx.Module | LazyModule) -> type:
    """The module's class."""
    return module.abstractly(type) if isinstance(module, LazyModule) else type(module)
