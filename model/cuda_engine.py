"""The body of the network on a GPU: its convolutions in half precision, all of it launched as one CUDA graph.

A small network's kernels are soon done, so that launching some sixty of them one by one is what would take
the time; a graph launches them at once. It is captured for one number of films and always run for so many:
with other numbers cuDNN picks other kernels, and a film's score would depend, in its fourth decimal, on what
it came with.

Kernels are stored at half precision, so nothing is lost by computing with them so; normalisation, which would
have to be rounded anew where it is folded into them, and sums stay in single precision.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from model.engine import EngineError, StageMaps, Tolerance, hold_against_torch
from model.network import Network, exact

FILMS = 8
"""Films that one launch computes."""

MOST = 1e-3
"""Largest change of a calibrated probability against torch."""

_HALF, _SINGLE = "CUDA graph in half precision", "CUDA graph"
_WARMING = 3


def cuda_stage_maps(network: Network, size: int, slope: float) -> tuple[StageMaps, str, str]:
    """Return what does `Network.stage_maps` fastest, with no probability further than `MOST` from torch's.

    That is checked on random films, which are no films of a site: `deploy/decisions.md` has what was measured
    on chests.

    Parameters
    ----------
    network
        In evaluation mode, on the GPU.
    size
        Side of its input in pixels.
    slope
        The steepest of the calibrations: a probability moves by a quarter of it, times the log-odds, at most.

    Returns
    -------
    tuple
        What computes; its name; why it is not the faster one in half precision, or "".

    Raises
    ------
    EngineError
        When the GPU cannot capture a graph, or computes something else than torch.
    """
    log_odds = 4.0 * MOST / max(slope, MOST)
    try:
        # Values up to 16 may differ by two units in the last place of half precision.
        run = _checked(in_half(network), network, size, Tolerance(2.0**-6, log_odds), _HALF)
    except EngineError as fault:
        single = Tolerance(1e-3, min(1e-3, log_odds))
        return _checked(network, network, size, single, _SINGLE), _SINGLE, str(fault)
    return run, _HALF, ""


def _checked(body: Network, network: Network, size: int, allowed: Tolerance, name: str) -> StageMaps:
    try:
        run = Graphed(body, size)
        hold_against_torch(network, run, size, allowed, name)
    except RuntimeError as fault:  # torch's class for whatever CUDA and cuDNN say
        raise EngineError(f"{name} cannot run these weights: {fault}") from fault
    return run


class Graphed:
    """What does `Network.stage_maps` by a graph of `FILMS` films.

    Raises
    ------
    RuntimeError
        When the GPU cannot run or capture it.
    """

    def __init__(self, network: Network, size: int) -> None:
        device = network.head.bias.device
        # The graph reads both where they lie: they live as long as it does.
        self._network = network
        films = torch.zeros(FILMS, 1, size, size, device=device)
        self._films = films.to(memory_format=torch.channels_last)
        self._replay, self._stages = _captured(self._compute, device)

    def __call__(self, films: torch.Tensor) -> list[torch.Tensor]:
        """Return the map of every stage of (n, 1, size, size) films."""
        found = []
        for start in range(0, len(films), FILMS):
            part = films[start : start + FILMS]
            self._films[: len(part)].copy_(part)
            self._replay()
            found.append([maps[: len(part)].clone() for maps in self._stages])
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    def _compute(self) -> list[torch.Tensor]:
        return self._network.stage_maps(self._films)


class _InHalf(nn.Module):
    """A convolution in half precision between values in single precision."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self._convolution = convolution.half()

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self._convolution(maps.half())
        return found.float()


def in_half(network: Network) -> Network:
    """Return a copy whose convolutions compute in half precision."""
    body = copy.deepcopy(network)
    for layer in list(body.modules()):
        for name, part in list(layer.named_children()):
            if isinstance(part, nn.Conv2d):
                setattr(layer, name, _InHalf(part))
    return body


def _captured(
    compute: Callable[[], list[torch.Tensor]], device: torch.device
) -> tuple[Callable[[], None], list[torch.Tensor]]:
    """Return what computes anew into the same tensors, and these; what it reads must stay where it is."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.inference_mode(), exact():
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream = torch.cuda.current_stream()
        beside.wait_stream(stream)
        with torch.cuda.stream(beside):  # where libraries take their memory, before it is fixed
            for _ in range(_WARMING):
                compute()
        stream.wait_stream(beside)
        with torch.cuda.graph(graph):
            stages = compute()
    return graph.replay, stages
