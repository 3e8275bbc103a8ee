"""The scripts in `inst/examples` tell how to run them, check themselves, and are all listed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "inst" / "examples").glob("*.R"))
each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


@each_script
def test_a_script_begins_with_how_to_run_it_and_where_its_data_come_from(script):
    opening = re.match(r"(#.*\n)+", script.read_text(encoding="utf-8")).group()
    assert f"#   Rscript {script.name}" in opening
    assert re.search(r"^# The (data are|.* come from) ", opening, flags=re.MULTILINE)


@each_script
def test_a_script_checks_its_result_and_prints_it_before(script):
    text = script.read_text(encoding="utf-8")
    assert re.search(r"^cat\((.*\n)+^stopifnot\(.* [<>] .*\)$", text, flags=re.MULTILINE)
    assert "tensorflow" not in text.lower()


@each_script
def test_the_readme_lists_a_script(script):
    assert f"| `{script.name}` |" in (ROOT / "README.md").read_text(encoding="utf-8")


def run_examples(root: Path, *names: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [root / "tools" / "examples", *names], capture_output=True, text=True, check=False
    )


@pytest.fixture
def elsewhere(tmp_path):
    """A folder with `tools/examples`, and scripts that `bash` runs in the place of R."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "inst" / "examples").mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "examples", tmp_path / "tools")
    run = tmp_path / "tools" / "run"
    run.write_text('#!/bin/sh\nshift\nexec sh "$@"\n', encoding="utf-8")
    run.chmod(0o755)
    for name, body in {
        "good": "echo Accuracy: 90\necho\necho Plot: a.png",
        "bad": "echo Accuracy: 10\necho not TRUE >&2\nexit 1",
        "picture": "touch picture.png\nls",
    }.items():
        (tmp_path / "inst" / "examples" / f"{name}.R").write_text(body, encoding="utf-8")
    return tmp_path


def test_make_examples_prints_the_result_of_each_script(elsewhere):
    done = run_examples(elsewhere, "good")
    assert done.returncode == 0
    assert re.fullmatch(r"good: ok, \d+ s: Accuracy: 90\n", done.stdout)


def test_make_examples_fails_if_a_script_fails_and_runs_the_others(elsewhere):
    done = run_examples(elsewhere)
    assert done.returncode == 1
    assert re.search(r"^bad: failed, \d+ s: not TRUE\n  Accuracy: 10$", done.stdout, re.MULTILINE)
    assert re.search(r"^good: ok", done.stdout, re.MULTILINE)


def test_make_examples_starts_each_script_in_an_empty_folder(elsewhere):
    for _ in range(2):
        assert run_examples(elsewhere, "picture").stdout.endswith(": picture.png\n")
    assert sorted(file.name for file in (elsewhere / "build/examples/picture").iterdir()) == [
        "output.txt",
        "picture.png",
    ]


def test_make_examples_names_a_script_that_is_not_there(elsewhere):
    done = run_examples(elsewhere, "absent")
    assert done.returncode == 1
    assert done.stdout == "examples: there is no inst/examples/absent.R\n"
