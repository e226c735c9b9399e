"""
Runs and models in MLflow
=========================

Parameters, the learning curve, accuracies and the fitted model of a distillation go to
`MLflow <https://mlflow.org>`_, and the model comes back as a classifier of images.
MLflow stores scikit-learn's models by skops, which runs no code of a file; it asks for
the types that you trust, and ``sklearn_clpdd.io.TRUSTED_TYPES`` are those of this
library. It needs ``pip install mlflow skops``, or ``mlflow-skinny``. Networks are not
stored, but named: a ``FrozenEncoder`` of a torch module is refused.
"""

import argparse

import mlflow
import numpy as np

from sklearn_clpdd import CLPDistiller, FrozenEncoder
from sklearn_clpdd.datasets import load_digit_images
from sklearn_clpdd.io import TRUSTED_TYPES

parser = argparse.ArgumentParser()
parser.add_argument(
    "--tracking-uri",
    default="sqlite:///mlflow.db",
    help="where runs are kept (default: %(default)s)",
)
mlflow.set_tracking_uri(parser.parse_args().tracking_uri)

X, y = load_digit_images()
X_train, y_train, X_test, y_test = X[:600], y[:600], X[600:900], y[600:900]

# %%
# A run has the parameters, the loss and held-out accuracy of each step, and the test
# accuracy.

distiller = CLPDistiller(
    FrozenEncoder(image_size=32), augmentation=None, max_iter=40, random_state=0
)
with mlflow.start_run(run_name="digits"):
    mlflow.log_params(distiller.get_params(deep=False))
    distiller.fit(X_train, y_train)
    for record in distiller.history_:
        mlflow.log_metrics(
            {name: record[name] for name in ("loss", "val_accuracy") if name in record},
            step=record["step"],
        )
    mlflow.log_metric("test_accuracy", distiller.score(X_test, y_test))
    model = mlflow.sklearn.log_model(
        distiller, name="distiller", skops_trusted_types=TRUSTED_TYPES
    )

# %%
# The loaded model has the synthetic images and gives the same predictions.

loaded = mlflow.sklearn.load_model(model.model_uri)
accuracy = loaded.score(X_test, y_test)
print(f"{len(loaded.transform())} synthetic images, test accuracy {accuracy:.3f}")
assert np.array_equal(loaded.predict(X_test), distiller.predict(X_test))
