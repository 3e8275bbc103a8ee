"""Measure imports in one process: keras and flax, then kerasflax. Prints one line of JSON."""

# ruff: noqa: E402, F401
import json
import os
import time

os.environ["KERAS_BACKEND"] = "jax"

start = time.perf_counter()
import flax
import keras

others = time.perf_counter()
import kerasflax

end = time.perf_counter()
print(json.dumps({"keras_flax_s": others - start, "kerasflax_s": end - others}))
