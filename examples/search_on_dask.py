"""
A grid search on a Dask cluster
===============================

joblib sends the fits of a search to the workers of a Dask cluster. By default, the
cluster consists of two processes on this machine; with the address of a scheduler, it
may have any number of machines::

    python examples/search_on_dask.py
    python examples/search_on_dask.py --scheduler tcp://10.0.0.1:8786 --cache /shared

Needs ``pip install "dask[distributed]"``.
"""

import argparse
import time

import joblib
from dask.distributed import Client, LocalCluster
from sklearn.model_selection import GridSearchCV

from sklearn_clpdd import CLPDistiller, FrozenEncoder
from sklearn_clpdd.datasets import load_digit_images


def main():
    parser = argparse.ArgumentParser(description="A grid search on a Dask cluster.")
    parser.add_argument(
        "--scheduler",
        help="address of a scheduler (default: a cluster on this machine)",
    )
    parser.add_argument(
        "--cache",
        default="output/cache",
        help="folder that all workers see (default: %(default)s)",
    )
    arguments = parser.parse_args()

    X, y = load_digit_images()
    distiller = CLPDistiller(
        FrozenEncoder(image_size=64, memory=arguments.cache),
        augmentation=None,
        max_iter=20,
        random_state=0,
    )
    search = GridSearchCV(
        distiller, {"init": ["kmeans", "noise"], "images_per_class": [1, 2]}, cv=2
    )

    # One thread per worker: threads of a process would share one network.
    cluster = arguments.scheduler or LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    )
    with Client(cluster) as client, joblib.parallel_config("dask"):
        print(f"{len(client.scheduler_info()['workers'])} workers")
        begin = time.perf_counter()
        search.fit(X[:600], y[:600])
    seconds = time.perf_counter() - begin
    print(f"{search.best_params_}: {search.best_score_:.3f} in {seconds:.0f} s")


# The workers of a local cluster are new processes that import this file.
if __name__ == "__main__":
    main()
