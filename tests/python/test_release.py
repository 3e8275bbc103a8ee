"""`make release` and the files that only a publisher reads."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ("DESCRIPTION", "NEWS.md", "cran-comments.md", "inst/CITATION", "pyproject.toml")
ADDRESS = "https://kerasflax.test"


@pytest.fixture
def filled_in(tmp_path):
    """Return a copy of what `tools/release check` reads, with nothing left to fill in."""
    for name in (*FILES, "tools/release"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in FILES:
        lines = (tmp_path / name).read_text().splitlines()
        kept = [line for line in lines if not re.search("FILL-IN: |^URL|^BugReports", line)]
        text = "\n".join(kept).replace("example.org", "kerasflax.test") + "\n"
        (tmp_path / name).write_text(text)
    append(tmp_path / "DESCRIPTION", f"URL: {ADDRESS}\nBugReports: {ADDRESS}/issues\n")
    text = (tmp_path / "pyproject.toml").read_text()
    if "[project.urls]" not in text:
        append(tmp_path / "pyproject.toml", f'\n[project.urls]\nHomepage = "{ADDRESS}"\n')
    return tmp_path


def append(file, text):
    file.write_text(file.read_text() + text)


def check(folder):
    command = [folder / "tools" / "release", "check"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_release_with_nothing_left_to_fill_in_is_accepted(filled_in):
    result = check(filled_in)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("file", "pattern", "replacement", "problem"),
    [
        ("DESCRIPTION", "URL: .*\n", "", "DESCRIPTION: has no URL"),
        ("DESCRIPTION", "BugReports: .*\n", "", "DESCRIPTION: has no BugReports"),
        (
            "DESCRIPTION",
            r'email = "[^"]*"',
            'email = "a@example.org"',
            "DESCRIPTION: names example",
        ),
        ("pyproject.toml", r"\[project\.urls\]", "", r"pyproject.toml: has no [project.urls]"),
        (
            "pyproject.toml",
            '\nversion = "',
            '\nversion = "9.',
            "pyproject.toml: has another version",
        ),
        ("inst/CITATION", "^", "# FILL-IN: the authors\n", "inst/CITATION: the authors"),
        ("cran-comments.md", "^", "FILL-IN: on macOS\n", "cran-comments.md: on macOS"),
        ("NEWS.md", "^", "# kerasflax 0.0.0\n", "NEWS.md: does not begin with version"),
    ],
)
def test_a_release_names_each_placeholder(file, pattern, replacement, problem, filled_in):
    text = (filled_in / file).read_text()
    (filled_in / file).write_text(re.sub(pattern, replacement, text, count=1))
    result = check(filled_in)
    assert result.returncode == 1
    # The heading, and one line for the one problem.
    assert len(result.stderr.splitlines()) == 2
    assert problem in result.stderr


def test_a_release_names_all_placeholders_at_once(filled_in):
    for name in ("DESCRIPTION", "pyproject.toml"):
        text = (filled_in / name).read_text()
        (filled_in / name).write_text(
            re.sub(r"(URL|BugReports): .*\n|\[project\.urls\]\n", "", text)
        )
    for name in ("inst/CITATION", "cran-comments.md"):
        append(filled_in / name, "# FILL-IN: something\n")
    result = check(filled_in)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "release: fill in:",
        "  DESCRIPTION: has no URL",
        "  DESCRIPTION: has no BugReports",
        "  pyproject.toml: has no [project.urls]",
        "  inst/CITATION: something",
        "  cran-comments.md: something",
    ]


def test_the_reference_lists_every_help_page():
    topics = {path.stem for path in (ROOT / "man").glob("*.Rd")}
    text = (ROOT / "_pkgdown.yml").read_text()
    text = text[text.index("\nreference:") : text.index("\narticles:")]
    listed = re.findall(r"^ +- (\w[\w.-]*)$", text, re.MULTILINE)
    assert sorted(listed) == sorted(topics)


EXPORTED = re.findall(r'^export\("?([^")]+)"?\)$', (ROOT / "NAMESPACE").read_text(), re.MULTILINE)
HELP = {path.stem: path.read_text() for path in (ROOT / "man").glob("*.Rd")}


@pytest.mark.parametrize("name", EXPORTED)
def test_the_help_of_an_exported_function_has_every_section(name):
    [text] = [text for text in HELP.values() if f"\\alias{{{name}}}" in text]
    sections = ("description", "usage", "arguments", "value", "seealso", "examples")
    assert [section for section in sections if f"\n\\{section}{{" not in text] == []


def test_the_navigation_of_the_site_lists_every_article():
    text = (ROOT / "_pkgdown.yml").read_text()
    listed = re.findall(r"^ +- ([\w-]+)$", text[text.index("\narticles:") :], re.MULTILINE)
    articles = {path.stem for path in (ROOT / "vignettes").glob("*.Rmd")}
    # `tools/site.R` makes the page for Python users from the core's README.
    assert set(listed) >= {*articles, "python"}
