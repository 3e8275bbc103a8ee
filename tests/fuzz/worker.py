"""A process of `fuzz.py`, which tries the inputs of one format one after another."""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import fuzz
import targets

import kerasflax

# Any input may cause warnings.
warnings.simplefilter("ignore")


class Hang(BaseException):
    """An input takes too long."""


def _ring(*_: Any) -> None:
    raise Hang(f"more than {fuzz.HANG:.0f} s")


def _peak() -> int:
    # `ru_maxrss` is in kilobytes, and on macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def _failure(target: targets.Target, generator: random.Random) -> tuple[str | None, Any]:
    """Try one input.

    Returns:
        A description of the failure, None if there is none; and the input.
    """
    made = None
    before = _peak()
    signal.setitimer(signal.ITIMER_REAL, fuzz.HANG)
    try:
        made = target.make(generator)
        target.check(made)
    except target.documented:
        pass
    except targets.Different as difference:
        return f"different: {difference}"[:600], made
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        return f"{type(error).__name__}: {str(error)[:300]} ({place})", made
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    grown = _peak() - before
    return (f"{grown / 2**20:.0f} MiB more memory" if grown > fuzz.MEMORY else None), made


def _keep(name: str, number: int, made: Any) -> None:
    kept = fuzz.KEPT / f"{name}-{number}"
    try:
        data = made if isinstance(made, bytes) else repr(made).encode("utf-8", "backslashreplace")
    except RecursionError:
        data = b"nested too deep to be written; see --again"
    kept.write_bytes(data)


def work(name: str, seed: int, start: int, seconds: float, state: Path) -> None:
    """Try inputs until the time is up, and print a line of JSON for each failure."""
    signal.signal(signal.SIGALRM, _ring)
    target = targets.make_target(name)
    gc.freeze()
    began, number, found = time.monotonic(), start, 0
    new = state.with_suffix(".new")
    while time.monotonic() - began < seconds and found < fuzz.MOST_FAILURES:
        # Replace the file in one step, so that the watching process never reads half of it.
        new.write_text(json.dumps([number, began]))
        os.replace(new, state)
        failure, made = _failure(target, random.Random(f"{seed}/{name}/{number}"))
        if failure:
            found += 1
            _keep(name, number, made)
            print(json.dumps({"failure": failure, "number": number, "format": name}), flush=True)
        number += 1
    state.write_text(json.dumps([number, began]))
    print(json.dumps({"done": number}), flush=True)


def again(name: str, seed: int, number: int) -> int:
    """Try one input, and do not catch undocumented errors."""
    target, generator = targets.make_target(name), random.Random(f"{seed}/{name}/{number}")
    made = target.make(generator)
    _keep(name, number, made)
    try:
        target.check(made)
    except kerasflax.KerasFlaxError as error:
        print(f"{type(error).__name__}: {error}")
    return 0
