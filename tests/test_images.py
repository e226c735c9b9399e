"""All forms of images have the same features; everything else raises a helpful error."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sklearn_clpdd import FrozenEncoder
from sklearn_clpdd.encoder import _extractor as extractor_module
from sklearn_clpdd.encoder._preprocessing import Preprocessing
from sklearn_clpdd.encoder.images._forms import as_images


@pytest.fixture
def pixels():
    """Five uint8 RGB images of noise."""
    return np.random.default_rng(0).integers(0, 256, (5, 20, 24, 3)).astype(np.uint8)


@pytest.fixture
def paths(pixels, tmp_path):
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    return [str(tmp_path / f"{i}.png") for i in range(len(pixels))]


@pytest.fixture
def encoder(module):
    return FrozenEncoder(module, image_size=16, crop_pct=0.8, device="cpu")


def _forms(pixels, paths):
    pictures = [Image.fromarray(image) for image in pixels]
    objects = np.empty(len(pictures), dtype=object)
    objects[:] = pictures
    return {
        "uint8": pixels,
        "float32": pixels.astype(np.float32) / 255,
        "float64": pixels / 255,
        "nested lists": (pixels / 255).tolist(),
        "read-only": np.frombuffer(pixels.tobytes(), np.uint8).reshape(pixels.shape),
        "float64 of the other byte order": (pixels / 255).astype(np.dtype(float).newbyteorder()),
        "long double": (pixels / 255).astype(np.longdouble),
        "reversed strides": pixels[:, ::-1, ::-1][:, ::-1, ::-1],
        "tensor uint8": torch.from_numpy(pixels).permute(0, 3, 1, 2),
        "tensor float": torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255,
        "PIL": pictures,
        "PIL array": objects,
        "paths": paths,
        "path array": np.array(paths),
        "path objects": [*map(Path, paths)],
    }


def test_every_form_gives_the_same_features(encoder, pixels, paths):
    wanted = encoder.transform(pixels)
    assert wanted.dtype == np.float32
    for name, X in _forms(pixels, paths).items():
        np.testing.assert_allclose(encoder.transform(X), wanted, atol=2e-6, err_msg=name)


def test_rows_are_unfolded_by_image_shape(module, pixels):
    rows = FrozenEncoder(module, image_size=16, device="cpu", image_shape=(20, 24, 3))
    images = FrozenEncoder(module, image_size=16, device="cpu")
    np.testing.assert_array_equal(rows.transform(pixels.reshape(5, -1)), images.transform(pixels))
    np.testing.assert_array_equal(rows.transform(torch.from_numpy(pixels.reshape(5, -1))), images.transform(pixels))


def test_rows_of_grey_images_may_be_three_wide(module):
    grey = np.random.default_rng(0).integers(0, 256, (5, 24, 3)).astype(np.uint8)
    rows = FrozenEncoder(module, image_size=16, device="cpu", image_shape=(24, 3))
    images = FrozenEncoder(module, image_size=16, device="cpu")
    np.testing.assert_array_equal(rows.transform(grey.reshape(5, -1)), images.transform(grey[..., None]))


def test_grey_images_are_three_equal_channels(encoder):
    grey = np.random.default_rng(0).integers(0, 256, (2, 20, 24)).astype(np.uint8)
    wanted = encoder.transform(np.repeat(grey[..., None], 3, axis=3))
    for form in (grey, grey[..., None], torch.from_numpy(grey)[:, None], [*map(Image.fromarray, grey)]):
        np.testing.assert_allclose(encoder.transform(form), wanted, atol=2e-6)


def test_files_of_every_mode(tmp_path):
    """Palettes, transparency, one bit, 16 bits and CMYK are converted to RGB in [0, 1]."""
    ramp = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (32, 1))
    picture = Image.fromarray(ramp)
    modes = {mode: picture.convert(mode) for mode in ("L", "LA", "RGB", "RGBA", "CMYK", "P")}
    modes["I;16"] = Image.fromarray(ramp.astype(np.uint16) * 257)
    paths = []
    for mode, image in modes.items():
        paths.append(str(tmp_path / f"{mode.replace(';', '')}.{'tif' if mode == 'CMYK' else 'png'}"))
        image.save(paths[-1])
    images = as_images(paths)
    images.check()
    batch = images.read(range(len(paths)), Preprocessing(32))
    assert batch.shape == (7, 3, 32, 32)
    for mode, image in zip(modes, batch, strict=True):
        np.testing.assert_allclose(image[1], ramp / 255, atol=0.02, err_msg=mode)


def test_pictures_of_different_sizes_are_resized_and_cropped(encoder):
    images = [Image.new("RGB", size, (200, 30, 30)) for size in [(8, 8), (100, 20), (20, 100)]]
    features = encoder.transform(images)
    np.testing.assert_allclose(features, features[:1].repeat(3, axis=0), atol=1e-5)


@pytest.mark.parametrize(
    ("X", "error", "words"),
    [
        (np.zeros((2, 3, 4, 4, 3)), ValueError, r"\(2, 3, 4, 4, 3\).*Accepted are"),
        (np.zeros((4, 48)), ValueError, "image_shape="),
        (np.zeros((2, 3, 8, 8), np.uint8), ValueError, r"shape \(2, 3, 8, 8\)"),
        (np.zeros((2, 8, 8, 3), np.int64), ValueError, "int64"),
        (np.full((2, 8, 8, 3), np.nan), ValueError, "NaN"),
        (np.full((2, 8, 8, 3), 255.0), ValueError, "values from 255 to 255"),
        (np.full((2, 8, 8, 3), -0.5), ValueError, "values from -0.5"),
        (np.zeros((2, 0, 8, 3)), ValueError, "size zero"),
        (np.zeros((0, 8, 8, 3)), ValueError, "no images"),
        (np.zeros((8, 8, 3), np.uint8), ValueError, r"one image\? Pass X\[None\]"),
        (torch.zeros(3, 8, 8), ValueError, r"tensor of shape \(3, 8, 8\)"),
        (torch.zeros(0, 48), ValueError, "image_shape="),
        ([Image.new("F", (4, 4))], ValueError, "X\\[0\\].*convert it to 8 or 16 bits"),
        (torch.zeros(2, 8, 8, 3), ValueError, r"tensor of shape \(2, 8, 8, 3\)"),
        ([], ValueError, "no images"),
        (["a.png", 3], TypeError, "element 1 .* int"),
        ("one.png", TypeError, "one picture, one.png; pass a list"),
        (Image.new("RGB", (4, 4)), TypeError, "one picture.*pass a list"),
        ([np.zeros((4, 4)), np.zeros((5, 5, 2))], ValueError, r"X\[1\].*shape \(5, 5, 2\) is none of"),
    ],
)
def test_bad_arrays(encoder, X, error, words):
    with pytest.raises(error, match=words):
        encoder.transform(X)


def test_bad_image_shape(module):
    with pytest.raises(ValueError, match=r"48 values.*\(4, 5\) \(20 values\)"):
        FrozenEncoder(module, image_size=16, image_shape=(4, 5)).transform(np.zeros((4, 48)))
    with pytest.raises(ValueError, match=r"image_shape=\(48,\).*pass \(H, W\) or \(H, W, C\) whose product is 48"):
        FrozenEncoder(module, image_size=16, image_shape=(48,)).transform(np.zeros((4, 48)))


@pytest.fixture
def opened(monkeypatch):
    """Number of times each file was opened."""
    counts, original = Counter(), Image.open

    def counted(path, *args, **kwargs):
        counts[str(path)] += 1
        return original(path, *args, **kwargs)

    monkeypatch.setattr(Image, "open", counted)
    return counts


@pytest.fixture
def bad(tmp_path):
    """Files that exist and cannot be decoded."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))
    for suffix in ("jpg", "png"):
        noise.save(tmp_path / f"cut.{suffix}")
        whole = (tmp_path / f"cut.{suffix}").read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    return [str(tmp_path / name) for name in ("cut.jpg", "cut.png", "text.jpg")]


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("n_jobs", [None, 2])
def test_files_are_decoded_once_and_bad_ones_are_named_together(
    encoder, paths, bad, tmp_path, n_jobs, memory, opened, monkeypatch
):
    monkeypatch.setattr(extractor_module, "_BLOCK", 4)
    encoder.set_params(n_jobs=n_jobs, batch_size=2, memory=tmp_path / "cache" if memory else None)
    X = [*paths[:3], *bad, *paths[3:]]
    with pytest.raises(ValueError, match="3 of 8 images") as caught:
        encoder.transform(X)
    assert all(f"X[{i}], {path}: " in str(caught.value) for i, path in zip((3, 4, 5), bad, strict=True))
    assert opened == Counter(X)
    opened.clear()
    encoder.transform(paths)
    assert set(opened.values()) == {1}
    assert memory or len(opened) == 5


@pytest.mark.parametrize("memory", [False, True])
def test_cut_images_that_were_opened_lazily_are_named(encoder, paths, bad, tmp_path, memory):
    X = [Image.open(path) for path in [*paths[:2], bad[0]]]
    with pytest.raises(ValueError, match=r"1 of 3 images[^\n]*\n  X\[2\], .*OSError: image file is truncated"):
        encoder.set_params(memory=tmp_path / "cache" if memory else None).transform(X)


def test_missing_files_are_named_before_anything_is_encoded(encoder, paths, tmp_path, opened):
    with pytest.raises(FileNotFoundError, match=r"1 of 6 images[^\n]*\n  X\[2\], .*missing.png: no such file"):
        encoder.transform([*paths[:2], str(tmp_path / "missing.png"), *paths[2:]])
    assert not opened


def test_files_that_cannot_be_accessed_are_not_missing(encoder, paths, tmp_path):
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    X = [*paths[:2], str(tmp_path / "loop.png"), str(tmp_path / ("x" * 300))]
    for memory in (None, tmp_path / "cache"):
        with pytest.raises(ValueError, match=r"(?s)2 of 4 images.*X\[2\].*symbolic links.*X\[3\].*too long"):
            encoder.set_params(memory=memory).transform(X)


def test_missing_files_are_a_file_not_found_error_that_names_ten(encoder, tmp_path):
    with pytest.raises(FileNotFoundError, match="25 of 25") as caught:
        encoder.transform([str(tmp_path / f"{i}.png") for i in range(25)])
    assert str(caught.value).count("no such file") == 10
    assert "15 more" in str(caught.value)


def test_missing_files_are_named_with_a_cache_too(encoder, tmp_path):
    encoder.set_params(memory=str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match="2 of 2"):
        encoder.transform([str(tmp_path / "a.png"), str(tmp_path / "b.png")])


def test_paths_stay_on_disk(paths):
    images = as_images(np.array(paths * 20_000))
    assert len(images) == 100_000
    assert all(isinstance(picture, str) for picture in images.pictures)
    assert images.read([99_999], Preprocessing(20)).shape == (1, 3, 20, 20)


def test_keys_follow_the_content(pixels, paths):
    changed = pixels.copy()
    changed[0, 0, 0, 0] ^= 1
    assert as_images(pixels).keys().tobytes() == as_images(pixels.copy()).keys().tobytes() != as_images(changed).keys().tobytes()
    before = as_images(paths).keys().tobytes()
    assert before == as_images(paths).keys().tobytes()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(paths[0])
    assert before != as_images(paths).keys().tobytes()


def test_views_of_arrays_with_negative_strides(pixels):
    whole = as_images(pixels[:, :20, :20]).read(range(5), Preprocessing(20))
    np.testing.assert_array_equal(as_images(pixels[::-1, :20, 19::-1]).read(range(5), Preprocessing(20)), whole.flip(0, 3))
