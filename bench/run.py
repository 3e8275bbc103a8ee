"""Run the benchmarks: each measurement in its own process, contenders in turn, in several rounds.

    python bench/run.py [--rounds 5] [--only REGEX] [--to FOLDER]

`--only` keeps the jobs whose "workload contender measure" matches the expression. Their results go
to build/, or with `--to` to a folder with results, where they replace the older results of these
jobs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import machine
import report

HERE = Path(__file__).parent
ROOT = HERE.parent
# The names in workloads.py, which imports too much for a process that only waits.
WORKLOADS = ("mlp", "batchnorms", "cnn", "vit", "resnet50", "lm", "r-cnn", "weights-2000")
BUILDERS = ("kerasflax", "flax_eager", "flax_jit", "keras_flaxlayer")
CALLERS = ("kerasflax", "kerasflax_bare", "flax_eager", "thin_layer", "keras_flaxlayer")
TRAINERS = ("kerasflax", "flax_fit", "keras_flaxlayer", "thin_layer", "flax_loop")
# These run once: they show an order of growth, not a few per cent.
GROWTH = {
    "weights": (10, 100, 1_000, 10_000),
    "depth": (1, 10, 100),
    "size": (10_000, 1_000_000, 100_000_000),
}
GROWTH_BUILDERS = ("kerasflax", "flax_eager", "flax_jit")
GROWTH_CALLERS = ("kerasflax", "flax_eager")
GROWTH_TRAINERS = ("kerasflax", "flax_fit")
GROWTH_SECONDS = 300


@dataclasses.dataclass(frozen=True)
class Job:
    workload: str
    contender: str
    measure: str
    seconds: int = 180

    @property
    def command(self) -> list[str]:
        if self.measure == "library":
            return ["Rscript", str(HERE / "r_library.R")]
        if self.workload == "r-cnn":
            return ["Rscript", str(HERE / "r_cnn.R"), self.contender, self.measure]
        if self.measure == "import":
            return [sys.executable, str(HERE / "imports.py")]
        return [
            sys.executable,
            str(HERE / "worker.py"),
            self.workload,
            self.contender,
            self.measure,
        ]

    def __str__(self) -> str:
        return f"{self.workload} {self.contender} {self.measure}"


def jobs_of_every_round() -> Iterator[Job]:
    yield Job("python", "kerasflax", "import")
    yield Job("r", "kerasflax", "library")
    for workload in WORKLOADS:
        for contender in BUILDERS:
            yield Job(workload, contender, "build")


def jobs_of_one_round() -> Iterator[Job]:
    # Each turn of eager calls is a round.
    for workload in WORKLOADS:
        yield Job(workload, ",".join(CALLERS), "call", 600)
        yield Job(
            workload, ",".join(name for name in TRAINERS if name != "flax_loop"), "program", 600
        )
    yield Job("r-cnn", "kerasflax", "entries")
    for family, sizes in GROWTH.items():
        for size in sizes:
            for contender in GROWTH_BUILDERS:
                yield Job(f"{family}-{size}", contender, "build", GROWTH_SECONDS)
            yield Job(f"{family}-{size}", ",".join(GROWTH_CALLERS), "call", GROWTH_SECONDS)
            yield Job(f"{family}-{size}", ",".join(GROWTH_TRAINERS), "step", 2 * GROWTH_SECONDS)


def jobs_of_two_rounds(number: int) -> Iterator[Job]:
    # Each epoch is a round. But models that compute the same may differ by some per cent during
    # their whole life, so there are two processes, which create the models in opposite orders.
    for workload in WORKLOADS:
        # If a step takes a second, the cost of a layer is not visible.
        trainers = [
            name
            for name in TRAINERS
            if not (name == "thin_layer" and workload in ("resnet50", "lm"))
        ]
        # The cost of the trainer itself.
        trainers += ["empty_layer"] if workload == "mlp" else []
        yield Job(workload, ",".join(trainers[:: -1 if number else 1]), "step", 600)


def run(job: Job) -> list[dict[str, object]]:
    """Run a job, and return what it measured until it ended, failed or took too long."""
    # A process must not profit from what an earlier one has cached.
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "inst" / "python"),
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            subprocess.run(
                job.command,
                env=environment,
                stdout=out,
                stderr=err,
                timeout=job.seconds,
                check=True,
            )
            fails = None
        except subprocess.TimeoutExpired:
            fails = f"not done after {job.seconds} s"
        except subprocess.CalledProcessError:
            err.seek(0)
            fails = (err.read().strip().splitlines() or ["no output"])[-1][:200]
        out.seek(0)
        found = [json.loads(line) for line in out if line.startswith("{")]
    return [*found, {"fails": fails}] if fails else found


def written(results: dict[str, object]) -> str:
    """Return JSON with one line for each run of a job."""
    runs = ",\n".join(map(json.dumps, results["runs"]))
    return json.dumps(results | {"runs": "RUNS"}).replace('"RUNS"', f"[\n{runs}\n]") + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", metavar="REGEX")
    parser.add_argument("--to", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    folder = arguments.to or (ROOT / "build" if arguments.only else HERE)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.json"
    results = {"machine": machine.description(), "rounds": arguments.rounds, "runs": []}
    if arguments.only and arguments.to and file.exists():
        results = json.loads(file.read_text())
        results["runs"] = [
            run for run in results["runs"] if not re.search(arguments.only, run["job"])
        ]
    start = time.perf_counter()
    # Jobs that have failed once do not run again.
    hopeless: set[Job] = set()
    for number in range(arguments.rounds):
        jobs = list(jobs_of_every_round())
        jobs += jobs_of_one_round() if number == 0 else ()
        jobs += jobs_of_two_rounds(number) if number < 2 else ()
        for job in jobs:
            if re.search(arguments.only, str(job)) and job not in hopeless:
                found = run(job)
                if any("fails" in figures and "contender" not in figures for figures in found):
                    hopeless.add(job)
                results["runs"].append({"job": str(job), "round": number, "figures": found})
                seconds = time.perf_counter() - start
                print(
                    f"{seconds:6.0f} s  round {number + 1}  {job}  {json.dumps(found[:5])}",
                    flush=True,
                )
        # An interrupted run keeps its complete rounds.
        file.write_text(written(results))
    report.write(folder)


if __name__ == "__main__":
    main()
