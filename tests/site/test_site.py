"""Every page of the site, as a browser shows it; `make site` builds the site and runs this."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit
from urllib.request import url2pathname

import pytest

ROOT = Path(__file__).parents[2]
SITE = Path(os.environ.get("KERASFLAX_SITE", ROOT / "build" / "site"))
NARROW = {"width": 390, "height": 844}
WIDE = {"width": 1280, "height": 900}

# What a page links to and shows, its anchors, and what does not fit on the screen.
FACTS = """() => ({
  title: document.title,
  headings: [...document.querySelectorAll("h1")].map((h) => h.textContent.trim()),
  links: [...document.querySelectorAll("a[href], link[href]")].map((a) => a.href),
  anchors: [...document.querySelectorAll("[id], a[name]")].map((e) => e.id || e.name),
  pictures: [...document.images].map((i) => [i.src, i.complete && i.naturalWidth > 0, i.alt]),
  tooWide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
})"""

# The least contrast of text with what is behind it, and that text. Below 4.5, small text is hard to
# read (WCAG 2, level AA).
CONTRAST = """() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (color) => {
    const [r, g, b] = color.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92
      : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const [r, g, b, alpha] = parse(getComputedStyle(e).backgroundColor);
      if (alpha !== 0) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const found = {};
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || !element.checkVisibility() || element.closest("script, style, .copy")) continue;
    const [a, b] = [parse(getComputedStyle(element).color).slice(0, 3), behind(element)]
      .map(luminance).sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found[`${element.tagName} ${element.className}: ${text.slice(0, 40)}`] = ratio;
  }
  return found;
}"""


def address(file):
    return file.resolve().as_uri()


def visit(context, site):
    """Open every page; return the facts about each, and what went wrong, in words."""
    problems, facts = [], {}
    page = context.new_page()

    def note(text):
        problems.append(f"{name}: {text}")

    def answer(route):
        note(f"requests {route.request.url}")
        route.abort()

    page.on("console", lambda message: message.type == "error" and note(message.text))
    page.on("pageerror", note)
    page.on("requestfailed", lambda request: note(f"no answer from {request.url}"))
    page.route(re.compile("^https?:"), answer)
    for file in sorted(site.rglob("*.html")):
        name = str(file.relative_to(site))
        page.goto(address(file))
        facts[name] = page.evaluate(FACTS)
    return facts, problems


def broken_links(site, facts):
    broken = []
    for name, fact in facts.items():
        for link in fact["links"]:
            where, anchor = urldefrag(link)
            parts = urlsplit(where)
            if parts.scheme != "file":
                continue
            target = Path(url2pathname(parts.path))
            if target.is_dir():
                broken.append(f"{name}: links to the folder {target.relative_to(site)}")
            elif not target.is_file() or not target.is_relative_to(site):
                broken.append(f"{name}: no file for {link}")
            elif anchor and target.suffix == ".html":
                there = facts[str(target.relative_to(site))]["anchors"]
                if unquote(anchor) not in there:
                    broken.append(f"{name}: no anchor for {link}")
    return broken


def all_problems(context, site):
    facts, problems = visit(context, site)
    for name, fact in facts.items():
        if len(fact["headings"]) != 1 or not fact["headings"][0]:
            problems.append(f"{name}: headings {fact['headings']}")
        for source, is_shown, alt in fact["pictures"]:
            if not is_shown:
                problems.append(f"{name}: no picture {source}")
            if not alt:
                problems.append(f"{name}: no text for the picture {source}")
    titles = [fact["title"] for fact in facts.values()]
    problems += [
        f"{title!r} is the title of two pages" for title in set(titles) if titles.count(title) > 1
    ]
    return problems + broken_links(site, facts)


@pytest.fixture(params=["light", "dark"])
def context(browser, request):
    with browser.new_context(color_scheme=request.param, viewport=WIDE) as context:
        yield context


@pytest.fixture
def wide(browser):
    with browser.new_context(viewport=WIDE) as context:
        yield context


def test_every_page_is_complete_by_itself(wide):
    assert len(list(SITE.rglob("*.html"))) > 20
    assert all_problems(wide, SITE.resolve()) == []


def test_no_page_is_wider_than_a_phone(browser):
    with browser.new_context(viewport=NARROW) as context:
        facts, _ = visit(context, SITE)
    assert {name: fact["tooWide"] for name, fact in facts.items() if fact["tooWide"] > 0} == {}


def test_text_can_be_read_in_light_and_dark(context):
    found = {}
    page = context.new_page()
    for file in sorted(SITE.rglob("*.html")):
        page.goto(address(file))
        for text, ratio in page.evaluate(CONTRAST).items():
            found.setdefault(text, (str(file.relative_to(SITE)), round(ratio, 1)))
    assert found == {}


def test_every_help_page_and_article_is_on_the_site():
    shown = {str(path.relative_to(SITE)) for path in SITE.rglob("*.html")}
    help_pages = {f"reference/{path.stem}.html" for path in (ROOT / "man").glob("*.Rd")}
    articles = {f"articles/{path.stem}.html" for path in (ROOT / "vignettes").glob("*.Rmd")}
    assert shown >= help_pages | articles | {
        "index.html",
        "news/index.html",
        "articles/python.html",
    }


def test_the_search_finds_a_help_page(wide):
    page = wide.new_page()
    page.goto(address(SITE / "articles" / "python.html"))
    page.fill("#search input", "flax_freeze")
    page.locator("#search a").first.click()
    page.wait_for_url(re.compile(r"/reference/flax_freeze\.html"))


def test_the_menu_opens_on_a_phone(browser):
    with browser.new_context(viewport=NARROW) as context:
        page = context.new_page()
        page.goto(address(SITE / "index.html"))
        link = page.locator("#navbar a", has_text="Reference")
        assert not link.is_visible()
        page.click(".navbar-toggler")
        link.click()
        page.wait_for_url(re.compile(r"/reference/index\.html"))


@pytest.mark.parametrize(
    ("plant", "problem"),
    [
        ('<a href="gone.html">x</a>', "no file for "),
        ('<a href="news/index.html#gone">x</a>', "no anchor for "),
        ('<a href="reference/">x</a>', "links to the folder reference"),
        ('<img src="gone.png" alt="x">', "no picture "),
        ('<img src="reference/figures/digits.png">', "no text for the picture "),
        ("<script>throw Error('planted')</script>", "planted"),
        ("<script>console.error('planted')</script>", "planted"),
        ('<script src="https://kerasflax.test/x.js"></script>', "requests https://kerasflax.test/"),
        ('<img src="https://kerasflax.test/x.png" alt="x">', "requests https://kerasflax.test/"),
        ("<h1>Two</h1>", "headings "),
    ],
)
def test_a_planted_problem_is_found(plant, problem, wide, tmp_path):
    site = tmp_path.resolve() / "site"
    for part in ("deps", "news", "reference"):
        shutil.copytree(SITE / part, site / part)
    for file in site.rglob("*.html"):
        file.write_text(f"<title>{file.stem}</title><h1>x</h1>")
    for file in SITE.glob("*.*"):
        if file.suffix in {".js", ".css", ".svg"}:
            shutil.copy(file, site / file.name)
    (site / "index.html").write_text(f"<title>x</title><main><h1>x</h1>{plant}</main>")
    (site / "news" / "index.html").write_text("<title>y</title><h1>y</h1>")
    found = [text for text in all_problems(wide, site) if text.startswith("index.html")]
    assert any(text.startswith(f"index.html: {problem}") for text in found), found
