"""Opens exports as a server does, and calls the commands, where nothing can prune.

`tox run -e serving` calls it in an environment without the extra ``prune``;
``test_open_exports.py`` where the packages of that extra are hidden.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import permllm
from permllm.cli.main import COMMANDS, main
from permllm.extras import missing_for_pruning, pruning_packages
from permllm.testing.exporters import pruned_export, write_export
from permllm.testing.models import tiny_model

ROOT = Path(__file__).parents[2]

FORMATS = ("masked", "permuted", "sparse")

SERVE = ("verify", "inspect", "generate", "bench")
"""The commands that want nothing else."""


def exported(form: str, gathered: bool, folder: Path) -> Path:
    """A tiny export, of whose inputs some are gathered or none."""

    def order(name: str, group: Any) -> Tensor:
        generator = torch.Generator().manual_seed(len(name))
        every = torch.arange(group.channels)
        return torch.randperm(len(every), generator=generator) if gathered else every

    folder.mkdir()
    write_export(form, pruned_export(tiny_model("llama-gqa"), order), folder)
    return folder


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        said: Tensor = model(torch.arange(12)[None]).logits
    return said


def check_opens(folder: Path, *, packed: bool) -> None:
    """All ways to open an export give one model."""
    loaded = permllm.load(folder)
    expected = logits(loaded.model)
    assert expected.isfinite().all()
    models = [AutoModelForCausalLM.from_pretrained(folder)]
    if packed:
        sparse = permllm.load(folder, sparse=True)
        assert len(sparse.linears) == 14, sparse.linears
        models.append(sparse.model)
    for model in models:
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def check_saved_again(export: Path, folder: Path) -> None:
    """What ``dequantize`` makes is saved, and opened, as an ordinary model."""
    model = AutoModelForCausalLM.from_pretrained(export)
    expected = logits(model)
    model.dequantize().save_pretrained(folder)
    again = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-4)


def called(*words: object) -> tuple[int, str, str]:
    """The exit code, output and errors of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(word) for word in words])
        except SystemExit as end:
            return int(end.code or 0), out.getvalue(), err.getvalue()
    raise AssertionError("the command line did not end with an exit code")


def words_of(export: Path) -> Iterator[list[object]]:
    """Calls that work."""
    yield from (["--version"], ["--help"], *([name, "--help"] for name in COMMANDS))
    yield from (["plugins", "new", "--help"], ["cache", "list", "--help"], ["cache", "--help"])
    yield from (["verify", export], ["inspect", export])
    yield ["generate", export, "hello", "--tokens", 2]


REFUSED: tuple[list[object], ...] = (
    ["new", "."],
    ["run", "absent.yaml"],
    ["check", "absent.yaml"],
    ["show", "absent.yaml"],
    ["compare", "absent"],
    ["eval", "."],
    ["export", "absent", "--format", "masked"],
    ["cache", "list", "."],
    ["cache", "prune", ".", "--limit", "1"],
    ["cache", "verify", "."],
    ["plugins"],
    ["plugins", "info", "lcp"],
    ["plugins", "new", "power"],
    ["schema"],
)
"""A call of every command that is not of SERVE."""


def check_commands(export: Path) -> None:
    """Commands work, or say in two lines what to install; none ends in a traceback."""
    for words in words_of(export):
        code, _, err = called(*words)
        assert (code, err) == (0, ""), (words, code, err)
    for words in REFUSED:
        code, out, err = called(*words)
        assert (code, out) == (2, ""), (words, code, out)
        check_message(err.removeprefix("error: "))
    assert {words[0] for words in REFUSED} | set(SERVE) == set(COMMANDS)
    code, _, err = called("nonsense")
    assert code == 2, err
    assert "warning" not in err, err
    (export.parent / "model.gguf").write_bytes(b"GGUF" + bytes(60))
    code, _, err = called("generate", export.parent / "model.gguf", "hello")
    assert code == 2, err
    assert "reading GGUF files needs permllm[prune], of which gguf is missing\n" in err, err


def check_functions() -> None:
    for name in ("run", "prune", "Pruned"):
        said = refusal(name)
        assert said.startswith(f"permllm.{name} needs "), said
        check_message(said)


def refusal(name: str) -> str:
    """What permllm says where something of it is asked for."""
    try:
        return repr(getattr(permllm, name))
    except permllm.UserError as error:
        return str(error)


def check_message(text: str) -> None:
    what, hint = text.strip().split("\n")
    names = ", ".join(missing_for_pruning()[:-1]) + f" and {missing_for_pruning()[-1]}"
    assert what.endswith(f" needs permllm[prune], of which {names} are missing"), text
    assert "mlflow" in names
    assert hint.startswith("  hint: "), text
    assert hint.endswith(" install 'permllm[prune]'"), text


def check_plugin_of_vllm() -> None:
    """What permllm-vllm imports beside vLLM is there."""
    folder = ROOT / "plugins/permllm-vllm"
    # A source distribution of permllm has no plugins.
    if not folder.is_dir():
        return
    sys.path.append(str(folder))
    import permllm_vllm
    import permllm_vllm.export
    import permllm_vllm.operator

    assert callable(permllm_vllm.register)


def check_all(folder: Path) -> None:
    there = sorted(set(pruning_packages()) - set(missing_for_pruning()))
    assert pruning_packages(), "install permllm anew: its metadata has no extra 'prune'"
    # These two come with PyTorch and transformers.
    assert there == ["filelock", "numpy"], f"{there} are here, so nothing is tried"
    for gathered in (False, True):
        for form in FORMATS:
            export = exported(form, gathered, folder / f"{form}-{gathered}")
            check_opens(export, packed=form != "masked")
    check_saved_again(folder / "sparse-False", folder / "again")
    check_commands(folder / "sparse-True")
    check_functions()
    check_plugin_of_vllm()
    print("exports open, commands work or say what is missing")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        check_all(Path(place))
