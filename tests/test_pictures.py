"""What becomes of a picture: every format, mode, orientation, depth and size, against Pillow and timm."""

import io
import os
import struct
import subprocess
import sys
import textwrap
import zlib
from collections import UserList, deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageOps
from timm.data import create_transform, resolve_data_config
from torch import nn
from torch.utils.data import Dataset, Subset

from sklearn_clpdd import FrozenEncoder
from sklearn_clpdd.encoder._preprocessing import Preprocessing
from sklearn_clpdd.encoder.images._decoding import decode

SIDE = 48


class Seen(nn.Module):
    """Features that show what the network is given: its pixels."""

    def forward(self, x):
        return x.flatten(1)


@pytest.fixture
def seen():
    """What a network sees of pictures, ``(n, 3, SIDE, SIDE)``."""
    encoder = FrozenEncoder(Seen(), image_size=SIDE, l2_normalize=False, device="cpu")
    return lambda X, **settings: encoder.set_params(**settings).transform(X).reshape(-1, 3, SIDE, SIDE)


def _noise(height=SIDE, width=SIDE, channels=3, seed=0):
    """Smooth noise, so that lossy formats keep it."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, channels)).astype(np.uint8)
    bands = [Image.fromarray(small[..., i]).resize((width, height), Image.Resampling.BICUBIC) for i in range(channels)]
    return np.stack([np.asarray(band) for band in bands], axis=-1)


def _file(picture, form, **options):
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def _three_ways(content, folder):
    path = folder / "picture"
    path.write_bytes(content)
    return {"file": str(path), "bytes": content, "PIL": Image.open(io.BytesIO(content))}


def _png(pixels, color_type):
    """A PNG file of 16 bits, written by hand because Pillow cannot write colours of 16 bits."""
    height, width = pixels.shape[:2]

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# Sequences


class Pictures(Dataset):
    """A data set that opens a picture each time it is asked for it."""

    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, i):
        return self.pictures[i].copy()


class Sized:
    """Neither a list nor indexable, but with a length."""

    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __iter__(self):
        return iter(self.pictures)


@pytest.mark.parametrize("kind", [list, tuple, deque, Pictures, Sized, lambda p: Subset(Pictures(p), range(len(p)))])
@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "L", "sizes"])
def test_sequences_are_taken_element_by_element(seen, kind, mode):
    sides = (40, 48, 56) if mode == "sizes" else (SIDE,) * 3
    pictures = [Image.fromarray(_noise(side, side, seed=i)) for i, side in enumerate(sides)]
    if mode != "sizes":
        pictures = [picture.quantize(16) if mode == "P" else picture.convert(mode) for picture in pictures]
    wanted = seen([picture.convert("RGB") for picture in pictures])
    np.testing.assert_array_equal(seen(kind(pictures)), wanted)


def test_lists_of_arrays_may_have_different_sizes(seen):
    arrays = [_noise(40, 60), _noise(60, 40) / 255, _noise(50, 50)[..., 0]]
    wanted = seen([Image.fromarray(arrays[0]), Image.fromarray(_noise(60, 40)), Image.fromarray(arrays[2])])
    np.testing.assert_allclose(seen(arrays), wanted, atol=1e-5)
    tensors = [torch.from_numpy(array).permute(2, 0, 1) for array in arrays[:2]]
    np.testing.assert_allclose(seen(tensors), wanted[:2], atol=1e-5)


@pytest.mark.parametrize(
    ("X", "error", "words"),
    [
        ([(Image.new("RGB", (4, 4)),) * 2], TypeError, "element 0 of X is a tuple of 2 .pass images and labels separately"),
        ([{"image": Image.new("RGB", (4, 4)), "label": 0}], TypeError, "a dict with the keys .'image', 'label'"),
        ({"a": 1}, TypeError, "X is a dict"),
        ((i for i in range(3)), TypeError, "X is a generator, a stream.*iter_transform .*pass a list"),
        (b"\x89PNG", TypeError, "one picture, 4 bytes; pass a list"),
        (np.array([b"ab", b"cd"]), ValueError, "lost zeros"),
        ([Image.new("RGB", (4, 4)), 3], TypeError, "element 1 of X is a int"),
    ],
)
def test_what_is_no_sequence_of_pictures(seen, X, error, words):
    with pytest.raises(error, match=words):
        seen(X)


def test_pipes_in_a_sequence_are_named(seen, tmp_path):
    """Opening one would wait for ever."""
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"X\[1\].*a device or a pipe"):
        seen(UserList([Image.new("RGB", (SIDE, SIDE)), str(tmp_path / "pipe.png")]))
    with pytest.raises(FileNotFoundError, match="no such file"):
        seen(UserList([str(tmp_path / "missing.png")]))


class Failing(Pictures):
    def __getitem__(self, i):
        if i == 1:
            raise OSError("the disk is gone")
        return super().__getitem__(i)


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("n_jobs", [None, 2])
def test_errors_of_a_sequence_are_named(seen, tmp_path, n_jobs, memory):
    pictures = [Image.fromarray(_noise(seed=i)) for i in range(9)]
    with pytest.raises(ValueError, match=r"1 of 9 images.*\n  X\[1\].*OSError: the disk is gone"):
        seen(Failing(pictures), n_jobs=n_jobs, memory=tmp_path if memory else None)


# What a picture holds


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("form", "lossy"), [("JPEG", True), ("PNG", False), ("WEBP", True), ("TIFF", False)])
def test_orientation_is_applied_in_all_formats(seen, tmp_path, form, lossy, orientation):
    """Also for pictures of odd sides and with a crop; against Pillow's own transposition of the whole picture."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = _file(Image.fromarray(_noise(61, 90)), form, exif=exif)
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    for crop in (1.0, 0.7):
        wanted = seen([np.asarray(shown)], crop_pct=crop)
        ways = _three_ways(content, tmp_path)
        for name, picture in {**ways, "PIL by name": Image.open(ways["file"])}.items():
            np.testing.assert_allclose(seen([picture]), wanted, atol=1e-5, err_msg=name)


def test_broken_metadata_is_ignored(seen):
    picture = Image.fromarray(_noise())
    content = _file(picture, "PNG", exif=b"Exif\0\0broken")
    np.testing.assert_allclose(seen([content]), seen([picture]), atol=1e-6)


def _logo(shape, hidden):
    image = Image.new("RGBA", (SIDE, SIDE), (*hidden, 0))
    getattr(ImageDraw.Draw(image), shape)((10, 10, 38, 38), fill=(0, 0, 0, 255))
    return image


def _over_white(picture):
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    white.alpha_composite(picture.convert("RGBA"))
    return white.convert("RGB")


@pytest.mark.parametrize(
    "mode", ["RGBA", "LA", "PA", "RGBa", "La", "P", "L with a colour", "RGB with a colour", "1 with a colour"]
)
def test_transparency_is_over_white(seen, tmp_path, mode):
    logo = _logo("ellipse", (240, 30, 10))
    logo.paste((9, 99, 199, 128), (20, 20, 30, 30))
    plain, _, colour = mode.partition(" with ")
    if plain in ("RGBa", "La"):
        picture = logo.convert(plain if plain == "RGBa" else "LA").convert(plain)
    elif plain == "P":
        picture = logo.quantize(8)
    else:
        picture = logo.convert(plain)
    if colour:
        picture.info["transparency"] = {"L": 0, "RGB": (0, 0, 0), "1": 0}[plain]
    wanted = seen([_over_white(picture.convert("LA") if plain == "La" else picture)])
    np.testing.assert_allclose(seen([picture]), wanted, atol=1e-6)
    if plain not in ("RGBa", "La", "PA"):
        options = {"transparency": picture.info["transparency"]} if colour else {}
        for name, one in _three_ways(_file(picture, "PNG", **options), tmp_path).items():
            np.testing.assert_allclose(seen([one]), wanted, atol=1e-6, err_msg=name)


def test_what_looks_the_same_is_the_same(seen):
    circle, square, other = _logo("ellipse", (0, 0, 0)), _logo("rectangle", (0, 0, 0)), _logo("ellipse", (240, 30, 10))
    one, two, three = seen([circle, square, other])
    assert np.abs(one - two).max() > 0.5
    np.testing.assert_array_equal(one, three)


def test_16_bits_are_not_quantised(seen, tmp_path):
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 65536, (SIDE, SIDE)).astype(np.uint16)
    wanted = (grey / 65535).astype(np.float32)
    contents = {form: _file(Image.fromarray(grey), form) for form in ("PNG", "TIFF", "PPM")}
    for form, content in contents.items():
        for name, picture in _three_ways(content, tmp_path).items():
            np.testing.assert_allclose(seen([picture])[0], np.stack([wanted] * 3), atol=1e-6, err_msg=f"{form} {name}")
    color = rng.integers(0, 65536, (SIDE, SIDE, 3)).astype(np.uint16)
    for name, picture in _three_ways(_png(color, 2), tmp_path).items():
        for _ in range(2):  # Pillow's image is not loaded, in 8 bits, by the first call
            np.testing.assert_allclose(seen([picture])[0], color.transpose(2, 0, 1) / 65535, atol=1e-6, err_msg=name)
    for order in "<>":
        np.testing.assert_allclose(seen([_tiff(color, order)])[0], color.transpose(2, 0, 1) / 65535, atol=1e-6)
        with pytest.raises(ValueError, match="TIFF with 16 bits in RGB"):  # Pillow reads it as 8 bits
            seen([_tiff(color, order, planes=2)])
    alpha = rng.integers(0, 65536, (SIDE, SIDE, 1)).astype(np.uint16)
    for kind, pixels in ((6, color), (4, color[..., :1])):
        over_white = pixels / 65535 * (alpha / 65535) + 1 - alpha / 65535
        content = _png(np.concatenate([pixels, alpha], axis=2), kind)
        np.testing.assert_allclose(seen([content])[0], over_white.transpose(2, 0, 1).repeat(3 // pixels.shape[2], 0), atol=1e-5)


def _tiff(pixels, order, planes=1):
    """An uncompressed TIFF of 16-bit RGB in either byte order, pixel by pixel or (2) plane by plane."""
    height, width, _ = pixels.shape
    data = (pixels if planes == 1 else pixels.transpose(2, 0, 1)).astype(f"{order}u2").tobytes()
    starts = [8 + 32 + i * len(data) // 3 for i in range(3 if planes == 2 else 1)]
    lengths = [len(data) // len(starts)] * len(starts)
    tags = [(256, 3, [width]), (257, 3, [height]), (258, 3, [16] * 3), (259, 3, [1]), (262, 3, [2]), (273, 4, starts)]
    tags += [(277, 3, [3]), (278, 3, [height]), (279, 4, lengths), (284, 3, [planes])]
    long_values, entries = b"", b""
    for tag, kind, values in tags:
        packed = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            packed, long_values = struct.pack(f"{order}I", 8 + len(long_values)), long_values + packed
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + 32 + len(data))
    return start + long_values.ljust(32, b"\0") + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def test_a_transparent_grey_of_16_bits(seen):
    grey = np.full((SIDE, SIDE), 1000, np.uint16)
    grey[:, :20] = 30000
    content = _file(Image.fromarray(grey), "PNG", transparency=1000)
    expected = np.where(grey == 1000, 1, grey / 65535)
    np.testing.assert_allclose(seen([content])[0, 0], expected, atol=1e-6)


def _tiff_of_12_bits(values):
    """An uncompressed TIFF of 12-bit grey, two pixels in three bytes."""
    height, width = values.shape
    pairs = values.reshape(-1, 2).astype(int)
    data = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1).astype(np.uint8)
    strip = data.tobytes()
    tags = [(256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, len(strip))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


def test_12_bits_of_tiff_have_their_own_white(seen, tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (SIDE, SIDE))
    for name, picture in _three_ways(_tiff_of_12_bits(values), tmp_path).items():
        np.testing.assert_allclose(seen([picture])[0, 0], values / 4095, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (Image.new("F", (8, 8)), "range of a floating-point image is unknown"),
        (Image.new("I", (8, 8)), "range of a 32-bit image is unknown"),
        (_file(Image.new("F", (8, 8)), "TIFF"), "range of a floating-point image is unknown"),
        (_file(Image.new("I", (8, 8), 200), "TIFF"), "range of a 32-bit image is unknown"),
        (b"P6 2 2 65535 " + bytes(24), "PPM with 16 bits in RGB, of which Pillow reads 8"),
        (b"P6 2 2", "Reached EOF"),
        (b"", "not an image in a format that Pillow can read"),
        (np.zeros((4, 4, 3), np.int32), "dtype int32 is neither uint8 nor float"),
        (np.full((4, 4), 2.0), "float pixels are in .0, 1., not from 2 to 2"),
        (torch.zeros(4, 4), "shape .4, 4. is none of"),
    ],
)
def test_what_has_no_range_is_refused(seen, picture, words):
    with pytest.raises(ValueError, match=f"(?s)1 of 2 images cannot be read.*X.1..*{words}"):
        seen([Image.new("RGB", (SIDE, SIDE)), picture])


def test_a_decompression_bomb_is_refused_with_what_to_do(seen, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"decompression bomb.*raise PIL\.Image\.MAX_IMAGE_PIXELS"):
        seen([_file(Image.new("RGB", (SIDE, SIDE)), "PNG")])


def test_one_opened_picture_may_be_listed_twice(tmp_path):
    paths = []
    for i in range(3):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(_noise(700, 700, seed=i)).save(paths[-1])
    preprocessing, rows = Preprocessing(SIDE), [0, 0, 0, 1, 1, 2, 2, 2]
    wanted = [decode(paths[row], preprocessing) for row in rows]
    for _ in range(5):
        pictures = [Image.open(path) for path in paths]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda row: decode(pictures[row], preprocessing), rows))  # noqa: B023
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_an_opened_picture_stays_unread(seen, tmp_path):
    """It is equal to its file also where that is decoded at a reduced scale, and takes no memory."""
    path = tmp_path / "large.jpg"
    Image.fromarray(_noise(1001, 1503)).save(path)
    opened = Image.open(path)
    np.testing.assert_array_equal(seen([opened]), seen([str(path)]))
    np.testing.assert_array_equal(seen([opened], memory=tmp_path / "cache"), seen([str(path)]))
    assert opened.tile
    half = Image.open(path)
    half.draft("RGB", (750, 500))
    np.testing.assert_allclose(seen([half]), seen([str(path)]), atol=0.05)
    assert half.size == (752, 501)


def _png_of_2_bits(grey, transparent):
    """A PNG file of grey values 0 to 3, of which one is transparent; Pillow before 13 writes 8 bits."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    bits = np.unpackbits(grey[..., None], axis=2)[..., 6:].reshape(len(grey), -1)
    rows = np.insert(np.packbits(bits, axis=1), 0, 0, axis=1)  # each begins with its filter, none
    head = struct.pack(">IIBBBBB", grey.shape[1], grey.shape[0], 2, 0, 0, 0, 0)
    chunks = {b"IHDR": head, b"tRNS": struct.pack(">H", transparent), b"IDAT": zlib.compress(rows.tobytes()), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks.items())


def test_frames_and_small_depths(seen, tmp_path):
    frames = [Image.fromarray(_noise(seed=i)) for i in range(3)]
    for form in ("TIFF", "GIF", "PNG"):
        path = tmp_path / f"frames.{form}"
        frames[0].save(path, form, save_all=True, append_images=frames[1:])
        opened = Image.open(path)
        opened.seek(2)
        np.testing.assert_allclose(seen([opened]), seen([frames[2]]), atol=0.15 if form == "GIF" else 1e-6)
    grey = np.arange(4, dtype=np.uint8).repeat(SIDE * SIDE // 4).reshape(SIDE, SIDE)
    content = _png_of_2_bits(grey, transparent=1)
    opened = Image.open(io.BytesIO(content))
    for picture in (content, opened, opened):
        np.testing.assert_allclose(seen([picture])[0, 0], np.where(grey == 1, 1, grey / 3), atol=1e-6)


def test_white_may_be_zero(seen):
    values = np.random.default_rng(0).integers(0, 65536, (SIDE, SIDE)).astype(np.uint16)
    content = _file(Image.fromarray(values), "TIFF", tiffinfo={262: 0})
    np.testing.assert_allclose(seen([content])[0, 0], 1 - values / 65535, atol=1e-5)


def test_digests_follow_what_is_seen(tmp_path):
    """A cache of features distinguishes what Pillow's pixels alone would not."""
    plain = _logo("ellipse", (0, 0, 0)).quantize(8)
    rotated, other_palette = plain.copy(), plain.copy()
    rotated.getexif()[0x0112] = 6
    palette = plain.getpalette()
    other_palette.putpalette([255 - value for value in palette])
    encoder = FrozenEncoder(Seen(), image_size=SIDE, l2_normalize=False, device="cpu")
    for picture in (plain, rotated, other_palette, plain.convert("RGBA"), _file(plain, "PNG")):
        wanted = encoder.set_params(memory=None).transform([picture])
        np.testing.assert_array_equal(encoder.set_params(memory=tmp_path).transform([picture]), wanted)


# Resizing


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(48, 48), (61, 90), (90, 61), (200, 31), (31, 200), (7, 500), (1, 1)])
def test_pictures_and_arrays_are_resized_alike(mode, crop, size):
    """Pillow resizes pictures with floats, torch arrays; and torch's result is that of its own interpolation."""
    preprocessing = Preprocessing(SIDE, 0.8, (0.3, 0.5, 0.7), (1, 1, 1), mode, crop)
    pixels = _noise(*size)
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(decode(Image.fromarray(pixels), preprocessing), preprocessing(batch), atol=3e-5, rtol=0)
    if crop == "squash":
        whole = F.interpolate(batch, (60, 60), mode=mode, antialias=True).clamp(0, 1)
        torch.testing.assert_close(preprocessing(batch), whole[..., 6:54, 6:54])


@pytest.mark.parametrize(
    "name",
    [
        "resnet18.a1_in1k",
        "convnext_tiny.fb_in22k_ft_in1k_384",
        "vit_base_patch16_clip_quickgelu_224.openai",
        "tf_efficientnet_lite0.in1k",
        "vit_so400m_patch14_siglip_gap_378.webli",
        "naflexvit_base_patch16_siglip.v2_webli",
        "border",
    ],
)
@pytest.mark.parametrize("size", [(60, 180), (181, 60), (300, 301)])
def test_the_network_sees_what_timms_own_transform_gives(name, size):
    """One configuration of each crop mode, interpolation and crop; timm's pixels are rounded to 8 bits, and ours are not."""
    border = next((m for m in timm.list_pretrained() if timm.get_pretrained_cfg(m).crop_mode == "border"), None)
    if name == "border" and border is None:
        pytest.skip("this version of timm has no model that pads images")
    config = timm.get_pretrained_cfg(border if name == "border" else name).to_dict()
    model = nn.Sequential(nn.AdaptiveAvgPool2d(16), nn.Flatten())
    model.pretrained_cfg = config
    picture = Image.fromarray(_noise(*size))
    ours = FrozenEncoder(model, l2_normalize=False, device="cpu").transform([picture])
    transform = create_transform(**resolve_data_config(pretrained_cfg=config), is_training=False)
    wanted = model(transform(picture)[None]).numpy()
    np.testing.assert_allclose(ours, wanted, atol=1.5 / 255 / min(config["std"]))


def test_configurations_that_are_not_honoured_are_refused():
    config = timm.get_pretrained_cfg("resnet18.a1_in1k").to_dict()
    changes = {"interpolation": "lanczos", "crop_mode": "other", "input_size": (1, 224, 224)}
    for name, value in changes.items():
        model = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten())
        model.pretrained_cfg = {**config, name: value}
        with pytest.raises(ValueError, match=f"{name}=|images here are RGB and square"):
            FrozenEncoder(model).load()
    model.pretrained_cfg = {**config, "input_size": (3, 256, 192)}
    with pytest.raises(ValueError, match="pass image_size="):
        FrozenEncoder(model).load()
    assert FrozenEncoder(model, image_size=64).load().preprocessing.image_size == 64


def test_a_large_jpeg_is_decoded_at_a_reduced_scale(seen, tmp_path, monkeypatch):
    pixels = _noise(1001, 1503)
    path = tmp_path / "large.jpg"
    exif = Image.Exif()
    for orientation in (1, 6, 3):
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(path, quality=97, exif=exif)
        whole = ImageOps.exif_transpose(Image.open(path))
        wanted = seen([np.asarray(whole)])
        sizes = []
        load = Image.Image.crop
        monkeypatch.setattr(Image.Image, "crop", lambda self, box: (sizes.append(self.size), load(self, box))[1])  # noqa: B023
        found = seen([str(path)])
        monkeypatch.undo()
        assert max(sizes[0]) < 400
        np.testing.assert_allclose(found, wanted, atol=0.03)
        assert np.abs(found - wanted).mean() < 0.003  # a shift by half a pixel of the network would give 0.01


def test_images_in_an_array_may_be_large_or_elongated(seen):
    for size in ((1300, 1200), (2, 9000)):
        pixels = np.stack([_noise(*size, seed=i) for i in range(2)])
        wanted = seen([*map(Image.fromarray, pixels)])
        for X in (pixels, (pixels / 255).astype(np.float32), torch.from_numpy(pixels).permute(0, 3, 1, 2)):
            np.testing.assert_allclose(seen(X), wanted, atol=1e-5)


MEMORY = """
    import resource, sys, warnings
    from PIL import Image
    from sklearn_clpdd import FrozenEncoder
    encoder = FrozenEncoder(image_size=64, n_jobs=2)
    encoder.transform([sys.argv[1]])  # small
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    encoder.transform([sys.argv[2]] * int(sys.argv[3]))
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize(
    ("size", "form", "n", "limit"),
    [
        ((4000, 3000), "jpg", 32, 100),
        pytest.param((4000, 3000), "png", 8, 200, marks=pytest.mark.slow),
        ((1, 20_000), "png", 1, 60),
        pytest.param((20_000, 1), "png", 1, 60, marks=pytest.mark.slow),
    ],
)
def test_memory_is_that_of_the_reduced_images(tmp_path, size, form, n, limit):
    """And of one whole picture, 48 MB of 4 bytes each, for each of two threads; whole batches would be 1,150 and 290 MB."""
    Image.new("RGB", (64, 64)).save(tmp_path / "small.png")
    Image.new("RGB", size, (9, 99, 199)).save(tmp_path / f"large.{form}")
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(MEMORY),
        str(tmp_path / "small.png"),
        str(tmp_path / f"large.{form}"),
        str(n),
    ]
    assert float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) < limit
