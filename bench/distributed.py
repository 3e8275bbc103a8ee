"""Compare distributed training with plain Flax and optax, on eight simulated devices.

    python bench/distributed.py [--rounds 5]      # a table on standard output

Both have the same module, the same initial values and the same shardings. A step is the median of
an epoch's; in each round, both train an epoch in turn, in the order of the round. Collectives are
those in the compiled program (its HLO), and a build is one in a process of its own, on eight
devices and on one.
"""

from __future__ import annotations

import argparse
import collections
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"
DEVICES = 8
# The package in this checkout.
sys.path.insert(0, str(Path(__file__).parent.parent / "inst" / "python"))

WIDTH, DEPTH, BATCH, STEPS, RATE = 512, 4, 128, 20, 0.001
MESHES = {"data": {"batch": 8}, "model": {"batch": 2, "model": 4}}
# A collective of a compiled program: what it returns, and its kind.
_COLLECTIVE = re.compile(
    r" = (.*) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
_SHAPE = re.compile(r"\w+\[[\d,]*\]")


def module() -> Any:
    from flax import linen as nn

    class Mlp(nn.Module):
        @nn.compact
        def __call__(self, inputs: Any) -> Any:
            for _ in range(DEPTH):
                inputs = nn.relu(nn.Dense(WIDTH)(inputs))
            return nn.Dense(16)(inputs)

    return Mlp()


def keras_model() -> Any:
    import keras

    import kerasflax

    model = keras.Sequential([keras.Input((WIDTH,)), kerasflax.FlaxLayer(module(), seed=0)])
    model.compile(keras.optimizers.SGD(RATE), "mse")
    return model


def flax_step() -> Callable[..., Any]:
    """The usual training step of Flax and optax."""
    import jax
    import optax

    apply, optimizer = module().apply, optax.sgd(RATE)

    def loss(params: Any, x: Any, y: Any) -> Any:
        return ((apply({"params": params}, x) - y) ** 2).mean()

    def step(params: Any, moments: Any, x: Any, y: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(params, x, y)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), moments, value

    return jax.jit(step, donate_argnums=(0, 1))


def collectives(program: str) -> collections.Counter[tuple[str, ...]]:
    """How many collectives of each kind, and of which shapes, a program has."""
    return collections.Counter(
        (kind, *sorted(_SHAPE.findall(result))) for result, kind in _COLLECTIVE.findall(program)
    )


def described(found: collections.Counter[tuple[str, ...]]) -> str:
    kinds: collections.Counter[str] = collections.Counter()
    for (kind, *shapes), number in found.items():
        # XLA combines the reductions of several arrays into one.
        kinds[f"{kind} of {len(shapes)}"] += number
    return ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items())) or "none"


def compare(mesh: str, rounds: int) -> None:
    """Print a row of the table."""
    import jax
    import numpy as np
    import optax
    from worker import compiled_step, seconds_of

    import kerasflax

    distribution = kerasflax.distribute(MESHES[mesh], auto=mesh == "model")
    assert distribution is not None
    model = keras_model()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH * STEPS, WIDTH)).astype("float32")
    y = rng.normal(size=(BATCH * STEPS, 16)).astype("float32")
    sharding = jax.sharding.NamedSharding(
        distribution.device_mesh.backend_mesh, jax.sharding.PartitionSpec("batch")
    )
    params = model.layers[0].flax_variables["params"]
    moments, step = optax.sgd(RATE).init(params), flax_step()
    batch = [jax.device_put(part[:BATCH], sharding) for part in (x, y)]
    ours = collectives(compiled_step(model, *batch).as_text())
    plain = collectives(step.lower(params, moments, *batch).compile().as_text())

    def fit() -> None:
        model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)

    def loop() -> None:
        nonlocal params, moments
        for i in range(0, len(x), BATCH):
            parts = [jax.device_put(part[i : i + BATCH], sharding) for part in (x, y)]
            params, moments, value = step(params, moments, *parts)
        jax.block_until_ready((params, value))

    times: dict[str, list[float]] = {"fit": [], "loop": []}
    for number in range(rounds + 1):
        for name, function in list({"fit": fit, "loop": loop}.items())[:: -1 if number % 2 else 1]:
            seconds = seconds_of(function) / STEPS
            # The first round compiles.
            if number:
                times[name].append(seconds)
    ratios = [a / b for a, b in zip(times["fit"], times["loop"], strict=True)]
    cells = [
        mesh,
        described(ours),
        "the same" if ours == plain else described(plain),
        *(f"{1e3 * statistics.median(found):.1f}" for found in times.values()),
        f"{statistics.median(ratios):.2f}",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


def build(devices: int) -> None:
    """Print the seconds of a build."""
    import jax
    from worker import seconds_of

    import kerasflax

    jax.block_until_ready(jax.numpy.zeros(1))
    if devices > 1:
        kerasflax.distribute(MESHES["model"], auto=True)

    def ready() -> None:
        jax.block_until_ready([variable.value for variable in keras_model().variables])

    print(seconds_of(ready))


def run(devices: int, *arguments: str) -> str:
    """Run this file in a process with so many devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compare", choices=MESHES, help=argparse.SUPPRESS)
    parser.add_argument("--build", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.compare:
        compare(arguments.compare, arguments.rounds)
        return
    if arguments.build:
        build(arguments.build)
        return
    print("| mesh | collectives | of plain Flax | step (ms) | of plain Flax | ratio |")
    print("|---|---|---|---|---|---|")
    for mesh in MESHES:
        print(
            run(DEVICES, "--compare", mesh, "--rounds", str(arguments.rounds)).strip(), flush=True
        )
    builds: dict[int, list[float]] = {DEVICES: [], 1: []}
    for _ in range(arguments.rounds):
        for devices, found in builds.items():
            found.append(float(run(devices, "--build", str(devices))))
    eight, one = (statistics.median(found) for found in builds.values())
    print(f"\nBuild on {DEVICES} devices {eight:.2f} s, on one {one:.2f} s: {eight / one:.2f}")


if __name__ == "__main__":
    main()
