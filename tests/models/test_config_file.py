"""Configurations: what would lead transformers elsewhere is refused with file and field."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from permllm.errors import UserError
from permllm.models import config_file
from permllm.models.config_file import check_config, check_no_adapter
from permllm.models.loading import load, load_tokenizer, read_config
from permllm.models.sources import DirectorySource
from permllm.testing.models import save_tiny

PATH = Path("model/config.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "saved")


def change(folder: Path, **fields: Any) -> DirectorySource:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return DirectorySource(folder)


KERNELS: list[tuple[dict[str, Any], str]] = [
    ({"attn_implementation": "owner/kernel"}, "attn_implementation"),
    ({"_attn_implementation": "owner/kernel@main:forward"}, "_attn_implementation"),
    ({"_attn_implementation_internal": "owner/kernel"}, "_attn_implementation_internal"),
    ({"attn_implementation": {"": "sdpa", "text_config": "owner/kernel"}}, "attn_implementation"),
    ({"attn_implementation": "paged|owner/kernel"}, "attn_implementation"),
    ({"text_config": {"attn_implementation": "owner/kernel"}}, "text_config.attn_implementation"),
    ({"parts": [{"attn_implementation": "owner/k:f"}]}, "parts.0.attn_implementation"),
    ({"experts_implementation": "deepgemm"}, "experts_implementation"),
    ({"router_implementation": "owner/kernel"}, "router_implementation"),
    ({"use_kernels": True}, "use_kernels"),
    ({"kernel_config": {"RMSNorm": "owner/kernel:RMSNorm"}}, "kernel_config"),
]


@pytest.mark.parametrize(("fields", "named"), KERNELS)
def test_code_of_the_hub_is_refused_unless_it_is_trusted(
    fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError, match=f"'{re.escape(named)}' asks for code") as caught:
        check_config(fields, PATH, trust_remote_code=False)
    assert caught.value.file == str(PATH)
    assert "trust_remote_code: true" in str(caught.value.hint)
    check_config(fields, PATH, trust_remote_code=True)


def test_every_way_to_open_a_model_looks_first(folder: Path) -> None:
    source = change(folder, attn_implementation="owner/kernel")
    for opened in (read_config, load_tokenizer, lambda source: load(source, torch.float32)):
        with pytest.raises(UserError, match="asks for code that transformers fetches"):
            opened(source)


@pytest.mark.parametrize(
    "fields",
    [
        {"attn_implementation": "eager"},
        {"_attn_implementation": "sdpa", "text_config": {"attn_implementation": None}},
        {"experts_implementation": "grouped_mm", "cache_implementation": "static"},
        {"use_kernels": False},
    ],
)
def test_what_needs_no_code_of_the_hub_is_let_through(fields: dict[str, Any]) -> None:
    check_config(fields, PATH, trust_remote_code=False)


@pytest.mark.parametrize(
    ("installed", "refused"),
    [((), False), (("kernels",), True), (("kernels", "flash_attn"), False)],
)
def test_flash_attention_is_refused_where_it_would_be_fetched(
    monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...], refused: bool
) -> None:
    monkeypatch.setattr(config_file, "_has", lambda package: package in installed)
    fields = {"_attn_implementation": "flash_attention_2"}
    if refused:
        with pytest.raises(UserError, match="flash_attention_2"):
            check_config(fields, PATH, trust_remote_code=False)
    else:
        check_config(fields, PATH, trust_remote_code=False)


def test_weights_of_another_name_are_refused(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04pickled")
    source = change(folder, transformers_weights="adapter_model.bin")
    with pytest.raises(UserError, match=r"'transformers_weights' names weights"):
        load(source, torch.float32)


def test_an_adapter_is_refused(folder: Path) -> None:
    check_no_adapter(folder)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/other"}')
    with pytest.raises(UserError, match="holds a PEFT adapter"):
        load_tokenizer(DirectorySource(folder))


@pytest.mark.parametrize(
    "fields",
    [
        {"num_hidden_layers": "two"},
        {"num_hidden_layers": [2]},
        {"num_hidden_layers": True},
        {"num_hidden_layers": 2.5},
        {"dtype": 7},
        {"torch_dtype": []},
        {"hidden_size": -5},
        {"vocab_size": {}},
        {"num_hidden_layers": 200_000},
        {"n_layer": 200_000},
        {"decoder_layers": 1e9},
        {"num_hidden_layers": int("9" * 4000)},
    ],
)
def test_sizes_that_no_model_has_are_refused(fields: dict[str, Any]) -> None:
    for place in (fields, {"text_config": fields}):
        with pytest.raises(UserError, match=rf"{next(iter(fields))}'") as caught:
            check_config(place, PATH, trust_remote_code=True)
        assert caught.value.file == str(PATH)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rope_parameters", "x"),
        ("layer_types", 5),
        ("intermediate_size", "wide"),
        ("num_key_value_heads", {}),
        ("model_type", [1]),
        ("quantization_config", "x"),
        ("num_attention_heads", 10**9),
    ],
)
def test_fields_of_the_wrong_type_are_the_users_to_mend(
    folder: Path, field: str, value: Any
) -> None:
    source = change(folder, **{field: value})
    with pytest.raises(UserError, match="cannot read the configuration") as caught:
        read_config(source)
    assert caught.value.file == str(folder / "config.json")
