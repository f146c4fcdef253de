"""Homes of parameters: copies come and go, homes stay what they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch

from permllm.models.decoder import Decoder
from permllm.models.residency import ROOM, Residency
from permllm.testing.device import SimulatedDevice, simulated_device
from permllm.testing.models import tiny_model

CPU = torch.device("cpu")


@pytest.fixture
def model() -> torch.nn.Module:
    return tiny_model("llama-gqa").to(torch.bfloat16)


@pytest.fixture
def residency(model: torch.nn.Module) -> Residency:
    return Residency(model, list(model.model.layers), torch.float32)


def types(module: torch.nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in module.parameters()}


def test_what_stays_is_wide_and_the_rest_is_at_home(model, residency) -> None:
    homes = {name: one.data for name, one in model.named_parameters()}
    first, second = residency.layers
    residency.place(CPU, [0])
    assert types(first) == types(model.lm_head) == {torch.float32}
    assert types(second) == {torch.bfloat16}
    residency.place(CPU, [1])
    assert types(first) == {torch.bfloat16}
    assert types(second) == {torch.float32}
    residency.place(CPU, [])
    for name, one in model.named_parameters():
        assert residency.home(one).data_ptr() == homes[name].data_ptr(), name
        assert torch.equal(one.to(torch.bfloat16), homes[name]), name


def test_a_layer_visits_for_a_block_unless_it_stays(model, residency) -> None:
    residency.place(CPU, [0])
    for index, layer in enumerate(residency.layers):
        with suppress(KeyError), residency.visiting(layer):
            assert types(layer) == {torch.float32}
            raise KeyError
        assert types(layer) == ({torch.float32} if index == 0 else {torch.bfloat16})


def test_nothing_is_copied_that_computes_at_home(model) -> None:
    wide = model.float()
    residency = Residency(wide, list(wide.model.layers), torch.float32)
    before = {one: one.data_ptr() for one in wide.parameters()}
    assert residency.copied_bytes(range(2), CPU) == 0
    residency.place(CPU, range(2))
    assert {one: one.data_ptr() for one in wide.parameters()} == before
    assert residency.copied_bytes(range(2), torch.device("meta")) == sum(
        one.numel() * 4 for layer in residency.layers for one in layer.parameters()
    )


def test_copies_count_in_the_type_of_the_computation(residency) -> None:
    entries = sum(one.numel() for one in residency.layers[1].parameters())
    assert residency.copied_bytes([1], CPU) == 4 * entries
    residency.place(CPU, [1])
    assert residency.copied_bytes([1], CPU) == 4 * entries, "what stays counts as well"


def test_another_home_is_taken_at_once_and_given_back(model, residency) -> None:
    residency.place(CPU, [0])
    weight = model.model.layers[0].mlp.up_proj.weight
    other = torch.ones_like(weight, dtype=torch.bfloat16)
    before = residency.replace(weight, other)
    assert weight.dtype == torch.float32
    assert bool((weight == 1).all())
    residency.place(CPU, [])
    assert weight.data_ptr() == other.data_ptr()
    assert residency.replace(weight, before).data_ptr() == other.data_ptr()
    assert weight.data_ptr() == before.data_ptr()


def test_a_streamed_model_computes_what_a_wide_one_does(model) -> None:
    tokens = torch.arange(24).view(2, 12)
    wide = tiny_model("llama-gqa").to(torch.bfloat16).float()
    expected = wide(tokens).logits
    decoder = Decoder.trace(model, tokens, torch.float32)
    decoder.place(CPU, ())
    with decoder.streamed():
        assert torch.equal(model(tokens).logits, expected)
    decoder.place(CPU)
    assert torch.equal(model(tokens).logits, expected)
    name = next(iter(decoder.linears))
    assert decoder.weight(name).dtype == torch.float32
    half = {name: decoder.weight(name) * 0.5}
    with decoder.substituted(half), decoder.streamed():
        assert not torch.equal(model(tokens).logits, expected)
        with decoder.dense():
            assert torch.equal(model(tokens).logits, expected)
        assert not torch.equal(model(tokens).logits, expected)
    assert torch.equal(model(tokens).logits, expected)


def test_nested_substitutions_end_one_after_the_other(model) -> None:
    decoder = Decoder.trace(model, None, torch.float32)
    one, two, *_ = decoder.linears
    before = {name: decoder.weight(name).clone() for name in (one, two)}
    with decoder.substituted({one: before[one] * 2, two: before[two] * 2}):
        with decoder.substituted({one: before[one] * 3}):
            assert torch.equal(decoder.weight(one), before[one] * 3)
            with decoder.dense():
                assert torch.equal(decoder.weight(one), before[one])
                assert torch.equal(decoder.weight(two), before[two])
        assert torch.equal(decoder.weight(one), before[one] * 2)
    for name in before:
        assert torch.equal(decoder.weight(name), before[name])


def test_buffers_are_no_narrower_than_the_computation(model, residency) -> None:
    model.register_buffer("table", torch.ones(3, dtype=torch.bfloat16))
    model.register_buffer("exact", torch.ones(3, dtype=torch.float64))
    model.register_buffer("places", torch.arange(3))
    residency.place(CPU, [])
    assert (model.table.dtype, model.exact.dtype, model.places.dtype) == (
        torch.float32,
        torch.float64,
        torch.int64,
    )


@pytest.fixture
def simulated() -> Iterator[SimulatedDevice]:
    with simulated_device() as device:
        yield device
        assert device.faults == []


def fetched(residency: Residency) -> None:
    """Wait for what is on its way."""
    assert residency._ahead is not None
    residency._ahead[1].made.result()


def wide_bytes(layer: torch.nn.Module) -> int:
    return sum(4 * one.numel() for one in layer.parameters())


def test_the_next_layer_is_copied_while_one_is_there(residency, simulated) -> None:
    first, second = residency.layers
    residency.place(simulated.device, [])
    around, home = simulated.live_bytes, {one: one.data for one in second.parameters()}
    with residency.visiting(first, second):
        fetched(residency)
        assert simulated.live_bytes - around == wide_bytes(first) + wide_bytes(second)
        assert types(second) == {torch.bfloat16}
    assert simulated.live_bytes - around == wide_bytes(second)
    copied = simulated.copied_to_device
    with residency.visiting(second):
        assert simulated.copied_to_device == copied
        for one in second.parameters():
            assert one.is_cuda
            assert torch.equal((one * 2).cpu(), home[one].float() * 2)
    assert simulated.live_bytes == around


def test_what_is_not_wanted_after_all_is_let_go(model, residency, simulated) -> None:
    first, second = residency.layers
    residency.place(simulated.device, [])
    around = simulated.live_bytes

    def fetch() -> None:
        with residency.visiting(first, second):
            fetched(residency)
        assert simulated.live_bytes > around

    fetch()
    with residency.visiting(first):
        assert simulated.live_bytes == around + wide_bytes(first)
    fetch()
    residency.drop_ahead()
    assert simulated.live_bytes == around
    fetch()
    # Another home is taken at once.
    weight = second.mlp.up_proj.weight
    residency.replace(weight, torch.ones_like(weight.data))
    with residency.visiting(second):
        assert bool((weight == 1).all())
    fetch()
    residency.place(CPU, [])
    assert simulated.live_bytes == 0


def test_nothing_is_fetched_where_a_layer_stays_or_a_cpu_computes(residency) -> None:
    first, second = residency.layers
    residency.place(CPU, [])
    with residency.visiting(first, second):
        assert residency._ahead is None
    with simulated_device() as simulated:
        residency.place(simulated.device, [1])
        with residency.visiting(first, second):
            assert residency._ahead is None
        with residency.visiting(first, first):
            assert residency._ahead is None
        residency.place(CPU, [])


@pytest.mark.parametrize("short", [False, True])
def test_nothing_is_fetched_where_the_device_has_no_room_for_many(model, short: bool) -> None:
    residency = Residency(model, list(model.model.layers), torch.float32)
    first, second = residency.layers
    with simulated_device() as simulated:
        residency.place(simulated.device, [])
        simulated.limit = simulated.live_bytes + wide_bytes(first) + ROOM * wide_bytes(second)
        simulated.limit -= short
        torch.cuda.empty_cache()
        with residency.visiting(first, second):
            assert (residency._ahead is None) == short
        residency.place(CPU, [])


def test_what_the_thread_fails_at_is_met_where_the_layer_is_wanted(
    residency, simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = residency.layers
    residency.place(simulated.device, [])
    around, visit = simulated.live_bytes, residency.visit

    def fails(*tensors: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if non_blocking:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return visit(*tensors)

    monkeypatch.setattr(residency, "visit", fails)
    with residency.visiting(first, second):
        pass
    with residency.visiting(second):
        assert types(second) == {torch.float32}
    with residency.visiting(first, second):
        pass
    simulated.limit = simulated.live_bytes + wide_bytes(second) // 2
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        residency.visiting(second).__enter__()
    assert types(second) == {torch.bfloat16}
    assert simulated.live_bytes == around


def test_a_model_that_is_called_fetches_its_next_layer_and_keeps_none(model, simulated) -> None:
    tokens = torch.arange(24).view(2, 12)
    decoder = Decoder.trace(model, tokens, torch.float32)
    expected = model.float()(tokens).logits
    model.bfloat16()
    decoder.place(simulated.device, ())
    around, copied = simulated.live_bytes, simulated.copied_to_device
    with torch.no_grad(), decoder.streamed():
        assert torch.equal(model(tokens.to("cuda")).logits.cpu(), expected)
        layers = sum(map(wide_bytes, decoder.layers)) // 2
        assert simulated.copied_to_device - copied == layers + tokens.nbytes
        hook = decoder.layers[0].register_forward_hook(lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(tokens.to("cuda"))
        hook.remove()
    assert simulated.live_bytes == around
