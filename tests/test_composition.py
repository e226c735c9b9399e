"""Estimators × tools of scikit-learn × forms of `X`: one test for each combination.

A case is named ``estimator-tool-form``; `test_the_matrix_is_complete` counts them. The default run covers every
(estimator, tool), (estimator, form) and (tool, form) pair; the other combinations are marked slow because there are many.
"""

import pickle

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from matplotlib.figure import Figure
from networks import tiny_encoder
from PIL import Image
from scipy.stats import loguniform
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import VotingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ConfusionMatrixDisplay, accuracy_score, make_scorer
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    learning_curve,
)
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.fixes import parse_version

from sklearn_clpdd import ClosedFormProbe, CLPDistiller, DistilledSampler, FrozenEncoder
from sklearn_clpdd.baselines import ClassCentroids, CoreSet, DMDistiller, LGMDistiller, NearestReals, RandomSubset, SFMDistiller
from sklearn_clpdd.encoder.images._lazy import LazyPictures, TorchItems

MODULE = tiny_encoder()
SIDE = 12
N = 36


def images_and_labels():
    rng = np.random.default_rng(0)
    labels = np.repeat(["blue", "green", "red"], N // 3)
    images = rng.integers(0, 100, (N, SIDE, SIDE, 3))
    for channel, name in ((2, "blue"), (1, "green"), (0, "red")):
        images[labels == name, :, :, channel] += 120
    order = rng.permutation(N)
    return images.astype(np.uint8)[order], labels[order]


IMAGES, LABELS = images_and_labels()


def striped():
    """Grey images of the same classes, distinguished by their stripes: horizontal, vertical, or none."""
    grey = IMAGES.min(axis=3).astype(int)
    grey[LABELS == "blue", ::2] += 150
    grey[LABELS == "green", :, ::2] += 150
    return grey.astype(np.uint8)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Let torch use one thread, because there are many tiny cases."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """The same images in every accepted form, or the same features in every form of a feature matrix."""
    folder = tmp_path_factory.mktemp("images")
    paths = [str(folder / f"{i}.png") for i in range(N)]
    pictures = [Image.fromarray(image) for image in IMAGES]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    Z = np.random.default_rng(1).normal(size=(N, 6)).astype(np.float32) + 3 * (LABELS[:, None] == np.unique(LABELS).repeat(2))
    return {
        "uint8": IMAGES,
        "float": (IMAGES / 255).astype(np.float32),
        "grey": striped(),
        "tensor": torch.from_numpy(IMAGES).permute(0, 3, 1, 2),
        "rows": IMAGES.reshape(N, -1),
        "frame of rows": pd.DataFrame(IMAGES.reshape(N, -1)),
        "path list": paths,
        "path array": np.array(paths),
        "path column": pd.DataFrame({"path": paths}, index=range(100, 100 + N)),
        "path series": pd.Series(paths, index=range(100, 100 + N)),
        "picture list": pictures,
        "lazy pictures": LazyPictures(TorchItems(pictures)),
        "float64": Z.astype(np.float64),
        "float32": Z,
        "frame": pd.DataFrame(Z, columns=list("abcdef"), index=range(100, 100 + N)),
    }


IMAGE_FORMS = [
    "uint8",
    "float",
    "grey",
    "tensor",
    "rows",
    "frame of rows",
    "path list",
    "path array",
    "path column",
    "path series",
    "picture list",
    "lazy pictures",
]
FEATURE_FORMS = ["float64", "float32", "frame"]


def encoder(form="uint8"):
    return FrozenEncoder(MODULE, image_size=SIDE, image_shape=(SIDE, SIDE, 3) if "rows" in form else None, device="cpu")


def estimators(form):
    """Classifiers for this form that are cheap to fit."""
    few = {"max_iter": 2, "random_state": 0}
    if form in FEATURE_FORMS:
        return {
            "ClosedFormProbe": ClosedFormProbe(),
            "ClosedFormProbe rbf": ClosedFormProbe(kernel="rbf"),
            "CLPDistiller": CLPDistiller(None, **few),
            "LGMDistiller": LGMDistiller(None, **few),
            "DMDistiller": DMDistiller(None, **few),
            "SFMDistiller": SFMDistiller(None, **few),
            "RandomSubset": RandomSubset(None, random_state=0),
            "ClassCentroids": ClassCentroids(None),
            "CoreSet": CoreSet(None),
            "NearestReals": NearestReals(CLPDistiller(None, **few)),
        }
    few["augmentation"] = None
    return {
        "FrozenEncoder + ClosedFormProbe": make_pipeline(encoder(form), ClosedFormProbe()),
        "CLPDistiller": CLPDistiller(encoder(form), **few),
        "LGMDistiller": LGMDistiller(encoder(form), **few),
        "DMDistiller": DMDistiller(encoder(form), **few),
        "SFMDistiller": SFMDistiller(encoder(form), **few),
        "RandomSubset": RandomSubset(encoder(form), random_state=0),
        "ClassCentroids": ClassCentroids(encoder(form)),
        "CoreSet": CoreSet(encoder(form)),
        "NearestReals": NearestReals(CLPDistiller(encoder(form), **few)),
    }


def grid(estimator):
    """One of its parameters, and two values for it."""
    names = ("closedformprobe__alpha", "alpha", "distiller__alpha", "random_state")
    return {next(name for name in names if name in estimator.get_params()): [1, 2]}


# ---- tools, each of which asserts what its users rely on -----------------------------------------------------------------


def in_make_pipeline(estimator, X, y):
    pipeline = make_pipeline("passthrough", estimator).fit(X, y)
    np.testing.assert_array_equal(pipeline.predict(X), clone(estimator).fit(X, y).predict(X))


def in_grid_search(estimator, X, y):
    search = GridSearchCV(estimator, grid(estimator), cv=2).fit(X, y)
    assert len(search.cv_results_["mean_test_score"]) == 2
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert set(search.predict(X)) <= set(y)


def in_randomized_search(estimator, X, y):
    (name,) = grid(estimator)
    search = RandomizedSearchCV(estimator, {name: loguniform(0.1, 10)}, n_iter=2, cv=2, random_state=0)
    if name == "random_state":
        search.set_params(param_distributions={name: [0, 1, 2]})
    assert np.isfinite(search.fit(X, y).cv_results_["mean_test_score"]).all()


def in_halving_search(estimator, X, y):
    search = HalvingGridSearchCV(estimator, grid(estimator), cv=2, min_resources=18, factor=2, random_state=0).fit(X, y)
    assert search.n_iterations_ == 2
    assert search.best_index_ in np.flatnonzero(search.cv_results_["iter"] == 1)


def in_cross_val_score(estimator, X, y):
    scores = cross_val_score(estimator, X, y, cv=3)
    assert scores.shape == (3,)
    assert scores.mean() > 0.4  # of three classes


def in_cross_validate(estimator, X, y):
    result = cross_validate(
        estimator, X, y, cv=2, scoring=["accuracy", "neg_log_loss"], return_estimator=True, return_indices=True
    )
    assert np.isfinite(result["test_neg_log_loss"]).all()
    assert all(len(fitted.classes_) == 3 for fitted in result["estimator"])


def in_cross_val_predict(estimator, X, y):
    proba = cross_val_predict(estimator, X, y, cv=3, method="predict_proba")
    assert proba.shape == (N, 3)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)


def in_calibrated_classifier(estimator, X, y):
    proba = CalibratedClassifierCV(estimator, cv=2).fit(X, y).predict_proba(X)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)


def in_voting_classifier(estimator, X, y):
    voting = VotingClassifier([("one", estimator), ("other", clone(estimator))], voting="soft").fit(X, y)
    np.testing.assert_allclose(voting.predict_proba(X), clone(estimator).fit(X, y).predict_proba(X), rtol=1e-5)


def in_learning_curve(estimator, X, y):
    sizes, _, scores = learning_curve(estimator, X, y, train_sizes=[0.5, 1.0], cv=2, shuffle=True, random_state=0)
    assert sizes.tolist() == [9, 18]
    assert np.isfinite(scores).all()


def in_permutation_importance(estimator, X, y):
    importances = permutation_importance(estimator.fit(X, y), X, y, n_repeats=2, random_state=0).importances_mean
    assert importances.shape == (np.asarray(X).shape[1],)


def in_confusion_matrix_display(estimator, X, y):
    matrix = ConfusionMatrixDisplay.from_estimator(estimator.fit(X, y), X, y, ax=Figure().subplots()).confusion_matrix
    assert matrix.sum() == N
    assert np.trace(matrix) > 0.4 * N


def cloned(estimator, X, y):
    copy = clone(estimator)
    assert repr(copy) == repr(estimator)
    np.testing.assert_array_equal(copy.fit(X, y).predict(X), estimator.fit(X, y).predict(X))
    assert not hasattr(clone(copy), "classes_")


def pickled(estimator, X, y):
    fitted = estimator.fit(X, y)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(X), fitted.predict_proba(X))


def with_frames_as_output(estimator, X, y):
    transformer = estimator[0] if hasattr(estimator, "steps") else estimator
    wanted = np.asarray(transformer.fit(X, y).transform(X))
    frame = transformer.set_output(transform="pandas").transform(X)
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == list(transformer.get_feature_names_out())
    np.testing.assert_array_equal(frame.to_numpy(), wanted)
    if isinstance(X, pd.DataFrame) or (isinstance(X, pd.Series) and parse_version(sklearn.__version__) >= parse_version("1.8")):
        pd.testing.assert_index_equal(frame.index, X.index)


TOOLS = {
    "make_pipeline": in_make_pipeline,
    "GridSearchCV": in_grid_search,
    "RandomizedSearchCV": in_randomized_search,
    "HalvingGridSearchCV": in_halving_search,
    "cross_val_score": in_cross_val_score,
    "cross_validate": in_cross_validate,
    "cross_val_predict": in_cross_val_predict,
    "CalibratedClassifierCV": in_calibrated_classifier,
    "VotingClassifier": in_voting_classifier,
    "learning_curve": in_learning_curve,
    "permutation_importance": in_permutation_importance,
    "ConfusionMatrixDisplay": in_confusion_matrix_display,
    "clone": cloned,
    "pickle": pickled,
    "set_output": with_frames_as_output,
}
# Impossible combinations: permuted columns are not images, and a probe is not a transformer.
SENSELESS = {
    *(("permutation_importance", form, name) for form in IMAGE_FORMS for name in estimators(form)),
    *(("set_output", form, name) for form in FEATURE_FORMS for name in ("ClosedFormProbe", "ClosedFormProbe rbf")),
}
CASES = [
    (name, tool, form)
    for form in [*IMAGE_FORMS, *FEATURE_FORMS]
    for name in estimators(form)
    for tool in TOOLS
    if (tool, form, name) not in SENSELESS
]


def is_slow(name, tool, form):
    """Whether a case is not among those that cover all pairs of estimator, tool and form.

    For images, all tools are combined with all forms, and the estimator follows from both; for features, which have few forms,
    all tools are combined with all estimators, and the form follows.
    """
    names, tools = list(estimators(form)), list(TOOLS)
    if form in IMAGE_FORMS:
        return names[(tools.index(tool) + IMAGE_FORMS.index(form)) % len(names)] != name
    return FEATURE_FORMS[(tools.index(tool) + names.index(name)) % len(FEATURE_FORMS)] != form


@pytest.mark.parametrize(
    ("name", "tool", "form"),
    [pytest.param(*case, id="-".join(case), marks=pytest.mark.slow if is_slow(*case) else ()) for case in CASES],
)
def test_composes(name, tool, form, forms):
    TOOLS[tool](estimators(form)[name], forms[form], LABELS)


def test_the_matrix_is_complete():
    assert len(CASES) == len(IMAGE_FORMS) * 9 * (len(TOOLS) - 1) + len(FEATURE_FORMS) * (10 * len(TOOLS) - 2) == 1956
    fast = [case for case in CASES if not is_slow(*case)]
    assert len(fast) == len(IMAGE_FORMS) * (len(TOOLS) - 1) + 10 * len(TOOLS) - 2 == 316
    for i, j in ((0, 1), (1, 2), (0, 2)):
        assert {(case[i], case[j]) for case in fast} == {(case[i], case[j]) for case in CASES}


# ---- several estimators, tables, routing, other processes ----------------------------------------------------------------


def test_union_of_two_encoders(forms):
    other = FrozenEncoder(MODULE, image_size=8, device="cpu")
    union = FeatureUnion([("one", encoder()), ("other", other)])
    Z = union.fit_transform(forms["path list"])
    np.testing.assert_allclose(Z, np.hstack([encoder().transform(IMAGES), other.transform(IMAGES)]), atol=1e-6)
    names = union.get_feature_names_out()
    assert (len(names), names[0], names[-1]) == (24, "one__frozenencoder0", "other__frozenencoder11")
    assert cross_val_score(make_pipeline(union, ClosedFormProbe()), IMAGES, LABELS, cv=2).mean() >= 0.8


def test_a_column_of_paths_beside_columns_of_numbers(forms):
    table = pd.DataFrame({"picture": forms["path list"], "weight": np.arange(N), "age": np.arange(N) % 7})
    columns = ColumnTransformer([("image", encoder(), ["picture"]), ("numbers", StandardScaler(), ["weight", "age"])])
    model = make_pipeline(columns.set_output(transform="pandas"), ClosedFormProbe())
    search = GridSearchCV(model, {"columntransformer__image__image_size": [8, 12]}, cv=2).fit(table, LABELS)
    frame = search.best_estimator_[0].transform(table)
    assert frame.shape == (N, 14)
    assert list(frame.columns[[0, -1]]) == ["image__frozenencoder0", "numbers__age"]
    assert search.best_score_ >= 0.8
    alone = ColumnTransformer([("image", encoder(), "picture")]).fit_transform(table)
    np.testing.assert_array_equal(alone, encoder().transform(IMAGES))


def test_a_distiller_in_a_feature_union():
    scores = FeatureUnion([("distilled", CLPDistiller(None, max_iter=2, random_state=0)), ("all", "passthrough")])
    Z = encoder().transform(IMAGES)
    assert scores.fit(Z, LABELS).transform(Z).shape == (N, 3 + 12)
    model = make_pipeline(scores, LogisticRegression())
    assert cross_val_score(model, Z, LABELS, cv=2).mean() >= 0.8


def test_nested_names_reach_everything():
    pipeline = Pipeline([("distill", CLPDistiller(encoder())), ("probe", ClosedFormProbe())])
    pipeline.set_params(distill__encoder__image_size=8, distill__images_per_class=2, probe__alpha=3.0)
    assert pipeline["distill"].encoder.image_size == 8
    assert (pipeline["distill"].images_per_class, pipeline["probe"].alpha) == (2, 3.0)
    sampler = DistilledSampler(NearestReals(CLPDistiller(encoder()))).set_params(distiller__distiller__encoder__batch_size=3)
    assert sampler.distiller.distiller.encoder.batch_size == 3


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


@pytest.mark.usefixtures("routing")
def test_weights_are_routed_through_pipeline_and_search():
    weight = np.where(LABELS == "red", 0.0, 1.0)  # red images have no weight
    probe = ClosedFormProbe().set_fit_request(sample_weight=True)
    scorer = make_scorer(accuracy_score).set_score_request(sample_weight=True)
    search = GridSearchCV(make_pipeline(encoder(), probe), {"closedformprobe__alpha": [0.1, 1.0]}, scoring=scorer, cv=2)
    search.fit(IMAGES, LABELS, sample_weight=weight)
    assert "red" not in search.predict(IMAGES)
    assert search.best_score_ >= 0.9


@pytest.mark.usefixtures("routing")
@pytest.mark.parametrize("kind", [CLPDistiller, LGMDistiller, ClassCentroids])
def test_groups_are_routed_to_splitter_and_distiller(kind):
    groups = np.arange(N) % 4
    seen = []

    class Noting(kind):
        def fit(self, X, y, groups=None):
            seen.append(groups)
            return super().fit(X, y, groups)

    distiller = Noting(encoder(), **({} if kind is ClassCentroids else {"max_iter": 1, "validation_fraction": None}))
    with_groups = distiller.set_fit_request(groups=True)
    cross_validate(with_groups, IMAGES, LABELS, cv=GroupKFold(2), params={"groups": groups})
    assert [len(own) for own in seen] == [N // 2, N // 2]
    assert all(len(set(own)) == 2 for own in seen)


def test_groups_without_routing_are_the_splitters():
    scores = cross_val_score(CLPDistiller(encoder(), max_iter=1), IMAGES, LABELS, groups=np.arange(N) % 4, cv=GroupKFold(2))
    assert scores.shape == (2,)
