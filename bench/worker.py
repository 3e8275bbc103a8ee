"""One process measures one thing: `python worker.py <workload> <contender> <measure>` prints one line of JSON.

Imports, data and the start of JAX's backend come before the measured section, and everything is ready when the clock stops.
What fails is a result as well: {"fails": "..."}.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import contenders
import jax
import keras
from flax import linen as nn
from flax import serialization
from workloads import Workload, workload

jax.config.update("jax_enable_compilation_cache", False)

EPOCHS = 4
CALL_SECONDS = 0.5
Layer = Callable[[], keras.layers.Layer]


def megabytes() -> float:
    """What the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def ready(model: Any) -> Any:
    if isinstance(model, keras.Model):
        jax.block_until_ready([variable.value for variable in model.variables])
    else:
        jax.block_until_ready(model)
    return model


# Build, and what is done with what was built ----------------------------------------------------------------------------


def measure_build(load: Workload, contender: str, module: nn.Module, layer: Layer) -> dict[str, float]:
    inputs = load.inputs(1)
    before, peak_before = megabytes(), peak_megabytes()
    start = time.perf_counter()
    if contender.startswith("flax"):
        built = contenders.init(module, inputs, jit=contender == "flax_jit")
    else:
        built = contenders.layer_model(load, layer)
    ready(built)
    seconds = time.perf_counter() - start
    peak = peak_megabytes()
    # Where the build stays under a peak of the imports, that peak says nothing of the build.
    added = (peak if peak > peak_before else megabytes()) - before
    figures = {"build_s": seconds, "peak_mb": peak, "build_mb": added}
    x = jax.device_put(load.inputs(load.batch))
    if load.grows or contender == "flax_jit":
        # Jitted init gives the same variables as eager init.
        return figures
    if contender == "flax_eager":
        return figures | measure_flax(module, built, x)
    return figures | measure_model(built, x)


def measure_flax(module: nn.Module, variables: Any, x: jax.Array) -> dict[str, float]:
    apply = jax.jit(module.apply)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "variables.msgpack")
        return call_seconds(lambda: apply(variables, x)) | file_seconds(
            path,
            save=lambda: path.write_bytes(serialization.to_bytes(variables)),
            load=lambda: ready(jax.device_put(serialization.from_bytes(variables, path.read_bytes()))),
        )


def measure_model(model: keras.Model, x: jax.Array) -> dict[str, float]:
    layer = model.layers[-1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.weights.h5")
        return call_seconds(lambda: layer(x)) | file_seconds(
            path, save=lambda: model.save_weights(path), load=lambda: (model.load_weights(path), ready(model))
        )


def call_seconds(call: Callable[[], jax.Array]) -> dict[str, float]:
    def timed() -> float:
        start = time.perf_counter()
        call().block_until_ready()
        return time.perf_counter() - start

    end = time.perf_counter() + CALL_SECONDS
    first, _, _ = timed(), timed(), timed()
    times = [timed() for _ in range(5)]
    while time.perf_counter() < end:
        times.append(timed())
    return {"first_call_s": first, "call_s": statistics.median(times)}


def file_seconds(path: Path, save: Callable[[], Any], load: Callable[[], Any]) -> dict[str, float]:
    start = time.perf_counter()
    save()
    saved = time.perf_counter()
    load()
    return {"save_s": saved - start, "load_s": time.perf_counter() - saved, "file_mb": path.stat().st_size / 2**20}


# Steps ------------------------------------------------------------------------------------------------------------------


class EpochTimes(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self._start)


def make_trainable(load: Workload, contender: str, module: nn.Module, layer: Layer) -> Any:
    if contender == "flax_loop":
        return contenders.Loop(module, load.inputs(1))
    if contender == "flax_fit":
        return contenders.OptaxModel(module, load.inputs(1))
    return contenders.layer_model(load, layer)


def measure_step(load: Workload, contender: str, module: nn.Module, layer: Layer) -> dict[str, float]:
    rows = load.batch * load.steps
    x, y = load.inputs(rows), load.targets(rows)
    start = time.perf_counter()
    model = make_trainable(load, contender, module, layer)
    model.train_on_batch(x[: load.batch], y[: load.batch])
    first = time.perf_counter() - start
    epochs = list(epoch_seconds(model, x, y, load.batch))
    # The first epoch warms up.
    return {"first_step_s": first, "step_s": statistics.median(epochs[1:]) / load.steps, "peak_training_mb": peak_megabytes()}


def epoch_seconds(model: Any, x: Any, y: Any, batch: int) -> Iterator[float]:
    if isinstance(model, contenders.Loop):
        epochs = model.epochs(x, y, batch)
        for _ in range(EPOCHS):
            start = time.perf_counter()
            next(epochs)
            yield time.perf_counter() - start
    else:
        times = EpochTimes()
        model.fit(x, y, batch_size=batch, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=[times])
        yield from times.seconds


# --------------------------------------------------------------------------------------------------------------------------

MEASURES = {"build": measure_build, "step": measure_step}


def run(name: str, contender: str, measure: str, module: Any = None, layer: Layer | None = None) -> str:
    """Measure, and return the line of JSON.

    Args:
        name: Of the workload.
        contender: Who.
        measure: One of `MEASURES`.
        module: The module, where it is not the workload's own but R's.
        layer: Likewise, what makes kerasflax's layer.
    """
    load = workload(name)
    module = load.make_module() if module is None else module
    jax.block_until_ready(jax.numpy.zeros(1) + jax.random.key_data(jax.random.key(0))[0])
    if layer is None or contender != "kerasflax":
        # Some contenders have no layer.
        layer = contenders.LAYERS.get(contender) and (lambda: contenders.LAYERS[contender](module, load.inputs(1)))
    try:
        result: dict[str, Any] = MEASURES[measure](load, contender, module, layer)
    except Exception as error:
        result = {"fails": f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]}
    return json.dumps(result)


if __name__ == "__main__":
    print(run(*sys.argv[1:4]))
