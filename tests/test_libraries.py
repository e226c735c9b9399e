"""Pictures as other libraries keep them: the same features as a list of the same pictures, and little memory."""

import io
import pickle
import sqlite3
import sys
import threading
import zipfile

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from PIL import Image
from sklearn import base
from sklearn.compose import ColumnTransformer
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.fixes import parse_version

from sklearn_clpdd import ClosedFormProbe, CLPDistiller, FrozenEncoder
from sklearn_clpdd.datasets import load_hf_dataset, load_torch_dataset
from sklearn_clpdd.encoder.images import _lazy

N = 12


@pytest.fixture(scope="module")
def pictures():
    """Pictures of three modes and many sizes."""
    rng = np.random.default_rng(0)
    shapes = [(20 + 3 * i, 40 - 2 * i, 3) for i in range(N)]
    made = [Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)) for shape in shapes]
    return [picture.convert(("RGB", "L", "RGBA")[i % 3]) for i, picture in enumerate(made)]


@pytest.fixture(scope="module")
def contents(pictures):
    def content(picture):
        file = io.BytesIO()
        picture.save(file, "PNG")
        return file.getvalue()

    return [*map(content, pictures)]


@pytest.fixture
def encoder(module):
    return FrozenEncoder(module, image_size=16, device="cpu", batch_size=5)


@pytest.fixture
def wanted(encoder, pictures):
    return encoder.transform(pictures)


class Items(torch.utils.data.Dataset):
    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, i):
        return self.pictures[i], i % 2


def hf_dataset(contents, **columns):
    datasets = pytest.importorskip("datasets")
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    rows = {"image": [{"bytes": content, "path": None} for content in contents], "label": [i % 2 for i in range(len(contents))]}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def in_memory(contents):
    return [{"bytes": content, "path": "name-in-an-archive.png"} for content in contents]


@pytest.mark.parametrize("memory", [False, True])
def test_forms_of_bytes(encoder, wanted, contents, tmp_path, memory):
    encoder.set_params(memory=tmp_path / "cache" if memory else None)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for i, content in enumerate(contents):
            archive.writestr(f"{i}.png", content)
            (tmp_path / f"{i}.png").write_bytes(content)
    paths = [str(tmp_path / f"{i}.png") for i in range(N)]
    files = [open(path, "rb") for path in paths]  # noqa: SIM115
    forms = {
        "bytes": contents,
        "bytearrays": [*map(bytearray, contents)],
        "views": [*map(memoryview, contents)],
        "BytesIO": [*map(io.BytesIO, contents)],
        "opened files": files,
        "dicts of bytes": in_memory(contents),
        "dicts of paths": [{"bytes": None, "path": path} for path in paths],
        "object array": np.array(in_memory(contents), dtype=object),
        "column of bytes": pd.Series(contents),
        "frame of bytes": pd.DataFrame({"photo": contents}),
        "column of dicts": pd.Series(in_memory(contents)),
        "URLs": [f"file://{path}" for path in paths],
        "URLs in an archive": [f"zip://{i}.png::{tmp_path}/all.zip" for i in range(N)],
        "paths in an archive": [zipfile.Path(tmp_path / "all.zip", f"{i}.png") for i in range(N)],
    }
    for name, X in forms.items():
        np.testing.assert_array_equal(encoder.transform(X), wanted, err_msg=name)
    assert {file.tell() for file in files} == {0}
    for file in files:
        file.close()
    with pytest.raises(ValueError, match=r"12 of 12 images(?s:.*)closed file"):
        FrozenEncoder(encoder.model, image_size=16).transform(files)


@pytest.mark.parametrize("memory", [False, True])
def test_arrow_and_parquet(encoder, wanted, contents, tmp_path, memory):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    encoder.set_params(memory=tmp_path / "cache" if memory else None)
    table = pa.table({"photo": pa.array(in_memory(contents)), "raw": pa.array(contents)})
    pyarrow.parquet.write_table(table, tmp_path / "photos.parquet", row_group_size=5)
    table = pyarrow.parquet.read_table(tmp_path / "photos.parquet")
    read = {form: pd.read_parquet(tmp_path / "photos.parquet", dtype_backend=form) for form in ("numpy_nullable", "pyarrow")}
    forms = {
        "structs": table["photo"],
        "binary": table["raw"],
        "array": table["raw"].combine_chunks(),
        "table": table.select(["raw"]),
        "scalars": list(table["raw"]),
        **{f"pandas {form} {column}": frame[column] for form, frame in read.items() for column in frame},
    }
    for name, X in forms.items():
        np.testing.assert_array_equal(encoder.transform(X), wanted, err_msg=name)
    with pytest.raises(ValueError, match=r"Arrow table with the columns \['photo', 'raw'\]; pass the one"):
        encoder.transform(table)
    with pytest.raises(ValueError, match=r"data frame with the columns \['photo', 'raw'\]; pass the one"):
        encoder.transform(read["numpy_nullable"])


def test_polars(encoder, wanted, contents):
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"photo": in_memory(contents), "raw": contents})
    for X in (frame["photo"], frame["raw"], frame[["raw"]]):
        np.testing.assert_array_equal(encoder.transform(X), wanted)
    with pytest.raises(ValueError, match=r"polars with the columns \['photo', 'raw'\]"):
        encoder.transform(frame)


@pytest.mark.parametrize("memory", [False, True])
def test_hugging_face(encoder, wanted, contents, tmp_path, memory):
    encoder.set_params(memory=tmp_path / "cache" if memory else None)
    dataset = hf_dataset(contents)
    X, y = load_hf_dataset(dataset)
    forms = {
        "data set": dataset,
        "column": dataset["image"],
        "lazy": X,
        "in torch's format": dataset.with_format("torch"),
        "in numpy's format": dataset.with_format("numpy"),
        "with a transform": dataset.with_transform(lambda rows: {"image": [one["bytes"] for one in rows["image"]]}).cast_column(
            "image", type(dataset.features["image"])(decode=False)
        ),
    }
    for name, form in forms.items():
        np.testing.assert_array_equal(encoder.transform(form), wanted, err_msg=name)
    np.testing.assert_array_equal(encoder.transform(dataset.select([3, 1])), wanted[[3, 1]])
    np.testing.assert_array_equal(
        encoder.transform(dataset.shuffle(seed=0).sort("label")),
        encoder.transform([*dataset.shuffle(seed=0).sort("label")["image"]]),
    )
    assert y.tolist() == ["cat", "dog"] * 6
    assert isinstance(X[0], Image.Image)


def test_features_of_a_data_set_are_cached_without_reading_it(encoder, wanted, contents, tmp_path, monkeypatch):
    encoder.set_params(memory=tmp_path / "cache")
    X, _ = load_hf_dataset(hf_dataset(contents))
    encoder.transform(X)
    read = []
    original = _lazy.HuggingFaceColumn.read
    monkeypatch.setattr(_lazy.HuggingFaceColumn, "read", lambda self, rows: read.append(rows) or original(self, rows))
    np.testing.assert_array_equal(encoder.transform(X[::-1]), wanted[::-1])
    assert not read
    other, _ = load_hf_dataset(hf_dataset(contents[::-1]))
    np.testing.assert_array_equal(encoder.transform(other), wanted[::-1])
    assert read


def test_pictures_of_a_data_set_that_are_files_are_known_by_their_files(encoder, wanted, contents, tmp_path):
    datasets = pytest.importorskip("datasets")
    encoder.set_params(memory=tmp_path / "cache")
    path = tmp_path / "changing.png"
    path.write_bytes(contents[0])
    dataset = datasets.Dataset.from_dict({"image": [str(path)]}).cast_column("image", datasets.Image())
    for i in (0, 1):
        path.write_bytes(contents[i])
        np.testing.assert_allclose(encoder.transform(dataset), wanted[i : i + 1], atol=1e-6)


def test_transforms_of_a_data_set_are_not_cached_by_name(encoder, wanted, contents, tmp_path):
    encoder.set_params(memory=tmp_path / "cache")
    dataset = hf_dataset(contents)
    X, _ = load_hf_dataset(dataset)
    np.testing.assert_array_equal(encoder.transform(X), wanted)
    shift = [0]

    def rolled(rows):
        pictures = [Image.fromarray(255 - np.asarray(one.convert("RGB")) // (1 + shift[0])) for one in rows["image"]]
        return {"image": pictures}

    dataset.set_transform(rolled)
    first = encoder.transform(dataset)
    shift[0] = 1
    assert not np.allclose(encoder.transform(dataset), first, atol=1e-3)
    np.testing.assert_array_equal(encoder.transform(X), wanted)


def test_little_is_read_at_once(encoder, contents, monkeypatch):
    X, y = load_hf_dataset(hf_dataset(contents))
    sizes = []
    original = _lazy.HuggingFaceColumn.read
    monkeypatch.setattr(_lazy.HuggingFaceColumn, "read", lambda self, rows: sizes.append(len(rows)) or original(self, rows))
    encoder.transform(X)
    assert sizes == [5, 5, 2]
    sizes.clear()
    cross_val_predict(make_pipeline(encoder, ClosedFormProbe(alpha=1.0)), X, y, cv=KFold(2))
    assert max(sizes) <= 5


def test_splitters_of_scikit_learn(module, pictures, contents):
    labels = np.array(["cat", "dog"] * 6)
    distiller = CLPDistiller(FrozenEncoder(module, image_size=16, device="cpu"), max_iter=2, random_state=0)
    search = GridSearchCV(distiller, {"images_per_class": [1, 2]}, cv=2)
    wanted = search.fit(pictures, labels).cv_results_["mean_test_score"]
    dataset = hf_dataset(contents)
    for X in (load_hf_dataset(dataset)[0], dataset["image"], Items(pictures), load_torch_dataset(Items(pictures))[0]):
        np.testing.assert_array_equal(search.fit(X, labels).cv_results_["mean_test_score"], wanted)


def test_lazy_pictures_are_indexed_like_an_array(contents):
    X, _ = load_hf_dataset(hf_dataset(contents))
    reference = np.arange(N)
    for key in (slice(2, 9, 3), [4, 4, 1], reference % 3 == 0, np.array([-1, 0]), (np.array([5]), ...)):
        part = X[key]
        assert part.shape == (len(part),) == reference[key].shape
        assert part.take(range(len(part))) == [in_memory([contents[i]])[0] | {"path": None} for i in reference[key]]
    with pytest.raises(IndexError):
        X[N]
    assert len(pickle.loads(pickle.dumps(X))) == N
    assert repr(X) == "LazyPictures of 12 pictures of the column 'image'"


def test_what_a_data_set_lacks(encoder, contents):
    datasets = pytest.importorskip("datasets")
    dataset = hf_dataset(contents)
    twice = dataset.add_column("other", [0] * N).rename_column("label", "y")
    with pytest.raises(ValueError, match=r"no column of the kind Image, but \['label'\]"):
        encoder.transform(dataset.remove_columns("image"))
    with pytest.raises(TypeError, match=r"splits \['train'\]; pass one of them, such as dataset\['train'\]"):
        encoder.transform(datasets.DatasetDict({"train": dataset}))
    with pytest.raises(TypeError, match=r"splits \['train'\]"):
        load_hf_dataset(datasets.DatasetDict({"train": dataset}))
    with pytest.raises(ValueError, match=r"no column 'foo'; it has \['image', 'label'\]"):
        load_hf_dataset(dataset, image="foo")
    with pytest.raises(ValueError, match="no column 'foo'"):
        load_hf_dataset(dataset, label="foo")
    assert load_hf_dataset(twice, label="other")[1].tolist() == [0] * N
    with pytest.raises(TypeError, match=r"streamed data set has no length.*iter_transform"):
        load_hf_dataset(dataset.to_iterable_dataset())
    with pytest.raises(TypeError, match="got a list"):
        load_hf_dataset(contents)
    unlabelled = dataset.remove_columns("label").add_column("label", [-1, *[0] * (N - 1)])
    with pytest.raises(ValueError, match="1 rows have no label in the column 'label', first row 0"):
        load_hf_dataset(unlabelled.cast_column("label", dataset.features["label"]))


def test_items_of_torch(encoder, wanted, pictures):
    subset = torch.utils.data.Subset(Items(pictures), [3, 1])
    np.testing.assert_array_equal(encoder.transform(Items(pictures)), wanted)
    np.testing.assert_array_equal(encoder.transform(subset), wanted[[3, 1]])
    X, y = load_torch_dataset(subset)
    np.testing.assert_array_equal(encoder.transform(X), wanted[[3, 1]])
    assert y.tolist() == [1, 1]
    with pytest.raises(TypeError, match="item 0 of the data set is a Tensor, not a pair"):
        load_torch_dataset(torch.rand(3, 4))
    with pytest.raises(TypeError, match=r"a generator does not.*iter_transform"):
        load_torch_dataset(i for i in range(3))
    with pytest.raises(ValueError, match=r"1 of 2 images(?s:.*)X\[1\], .*getting it raised IndexError"):
        encoder.transform(torch.utils.data.Subset(Items(pictures), [0, 99]))


def test_pairs_of_pictures_are_not_pictures_with_labels(encoder, contents):
    for second in (contents[0], "mask.png", Image.new("L", (4, 4)), np.zeros((4, 4))):
        with pytest.raises(TypeError, match=r"a tuple of 2 .pass images and labels separately"):
            encoder.transform([(contents[0], second)])


def test_names_of_classes_that_are_no_names(pictures):
    dataset = Items(pictures)
    dataset.targets = [i % 2 for i in range(N)]
    for classes, wanted in ((["cat", "dog"], "cat"), ([("cat", "tabby"), ("dog",)], 0), (["crane", "crane"], 0)):
        dataset.classes = classes
        assert load_torch_dataset(dataset)[1][0] == wanted


def test_folders_of_torchvision(encoder, tmp_path, monkeypatch):
    folder = pytest.importorskip("torchvision.datasets").ImageFolder
    for i, name in enumerate(["cat", "dog", "cat"]):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (60 * i, 99, 0)).save(tmp_path / name / f"{i}.png")
    paths = [str(tmp_path / name) for name in ("cat/0.png", "cat/2.png", "dog/1.png")]
    X, y = load_torch_dataset(folder(tmp_path))
    assert y.tolist() == ["cat", "cat", "dog"]
    for form in (folder(tmp_path), X, folder(tmp_path).samples):
        np.testing.assert_array_equal(encoder.transform(form), encoder.transform(paths))
    part, labels = load_torch_dataset(torch.utils.data.Subset(folder(tmp_path), [2, 0]))
    assert labels.tolist() == ["dog", "cat"]
    np.testing.assert_array_equal(encoder.transform(part), encoder.transform([paths[2], paths[0]]))


def test_urls_without_a_package_that_reads_them(encoder, no_encoding, monkeypatch):
    with pytest.raises(ImportError, match=r"s3://bucket/a.png cannot be read: Install s3fs"):
        encoder.transform(["a.png", "s3://bucket/a.png"][1:])
    with pytest.raises(ValueError, match=r"nope://a.png cannot be read: Protocol not known"):
        encoder.transform(["nope://a.png"])
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ImportError, match="pip install fsspec"):
        encoder.transform(["memory://a.png"])


def test_a_url_of_nothing(encoder, tmp_path):
    for memory in (None, tmp_path / "cache"):
        with pytest.raises(FileNotFoundError, match=r"X\[0\], memory://a.png: no such file"):
            encoder.set_params(memory=memory).transform(["memory://a.png"])


def test_a_changed_url_is_encoded_again(encoder, wanted, contents, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    encoder.set_params(memory=tmp_path / "cache")
    for i in (0, 1):
        fsspec.filesystem("memory").pipe("/changing.png", contents[i])
        np.testing.assert_allclose(encoder.transform(["memory://changing.png"]), wanted[i : i + 1], atol=1e-6)


# ---- missing pictures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [False, True])
def test_missing_pictures(encoder, wanted, contents, tmp_path, memory):
    encoder.set_params(memory=tmp_path / "cache" if memory else None)
    X = [contents[0], None, float("nan"), contents[3], {"bytes": None, "path": None}, pd.NA]
    forms = {"list": X, "series": pd.Series(X, dtype=object), "array": np.array(X, dtype=object)}
    for name, form in forms.items():
        with pytest.raises(ValueError, match=r"4 of 6 images(?s:.*)X\[1\], None: missing(?s:.*)missing='zero'"):
            encoder.set_params(missing="error").transform(form)
        Z = encoder.set_params(missing="zero").transform(form)
        np.testing.assert_array_equal(Z[[0, 3]], wanted[[0, 3]], err_msg=name)
        assert not Z[[1, 2, 4, 5]].any()
    assert not encoder.transform([None, None]).any()
    with pytest.raises(ValueError, match=r"X\[1\], None: missing"):  # a distiller needs all pictures
        CLPDistiller(encoder, max_iter=1).fit([contents[0], None] * 4, [0, 1] * 4)


def test_a_table_with_pictures_and_numbers(encoder, contents):
    table = pd.DataFrame({"photo": contents, "age": np.arange(N), "height": np.arange(N)[::-1] ** 2})
    table.loc[4, "photo"] = None
    # scikit-learn before 1.8 forgets the index of a single column.
    photo = "photo" if parse_version(sklearn.__version__) >= parse_version("1.8") else ["photo"]
    columns = [("img", encoder.set_params(missing="zero"), photo), ("num", StandardScaler(), ["age", "height"])]
    transformer = ColumnTransformer(columns)
    Z = transformer.set_output(transform="pandas").fit_transform(table)
    assert Z.shape == (N, 14)
    assert not Z.iloc[4, :12].any()
    np.testing.assert_allclose(Z.iloc[:, 12:], StandardScaler().fit_transform(table[["age", "height"]]))
    model = make_pipeline(transformer, ClosedFormProbe()).fit(table, np.arange(N) % 2)
    assert model.predict(table.iloc[4:6]).shape == (2,)


# ---- streams ---------------------------------------------------------------------------------------------------------------


def test_streams(encoder, wanted, pictures, contents):
    labels = np.array(["cat", "dog"])[np.arange(N) % 2]
    blocks = list(encoder.iter_transform(iter(contents), batch_size=5))
    assert [len(block) for block in blocks] == [5, 5, 2]
    np.testing.assert_array_equal(np.concatenate(blocks), wanted)
    pairs = list(encoder.iter_transform(zip(pictures, labels, strict=True)))
    np.testing.assert_array_equal(np.concatenate([Z for Z, _ in pairs]), wanted)
    assert np.concatenate([y for _, y in pairs]).tolist() == labels.tolist()
    probe = ClosedFormProbe(alpha=1.0)
    for Z, y in pairs:
        probe.partial_fit(Z, y, classes=["cat", "dog"])
    np.testing.assert_allclose(probe.coef_, ClosedFormProbe(alpha=1.0).fit(wanted, labels).coef_, atol=1e-5)
    dataset = hf_dataset(contents).to_iterable_dataset()
    streamed = encoder.iter_transform((row["image"], row["label"]) for row in dataset)
    np.testing.assert_array_equal(np.concatenate([Z for Z, _ in streamed]), wanted)
    assert list(encoder.iter_transform([])) == []


def test_batches_of_a_loader(encoder):
    images = torch.rand(7, 3, 20, 20)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.arange(7)), batch_size=3)
    blocks = list(encoder.iter_transform(loader))
    assert [(len(Z), y.tolist()) for Z, y in blocks] == [(3, [0, 1, 2]), (3, [3, 4, 5]), (1, [6])]
    np.testing.assert_allclose(np.concatenate([Z for Z, _ in blocks]), encoder.transform(images), atol=1e-6)
    for stream in (loader, (i for i in range(3)), iter(images)):
        with pytest.raises(TypeError, match=r"a stream, .*iter_transform"):
            encoder.transform(stream)


def test_a_stream_is_read_by_its_own_thread_and_not_far_ahead(encoder, pictures, contents):
    """A cursor of sqlite works in one thread only."""
    database = sqlite3.connect(":memory:")
    database.execute("create table photos (content blob)")
    database.executemany("insert into photos values (?)", [(content,) for content in contents])
    taken = []

    def rows():
        for (content,) in database.execute("select content from photos"):
            taken.append(threading.current_thread())
            yield content

    wanted = base.clone(encoder).set_params(batch_size=2).transform(pictures)  # sums depend on the number of images at once
    blocks = encoder.iter_transform(rows(), batch_size=2)
    assert not taken
    for i, block in enumerate(blocks):
        np.testing.assert_array_equal(block, wanted[2 * i : 2 * i + 2])
        assert len(taken) <= 2 * (i + 2)
    assert set(taken) == {threading.current_thread()}


def test_errors_of_a_stream_come_after_the_blocks_before_them(encoder, wanted, contents):
    def broken():
        yield from contents[:7]
        raise ConnectionError("the bucket is gone")

    for stream, error, words in (
        (broken(), ConnectionError, "the bucket is gone"),
        (
            [*contents[:6], b"cut", *contents[7:]],
            ValueError,
            r"1 of 3 images(?s:.*)picture 6 of the stream, 3 bytes: not an image",
        ),
        ([*contents[:7], 3], TypeError, "element 7 of the stream is a int, and neither"),
        ([*contents[:7], (contents[7], 1)], TypeError, "element 7 of the stream has a label, unlike"),
        ([*contents[:7], {"image": contents[7], "label": 1}], TypeError, r"\(row\['image'\], row\['label'\]\)"),
        ([*contents[:7], np.zeros((2, 8, 8, 3))], TypeError, "element 7 of the stream is a batch"),
        ([*contents[:7], None], ValueError, "picture 7 of the stream, None: missing"),
    ):
        blocks = []
        with pytest.raises(error, match=words):  # noqa: PT012
            for block in encoder.iter_transform(stream, batch_size=3):
                blocks.append(block)  # noqa: PERF402 (`extend` would lose them)
        np.testing.assert_array_equal(np.concatenate(blocks), wanted[:6])
    for wrong in ("a.png", b"abc", 3, np.zeros((8, 8, 3))):
        with pytest.raises(TypeError, match="a stream is an iterable of pictures"):
            encoder.iter_transform(wrong)
    with pytest.raises(ValueError, match="batch_size == 0"):
        encoder.iter_transform(contents, batch_size=0)


# ---- several devices -------------------------------------------------------------------------------------------------------


def test_replicas_share_the_batches(encoder, wanted, pictures, module):
    several = FrozenEncoder(module, image_size=16, device=["cpu", "cpu", torch.device("cpu")], batch_size=2)
    np.testing.assert_allclose(several.transform(pictures), wanted, atol=1e-6)
    y = np.arange(N) % 2
    one, other = (CLPDistiller(own, max_iter=2, random_state=0).fit(pictures, y) for own in (encoder, several))
    np.testing.assert_allclose(one.X_synthetic_, other.X_synthetic_, atol=1e-3)
    with pytest.raises(ValueError, match="2 of 14 images"):
        several.transform([*pictures, b"no", b"picture"])
    for devices, words in (([], "several devices have to be of one kind"), (["cpu", "cuda:77"], "'cuda:77' is not available")):
        with pytest.raises(ValueError, match=words):
            FrozenEncoder(module, image_size=16, device=devices).transform(pictures)
