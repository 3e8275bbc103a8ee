"""Describe the versions and the machine, without names of hosts or paths."""

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

PYTHON_PACKAGES = ("keras", "flax", "jax", "jaxlib", "optax", "numpy")
R_PACKAGES = ("kerasflax", "keras3", "reticulate")


def description() -> dict[str, str]:
    """Return the rows of the table, by name."""
    processor = _in_file("/proc/cpuinfo", r"model name\s*: (.*)")
    kilobytes = int(_in_file("/proc/meminfo", r"MemTotal: *([0-9]+)"))
    system = _in_file("/etc/os-release", r'PRETTY_NAME="(.*)"')
    return {
        "Processor": f"{processor}, {os.cpu_count()} cores",
        "Memory": f"{kilobytes / 2**20:.0f} GiB",
        "System": f"{system}, Linux {platform.release().split('-')[0]}",
        "Load before the run": f"{os.getloadavg()[0]:.1f}",
        "Python": ", ".join(
            [platform.python_version(), *(f"{name} {version(name)}" for name in PYTHON_PACKAGES)]
        ),
        "R": _r_versions(),
    }


def _in_file(path: str, pattern: str) -> str:
    found = re.search(pattern, Path(path).read_text())
    return found[1] if found else "unknown"


def _r_versions() -> str:
    packages = ", ".join(f"'{name}'" for name in R_PACKAGES)
    code = (
        "cat(as.character(getRversion()), "
        f"sapply(c({packages}), function(p) paste(p, as.character(packageVersion(p)))), sep = ', ')"
    )
    return (
        subprocess.run(
            ["Rscript", "-e", code], capture_output=True, text=True, check=False
        ).stdout.strip()
        or "unknown"
    )
