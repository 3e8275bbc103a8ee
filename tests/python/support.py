"""Set-up that tests in several rooms share."""

import contextlib
import os
import subprocess
import sys
import textwrap
import tracemalloc


def environment(**variables):
    """The environment of a new Python process with this process's path."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}


def run_python(*arguments, env=None, check=False, **options):
    """Run Python with these arguments in a new process, and capture its output as text."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment() if env is None else env,
        capture_output=True,
        text=True,
        check=check,
        **options,
    )


def run_code(code, **variables):
    """Run code in a new Python process with this process's path, and return its output."""
    done = run_python("-c", textwrap.dedent(code), env=environment(**variables))
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def little_memory(most=2**23):
    """Assert that a block allocates no more than `most` bytes of Python's memory."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < most
