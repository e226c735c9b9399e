"""What benchmarks share: the images of a folder, records of runs, pages of tables, memory, the words for this machine."""

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
    """What Linux says of this process, in MB: `getrusage` would count what the one that started it had."""
    if not os.path.exists("/proc/self/status"):
        return float("nan")  # not Linux: no figure
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1e3


def resident(device="cpu"):
    """Memory in use, in MB: of the GPU, for a CUDA device."""
    return status("VmRSS") if device == "cpu" else torch.cuda.memory_allocated() / 1e6


def most(device="cpu"):
    """The most there has been of it."""
    return status("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated() / 1e6


def warm(backbone):
    """One forward pass, so that libraries have what they keep."""
    with torch.no_grad():
        backbone(torch.zeros(1, 3, *[backbone.preprocessing.image_size] * 2, device=backbone.device))


def machine():
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.machine()}, {os.cpu_count()} cores{gpu}, torch {torch.__version__}, timm {timm.__version__}"


def table(heads, rows):
    """Lines of a Markdown table."""
    return ["| " + " | ".join(map(str, cells)) + " |" for cells in [heads, ["---"] * len(heads), *rows]]


def forget_peak(device="cpu"):
    """Let `most` begin anew."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return
    if os.path.exists("/proc/self/clear_refs"):
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")


def write_page(results, name, intro, heads, rows):
    """Write a table, with what was measured and how above it, to a Markdown file, and print it."""
    page = "\n".join([intro, "", *table(heads, rows)])
    (results / f"{name}.md").write_text(page + "\n")
    print(page)


def train_and_test(folder):
    """Images and labels to train on, images and labels to test on: of the folders ``train`` and ``val``."""
    return *load_image_folder(folder / "train"), *load_image_folder(folder / "val")


def study_parser(doc):
    """Options that studies of one data set, or several, have in common."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for what is written, and the cache")
    return parser


def folder_argument(parser, name):
    """The folder of a data set: by default that of this name in ``$SKLEARN_CLPDD_DATA``, needed where that is not set."""
    data = os.environ.get("SKLEARN_CLPDD_DATA")
    default = {"nargs": "?", "default": Path(data, name)} if data else {}
    parser.add_argument("folder", type=Path, help=f"default: {name} in $SKLEARN_CLPDD_DATA, if that is set", **default)


def defaults():
    """Digest of the distiller's default parameters, without which a record would outlive a change of them."""
    return joblib.hash(sorted(map(repr, CLPDistiller().get_params(deep=False).items())))[:8]


def protocol_digest():
    """Digest of what LGM's protocol is here, without which a record would outlive a change of it."""
    return joblib.hash((_head.BATCH_SIZE, _head._LEARNING_RATE, _head._INITIAL_STD, fingerprint(_head.LGM_PROBE_VIEWS)))[:8]


def _records(path):
    return json.loads(path.read_text()) if path.exists() else []


def recorded(path, settings, work, *, distilled=True):
    """The record of what was done with these settings; done now, and added to the JSON file, if there is none.

    Parameters
    ----------
    path : Path
        Of a list of records.
    settings : dict
        All that the record depends on, beside LGM's protocol.
    work : callable
        ``() → dict``
    distilled : bool, default=True
        Whether it depends on the distiller's defaults, too.
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
    part.replace(path)  # whole, or as it was
    print(record, flush=True)
    return record


def top1(scores):
    """Accuracies of probes, means over heads, from what `sklearn_clpdd.evaluation` gives."""
    return {name: float(values["top1"].mean()) for name, values in scores.items()}


def spell(numbers):
    """Mean, and standard deviation where there are several."""
    spread = f" ± {np.std(numbers):.3f}" if len(numbers) > 1 else ""
    return f"{np.mean(numbers):.3f}{spread}" if len(numbers) else ""
