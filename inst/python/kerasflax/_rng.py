"""From a layer's seed to named streams of random keys.

The seed's state is two 32-bit words, the seed and a count of the calls so far: what `keras.random.SeedGenerator` keeps.
Read as a Threefry key, it differs from call to call, and each stream folds its own name in. Flax alone would draw the same
numbers from two streams that are given the same key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import jax


def initial_key(seed: int) -> jax.Array:
    """The key of `module.init()`: `jax.random.key(seed)`, so that plain Flax draws the same initial values."""
    return jax.random.key(seed)


def streams(state: jax.Array, names: Iterable[str]) -> dict[str, jax.Array]:
    """One typed key per stream.

    Args:
        state: The seed's state, uint32 of shape (2,).
        names: The names of the streams.

    Returns:
        A dict from stream name to a scalar key.
    """
    key = jax.random.wrap_key_data(state, impl="threefry2x32")
    return {name: jax.random.fold_in(key, _fold(name)) for name in names}


def _fold(name: str) -> int:
    # Python's own hash() of a string differs from process to process.
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
