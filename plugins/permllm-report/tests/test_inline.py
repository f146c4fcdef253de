"""Pictures as parts of a page: safe, small, in the page's colours, and alone with their ids."""

from __future__ import annotations

import re

from matplotlib.figure import Figure
from permllm_report.inline import inline

from permllm.reporting import COLOURS, GREY

HOSTILE = "</text><script>alert(1)</script> #0072b2 1.23456 $x$"


def figure(label: str = "a", colour: str = COLOURS[0]) -> Figure:
    made = Figure(figsize=(3, 2))
    axes = made.subplots()
    axes.plot([1, 2], [3, 4], "o-", color=colour)
    axes.set_title(label)
    return made


def test_it_is_an_element_that_can_be_read_aloud(page) -> None:
    picture = page(inline(figure, "one", 'a "b" <c>', "wide")).one("svg")
    assert picture.attributes["aria-label"] == 'a "b" <c>'
    assert picture.attributes["role"] == "img"
    assert picture.attributes["class"] == "chart wide"
    assert picture.attributes["viewbox"] == "0 0 216 144"


def test_labels_are_text_and_stay_as_they_are(page) -> None:
    root = page(inline(lambda: figure(HOSTILE), "one", ""))
    assert not root.all("script")
    assert HOSTILE in [text.text for text in root.all("text")]


def test_letters_that_the_font_lacks_are_no_trouble(page) -> None:
    root = page(inline(lambda: figure("模型"), "one", ""))
    assert "模型" in [text.text for text in root.all("text")]


def test_every_colour_is_the_pages() -> None:
    for colour, name in ((COLOURS[0], "one"), (COLOURS[1], "two"), (GREY, "dense")):
        drawn = inline(lambda colour=colour: figure(colour=colour), "one", "")
        assert f"stroke: var(--{name})" in drawn
        assert not re.search("#[0-9a-f]{6}", drawn)
        # Text without a colour would be black.
        assert "fill: var(" in drawn
        for text in re.findall("<text [^>]*>", drawn):
            assert "fill: var(--" in text


def test_nothing_is_left_that_only_matplotlib_knows() -> None:
    drawn = inline(figure, "one", "")
    assert not re.search("xmlns|<metadata|<style|<[?!]|DejaVu|https?:", drawn)


def test_ids_are_linked_and_differ_by_name() -> None:
    one, other = (inline(figure, name, "") for name in ("one", "other"))
    ids = [set(re.findall(' id="([^"]*)"', drawn)) for drawn in (one, other)]
    links = set(re.findall(r'(?:url\(|href=")#([^)"]*)', one))
    assert links
    assert ids[0] == links
    assert not ids[0] & ids[1]
    assert inline(figure, "one", "") == one
