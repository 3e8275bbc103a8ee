"""The memory of a layer's weights, which belongs to the layer alone.

Keras's compiled steps donate the arrays of its variables: XLA writes the new values into the memory
of the old ones, and JAX deletes the old arrays. Therefore nobody else may hold an array in a
variable's memory.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from .. import _processes


def copied(value: Any) -> Any:
    """Copy an array that a user gave or will get. The copy shares its memory with no other array.

    Every array passes through this function once on its way into a variable or out of one. Nothing
    cheaper is safe: the next step deletes an alias of a variable's memory, or fails because of it.
    Arrays that kerasflax has created itself need no copy, because nobody else holds them.

    Args:
        value: A JAX array on any devices; a tracer, which has no memory; or anything that NumPy
            makes an array of.

    Returns:
        A JAX array with the same sharding for a JAX array, or else a NumPy array.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    if not isinstance(value, jax.Array):
        return np.array(value)
    # Keras may be building the layer inside a compiled step.
    with jax.ensure_compile_time_eval():
        if value.is_fully_addressable:
            return jax.device_put(value, may_alias=False)
        parts = [jax.device_put(part.data, may_alias=False) for part in value.addressable_shards]
        return jax.make_array_from_single_device_arrays(value.shape, value.sharding, parts)


def placed(value: Any, sharding: Any = None) -> jax.Array:
    """Move an array that nobody else holds to where Keras keeps a variable.

    Args:
        value: An array, as `copied` returns it.
        sharding: Where to move it; None for the default device, where Keras creates its variables
            without a distribution.

    Returns:
        The array itself if it is a JAX array at that place already. It may be uncommitted.

    Raises:
        ValueError: JAX cannot move it there.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    with jax.ensure_compile_time_eval():
        if not isinstance(value, jax.Array):
            return _processes.put(value, sharding)
        target = sharding or jax.device_put(0).sharding
        return (
            value
            if value.sharding.is_equivalent_to(target, value.ndim)
            else _processes.put(value, target)
        )
