"""Faster ways to compute the network's body, and the check that each gives what torch gives.

`model.onnx_engine` computes on processors, `model.cuda_engine` on a GPU. Both make what they need from the
loaded network when a process starts and keep nothing on disk that could be taken for a model: the weights'
hash stays the model's only identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from model.network import Explained, Network, exact

StageMaps = Callable[[torch.Tensor], list[torch.Tensor]]
"""What `Network.stage_maps` does."""

_CELLS = (5, 20, 80)
"""Cells along a side of the random films, so that all layers of the network have something to see."""


class Tolerance(NamedTuple):
    """Largest differences from torch: of any value of the maps, and of any log-odds."""

    maps: float
    log_odds: float


class EngineError(Exception):
    """The engine cannot be used for these weights on this machine; torch can."""


def hold_against_torch(network: Network, run: StageMaps, size: int, allowed: Tolerance, name: str) -> None:
    """Compare an engine with torch on random films.

    Parameters
    ----------
    network
        In evaluation mode, on the device of the engine.
    size
        Side of its input in pixels.
    name
        What the engine is called.

    Raises
    ------
    EngineError
        When they differ by more than is allowed.
    """
    maker = torch.Generator().manual_seed(0)
    coarse = [torch.randn(4, 1, cells, cells, generator=maker) for cells in _CELLS]
    films = torch.cat([nn.functional.interpolate(each, size, mode="bilinear") for each in coarse])
    films = films.to(network.head.bias.device, memory_format=torch.channels_last)
    with torch.inference_mode(), exact():
        expected, found = network.explained(network.stage_maps(films)), network.explained(run(films))
    for what, most, ours, theirs in (
        ("maps", allowed.maps, found.maps, expected.maps),
        ("log-odds", allowed.log_odds, _log_odds(found), _log_odds(expected)),
    ):
        worst = max(float((one - other).abs().max()) for one, other in zip(ours, theirs, strict=True))
        if not worst <= most:
            raise EngineError(f"{name} differs from torch by {worst:.2g} in its {what} (allowed {most:.2g})")


def _log_odds(explained: Explained) -> tuple[torch.Tensor, ...]:
    return explained.logits, explained.pattern
