"""Films a second through the network, and the share of what the hardware could do.

    python -m tests.benchmarks.infer [--device cuda] [--threads N] [--rounds N]

Each way of computing in turn, at batches of 1, 8 and 32, on random input; the median of the rounds. The
roofline is the same device's own matrix product of the same precision (the convolutions are bound by
arithmetic: 1.8 GFLOP a film over 11 MB of weights). On a GPU the last lines are the worker's whole way,
from films of a megapixel to scores, and its largest difference from a processor. Needs `model/`, torch and,
on a processor, onnx and onnxruntime; so it runs from a plain checkout on a machine with a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.cuda_engine import Graphed, in_half
from model.network import Network, exact
from model.onnx_engine import onnx_stage_maps
from model.predict import Predictor

_BATCHES = (1, 8, 32)
_SECONDS = 0.5
Way = Callable[[torch.Tensor], object]


def _ways(predictor: Predictor, device: torch.device) -> dict[str, tuple[Way, torch.dtype]]:
    network, size = predictor._network, predictor.info.input_size
    plain, last = torch.contiguous_format, torch.channels_last

    def eager(layout: torch.memory_format) -> Way:
        return lambda films: network.explain(films.contiguous(memory_format=layout))

    ways: dict[str, tuple[Way, torch.dtype]] = {
        "torch": (eager(plain), torch.float32),
        "torch, channels last (the reference)": (eager(last), torch.float32),
    }
    if device.type == "cpu":
        maps = onnx_stage_maps(network, size)
        ways["ONNX Runtime"] = (lambda films: network.explained(maps(films)), torch.float32)
        return ways

    def graph(body: Network) -> Way:
        maps = Graphed(body, size)
        return lambda films: network.explained(maps(films))

    def autocast(films: torch.Tensor) -> object:
        with torch.autocast("cuda", torch.float16):
            return network.explain(films.contiguous(memory_format=last))

    compiled = torch.compile(network.explain, mode="reduce-overhead")
    ways["CUDA graph in half precision (the worker's)"] = (graph(in_half(network)), torch.float16)
    ways["CUDA graph"] = (graph(network), torch.float32)
    ways["torch, autocast to half precision"] = (autocast, torch.float16)
    ways["compiled, with CUDA graphs"] = (
        lambda films: compiled(films.contiguous(memory_format=last)),
        torch.float32,
    )
    return ways


def _a_second(work: Callable[[], object], device: torch.device) -> float:
    """Return how often a second the work is done."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < _SECONDS:
        work()
        wait()
        done += 1
    return done / (time.perf_counter() - begun)


def _peak(device: torch.device, kind: torch.dtype) -> Callable[[], float]:
    side = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(side, side, device=device, dtype=kind)
    return lambda: _a_second(lambda: matrix @ matrix, device) * 2 * side**3


def _whole_way(device: str) -> None:
    maker = np.random.default_rng(0)
    films = [np.asarray(maker.normal(size=(1024, 1024)), np.float32) for _ in range(8)]
    fast, exact = Predictor.load(device=device, fastest=True), Predictor.load(device="cpu")
    print(f"the worker computes with: {fast.engine} {fast.engine_fault}")
    worst = np.abs(fast.score(films).probability - exact.score(films).probability).max()
    rate = len(films) * _a_second(lambda: fast.score(films), torch.device(device))
    print(f"films of a megapixel to scores: {rate:.1f} a second; a probability differs by {worst:.2g}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    predictor = Predictor.load(device=options.device)
    size = predictor.info.input_size
    ways = _ways(predictor, device)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        predictor._network.explain(torch.zeros(1, 1, size, size, device=device))
    flops = counter.get_total_flops()
    peaks = {kind: _peak(device, kind) for _, kind in ways.values()}
    rates: dict[tuple[str, int], list[float]] = defaultdict(list)
    most: dict[torch.dtype, list[float]] = defaultdict(list)
    with torch.inference_mode(), exact():
        for batch in _BATCHES:
            films = torch.randn(batch, 1, size, size, device=device)
            for way, _ in ways.values():
                way(films)
            for _ in range(options.rounds):
                for name, (way, _) in ways.items():
                    rates[name, batch].append(batch * _a_second(partial(way, films), device))
                for kind, peak in peaks.items():
                    most[kind].append(peak())
    where = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {options.threads} thread(s)"
    )
    print(f"{where}; {size} x {size}, {flops / 1e9:.2f} GFLOP a film; films a second (share of the roofline)")
    for kind, found in most.items():
        print(f"matrix product, {kind}: {statistics.median(found) / 1e9:,.0f} GFLOP/s")
    for name, (_, kind) in ways.items():
        line = [statistics.median(rates[name, batch]) for batch in _BATCHES]
        limit = statistics.median(most[kind])
        shares = "  ".join(
            f"batch {batch}: {rate:8.1f} ({rate * flops / limit:4.0%})"
            for batch, rate in zip(_BATCHES, line, strict=True)
        )
        print(f"{name:<44} {shares}")
    if device.type == "cuda":
        _whole_way(options.device)


if __name__ == "__main__":
    main()
