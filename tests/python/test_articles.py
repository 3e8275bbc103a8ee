"""The articles in `vignettes/` are those that `make articles` wrote from `vignettes-src/`."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "vignettes-src").glob("*.Rmd"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_an_article_is_rendered_from_its_source_as_it_is(source):
    text = (ROOT / "vignettes" / source.name).read_text(encoding="utf-8")
    digest = hashlib.md5(source.read_bytes(), usedforsecurity=False).hexdigest()
    assert f"md5 of the source: {digest} -->" in text, "Type: make articles"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_rendered_article_runs_no_code(source):
    text = (ROOT / "vignettes" / source.name).read_text(encoding="utf-8")
    assert not re.findall(r"^\s*```+\s*\{.*|`r [^`]+`", text, flags=re.MULTILINE)


def test_articles_show_each_picture_that_is_there_and_no_other():
    folder = ROOT / "vignettes"
    shown = set()
    for article in folder.glob("*.Rmd"):
        text = article.read_text(encoding="utf-8")
        shown |= set(re.findall(r"figures/[\w.-]+\.png", text))
    assert shown == {f"figures/{file.name}" for file in (folder / "figures").glob("*")}


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("vignettes/*.Rmd")]
PAGES += [ROOT / "inst" / "python" / "kerasflax" / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_link_to_a_file_leads_to_one_in_a_clone(page):
    text = re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text))
    files = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:", link)]
    assert [file for file in files if file and not (page.parent / file).exists()] == []


@pytest.mark.skipif(shutil.which("pandoc") is None, reason="needs Pandoc")
def test_in_html_articles_link_to_each_others_pages():
    folder = ROOT / "vignettes"
    linked = [
        file for file in folder.glob("*.Rmd") if re.search(r"\]\([\w-]+\.Rmd", file.read_text())
    ]
    assert linked
    for article in linked:
        text = article.read_text(encoding="utf-8")
        option = re.search(r"^    pandoc_args: (.*)$", text.partition("\n---\n")[0], re.MULTILINE)
        assert option, f"{article.name} has no filter"
        html = subprocess.run(
            ["pandoc", "--from=markdown", option[1], article.name],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        targets = re.findall(r'href="([\w-]+)\.(Rmd|html)', html)
        assert {suffix for _, suffix in targets} == {"html"}
        assert all((folder / f"{name}.Rmd").exists() for name, _ in targets)


def test_each_rendered_article_has_a_source():
    rendered = {file.name for file in (ROOT / "vignettes").glob("*.Rmd")}
    assert rendered == {file.name for file in SOURCES}
