"""The rooms of the core import in one direction; the rule stands in `docs/core.md`."""

import ast
import graphlib
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "inst" / "python" / "kerasflax"
# These two files may import anything, and no file of a room may import them.
DOORS = {"__init__", "_r"}


def ranks_of_rooms():
    """Return the place of each room in the rule; the rooms after the last arrow share one."""
    [rule] = re.findall(r"^ {4}files -> .*$", (ROOT / "docs" / "core.md").read_text(), re.MULTILINE)
    steps = [step.split(", ") for step in rule.strip().split(" -> ")]
    return {room: rank for rank, rooms in enumerate(steps) for room in rooms}


def room_of(name):
    return name if name in DOORS else name.lstrip("_")


def imported_rooms(file, package):
    """Yield the line and the room of each import of a part of kerasflax, wherever it stands."""
    folders = [package.name, *file.relative_to(package).parent.parts]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = folders[: len(folders) + 1 - node.level] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            targets = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for root, *parts in targets:
            if root == package.name:
                name = parts[0] if parts else "__init__"
                is_part = (package / name).is_dir() or (package / f"{name}.py").is_file()
                yield node.lineno, room_of(name if is_part else "__init__")


def violations(package):
    """List what breaks the rule, each as a text that begins with the place."""
    ranks = ranks_of_rooms()
    found, uses = [], {}
    for file in sorted(package.rglob("*.py")):
        place = file.relative_to(package)
        room = room_of(place.parts[0].removesuffix(".py"))
        if room in DOORS:
            continue
        if room not in ranks:
            found.append(f"{place}: {room} is not in the rule")
            continue
        for line, other in imported_rooms(file, package):
            if other != room:
                uses.setdefault(room, set()).add(other)
                if ranks.get(other, -1) < ranks[room]:
                    found.append(f"{place}:{line}: {room} imports {other}")
    # Rooms that share a place in the rule may import each other, but not in a circle.
    last = max(ranks.values())
    shared = {room: others for room, others in uses.items() if ranks[room] == last}
    try:
        graphlib.TopologicalSorter(shared).prepare()
    except graphlib.CycleError as error:
        found.append(f"a circle: {' -> '.join(error.args[1])}")
    return found


def test_every_import_follows_the_rule_in_the_document():
    assert violations(PACKAGE) == []


def test_every_room_in_the_rule_exists():
    names = {room_of(path.stem) for path in PACKAGE.iterdir()}
    assert ranks_of_rooms().keys() <= names


def test_the_imports_of_every_room_are_found():
    imports = {
        room_of(path.relative_to(PACKAGE).parts[0].removesuffix(".py")): True
        for path in PACKAGE.rglob("*.py")
        if list(imported_rooms(path, PACKAGE))
    }
    ranks = ranks_of_rooms()
    last = max(ranks.values())
    # A room that shares the last place may do without others.
    assert imports.keys() >= {room for room, rank in ranks.items() if rank < last}
    assert "limits" in imports


@pytest.mark.parametrize(
    ("file", "code", "violation"),
    [
        ("bridge/_call.py", "from ..files import _source", "bridge imports files"),
        ("bridge/_call.py", "from .. import _models", "bridge imports models"),
        ("_paths.py", "import kerasflax._layer", "paths imports layer"),
        ("tracing/_trace.py", "from ..adapters import _linen", "tracing imports adapters"),
        ("tracing/_trace.py", "from kerasflax import FlaxLayer", "tracing imports __init__"),
        ("_layer.py", "from ._r import parameters", "layer imports _r"),
        ("_utilities.py", "import os", "utilities is not in the rule"),
        ("_rng.py", "from . import _rng, _paths\n    from ._limits import *", None),
    ],
)
def test_a_planted_import_is_found(file, code, violation, tmp_path):
    package = shutil.copytree(PACKAGE, tmp_path / "kerasflax")
    with open(package / file, "a") as source:
        source.write(f"\n\ndef planted():\n    {code}\n")
    before = violations(PACKAGE)
    found = [text for text in violations(package) if text not in before]
    assert len(found) == (violation is not None)
    assert violation is None or violation in found[0]
    assert violation is None or found[0].startswith(file)


def test_a_circle_of_rooms_that_share_a_place_is_found(tmp_path):
    package = shutil.copytree(PACKAGE, tmp_path / "kerasflax")
    plants = {"_rng.py": "from . import _dtypes", "_dtypes.py": "from . import _rng"}
    for file, code in plants.items():
        with open(package / file, "a") as source:
            source.write(f"\n\ndef planted():\n    {code}\n")
    assert violations(package)[-1].startswith("a circle: ")
