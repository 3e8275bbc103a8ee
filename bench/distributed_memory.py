"""Measure where the memory of a module of 1 GiB goes, on eight simulated devices.

    python bench/distributed_memory.py [--mebibytes 1024]      # two tables on standard output

The weights are split in eight. The first table has the most that one device holds at any time, in
shares of an eighth of the weights: the memory of JAX's live arrays on each device, sampled every
millisecond. The second has the host memory of one process with eight devices, and of each of two
processes with four: the greatest resident set minus what it was before, as a ratio to the weights.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import json
import math
import os
import resource
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"
DEVICES = 8
FILES = {"safetensors": "w.safetensors", "Orbax": "w"}
BUILD, GIVEN, READ = "build", "build with values from ", "read into a built layer from "
WAYS = [BUILD, *(f"{way}{name}" for way in (GIVEN, READ) for name in FILES)]


def layer(mebibytes: int, **arguments: Any) -> Any:
    import keras
    from memory import WEIGHT_BYTES, WIDTH, linen

    import kerasflax

    made = kerasflax.FlaxLayer(linen(mebibytes * 2**20 // WEIGHT_BYTES), seed=0, **arguments)
    made(keras.Input((WIDTH,)))
    return made


def most_on_a_device() -> int:
    """The bytes of the arrays on the device of this process that holds most."""
    import jax

    found: collections.Counter[Any] = collections.Counter()
    for array in jax.live_arrays():
        # Another thread may have deleted the array meanwhile. To ask for its parts would create
        # further arrays.
        with contextlib.suppress(RuntimeError):
            sharding = array.sharding
            part = math.prod(sharding.shard_shape(array.shape)) * array.dtype.itemsize
            for device in sharding.addressable_devices:
                if sharding.memory_kind == device.default_memory().kind:
                    found[device] += part
    return max(found.values(), default=0)


def peak_resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10


def write(folder: Path, mebibytes: int) -> None:
    import kerasflax

    made = layer(mebibytes)
    for name in FILES.values():
        kerasflax.write_variables(made, folder / name)


def read(made: Any, file: Path) -> Any:
    import kerasflax

    made.flax_variables = kerasflax.read_variables(file, like=made)
    return made


def given(file: Path, mebibytes: int) -> Any:
    import kerasflax

    return layer(mebibytes, variables=kerasflax.read_variables(file))


def measure(way: str, folder: Path, mebibytes: int, process: list[str]) -> None:
    """Print the figures of one way in this process."""
    if process:
        import keras

        address, number = process
        keras.distribution.initialize(address, 2, int(number))
    import jax
    from memory import watched

    import kerasflax

    kerasflax.distribute({"batch": 1, "model": DEVICES}, auto=True)
    jax.block_until_ready(jax.numpy.zeros(1))
    file = folder / FILES.get(way.split(" ")[-1], "")
    held = {"device": 0}
    before = peak_resident()
    made = layer(mebibytes) if way.startswith(READ) else None
    gc.collect()
    with contextlib.nullcontext() if process else watched(held, {"device": most_on_a_device}):
        if made is not None:
            made = read(made, file)
        else:
            made = given(file, mebibytes) if way.startswith(GIVEN) else layer(mebibytes)
        jax.block_until_ready([variable.value for variable in made.variables])
    weights = mebibytes * 2**20
    figures = {"device": held["device"] * DEVICES / weights}
    figures["host"] = (peak_resident() - before) / weights
    print(json.dumps(figures))


def free_port() -> int:
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return each.getsockname()[1]


def start(devices: int, *arguments: str) -> subprocess.Popen[str]:
    """Start this file in a process with so many devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, __file__, *arguments],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        text=True,
    )


def results(running: list[subprocess.Popen[str]]) -> list[dict[str, float]]:
    outputs = [each.communicate()[0] for each in running]
    if any(each.returncode for each in running):
        raise SystemExit("A measurement failed; its error is above.")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mebibytes", type=int, default=1024)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--process", nargs=2, default=[], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.write, arguments.mebibytes)
        return
    if arguments.way:
        measure(arguments.way, arguments.folder, arguments.mebibytes, arguments.process)
        return
    shares, hosts = [], []
    with tempfile.TemporaryDirectory() as folder:
        size = ["--mebibytes", str(arguments.mebibytes)]
        # Not in this process: what it has held at most would count for those that it starts.
        if start(1, *size, "--write", folder).wait():
            raise SystemExit("The files cannot be written; the error is above.")
        common = [*size, "--folder", folder, "--way"]
        for way in WAYS:
            [one] = results([start(DEVICES, *common, way)])
            address = f"127.0.0.1:{free_port()}"
            two = results(
                [
                    start(DEVICES // 2, *common, way, "--process", address, str(number))
                    for number in range(2)
                ]
            )
            each = max(figures["host"] for figures in two)
            shares.append((way, one["device"]))
            hosts.append((way, one["host"], each, each / one["host"]))
    print("| | most on a device (shares) |\n|---|---:|")
    for way, share in shares:
        print(f"| {way} | {share:.2f} |")
    print("\n| | one process | each of two | ratio |\n|---|---:|---:|---:|")
    for way, *figures in hosts:
        print(f"| {way} | {' | '.join(f'{figure:.2f}' for figure in figures)} |")


if __name__ == "__main__":
    # The package in this checkout.
    sys.path.insert(0, str(Path(__file__).parent.parent / "inst" / "python"))
    main()
