"""YAML with positions: what is refused, and that no text crashes the reader."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from permllm.errors import UserError
from permllm.pipeline.document import Origin
from permllm.pipeline.parsing import MAX_NODES, parse_yaml
from permllm.pipeline.plain import walk

FILE = Origin(file="a.yaml")


def refusal(text: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, FILE)
    return str(caught.value)


def test_positions_of_keys_and_values() -> None:
    document = parse_yaml("a: 1\nb:\n  - x\n  - {c: 2}\n", FILE)
    assert document.data == {"a": 1, "b": ["x", {"c": 2}]}
    assert document.origin(("b", 1, "c")) == Origin("a.yaml", 4, 9)
    assert document.origin(("b", 1, "c"), key=True) == Origin("a.yaml", 4, 6)
    assert document.origin(("b", 1, "nowhere")) == Origin("a.yaml", 4, 5)


def test_scalars_of_yaml() -> None:
    text = "[1, 0x10, 1e-3, .5, true, null, ~, on, no, 2024-01-01, 2:4, '1', 1_000]"
    expected = [1, 16, 1e-3, 0.5, True, None, None, "on", "no", "2024-01-01", "2:4", "1", 1000]
    assert parse_yaml(text, FILE).data == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "a.yaml:3:1: the key 'a' is there twice (first in line 1)"),
        ("a: {b: 1, b: 2}", "a.yaml:1:11: the key 'b' is there twice"),
        ("a:\n\t- 1", "a.yaml:2:1: this is not valid YAML"),
        ("a: [1", "a.yaml:1:6: this is not valid YAML"),
        ("a: 1\n---\nb: 2", "a.yaml:2:1: this is not valid YAML: expected a single document"),
        ("a: *b", "a.yaml:1:4: this is not valid YAML: found undefined alias"),
        ("a: &a [*a]", "a.yaml:1:4: this alias contains itself"),
        ("a: &a {<<: *a}", "this alias contains itself"),
        ("<<: 3", "a.yaml:1:5: '<<' takes a mapping"),
        ("1: a", "a.yaml:1:1: a key must be a text, not 1"),
        ("? [a]\n: b", "a.yaml:1:3: a key must be a text"),
        ("a: !!python/object:os.system x", "a.yaml:1:4: the tag"),
        ("a: !x {b: 1}", "a.yaml:1:4: the tag"),
        ("a: .inf", "a.yaml:1:4: expected a finite number"),
        ("a: \x00", "not valid YAML"),
        ("[" * 60 + "]" * 60, "nested deeper than 50"),
        ("[" * 20_000, "nested deeper than 50"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    assert message in refusal(text)


@pytest.mark.parametrize(
    ("text", "place", "opened", "missing"),
    [
        ("a: [1\nb: 2\n", "a.yaml:2:2:", "[ opens in line 1, column 4", "]"),
        ("a: [1\n\n\n", "a.yaml:4:1:", "[ opens in line 1, column 4", "]"),
        ("x: 1\na:\n  - {b: 1\nc: 2", "a.yaml:4:2:", "{ opens in line 3, column 5", "}"),
        ("a: [\n  {b: 1\n  ]\nc: 2", "a.yaml:3:3:", "{ opens in line 2, column 3", "}"),
        ('a: ["b" "c"]', "a.yaml:1:9:", "[ opens in line 1, column 4", "comma"),
        ("a: {b: 1 c: 2}", "a.yaml:1:11:", "{ opens in line 1, column 4", "comma"),
        ('a: "b\nc: 2\n', "a.yaml:3:1:", '" opens in line 1, column 4', '"'),
        ("a: 'b\nc: 2\n", "a.yaml:3:1:", "' opens in line 1, column 4", "'"),
    ],
)
def test_what_is_not_closed_is_named_where_it_was_opened(
    text: str, place: str, opened: str, missing: str
) -> None:
    message = refusal(text)
    assert message.startswith(place)
    assert f"within what {opened}" in message
    assert f"hint: perhaps a {missing} is missing" in message
    assert "scalar" not in message


def test_a_setting_that_is_not_closed_has_no_line() -> None:
    with pytest.raises(UserError, match=r"--set a: .* within what \[ opens, expected ',' or '\]'"):
        parse_yaml("[1", Origin(setting="a"))


def test_tabs_are_said() -> None:
    assert "indent with blanks" in refusal("a:\n\t- 1")


def test_exploding_aliases_are_refused_fast() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 30):
        levels.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    assert f"more than {MAX_NODES} values" in refusal("\n".join(levels))


def test_exploding_merges_are_refused_fast() -> None:
    levels = ["a0: &a0 {x: 1}"]
    for level in range(1, 30):
        levels.append(f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 10)}]}}")
    assert f"more than {MAX_NODES} values" in refusal("\n".join(levels))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n" + "- a\n" * 250_000, f"more than {MAX_NODES} values"),
        ("[" + "a," * 500_000 + "]", f"more than {MAX_NODES} values"),
        ("[" * 500_000, "nested deeper than 50"),
        ("{a: " * 250_000, "nested deeper than 50"),
        ("- " * 500_000, "nested deeper than 50"),
        ("a: &a {" + ",".join(f"k{i}: 1" for i in range(5000)) + "}\nb:\n"
         + "  - {<<: [*a,*a,*a,*a]}\n" * 2000, f"more than {MAX_NODES} values"),
        ("a: " + "9" * 5000, "too long for a number"),
        ("a: 0x" + "f" * 900_000, "too long for a number"),
        ("a: " + "1" * 900_000 + ".5", "too long for a number"),
    ],
)  # fmt: skip
def test_a_megabyte_of_anything_is_refused_fast(text: str, message: str) -> None:
    began = time.process_time()
    assert message in refusal(text)
    assert time.process_time() - began < 4


@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"%@#,?~<\n\t 0.1é"), max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        document = parse_yaml(text, FILE)
    except UserError as error:
        said = error
    else:
        assert all(document.origin(place).line for place, _ in walk(document.data))
        return
    assert said.file == "a.yaml"
