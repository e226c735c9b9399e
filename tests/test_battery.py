"""scikit-learn's own battery of estimator checks, and the assertion that it is not an empty one."""

import pytest
from sklearn.metrics.pairwise import laplacian_kernel
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from sklearn_clpdd import ClosedFormProbe, CLPDistiller
from sklearn_clpdd.baselines import ClassCentroids, DMDistiller, LGMDistiller, NearestReals, RandomSubset

ESTIMATORS = [
    ClosedFormProbe(),
    ClosedFormProbe(solver="primal"),
    ClosedFormProbe(solver="dual"),
    *(ClosedFormProbe(kernel=kernel) for kernel in ("cosine", "rbf", "poly")),
    ClosedFormProbe(kernel=laplacian_kernel),
    ClosedFormProbe(1.0, temperature=0.2),
    ClosedFormProbe([0.1, 1.0], scoring="neg_log_loss"),
    RandomSubset(encoder=None, random_state=0),
    ClassCentroids(encoder=None),
    NearestReals(CLPDistiller(encoder=None, max_iter=20, random_state=0)),
    LGMDistiller(encoder=None, max_iter=100, random_state=0),
    DMDistiller(encoder=None, max_iter=100, random_state=0),
    CLPDistiller(encoder=None, max_iter=100, random_state=0),
]


@parametrize_with_checks(ESTIMATORS)
def test_battery(estimator, check):
    check(estimator)


@pytest.mark.parametrize("estimator", [ESTIMATORS[0], *ESTIMATORS[-6:]], ids=lambda estimator: type(estimator).__name__)
def test_battery_is_not_empty(estimator):
    results = check_estimator(estimator, on_skip=None, on_fail=None)
    assert sum(result["status"] == "passed" for result in results) >= 50
