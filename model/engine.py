"""The body of the network on a faster engine than torch, for processors.

ONNX Runtime runs the same convolutions in less time than eager torch, most of all on one thread. Its graph is
made here from the loaded network, batch normalisation folded into the convolutions (Jacob et al., CVPR 2018,
3.2), and held against torch on fixed films before it is used: the weights' hash stays the model's only
identity. Making it takes a quarter of a second, so nothing is kept on disk that could be taken for a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from model.network import WIDTHS, Block, Network

ENGINES = ("torch", "onnxruntime")
TOLERANCE = 1e-3
"""Largest difference of any value of the maps, and of any log-odds, from torch's."""

StageMaps = Callable[[torch.Tensor], list[torch.Tensor]]
_OPSET = 17
_CHECKED_FILMS = 3


class EngineError(Exception):
    """The engine cannot be used for these weights on this machine; torch can."""


def onnx_stage_maps(network: Network, size: int) -> StageMaps:
    """Return what does `Network.stage_maps` with ONNX Runtime.

    Parameters
    ----------
    network
        In evaluation mode, on the CPU.
    size
        Side of its input in pixels, for the films that both are compared on.

    Raises
    ------
    EngineError
        When ONNX Runtime is missing, cannot run the graph, or computes something else than torch.
    """
    try:
        import onnxruntime  # noqa: PLC0415 - two tenths of a second, and optional

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        # Waiting threads would burn the processor time of the other roles.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(_graph(network), options, providers=["CPUExecutionProvider"])
    except Exception as fault:  # ONNX Runtime raises classes of its own, each an Exception
        raise EngineError(f"ONNX Runtime cannot run these weights: {fault}") from fault

    def run(films: torch.Tensor) -> list[torch.Tensor]:
        return [torch.from_numpy(each) for each in session.run(None, {"films": films.contiguous().numpy()})]

    _compare(network, run, size)
    return run


def _compare(network: Network, run: StageMaps, size: int) -> None:
    """Hold the engine against torch.

    Raises
    ------
    EngineError
        When they differ by more than `TOLERANCE`.
    """
    films = torch.from_numpy(
        np.random.default_rng(0).normal(size=(_CHECKED_FILMS, 1, size, size)).astype(np.float32)
    )
    with torch.inference_mode():
        expected, found = network.explained(network.stage_maps(films)), network.explained(run(films))
    pairs = [(expected.logits, found.logits), (expected.pattern, found.pattern)]
    pairs += list(zip(expected.maps, found.maps, strict=True))
    worst = max(float((ours - theirs).abs().max()) for ours, theirs in pairs)
    if not worst <= TOLERANCE:
        raise EngineError(f"ONNX Runtime differs from torch by {worst:.2g} (allowed {TOLERANCE:g})")


def _graph(network: Network) -> bytes:
    """Return the network's body as an ONNX model: films in, the map of every stage out."""
    from onnx import TensorProto, checker, helper  # noqa: PLC0415 - a third of a second
    from onnx.numpy_helper import from_array  # noqa: PLC0415

    nodes: list[Any] = []
    weights: list[Any] = []

    def add(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def convolved(name: str, source: str, convolution: nn.Module, norm: nn.Module) -> str:
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        weight, bias = _folded(convolution, norm)
        weights.extend((from_array(weight, f"{name}.weight"), from_array(bias, f"{name}.bias")))
        return add(
            "Conv",
            [source, f"{name}.weight", f"{name}.bias"],
            name,
            strides=list(convolution.stride),
            pads=[int(side) for side in convolution.padding] * 2,
        )

    def block(name: str, source: str, layer: Block) -> str:
        shortcut = source
        if layer.downsample is not None:
            shortcut = convolved(f"{name}.downsample", source, *layer.downsample)
        out = add("Relu", [convolved(f"{name}.1", source, layer.conv1, layer.bn1)], f"{name}.1.relu")
        out = convolved(f"{name}.2", out, layer.conv2, layer.bn2)
        return add("Relu", [add("Add", [out, shortcut], f"{name}.sum")], f"{name}.out")

    convolution, norm, _, pool = network.stem
    assert isinstance(pool, nn.MaxPool2d)
    maps = add("Relu", [convolved("stem", "films", convolution, norm)], "stem.relu")
    maps = add(
        "MaxPool",
        [maps],
        "stem.pool",
        kernel_shape=[pool.kernel_size] * 2,
        strides=[pool.stride] * 2,
        pads=[pool.padding] * 4,
    )
    stages = []
    for number, stage in enumerate(network.stages):
        for place, layer in enumerate(stage.children()):
            assert isinstance(layer, Block)
            maps = block(f"stage{number}.{place}", maps, layer)
        stages.append(maps)
    values = [helper.make_tensor_value_info("films", TensorProto.FLOAT, ["n", 1, "rows", "columns"])]
    outputs = [
        helper.make_tensor_value_info(
            name, TensorProto.FLOAT, ["n", width, f"{name}.rows", f"{name}.columns"]
        )
        for name, width in zip(stages, WIDTHS, strict=True)
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "body", values, outputs, weights),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=8,
    )
    checker.check_model(model)
    return bytes(model.SerializeToString())


def _folded(
    convolution: nn.Conv2d, norm: nn.BatchNorm2d
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return weight and bias of the one convolution that does what both do in evaluation mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.inference_mode():
        scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        weight = convolution.weight.double() * scale[:, None, None, None]
        bias = norm.bias.double() - norm.running_mean.double() * scale
    return weight.float().numpy(), bias.float().numpy()
