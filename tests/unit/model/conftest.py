"""Synthetic films: enough of a chest for a network of one epoch, and no data outside the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from model.gate import fit_gate, gate_features
from model.locate import Locator
from model.network import ARCHITECTURE, Network
from model.predict import Predictor
from model.weights import save_weights

ABOUT: dict[str, Any] = {
    "name": "synthetic",
    "version": "1",
    "architecture": ARCHITECTURE,
    "input_size": 64,
    "threshold": 0.5,
    "indeterminate": [0.45, 0.55],
    "calibration": [1.5, -0.25],
    "prevalence": 0.5,
    "pattern_calibration": [1.0, 0.0],
    "pattern_confidence": 0.9,
    "population_age_years": [1, 5],
    "gate_threshold": 1.0,
    "trained_on": "synthetic films",
    "class_activation": "exact",
}


def chest(
    rng: np.random.Generator, opaque: bool, rows: int = 96, columns: int = 80
) -> npt.NDArray[np.float64]:
    """Draw two dark lungs beside a bright spine; an opaque one has a bright patch in the right lung."""
    y, x = np.mgrid[0 : 1 : rows * 1j, 0 : 1 : columns * 1j]
    film = 0.6 + 0.05 * rng.standard_normal((rows, columns))
    for centre in (0.28, 0.72):
        film -= 0.4 * np.exp(-((((x - centre) / 0.14) ** 2 + ((y - 0.5) / 0.3) ** 2) ** 2))
    if opaque:
        film += 0.4 * np.exp(-(((x - 0.3) / 0.1) ** 2 + ((y - rng.uniform(0.4, 0.6)) / 0.1) ** 2))
    return film


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve normals and twenty-four pneumonias in the public set's layout, with a poisoned test split."""
    root = tmp_path_factory.mktemp("public")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("NORMAL", "PNEUMONIA")):
        (root / "train" / name).mkdir(parents=True)
        (root / "test" / name).mkdir(parents=True)
        for number in range(12 * (label + 1)):
            grey = np.clip(chest(rng, bool(label)) * 255, 0, 255).astype(np.uint8)
            stem = f"person{number // 2}_bacteria_{number}" if label else f"IM-{number:04d}-0001"
            Image.fromarray(grey).save(root / "train" / name / f"{stem}.jpeg", quality=95)
        (root / "test" / name / "broken.jpeg").write_bytes(b"training must never open this")
    return root


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with a gate that was fitted on random features: everything works, nothing is learnt."""
    torch.manual_seed(3)
    network = Network().eval()
    with torch.no_grad():
        # Batch statistics of real use, so that float16 and the activation map meet real magnitudes.
        network.head.weight.normal_(0.0, 1.0)
        network.head.bias.fill_(0.3)
        rows = gate_features(network.explain(torch.randn(24, 1, 64, 64)))
    gate = fit_gate(rows[:16], rows[16:] + 5.0, rows[:16], seed=0)
    tensors = {
        name: tensor.numpy() for name, tensor in network.state_dict().items() if tensor.is_floating_point()
    }
    path = tmp_path_factory.mktemp("weights") / "synthetic-1.safetensors"
    # So wide a range that this gate refuses nothing.
    wide = {"gate.ranges": np.array([[0.0, 1e9], [0.0, 1e9]], np.float32)}
    save_weights(path, tensors | Locator().tensors() | gate.tensors() | wide, ABOUT)
    return path


@pytest.fixture(scope="session")
def predictor(weights: Path) -> Predictor:
    return Predictor.load(weights, device="cpu")
