"""Labels that fit takes go through predictions, samplers, manifests, reports and displays, and back with their type."""

import datetime
import enum
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from networks import tiny_encoder
from sklearn.datasets import load_iris

from sklearn_clpdd import (
    ClosedFormProbe,
    CLPDistiller,
    DistilledSampler,
    FeatureMapDisplay,
    FrozenEncoder,
    SyntheticImagesDisplay,
    distillation_report,
    load_distilled,
    save_distilled,
)
from sklearn_clpdd.baselines import RandomSubset
from sklearn_clpdd.datasets import load_image_folder
from sklearn_clpdd.evaluation import compare_with_real

CODES = np.arange(30) % 3
rng = np.random.default_rng(0)
FEATURES = rng.normal(size=(30, 4))
FEATURES[np.arange(30), CODES] += 4
IMAGES = rng.integers(0, 256, (30, 16, 16, 3)).astype(np.uint8)


def _labels(three):
    return np.array(three)[CODES]


LABELS = {
    "int": _labels([3, 1, 2]),
    "negative": _labels([-3, 1, 2]),
    "uint8": _labels([3, 1, 2]).astype(np.uint8),
    "large": _labels([2**62, 2**62 + 1, 0]),
    "bool": _labels([True, False, True]),
    "float": _labels([1.0, 2.0, -1.0]),
    "str": _labels(["b", "a", "c"]),
    "object": _labels(["b", "a", "c"]).astype(object),
    "markup": _labels(["<b>x</b>", "_hidden", "$x^2$ $"]),
    "signs": _labels(["a/b|c", "..", 'q"`\\']),
    "surrogates": _labels(["caf\udce9", "dog", "\udcff"]),
    "days": _labels(np.array(["2020-01-01", "2021-02-03", "1950-01-01"], "M8[D]")),
    "nanoseconds": _labels(np.array(["2020-01-01T00:00:01", "2021-02-03", "1950-01-01"], "M8[ns]")),
    "durations": _labels(np.array([1, 2, -3], "m8[s]")),
}


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.filterwarnings("error")
def test_labels_come_back(name, tmp_path):
    y = LABELS[name]
    encoder = FrozenEncoder(tiny_encoder(), image_size=16, device="cpu")
    fitted = RandomSubset(encoder, random_state=0).fit(IMAGES, y)
    np.testing.assert_array_equal(fitted.classes_, np.unique(y))
    assert fitted.classes_.dtype == y.dtype
    assert fitted.predict(IMAGES).dtype == y.dtype
    folder = save_distilled(fitted, tmp_path / "set", IMAGES, y)
    _, labels, _ = load_distilled(folder)
    np.testing.assert_array_equal(labels, fitted.y_synthetic_)
    assert labels.dtype == y.dtype
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "2 entries")  # the manifest and the card
        assert len(np.unique(load_image_folder(folder)[1])) == len(np.unique(y))
    page = distillation_report(fitted, IMAGES, y, tmp_path / "report.html", X=IMAGES, y=y, n_draws=2).read_text("utf-8")
    assert "<b>x</b>" not in page
    SyntheticImagesDisplay.from_estimator(fitted).figure_.canvas.draw()
    display = FeatureMapDisplay.from_estimator(fitted, IMAGES, y)
    display.figure_.canvas.draw()
    assert len(display.ax_.get_legend().get_texts()) == len(np.unique(y))
    plt.close("all")
    assert "real" in " ".join(compare_with_real(fitted, IMAGES, y, IMAGES, y, n_draws=1))
    html = fitted._repr_mimebundle_()["text/html"]
    assert html.count("<img") == len(np.unique(y))
    assert "<b>x</b>" not in html


@pytest.mark.parametrize("name", LABELS)
def test_probes_take_the_same_labels(name):
    y = LABELS[name]
    probe = ClosedFormProbe(1.0, temperature=0.2).fit(FEATURES, y)
    assert probe.classes_.dtype == y.dtype
    assert np.mean(probe.predict(FEATURES) == y) > 0.8
    stream = ClosedFormProbe(1.0, temperature=0.2).partial_fit(FEATURES, y, classes=np.unique(y))
    np.testing.assert_array_equal(stream.predict(FEATURES), probe.predict(FEATURES))


PANDAS = {
    "Int64": pd.Series(CODES, dtype="Int64", name="y"),
    "boolean": pd.Series(CODES == 1, dtype="boolean", name="y"),
    "string": pd.Series([*"bac"] * 10, dtype="string", name="y"),
    "category": pd.Series(pd.Categorical([*["lo", "mid", "hi"] * 10], ["lo", "mid", "hi"], ordered=True), name="y"),
    "category of int": pd.Series(pd.Categorical(CODES), name="y"),
    "datetime": pd.Series(pd.to_datetime(["2020-01-01", "2021-01-01", "2022-01-01"] * 10), name="y"),
    "frame": pd.DataFrame({"y": CODES}),
    "frame of categories": pd.DataFrame({"y": pd.Categorical([*"bac"] * 10)}),
    "int": pd.Series(CODES, name="y"),
}


@pytest.mark.parametrize("name", PANDAS)
@pytest.mark.filterwarnings("ignore:A column-vector y")
def test_pandas_labels_keep_their_type(name):
    y = PANDAS[name]
    values = y.iloc[:, 0] if name.startswith("frame") else y
    fitted = RandomSubset(None, random_state=0).fit(FEATURES, y)
    np.testing.assert_array_equal(fitted.classes_, np.sort(pd.unique(values).astype(fitted.classes_.dtype)))
    assert fitted.classes_.dtype.kind == {"Int64": "i", "boolean": "b", "datetime": "M"}.get(name, fitted.classes_.dtype.kind)
    assert fitted.score(FEATURES, values) > 0.5
    assert ClosedFormProbe(1.0, temperature=0.2).fit(FEATURES, y).score(FEATURES, values) > 0.8
    resampled = DistilledSampler(RandomSubset(None, random_state=0)).fit_resample(pd.DataFrame(FEATURES), y)[1]
    assert type(resampled) is type(y)
    if name.startswith("frame"):
        assert resampled.dtypes.tolist() == y.dtypes.tolist()
        assert resampled.columns.tolist() == ["y"]
    else:
        assert (resampled.dtype, resampled.name) == (y.dtype, "y")
    found = resampled.iloc[:, 0] if name.startswith("frame") else resampled
    assert set(found.tolist()) == set(values.tolist())


MISSING = {
    "Int64": pd.Series([1, 2, pd.NA] * 10, dtype="Int64"),
    "boolean": pd.Series([True, False, pd.NA] * 10, dtype="boolean"),
    "string": pd.Series(["a", "b", pd.NA] * 10, dtype="string"),
    "object": pd.Series(["a", "b", None] * 10, dtype=object),
    "category": pd.Series(["a", "b", None] * 10, dtype="category"),
    "float": np.array([1.0, 2.0, np.nan] * 10),
    "dates": np.array(["2020-01-01", "2021-01-01", "NaT"] * 10, "M8[D]"),
    "list": ["a", "b", float("nan")] * 10,
    "frame": pd.DataFrame({"y": pd.Series([1, 2, pd.NA] * 10, dtype="Int64")}),
}


@pytest.mark.parametrize("name", MISSING)
@pytest.mark.parametrize(
    "fit",
    [
        lambda y: ClosedFormProbe(1.0).fit(FEATURES, y),
        lambda y: ClosedFormProbe(1.0).partial_fit(FEATURES, y, classes=[1, 2]),
        lambda y: CLPDistiller(None, max_iter=2).fit(FEATURES, y),
        lambda y: CLPDistiller(FrozenEncoder(tiny_encoder(), image_size=16), max_iter=2).fit(IMAGES, y),
        lambda y: CLPDistiller(None, max_iter=2).fit(FEATURES, CODES, groups=y),
    ],
    ids=["probe", "stream", "features", "images", "groups"],
)
@pytest.mark.filterwarnings("ignore:A column-vector y")
def test_missing_labels_are_named_with_their_positions(name, fit):
    y = np.array(MISSING[name], dtype=object) if name == "list" else MISSING[name]
    with pytest.raises(ValueError, match=r"10 of 30 labels are missing .* positions 2, 5, 8, 11, .* of (y|groups); remove"):
        fit(y)


@pytest.mark.parametrize(
    "y",
    [
        [datetime.date(2020, 1, 1 + code) for code in CODES],
        np.array([b"a", b"b", b"c"])[CODES],
        np.array(["a", 1, 2.5], dtype=object)[CODES],
        CODES + 0.5,
        CODES + 1j,
        [(code, 1) for code in CODES],
        np.array([1.0, np.inf, 2.0])[CODES],
    ],
    ids=["date objects", "bytes", "mixed", "continuous", "complex", "tuples", "infinite"],
)
def test_other_labels_are_refused_before_the_work(y):
    for estimator in (ClosedFormProbe(1.0), CLPDistiller(None, max_iter=10**9)):
        with pytest.raises(ValueError, match=r"(?i)label type|infinity|1d|Complex"):
            estimator.fit(FEATURES, y)


def test_iris_with_the_names_of_its_species():
    X, y = load_iris(return_X_y=True, as_frame=True)
    species = y.map({0: "setosa", 1: "versicolor", 2: "virginica"}).astype("category")
    assert ClosedFormProbe().fit(X, species).score(X, species) > 0.8


class Animal(str, enum.Enum):
    cat, cow = "cat", "cows-cow"


@pytest.mark.parametrize(
    "y",
    [
        [Animal.cat, Animal.cow] * 15,
        ["a", float("nan")] * 15,
        ["a", 1, "1"] * 10,
        [True, 2] * 15,
        np.ma.array(CODES, mask=CODES == 1),
        {1, 2},
    ],
    ids=["members of an enumeration", "text and NaN", "text and numbers", "bool and int", "masked", "set"],
)
def test_labels_of_several_types_are_not_merged(y):
    with pytest.raises(ValueError, match=r"missing|of type|type set|one-dimensional|1d"):
        ClosedFormProbe(1.0).fit(FEATURES, y)


def test_labels_of_other_layouts_are_native():
    y = LABELS["days"].astype(">M8[D]")
    assert ClosedFormProbe(1.0).fit(FEATURES, y).classes_.tolist() == sorted(set(LABELS["days"].tolist()))
    assert ClosedFormProbe(1.0).fit(FEATURES, torch.from_numpy(CODES)).classes_.tolist() == [0, 1, 2]
    assert ClosedFormProbe(1.0).fit(FEATURES, CODES.astype(object)).classes_.tolist() == [0, 1, 2]
    assert ClosedFormProbe(1.0).fit(FEATURES, CODES.astype(np.longdouble)).classes_.dtype == np.float64
    arrow = pytest.importorskip("pyarrow").array([["a", "b", "c"][code] for code in CODES])
    assert ClosedFormProbe(1.0).fit(FEATURES, arrow).classes_.tolist() == ["a", "b", "c"]


def test_text_may_end_with_a_zero():
    y = [["a", "a\0", "b"][code] for code in CODES]
    assert ClosedFormProbe(1.0).fit(FEATURES, y).classes_.tolist() == ["a", "a\0", "b"]
