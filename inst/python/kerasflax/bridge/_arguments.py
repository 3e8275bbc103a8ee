"""The arguments of a layer, checked before anything is made."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

import keras

from .._errors import ArgumentError, BackendError, ModuleError


def check_backend() -> None:
    """Refuse to work where Keras does not run on JAX."""
    backend = keras.backend.backend()
    if backend != "jax":
        raise BackendError(
            f"A Flax module needs Keras on JAX; Keras runs on {backend!r}.\n"
            'Set the environment variable KERAS_BACKEND="jax" before Keras is imported, in a new process.'
        )


def check_keywords(keywords: Mapping[str, Any]) -> None:
    """Refuse what no Keras layer takes."""
    known = {
        name
        for name, parameter in inspect.signature(keras.layers.Layer.__init__).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    } | {"input_shape"}
    unknown = [name for name in keywords if name not in known]
    if unknown:
        raise ArgumentError(
            f"No layer takes {', '.join(f'`{name}`' for name in unknown)}.\n"
            f"Besides `module`, `method`, `variables`, `seed`, `regularizers` and `constraints` there are "
            f"{', '.join(sorted(known))}; "
            "the module's own fields are given to the module."
        )


def checked_module(module: Any) -> Any:
    """The module, unless it is a Keras layer; whether it is Flax's is the adapters' to say."""
    # In Keras's NNX mode its layers are modules, too.
    if isinstance(module, keras.layers.Layer):
        raise ModuleError(
            f"`module` is the Keras layer {module.name!r}.\nA layer needs no wrapper: add it to the model."
        )
    return module


def by_pattern(
    name: str, values: Mapping[str, Any] | None, get: Callable[[Any], Any]
) -> dict[str, Any]:
    """What `get` makes of the values of a dict by pattern of paths; `name` is the argument's, for messages."""
    if values is None:
        return {}
    if not isinstance(values, Mapping) or not all(isinstance(pattern, str) for pattern in values):
        raise ArgumentError(
            f'`{name}` must be a dict by pattern of paths, got {values!r}.\nPass {{"params/**/kernel": ...}}, say.'
        )
    return {pattern: get(value) for pattern, value in values.items()}


def checked_seed(seed: Any) -> int | None:
    """The seed, an integer of 32 bits or None."""
    if seed is None:
        return None
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if isinstance(seed, bool) or not 0 <= number < 2**32:
        raise ArgumentError(
            f"`seed` must be an integer from 0 to 2**32 - 1, or None, got {seed!r}."
        )
    return number
