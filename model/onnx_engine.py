"""The body of the network on ONNX Runtime, for processors.

It runs the same convolutions in less time than eager torch, most of all on one thread. Its graph is made here
from the loaded network in a quarter of a second.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model.engine import EngineError, StageMaps, Tolerance, hold_against_torch
from model.network import WIDTHS, Block, Network

ONNX_RUNTIME = "ONNX Runtime"
TOLERANCE = Tolerance(maps=1e-3, log_odds=1e-3)
_OPSET = 17


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
        graph = _graph(_folded(network))
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as fault:  # ONNX Runtime raises classes of its own, each an Exception
        raise EngineError(f"{ONNX_RUNTIME} cannot run these weights: {fault}") from fault

    def run(films: torch.Tensor) -> list[torch.Tensor]:
        return [torch.from_numpy(each) for each in session.run(None, {"films": films.contiguous().numpy()})]

    hold_against_torch(network, run, size, TOLERANCE, ONNX_RUNTIME)
    return run


def _graph(network: Network) -> bytes:
    """Return the body of a folded network as an ONNX model: films in, the map of every stage out."""
    from onnx import TensorProto, checker, helper  # noqa: PLC0415 - a third of a second
    from onnx.numpy_helper import from_array  # noqa: PLC0415

    nodes: list[Any] = []
    weights: list[Any] = []

    def add(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def convolved(name: str, source: str, convolution: nn.Module) -> str:
        assert isinstance(convolution, nn.Conv2d)
        for part, values in convolution.named_parameters():
            weights.append(from_array(values.detach().numpy(), f"{name}.{part}"))
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
            shortcut = convolved(f"{name}.downsample", source, layer.downsample[0])
        out = add("Relu", [convolved(f"{name}.1", source, layer.conv1)], f"{name}.1.relu")
        out = convolved(f"{name}.2", out, layer.conv2)
        return add("Relu", [add("Add", [out, shortcut], f"{name}.sum")], f"{name}.out")

    convolution, _, _, pool = network.stem
    assert isinstance(pool, nn.MaxPool2d)
    maps = add("Relu", [convolved("stem", "films", convolution)], "stem.relu")
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


def _folded(network: Network) -> Network:
    """Return a copy with batch normalisation inside the convolutions (Jacob et al., CVPR 2018, 3.2)."""
    body = copy.deepcopy(network)
    _fold(body.stem, "0", "1")
    for layer in body.modules():
        if isinstance(layer, Block):
            _fold(layer, "conv1", "bn1")
            _fold(layer, "conv2", "bn2")
            if layer.downsample is not None:
                _fold(layer.downsample, "0", "1")
    return body


def _fold(layer: nn.Module, convolution: str, norm: str) -> None:
    kept: Any = layer.get_submodule(convolution), layer.get_submodule(norm)
    setattr(layer, convolution, fuse_conv_bn_eval(*kept))
    setattr(layer, norm, nn.Identity())
