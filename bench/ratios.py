"""Compute figures from the runs: medians over the rounds, ratios of each round, and targets."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

Runs = Sequence[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A median with its spread."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure | None:
        return cls(statistics.median(values), min(values), max(values)) if values else None


@dataclasses.dataclass(frozen=True)
class Ratio:
    """kerasflax compared with the best of some others, round by round.

    Attributes:
        key: The figure that is compared.
        title: The figure in words.
        others: The contenders; the best of them counts.
        against: The contenders in words.
        target: The greatest ratio that is promised, or None.
    """

    key: str
    title: str
    others: tuple[str, ...]
    against: str
    target: float | None = None

    def of(self, runs: Runs, workload: str) -> Figure | None:
        own = by_round(runs, workload, "kerasflax", self.key)
        others = [by_round(runs, workload, other, self.key) for other in self.others]
        best = {
            number: min(o[number] for o in others if number in o) for number in set().union(*others)
        }
        return Figure.of([own[number] / best[number] for number in own if best.get(number)])


INITS = (("flax_eager", "flax_jit"), "the better of Flax's eager and jitted init")
FLAX_LAYER = (("keras_flaxlayer",), "FlaxLayer")
FLAX_FIT = (("flax_fit",), "Flax + optax in fit()")
THIN_LAYER = (("thin_layer",), "the thinnest layer")
FLAX = (("flax_eager",), "plain Flax")
RATIOS = (
    Ratio("build_s", "Build", *FLAX_LAYER, target=0.5),
    Ratio("build_s", "Build", *INITS, target=1.0),
    Ratio("peak_mb", "Peak memory", *INITS, target=1.05),
    Ratio("build_mb", "Memory the build adds", *INITS, target=1.05),
    Ratio("step_s", "Step", *FLAX_FIT, target=1.02),
    Ratio("step_s", "Step", *FLAX_LAYER, target=1.0),
    Ratio("step_s", "Step", *THIN_LAYER),
    Ratio("step_cpu_s", "Processor time of a step", *FLAX_FIT, target=1.02),
    Ratio("step_cpu_s", "Processor time of a step", *FLAX_LAYER, target=1.0),
    Ratio("step_cpu_s", "Processor time of a step", *THIN_LAYER),
    Ratio("flops", "Arithmetic of the compiled step", *FLAX_FIT, target=1.02),
    Ratio("instructions", "Instructions of the compiled step", *FLAX_LAYER, target=1.0),
    Ratio("instructions", "Instructions of the compiled step", *THIN_LAYER),
    Ratio("call_s", "Eager call", ("flax_eager",), "jitted apply", target=1.2),
    Ratio("call_s", "Eager call", *THIN_LAYER),
    Ratio("call_s", "Eager call", *FLAX_LAYER),
    Ratio("first_step_s", "First step", *INITS),
    Ratio("first_step_s", "First step", *FLAX_LAYER),
    Ratio("save_s", "Save", *FLAX),
    Ratio("load_s", "Load", *FLAX),
    Ratio("file_mb", "Size on disk", *FLAX),
)


def by_round(runs: Runs, workload: str, contender: str, key: str) -> dict[int, float]:
    """Return figures by round.

    Figures of steps are by epoch: each is the mean of its rounds, in which the contenders run in
    different orders.
    """
    found: dict[int, list[float]] = {}
    for run in runs:
        if (run["workload"], run["contender"]) == (workload, contender) and key in run:
            found.setdefault(run.get("epoch", run["round"]), []).append(run[key])
    rounds = max(map(len, found.values()), default=0)
    return {
        number: statistics.fmean(values)
        for number, values in found.items()
        if len(values) == rounds
    }


def figure(runs: Runs, workload: str, contender: str, key: str) -> Figure | None:
    return Figure.of(list(by_round(runs, workload, contender, key).values()))


def failure(runs: Runs, workload: str, contender: str, measure: str) -> str | None:
    for run in runs:
        is_it = (run["workload"], run["measure"]) == (workload, measure) and contender in run[
            "contender"
        ].split(",")
        if is_it and "fails" in run:
            return run["fails"]
    return None


def names(runs: Runs, measures: Sequence[str] = ("build", "call", "step", "program")) -> list[str]:
    """Return the workloads outside the growth series, in the order of the runs."""
    found = dict.fromkeys(run["workload"] for run in runs if run["measure"] in measures)
    grown = {name for series in growth(runs).values() for name in series.values()}
    return [name for name in found if name not in grown]


def growth(runs: Runs) -> dict[str, dict[int, str]]:
    """Return the names of the workloads that grow, by family and size."""
    series: dict[str, dict[int, str]] = {}
    for run in runs:
        family, _, size = run["workload"].partition("-")
        if size.isdigit() and run["workload"] != "weights-2000":
            series.setdefault(family, {})[int(size)] = run["workload"]
    return series
