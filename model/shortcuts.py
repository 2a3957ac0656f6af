"""What classifiers reach that see no lungs: the measure of the shortcuts that a data folder offers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from model.holdout import HoldOut
from model.nuisances import CORNER, RING

Rows = npt.NDArray[np.float64]
Film = npt.NDArray[np.uint8]

THUMBNAIL = 32
"""Side to which films are reduced before the ring's or the corners' cells are read."""

STYLE = "global grey values"
"""Name of the shortcut that stands for a film's style."""


def shortcut_scores(split: HoldOut) -> dict[str, Rows]:
    """Fit shortcut classifiers on the training side and score the validation side.

    Each is a logistic regression on standardised features, classes weighted alike.

    Returns
    -------
    dict
        By name, (n,) float64 probabilities of pneumonia for the n validation films.
    """
    thumbnails = np.stack([_thumbnail(film) for film in split.films.planes])
    features = {
        "JPEG file size": np.log([[film.path.stat().st_size] for film in split.listed]),
        "border ring": thumbnails[:, _ring()],
        "corners": thumbnails[:, _corners()],
        STYLE: np.stack([statistics(film) for film in split.films.planes]),
    }
    return {name: _scores(rows, split) for name, rows in features.items()}


def statistics(film: Film) -> Rows:
    """Describe a film by what has no place in it: grey values and sharpness, (13,) float64."""
    grey = film.astype(np.float64)
    steps = np.abs(np.diff(grey, axis=1)).mean()
    across, down = np.diff(grey, 2, axis=1)[1:-1], np.diff(grey, 2, axis=0)[:, 1:-1]
    curvature = np.abs(across + down).mean()
    levels = np.percentile(grey, (1, 5, 25, 50, 75, 95, 99))
    black = (film < 5).mean()
    return np.array([grey.mean(), grey.std(), *levels, steps, curvature, curvature / max(steps, 1e-6), black])


def _scores(rows: Rows, split: HoldOut) -> Rows:
    classifier = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000)
    )
    classifier.fit(rows[split.training], split.films.labels[split.training])
    return np.asarray(classifier.predict_proba(rows[split.validation])[:, 1], np.float64)


def _thumbnail(film: Film) -> Rows:
    small = Image.fromarray(film).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small, np.float64)


def _ring() -> npt.NDArray[np.bool_]:
    edge = _near_an_edge(RING)
    return np.asarray(edge[:, None] | edge[None])


def _corners() -> npt.NDArray[np.bool_]:
    edge = _near_an_edge(CORNER)
    return np.asarray(edge[:, None] & edge[None])


def _near_an_edge(share: float) -> npt.NDArray[np.bool_]:
    cells = np.arange(THUMBNAIL)
    return np.asarray(np.minimum(cells, THUMBNAIL - 1 - cells) < share * THUMBNAIL)
