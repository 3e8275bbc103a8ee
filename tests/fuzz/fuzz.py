"""Give damaged and hostile files to every reader, and odd trees to every writer.

    python tests/fuzz/fuzz.py --minutes 2 [--only FORMAT ...] [--seed 0] [--jobs 2]
    python tests/fuzz/fuzz.py --again FORMAT:NUMBER [--seed 0]     one input again, in this process

Input NUMBER of a format is always the same: its random numbers come from the seed, the format and
NUMBER. The inputs of each format run in processes of their own, and this process watches their
memory and progress. An input fails if

- the process ends, or is silent for longer than HANG seconds;
- the process's peak of resident memory grows by more than MEMORY;
- it raises an exception of a class that is not documented;
- a value differs from that of the reference reader for the same bytes, or from what was written.

Failures are described on standard output, and their inputs are kept in build/fuzz.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KEPT = ROOT / "build" / "fuzz"
# The share of the time that each format gets.
FORMATS = {
    **{"msgpack": 2, "safetensors": 2, "orbax": 3, "stablehlo": 1},
    **{"config": 3, "keras": 4, "weights.h5": 2, "patterns": 1, "round-trips": 2},
}
HANG, MEMORY = 10.0, 2**30
# A format with this many failures is not tried any longer.
MOST_FAILURES = 20


class Job:
    """The inputs of one format, in one process at a time.

    If an input ends the process, a new one continues with the next input.
    """

    def __init__(self, name: str, seed: int, seconds: float) -> None:
        self.name, self.seed, self.seconds = name, seed, seconds
        self.tried, self.failures, self.lasted = 0, [], 0.0

    def run(self) -> None:
        start = 0
        while self.lasted < self.seconds and len(self.failures) < MOST_FAILURES:
            start = self._run_from(start)

    def _run_from(self, start: int) -> int:
        with tempfile.TemporaryDirectory() as folder:
            state, output = Path(folder, "state"), Path(folder, "output")
            left = self.seconds - self.lasted
            command = [
                sys.executable,
                __file__,
                "--worker",
                self.name,
                "--seed",
                str(self.seed),
                "--start",
                str(start),
            ]
            with open(output, "wb") as out, open(Path(folder, "errors"), "wb") as errors:
                child = subprocess.Popen(
                    [*command, "--seconds", str(left), "--state", str(state)],
                    stdout=out,
                    stderr=errors,
                )
                silent = self._watch(child, state)
            lines = [
                json.loads(line) for line in output.read_text().splitlines() if line.startswith("{")
            ]
            self.failures += [line for line in lines if "failure" in line]
            number, began = json.loads(state.read_text()) if state.exists() else (start, None)
            self.tried += max(number - start, 0)
            if any("done" in line for line in lines):
                self.lasted = self.seconds
                return number
            tail = Path(folder, "errors").read_text(errors="replace").strip().splitlines()[-3:]
            failure = (
                f"silent for {HANG:.0f} s"
                if silent
                else f"the process ended with {child.returncode}: {' | '.join(tail)}"
            )
            self.failures.append({"failure": failure, "number": number, "format": self.name})
            if began is None:
                # It ended before its first input, and so would the next one.
                self.lasted = self.seconds
            else:
                self.lasted += time.monotonic() - began
            return number + 1

    def _watch(self, child: subprocess.Popen[bytes], state: Path) -> bool:
        """Wait for a process, and kill it if one input takes too long.

        Returns:
            Whether it was killed.
        """
        seen, since = None, None
        while child.poll() is None:
            time.sleep(0.2)
            now = state.read_text() if state.exists() else None
            if now != seen:
                seen, since = now, time.monotonic()
            elif since is not None and time.monotonic() - since > 1.5 * HANG:
                child.kill()
                child.wait()
                return True
        return False


def run(names: list[str], seed: int, minutes: float, jobs: int) -> int:
    shares = sum(FORMATS[name] for name in names)
    waiting: queue.Queue[Job] = queue.Queue()
    all_jobs = [Job(name, seed, minutes * 60 * jobs * FORMATS[name] / shares) for name in names]
    for job in sorted(all_jobs, key=lambda job: -job.seconds):
        waiting.put(job)

    def work() -> None:
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            job.run()

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for job in all_jobs:
        print(f"fuzz: {job.name}: {job.tried} inputs, {len(job.failures)} failures")
        for failure in job.failures:
            print(f"  {job.name}:{failure['number']}: {failure['failure']}")
    untried = [job.name for job in all_jobs if not job.tried]
    if untried:
        print(f"fuzz: no input was tried for {', '.join(untried)}")
    return int(bool(untried) or any(job.failures for job in all_jobs))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--only", nargs="*", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--again", metavar="FORMAT:NUMBER")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--state", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    if not (arguments.again or arguments.worker):
        return run(arguments.only, arguments.seed, arguments.minutes, arguments.jobs)
    # Keep the frames of Flax and JAX in tracebacks: `targets.is_documented` looks for them.
    os.environ |= {
        "KERAS_BACKEND": "jax",
        "FLAX_FILTER_FRAMES": "0",
        "JAX_TRACEBACK_FILTERING": "off",
    }
    sys.path[:0] = [str(ROOT / "inst" / "python"), str(HERE)]
    import worker

    if arguments.again:
        name, _, number = arguments.again.partition(":")
        return worker.again(name, arguments.seed, int(number))
    worker.work(
        arguments.worker, arguments.seed, arguments.start, arguments.seconds, arguments.state
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
