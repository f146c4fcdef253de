"""Streams go through finished windows, dense and pruned, as the model would."""

from __future__ import annotations

import pytest
import torch

from permllm.models.decoder import Decoder
from permllm.testing.device import simulated_device
from permllm.testing.models import tiny_model


def states(decoder: Decoder, tokens: torch.Tensor, weights: dict[str, torch.Tensor]):
    """The hidden states after the first layer."""
    calls = decoder.embed(tokens)
    with torch.no_grad():
        return decoder.run_layer(0, calls.hidden, calls, weights)


@pytest.mark.parametrize("inputs", ["pruned", "dense"])
def test_streams_are_the_models_hidden_states(loop_of, inputs: str) -> None:
    loop = loop_of(inputs=inputs)
    streams, decoder, tokens = loop.streams, loop.decoder, loop.sequences.tokens
    name = "model.layers.0.mlp.down_proj"
    weights = {name: torch.zeros_like(decoder.weight(name))}
    streams.later(range(1), weights)
    assert streams.pruned is None
    streams.catch_up()
    dense, pruned = states(decoder, tokens, {}), states(decoder, tokens, weights)
    torch.testing.assert_close(streams.dense, dense)
    torch.testing.assert_close(streams.pruned, dense if inputs == "dense" else pruned)
    assert not torch.allclose(dense, pruned)
    before = streams.pruned
    streams.catch_up()
    assert streams.pruned is before


def test_those_who_follow_go_on_by_themselves(loop_of) -> None:
    streams, own = (loop_of(inputs="dense").streams for _ in range(2))
    streams.later(range(1), {})
    own.follow(streams)
    streams.catch_up()
    assert own.dense is None
    own.catch_up()
    assert torch.equal(own.dense, streams.dense)
    later = loop_of(inputs="dense").streams
    later.follow(streams)
    assert later.dense is later.pruned is streams.dense
    assert later.passed == []


def test_batches_begin_with_the_embedded_tokens(loop_of) -> None:
    loop = loop_of()
    rows = torch.arange(1, 5)
    batches = loop.streams.batches(None, rows)
    assert [len(hidden) for hidden, _ in batches] == [3, 1]
    embedded = loop.decoder.embed(loop.sequences.tokens[rows]).hidden
    assert torch.equal(torch.cat([hidden for hidden, _ in batches]), embedded)


@pytest.mark.parametrize("inputs", ["pruned", "dense"])
def test_layers_that_visit_do_so_once_for_all_batches(loop_of, brought, inputs: str) -> None:
    streams = {}
    for stream in ("always", "never"):
        decoder = Decoder.trace(tiny_model("llama").to(torch.bfloat16), None, torch.float32)
        loop = loop_of(decoder=decoder, window=2, inputs=inputs)
        loop.streams.stream = stream
        names = [f"model.layers.{layer}.mlp.up_proj" for layer in range(2)]
        loop.streams.later(range(2), {name: 2 * decoder.weight(name) for name in names})
        brought.clear()
        loop.streams.catch_up()
        streams[stream] = loop.streams
        if stream == "always":
            passes = 1 if inputs == "dense" else 2
            layers = {id(one) for layer in decoder.layers for one in layer.parameters()}
            assert {brought[one] for one in layers} == {passes}
    assert torch.equal(streams["always"].dense, streams["never"].dense)
    assert torch.equal(streams["always"].pruned, streams["never"].pruned)
    assert torch.equal(streams["always"].dense, streams["always"].pruned) == (inputs == "dense")


def test_the_next_layer_is_fetched_while_one_runs(loop_of, ahead) -> None:
    expected = loop_of(window=2)
    expected.streams.later(range(2), {})
    expected.streams.catch_up()
    with simulated_device() as simulated:
        loop = loop_of(window=2, device="cuda")
        loop.streams.stream = "always"
        loop.streams.later(range(2), {})
        loop.streams.catch_up()
        assert simulated.faults == []
        assert torch.equal(loop.streams.dense, expected.streams.dense)
        # One pass for the dense stream, one for the pruned one.
        assert ahead == [1, 1]
        loop.streams.later(range(1), {})
        loop.streams.catch_up()
        assert ahead == [1, 1], "a layer that runs in a later window is not fetched"
