"""Options of components: what their declaration keeps, and what it refuses."""

from __future__ import annotations

import attrs
import pytest

from permllm.option import option


@attrs.frozen
class Options:
    """One of each kind."""

    needed: int = option(help="must be given")
    size: int = option(3, help="in a range", minimum=1, maximum=8)
    kind: str = option("a", help="one of some", choices=("a", "b"))
    many: list[int] = option(factory=list, help="made anew")
    old: int | None = option(None, help="goes", minimum=0, deprecated="use size")


def test_metadata_says_what_was_declared() -> None:
    fields = attrs.fields_dict(Options)
    assert fields["needed"].default is attrs.NOTHING
    assert dict(fields["needed"].metadata) == {"help": "must be given"}
    assert dict(fields["size"].metadata) == {"help": "in a range", "minimum": 1, "maximum": 8}
    assert fields["kind"].metadata["choices"] == ("a", "b")
    assert fields["old"].metadata["deprecated"] == "use size"


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"size": 9}, {"kind": "c"}, {"old": -1}], ids=lambda wrong: str(wrong)
)
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Options(needed=1, **wrong)


@pytest.mark.parametrize("right", [{"size": 1}, {"size": 8}, {"kind": "b"}, {"old": 0}])
def test_the_ends_of_a_range_belong_to_it(right: dict[str, object]) -> None:
    made = Options(needed=1, **right)
    assert all(getattr(made, key) == value for key, value in right.items())


def test_null_passes_every_range() -> None:
    assert Options(needed=1, old=None).old is None


def test_a_factory_shares_nothing() -> None:
    one, other = Options(needed=1), Options(needed=1)
    one.many.append(1)
    assert other.many == []
