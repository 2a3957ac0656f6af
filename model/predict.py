"""From films to predictions: the one door through which the services use the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from model.calibrate import probabilities
from model.cuda_engine import cuda_stage_maps
from model.engine import EngineError, StageMaps
from model.gate import Gate, gate_features
from model.hanging import HANGINGS, PUT_RIGHT
from model.locate import Locator, network_input, over_film
from model.network import ARCHITECTURE, Network, exact
from model.onnx_engine import ONNX_RUNTIME, onnx_stage_maps
from model.prediction import NEAR_THRESHOLD, NOT_A_CHEST, Finding, Prediction, finding_for, pattern_for
from model.weights import Tensors, WeightsError, WeightsInfo, default_weights, load_weights

BATCH = 32


class Scores(NamedTuple):
    """The numbers of n films, before anything is concluded from them.

    Attributes
    ----------
    probability
        (n,) float64, calibrated probability of pneumonia.
    bacterial
        (n,) float64, calibrated probability that a pneumonia is bacterial rather than viral.
    gate_distance
        (n,) float64; above the weights' gate threshold a film is no upright frontal chest.
    activation
        (n, h, w) float32, contribution of the network's cells to the log-odds, before calibration, brought
        over the whole film; 0 beyond the frame about the lungs.
    """

    probability: npt.NDArray[np.float64]
    bacterial: npt.NDArray[np.float64]
    gate_distance: npt.NDArray[np.float64]
    activation: npt.NDArray[np.float32]


class Predictor:
    """A loaded network with its calibration, operating point and gate. Not safe for concurrent threads.

    `engine` is what computes the network's body; `engine_fault` why it is not a faster one.
    """

    def __init__(
        self, info: WeightsInfo, locator: Locator, network: Network, gate: Gate, device: torch.device
    ) -> None:
        self.engine, self.engine_fault = "torch", ""
        self._stage_maps: StageMaps = network.stage_maps
        self.info = info
        self.locator = locator
        self._network = network
        self._gate = gate
        self._device = device

    @classmethod
    def load(cls, path: Path | None = None, device: str | None = None, *, fastest: bool = False) -> Predictor:
        """Load weights once for a process.

        Parameters
        ----------
        path
            A file written by `hilum train`; default: the weights that ship.
        device
            "cpu", "cuda" or "cuda:N"; default: CUDA when there is one.
        fastest
            Compute with the fastest engine that gives what torch gives (`model.onnx_engine`,
            `model.cuda_engine`); `engine_fault` says why it is not a faster one. With ONNX Runtime torch
            keeps to one thread in this process: what is left to it is too small to share.

        Raises
        ------
        WeightsError
            When the file is missing, changed, of another architecture or incomplete.
        """
        path = path or default_weights()
        info, tensors = load_weights(path)
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            locator, network, gate = assemble(info.architecture, tensors)
        except (RuntimeError, KeyError, ValueError) as fault:
            raise WeightsError(f"{path}: its tensors do not fit a {info.architecture} ({fault})") from fault
        network.to(chosen, memory_format=torch.channels_last)  # type: ignore[call-overload]
        predictor = cls(info, locator.to(chosen), network, gate, chosen)
        if fastest:
            predictor._choose_engine()
        return predictor

    def _choose_engine(self) -> None:
        size, slopes = self.info.input_size, (self.info.calibration[0], self.info.pattern_calibration[0])
        try:
            if self._device.type == "cuda":
                self._stage_maps, self.engine, self.engine_fault = cuda_stage_maps(
                    self._network, size, max(map(abs, slopes))
                )
            else:
                self._stage_maps, self.engine = onnx_stage_maps(self._network, size), ONNX_RUNTIME
                torch.set_num_threads(1)
        except EngineError as fault:
            self.engine_fault = str(fault)

    @property
    def device(self) -> str:
        """What the network is computed on: a GPU's name, or "CPU"."""
        return torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "CPU"

    @property
    def network(self) -> Network:
        """The network itself, as loaded."""
        return self._network

    def predict(self, films: Sequence[npt.NDArray[Any]]) -> list[Prediction]:
        """Predict for films of any size, in order.

        Parameters
        ----------
        films
            Each (rows, columns) of any real dtype, dark is low (MONOCHROME2).

        Returns
        -------
        list of Prediction
            One a film. Those that the gate refuses have no probability and no activation map, unless they
            are a chest that only hangs wrongly: that one is put right, analysed, and flagged; its activation
            map covers the film as it was given.
        """
        found = self._scored(films) if len(films) else []
        for index, refused in enumerate(found):
            if refused.finding is Finding.NOT_ANALYSED:
                found[index] = self._put_right(films[index]) or refused
        return found

    def score(self, films: Sequence[npt.NDArray[Any]]) -> Scores:
        """Return the numbers alone, as the films lie, without refusing anything.

        This is for evaluation, where every film counts; reports are made from `predict`.
        """
        return Scores(*(np.concatenate(parts) for parts in zip(*self._batches(films), strict=True)))

    def _scored(self, films: Sequence[npt.NDArray[Any]]) -> list[Prediction]:
        return [self._prediction(*each) for each in zip(*self.score(films), strict=True)]

    def _put_right(self, film: npt.NDArray[Any]) -> Prediction | None:
        """Analyse a film that was refused as it lies in the one other hanging that looks like a chest."""
        tried = self._scored([hanging.apply(film) for hanging in HANGINGS])
        hanging, best = min(zip(HANGINGS, tried, strict=True), key=lambda each: each[1].gate_distance)
        if best.activation is None or best.gate_distance > PUT_RIGHT:
            return None
        activation = np.ascontiguousarray(hanging.take_back(best.activation))
        return replace(best, activation=activation, flags=(*best.flags, hanging.flag))

    def _batches(self, films: Sequence[npt.NDArray[Any]]) -> list[Scores]:
        return [self._forward(films[start : start + BATCH]) for start in range(0, len(films), BATCH)]

    def _forward(self, films: Sequence[npt.NDArray[Any]]) -> Scores:
        planes, frames = network_input(self.locator, films, self.info.input_size)
        if self._device.type == "cuda":
            planes = planes.pin_memory()
        with torch.inference_mode(), exact():
            tensor = planes.to(self._device, memory_format=torch.channels_last, non_blocking=True)
            explained = self._network.explained(self._stage_maps(tensor))
            logits, patterns = (each.double().cpu().numpy() for each in (explained.logits, explained.pattern))
            activation = explained.activation.float().cpu().numpy()
            distances = self._gate.distances(gate_features(explained))
        return Scores(
            probabilities(logits, *self.info.calibration),
            probabilities(patterns, *self.info.pattern_calibration),
            distances,
            np.stack([over_film(each, frame) for each, frame in zip(activation, frames, strict=True)]),
        )

    def _prediction(
        self, probability: float, bacterial: float, distance: float, activation: npt.NDArray[np.float32]
    ) -> Prediction:
        distance = float(distance)
        if not distance <= self.info.gate_threshold:
            return Prediction(None, Finding.NOT_ANALYSED, NOT_A_CHEST, None, None, (), distance)
        finding = finding_for(float(probability), self.info.threshold, self.info.indeterminate)
        reason = NEAR_THRESHOLD if finding is Finding.INDETERMINATE else None
        pattern = pattern_for(finding, float(bacterial), self.info.pattern_confidence)
        return Prediction(float(probability), finding, reason, shown(activation), pattern, (), distance)


def shown(activation: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Keep what speaks for pneumonia and scale it to [0, 1]; without any such cell the map is zero."""
    positive = np.maximum(activation, 0.0)
    peak = float(positive.max())
    return np.asarray(positive / peak if peak > 0.0 else positive, np.float32)


def assemble(architecture: str, tensors: Tensors) -> tuple[Locator, Network, Gate]:
    """Build locator, network and gate from a weights file's tensors.

    Raises
    ------
    ValueError, KeyError, RuntimeError
        When the architecture is another one, or a tensor is missing or of another shape.
    """
    if architecture != ARCHITECTURE:
        raise ValueError(f"this version of Hilum runs {ARCHITECTURE}")
    network = Network()
    wanted = network.state_dict()
    missing = network.load_state_dict(
        {name: torch.from_numpy(tensor) for name, tensor in tensors.items() if name in wanted}, strict=False
    ).missing_keys
    # A counter that only training reads is not stored.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing:
        raise KeyError(", ".join(missing))
    return Locator.from_tensors(tensors), network.eval(), Gate.from_tensors(tensors)
