"""Shared by the benchmarks: images of a folder, records of runs, pages with tables, memory, a description of the machine."""

import argparse
import json
import os
import platform
from pathlib import Path

import joblib
import numpy as np
import timm
import torch

from sklearn_clpdd import CLPDistiller
from sklearn_clpdd.datasets import load_image_folder
from sklearn_clpdd.evaluation import _head
from sklearn_clpdd.utils._fingerprint import fingerprint

RESULTS = Path(__file__).parent / "results"


def status(name):
    """An entry of /proc/self/status in MB; `getrusage` would include the memory of the parent process."""
    if not os.path.exists("/proc/self/status"):
        return float("nan")  # not Linux: no figure
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1e3


def memory_in_use(device="cpu"):
    """Memory in use in MB, of the GPU for a CUDA device."""
    return status("VmRSS") if device == "cpu" else torch.cuda.memory_allocated() / 1e6


def peak_memory(device="cpu"):
    """Peak of `memory_in_use`."""
    return status("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated() / 1e6


def warm(backbone):
    """One forward pass, so that libraries allocate what they keep."""
    with torch.no_grad():
        backbone(torch.zeros(1, 3, *[backbone.preprocessing.image_size] * 2, device=backbone.device))


def machine():
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.machine()}, {os.cpu_count()} cores{gpu}, torch {torch.__version__}, timm {timm.__version__}"


def table(heads, rows):
    """Lines of a Markdown table."""
    return ["| " + " | ".join(map(str, cells)) + " |" for cells in [heads, ["---"] * len(heads), *rows]]


def reset_peak_memory(device="cpu"):
    """Reset the peak."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return
    if os.path.exists("/proc/self/clear_refs"):
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")


def write_page(results, name, intro, heads, rows):
    """Print a table with an introduction, and write both to a Markdown file."""
    page = "\n".join([intro, "", *table(heads, rows)])
    (results / f"{name}.md").write_text(page + "\n")
    print(page)


def train_and_test(folder):
    """Images and labels of the folders ``train`` and ``val``."""
    return *load_image_folder(folder / "train"), *load_image_folder(folder / "val")


def study_parser(doc):
    """Options that all studies share."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for what is written, and the cache")
    return parser


def folder_argument(parser, name):
    """Argument for the folder of a data set; required if ``$SKLEARN_CLPDD_DATA``, which has the default, is not set."""
    data = os.environ.get("SKLEARN_CLPDD_DATA")
    default = {"nargs": "?", "default": Path(data, name)} if data else {}
    parser.add_argument("folder", type=Path, help=f"default: {name} in $SKLEARN_CLPDD_DATA, if that is set", **default)


def data_option(parser):
    """Option ``--data``, the folder of a data set: that of Imagenette in ``$SKLEARN_CLPDD_DATA``, if that is set."""
    data = os.environ.get("SKLEARN_CLPDD_DATA")
    parser.add_argument("--data", type=Path, default=Path(data, "imagenette") if data else None)


def require_data(parser, arguments):
    """End with an error if there is no folder of a data set."""
    if arguments.data is None:
        parser.error("give --data, the folder of a data set, or set SKLEARN_CLPDD_DATA to the folder that holds imagenette/")


def defaults():
    """Digest of the default parameters of the distiller, so that records are invalidated when they change."""
    return joblib.hash(sorted(map(repr, CLPDistiller().get_params(deep=False).items())))[:8]


def protocol_digest():
    """Digest of LGM's protocol, so that records are invalidated when it changes."""
    return joblib.hash((_head.BATCH_SIZE, _head._LEARNING_RATE, _head._INITIAL_STD, fingerprint(_head.LGM_PROBE_VIEWS)))[:8]


def _records(path):
    return json.loads(path.read_text()) if path.exists() else []


def recorded(path, settings, work, *, distilled=True):
    """The record of a run with these settings; if there is none, the run is made and its record added to the JSON file.

    Parameters
    ----------
    path : Path
        JSON file with a list of records.
    settings : dict
        Everything that the record depends on, except LGM's protocol.
    work : callable
        ``() → dict``
    distilled : bool, default=True
        Whether the record also depends on the defaults of the distiller.
    """
    settings = {**settings, "protocol": protocol_digest()} | ({"defaults": defaults()} if distilled else {})
    settings = json.loads(json.dumps(settings, default=fingerprint))
    for record in _records(path):
        if record["settings"] == settings:
            return record
    record = {"settings": settings, "machine": machine(), **work()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps([*_records(path), record], indent=1) + "\n")
    part.replace(path)  # atomic
    print(record, flush=True)
    return record


def top1(scores):
    """Accuracies of probes, averaged over heads, from the results of `sklearn_clpdd.evaluation`."""
    return {name: float(values["top1"].mean()) for name, values in scores.items()}


def format_mean(numbers):
    """Mean and, for several numbers, standard deviation."""
    spread = f" ± {np.std(numbers):.3f}" if len(numbers) > 1 else ""
    return f"{np.mean(numbers):.3f}{spread}" if len(numbers) else ""
