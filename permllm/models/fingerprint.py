"""The hash of all that a model is read from, so that nothing stale passes for it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from permllm.files import file_hash
from permllm.models.checkpoint_files import INDEX, weight_files
from permllm.models.loading import located
from permllm.models.sources import Source

READ = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.spm", "*.tiktoken", "*.bpe",
        "*.bpe.*", "*.codes", "*.dict", "*.tokenizer", "*.vocab", "*.py")  # fmt: skip
"""What transformers and its tokenizers may read of a model's folder."""

BESIDE_GGUF = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
               "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
               "chat_template.json", "chat_template.jinja", "tokenizer.model")  # fmt: skip
"""What they may read beside a GGUF file, whose folder may hold anything."""

TEMPLATES = "additional_chat_templates/*.jinja"

OTHER_WEIGHTS = (".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pt", ".pth")
"""Ends of names of weights that permllm reads from no folder."""


def fingerprint(source: Source) -> str:
    """The SHA-256 over the files that model and tokenizer are read from, and their names.

    Raises:
        UserError: the model is not there, or cannot be fetched.
    """
    source.check()
    folder, options = located(source)
    if "gguf_file" in options:
        files = {folder / options["gguf_file"], *_there(folder, (*BESIDE_GGUF, TEMPLATES))}
    else:
        files = set(_files_read(folder, trusted=options["trust_remote_code"]))
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(folder)}\0{file_hash(path)}\n".encode())
    return digest.hexdigest()


def _files_read(folder: Path, *, trusted: bool) -> Iterator[Path]:
    """The files of a model's folder that may be read, without what merely lies beside them."""
    yield from _there(folder, (*READ, TEMPLATES))
    if (folder / INDEX).is_file():
        yield from weight_files(folder)
    if trusted:
        # The folder's own code may read whatever it likes.
        for path in folder.rglob("*"):
            hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            if path.is_file() and not hidden and path.suffix not in OTHER_WEIGHTS:
                yield path


def _there(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    return (path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
