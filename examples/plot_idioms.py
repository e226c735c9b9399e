"""
Three ways to use it in scikit-learn
====================================

A frozen encoder with a probe on top, a search over the parameters of a distiller, and a
pipeline that replaces its training set by a distilled one. The data are the first 600
of scikit-learn's bundled digits; a third is held out.
"""

import pandas
from imblearn.pipeline import make_pipeline as make_sampling_pipeline
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline

from sklearn_clpdd import ClosedFormProbe, CLPDistiller, DistilledSampler, FrozenEncoder
from sklearn_clpdd.datasets import load_digit_images

X, y = load_digit_images()
X_train, X_test, y_train, y_test = train_test_split(
    X[:600], y[:600], test_size=1 / 3, stratify=y[:600], random_state=0
)

# With a cache, each image is encoded once, whatever the estimators and splits are.
encoder = FrozenEncoder(image_size=64, memory="output/cache")

# %%
# A probe
# -------
# The encoder needs no fit, and the probe chooses its own ridge strength.

probe = make_pipeline(encoder, ClosedFormProbe()).fit(X_train, y_train)
print(f"probe on {len(y_train)} real images: {probe.score(X_test, y_test):.3f}")

# %%
# A search
# --------
# A distiller is a classifier: its score is that of a probe trained on its synthetic
# images. Nested names such as ``encoder__image_size`` reach the encoder.

distiller = CLPDistiller(encoder, augmentation=None, max_iter=40, random_state=0)
search = GridSearchCV(
    distiller, {"images_per_class": [1, 3], "init": ["kmeans", "noise"]}, cv=2
).fit(X_train, y_train)
print(f"distilled, {search.best_params_}: {search.score(X_test, y_test):.3f}")
pandas.DataFrame(search.cv_results_)[
    ["param_images_per_class", "param_init", "mean_test_score", "mean_fit_time"]
]

# %%
# A pipeline that distils
# -----------------------
# :class:`~sklearn_clpdd.DistilledSampler` is a step of `imbalanced-learn's
# <https://imbalanced-learn.org>`_ pipelines: later steps are trained on the synthetic
# images, and images to be classified pass it unchanged. The probe may have another
# encoder, which costs some points for photographs, and more for digits of 8 × 8 pixels.

sampler = DistilledSampler(distiller.set_params(images_per_class=3))
for other in (encoder, FrozenEncoder(image_size=72)):
    pipeline = make_sampling_pipeline(sampler, other, ClosedFormProbe()).fit(
        X_train, y_train
    )
    score = pipeline.score(X_test, y_test)
    print(f"distilled for 64 px, probe at {other.image_size} px: {score:.3f}")

# %%
# In a notebook, a fitted distiller shows its parameters and its images.

search.best_estimator_
