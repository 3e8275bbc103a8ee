"""Named streams of random keys from a layer's seed.

The state of the seed is two 32-bit words: the seed and the number of calls so far. That is also the
state of a `keras.random.SeedGenerator`. Read as a Threefry key, it differs between calls. Each
stream then folds in its name, because Flax draws the same numbers from two streams that have the
same key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import jax


def initial_key(seed: int) -> jax.Array:
    """The key for `module.init()`, `jax.random.key(seed)`: plain Flax draws the same values."""
    return jax.random.key(seed)


def streams(state: jax.Array, names: Iterable[str]) -> dict[str, jax.Array]:
    """Create one typed key per stream.

    Args:
        state: The state of the seed, uint32 of shape (2,).
        names: The names of the streams.

    Returns:
        A dict from stream names to scalar keys.
    """
    key = jax.random.wrap_key_data(state, impl="threefry2x32")
    return {name: named(key, name) for name in names}


def named(key: jax.Array, name: str) -> jax.Array:
    """The key of a name under a key."""
    # Python's hash() of a string differs between processes.
    fold = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return jax.random.fold_in(key, fold)
