"""
Class names as a prior
======================

`coef_prior` are coefficients towards which the ridge penalty pulls instead of zero.
With CLIP's image and text towers they would be the embeddings of the classes' names;
here, without a download, they are generated: each is the true direction of its class
with much noise, as a text embedding is. With no image the probe is the prior, with few
it is better than either, and with many the prior no longer matters.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from sklearn_clpdd import ClosedFormProbe

rng = np.random.default_rng(0)
n_classes, n_features = 20, 128
centers = rng.standard_normal((n_classes, n_features))
names = centers + 2.5 * rng.standard_normal(
    centers.shape
)  # what the language model knows
y = np.arange(n_classes * 150) % n_classes
X = centers[y] + 4 * rng.standard_normal((len(y), n_features))
X_test, y_test = X[n_classes * 50 :], y[n_classes * 50 :]

# Scores of about 1 for the class and −1 for the others.
scale = 2 / np.square(names).sum(axis=1).mean()
shots = [0, 1, 2, 4, 8, 16, 32, 50]
accuracies = {"names and images": [], "images": [], "names": []}
for n in shots:
    few = slice(0, n * n_classes)
    probe = ClosedFormProbe(coef_prior=scale * names, scoring="neg_mean_squared_error")
    probe.partial_fit(X[few], y[few], classes=range(n_classes))
    accuracies["names and images"].append(probe.score(X_test, y_test))
    plain = ClosedFormProbe(scoring="neg_mean_squared_error")
    accuracies["images"].append(
        plain.fit(X[few], y[few]).score(X_test, y_test) if n > 1 else np.nan
    )
    accuracies["names"].append(np.mean((X_test @ names.T).argmax(axis=1) == y_test))
    print(
        f"{n:3} images a class:",
        ", ".join(f"{name} {values[-1]:.3f}" for name, values in accuracies.items()),
    )

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for name, values in accuracies.items():
    axes.plot(shots, values, "o-" if name != "names" else "--", label=name)
axes.set(xlabel="images a class", ylabel="test accuracy", xscale="symlog")
axes.set_xticks(shots, shots)
axes.legend()

output = Path("output")
output.mkdir(exist_ok=True)
figure.savefig(output / "prior.png", dpi=150)
