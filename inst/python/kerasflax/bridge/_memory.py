"""The memory of a layer's weights, which belongs to the layer alone.

Keras's compiled steps donate the arrays of its variables: XLA writes the new values into the memory
of the old ones, and JAX deletes the old arrays. Therefore nobody else may hold an array in a
variable's memory.
"""

from __future__ import annotations

from collections.abc import Callable
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
        array = np.asarray(value)
        # JAX has no arrays in another byte order than the machine's.
        return np.array(array, array.dtype.newbyteorder("="))
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


def kept_on_host(value: Any) -> Callable[[], Any]:
    """Keep what this process has of a variable's array in the host's memory.

    Args:
        value: The array. A tracer, which has no memory, or None is kept as it is, and so is the
            array of a single CPU, whose memory is the host's.

    Returns:
        A function that returns the array, made again where it was.
    """
    if not isinstance(value, jax.Array) or isinstance(value, jax.core.Tracer):
        return lambda: value
    shape, sharding = value.shape, value.sharding
    if [device.platform for device in value.devices()] == ["cpu"]:
        return lambda: value
    # An interrupt while JAX first lists an array's parts makes the array unreadable (JAX 0.10.2; no
    # upstream issue was found). Therefore these are the parts of a copy. Several devices may hold
    # the same part.
    parts = {str(shard.index): shard for shard in copied(value).addressable_shards}
    copies = {index: np.array(shard.data) for index, shard in parts.items()}
    return lambda: jax.make_array_from_callback(shape, sharding, lambda index: copies[str(index)])
