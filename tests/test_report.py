"""The HTML report about a distilled set."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from sklearn_clpdd import CLPDistiller, FrozenEncoder, distillation_report
from sklearn_clpdd.baselines import ClassCentroids
from sklearn_clpdd.evaluation import closed_form_probe_scores, compare_with_real


class Page(HTMLParser):
    """Parser of tags and text that also checks that all elements are closed."""

    VOID = {"meta", "img", "path", "use", "link", "br", "rect"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "svg"} & set(self.open):
            self.words += data.split()

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def encoder(module):
    return FrozenEncoder(module, image_size=16, device="cpu")


@pytest.fixture
def fitted(encoder, colors):
    return CLPDistiller(encoder, max_iter=25, random_state=0).fit(*colors)


def test_the_page_has_the_measured_figures(fitted, colors, module, tmp_path):
    X, y = colors
    other = FrozenEncoder(module, image_size=12, device="cpu")
    path = distillation_report(
        fitted, X[:30], y[:30], tmp_path / "r" / "report.html", X=X, y=y, encoders={"other": other}, random_state=0
    )
    page = Page(path.read_text())
    text = " ".join(page.words)
    rows = compare_with_real(fitted, X, y, X[:30], y[:30], random_state=0)
    for name, (n, accuracy) in rows.items():
        assert re.search(rf"{name}( \(mean of 10 draws\))? {n} {accuracy:.3f}", text)
    there = closed_form_probe_scores(fitted.X_synthetic_, fitted.y_synthetic_, X[:30], y[:30], encoder=other)
    assert f"other {there['top1'][0]:.3f}" in text
    assert "25 steps" in text
    assert "60 images distilled to 3" in text
    predicted = fitted.predict(X[:30])
    for label in ("blue", "green", "red"):
        counts = [np.sum((y[:30] == label) & (predicted == other)) for other in ("blue", "green", "red")]
        assert f"{label} {counts[0]} {counts[1]} {counts[2]}" in text
    assert "load_distilled" in text


def test_the_page_is_self_contained_and_accessible(fitted, colors, tmp_path):
    text = distillation_report(fitted, *colors, tmp_path / "report.html").read_text()
    page = Page(text)
    assert not page.all("script")
    assert not page.all("link")
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert "url(http" not in text
    assert page.all("html")[0]["lang"] == "en"
    assert "width=device-width" in next(meta["content"] for meta in page.all("meta") if meta.get("name") == "viewport")
    assert all(image["alt"] for image in page.all("img"))
    assert len(page.all("img")) == 3
    assert all(cell["scope"] in ("row", "col") for cell in page.all("th"))
    assert [tag for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)][:2] == ["h1", "h2"]
    assert any("Learning curve" in own.get("aria-label", "") for own in page.all("div"))


def test_class_names_are_escaped(encoder, colors, tmp_path):
    X, y = colors
    names = np.where(y == "red", '"><script>alert(1)</script>', y)
    fitted = CLPDistiller(encoder, max_iter=1, random_state=0).fit(X, names)
    text = distillation_report(fitted, X, names, tmp_path / "report.html", title="<b>mine</b>").read_text()
    assert "<script" not in text
    assert "<b>" not in text
    Page(text)


def test_grids_of_real_images_and_of_many_classes(encoder, colors, tmp_path):
    X, _ = colors
    text = distillation_report(ClassCentroids(encoder).fit(*colors), *colors, tmp_path / "centroids.html").read_text()
    assert "<h2>Learning curve</h2>" not in text
    assert {image["alt"] for image in Page(text).all("img")} == {
        f"real image of class {label}" for label in ("blue", "green", "red")
    }
    y = np.arange(60) % 25
    fitted = CLPDistiller(encoder, max_iter=1, random_state=0).fit(X, y)
    text = distillation_report(fitted, X, y, tmp_path / "many.html").read_text()
    assert "The most frequent confusions" in text
    assert len(Page(text).all("img")) == 25


# The beginning of a report, by which it is recognised.
REPORT = '<!DOCTYPE html>\n<head><meta charset="utf-8">\n<meta name="generator" content="sklearn-clpdd">'


def test_targets_that_exist_are_kept(fitted, colors, tmp_path, forbid_encoding):
    forbid_encoding()
    path = tmp_path / "report.html"
    path.write_text("mine")
    old = tmp_path / "old.html"
    old.write_text(REPORT)
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for target in (path, tmp_path, tmp_path / "link"):
        with pytest.raises(FileExistsError, match="is no report"):
            distillation_report(fitted, *colors, target, overwrite=True)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        distillation_report(fitted, *colors, old)
    assert path.read_text() == "mine"
    assert old.read_text() == REPORT


def test_an_error_leaves_nothing_half_written(fitted, colors, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text(REPORT)

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(OSError, match="No space"):
            distillation_report(fitted, *colors, path, overwrite=True)
    assert [(own.name, own.read_text()) for own in tmp_path.iterdir()] == [("report.html", REPORT)]
    distillation_report(fitted, *colors, path, overwrite=True)
    assert path.read_text().startswith("<!DOCTYPE html>")


def test_bad_input_is_refused_before_any_long_work(fitted, colors, tmp_path, forbid_encoding):
    forbid_encoding()
    X, y = colors
    path = tmp_path / "report.html"
    with pytest.raises(NotFittedError):
        distillation_report(CLPDistiller(), X, y, path)
    with pytest.raises(ValueError, match="not images"):
        distillation_report(CLPDistiller(None, max_iter=1).fit(np.eye(4), [0, 0, 1, 1]), np.eye(4), [0, 0, 1, 1], path)
    with pytest.raises(ValueError, match="inconsistent numbers"):
        distillation_report(fitted, X, y[:3], path)
    with pytest.raises(ValueError, match="pass both, or neither"):
        distillation_report(fitted, X, y, path, X=X)
    with pytest.raises(TypeError, match="encoders has to be a dict"):
        distillation_report(fitted, X, y, path, encoders=["resnet18"])
    with pytest.raises(ValueError, match="n_draws"):
        distillation_report(fitted, X, y, path, n_draws=0)
    with pytest.raises(ValueError, match="cannot be used to seed"):
        distillation_report(fitted, X, y, path, random_state="a seed")
    assert not path.exists()
