"""Measure one thing in one process: `python worker.py <workload> <contender> <measure>`.

Prints lines of JSON. Imports, data and the start of JAX's backend come before the measured section,
and everything is computed when the clock stops. A failure is a result too: {"fails": "..."}.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import contenders
import jax
import keras
from flax import linen as nn
from flax import serialization
from workloads import Workload, workload

import kerasflax

jax.config.update("jax_enable_compilation_cache", False)

# The epochs of contenders that train in turn: the most, the seconds for all, and the fewest.
EPOCHS, EPOCHS_SECONDS, LEAST_EPOCHS = 40, 30, 5
# Eager calls: the number of turns, and the seconds for which a contender is called in each.
CALL_TURNS, CALL_SECONDS = 20, 0.1
Layer = Callable[[], keras.layers.Layer]
Figures = dict[str, Any]


def megabytes() -> float:
    """Return the resident memory of the process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def device_peak() -> Figures:
    """Return the peak memory of an accelerator, in MiB; JAX does not report it for a CPU."""
    stats = jax.devices()[0].memory_stats()
    return {"device_peak_mb": stats["peak_bytes_in_use"] / 2**20} if stats else {}


def ready(model: Any) -> Any:
    if isinstance(model, keras.Model):
        jax.block_until_ready([variable.value for variable in model.variables])
    else:
        jax.block_until_ready(model)
    return model


# Build ------------------------------------------------------


def measure_build(
    load: Workload, contender: str, module: nn.Module, layer: Layer
) -> Iterator[Figures]:
    """Yield figures as soon as they exist, because what comes later may take too long."""
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
    # If the imports had a higher peak than the build, that peak says nothing about the build.
    added = (peak if peak > peak_before else megabytes()) - before
    yield {"build_s": seconds, "peak_mb": peak, "build_mb": added, **device_peak()}
    if contender == "flax_eager":
        yield flax_file_seconds(built)
    elif not contender.startswith("flax"):
        yield from keras_file_seconds(built)
    x, y = load.inputs(load.batch), load.targets(load.batch)
    start = time.perf_counter()
    model = (
        contenders.Loop(module, built)
        if contender.startswith("flax")
        else contenders.compiled(built)
    )
    model.train_on_batch(x, y)
    yield {"first_step_s": seconds + time.perf_counter() - start}


def flax_file_seconds(variables: Any) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "variables.msgpack")
        return file_seconds(
            path,
            save=lambda: path.write_bytes(serialization.to_bytes(variables)),
            load=lambda: ready(
                jax.device_put(serialization.from_bytes(variables, path.read_bytes()))
            ),
        )


def keras_file_seconds(model: keras.Model) -> Iterator[Figures]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.weights.h5")
        yield file_seconds(
            path,
            save=lambda: model.save_weights(path),
            load=lambda: (model.load_weights(path), ready(model)),
        )
    layer = model.layers[-1]
    if isinstance(layer, kerasflax.FlaxLayer):
        yield {
            "variables_s": seconds_of(lambda: ready(layer.flax_variables)),
            "freeze_s": seconds_of(lambda: kerasflax.freeze(layer))
            + seconds_of(lambda: kerasflax.unfreeze(layer)),
        }


def seconds_of(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def file_seconds(path: Path, save: Callable[[], Any], load: Callable[[], Any]) -> Figures:
    return {
        "save_s": seconds_of(save),
        "load_s": seconds_of(load),
        "file_mb": path.stat().st_size / 2**20,
    }


# Eager calls --------------------------------------------------------------------------------------


def measure_call(
    load: Workload, names: str, module: nn.Module, layer: Layer | None
) -> Iterator[Figures]:
    """Call the contenders in turn, in one process."""
    x = jax.device_put(load.inputs(load.batch))
    calls = {}
    for name in names.split(","):
        try:
            calls[name] = make_call(load, name, module, layer_of(load, name, module, layer), x)
            yield {"contender": name, "first_call_s": seconds_of(calls[name])}
        except Exception as error:
            calls.pop(name, None)
            yield {"contender": name} | failed(error)
    for turn in range(CALL_TURNS):
        for name in rotated(calls, turn):
            yield {"contender": name, "epoch": turn, "call_s": call_seconds(calls[name])}


def make_call(
    load: Workload, contender: str, module: nn.Module, layer: Layer | None, x: jax.Array
) -> Callable[[], Any]:
    if layer is not None:
        made = contenders.layer_model(load, layer).layers[-1]
        call = made.call if contender == contenders.BARE_CALL else made
        return lambda: ready(call(x))
    apply, variables = jax.jit(module.apply), contenders.init(module, load.inputs(1), jit=False)
    return lambda: ready(apply(variables, x))


def call_seconds(call: Callable[[], Any]) -> float:
    times, end = [seconds_of(call)], time.perf_counter() + CALL_SECONDS
    while time.perf_counter() < end:
        times.append(seconds_of(call))
    return statistics.median(times)


def rotated(names: Iterable[str], turn: int) -> list[str]:
    """Begin with another contender in each turn, because the order may matter."""
    names = list(names)
    first = turn % max(len(names), 1)
    return names[first:] + names[:first]


# Steps --------------------------------------------------------------------------------------------


class EpochTimes(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds, self.cpu_seconds = (
            time.perf_counter() - self._start,
            time.process_time() - self._cpu_start,
        )


def make_trainable(load: Workload, contender: str, module: nn.Module, layer: Layer) -> Any:
    if contender in contenders.LAYERS:
        return contenders.compiled(contenders.layer_model(load, layer))
    variables = contenders.init(module, load.inputs(1), jit=False)
    return (contenders.Loop if contender == "flax_loop" else contenders.OptaxModel)(
        module, variables
    )


def measure_step(
    load: Workload, names: str, module: nn.Module, layer: Layer | None
) -> Iterator[Figures]:
    """Train the contenders in turn, an epoch each, in one process.

    There, memory and processor treat all alike, which separate processes do not guarantee.
    """
    rows = load.batch * load.steps
    x, y = load.inputs(rows), load.targets(rows)
    models = {}
    for name in names.split(","):
        try:
            models[name] = make_trainable(load, name, module, layer_of(load, name, module, layer))
            step_figures(models[name], x, y, load)
        except Exception as error:
            models.pop(name, None)
            yield {"contender": name} | failed(error)
    end = time.perf_counter() + EPOCHS_SECONDS
    for epoch in range(EPOCHS):
        if epoch >= LEAST_EPOCHS and time.perf_counter() > end:
            break
        for name in rotated(models, epoch):
            yield {"contender": name, "epoch": epoch} | step_figures(models[name], x, y, load)


def step_figures(model: Any, x: Any, y: Any, load: Workload) -> Figures:
    times = EpochTimes()
    model.fit(x, y, batch_size=load.batch, epochs=1, shuffle=False, verbose=0, callbacks=[times])
    return {"step_s": times.seconds / load.steps, "step_cpu_s": times.cpu_seconds / load.steps}


def measure_program(
    load: Workload, names: str, module: nn.Module, layer: Layer | None
) -> Iterator[Figures]:
    """Count the instructions of each contender's compiled training step.

    Other work on the machine does not change them.
    """
    x, y = (jax.numpy.asarray(part(load.batch)) for part in (load.inputs, load.targets))
    for name in names.split(","):
        try:
            program = compiled_step(
                make_trainable(load, name, module, layer_of(load, name, module, layer)), x, y
            )
        except Exception as error:
            yield {"contender": name} | failed(error)
        else:
            instructions = sum(" = " in line for line in program.as_text().splitlines())
            yield {
                "contender": name,
                "instructions": instructions,
                "flops": program.cost_analysis()["flops"],
            }


def compiled_step(model: keras.Model, x: jax.Array, y: jax.Array) -> jax.stages.Compiled:
    """Compile the step that Keras's `fit()` compiles."""
    model._symbolic_build(data_batch=(x, y))
    state = [
        [variable.value for variable in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    ]
    return jax.jit(model.train_step, donate_argnums=0).lower(tuple(state), (x, y)).compile()


# Run ----------------------------------------------------------------------------------------------

MEASURES = {
    "build": measure_build,
    "call": measure_call,
    "step": measure_step,
    "program": measure_program,
}


def layer_of(
    load: Workload, contender: str, module: nn.Module, layer: Layer | None
) -> Layer | None:
    if layer is not None and contender == "kerasflax":
        return layer
    # Some contenders have no layer.
    make = contenders.LAYERS.get(contender)
    return make and (lambda: make(module, load.inputs(1)))


def failed(error: Exception) -> Figures:
    return {"fails": f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]}


def run(
    name: str, contender: str, measure: str, module: Any = None, layer: Layer | None = None
) -> None:
    """Measure, and print the figures as lines of JSON.

    Args:
        name: The name of the workload.
        contender: The contender, or several separated by commas (not for the measure `build`).
        measure: One of `MEASURES`.
        module: A module from R, in place of the workload's own.
        layer: A function from R that creates kerasflax's layer.
    """
    load = workload(name)
    module = load.make_module() if module is None else module
    jax.block_until_ready(jax.numpy.zeros(1) + jax.random.key_data(jax.random.key(0))[0])
    if measure == "build":
        layer = layer_of(load, contender, module, layer)
    try:
        for figures in MEASURES[measure](load, contender, module, layer):
            print(json.dumps(figures), flush=True)
    except Exception as error:
        print(json.dumps(failed(error)), flush=True)


if __name__ == "__main__":
    run(*sys.argv[1:4])
