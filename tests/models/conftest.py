from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from permllm.testing.models import save_tiny


@pytest.fixture(scope="session")
def write_gguf() -> Callable[[Path], Path]:
    """Writes a GGUF file that is complete, although no model can be made of it."""

    def write(path: Path, sizes: bool = True) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(path, "nonesuch")
        if sizes:
            writer.add_block_count(2)
            writer.add_embedding_length(32)
            writer.add_token_list(["a", "b"])
        writer.add_tensor("token_embd.weight", np.ones((64, 32), dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model, to read or to copy."""
    return save_tiny("llama", tmp_path_factory.mktemp("saved"))
