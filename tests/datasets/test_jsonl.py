"""Rows of JSON and CSV: each gives the text in its field, and broken ones are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from permllm.components import Conversation
from permllm.datasets.jsonl import Csv, JsonLines
from permllm.datasets.sequences import first_tokens
from permllm.datasets.streams import CHUNK
from permllm.errors import UserError
from permllm.testing.tokenizers import END, byte_tokenizer


def test_json_lines_give_their_field(tmp_path: Path, write) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one", "n": 1}\n\n{"text": ""}\r\n{"text": "two"}')
    assert list(JsonLines(path).texts("train")) == ["one", "two"]
    path = write(tmp_path / "b.jsonl", '{"body": "three"}\n')
    JsonLines(path, field="body").check()
    assert list(JsonLines(path, field="body").texts("test")) == ["three"]
    assert JsonLines(path).label() == "b"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ('{"text": "two"', r"a\.jsonl:2:15: this line is not JSON"),
        ('{"txt": "two"}', r"a\.jsonl:2: no field 'text' .*\n.*did you mean 'txt'"),
        ('{"text": 2}', r"a\.jsonl:2: the field 'text' must hold a text, not 2"),
        ('["two"]', r"a\.jsonl:2: expected an object"),
        ("[" * 100_000, r"a\.jsonl:2"),
        ('{"text": "two", "n": %s}' % ("9" * 5000), r"a\.jsonl:2: a number is too long"),
        ('{"text": "two\\ud800"}', r"a\.jsonl:2: the field 'text' holds half of a character"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, broken: str, message: str, write) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one"}\n' + broken + "\n")
    with pytest.raises(UserError, match=message):
        list(JsonLines(path).texts("train"))


def test_the_offset_of_a_wrong_byte_counts_from_the_start_of_the_file(
    tmp_path: Path, write
) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "one"}\n{"text": "\xff"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:2: not UTF-8: byte 0xff at offset 26"):
        list(JsonLines(path).texts("train"))


def test_json_lines_without_any_text_are_refused(tmp_path: Path, write) -> None:
    with pytest.raises(UserError, match="has no text in its field 'text'"):
        list(JsonLines(write(tmp_path / "a.jsonl", '{"text": " "}\n')).texts("train"))


def test_check_looks_at_the_first_line_only(tmp_path: Path, write) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one"}\n{broken\n')
    assert JsonLines(path).check() is None
    with pytest.raises(UserError, match="no field 'body'"):
        JsonLines(path, field="body").check()


def test_null_and_blank_texts_are_left_out_but_are_rows(tmp_path: Path, write) -> None:
    lines = '{"text": "one"}\n{"text": null}\n{"text": ""}\n{"text": " \\n"}\n{"text": "two"}\n'
    dataset = JsonLines(write(tmp_path / "a.jsonl", lines))
    assert list(dataset.texts("train")) == ["one", "two"]
    assert list(dataset.rows("train")) == ["one", "", "", " \n", "two"]


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_gives_its_objects(tmp_path: Path, indent: int | None, write) -> None:
    # Longer than chunks, and with what a chunk may cut in the middle.
    texts = [f'{n}: [\\]}}"\n' + "é" * (n % 7) * 3000 for n in range(40)]
    data = json.dumps([{"text": text} for text in texts], indent=indent, ensure_ascii=False)
    assert len(data) > 5 * CHUNK
    assert list(JsonLines(write(tmp_path / "a.json", f"\n {data}\n")).texts("train")) == texts
    long = json.dumps([{"text": "y" * 5 * CHUNK}, {"text": "z"}])
    assert list(JsonLines(write(tmp_path / "b.json", long)).texts("train")) == [
        "y" * 5 * CHUNK,
        "z",
    ]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        ('[\n{"text": "one"},\n\n{"text": 2}]', r"a\.json:4: the field 'text' must hold a text"),
        ('[\n{"text": "one"},\n"two"]', r"a\.json:3: expected an object such as"),
        ('[\n{"text": "one"}\n{"text": "two"}]', r"a\.json:3: this line is not JSON: expected ','"),
        ('[\n{"text": "one"},\n{"text": two}]', r"a\.json:3:10: this line is not JSON"),
        ('[\n{"text": "one"},', r"a\.json:2: this JSON array does not end"),
        ("[[[" * 100_000, r"a\.json:1: this is nested too deeply"),
        ("[]", "has no text in its field"),
    ],
)
def test_a_broken_array_is_named(tmp_path: Path, array: str, message: str, write) -> None:
    with pytest.raises(UserError, match=message):
        list(JsonLines(write(tmp_path / "a.json", array)).texts("train"))


def test_tables(tmp_path: Path, write) -> None:
    path = write(tmp_path / "a.csv", 'n,text\n1,"one, and\n""two"""\n2,\n\n3,three\n')
    assert list(Csv(path).texts("train")) == ['one, and\n"two"', "three"]
    assert list(Csv(write(tmp_path / "a.tsv", "n\ttext\n1\ta,b\n")).texts("train")) == ["a,b"]
    path = write(tmp_path / "b.csv", "n;body\n1;one\n")
    assert list(Csv(path, field="body", delimiter=";").texts("train")) == ["one"]
    long = "x" * 500_000
    assert list(Csv(write(tmp_path / "c.csv", f"text\n{long}\n")).texts("train")) == [long]
    with pytest.raises(ValueError, match="delimiter must be one character"):
        Csv(path, delimiter=";;")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("n,txt\n1,one\n", r"a\.csv:2: no field 'text' .*\n.*did you mean 'txt'"),
        ('n,text\n1,"a\nb"\n2,a,b\n', r"a\.csv:4: 3 cells in this row, .* names 2"),
        ('n,text\n1,"a\nb\n', r"a\.csv:2: this is no CSV: unexpected end of data"),
        ("text\n", "has no text in its field 'text'"),
    ],
)
def test_a_broken_table_is_named(tmp_path: Path, table: str, message: str, write) -> None:
    with pytest.raises(UserError, match=message):
        list(Csv(write(tmp_path / "a.csv", table)).texts("train"))


def test_tables_are_not_taken_for_json(tmp_path: Path, write) -> None:
    with pytest.raises(UserError, match=r"not JSON.*\n.*dataset 'csv' reads tables"):
        JsonLines(write(tmp_path / "a.csv", "text\none\n")).check()


def test_fields_within_others(tmp_path: Path, write) -> None:
    rows = (
        '{"meta": {"text": "one"}, "turns": [{"text": "a"}], "a.b": "dotted"}\n'
        '{"meta": null, "turns": [{"text": null}], "a.b": null}\n'
    )
    path = write(tmp_path / "a.jsonl", rows)
    assert list(JsonLines(path, field="meta.text").texts("train")) == ["one"]
    assert list(JsonLines(path, field="turns.0.text").texts("train")) == ["a"]
    assert list(JsonLines(path, field="a.b").texts("train")) == ["dotted"]
    with pytest.raises(UserError, match=r"a\.jsonl:1: no field 'meta\.txt'.*\n.*'meta\.text'"):
        JsonLines(path, field="meta.txt").check()
    with pytest.raises(UserError, match=r"no field 'turns\.1\.text'"):
        JsonLines(path, field="turns.1.text").check()


CHAT = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}\n'
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def test_messages_go_through_the_chat_template(tmp_path: Path, write) -> None:
    dataset = JsonLines(write(tmp_path / "a.jsonl", CHAT * 2), field="messages")
    dataset.check()
    tokenizer = byte_tokenizer()
    with pytest.raises(
        UserError, match=r"a\.jsonl:1: these are messages, and the tokenizer has no"
    ):
        first_tokens(dataset.texts("train"), tokenizer, None)
    tokenizer.chat_template = TEMPLATE
    tokens = first_tokens(dataset.texts("train"), tokenizer, None)
    one = "<user>Hi<assistant>Yo"
    assert tokenizer.decode(tokens) == f"{one}{END}{one}"
    tokenizer.chat_template = "{{ raise_exception('no user') }}"
    with pytest.raises(UserError, match=r"a\.jsonl:1: the chat template refuses .*: no user"):
        first_tokens(dataset.texts("train"), tokenizer, None)


def test_messages_as_sharegpt_has_them(tmp_path: Path, write) -> None:
    turns = '[{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]'
    path = write(
        tmp_path / "a.jsonl",
        f'{{"conversations": {turns}}}\n' + CHAT.replace("messages", "conversations"),
    )
    one, other = JsonLines(path, field="conversations").texts("train")
    assert isinstance(one, Conversation)
    assert isinstance(other, Conversation)
    assert one.messages == other.messages


def test_half_characters_in_messages_are_named(tmp_path: Path, write) -> None:
    path = write(tmp_path / "a.jsonl", CHAT + CHAT.replace("Yo", "\\ud83d"))
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    with pytest.raises(UserError, match=r"a\.jsonl:2: a message holds half of a character"):
        first_tokens(JsonLines(path, field="messages").texts("train"), tokenizer, None)


def test_other_lists_are_refused(tmp_path: Path, write) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": [{"by": "human", "said": "Hi"}]}\n')
    with pytest.raises(UserError, match=r"must hold a text, not .*\n.*each with role and content"):
        JsonLines(path).check()


def test_how_a_file_is_read_is_in_its_fingerprint(tmp_path: Path, write) -> None:
    path = write(tmp_path / "a.csv", "text\none\n")
    found = {
        dataset.fingerprint("train")
        for dataset in (Csv(path), Csv(path, encoding="latin-1"), Csv(path, delimiter=";"))
    }
    assert len(found) == 3
