"""From a file to numbers."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from vu_core import DataError
from vu_folders.images import read_image
from vu_folders.rows import Row, fingerprinted

Write = Callable[..., Path]


def read(path: Path, size: int = 32, *, random_crop: bool = False, flip: bool = False, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return read_image(path, size, random_crop=random_crop, flip=flip, generator=generator)


def test_no_resize_no_crop_is_the_file_itself(image: Write, tmp_path: Path) -> None:
    path = image(tmp_path / "a.png", size=(32, 32))
    pixels = np.asarray(Image.open(path)).astype(np.float64)
    found = read(path)
    assert found.dtype == torch.float32
    assert found.shape == (3, 32, 32)
    wanted = ((pixels / 255 - 0.5) / 0.5).transpose(2, 0, 1)
    assert np.abs(found.numpy() - wanted).max() < 1e-6


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (33, 100), (20, 17)])
def test_short_side_is_resized_and_the_middle_taken(image: Write, tmp_path: Path, size: tuple[int, int]) -> None:
    path = image(tmp_path / "a.png", size=size)
    short = min(size)
    shape = tuple(32 if extent == short else int(32 * extent / short) for extent in size)
    resized = Image.open(path).resize(shape, Image.Resampling.BILINEAR)
    left, top = (round((extent - 32) / 2) for extent in shape)
    wanted = np.asarray(resized.crop((left, top, left + 32, top + 32))).transpose(2, 0, 1) / 127.5 - 1
    assert np.abs(read(path).numpy() - wanted).max() < 1e-6


def test_random_crop_is_drawn_from_the_generator_and_reaches_both_ends(image: Write, tmp_path: Path) -> None:
    path = image(tmp_path / "a.png", size=(36, 32))
    whole = np.asarray(Image.open(path)).transpose(2, 0, 1) / 127.5 - 1
    windows = [whole[:, :, left : left + 32] for left in range(5)]
    places = []
    for seed in range(60):
        found = read(path, random_crop=True, seed=seed).numpy()
        (place,) = [i for i, window in enumerate(windows) if np.abs(found - window).max() < 1e-6]
        places.append(place)
    assert set(places) == {0, 1, 2, 3, 4}
    assert torch.equal(read(path, random_crop=True, seed=3), read(path, random_crop=True, seed=3))


def test_flip_happens_to_half_of_the_images(image: Write, tmp_path: Path) -> None:
    path = image(tmp_path / "a.png", size=(32, 32))
    plain = read(path)
    flips = [torch.equal(read(path, flip=True, seed=seed), plain.flip(-1)) for seed in range(60)]
    kept = [torch.equal(read(path, flip=True, seed=seed), plain) for seed in range(60)]
    assert all(a != b for a, b in zip(flips, kept, strict=True))
    assert 15 < sum(flips) < 45


def test_flip_does_not_shift_the_crop(image: Write, tmp_path: Path) -> None:
    path = image(tmp_path / "a.png", size=(48, 32))
    for seed in range(10):
        plain, flipped = (read(path, random_crop=True, flip=flip, seed=seed) for flip in (False, True))
        assert torch.equal(flipped, plain) or torch.equal(flipped, plain.flip(-1))


def test_modes_and_orientation(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "1", "CMYK"):
        file = tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}"
        Image.new(mode, (40, 32)).save(file)
        assert read(file).shape == (3, 32, 32)
    turned = Image.fromarray(np.arange(32 * 64 * 3, dtype=np.uint64).astype(np.uint8).reshape(32, 64, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 270 degrees to show it
    turned.save(tmp_path / "turned.png", exif=exif)
    turned.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    assert torch.equal(read(tmp_path / "turned.png"), read(tmp_path / "upright.png"))


def deep_colour(path: Path) -> Path:
    """Write a PNG with 16 bits per colour, which Pillow reads but does not write."""
    pixels = np.full((32, 32, 3), 40_000, dtype=">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def test_files_that_are_no_images_are_found_before_they_are_needed(image: Write, tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    empty = tmp_path / "empty.png"
    empty.touch()
    jpeg = image(tmp_path / "cut.jpg", size=(64, 64))
    jpeg.write_bytes(jpeg.read_bytes()[:-400])
    png = image(tmp_path / "cut.png", size=(64, 64))
    png.write_bytes(png.read_bytes()[:-400])
    bmp = image(tmp_path / "cut.bmp", size=(64, 64))
    bmp.write_bytes(bmp.read_bytes()[:-400])
    grey = tmp_path / "grey.png"
    Image.fromarray(np.full((32, 32), 40_000, dtype=np.uint16)).save(grey)
    tiff = tmp_path / "grey.tif"
    Image.fromarray(np.full((32, 32), 40_000, dtype=np.uint16)).save(tiff)
    cases = {
        text: "begins like no known kind",
        empty: "it is empty",
        jpeg: "truncated",
        png: "damaged",
        bmp: "truncated",
        grey: "8 bits per channel",
        tiff: "8 bits per channel",
        deep_colour(tmp_path / "colour.png"): "8 bits per channel",
    }
    for path, said in cases.items():
        row = Row(path, path.name, "a", "", {}, "list:3")
        with pytest.raises(DataError) as caught:
            fingerprinted([row])
        assert caught.value.code == "VU-D073", path
        assert said in caught.value.problem, caught.value.problem
        assert "0x" not in caught.value.problem
        assert str(path) in caught.value.problem
        assert caught.value.where == "list:3"


def test_whole_images_pass_and_only_doubtful_ones_are_decoded(
    image: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(
        ImageFile.ImageFile, "load", lambda self, *a: decoded.append(str(self.format)) or load(self, *a)
    )
    rows = []
    for suffix in ("png", "jpg", "bmp", "webp", "gif", "tif"):
        path = image(tmp_path / f"a.{suffix}")
        rows.append(Row(path, path.name, "a", "", {}, ""))
    padded = image(tmp_path / "padded.jpg")
    padded.write_bytes(padded.read_bytes() + b"something that a camera wrote")
    decoded.clear()
    assert len(fingerprinted(rows)) == 6
    assert not {"PNG", "JPEG"} & set(decoded)
    fingerprinted([Row(padded, "padded.jpg", "a", "", {}, "")])
    assert "JPEG" in decoded


def test_of_an_animated_image_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    fingerprinted([Row(tmp_path / "a.gif", "a.gif", "a", "", {}, "")])
    assert read(tmp_path / "a.gif")[:, 0, 0].tolist() == [1.0, -1.0, -1.0]


def test_files_that_are_no_images_when_they_are_read(image: Write, tmp_path: Path) -> None:
    cut = image(tmp_path / "cut.jpg", size=(64, 64))
    cut.write_bytes(cut.read_bytes()[:-400])
    deep = deep_colour(tmp_path / "deep.png")
    for path, said in ((cut, "damaged"), (deep, "8-bit"), (tmp_path / "absent.png", "No such")):
        with pytest.raises(DataError) as caught:
            read(path)
        assert caught.value.code == "VU-D073"
        assert said in caught.value.problem
        assert str(path) in caught.value.problem
