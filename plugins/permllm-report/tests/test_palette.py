"""Colours: texts can be read, marks can be seen, hues can be told apart."""

from __future__ import annotations

import itertools

import pytest
from permllm_report.palette import DARK, LEVELS, LIGHT, Scheme, contrast, luminance, text_on

SCHEMES = pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])


def test_contrast_of_known_colours() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@SCHEMES
def test_texts_can_be_read(scheme: Scheme) -> None:
    for ground in (scheme.page, scheme.panel):
        for text in (scheme.ink, scheme.soft, scheme.one, scheme.two):
            assert contrast(text, ground) >= 4.5, (text, ground)
    for shades in scheme.heat.values():
        for shade in shades:
            assert contrast(text_on(shade), shade) >= 4.5, shade


@SCHEMES
def test_marks_can_be_seen(scheme: Scheme) -> None:
    for mark in (scheme.one, scheme.two, scheme.dense):
        assert contrast(mark, scheme.page) >= 3


@SCHEMES
def test_shades_grow_away_from_the_page(scheme: Scheme) -> None:
    for shades in scheme.heat.values():
        assert len(shades) == LEVELS
        distances = [contrast(shade, scheme.page) for shade in shades]
        assert distances == sorted(distances)
        assert all(later / earlier > 1.05 for earlier, later in itertools.pairwise(distances))


@SCHEMES
def test_the_two_series_differ_without_red_and_green(scheme: Scheme) -> None:
    # Blue against orange: what colour-blind readers tell apart is the blue channel.
    blue, orange = (int(colour[5:], 16) for colour in (scheme.one, scheme.two))
    assert blue - orange > 80
    assert luminance(scheme.page) != luminance(scheme.panel)
