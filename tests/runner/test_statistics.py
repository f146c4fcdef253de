"""Statistics are those of the calibration sequences, gathered once for what they depend on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from permllm.core.statistics import GRAM, SQUARE_SUM, TOKENS
from permllm.errors import RunFailed
from permllm.models.decoder import Decoder
from permllm.runner.caching.memo import Stages
from permllm.runner.caching.store import Cache
from permllm.testing.device import simulated_device
from permllm.testing.models import tiny_model


def test_a_window_has_the_sums_of_the_calibration_sequences_alone(loop_of) -> None:
    loop = loop_of(window=2)
    sums, _ = loop.gathering.of_window(range(2), [TOKENS, GRAM])
    assert set(sums) == set(loop.decoder.groups)
    assert {float(one["tokens"]) for one in sums.values()} == {4 * 12}
    assert {float(one["sequences"]) for one in sums.values()} == {4}
    calls = loop.decoder.embed(loop.sequences.tokens[:4])
    _, expected = loop.decoder.statistics(0, calls.hidden, calls, [GRAM])
    for name, one in expected.items():
        torch.testing.assert_close(sums[name]["gram"], one["gram"], rtol=1e-4, atol=1e-4)


def test_only_what_is_missing_is_gathered(loop_of, tmp_path: Path) -> None:
    reused: list[str] = []
    stages = Stages(Cache(tmp_path), on_reuse=lambda stage, seconds: reused.append(stage))
    first, again, other = (loop_of(stages=stages, tokens=tokens) for tokens in (0, 0, 1))
    made, _ = first.gathering.of_window(range(1), [SQUARE_SUM, TOKENS])
    assert reused == []
    kept, _ = again.gathering.of_window(range(1), [SQUARE_SUM, TOKENS])
    assert reused == ["statistics, layer 0"]
    torch.testing.assert_close(kept, made, rtol=0, atol=0)
    again.gathering.of_window(range(1), [SQUARE_SUM, TOKENS, GRAM])
    other.gathering.of_window(range(1), [SQUARE_SUM, TOKENS])
    assert len(reused) == 1


def test_activations_that_overflow_are_no_fault_of_a_metric(loop_of) -> None:
    loop = loop_of(window=2)
    # What the second layer reads is infinite, though no weight is.
    loop.decoder.layers[0].register_forward_hook(lambda module, args, output: output / 0)
    first = next(group for group in loop.decoder.groups.values() if group.layer == 1)
    with pytest.raises(RunFailed, match=f"what {first.linears[0]} reads is not finite"):
        loop.gathering.of_window(range(2), [SQUARE_SUM, TOKENS])


def test_layers_that_visit_do_so_once_for_all_batches(loop_of, brought) -> None:
    sums = {}
    for stream, staying in (("always", ()), ("never", None)):
        decoder = Decoder.trace(tiny_model("llama").to(torch.bfloat16), None, torch.float32)
        decoder.place("cpu", staying)
        loop = loop_of(decoder=decoder, window=2)
        brought.clear()
        sums[stream], _ = loop.gathering.of_window(range(2), [SQUARE_SUM, GRAM, TOKENS])
        layers = {id(one) for layer in decoder.layers for one in layer.parameters()}
        assert {brought[one] for one in layers} == {1 if stream == "always" else 0}
    torch.testing.assert_close(sums["always"], sums["never"], rtol=0, atol=0)


def test_the_next_layer_is_fetched_while_one_runs(loop_of, ahead) -> None:
    wanted = [SQUARE_SUM, TOKENS]
    expected, _ = loop_of(window=2).gathering.of_window(range(2), wanted)
    with simulated_device() as simulated:
        loop = loop_of(window=2, device="cuda")
        loop.decoder.place("cuda", ())
        sums, _ = loop.gathering.of_window(range(2), wanted)
        assert simulated.faults == []
        assert ahead == [1]
        for group, totals in expected.items():
            for name, total in totals.items():
                assert torch.equal(sums[group][name].cpu(), total)
