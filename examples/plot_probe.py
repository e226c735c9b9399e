"""
A probe that chooses for itself
===============================

`ClosedFormProbe` chooses its ridge strength and calibrates its probabilities by exact
leave-one-out predictions of the training samples. The data are scikit-learn's bundled
digits with noise; the probe is linear or has a Gaussian kernel. Half of the digits are
held out to check the leave-one-out scores.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.calibration import CalibrationDisplay
from sklearn.datasets import load_digits

from sklearn_clpdd import ClosedFormProbe

X, y = load_digits(return_X_y=True)
X = X + 6 * np.random.default_rng(0).standard_normal(X.shape)
X_train, X_test, y_train, y_test = X[::2], X[1::2], y[::2], y[1::2]

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for kernel in ("linear", "rbf"):
    probe = ClosedFormProbe(loss="squared", kernel=kernel).fit(X_train, y_train)
    test = probe.score(X_test, y_test)
    print(f"{kernel:<8} leave-one-out {probe.loo_score_:.3f}, test {test:.3f}")
    print(f"         alpha {probe.alpha_:g}")
    held_out = [
        ClosedFormProbe(alpha, kernel=kernel)
        .fit(X_train, y_train)
        .score(X_test, y_test)
        for alpha in probe.alphas_
    ]
    (line,) = left.semilogx(
        probe.alphas_, probe.loo_scores_, label=f"{kernel}, leave-one-out"
    )
    left.semilogx(
        probe.alphas_, held_out, "--", color=line.get_color(), label=f"{kernel}, test"
    )
    left.axvline(probe.alpha_, color=line.get_color(), linewidth=0.5)
    proba = probe.predict_proba(X_test)
    CalibrationDisplay.from_predictions(
        y_test.repeat(10) == np.tile(np.arange(10), len(y_test)),
        proba.ravel(),
        n_bins=8,
        strategy="quantile",
        ax=right,
        name=kernel,
    )
left.set(xlabel="alpha", ylabel="accuracy")
left.legend()

output = Path("output")
output.mkdir(exist_ok=True)
figure.savefig(output / "probe.png", dpi=150)
