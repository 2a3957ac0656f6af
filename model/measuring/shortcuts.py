"""What classifiers reach that see no lungs: the measure of the shortcuts that a data folder offers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from model.measuring.nuisances import CORNER, RING
from model.training.holdout import HoldOut

Rows = npt.NDArray[np.float64]
Film = npt.NDArray[np.uint8]

THUMBNAIL = 32
"""Side to which films are reduced before the ring's or the corners' cells are read."""

STYLE = "global grey values"
"""Name of the shortcut that stands for a film's style."""

FRAMING = "framing"
"""Name of the shortcut that knows where the lungs lie on the film, and nothing of what is in them."""


def shortcut_scores(split: HoldOut, boxes: npt.NDArray[np.floating[Any]]) -> dict[str, Rows]:
    """Fit shortcut classifiers on the training side and score the validation side.

    Each is a logistic regression on standardised features, classes weighted alike.

    Parameters
    ----------
    split
        The films.
    boxes
        (n, 4): box of the lungs on each of all films, as `model.locate.Locator.boxes` gives it.

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
        FRAMING: framing(boxes),
        STYLE: np.stack([statistics(film) for film in split.films.planes]),
    }
    return {name: _scores(rows, split) for name, rows in features.items()}


def framing(boxes: npt.NDArray[np.floating[Any]]) -> Rows:
    """Describe where the lungs lie, (n, 4) to (n, 8): edges, width, height, and their product and ratio."""
    edges = np.asarray(boxes, np.float64)
    width, height = edges[:, 2] - edges[:, 0], edges[:, 3] - edges[:, 1]
    return np.column_stack([edges, width, height, width * height, width / np.maximum(height, 0.05)])


def with_framing(logits: Rows, boxes: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.int64]) -> Rows:
    """Let a network's logits, (n,), be corrected by where the lungs lie: (n,) scores.

    Five-fold cross-validation on the same films: what a network that knows the framing could reach there.
    """
    rows, folds = np.column_stack([logits, framing(boxes)]), min(5, int(np.bincount(labels).min()))
    return np.asarray(cross_val_predict(_classifier(), rows, labels, cv=folds, method="decision_function"))


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
    classifier = _classifier()
    classifier.fit(rows[split.training], split.films.labels[split.training])
    return np.asarray(classifier.predict_proba(rows[split.validation])[:, 1], np.float64)


def _classifier() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000))


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
