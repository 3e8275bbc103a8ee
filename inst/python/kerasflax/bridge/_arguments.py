"""Checks of a layer's arguments, before anything is created."""

from __future__ import annotations

import functools
import gc
import inspect
import operator
import re
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras

from .. import _host
from .._errors import ArgumentError, BackendError, ModuleError
from .._messages import value_text

_OWN = ("module", "method", "variables", "seed", "regularizers", "constraints")


def check_backend() -> None:
    """Check that Keras runs on JAX."""
    backend = keras.backend.backend()
    if backend != "jax":
        raise BackendError(
            f"A Flax module needs Keras on JAX, but Keras runs on {backend!r}.",
            advice='Set the environment variable KERAS_BACKEND="jax" before Keras is imported, in '
            "a new process.",
        )


def check_keywords(keywords: Mapping[str, Any]) -> None:
    """Check that every Keras layer takes these arguments."""
    parameters = inspect.signature(keras.layers.Layer.__init__).parameters.values()
    known = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    known.add("input_shape")
    unknown = [f"`{name}`" for name in keywords if name not in known]
    if unknown:
        raise ArgumentError(
            f"The layer has no argument {', '.join(unknown)}. Its arguments are "
            f"{', '.join(_OWN)}, {', '.join(sorted(known))}.",
            advice="Pass the module's own fields to the module.",
        )


def checked_module(module: Any) -> Any:
    """Return the module unless it is a Keras layer. The adapters check whether it is Flax's."""
    # In Keras's NNX mode, its layers are NNX modules.
    if isinstance(module, keras.layers.Layer):
        raise ModuleError(
            f"`module` is the Keras layer {module.name!r}.",
            advice="A layer needs no wrapper: add it to the model.",
        )
    return module


def default_name(class_name: str) -> str:
    """A new name for a layer: that of its module's class, as Keras writes those of its own classes.

    Keras counts the names, so that they are unique in a process: `my_module`, `my_module_1`.
    """
    if not class_name.isidentifier():
        # A class that a program has named may contain what a path cannot, such as `/`.
        class_name = "FlaxLayer"
    words = re.sub("([a-z])(?=[A-Z])|([A-Z0-9])(?=[A-Z][a-z])", r"\1\2_", class_name)
    name = words.strip("_").lower() or "flax_layer"
    count = keras.backend.get_uid(name)
    return name if count == 1 else f"{name}_{count - 1}"


# By the `id` of a part of a module: the part, and a layer that has copied its weights.
_copied_by: dict[int, tuple[weakref.ref[Any], weakref.ref[keras.layers.Layer]]] = {}


def warn_of_shared_weights(layer: keras.layers.Layer, parts: Iterable[Any]) -> None:
    """Warn if another living layer has copied its weights from a part of the same module.

    Args:
        layer: The layer.
        parts: The parts of its module that hold the weights that it copies.
    """
    parts = list(parts)
    if any(_copier_of(part) for part in parts):
        # A layer that nobody holds lives on until its cycles are found.
        gc.collect()
    alive = [other.name for other in map(_copier_of, parts) if other is not None]
    for part in parts:
        forget = functools.partial(_forget, id(part))
        if _copier_of(part) is None:
            _copied_by[id(part)] = (weakref.ref(part, forget), weakref.ref(layer))
    if alive:
        warnings.warn(
            f"The layers {alive[0]!r} and {layer.name!r} copy the weights of the same NNX module. "
            "Each trains its own copy. To share the weights, call one layer twice, or put both "
            "uses into one module; for two sets of weights, pass "
            f"{_host.code('nnx.clone(module)')}.",
            stacklevel=3,
        )


def _copier_of(part: Any) -> keras.layers.Layer | None:
    known = _copied_by.get(id(part))
    return None if known is None else known[1]()


def _forget(key: int, _: Any) -> None:
    _copied_by.pop(key, None)


def by_pattern(
    name: str, values: Mapping[str, Any] | None, get: Callable[[Any], Any]
) -> dict[str, Any]:
    """Apply `get` to the values of a dict by pattern of paths.

    Args:
        name: The name of the argument, for messages.
        values: The dict, or None.
        get: From a value that the user gave to a Keras object.
    """
    if values is None:
        return {}
    if not isinstance(values, Mapping) or not all(isinstance(pattern, str) for pattern in values):
        raise ArgumentError(
            f"`{name}` must be {_host.word('dict')} by pattern of paths, got {value_text(values)}.",
            advice=f"Pass, for example, {_host.word('entry', 'params/**/kernel')}.",
        )
    return {pattern: get(value) for pattern, value in values.items()}


def checked_seed(seed: Any) -> int | None:
    """Return the seed, an integer of 32 bits, or None."""
    if seed is None:
        return None
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if isinstance(seed, bool) or not 0 <= number < 2**32:
        raise ArgumentError(
            f"`seed` must be an integer from 0 to 2**32 - 1, or {_host.word('none')}, "
            f"got {value_text(seed)}."
        )
    return number
