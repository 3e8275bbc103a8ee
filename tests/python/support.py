"""Set-up that tests in several rooms share."""

import os
import subprocess
import sys
import textwrap


def run_code(code, **environment):
    """Run code in a new Python process with this process's path, and return its output."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
