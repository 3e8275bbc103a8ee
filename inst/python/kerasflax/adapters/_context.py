"""The context in which a module's code runs.

It marks that a module is running, keeps Keras's layers and variables out of it, binds the mapped
axes that the module names, replaces methods of Flax's classes, and adds the path of the failing
submodule to errors.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import re
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from .. import _host, _keras
from .._errors import KerasFlaxError, StateError
from ..tracing._trace import TraceAgainError

PyTree = Any
M = TypeVar("M")
F = TypeVar("F", bound=Callable[..., Any])

_running: contextvars.ContextVar[bool] = contextvars.ContextVar("running", default=False)


@contextlib.contextmanager
def running_module(*, keeps_keras: bool = False) -> Iterator[None]:
    """Mark the block as a run of a module's code, in which Keras's layers must not be used.

    Args:
        keeps_keras: Whether the module keeps the variables of Keras layers among its own, as NNX
            modules do in Keras's NNX mode.

    Raises:
        StateError: The module creates or uses a Keras layer, variable or seed generator. Its values
            would be constants to the module: nobody would train or save them.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(_running.set, _running.get())
        _running.set(True)
        if not (keeps_keras and _keras.is_nnx_mode()):
            stack.enter_context(replaced(*_keras.stateful(_refuse_keras)))
        yield


def _refuse_keras(used: object) -> None:
    kind = next(kind for kind in _keras.STATEFUL if isinstance(used, kind))
    raise StateError(
        f"A Flax module cannot use {_keras.STATEFUL[kind]} (class {type(used).__name__}): "
        "nothing would keep its weights or state.",
        advice=_host.word(f"instead of {kind.__name__}"),
    )


def module_is_running() -> bool:
    """Whether a module's code is running. R asks, because the meaning of `[` depends on it."""
    return _running.get()


@contextlib.contextmanager
def logical_rules(rules: tuple[tuple[str, Any], ...]) -> Iterator[None]:
    """Set Flax's rules for logical axes. They apply to Linen and NNX."""
    # `flax.linen.logical_axis_rules` documents this context manager. Importing Linen is slow.
    from flax.core.spmd import logical_axis_rules

    with logical_axis_rules(rules):
        yield


def current_logical_rules() -> tuple[tuple[str, Any], ...]:
    """Flax's rules for logical axes that are in force now, as `flax.linen` has them."""
    from flax.core.spmd import get_logical_axis_rules

    return tuple(get_logical_axis_rules())


def axes_on(spec: Iterable[Any], names: Sequence[str]) -> jax.sharding.PartitionSpec:
    """A spec with only the axes that a mesh has."""
    axes: list[str | tuple[str, ...] | None] = []
    for entry in spec:
        known = tuple(name for name in axis_names(entry) if name in names)
        axes.append(known[0] if len(known) == 1 else known or None)
    return jax.sharding.PartitionSpec(*axes)  # type: ignore[no-untyped-call]


def axis_names(entry: Any) -> tuple[str, ...]:
    """The axis names in one entry of a spec: a name, several, or none."""
    if isinstance(entry, str):
        return (entry,)
    return tuple(entry) if isinstance(entry, (tuple, list)) else ()


def along_axes(
    names: frozenset[str], function: Callable[[], PyTree]
) -> tuple[PyTree, frozenset[str]]:
    """Call a function inside the mapped axes that it names, such as `BatchNorm(axis_name="batch")`.

    Modules name axes in order to average over devices. Keras's batch is not split, so that each
    axis has size one. Flax does not ignore an axis outside of a mapped function:
    https://github.com/google/flax/issues/2606

    Args:
        names: The known axes. The function runs again for each axis that it names beyond these.
        function: The function to call.

    Returns:
        The result of the function, and the axes that it names.
    """
    while True:
        bound = function
        for name in sorted(names):
            bound = functools.partial(_along_axis, name, bound)
        try:
            return bound(), names
        except NameError as error:
            # JAX reports the axis in the message only, which is not documented. Seen to work with
            # jax 0.8.1 to 0.12.0.
            unbound = re.search(r"unbound axis name: (\w+)", str(error))
            if unbound is None or unbound[1] in names:
                raise
            names |= {unbound[1]}


def _along_axis(name: str, function: Callable[[], PyTree]) -> PyTree:
    results = jax.vmap(lambda _: function(), axis_name=name)(jnp.zeros(1))
    return jax.tree.map(lambda result: result[0], results)


# The thread that runs a module's code holds this lock: replaced methods of Flax's classes affect
# all threads, and two runs must not mix what they learn.
_TURN = threading.RLock()


def in_turn(method: F) -> F:
    """Let only one thread at a time run a method that runs a module's code."""

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        with _TURN:
            return method(*args, **kwargs)

    return run  # type: ignore[return-value]


@contextlib.contextmanager
def replaced(*replacements: tuple[type, Callable[..., Any]]) -> Iterator[None]:
    """Replace methods of Flax's and Keras's classes within the block, for calls from this thread.

    The comments at each use say why a method is replaced.

    Args:
        *replacements: Pairs of a class and a function. The function has the name of the method that
            it replaces, and takes that method before the method's own arguments. A property is
            replaced by the function that reads it.
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
        for owner, function in replacements:
            name = function.__name__
            method = inspect.getattr_static(owner, name)
            if name in vars(owner):
                stack.callback(setattr, owner, name, method)
            else:
                stack.callback(delattr, owner, name)
            setattr(
                owner,
                name,
                property(replacing(method.__get__, function), method.fset)
                if isinstance(method, property)
                else replacing(method, function),
            )
        yield


@contextlib.contextmanager
def naming_the_path(
    name: str, kind: type[M], path_of: Callable[[M], tuple[Any, ...] | None]
) -> Iterator[None]:
    """Add the path of the failing submodule, and the host language's advice, to an exception.

    Args:
        name: The whole module, as messages name it.
        kind: The base class of modules.
        path_of: From a module to its path in the whole, or None if it has none.
    """
    try:
        yield
    except TraceAgainError:
        raise
    except Exception as error:
        owners = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
        modules = [(owner, path_of(owner)) for owner in owners if isinstance(owner, kind)]
        placed = [(module, path) for module, path in modules if path is not None]
        advice, place = _host.advice(error), None
        if placed:
            module, path = placed[-1]
            whole = "/".join([name, *map(str, path or ())])
            class_name = type(module).__name__
            is_named = whole.split("/")[-1] == class_name
            place = f"(raised in {whole}{'' if is_named else f', of class {class_name}'})"
        if isinstance(error, KerasFlaxError):
            error.args = (" ".join(filter(None, (error.what, place))),)
            error.advice = error.advice or advice
        else:
            for note in filter(None, (advice, place)):
                _add_to_message(error, note)
        raise


def _add_to_message(error: Exception, note: str) -> None:
    # The message of a KeyError is the key itself, which other code may compare.
    is_message = len(error.args) == 1 and isinstance(error.args[0], str)
    if is_message and not isinstance(error, KeyError):
        error.args = (f"{error.args[0]}\n{note}",)
    else:
        error.add_note(note)
