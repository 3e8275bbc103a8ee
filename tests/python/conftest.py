import os

# Before anything imports Keras.
os.environ["KERAS_BACKEND"] = "jax"

import keras
import pytest


@pytest.fixture(autouse=True)
def fresh_keras():
    """Names, seeds and policies of one test are none of another's."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)
