"""A document is resolved to a pipeline and to plain data, once."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from permllm.errors import DeprecatedWarning, UserError
from permllm.pipeline.document import Document, Origin, plain_document
from permllm.pipeline.parsing import parse_yaml
from permllm.pipeline.resolving import Resolver
from permllm.registry import Registry

TEXT = "name: a\nmodel: {source: directory, path: m}\npattern: 2:4\n"


def document(text: str) -> Document:
    return parse_yaml(TEXT + text, Origin(file="p.yaml"))


def test_plain_data_spells_out_what_the_pipeline_is(toys: Registry) -> None:
    resolver = Resolver(toys, Path("/base"))
    resolved = resolver.resolve(document("layers: {metric: ria}"))
    assert resolved.pipeline.layers.metric.exponent == 0.5
    assert resolved.plain["layers"]["metric"] == {"name": "ria", "exponent": 0.5}
    assert resolved.plain["model"]["path"] == "/base/m"
    # It reads back to an equal pipeline.
    again = resolver.resolve(document("layers: {metric: {name: ria, exponent: 0.5}}"))
    assert again.pipeline == resolved.pipeline
    assert again.plain == resolved.plain


def test_documents_that_share_a_part_share_what_is_made_of_it(toys: Registry) -> None:
    resolver, first = Resolver(toys, Path("/base")), document("layers: {metric: ria}")
    origin = Origin(setting="seed")
    other = first.with_part(("seed",), plain_document(3, origin), origin)
    one, two = resolver.resolve(first), resolver.resolve(other)
    assert (one.pipeline.seed, two.pipeline.seed) == (0, 3)
    assert one.pipeline.layers is two.pipeline.layers


def test_an_error_has_its_place(toys: Registry) -> None:
    with pytest.raises(UserError, match=r"p\.yaml:4:18: unknown metric 'rai'"):
        Resolver(toys, Path("/base")).resolve(document("layers: {metric: rai}"))


def test_what_is_not_deprecated_warns_of_nothing(toys: Registry) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecatedWarning)
        Resolver(toys, Path("/base")).resolve(document(""))
