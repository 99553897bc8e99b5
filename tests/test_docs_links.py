"""The pages: every link leads to a file and a heading that exist, and every picture is used."""

import re

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def anchors(page):
    """The headings of a page, as GitHub names them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = LINK.findall(page.read_text())
    for file, anchor in links:
        target = page.parent / file if file else page
        assert target.exists(), file
        assert not anchor or anchor in anchors(target), f"{file}#{anchor}"
    assert "@@" not in page.read_text()


def test_every_page_is_in_the_index():
    index = ROOT / "docs" / "README.md"
    listed = {file for file, _ in LINK.findall(index.read_text())}
    assert listed | {index.name} == {path.name for path in index.parent.glob("*.md")}


def test_every_picture_is_shown():
    linked = {
        file.rpartition("/")[2] for page in PAGES for file, _ in LINK.findall(page.read_text())
    }
    assert {path.name for path in (ROOT / "docs").glob("*.png")} <= linked
