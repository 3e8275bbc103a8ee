"""The code in the core's README, which is the page for Python users."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

import pytest
import support

import kerasflax

README = Path(__file__).parents[2] / "inst" / "python" / "kerasflax" / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)

# Runs each statement as Python's prompt does, and compares what it prints with the lines below it
# that begin with `#>`.
RUNNER = """
import ast, contextlib, io, sys

failures = 0
names = {"__name__": "__main__"}
for number, block in enumerate(open(sys.argv[1]).read().split("\\f"), 1):
    lines = block.splitlines()
    for statement in ast.parse(block).body:
        below = lines[statement.end_lineno:]
        shown = []
        for line in below:
            if not line.startswith("#>"):
                break
            shown.append(line[2:].removeprefix(" "))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            code = compile(ast.Interactive([statement]), f"<block {number}>", "single")
            exec(code, names)
        got = printed.getvalue().splitlines()
        if got != shown and (shown or not isinstance(statement, ast.Expr)):
            failures += 1
            print("shown:", *shown, "got:", *got, sep="\\n")
sys.exit(failures)
"""


def run(blocks, folder):
    (folder / "blocks.txt").write_text("\f".join(blocks))
    (folder / "runner.py").write_text(RUNNER)
    env = support.environment(**support.cpu_devices(8))
    # Keras, on JAX 0.12: see `filterwarnings` in pyproject.toml.
    env["PYTHONWARNINGS"] = "ignore:Explicitly requested dtype int64:UserWarning"
    return support.run_python("runner.py", "blocks.txt", cwd=folder, env=env)


def test_the_code_runs_from_top_to_bottom_and_prints_what_the_page_shows(tmp_path):
    done = run(BLOCKS, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.parametrize(
    ("block", "shown"),
    [
        ("1 + 1\n#> 3\n", "shown:\n3\ngot:\n2\n"),
        ("for i in range(2):\n    print(i)\n#> 0\n", "shown:\n0\ngot:\n0\n1\n"),
        ("x = 1\n#> 1\n", "shown:\n1\ngot:\n"),
    ],
)
def test_other_output_than_shown_is_found(block, shown, tmp_path):
    done = run([block], tmp_path)
    assert done.returncode == 1
    assert done.stdout == shown


def test_the_page_shows_every_public_function():
    used = {
        node.attr
        for block in BLOCKS
        for node in ast.walk(ast.parse(textwrap.dedent(block)))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "kerasflax"
    }
    errors = {name for name in kerasflax.__all__ if name.endswith("Error")}
    assert used >= set(kerasflax.__all__) - errors - {"Report"}
