"""Weights on disk: one safetensors file whose SHA-256 is the model's only identity.

No torch here. The metadata in the file's header says everything that serving needs beside the tensors; next
to the file lies `<file>.sha256`, as `sha256sum` writes it, and a file that does not match it is refused.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

SHIPPED = Path(__file__).with_suffix("")
"""Folder `model/weights/`, where the weights that ship lie."""

Tensors = dict[str, npt.NDArray[Any]]


_CONTENT = "content_sha256"
"""Metadata key: the file says itself what its content was."""


_MAY_BE_MISSING = ("population_sexes", "population_views", "population_scanners")
_SAID_ELSEWHERE = {
    # pneumonia 0.3.0, from before weights could say it: "paediatric AP chest films" is all of it in words.
    "cdd3f3579f5edbb250cbb5d89fced9875503fba187ad3447b91696487129ef1f": {"population_views": ("AP",)},
}


class WeightsError(Exception):
    """Weights that cannot be used. The message tells an administrator which file, why, and what to do."""


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file says about itself.

    Attributes
    ----------
    sha256
        Of the whole file, computed when it is read; lower-case hexadecimal.
    input_size
        Side of the network's square input in pixels.
    threshold
        Operating point: a calibrated probability at or above it is a positive.
    indeterminate
        Open interval of calibrated probabilities around the threshold without a finding, or None.
    calibration
        Platt's slope and intercept: probability = sigmoid(slope * logit + intercept).
    prevalence
        Share of pneumonia for which the probability is calibrated.
    pattern_calibration
        Slope and intercept of the second head: probability that a pneumonia is bacterial.
    pattern_confidence
        The pattern of a positive is named when the probability of the likelier one is at least this.
    population_age_years
        Youngest and oldest age for which the weights were validated, both included.
    gate_threshold
        Largest `Prediction.gate_distance` of a film that is analysed.
    trained_on
        The data, in words.
    class_activation
        How the activation map is computed, in words.
    population_sexes, population_views, population_scanners
        Patient's Sex (F, M, O), View Position, and manufacturer with model name of the films that the weights
        were validated on; empty where that was not recorded.
    """

    name: str
    version: str
    sha256: str
    architecture: str
    input_size: int
    threshold: float
    indeterminate: tuple[float, float] | None
    calibration: tuple[float, float]
    prevalence: float
    pattern_calibration: tuple[float, float]
    pattern_confidence: float
    population_age_years: tuple[float, float]
    gate_threshold: float
    trained_on: str
    class_activation: str
    population_sexes: tuple[str, ...] = ()
    population_views: tuple[str, ...] = ()
    population_scanners: tuple[str, ...] = ()


def default_weights() -> Path:
    """Return the weights that ship with Hilum.

    Raises
    ------
    WeightsError
        When the installation carries none, or more than one.
    """
    found = sorted(SHIPPED.glob("*.safetensors"))
    if len(found) != 1:
        raise WeightsError(
            f"{SHIPPED}: expected one .safetensors file, found {len(found)}; "
            "reinstall Hilum or name the weights (HILUM_WEIGHTS, --weights)"
        )
    return found[0]


def read_info(path: Path) -> WeightsInfo:
    """Read what a weights file says about itself, and check its hash where `<file>.sha256` lies beside it.

    Raises
    ------
    WeightsError
        When the file is missing, changed, no safetensors file, or lacks metadata.
    """
    return _info(path, _checked_bytes(path))


def load_weights(path: Path) -> tuple[WeightsInfo, Tensors]:
    """Read metadata and tensors; hash and content come from the same bytes, read once.

    Returns
    -------
    tuple
        The metadata, and the tensors by name; floats of half precision are widened to float32.

    Raises
    ------
    WeightsError
        As `read_info`.
    """
    content = _checked_bytes(path)
    info = _info(path, content)
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError) as fault:
        raise WeightsError(f"{path}: not a readable safetensors file ({fault})") from fault
    return info, {
        name: tensor.astype(np.float32) if tensor.dtype == np.float16 else tensor
        for name, tensor in tensors.items()
    }


def save_weights(
    path: Path, tensors: Mapping[str, npt.NDArray[Any]], about: Mapping[str, Any]
) -> WeightsInfo:
    """Write a weights file and `<file>.sha256` beside it.

    Parameters
    ----------
    path
        Written under a temporary name first, then renamed.
    tensors
        By name.
    about
        A value for every field of `WeightsInfo` but sha256.

    Returns
    -------
    WeightsInfo
        As read back from the file.
    """
    metadata = {name: json.dumps(value) for name, value in sorted(about.items())}
    arrays = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    metadata[_CONTENT] = _content_digest(save(arrays, metadata))
    content = save(arrays, metadata)
    info = _info(path, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    for target, piece in ((path, content), (_sidecar(path), f"{info.sha256}  {path.name}\n".encode())):
        half_written = target.with_name(target.name + ".tmp")
        half_written.write_bytes(piece)
        half_written.replace(target)
    return info


def _content_digest(content: bytes) -> str:
    """SHA-256 over header and tensors of a safetensors file, without the digest itself."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.get("__metadata__", {}).pop(_CONTENT, None)
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(memoryview(content)[start:])
    return digest.hexdigest()


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _checked_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as fault:
        raise WeightsError(f"{path}: the weights cannot be read ({fault.strerror})") from fault
    try:
        promised = _sidecar(path).read_text("ascii").split()[:1]
    except FileNotFoundError:
        return content
    except (OSError, UnicodeDecodeError) as fault:
        raise WeightsError(f"{_sidecar(path)}: the hash of the weights cannot be read ({fault})") from fault
    found = hashlib.sha256(content).hexdigest()
    if promised != [found]:
        raise WeightsError(
            f"{path}: the weights are not the file that {_sidecar(path).name} was written for "
            f"(SHA-256 {found[:12]}…, expected {(promised or ['nothing'])[0][:12]}…); "
            "restore both from a trusted copy"
        )
    return content


def _info(path: Path, content: bytes) -> WeightsInfo:
    """Parse the header: 8 bytes of little-endian length, then JSON (safetensors format)."""
    try:
        (length,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + length])
        metadata = header.get("__metadata__", {})
    except (struct.error, ValueError, AttributeError) as fault:
        raise WeightsError(f"{path}: not a safetensors file") from fault
    wanted = [field.name for field in fields(WeightsInfo) if field.name not in ("sha256", *_MAY_BE_MISSING)]
    missing = [name for name in wanted if name not in metadata]
    if missing:
        raise WeightsError(
            f"{path}: the file says nothing about {', '.join(missing)}; "
            "weights for Hilum are written by `hilum train`"
        )
    if metadata.get(_CONTENT) != _content_digest(content):
        raise WeightsError(
            f"{path}: the weights are not as they were written: a byte has changed; restore a trusted copy"
        )
    try:
        values = {name: json.loads(metadata[name]) for name in wanted}
        for name in ("indeterminate", "calibration", "pattern_calibration", "population_age_years"):
            if values[name] is not None:
                low, high = values[name]
                values[name] = (float(low), float(high))
        for name in ("threshold", "prevalence", "pattern_confidence", "gate_threshold"):
            values[name] = float(values[name])
        values["input_size"] = int(values["input_size"])
        sha256 = hashlib.sha256(content).hexdigest()
        values |= _SAID_ELSEWHERE.get(sha256, {})
        for name in _MAY_BE_MISSING:
            if name in metadata:
                values[name] = tuple(str(each) for each in json.loads(metadata[name]))
    except (TypeError, ValueError) as fault:
        raise WeightsError(f"{path}: its metadata cannot be understood ({fault})") from fault
    return WeightsInfo(sha256=sha256, **values)
