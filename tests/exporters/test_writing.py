"""Configurations are saved as those who generate text want them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import GenerationConfig

from permllm.exporters.masked import Masked
from permllm.exporters.writing import emptied_on_failure
from permllm.testing.exporters import toy_export
from permllm.testing.models import tiny_model


def test_settings_for_pruning_are_not_saved(tmp_path: Path) -> None:
    model = tiny_model("llama-gqa")
    model.config.use_cache = False
    Masked().export(toy_export(model), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["use_cache"] is True
    assert model.config.use_cache is False


def test_a_generation_config_that_transformers_would_refuse(tmp_path: Path) -> None:
    model = tiny_model("llama-gqa")
    model.generation_config = GenerationConfig(eos_token_id=256)
    model.generation_config.temperature = 0.6
    Masked().export(toy_export(model), tmp_path)
    saved = GenerationConfig.from_pretrained(tmp_path)
    assert (saved.temperature, saved.do_sample, saved.eos_token_id) == (0.6, True, 256)
    assert not model.generation_config.do_sample


def test_a_folder_is_emptied_only_if_the_block_fails(tmp_path: Path) -> None:
    with emptied_on_failure(tmp_path):
        (tmp_path / "kept").write_text("whole")
    assert (tmp_path / "kept").exists()
    with pytest.raises(KeyboardInterrupt), emptied_on_failure(tmp_path):
        interrupted(tmp_path)
    assert not list(tmp_path.iterdir())


def interrupted(folder: Path) -> None:
    (folder / "part").mkdir()
    (folder / "part" / "half").write_text("ha")
    raise KeyboardInterrupt
