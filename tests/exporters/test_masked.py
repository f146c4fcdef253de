from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from permllm.exporters.masked import Masked
from permllm.models.decoder import Decoder
from permllm.testing import check_exporter
from permllm.testing.exporters import toy_export
from permllm.testing.models import tiny_model


def tied() -> Any:
    """A model whose head shares its weight with the embeddings."""
    torch.manual_seed(0)
    config = tiny_model("llama-gqa").config
    config.tie_word_embeddings = True
    return AutoModelForCausalLM.from_config(config).eval()


def test_contract() -> None:
    check_exporter(Masked())


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama-gqa", "gpt2", "mixtral", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_opens_the_folder_with_equal_logits(
    tmp_path: Path, architecture: str, dtype: torch.dtype
) -> None:
    model = tied() if architecture == "tied" else tiny_model(architecture)
    # The parameters only, as transformers loads them: rotary frequencies stay in float32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    for name, parameter in model.named_parameters():
        if "mlp" in name and parameter.dim() == 2:
            parameter[:, ::2] = 0
    Masked().export(toy_export(model), tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").eval()
    # Experts are then multiplied one by one, as in the model that was traced for the export.
    Decoder.trace(reloaded)
    tokens = torch.arange(20)[None]
    assert reloaded.dtype == dtype
    assert torch.equal(reloaded(input_ids=tokens).logits, model(input_ids=tokens).logits)
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json", ".md", ".yaml"}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode(tokenizer("héllo")["input_ids"]) == "héllo"


def test_it_writes_nothing_to_the_screen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Masked().export(toy_export(tiny_model("llama-gqa")), tmp_path)
    assert capfd.readouterr() == ("", "")
