"""Bulk data: one binary value of an object, found by the path that its metadata names (PS3.18 10.4.1.1.5)."""

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from fastapi import HTTPException
from pydicom import Dataset
from pydicom.dataelem import RawDataElement

from service.api.dicomweb.model import is_bulk
from service.api.dicomweb.stored import Stored

PATH = re.compile(r"[0-9A-Fa-f]{8}(/[0-9]{1,6}/[0-9A-Fa-f]{8}){0,64}")
_UNDEFINED = 0xFFFFFFFF


def bulk_values(stored: Stored, path: str) -> list[Iterator[bytes]]:
    """Return the value in pieces; pixels that are compressed are one value a frame.

    Raises
    ------
    HTTPException
        404 when there is no bulk data at this path, 406 when it is stored in big endian words.
    """
    steps = path.split("/")
    tag = int(steps[-1], 16)
    if stored.is_big_endian:
        raise HTTPException(406, "the object is stored in big endian, and is not encoded anew")
    if len(steps) == 1 and stored.pixels is not None and tag == stored.pixels.tag:
        if stored.pixels.length is not None:
            return [stored.read(stored.pixels.begin, stored.pixels.length)]
        return [stored.frame(number) for number in range(1, stored.number_of_frames + 1)]
    with suppress(KeyError, IndexError, TypeError, AttributeError):
        raw: Any = _within(stored.dataset, steps[:-1]).get_item(tag, keep_deferred=True)
        if raw is not None and is_bulk(raw):
            if isinstance(raw, RawDataElement) and raw.value is None and raw.length != _UNDEFINED:
                return [stored.read(raw.value_tell, raw.length)]
            value = _within(stored.dataset, steps[:-1])[tag].value
            if isinstance(value, bytes):
                return [iter([value])]
    raise HTTPException(404, "no bulk data at this path")


def _within(dataset: Dataset, steps: list[str]) -> Dataset:
    for tag, number in zip(steps[::2], steps[1::2], strict=True):
        dataset = dataset[int(tag, 16)].value[int(number)]
    return dataset
