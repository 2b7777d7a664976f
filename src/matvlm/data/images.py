"""Opening images that others wrote: inside their folder, whole, of sane size, or a `DataError`."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

from PIL import Image

from matvlm.data.errors import DataError

MAX_PIXELS = 50_000_000
# Nothing but plain raster formats: Pillow hands some others (EPS) to outside programs.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
# Pillow warns of sizes and metadata of files that are judged here anyway, in one line each.
warnings.filterwarnings("ignore", module=r"PIL\.")


def path_problem(path: str) -> str | None:
    """Why ``path`` may not be the relative path of an image, judged by its letters alone; None if it may."""
    if not path or "\0" in path:
        return "is empty or holds a NUL character"
    parts = path.replace("\\", "/").split("/")
    if path.startswith(("/", "~")) or ".." in parts:
        return "leads outside the image folder"
    return None


def resolve_image(path: str, root: Path) -> Path:
    """Full path of the image ``path`` (relative to ``root``), which exists inside ``root``.

    Raises:
        DataError: absolute, with `..`, a link that leads outside, missing, or not a file.
    """
    if problem := path_problem(path):
        raise DataError(f"image {path!r}: {problem}")
    try:
        full = (root / path).resolve()
        inside, there = full.is_relative_to(root.resolve()), full.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, a loop of links, no permission
        raise DataError(f"image {path!r}: {_first_line(error)}") from None
    if not inside:
        raise DataError(f"image {path!r}: leads outside the image folder {root}")
    if not there:
        raise DataError(f"image {path!r}: no such file in {root}")
    return full


def open_image(path: str, root: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one image to RGB; of an animation the first frame.

    Args:
        path: relative to ``root``. max_pixels: width times height allowed, checked before decoding.

    Raises:
        DataError: outside ``root``, missing, not an image, cut short, or too large.
    """
    return _decode(resolve_image(path, root), path, max_pixels)


def open_own_image(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """As `open_image`, of a file that the user names himself: it may lie anywhere.

    Raises:
        DataError: missing, not an image, cut short, or too large.
    """
    try:
        there = path.is_file()
    except (OSError, ValueError) as error:  # a folder without permission, a NUL character
        raise DataError(f"image {str(path)!r}: {_first_line(error)}") from None
    if not there:
        raise DataError(f"image {str(path)!r}: no such file")
    return _decode(path, str(path), max_pixels)


def _decode(full: Path, path: str, max_pixels: int) -> Image.Image:
    """Decode the file ``full``, which messages call ``path``."""
    try:
        with Image.open(full, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise DataError(
                    f"image {path!r}: {image.width} x {image.height} pixels; at most {max_pixels} are decoded"
                )
            return image.convert("RGB")
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"image {path!r}: far too many pixels; at most {max_pixels} are decoded") from None
    except Image.UnidentifiedImageError:
        raise DataError(f"image {path!r}: not an image in any of {', '.join(FORMATS)}") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error) as error:
        # What Pillow's decoders raise for files that are cut short or damaged.
        raise DataError(f"image {path!r}: damaged or cut short ({_first_line(error)})") from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
