"""The articles in `vignettes/` are those that `make articles` wrote from `vignettes-src/`."""

from __future__ import annotations

import hashlib
import re
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


def test_each_rendered_article_has_a_source():
    rendered = {file.name for file in (ROOT / "vignettes").glob("*.Rmd")}
    assert rendered == {file.name for file in SOURCES}
