"""Make torchvision importable when its compiled operators do not load.

PyPI's torchvision wheel for Linux is built against CUDA. Beside a CPU-only torch its shared library does not
load, and the package then fails at import while it registers a fake kernel for an operator that nobody
declared (`operator torchvision::nms does not exist`). Hilum uses torchvision's blocks and transforms, none of
which call those operators, so declaring the two schemas is enough. Import this module before torchvision.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _compiled_operators_load() -> bool:
    """Say whether torchvision's own shared library loads beside this torch."""
    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations:
        return False
    for library in Path(found.submodule_search_locations[0]).glob("_C*"):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError:
            return False
        return True
    return False


# Kept at module level: the declarations live only as long as this object does.
_declared: torch.library.Library | None = None
if not _compiled_operators_load():
    _declared = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for _schema in _SCHEMAS.values():
        _declared.define(_schema)  # type: ignore[no-untyped-call]
