"""Films and what the network looked at, as pictures within one HTML file."""

import base64
import io

from PIL import Image

from service.core.spool import Spool

_LONG_SIDE = 640
_QUALITY = 82
# Of the colour where the activation is 1, as in heat maps (`worker.colours`).
_OPACITY = 0.55


def as_data_uris(
    spool: Spool, picture_path: str | None, overlay_path: str | None
) -> tuple[str | None, str | None]:
    """Return the film, and the film under its activation map, as data URIs; None for what is not there."""
    film, over = _opened(spool, picture_path), _opened(spool, overlay_path)
    if film is None:
        return None, None
    grey = film.convert("L")
    grey.thumbnail((_LONG_SIDE, _LONG_SIDE))
    return _data_uri(grey), _data_uri(_laid_over(grey, over)) if over else None


def _laid_over(grey: Image.Image, over: Image.Image) -> Image.Image:
    colour = over.convert("RGBA").resize(grey.size)
    alpha = colour.getchannel("A").point([round(_OPACITY * value) for value in range(256)])
    return Image.composite(colour.convert("RGB"), grey.convert("RGB"), alpha)


def _opened(spool: Spool, relative: str | None) -> Image.Image | None:
    """Return a picture of the data folder, None when retention has taken it."""
    if not relative:
        return None
    try:
        image = Image.open(spool.absolute(relative))
        image.load()
        return image
    except OSError:
        return None


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
