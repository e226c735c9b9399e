"""Displays, snapshots, and the representation in notebooks."""

import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from sklearn import config_context
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from sklearn_clpdd import CLPDistiller, FeatureMapDisplay, FrozenEncoder, HistoryDisplay, Snapshots, SyntheticImagesDisplay
from sklearn_clpdd.baselines import ClassCentroids
from sklearn_clpdd.distill import _trainer as trainer_module
from sklearn_clpdd.utils._pictures import to_8_bit


@pytest.fixture(autouse=True)
def without_a_screen():
    import matplotlib.pyplot as plt

    mpl.use("agg")
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def fitted(colors_once):
    module, colors = colors_once
    encoder = FrozenEncoder(module, image_size=16, device="cpu")
    return CLPDistiller(encoder, max_iter=45, random_state=0, callback=Snapshots(every=20)).fit(*colors)


@pytest.fixture(scope="module")
def colors_once(request):
    from networks import tiny_encoder

    return tiny_encoder(), request.getfixturevalue("colors")


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    return CLPDistiller(None, max_iter=30, random_state=0).fit(rng.normal(size=(40, 3)), np.arange(40) % 2)


def test_images_are_shown_with_their_classes_and_origins(fitted, colors):
    display = SyntheticImagesDisplay.from_estimator(fitted)
    assert [ax.get_title() for ax in display.axes_] == ["blue", "green", "red"]
    for ax, image in zip(display.axes_, fitted.X_synthetic_, strict=True):
        np.testing.assert_array_equal(ax.get_images()[0].get_array(), image)
    title = display.figure_.get_suptitle()
    assert "held-out accuracy" in title
    assert "CLPDistiller, Sequential at 16 px, 3 images, 45 steps in" in title
    display = SyntheticImagesDisplay.from_estimator(fitted, *colors)
    assert f"test accuracy {fitted.score(*colors):.3f}" in display.figure_.get_suptitle()


def test_grids_of_images():
    images, labels = np.random.default_rng(0).random((12, 4, 4, 3)), np.repeat(list("abcd"), 3)
    rows = SyntheticImagesDisplay(images, labels).plot().axes_
    assert [ax.get_subplotspec().colspan.start for ax in rows] == [0, 1, 2] * 4  # one class per row
    assert len(SyntheticImagesDisplay(images, labels).plot(max_images=5).axes_) == 5
    assert SyntheticImagesDisplay(images, labels).plot(n_columns=6).axes_[-1].get_subplotspec().rowspan.start == 1
    ax = Figure().subplots()
    display = SyntheticImagesDisplay(images, labels, title="these").plot(ax=ax)
    assert (display.figure_, ax.get_title()) == (ax.figure, "these")


def test_history_is_what_the_run_wrote(fitted):
    loss, accuracy = HistoryDisplay.from_estimator(fitted).axes_
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), [record["loss"] for record in fitted.history_])
    scored = [record for record in fitted.history_ if "val_loss" in record]
    np.testing.assert_array_equal(loss.lines[1].get_ydata(), [record["val_loss"] for record in scored])
    np.testing.assert_array_equal(accuracy.lines[0].get_ydata(), [record["val_accuracy"] for record in scored])
    (top,) = loss.child_axes
    loss.figure.canvas.draw()
    np.testing.assert_allclose(
        top.get_xlim()[0], -0.05 * fitted.history_[-1]["seconds"], atol=0.1 * fitted.history_[-1]["seconds"]
    )
    ax = Figure().subplots()
    assert HistoryDisplay.from_estimator(fitted, ax=ax).axes_.tolist() == [ax]


def test_history_over_several_fits(module, colors):
    """With `warm_start`, time continues, and the kept images are those of the last fit, not the best of all fits."""
    encoder = FrozenEncoder(module, image_size=16, device="cpu")
    distiller = CLPDistiller(encoder, max_iter=21, warm_start=True, random_state=0).fit(*colors).set_params(learning_rate=5.0)
    distiller.fit(*colors)
    seconds = [record["seconds"] for record in distiller.history_]
    assert seconds == sorted(seconds)
    assert len(distiller.history_) == 42 > distiller.best_iter_ >= 21
    title = SyntheticImagesDisplay.from_estimator(distiller).figure_.get_suptitle()
    assert f"held-out accuracy {distiller.val_accuracy_:.3f}" in title
    assert HistoryDisplay.from_estimator(distiller).axes_[1].lines[1].get_xdata()[0] == distiller.best_iter_


def test_history_without_held_out_samples(colors, module):
    encoder = FrozenEncoder(module, image_size=16, device="cpu")
    distiller = CLPDistiller(encoder, max_iter=2, validation_fraction=None).fit(*colors)
    assert len(HistoryDisplay.from_estimator(distiller).axes_) == 1
    with pytest.raises(ValueError, match="ClassCentroids has no history"):
        HistoryDisplay.from_estimator(ClassCentroids(encoder).fit(*colors))


@pytest.mark.parametrize("reducer", [None, LinearDiscriminantAnalysis(n_components=2)])
def test_feature_map(fitted, colors, reducer):
    X, y = colors
    display = FeatureMapDisplay.from_estimator(fitted, X, y, reducer=reducer)
    assert (display.real.shape, display.synthetic.shape) == ((60, 2), (3, 2))
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert labels == ["blue", "green", "red"]
    some = FeatureMapDisplay.from_estimator(fitted, list(X), y, max_samples=20, max_classes=2, random_state=0)
    assert len(some.real) == 20
    assert "1 more are grey" in some.ax_.get_legend().get_title().get_text()
    with pytest.raises(ValueError, match="max_classes == -1"):
        FeatureMapDisplay.from_estimator(fitted, X, y, max_classes=-1)


def test_ten_named_classes_have_ten_hues():
    classes = np.arange(12)
    display = FeatureMapDisplay(np.zeros((12, 2)), classes, np.zeros((12, 2)), classes).plot()
    stars = [tuple(points.get_facecolors()[0, :3]) for points in display.ax_.collections[1::2]]
    assert stars[:10] == [mpl.colormaps["tab10"](i)[:3] for i in range(10)]
    assert stars[10] == stars[11] == mpl.colors.to_rgb("lightgrey")


def test_feature_map_of_points(points):
    X = np.random.default_rng(0).normal(size=(40, 3))
    assert FeatureMapDisplay.from_estimator(points, X, np.arange(40) % 2).synthetic.shape == (2, 2)
    with pytest.raises(ValueError, match="has to return two dimensions"):
        FeatureMapDisplay.from_estimator(points, X, np.arange(40) % 2, reducer=LinearDiscriminantAnalysis())


def test_snapshots_become_an_animation(fitted, tmp_path):
    snapshots = fitted.callback
    assert snapshots.steps_ == [0, 20, 40, 44]
    assert all(frame.shape == (3, 16, 16, 3) and frame.dtype == np.uint8 for frame in snapshots.frames_)
    snapshots.save_gif(tmp_path / "birth.gif")
    with Image.open(tmp_path / "birth.gif") as animation:
        assert (animation.n_frames, animation.size, animation.info["loop"]) == (4, (3 * 16 + 4, 16 + 14), 0)
        durations = []
        for frame in range(4):
            animation.seek(frame)
            durations.append(animation.info["duration"])
    assert sum(durations[:3]) == pytest.approx(4000, abs=30)
    assert durations[3] == 2000


def test_snapshots_are_of_the_steps_that_they_name(module, colors, monkeypatch):
    """On a GPU, callbacks are called for ten records at a time, and see the images of the tenth step."""
    monkeypatch.setattr(trainer_module, "_READ_EVERY_CPU", trainer_module._READ_EVERY)
    images = {}
    encoder = FrozenEncoder(module, image_size=16, device="cpu")
    parameters = {"max_iter": 25, "random_state": 0, "validation_fraction": None}

    def watch(moment, record):
        images[moment.n_iter_ - 1] = to_8_bit(moment.transform())

    CLPDistiller(encoder, callback=watch, **parameters).fit(*colors)
    snapshots = Snapshots(every=5)
    CLPDistiller(encoder, callback=snapshots, **parameters).fit(*colors)
    assert snapshots.steps_ == sorted(images) == [0, 10, 20, 24]
    for step, frame in zip(snapshots.steps_, snapshots.frames_, strict=True):
        np.testing.assert_array_equal(frame, images[step])


def test_snapshots_begin_anew_with_a_run(module, colors):
    snapshots = Snapshots(every=1, max_images=2)
    distiller = CLPDistiller(FrozenEncoder(module, image_size=16, device="cpu"), max_iter=2, callback=snapshots)
    assert distiller.fit(*colors).fit(*colors).callback.steps_ == [0, 1]
    assert snapshots.frames_[0].shape == (2, 16, 16, 3)


def test_invalid_image_sets(points, tmp_path):
    with pytest.raises(ValueError, match=r"fitted to features .* not images"):
        SyntheticImagesDisplay.from_estimator(points)
    with pytest.raises(NotFittedError):
        SyntheticImagesDisplay.from_estimator(CLPDistiller())
    with pytest.raises(TypeError, match="expected a distiller"):
        SyntheticImagesDisplay.from_estimator(LinearDiscriminantAnalysis())
    with pytest.raises(ValueError, match="there are no snapshots"):
        Snapshots().save_gif(tmp_path / "none.gif")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="points of feature space"):
        CLPDistiller(None, max_iter=2, callback=Snapshots()).fit(np.eye(4), [0, 0, 1, 1])


def test_a_notebook_shows_the_images(fitted, points):
    for page in (fitted._repr_mimebundle_()["text/html"], fitted._repr_html_()):
        assert page.count("<img src=") == 3
        assert 'alt="synthetic image of class red"' in page
        assert "FrozenEncoder" in page
    assert "<img src=" not in CLPDistiller()._repr_html_()
    assert "<img src=" not in points._repr_mimebundle_()["text/html"]
    assert "<img src=" not in make_pipeline(CLPDistiller())._repr_html_()
    with config_context(display="text"):
        assert list(fitted._repr_mimebundle_()) == ["text/plain"]


def test_class_names_are_escaped_in_notebooks(module, colors):
    X, y = colors
    names = np.where(y == "red", "<script>alert(1)</script>", y)
    page = CLPDistiller(FrozenEncoder(module, image_size=16), max_iter=1).fit(X, names)._repr_html_()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


WITHOUT_MATPLOTLIB = """
import sys
sys.modules["matplotlib"] = None
from sklearn_clpdd import *
for call in (
    lambda: SyntheticImagesDisplay(None, None).plot(),
    lambda: SyntheticImagesDisplay.from_estimator(None),
    lambda: HistoryDisplay([]).plot(),
    lambda: HistoryDisplay.from_estimator(None),
    lambda: FeatureMapDisplay(None, None, None, None).plot(),
    lambda: FeatureMapDisplay.from_estimator(None, None, None),
    lambda: distillation_report(None, None, None),
):
    try:
        call()
    except ImportError as error:
        print(error)
"""


def test_without_matplotlib():
    done = subprocess.run([sys.executable, "-c", WITHOUT_MATPLOTLIB], capture_output=True, text=True, check=True)
    told = done.stdout.splitlines()
    assert len(told) == 7
    assert all("requires matplotlib" in line and "pip install matplotlib" in line for line in told)
