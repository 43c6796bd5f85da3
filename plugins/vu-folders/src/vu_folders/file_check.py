"""Is a file a whole image with 8 bits per channel? Told from its bytes, decoding only where they cannot tell."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from vu_core import DataError

if TYPE_CHECKING:
    from PIL import Image

_EIGHT_BIT = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})
_DEEP = re.compile(r"(I|L|LA|RGB|RGBA|RGBX|CMYK);16")  # stored so; Pillow would cut 16 bits of a colour to 8
_JPEG_ENDS = b"\xff\xd9"


def check_image(data: bytes, path: Path, where: str) -> None:
    """Refuse bytes that are no image, a damaged or cut one, or one with more than 8 bits per channel.

    PNG is checked by its checksums and JPEG by its end marker; whatever has neither is decoded.

    Raises:
        DataError: VU-D073.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            refuse_deep(image)
            if image.format == "PNG":
                image.verify()
            elif image.format != "JPEG" or not data.rstrip(b"\x00\r\n").endswith(_JPEG_ENDS):
                image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise no_image(path, error, where, empty=not data) from error


def refuse_deep(image: Image.Image) -> None:
    """Raise ValueError for an opened, not yet decoded image with more than 8 bits per channel."""
    stored = " ".join(str(tile[3]) for tile in getattr(image, "tile", ()))
    if image.mode not in _EIGHT_BIT or _DEEP.search(stored):
        raise ValueError(f"it has more than 8 bits per channel (mode {image.mode}); 8-bit images are understood")


def no_image(path: Path, error: Exception, where: str, *, empty: bool = False) -> DataError:
    """Return the error for a file that is no image, or a damaged one."""
    from PIL import UnidentifiedImageError

    cause = (str(error) or type(error).__name__).splitlines()[0]
    if isinstance(error, UnidentifiedImageError):  # its own text holds the address of an object
        cause = "it is empty" if empty else "it begins like no known kind of image"
    return DataError(
        "VU-D073",
        f"The file {str(path)!r} is no image, or it is damaged: {cause}.",
        "Replace the file, or take it out of the data.",
        where=where,
    )
