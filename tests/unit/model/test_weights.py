from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from model.predict import Predictor
from model.weights import (
    WeightsError,
    default_weights,
    load_weights,
    read_info,
    save_weights,
)


def test_metadata_and_preprocessing_are_read_without_torch() -> None:
    script = (
        "import sys, model.preprocess, model.prediction; from model.weights import *; "
        "info = read_info(default_weights()); print(info.sha256); "
        "loaded = {'torch', 'torchvision', 'pydicom', 'celery', 'sklearn'} & set(sys.modules); "
        "sys.exit(str(loaded) if loaded else 0)"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert len(answer.stdout.strip()) == 64


def test_the_weights_that_ship_say_what_they_are_for() -> None:
    info = read_info(default_weights())
    assert info.population_age_years == (1.0, 5.0)
    assert info.population_views == ("AP",)
    assert 0.0 < info.threshold < 1.0
    assert info.indeterminate is not None
    assert info.indeterminate[0] < info.threshold < info.indeterminate[1]
    assert "Kermany" in info.trained_on
    assert default_weights().name == f"{info.name}-{info.version}.safetensors"
    assert default_weights().stat().st_size < 25_000_000


@pytest.mark.parametrize("position", [4, 60, -1, -5000])
def test_one_changed_byte_is_refused(weights: Path, tmp_path: Path, position: int) -> None:
    changed = bytearray(weights.read_bytes())
    changed[position] ^= 1
    copy = tmp_path / weights.name
    copy.write_bytes(changed)
    shutil.copy(weights.with_name(weights.name + ".sha256"), tmp_path)
    with pytest.raises(WeightsError, match=r"restore both from a trusted copy"):
        read_info(copy)
    with pytest.raises(WeightsError, match=r"restore both from a trusted copy"):
        Predictor.load(copy)


def test_a_file_without_its_hash_beside_it_is_read(weights: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(weights, tmp_path))
    assert read_info(copy) == read_info(weights)


@pytest.mark.parametrize(
    "content", [b"", b"short", b"\xff" * 200, b"\x10\x00\x00\x00\x00\x00\x00\x00not json either."]
)
def test_what_is_no_safetensors_file_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a safetensors file"):
        read_info(path)


class _Payload:
    """Leaves a file behind when somebody unpickles it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.trace,)  # type: ignore[return-value]


@pytest.mark.parametrize("way", ["pickle", "torch"])
def test_a_pickle_under_the_name_of_weights_is_refused_and_not_run(tmp_path: Path, way: str) -> None:
    trace = tmp_path / "ran"
    path = tmp_path / "a.safetensors"
    if way == "pickle":
        path.write_bytes(pickle.dumps(_Payload(trace)))
    else:
        torch.save(_Payload(trace), path)
    # Its hash is right: whoever swaps the file may write that too.
    path.with_name(path.name + ".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    for read in (read_info, load_weights, Predictor.load):
        with pytest.raises(WeightsError, match="not a safetensors file"):
            read(path)
    assert not trace.exists()
    with path.open("rb") as stream:  # it would have run
        torch.load(stream, weights_only=False) if way == "torch" else pickle.load(stream)
    assert trace.exists()


def test_a_missing_file_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        read_info(tmp_path / "none.safetensors")


def test_missing_metadata_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({"a": np.zeros(3)}, {"name": json.dumps("a")}))
    with pytest.raises(WeightsError, match=r"says nothing about version, architecture"):
        read_info(path)


def test_weights_may_say_which_patients_views_and_scanners_they_were_validated_on(
    weights: Path, tmp_path: Path
) -> None:
    info, tensors = load_weights(weights)
    about = {name: value for name, value in asdict(info).items() if name != "sha256"}
    said = {"population_sexes": ("F",), "population_views": ("AP", "PA"), "population_scanners": ("X 1",)}
    assert asdict(save_weights(tmp_path / "a.safetensors", tensors, about | said)).items() >= said.items()
    old = {name: value for name, value in about.items() if name not in said}
    silent = save_weights(tmp_path / "b.safetensors", tensors, old)
    assert (silent.population_sexes, silent.population_views, silent.population_scanners) == ((), (), ())


def test_metadata_of_another_kind_is_refused(weights: Path, tmp_path: Path) -> None:
    info, tensors = load_weights(weights)
    about = {name: value for name, value in asdict(info).items() if name != "sha256"}
    with pytest.raises(WeightsError, match="cannot be understood"):
        save_weights(tmp_path / "a.safetensors", tensors, {**about, "indeterminate": [0.45, None]})


def test_a_changed_byte_is_refused_without_the_hash_beside_it(weights: Path, tmp_path: Path) -> None:
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="a byte has changed"):
        load_weights(path)


def test_tensors_that_do_not_fit_are_refused(weights: Path, tmp_path: Path) -> None:
    info, tensors = load_weights(weights)
    about = {name: value for name, value in asdict(info).items() if name != "sha256"}
    renamed = {
        name.replace("stages.0.0.conv1.weight", "stages.0.0.conv1.weighs"): tensors[name] for name in tensors
    }
    path = tmp_path / "a.safetensors"
    save_weights(path, renamed, about)
    with pytest.raises(WeightsError, match=r"do not fit .*stages\.0\.0\.conv1\.weight"):
        Predictor.load(path)
