"""Which linears are pruned, and how."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch

from permllm.core.patterns import Pattern
from permllm.core.statistics import GRAM, SQUARE_SUM, TOKENS
from permllm.errors import UserError
from permllm.metrics.magnitude import Magnitude
from permllm.metrics.ria import Ria
from permllm.metrics.wanda import Wanda
from permllm.models.decoder import Decoder
from permllm.pipeline.reading import read_mapping
from permllm.pipeline.schema import Pipeline
from permllm.pruners.sparsegpt import SparseGpt
from permllm.registry import Registry
from permllm.runner.selection import check_glob, needed, pruned_groups, settings_of, settle
from permllm.testing.models import tiny_model

UP = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder.trace(tiny_model("llama"))


def pipeline(pattern: str = "2:4", **layers: Any) -> Pipeline:
    data = {"model": {"source": "directory", "path": "."}, "pattern": pattern, "layers": layers}
    return read_mapping(data, Registry.load())


def test_later_overrides_win_and_null_keeps() -> None:
    layers = {
        "skip": ["*.up_proj"],
        "overrides": [
            {"match": "model.layers.0.*", "skip": False, "metric": "ria"},
            {"match": "*.up_proj", "pattern": "1:4"},
            {"match": UP, "pruner": "sparsegpt"},
        ],
    }
    chosen = settings_of(UP, pipeline(**layers))
    assert chosen is not None
    assert (chosen.pattern, chosen.metric, chosen.pruner) == (Pattern(1, 4), Ria(), SparseGpt())
    assert settings_of(UP.replace("0", "1"), pipeline(**layers)) is None
    other = settings_of("model.layers.1.mlp.gate_proj", pipeline(**layers))
    assert other is not None
    assert (other.pattern, other.metric) == (Pattern(2, 4), Wanda())


def test_a_glob_covers_what_is_inside_a_module() -> None:
    assert settings_of(UP, pipeline(skip=["model.layers.0.mlp"])) is None
    assert settings_of(UP, pipeline(skip=["model.layers.0"])) is None
    assert settings_of(UP, pipeline(skip=["layers.0.mlp"])) is not None


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ({"pattern": "3:5"}, r"has 32 input channels, which 5 .* does not divide", "layers.skip"),
        ({"skip": ["*"]}, "nothing is left to prune", None),
        ({"skip": ["*.upproj"]}, r"'\*\.upproj' matches no linear", r"\*.up_proj"),
        ({"skip": [UP.replace("up_proj", "up_prj")]}, "matches no linear", UP),
    ],
)
def test_what_does_not_fit_is_refused_with_a_way_out(
    decoder: Decoder, change: dict[str, Any], message: str, hint: str | None
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        settle(decoder, pipeline(**change))
    assert hint is None or hint.replace("\\", "") in str(caught.value.hint)


@pytest.mark.parametrize(
    ("glob", "near"),
    [
        ("model.layer.0.*", "model.layers.0.*"),
        ("model.layers.0.self_atn.*", "model.layers.0.self_attn.*"),
        ("modle.layers.*.mlp.*", "model.layers.*.mlp.*"),
        ("*.upproj", "*.up_proj"),
        ("model.layers.1.mlp.up_prj", "model.layers.1.mlp.up_proj"),
    ],
)
def test_the_nearest_glob_matches(decoder: Decoder, glob: str, near: str) -> None:
    with pytest.raises(UserError) as caught:
        check_glob(glob, list(decoder.linears))
    assert f"did you mean '{near}'?" in str(caught.value.hint)
    check_glob(near, list(decoder.linears))


def test_naming_the_head_does_no_harm(decoder: Decoder) -> None:
    assert set(settle(decoder, pipeline(skip=["lm_head"]))) == set(decoder.linears)


def test_a_pruned_model_is_refused_only_if_no_linear_has_more_left() -> None:
    model = tiny_model("llama")
    decoder = Decoder.trace(model)
    for name in decoder.linears:
        decoder.weight(name)[:, ::2] = 0
    with pytest.raises(UserError, match=r"pruned already.*50\.0% are zero"):
        settle(decoder, pipeline())
    assert settle(decoder, pipeline("1:4"))
    with torch.no_grad():
        decoder.weight(UP)[0, 0] = 1.0
    assert settle(decoder, pipeline())


def test_groups_lose_the_linears_that_stay_dense(decoder: Decoder) -> None:
    settings = settle(decoder, pipeline(skip=["*.k_proj", "*.down_proj"]))
    groups = pruned_groups(decoder, settings, range(1, 2))
    members = sorted(linear.split(".")[-1] for g in groups.values() for linear in g.linears)
    assert members == ["gate_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert all(group.layer == 1 for group in groups.values())


def test_one_group_cannot_have_two_patterns(decoder: Decoder) -> None:
    settings = settle(decoder, pipeline())
    settings[UP] = attrs.evolve(settings[UP], pattern=Pattern(1, 4))
    with pytest.raises(UserError, match=r"share one permutation.* not 1:4 and 2:4"):
        pruned_groups(decoder, settings, range(2))


def test_statistics_are_gathered_once() -> None:
    wanted = needed([Wanda(), Ria(), Magnitude(), SparseGpt()])
    assert [statistic.name for statistic in wanted] == [s.name for s in (SQUARE_SUM, TOKENS, GRAM)]


def test_two_statistics_of_one_name_are_refused() -> None:
    impostor = attrs.evolve(GRAM, name=SQUARE_SUM.name)
    with pytest.raises(UserError, match="two components mean different statistics"):
        needed([], (impostor,))
