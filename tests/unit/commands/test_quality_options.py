"""The command line of quality names what it takes."""

from service.commands.main import _GROUPED_BY
from service.core.quality import By


def test_every_grouping_is_named() -> None:
    assert set(_GROUPED_BY.rstrip(".").replace(" or ", ", ").split(", ")) == set(By)
