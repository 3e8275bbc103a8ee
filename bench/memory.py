"""Measure the memory of a module of 1 GiB, for each way to give a layer its weights, and for Flax.

    python bench/memory.py [--mebibytes 1024]      # a table on standard output

Each way runs in its own process. Device memory is what the device reports. A CPU reports nothing;
there it is the memory of JAX's live arrays, sampled every millisecond. Resident memory is that of
the process, minus what it was before. Both are ratios to the size of the weights: at their peak,
then while the user still holds what was passed, then after the user has dropped it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"
# The package in this checkout.
sys.path.insert(0, str(Path(__file__).parent.parent / "inst" / "python"))
# One weight has 4 MiB, so a temporary copy of one weight counts for little.
WIDTH = 1024
WEIGHT_BYTES = 4 * WIDTH**2


def linen(number: int) -> Any:
    """Return a Linen module with `number` weights; memory.R uses it too."""
    from flax import linen as nn

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, inputs: Any) -> Any:
            for _ in range(number):
                inputs = nn.Dense(WIDTH, use_bias=False)(inputs)
            return inputs

    return Linen()


def ways(number: int) -> dict[str, Callable[[], tuple[Any, Any]]]:
    """Return the ways to create the weights, by name.

    Each is a function without arguments that returns the owner of the weights, and what the user
    holds as well.
    """
    import jax
    import jax.numpy as jnp
    import keras
    import numpy as np
    from flax import nnx

    import kerasflax

    class Nnx(nnx.Module):
        def __init__(self, *, rngs: nnx.Rngs) -> None:
            self.parts = nnx.List(
                [nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=rngs) for _ in range(number)]
            )

        def __call__(self, inputs: Any) -> Any:
            for part in self.parts:
                inputs = part(inputs)
            return inputs

    def layer(module: Any, **arguments: Any) -> Any:
        made = kerasflax.FlaxLayer(module, **arguments)
        made(keras.Input((WIDTH,)))
        return made

    def given(make: Callable[[], Any]) -> tuple[Any, Any]:
        names = [f"Dense_{i}" for i in range(number)]
        variables = {"params": {name: {"kernel": make()} for name in names}}
        return layer(linen(number), variables=variables), variables

    def from_file() -> tuple[Any, Any]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "weights.safetensors")
            names = [f"Dense_{i}" for i in range(number)]
            arrays = {name: {"kernel": np.ones((WIDTH, WIDTH), np.float32)} for name in names}
            kerasflax.write_variables({"params": arrays}, path)
            del arrays
            variables = kerasflax.read_variables(path)
        return layer(linen(number), variables=variables), variables

    def from_instance() -> tuple[Any, Any]:
        module = Nnx(rngs=nnx.Rngs(0))
        return layer(module), module

    key, row = jax.random.key(0), jnp.ones((1, WIDTH))
    return {
        "Flax, eager init": lambda: (linen(number).init(key, row), None),
        "Flax, jitted init": lambda: (jax.jit(linen(number).init)(key, row), None),
        "Flax, NNX instance": lambda: (Nnx(rngs=nnx.Rngs(0)), None),
        "kerasflax, initial values": lambda: (layer(linen(number)), None),
        "kerasflax, LazyModule": lambda: (layer(kerasflax.LazyModule(Nnx)), None),
        "kerasflax, NumPy's arrays": lambda: given(lambda: np.ones((WIDTH, WIDTH), np.float32)),
        "kerasflax, a file": from_file,
        "kerasflax, JAX arrays": lambda: given(lambda: jnp.ones((WIDTH, WIDTH)) + 0),
        "kerasflax, NNX instance": from_instance,
    }


def device_bytes() -> int:
    import jax

    stats = jax.devices()[0].memory_stats()
    if stats:
        return stats["bytes_in_use"]
    arrays = {}
    for array in jax.live_arrays():
        # Another thread may have deleted the array meanwhile.
        with contextlib.suppress(RuntimeError):
            arrays[array.unsafe_buffer_pointer()] = array.nbytes
    return sum(arrays.values())


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def watched(peaks: dict[str, int], measures: dict[str, Callable[[], int]]) -> Iterator[None]:
    """Keep the greatest value of each measure, which a thread takes every millisecond."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            for name, measure in measures.items():
                peaks[name] = max(peaks[name], measure())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def measured(make: Callable[[], tuple[Any, Any]], number: int) -> dict[str, float]:
    """Measure the memory of what `make` returns, as ratios to the size of `number` weights."""
    import jax

    weights = number * WEIGHT_BYTES
    jax.block_until_ready(jax.numpy.zeros(1))
    gc.collect()
    device, resident = device_bytes(), resident_bytes()
    peaks = {"device": device, "resident": resident}
    with watched(peaks, {"device": device_bytes, "resident": resident_bytes}):
        made, user = make()
        jax.block_until_ready([array for array in jax.live_arrays() if not array.is_deleted()])
    held = device_bytes()
    del user
    gc.collect()
    stats = jax.devices()[0].memory_stats()
    peak = stats["peak_bytes_in_use"] if stats else peaks["device"]
    figures = {
        "device peak": peak - device,
        "device": held - device,
        "device after": device_bytes() - device,
    }
    figures |= {
        "resident peak": peaks["resident"] - resident,
        "resident after": resident_bytes() - resident,
    }
    assert made is not None
    return {name: value / weights for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mebibytes", type=int, default=1024)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    number = arguments.mebibytes * 2**20 // WEIGHT_BYTES
    if arguments.way:
        print(json.dumps(measured(ways(number)[arguments.way], number)))
        return
    rows = []
    itself = [sys.executable, __file__, "--mebibytes", str(arguments.mebibytes), "--way"]
    commands = {way: [*itself, way] for way in ways(1)}
    commands["kerasflax, R's arrays"] = [
        "Rscript",
        str(Path(__file__).with_suffix(".R")),
        str(number),
    ]
    for way, command in commands.items():
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            print(f"{way}: {run.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        figures = json.loads(run.stdout.splitlines()[-1])
        rows.append((way, figures))
    head = ["", *rows[0][1]]
    print(f"| {' | '.join(head)} |\n|---|{'---:|' * (len(head) - 1)}")
    for way, figures in rows:
        print(f"| {way} | {' | '.join(f'{value:.2f}' for value in figures.values())} |")


if __name__ == "__main__":
    main()
