"""Whatever a model may be read from belongs to its fingerprint."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import gguf
import numpy as np
import pytest
import transformers
from forks import Forks
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers

from permllm.errors import UserError
from permllm.models.checkpoint_files import INDEX, WEIGHTS
from permllm.models.fingerprint import READ, fingerprint
from permllm.models.sources import DirectorySource, GgufSource, Source
from permllm.testing.models import save_tiny

OPENED = """
import json, sys
from pathlib import Path

opened = set()

def listen(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes, Path)):
        opened.add(str(arguments[0]))

from permllm.models.loading import load, load_tokenizer, read_config
from permllm.models.sources import DirectorySource, GgufSource

path = Path(sys.argv[1])
source = GgufSource(path) if path.is_file() else DirectorySource(path)
sys.addaudithook(listen)
for read in (read_config, load_tokenizer, load):
    read(source)
print(json.dumps(sorted(opened)))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose weights lie in a folder of their own, with much beside it."""
    folder = save_tiny("llama", tmp_path / "saved")
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    (folder / "parts").mkdir()
    save_file(tensors, folder / "parts" / "all.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "parts/all.safetensors")}
    (folder / INDEX).write_text(json.dumps(index))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "short.jinja").write_text("{{ messages }}")
    for name in ("README.md", "notes.bin", "runs/results.json", "optimizer.pt", ".hidden"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("no part of the model")
    return folder


@pytest.fixture
def opened(forks: Forks, tmp_path: Path) -> Callable[[Path], set[Path]]:
    """What is opened by Python to read a model, of the files in its folder."""

    def call(path: Path) -> set[Path]:
        ran = forks.at(tmp_path).call(path, program=OPENED)
        assert ran.code == 0, ran.printed
        inside = path if path.is_dir() else path.parent
        names = {Path(name) for name in json.loads(ran.printed.splitlines()[-1])}
        return {name for name in names if name.is_relative_to(inside) and name.is_file()}

    return call


def unseen(source: Source, files: list[Path]) -> set[Path]:
    """The files that may change without another fingerprint."""
    before, same = fingerprint(source), set()
    for path in files:
        kept = path.read_bytes()
        # White space at the end of JSON, and the last byte of the last tensor.
        is_text = b"__metadata__" not in kept[:40]
        changed = kept + b"\n" if is_text else kept[:-1] + b"\x07"
        path.write_bytes(changed)
        if fingerprint(source) == before:
            same.add(path)
        path.write_bytes(kept)
    assert fingerprint(source) == before
    return same


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="for Linux")


@LINUX
def test_every_file_gives_another_fingerprint_or_is_read_by_nothing(
    folder: Path, opened: Callable[[Path], set[Path]]
) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    same = unseen(DirectorySource(folder), files)
    assert {path.relative_to(folder).as_posix() for path in same} == {
        "README.md", "notes.bin", "runs/results.json", "optimizer.pt", ".hidden"
    }  # fmt: skip
    read = opened(folder)
    assert folder / "config.json" in read
    assert folder / "additional_chat_templates" / "short.jinja" in read
    assert not same & read


def test_links_are_followed(folder: Path, tmp_path: Path) -> None:
    """As in the hub's cache."""
    blob = tmp_path / "models--a--b" / "blobs" / "0f"
    blob.parent.mkdir(parents=True)
    shard = folder / "parts" / "all.safetensors"
    shard.rename(blob)
    shard.symlink_to(blob)
    assert unseen(DirectorySource(folder), [blob]) == set()


def test_where_code_is_trusted_all_that_it_may_read_counts(folder: Path) -> None:
    source = DirectorySource(folder, trust_remote_code=True)
    code = folder / "deep" / "helper.py"
    code.parent.mkdir()
    code.write_text("x = 1")
    vocabulary = folder / "deep" / "words"
    vocabulary.write_text("a b")
    assert unseen(source, [code, vocabulary, folder / "runs" / "results.json"]) == set()
    assert unseen(source, [folder / "optimizer.pt"]) == {folder / "optimizer.pt"}


def test_the_vocabularies_of_all_tokenizers_are_known() -> None:
    folder = Path(transformers.__file__).parent / "models"
    names = {
        name
        for path in folder.glob("*/tokenization_*.py")
        for found in re.findall(r"VOCAB_FILES_NAMES[^=]*= \{(.*?)\}", path.read_text(), re.DOTALL)
        for name in re.findall(r":\s*\"([^\"]+)\"", found)
    }
    assert {"tokenizer.json", "vocab.txt", "merges.txt"} <= names
    assert {name for name in names if not any(fnmatch(name, one) for one in READ)} == set()


def test_a_missing_model_has_no_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model folder"):
        fingerprint(DirectorySource(tmp_path / "nowhere"))


def write_llama(path: Path) -> None:
    """A GGUF file that transformers makes a tiny model and a tokenizer of bytes of."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "<|end|>"]
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,)}
    shapes |= {f"blk.0.{part}_norm": (32,) for part in ("attn", "ffn")}
    shapes |= {f"blk.0.attn_{part}": (32, 32) for part in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{part}": (32, 32) for part in ("gate", "up", "down")}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(tokens) - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(len(tokens) - 1)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@LINUX
def test_of_what_lies_beside_a_gguf_file_what_is_read_counts(
    tmp_path: Path, opened: Callable[[Path], set[Path]]
) -> None:
    path = tmp_path / "tiny.gguf"
    write_llama(path)
    names = ("tokenizer_config.json", "generation_config.json", "letters.json", "other.gguf")
    for name in names:
        (tmp_path / name).write_text("{}")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "short.jinja").write_text("{{ messages }}")
    same = unseen(GgufSource(path), [one for one in tmp_path.rglob("*.j*") if one.is_file()])
    assert {one.name for one in same} == {"letters.json"}
    read = opened(path)
    assert path in read
    assert not {tmp_path / "letters.json", tmp_path / "other.gguf"} & read
