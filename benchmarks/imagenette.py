"""One synthetic image per class, cross-entropy beside squared error, under two protocols and as 8-bit PNG files.

    python benchmarks/imagenette.py [DIR] [--output benchmarks/results/imagenette.md]

DIR holds ``train`` and ``val`` folders with one folder of images per class; the default is ``$SKLEARN_CLPDD_DATA/imagenette``.
All figures are measured in one run: the closed-form probe on the synthetic images and on their PNG files, LGM's protocol
(a linear head trained by Adam on random crops, 1,000 epochs, last epoch), and the seconds of ``fit``, including the features.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from measure import folder_argument, machine, train_and_test

from sklearn_clpdd import ClosedFormProbe, CLPDistiller, FrozenEncoder, load_distilled, save_distilled
from sklearn_clpdd.evaluation import compare_with_real, sgd_probe_scores


def accuracy_of_png_files(distiller, X_test, y_test):
    with tempfile.TemporaryDirectory() as folder:
        images, labels, _ = load_distilled(save_distilled(distiller, Path(folder, "set")))
    probe = ClosedFormProbe(distiller.alpha_, fit_intercept=False, temperature=1.0).fit(distiller.features(images), labels)
    return probe.score(distiller.features(X_test), y_test)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    folder_argument(parser, "imagenette")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    X, y, X_test, y_test = train_and_test(arguments.folder)

    lines = [
        f"`{arguments.folder.name}`: {len(X)} training and {len(X_test)} validation images, EfficientNet-Lite0, "
        f"128 px synthetic images, 112 px views, 1 image per class, seed {arguments.seed}; "
        f"{machine()}",
        "",
        "| trained on | images | closed-form probe | as PNG files | SGD head (LGM's protocol) | seconds of `fit` |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for objective in ("probe_and_neighbors", "cross_entropy", "mse"):
        # The test features are cached between the measurements; the seconds of `fit` start from an empty cache.
        with tempfile.TemporaryDirectory() as cache:
            encoder = FrozenEncoder(image_size=112, n_jobs=-1, memory=cache)
            encoder.load()
            start = time.perf_counter()
            distiller = CLPDistiller(encoder, objective=objective, random_state=arguments.seed).fit(X, y)
            seconds = time.perf_counter() - start
            rows = compare_with_real(distiller, X, y, X_test, y_test, random_state=arguments.seed)
            png = accuracy_of_png_files(distiller, X_test, y_test)
            scores = sgd_probe_scores(
                distiller.transform(), distiller.y_synthetic_, X_test, y_test, encoder=encoder, random_state=arguments.seed
            )
            (sgd,) = scores["top1"]
        if objective == "probe_and_neighbors":
            lines += [f"| {name} | {rows[name][0]} | {rows[name][1]:.3f} | | | |" for name in ("all real", "random real")]
        n_images, probe = rows["distilled"]
        lines.append(f"| distilled, `{objective}` | {n_images} | {probe:.3f} | {png:.3f} | {sgd:.3f} | {seconds:.0f} |")
        print(lines[-1], file=sys.stderr, flush=True)
    print("\n".join(lines))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
