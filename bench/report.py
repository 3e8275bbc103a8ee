"""Write results.md and results.png from results.json: `python bench/report.py [FOLDER]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import plot
from ratios import RATIOS, Figure, Runs, by_round, failure, figure, growth, names

# The key, measure, title and unit of each table, and the factor that converts to the unit.
TABLES = (
    ("build_s", "build", "Build", "s", 1),
    ("peak_mb", "build", "Peak memory of the process that builds", "MiB", 1),
    ("build_mb", "build", "What the build adds to the process's memory at its peak", "MiB", 1),
    ("first_step_s", "build", "Time to the first step, from nothing", "s", 1),
    ("step_s", "step", "Time per step", "ms", 1000),
    ("step_cpu_s", "step", "Processor time per step", "ms", 1000),
    ("instructions", "program", "Instructions of the compiled step", "number", 1),
    ("flops", "program", "Arithmetic of the compiled step", "10^6 operations", 1e-6),
    ("call_s", "call", "Time per eager call, warm", "ms", 1000),
    ("first_call_s", "call", "The first eager call", "s", 1),
    ("save_s", "build", "Save", "s", 1),
    ("load_s", "build", "Load", "s", 1),
    ("file_mb", "build", "Size on disk", "MiB", 1),
)
# The headings of columns that hold words.
WORDS = ("", "measured on", "who", "measure", "what it says")
TITLES = {
    "kerasflax": "kerasflax",
    "flax_eager": "Flax, eager init",
    "flax_jit": "Flax, jitted init",
    "flax_loop": "Flax + optax, bare loop",
    "flax_fit": "Flax + optax in fit()",
    "kerasflax_bare": "kerasflax, `call()` alone",
    "thin_layer": "thinnest layer",
    "keras_flaxlayer": "FlaxLayer",
    "empty_layer": "empty layer in fit()",
}


def write(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.md").write_text("\n".join(lines(results)) + "\n")
    plot.write(flat(results["runs"]), folder / "results.png")


def flat(runs: Runs) -> Runs:
    """Return each figure with its workload, contender, measure and round.

    If a job has several contenders, its figures name theirs.
    """
    return [
        dict(zip(("workload", "contender", "measure"), run["job"].split(), strict=True))
        | {"round": run["round"]}
        | figures
        for run in runs
        for figures in run["figures"]
    ]


def lines(results: dict[str, Any]) -> Iterator[str]:
    runs = flat(results["runs"])
    yield "# Benchmarks"
    yield ""
    yield (
        f"Written by `make bench`, in {results['rounds']} rounds. Figures are medians, with the "
        "range in parentheses. [README.md](README.md) says what is measured and how."
    )
    yield ""
    yield from table(["", "measured on"], results["machine"].items())
    yield "![Ratios by workload](results.png)"
    yield ""
    yield from ratio_table(runs)
    yield from startup(runs)
    yield from entries(runs)
    yield "## Figures"
    yield ""
    for key, measure, title, unit, factor in TABLES:
        contenders = [
            c for c in TITLES if any(run["contender"] == c and key in run for run in runs)
        ]
        if contenders:
            yield f"### {title} ({unit})"
            yield ""
            rows = [
                [workload, *(cell(runs, workload, c, key, measure, factor) for c in contenders)]
                for workload in names(runs, (measure,))
            ]
            # After the build, it does not matter how Flax was initialized.
            titles = [
                TITLES[c] if len(contenders) > 3 else TITLES[c].removesuffix(", eager init")
                for c in contenders
            ]
            yield from table(["", *titles], rows)
    yield from growth_tables(runs)
    yield from failures(runs)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    head = list(head)
    yield "| " + " | ".join(head) + " |"
    # Words are aligned left, numbers right.
    yield "|" + "|".join("---" if name in WORDS else "---:" for name in head) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def shown(value: Figure | None, factor: float = 1) -> str:
    if value is None:
        return ""
    text = short(value.median * factor)
    return (
        text
        if value.low == value.high
        else f"{text} ({short(value.low * factor)} to {short(value.high * factor)})"
    )


def cell(runs: Runs, workload: str, contender: str, key: str, measure: str, factor: float) -> str:
    value = figure(runs, workload, contender, key)
    if value is None and failure(runs, workload, contender, measure):
        return "fails"
    return shown(value, factor)


def ratio_table(runs: Runs) -> Iterator[str]:
    yield "## kerasflax as a ratio"
    yield ""
    yield (
        "Below 1, kerasflax is better. A ratio above its target is in bold; the last column counts "
        "the workloads that reach the target."
    )
    yield ""
    workloads = names(runs)
    rows = []
    for ratio in RATIOS:
        found = {workload: ratio.of(runs, workload) for workload in workloads}
        kept = [value.median <= (ratio.target or 0) for value in found.values() if value]
        cells = [judged(value, ratio.target) for value in found.values()]
        target = (
            [f"{ratio.target:.2f}", f"{sum(kept)} of {len(kept)}"] if ratio.target else ["", ""]
        )
        if kept:
            rows.append([f"{ratio.title} / {ratio.against}", *cells, *target])
    yield from table(["", *workloads, "target", "kept"], rows)


def judged(value: Figure | None, target: float | None) -> str:
    if value is None:
        return ""
    is_over = target is not None and value.median > target
    return f"**{value.median:.2f}**" if is_over else f"{value.median:.2f}"


def startup(runs: Runs) -> Iterator[str]:
    rows = []
    for workload, base, title, target in (
        ("python", "keras_flax_s", "`import kerasflax`, after `import keras, flax`", 0.15),
        ("r", "keras3_s", "`library(kerasflax)`, after `library(keras3)`", 0.5),
    ):
        added = figure(runs, workload, "kerasflax", "kerasflax_s")
        if added:
            verdict = "yes" if added.median <= target else "**no**"
            rows.append(
                [
                    title,
                    shown(figure(runs, workload, "kerasflax", base)),
                    shown(added),
                    str(target),
                    verdict,
                ]
            )
    if rows:
        yield "## Start (s)"
        yield ""
        yield from table(["", "the others", "added", "target", "kept"], rows)
    started = by_round(runs, "r", "kerasflax", "python_started")
    if started:
        verb = "**started**" if any(started.values()) else "did not start"
        yield f"`library(kerasflax)` {verb} Python."
        yield ""
    empty = figure(runs, "mlp", "empty_layer", "step_s")
    if empty:
        yield (
            "Keras's trainer alone, with an empty layer on the data of `mlp`, takes "
            f"{shown(empty, 1000)} ms per step."
        )
        yield ""


def entries(runs: Runs) -> Iterator[str]:
    counts = [run for run in runs if run["measure"] == "entries" and "fails" not in run]
    if counts:
        yield "## Entries into a module written in R"
        yield ""
        keys = [
            key for key in counts[0] if key not in ("workload", "contender", "measure", "round")
        ]
        yield from table(
            ["", "entries"], [[key.replace("_", " "), str(counts[0][key])] for key in keys]
        )


def growth_tables(runs: Runs) -> Iterator[str]:
    units = {
        "weights": "weights of 16 numbers",
        "depth": "Dense layers",
        "size": "numbers in one weight",
    }
    compared = [("build_s", "build", c) for c in ("kerasflax", "flax_eager", "flax_jit")]
    compared += [("build_mb", "build", c) for c in ("kerasflax", "flax_eager", "flax_jit")]
    compared += [("first_step_s", "build", c) for c in ("kerasflax", "flax_eager")]
    compared += [("step_s", "step", c) for c in ("kerasflax", "flax_fit")]
    alone = [("call_s", "call", c) for c in ("kerasflax", "flax_eager")]
    alone += [
        (key, "build", c) for key in ("save_s", "load_s") for c in ("kerasflax", "flax_eager")
    ]
    alone += [(key, "build", "kerasflax") for key in ("variables_s", "freeze_s")]
    words = {
        "build_s": "build, s",
        "build_mb": "build adds, MiB",
        "first_step_s": "first step, s",
        "step_s": "step, ms",
    }
    words |= {
        "call_s": "eager call, ms",
        "variables_s": "flax_variables, s",
        "freeze_s": "freeze and unfreeze, s",
    }
    words |= {"save_s": "save, s", "load_s": "load, s"}
    factors = {"step_s": 1000, "call_s": 1000}
    series = growth(runs)
    if series:
        yield "## Growth (one round)"
        yield ""
    for family, workloads in series.items():
        for columns in (compared, alone):
            rows = [
                [
                    f"{size:,}",
                    *(
                        cell(runs, name, c, key, measure, factors.get(key, 1))
                        for key, measure, c in columns
                    ),
                ]
                for size, name in workloads.items()
            ]
            yield from table(
                [units[family], *(f"{words[key]}: {TITLES[c]}" for key, _, c in columns)], rows
            )


def failures(runs: Runs) -> Iterator[str]:
    found = {
        (run["workload"], run["contender"], run["measure"]): run["fails"]
        for run in runs
        if "fails" in run
    }
    if found:
        yield "## What fails"
        yield ""
        rows = [
            [workload, TITLES.get(who, who), measure, f"`{text}`"]
            for (workload, who, measure), text in found.items()
        ]
        yield from table(["", "who", "measure", "what it says"], rows)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
