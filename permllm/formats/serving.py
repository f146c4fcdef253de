"""What models cost to run: time to open, memory, tokens per second.

Each is opened in a process of its own, so that memory is its own; they take turns, so that what
else the machine does hits all of them alike.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import attrs
import psutil
import torch
from torch import Tensor

from permllm.errors import UserError
from permllm.formats.loading import load as load_export
from permllm.formats.manifest import MANIFEST, read_manifest
from permllm.models.loading import load, quiet
from permllm.models.sources import DirectorySource, Source


@attrs.frozen
class Subject:
    """A model that is measured.

    Attributes:
        label: what tables call it.
        source: where it is; an export of permllm is opened as one.
        sparse: whether its pruned linears are to run with packed weights.
    """

    label: str
    source: Source
    sparse: bool = False


@attrs.frozen(kw_only=True)
class Load:
    """How models are run.

    Attributes:
        prefill: tokens of the prompt, which are read at once.
        decode: tokens after it, one after another with a cache.
        rounds: how often both are measured.
        vocabulary: what the prompt's tokens are drawn from.
        dtype: the models' numbers; None for those that they are saved in.
        device: where they run.
    """

    prefill: int = 256
    decode: int = 32
    rounds: int = 5
    vocabulary: int = 1000
    dtype: torch.dtype | None = None
    device: str = "cpu"

    def prompt(self) -> Tensor:
        """The same tokens each time."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(self.vocabulary, (1, self.prefill), generator=generator)


@attrs.frozen(eq=False)
class Cost:
    """What a model costs.

    Attributes:
        label: its subject's.
        load_seconds: to open it, with what only its class imports.
        weight_bytes: of parameters and buffers.
        process_bytes: all of the machine's memory that its process holds once it has run.
        prefill_speed: tokens per second of the prompt; the median of all rounds.
        decode_speed: tokens per second after it; the same.
        packed: how many of its pruned linears run with packed weights.
        logits: what it says to the prompt.
    """

    label: str
    load_seconds: float
    weight_bytes: int
    process_bytes: int
    prefill_speed: float
    decode_speed: float
    packed: int
    logits: Tensor


def measure(subjects: Sequence[Subject], work: Load) -> list[Cost]:
    """What each model costs, measured in turns.

    Raises:
        UserError: one cannot be opened or run.
    """
    processes = multiprocessing.get_context("spawn")
    servers: list[tuple[Any, Connection]] = []
    try:
        opened = []
        for subject in subjects:
            pipe, end = processes.Pipe()
            process = processes.Process(target=_serve, args=(subject, work, end), daemon=True)
            process.start()
            # Only so does a process that dies close the pipe.
            end.close()
            servers.append((process, pipe))
            opened.append(_answer(subject, pipe))
        times: list[list[tuple[float, float]]] = [[] for _ in subjects]
        for _ in range(work.rounds):
            for subject, (_, pipe), its in zip(subjects, servers, times, strict=True):
                pipe.send(True)
                its.append(_answer(subject, pipe))
    finally:
        for process, pipe in servers:
            pipe.close()
            process.join(5)
            process.kill()
    return [
        _cost(subject, work, found, its)
        for subject, found, its in zip(subjects, opened, times, strict=True)
    ]


def _cost(
    subject: Subject,
    work: Load,
    found: tuple[float, int, int, int, Any],
    times: list[tuple[float, float]],
) -> Cost:
    seconds, weights, process, packed, logits = found
    prefill, decode = (statistics.median(column) for column in zip(*times, strict=True))
    return Cost(
        subject.label,
        seconds,
        weights,
        process,
        work.prefill / prefill,
        work.decode / decode,
        packed,
        torch.from_numpy(logits),
    )


def _answer(subject: Subject, pipe: Connection) -> Any:
    try:
        answer = pipe.recv()
    except (EOFError, ConnectionError):
        raise UserError(
            f"{subject.label}: its process ended early; the memory may not suffice",
        ) from None
    if isinstance(answer, str):
        raise UserError(f"{subject.label}: {answer}")
    return answer


def _serve(subject: Subject, work: Load, pipe: Connection) -> None:
    """Open a model, and measure whenever the other end of the pipe asks for it."""
    try:
        with torch.inference_mode(), quiet():
            _run(subject, work, pipe)
    except (EOFError, BrokenPipeError):
        return  # the other end has all that it wants
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        pipe.send(first)


def _run(subject: Subject, work: Load, pipe: Connection) -> None:
    # Which takes seconds, and is no model's own.
    from transformers import AutoModelForCausalLM  # noqa: F401

    prompt = work.prompt().to(work.device)
    began = time.perf_counter()
    model, packed = _opened(subject, work)
    seconds = _since(began, work)
    logits = model(input_ids=prompt).logits.float().cpu().numpy()
    resident = psutil.Process().memory_info().rss
    pipe.send((seconds, held(model), resident, packed, logits))
    while pipe.recv():
        began = time.perf_counter()
        state = model(input_ids=prompt, use_cache=True)
        prefill = _since(began, work)
        token = state.logits[:, -1:].argmax(-1)
        began = time.perf_counter()
        for _ in range(work.decode):
            state = model(input_ids=token, past_key_values=state.past_key_values, use_cache=True)
            token = state.logits[:, -1:].argmax(-1)
        pipe.send((prefill, _since(began, work)))


def _opened(subject: Subject, work: Load) -> tuple[Any, int]:
    """The model on its device, and how many of its linears run packed."""
    source = subject.source
    if (
        isinstance(source, DirectorySource)
        and (source.path / MANIFEST).is_file()
        and (subject.sparse or read_manifest(source.path).format != "masked")
    ):
        loaded = load_export(
            source.path, sparse=subject.sparse, dtype=work.dtype, device=work.device
        )
        return loaded.model, sum(one.runs != "dense" for one in loaded.linears)
    return load(source, work.dtype).model.to(work.device), 0


def _since(began: float, work: Load) -> float:
    if work.device.startswith("cuda"):
        torch.cuda.synchronize(work.device)
    return time.perf_counter() - began


def held(model: Any) -> int:
    """Bytes of a model's parameters and buffers, tied ones once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum({one.data_ptr(): one.nbytes for one in tensors}.values())
