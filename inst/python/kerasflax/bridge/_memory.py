"""The memory of a layer's weights, which is the layer's alone.

Keras's compiled steps donate the arrays of its variables: XLA writes the new values into the memory of the old ones, which
JAX then deletes. An array that somebody else holds must therefore never lie in a variable's memory.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def copied(value: Any) -> Any:
    """Copy an array that a user gave, or one that a user is to be given, in its place: no other array has the copy's memory.

    Every array passes through here once, on its way into a variable or out of one. Nothing cheaper is safe: an alias of a
    variable's memory is deleted by the next step, or makes it fail. What kerasflax has made itself needs no copy, since nobody
    else holds it.

    Args:
        value: A JAX array, on any devices; a tracer, which has no memory; or what NumPy makes an array of.

    Returns:
        A JAX array with the sharding of a JAX array, a NumPy array otherwise.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    if not isinstance(value, jax.Array):
        return np.array(value)
    # Keras may be building the layer inside a compiled step.
    with jax.ensure_compile_time_eval():
        return jax.device_put(value, may_alias=False)


def placed(value: Any, sharding: Any = None) -> jax.Array:
    """Move an array that nobody else holds to where Keras keeps a variable.

    Args:
        value: An array, as `copied` returns it.
        sharding: Where to; None for the device on which Keras, without a distribution, makes its variables.

    Returns:
        The array itself, if it is a JAX array that lies there. It need not be committed to the device.

    Raises:
        ValueError: JAX cannot move it there.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    with jax.ensure_compile_time_eval():
        if not isinstance(value, jax.Array):
            return jax.device_put(value, sharding)
        target = sharding or jax.device_put(0).sharding
        return (
            value
            if value.sharding.is_equivalent_to(target, value.ndim)
            else jax.device_put(value, target)
        )
