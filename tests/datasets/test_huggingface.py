from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from permllm.datasets.huggingface import HuggingFace
from permllm.errors import UserError

datasets = pytest.importorskip("datasets")
ROWS = {"text": ["one", "", "two"], "n": [1, 2, 3]}


def test_a_saved_folder(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(ROWS).save_to_disk(str(tmp_path / "saved"))
    dataset = HuggingFace(path=tmp_path / "saved")
    assert list(dataset.texts("train")) == ["one", "two"]
    assert dataset.label() == "saved"


def test_a_saved_folder_with_splits(tmp_path: Path) -> None:
    split = datasets.Dataset.from_dict(ROWS)
    datasets.DatasetDict({"train": split}).save_to_disk(str(tmp_path / "saved"))
    dataset = HuggingFace(path=tmp_path / "saved")
    assert list(dataset.texts("train")) == ["one", "two"]
    with pytest.raises(UserError, match=r"no split 'test'\n.*it has train"):
        list(dataset.texts("test"))


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "json", "arrow"])
def test_local_files(tmp_path: Path, suffix: str) -> None:
    rows = datasets.Dataset.from_dict(ROWS)
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        rows.to_parquet(str(path))
    elif suffix == "arrow":
        rows.save_to_disk(str(tmp_path / "saved"))
        path = next((tmp_path / "saved").glob("*.arrow"))
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    dataset = HuggingFace(path=path)
    dataset.check()
    assert list(dataset.texts("train")) == ["one", "two"]


def test_a_missing_column_is_refused_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"texts": "one"}\n')
    with pytest.raises(UserError, match=r"no field 'text' in this line\n.*did you mean 'texts'"):
        list(HuggingFace(path=tmp_path / "a.jsonl").texts("train"))
    (tmp_path / "b.jsonl").write_text('{"text": 1}\n')
    with pytest.raises(UserError, match="must hold a text, not 1"):
        list(HuggingFace(path=tmp_path / "b.jsonl").texts("train"))


def test_broken_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(UserError, match=r"cannot read .*a\.parquet"):
        list(HuggingFace(path=tmp_path / "a.parquet").texts("train"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*folder"):
        list(HuggingFace(path=tmp_path / "folder").texts("train"))
    (tmp_path / "a.md").write_text("text\none\n")
    with pytest.raises(UserError, match="no known format"):
        HuggingFace(path=tmp_path / "a.md").check()


def test_an_empty_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(UserError, match="has no text in its field"):
        list(HuggingFace(path=tmp_path / "a.jsonl").texts("train"))


def test_a_dataset_that_the_hub_does_not_give(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*args: object, **kwargs: object) -> object:
        raise ConnectionError("no way to the hub\nand a long story")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError, match="cannot read 'someone/none': no way to the hub\n"):
        list(HuggingFace(id="someone/none").texts("train"))
    assert HuggingFace(id="someone/none").label() == "none"


def test_the_place_has_to_be_given_once() -> None:
    with pytest.raises(ValueError, match="either id"):
        HuggingFace()
    with pytest.raises(ValueError, match="either id"):
        HuggingFace(id="a", path=Path("b"))
    with pytest.raises(ValueError, match="belong to id"):
        HuggingFace(path=Path("b"), revision="main")


def test_json_and_csv_files_are_read_as_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"n,text\n1,one\n2,\n3,caf\xe9\n"))
    dataset = HuggingFace(path=path, encoding="latin-1")
    dataset.check()
    assert list(dataset.texts("train")) == ["one", "café"]
    assert list(dataset.rows("train")) == ["one", "", "café"]
    (tmp_path / "b.json").write_text('[{"text": "a"},\n{"text": "b\\ud83d"}]')
    with pytest.raises(UserError, match=r"b\.json:2: the field 'text' holds half"):
        list(HuggingFace(path=tmp_path / "b.json").texts("train"))


def test_nested_fields_messages_and_null_rows_of_parquet(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}]
    rows = [{"meta": {"text": "one\r\n"}, "chat": chat}, {"meta": None, "chat": None}]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "a.parquet"))
    path = tmp_path / "a.parquet"
    assert list(HuggingFace(path=path, field="meta.text").texts("train")) == ["one\n"]
    assert list(HuggingFace(path=path, field="meta.text").rows("train")) == ["one\n", ""]
    (conversation,) = HuggingFace(path=path, field="chat").texts("train")
    assert conversation.messages == tuple(chat)
