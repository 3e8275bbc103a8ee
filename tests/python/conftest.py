import os

# Set this before anything imports Keras.
os.environ["KERAS_BACKEND"] = "jax"
# Most programs here run once, and XLA takes longer to optimize a program than to run it.
# Subprocesses inherit the setting.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import hypothesis
import jax
import keras
import pytest
import support

# Use the same examples in each run, and no deadline on slow machines. Fuzzers find new examples.
hypothesis.settings.register_profile("kerasflax", derandomize=True, deadline=None)
hypothesis.settings.load_profile("kerasflax")


@pytest.fixture(autouse=True)
def fresh_keras():
    """Isolate the names, seeds and dtype policies of a test from those of other tests."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)


@pytest.fixture
def optimized(monkeypatch):
    """Compile with XLA's optimizations, as users do, here and in subprocesses.

    For tests of compiled code, of memory, and against recorded numbers.
    """
    before = jax.config.values["jax_disable_most_optimizations"]
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def small_memory():
    """Assert that a test allocates little memory; see `support.little_memory`."""
    with support.little_memory():
        yield
