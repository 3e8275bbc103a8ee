"""What surrounds a run of a module's code: marks that it runs, the axes that it names, the path of what fails in it."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import re
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from .. import _host
from ..tracing._trace import TraceAgainError

PyTree = Any
M = TypeVar("M")
F = TypeVar("F", bound=Callable[..., Any])

_running: contextvars.ContextVar[bool] = contextvars.ContextVar("running", default=False)


@contextlib.contextmanager
def running_module() -> Iterator[None]:
    """Mark the block as a run of a module's code."""
    with contextlib.ExitStack() as stack:
        stack.callback(_running.set, _running.get())
        _running.set(True)
        yield


def module_is_running() -> bool:
    """Whether a module's code runs just now. R asks it, to know what `[` on a tensor may mean."""
    return _running.get()


def along_axes(
    names: frozenset[str], function: Callable[[], PyTree]
) -> tuple[PyTree, frozenset[str]]:
    """Call a function with the mapped axes that it names, `BatchNorm(axis_name="batch")`, say.

    They are there for code that maps over devices. Keras's batch is whole, so that an axis has the size one.

    Args:
        names: The axes that are known; one that the function names besides makes it run again.
        function: The function.

    Returns:
        What the function returns, and the axes that it names.
    """
    while True:
        bound = function
        for name in sorted(names):
            bound = functools.partial(_along_axis, name, bound)
        try:
            return bound(), names
        except NameError as error:
            unbound = re.search(r"unbound axis name: (\w+)", str(error))
            if unbound is None or unbound[1] in names:
                raise
            names |= {unbound[1]}


def _along_axis(name: str, function: Callable[[], PyTree]) -> PyTree:
    results = jax.vmap(lambda _: function(), axis_name=name)(jnp.zeros(1))
    return jax.tree.map(lambda result: result[0], results)


# Held by the thread that runs a module's code: what a run teaches is one run's, and the methods of Flax's classes are replaced
# for all threads.
_TURN = threading.RLock()


def in_turn(method: F) -> F:
    """Let one thread at a time run a method in which a module's code runs."""

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        with _TURN:
            return method(*args, **kwargs)

    return run  # type: ignore[return-value]


@contextlib.contextmanager
def replaced(*noting: tuple[type, Callable[..., Any]]) -> Iterator[None]:
    """Replace methods of Flax's classes until the block ends, for calls from this thread.

    Flax offers no hook for what modules ask for and sow, so that the methods through which all of it passes are replaced.

    Args:
        *noting: Classes, and functions named after a method of them, which take that method and its arguments.
    """
    thread = threading.get_ident()

    def replacing(method: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return method(*args, **kwargs)
            return function(method, *args, **kwargs)

        return call

    with _TURN, contextlib.ExitStack() as stack:
        for owner, function in noting:
            method = getattr(owner, function.__name__)
            stack.callback(setattr, owner, function.__name__, method)
            setattr(owner, function.__name__, replacing(method, function))
        yield


@contextlib.contextmanager
def naming_the_path(
    name: str, kind: type[M], path_of: Callable[[M], tuple[Any, ...] | None]
) -> Iterator[None]:
    """Add to an exception's message what another language says of it, and the path of the module in which it was raised.

    Args:
        name: The whole module, as messages name it.
        kind: The class of modules.
        path_of: From a module to its path in the whole, None where it has none.
    """
    try:
        yield
    except TraceAgainError:
        raise
    except Exception as error:
        owners = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
        modules = [(owner, path_of(owner)) for owner in owners if isinstance(owner, kind)]
        placed = [(module, path) for module, path in modules if path is not None]
        notes = [_host.advice(error)]
        if placed:
            module, path = placed[-1]
            notes.append(
                f"(raised in {'/'.join([name, *map(str, path or ())])}, of class {type(module).__name__})"
            )
        for note in filter(None, notes):
            # Of a KeyError the message is the key, which somebody may compare.
            if (
                len(error.args) == 1
                and isinstance(error.args[0], str)
                and not isinstance(error, KeyError)
            ):
                error.args = (f"{error.args[0]}\n{note}",)
            else:
                error.add_note(note)
        raise
