"""Images that others wrote: whole, sane and inside their folder, or one line that says what is wrong."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from matvlm.data.errors import DataError
from matvlm.data.images import FORMATS, MAX_PIXELS, open_image, resolve_image

pytestmark = pytest.mark.filterwarnings("ignore:::PIL.")  # pytest undoes the filter that the module sets
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (21, 34, 3), dtype=np.uint8))


def encoded(form="PNG", mode="RGB"):
    file = io.BytesIO()
    NOISE.convert(mode).save(file, form)
    return file.getvalue()


def png_of_size(width, height):
    """A PNG whose header promises ``width`` x ``height`` pixels and which holds next to none."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def refusal(path, root):
    """What `open_image` says of an image that it must refuse: one line that names it."""
    with pytest.raises(DataError) as caught:
        open_image(path, root)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"image {path!r}: ")
    return message


def outcome(function, *args):
    """What ``function`` returns, or the `DataError` that it raises."""
    try:
        return function(*args)
    except DataError as error:
        return error


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_formats_open_as_rgb(form, mode, tmp_path):
    (tmp_path / "x").write_bytes(encoded(form, mode))
    image = open_image("x", tmp_path)
    assert (image.mode, image.size) == ("RGB", NOISE.size)
    if form in ("PNG", "BMP", "TIFF"):
        assert image.tobytes() == NOISE.convert(mode).convert("RGB").tobytes()


def test_transparency_and_palette_open_as_rgb(tmp_path):
    for mode in ("RGBA", "P", "1"):
        (tmp_path / f"{mode}.png").write_bytes(encoded(mode=mode))
        assert open_image(f"{mode}.png", tmp_path).mode == "RGB"


def test_missing(tmp_path):
    (tmp_path / "folder").mkdir()
    assert "no such file" in refusal("nothing.png", tmp_path)
    assert "no such file" in refusal("folder", tmp_path)
    assert "no such file" in refusal("folder/nothing.png", tmp_path)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"])
def test_cut_short(form, tmp_path):
    data = encoded(form)
    (tmp_path / "x").write_bytes(data[: len(data) // 2])
    assert "cut short" in refusal("x", tmp_path)


@pytest.mark.parametrize("data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n", b"<svg></svg>"])
def test_not_an_image(data, tmp_path):
    (tmp_path / "x.png").write_bytes(data)
    assert "not an image" in refusal("x.png", tmp_path) or "cut short" in refusal("x.png", tmp_path)


# One that we refuse, one that Pillow warns of and one that Pillow refuses itself.
@pytest.mark.parametrize("side", [8_000, 12_000, 40_000])
def test_decompression_bomb(side, tmp_path):
    assert side * side > MAX_PIXELS
    (tmp_path / "bomb.png").write_bytes(png_of_size(side, side))
    message = refusal("bomb.png", tmp_path)
    assert "pixels" in message
    assert str(MAX_PIXELS) in message


def test_a_bomb_is_one_line_on_the_terminal(tmp_path):
    """Pillow's own warning is not printed beside our line."""
    (tmp_path / "bomb.png").write_bytes(png_of_size(12_000, 12_000))
    program = (
        "from pathlib import Path\n"
        "from matvlm.data.images import open_image\n"
        "from matvlm.errors import one_line\n"
        f"one_line(lambda: open_image('bomb.png', Path({str(tmp_path)!r})))()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: image 'bomb.png': ")


def test_the_limit_is_exact(tmp_path):
    (tmp_path / "x.png").write_bytes(encoded())
    pixels = NOISE.width * NOISE.height
    assert open_image("x.png", tmp_path, max_pixels=pixels).size == NOISE.size
    with pytest.raises(DataError, match=f"34 x 21 pixels; at most {pixels - 1}"):
        open_image("x.png", tmp_path, max_pixels=pixels - 1)


@pytest.fixture
def outside(tmp_path):
    """An image outside the folder, and the folder."""
    root = tmp_path / "images"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(encoded())
    return tmp_path / "secret.png", root


@pytest.mark.parametrize("path", ["../secret.png", "a/../../secret.png", "..\\secret.png", "~/secret.png", ".."])
def test_paths_that_lead_outside(path, outside):
    assert "leads outside the image folder" in refusal(path, outside[1])


def test_absolute_path(outside):
    secret, root = outside
    assert "leads outside the image folder" in refusal(str(secret), root)
    (root / "inside.png").write_bytes(encoded())
    assert "leads outside the image folder" in refusal(str(root / "inside.png"), root)


def test_links(outside):
    """A link may lead to a place inside the folder, and nowhere else."""
    secret, root = outside
    (root / "real.png").write_bytes(encoded())
    os.symlink(secret, root / "file.png")
    os.symlink(secret.parent, root / "folder")
    os.symlink("loop.png", root / "loop.png")
    os.symlink("real.png", root / "inside.png")
    assert "leads outside the image folder" in refusal("file.png", root)
    assert "leads outside the image folder" in refusal("folder/secret.png", root)
    refusal("loop.png", root)
    assert open_image("inside.png", root).size == NOISE.size


@pytest.mark.parametrize("path", ["", "a\0b.png", "x" * 5000])
def test_paths_that_are_none(path, tmp_path):
    refusal(path, tmp_path)


@given(path=st.text(max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_path_stays_inside(path, tmp_path_factory):
    """Whatever the letters, the answer is a file inside the folder or a refusal of one line."""
    root = tmp_path_factory.getbasetemp() / "any-path"
    root.mkdir(exist_ok=True)
    (root / "0").write_bytes(b"")
    found = outcome(resolve_image, path, root)
    if isinstance(found, DataError):
        assert "\n" not in str(found)
    else:
        assert found.is_relative_to(root.resolve())


# Not TIFF: its library writes to the terminal itself.
ENCODED = {form: encoded(form) for form in ("PNG", "JPEG", "GIF", "WEBP", "BMP")}


@given(
    form=st.sampled_from(sorted(ENCODED)),
    keep=st.floats(0, 1),
    damage=st.dictionaries(st.integers(0, 400), st.integers(0, 255), max_size=6),
)
@settings(max_examples=300, deadline=None)
def test_any_damage_is_refused_or_opened(form, keep, damage, tmp_path_factory):
    """Cut anywhere, altered anywhere: an RGB image or a refusal of one line, and never anything else."""
    data = bytearray(ENCODED[form][: round(keep * len(ENCODED[form]))])
    for place, value in damage.items():
        if place < len(data):
            data[place] = value
    root = tmp_path_factory.getbasetemp()
    (root / "damaged").write_bytes(data)
    found = outcome(open_image, "damaged", root)
    if isinstance(found, DataError):
        assert str(found).startswith("image 'damaged': ")
        assert "\n" not in str(found)
    else:
        assert found.mode == "RGB"
