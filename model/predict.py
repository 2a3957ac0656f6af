"""From films to predictions: the one door through which the services use the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model.calibrate import probabilities
from model.gate import Gate, gate_features
from model.network import ARCHITECTURE, Network
from model.prediction import NEAR_THRESHOLD, NOT_A_CHEST, Finding, Prediction, finding_for
from model.preprocess import model_input
from model.weights import Tensors, WeightsError, WeightsInfo, default_weights, load_weights

BATCH = 32


class Predictor:
    """A loaded network with its calibration, operating point and gate. Not safe for concurrent threads."""

    def __init__(self, info: WeightsInfo, network: Network, gate: Gate, device: torch.device) -> None:
        self.info = info
        self._network = network
        self._gate = gate
        self._device = device

    @classmethod
    def load(cls, path: Path | None = None, device: str | None = None) -> Predictor:
        """Load weights once for a process.

        Parameters
        ----------
        path
            A file written by `hilum train`; default: the weights that ship.
        device
            "cpu", "cuda" or "cuda:N"; default: CUDA when there is one.

        Raises
        ------
        WeightsError
            When the file is missing, changed, of another architecture or incomplete.
        """
        path = path or default_weights()
        info, tensors = load_weights(path)
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            network, gate = assemble(info.architecture, tensors)
        except (RuntimeError, KeyError, ValueError) as fault:
            raise WeightsError(f"{path}: its tensors do not fit a {info.architecture} ({fault})") from fault
        network.to(chosen, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(info, network, gate, chosen)

    def predict(self, films: Sequence[npt.NDArray[Any]]) -> list[Prediction]:
        """Predict for films of any size, in order.

        Parameters
        ----------
        films
            Each (rows, columns) of any real dtype, dark is low (MONOCHROME2).

        Returns
        -------
        list of Prediction
            One a film. Those that the gate refuses have no probability and no activation map.
        """
        found: list[Prediction] = []
        for scored in self._batches(films):
            found += [self._prediction(*each) for each in zip(*scored, strict=True)]
        return found

    def score(self, films: Sequence[npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return calibrated probabilities and gate distances, (n,) float64 each, without refusing anything.

        This is for evaluation, where every film counts; reports are made from `predict`.
        """
        rows = [(scored[0], scored[2]) for scored in self._batches(films)]
        return np.concatenate([row[0] for row in rows]), np.concatenate([row[1] for row in rows])

    def _batches(self, films: Sequence[npt.NDArray[Any]]) -> list[tuple[npt.NDArray[Any], ...]]:
        return [self._forward(films[start : start + BATCH]) for start in range(0, len(films), BATCH)]

    def _forward(self, films: Sequence[npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], ...]:
        """Probabilities (n,), activation maps (n, h, w) and gate distances (n,) of one batch."""
        planes = np.stack([model_input(film, self.info.input_size) for film in films])
        with torch.inference_mode():
            tensor = torch.from_numpy(planes)[:, None].to(self._device, memory_format=torch.channels_last)
            explained = self._network.explain(tensor)
            logits = explained.logits.double().cpu().numpy()
            activation = explained.activation.float().cpu().numpy()
            distances = self._gate.distances(gate_features(explained))
        return probabilities(logits, *self.info.calibration), activation, distances

    def _prediction(
        self, probability: float, activation: npt.NDArray[np.float32], distance: float
    ) -> Prediction:
        distance = float(distance)
        if not distance <= self.info.gate_threshold:
            return Prediction(None, Finding.NOT_ANALYSED, NOT_A_CHEST, None, None, (), distance)
        finding = finding_for(float(probability), self.info.threshold, self.info.indeterminate)
        reason = NEAR_THRESHOLD if finding is Finding.INDETERMINATE else None
        return Prediction(float(probability), finding, reason, shown(activation), None, (), distance)


def shown(activation: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Keep what speaks for pneumonia and scale it to [0, 1]; without any such cell the map is zero."""
    positive = np.maximum(activation, 0.0)
    peak = float(positive.max())
    return np.asarray(positive / peak if peak > 0.0 else positive, np.float32)


def assemble(architecture: str, tensors: Tensors) -> tuple[Network, Gate]:
    """Build network and gate from a weights file's tensors.

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
    return network.eval(), Gate.from_tensors(tensors)
