"""Measure whether memory grows with the number of models that a process builds, trains and drops.

    python tests/fuzz/soak.py [--builds 300] [--only linen,nnx,lazy] [--growth 0.05]

Each kind of layer runs in a process of its own, with and without `keras.backend.clear_session()`
after each model. A layer of Keras's own shows how much growth is due to JAX and Keras. The memory
is the resident memory of the process after a garbage collection. The median of builds 41 to 50 is
compared with that of the last ten. The arrays are those that JAX knows of. A kind fails if its
memory grows by more than `--growth`, or if arrays are left over. The last line says how many do.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"
# Each build compiles a program and runs it once; XLA takes longer to optimize it than to run it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
sys.path.insert(0, str(Path(__file__).parents[2] / "inst" / "python"))

KINDS = ("keras", "linen", "nnx", "lazy")
FIRST = 50


def layers() -> dict[str, Callable[[], Any]]:
    """Functions that create a small layer with weights and state, by kind."""
    import keras
    from flax import linen as nn
    from flax import nnx

    from kerasflax import FlaxLayer, LazyModule

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, inputs: Any, training: bool = False) -> Any:
            self.sow("intermediates", "inputs", inputs)
            return nn.BatchNorm(use_running_average=not training)(nn.Dense(2)(inputs))

    class Nnx(nnx.Module):
        def __init__(self, *, rngs: nnx.Rngs) -> None:
            self.linear, self.norm = nnx.Linear(4, 2, rngs=rngs), nnx.BatchNorm(2, rngs=rngs)

        def __call__(self, inputs: Any) -> Any:
            return self.norm(self.linear(inputs))

    def plain() -> keras.layers.Layer:
        return keras.Sequential([keras.layers.Dense(2), keras.layers.BatchNormalization()])

    return {
        "keras": plain,
        "linen": lambda: FlaxLayer(Linen()),
        "nnx": lambda: FlaxLayer(Nnx(rngs=nnx.Rngs(0))),
        "lazy": lambda: FlaxLayer(LazyModule(Nnx)),
    }


def resident() -> float:
    """The current resident memory of the process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def soak(kind: str, clears: bool, builds: int) -> dict[str, Any]:
    """Build, train, call and drop a number of models.

    Returns:
        The memory in MiB, and the number of live arrays, after each model.
    """
    import jax
    import keras
    import numpy as np

    make = layers()[kind]
    x, y = np.ones((8, 4), np.float32), np.ones((8, 2), np.float32)
    memory, arrays = [], []
    for _ in range(builds):
        model = keras.Sequential([keras.Input((4,)), make()])
        model.compile("sgd", "mse")
        model.fit(x, y, verbose=0)
        model(x)
        del model
        if clears:
            keras.backend.clear_session()
        gc.collect()
        memory.append(resident())
        arrays.append(len(jax.live_arrays()))
    return {"memory": memory, "arrays": arrays}


def run(kind: str, clears: bool, builds: int, most: float) -> bool:
    """Soak one kind in a process of its own, and print a line of figures.

    Returns:
        Whether its memory is flat.
    """
    start = time.monotonic()
    command = [
        sys.executable,
        __file__,
        "--builds",
        str(builds),
        "--one",
        kind,
        *(["--clear"] if clears else []),
    ]
    figures = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )
    memory, arrays = figures["memory"], figures["arrays"]
    before, after = (statistics.median(each) for each in (memory[FIRST - 10 : FIRST], memory[-10:]))
    more = arrays[-1] - arrays[FIRST - 1]
    growth = after / before - 1
    is_flat = growth <= most and more <= 0
    per_build = 1024 * (after - before) / (builds - FIRST)
    seconds = time.monotonic() - start
    print(
        f"{kind:6} {'clear_session' if clears else '':14} {before:6.0f} MiB {after:6.0f} MiB"
        f" {growth:+7.1%} {per_build:+7.1f} KiB/build {more:+4} arrays {seconds:5.0f} s"
        f"  {'flat' if is_flat else 'grows'}",
        flush=True,
    )
    return is_flat


def main() -> int:
    """Soak the kinds that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--builds", type=int, default=300)
    parser.add_argument("--only", default=",".join(KINDS))
    parser.add_argument("--growth", type=float, default=0.05)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--clear", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(soak(arguments.one, arguments.clear, arguments.builds)))
        return 0
    if arguments.builds < 2 * FIRST:
        parser.error(f"--builds must be {2 * FIRST} or more")
    flat = {
        (kind, clears): run(kind, clears, arguments.builds, arguments.growth)
        for kind in arguments.only.split(",")
        for clears in (False, True)
    }
    grown = [key for key, is_flat in flat.items() if not is_flat and key[0] != "keras"]
    print(
        f"soak: memory grows for {len(grown)} of {sum(kind != 'keras' for kind, _ in flat)} ways"
        " to use kerasflax"
    )
    return bool(grown)


if __name__ == "__main__":
    sys.exit(main())
