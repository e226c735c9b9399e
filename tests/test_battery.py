"""All of scikit-learn's own estimator checks."""

from functools import partial

import pytest
from sklearn.metrics.pairwise import laplacian_kernel
from sklearn.utils.estimator_checks import estimator_checks_generator

from sklearn_clpdd import ClosedFormProbe, CLPDistiller
from sklearn_clpdd.baselines import ClassCentroids, CoreSet, DMDistiller, LGMDistiller, NearestReals, RandomSubset, SFMDistiller


class Laplacian:
    """A user's kernel with the same name in all processes of a test run."""

    def __call__(self, A, B):
        return laplacian_kernel(A, B)

    def __repr__(self):
        return "Laplacian()"


ESTIMATORS = [
    ClosedFormProbe(),
    ClosedFormProbe(solver="primal"),
    ClosedFormProbe(solver="dual"),
    *(ClosedFormProbe(kernel=kernel) for kernel in ("cosine", "rbf", "poly")),
    ClosedFormProbe(kernel=Laplacian()),
    ClosedFormProbe(1.0, temperature=0.2),
    ClosedFormProbe([0.1, 1.0], scoring="neg_log_loss"),
    RandomSubset(encoder=None, random_state=0),
    ClassCentroids(encoder=None),
    CoreSet(encoder=None),
    CoreSet(encoder=None, strategy="k_center"),
    NearestReals(CLPDistiller(encoder=None, max_iter=20, random_state=0)),
    LGMDistiller(encoder=None, max_iter=40, random_state=0),
    DMDistiller(encoder=None, max_iter=40, random_state=0),
    SFMDistiller(encoder=None, max_iter=40, random_state=0),
    CLPDistiller(encoder=None, max_iter=40, random_state=0),
]

CHECKS = [case for estimator in ESTIMATORS for case in estimator_checks_generator(estimator)]


def _name(value):
    if not isinstance(value, partial):
        return repr(value)
    return "-".join([value.func.__name__, *(f"{name}={given}" for name, given in value.keywords.items())])


@pytest.mark.parametrize(("estimator", "check"), CHECKS, ids=_name)
def test_battery(estimator, check):
    check(estimator)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_battery_is_not_empty(estimator):
    assert sum(own is estimator for own, _ in CHECKS) >= 50
