"""The body of the network on a GPU: half precision on the tensor cores, launched as one CUDA graph.

A film costs a GPU far less than it costs the processor to launch some sixty kernels one by one; a graph
launches them at once. It is captured for one number of films and always run for so many: with other numbers
cuDNN picks other kernels, and a film's score would depend, in its fourth decimal, on what it came with.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from model.engine import EngineError, StageMaps, Tolerance, folded, hold_against_torch
from model.network import Network

FILMS = 8
"""Films that one launch computes."""

MOST = 1e-3
"""Largest change of a calibrated probability against torch."""

_HALF, _SINGLE = "CUDA graph in half precision", "CUDA graph"
_WARMING = 3


def cuda_stage_maps(network: Network, size: int, slope: float) -> tuple[StageMaps, str, str]:
    """Return what does `Network.stage_maps` fastest, with every probability within `MOST` of torch's.

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
    log_odds = 4.0 * MOST / slope
    try:
        # Values up to 16 may differ by two units in the last place of half precision.
        run = _checked(network, size, torch.float16, Tolerance(2.0**-6, log_odds), _HALF)
    except EngineError as fault:
        single = Tolerance(1e-3, min(1e-3, log_odds))
        return _checked(network, size, torch.float32, single, _SINGLE), _SINGLE, str(fault)
    return run, _HALF, ""


def _checked(network: Network, size: int, kind: torch.dtype, allowed: Tolerance, name: str) -> StageMaps:
    try:
        run = graphed(network, size, kind)
        hold_against_torch(network, run, size, allowed, name)
    except RuntimeError as fault:  # torch's class for whatever CUDA and cuDNN say
        raise EngineError(f"{name} cannot run these weights: {fault}") from fault
    return run


def graphed(network: Network, size: int, kind: torch.dtype) -> StageMaps:
    """Return what does `Network.stage_maps` by a graph of `FILMS` films, computed in `kind`.

    Raises
    ------
    RuntimeError
        When the GPU cannot run or capture it.
    """
    body = folded(network).to(kind)
    device = network.head.bias.device
    films = torch.zeros(FILMS, 1, size, size, device=device).to(memory_format=torch.channels_last)
    replay, stages = _captured(lambda: [maps.float() for maps in body.stage_maps(films.to(kind))], device)

    def run(asked: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for start in range(0, len(asked), FILMS):
            part = asked[start : start + FILMS]
            films[: len(part)].copy_(part)
            replay()
            found.append([maps[: len(part)].clone() for maps in stages])
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    return run


def _captured(
    compute: Callable[[], list[torch.Tensor]], device: torch.device
) -> tuple[Callable[[], None], list[torch.Tensor]]:
    """Return what computes anew into the same tensors, and these."""
    graph = torch.cuda.CUDAGraph()
    # Without benchmarking, cuDNN chooses the same kernels at every start, and a film scores the same.
    flags = torch.backends.cudnn.flags(allow_tf32=False, benchmark=False, deterministic=True)
    with torch.cuda.device(device), torch.inference_mode(), flags:
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
