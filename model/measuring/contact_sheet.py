"""One film of each class under every perturbation of the stress table, to be checked by eye."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage  # type: ignore[import-untyped]

from model.measuring.nuisances import PERTURBATIONS, PLAIN, Case, Film
from model.training.films import CLASSES

_TILE, _CAPTION, _GAP, _ACROSS = 150, 20, 6, 6


def contact_sheet(cases: Sequence[Case]) -> Image.Image:
    """Draw the first case of each class under every perturbation, after the plain films and their lungs."""
    shown = [next(case for case in cases if case.label == label) for label in range(len(CLASSES))]
    panels = (PLAIN, PLAIN._replace(name="lungs as found", apply=_outlined), *PERTURBATIONS)
    width, height = len(shown) * _TILE + _GAP, _TILE + _CAPTION
    page = Image.new("L", (_ACROSS * width, -(-len(panels) // _ACROSS) * height), 255)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for number, panel in enumerate(panels):
        left, top = number % _ACROSS * width, number // _ACROSS * height
        draw.text((left + 2, top + 3), panel.name, fill=0, font=font)
        for side, case in enumerate(shown):
            film = Image.fromarray(panel.apply(case)).resize((_TILE, _TILE), Image.Resampling.BILINEAR)
            page.paste(film, (left + side * _TILE, top + _CAPTION))
    return page


def _outlined(case: Case) -> Film:
    edge = case.lungs & ~ndimage.binary_erosion(case.lungs)
    return np.where(edge, np.uint8(255), case.film)
