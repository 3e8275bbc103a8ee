"""Set-up that tests in several rooms share."""

import contextlib
import math
import os
import socket
import subprocess
import sys
import textwrap
import tracemalloc

import jax
import jax.numpy as jnp
import keras
import numpy as np


def environment(**variables):
    """The environment of a new Python process with this process's path."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}


def run_python(*arguments, env=None, check=False, **options):
    """Run Python with these arguments in a new process, and capture its output as text."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment() if env is None else env,
        capture_output=True,
        text=True,
        check=check,
        **options,
    )


def run_code(code, **variables):
    """Run code in a new Python process with this process's path, and return its output."""
    done = run_python("-c", textwrap.dedent(code), env=environment(**variables))
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def little_memory(most=2**23):
    """Assert that a block allocates no more than `most` bytes of Python's memory."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < most


def cpu_devices(count):
    """The environment variables that give a new process this number of CPU devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}


def most_on_a_device():
    """The bytes of the arrays in the memory of this process's device that holds most."""
    held = dict.fromkeys(jax.local_devices(), 0)
    for array in jax.live_arrays():
        sharding = array.sharding
        part = math.prod(sharding.shard_shape(array.shape)) * array.dtype.itemsize
        for device in sharding.addressable_devices:
            if sharding.memory_kind == device.default_memory().kind:
                held[device] += part
    return max(held.values())


def free_port():
    """A port of this machine that nothing uses at the moment."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


# Inputs of shape (8, 5, 5, 1), (8, 4, 3) and (8, 3), and targets of shape (8, 3), all float32.
IMAGES = np.linspace(-1, 1, 8 * 5 * 5, dtype=np.float32).reshape(8, 5, 5, 1)
SEQUENCES = np.linspace(-1, 1, 8 * 4 * 3, dtype=np.float32).reshape(8, 4, 3)
VECTORS = np.linspace(-1, 1, 8 * 3, dtype=np.float32).reshape(8, 3)
TARGETS = np.linspace(0, 1, 8 * 3, dtype=np.float32).reshape(8, 3)


def functional_model(layer, shape, dtype=None):
    """A functional Keras model of one layer. `shape` excludes the batch size."""
    inputs = keras.Input(shape, dtype=dtype)
    return keras.Model(inputs, layer(inputs))


def key_data(leaf):
    """The data of a typed random key, as uint32; any other array unchanged."""
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def assert_close(tree, expected, rtol=1e-5, atol=1e-6):
    """Assert that two trees have the same structure and that their numbers are close."""
    jax.tree.map(
        lambda leaf, number: np.testing.assert_allclose(leaf, number, rtol=rtol, atol=atol),
        tree,
        expected,
    )
