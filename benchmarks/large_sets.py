"""Memory while 100,000 pictures are encoded: of a data set of Hugging Face, a stream, parquet, a data set of torch.

    python benchmarks/large_sets.py --output benchmarks/results

The pictures are generated: JPEG and PNG, in colour, grey and with transparency, of many sizes. The network is small, so that the
time is that of reading and decoding. Each form is encoded in a process of its own.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import machine, status, table
from PIL import Image

FORMS = ("list of bytes", "Hugging Face data set", "Hugging Face stream", "parquet", "torch data set")


def pictures(n):
    """Contents of image files, generated one after another."""
    rng = np.random.default_rng(0)
    for i in range(n):
        side = int(rng.integers(40, 120))
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8))
        picture = small.resize((side, int(rng.integers(40, 120))), Image.Resampling.BICUBIC)
        mode = ("RGB", "L", "RGBA")[i % 3]
        file = io.BytesIO()
        picture.convert(mode).save(file, "PNG" if mode == "RGBA" else "JPEG")
        yield file.getvalue()


def write(folder, n):
    """The pictures as a data set of Hugging Face and as parquet."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = ({"image": {"bytes": content, "path": None}, "label": i % 2} for i, content in enumerate(pictures(n)))
    writer = datasets.arrow_writer.ArrowWriter(path=str(folder / "set.arrow"), features=features)
    schema = pa.schema([("image", pa.binary())])
    with pq.ParquetWriter(folder / "set.parquet", schema) as parquet:
        block = []
        for row in rows:
            writer.write(row | {"image": row["image"]})
            block.append(row["image"]["bytes"])
            if len(block) == 5000:
                parquet.write_table(pa.table({"image": block}, schema=schema))
                block = []
        if block:
            parquet.write_table(pa.table({"image": block}, schema=schema))
    writer.finalize()


class Items:
    """A data set of torch that reads rows of the data set of Hugging Face."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        row = self.rows[i]
        return row["image"], row["label"]


def encode(form, folder):
    """Anonymous memory after a tenth of the pictures and at the most afterwards, and seconds."""
    import datasets
    import pyarrow.parquet as pq
    import torch

    from sklearn_clpdd import FrozenEncoder
    from sklearn_clpdd.datasets import load_hf_dataset
    from sklearn_clpdd.encoder._extractor import FeatureExtractor

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 8, stride=8), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(128, 8))
    encoder = FrozenEncoder(module, image_size=32)
    dataset = datasets.Dataset.from_file(str(folder / "set.arrow"))
    seen, memory = [0], []
    original = FeatureExtractor._features

    def counted(self, batch):
        seen[0] += len(batch)
        memory.append((seen[0], status("RssAnon")))
        return original(self, batch)

    FeatureExtractor._features = counted
    n = len(dataset)
    started = time.perf_counter()
    if form == "Hugging Face stream":
        stream = ((row["image"], row["label"]) for row in dataset.to_iterable_dataset())
        n_features = sum(len(Z) for Z, _ in encoder.iter_transform(stream))
    else:
        X = {
            "list of bytes": lambda: list(pictures(n)),
            "Hugging Face data set": lambda: load_hf_dataset(dataset)[0],
            "parquet": lambda: pq.read_table(folder / "set.parquet", memory_map=True)["image"],
            "torch data set": lambda: Items(dataset),
        }[form]()
        started = time.perf_counter()
        n_features = len(encoder.transform(X))
    assert n_features == n
    tenth = next(used for count, used in memory if count >= n / 10)
    return {
        "tenth": tenth,
        "most": max(used for count, used in memory if count >= n / 10),
        "seconds": time.perf_counter() - started,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--output", type=Path, help="folder for the page")
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.form:
        print(json.dumps(encode(arguments.form, arguments.folder)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), arguments.pictures)
        for form in FORMS:
            command = [sys.executable, __file__, "--form", form, "--folder", folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.strip().splitlines()[-1])
            growth = found["most"] - found["tenth"]
            rows.append([form, f"{found['tenth']:.0f} MB", f"{growth:.0f} MB", f"{found['seconds']:.0f} s"])
    page = "\n".join(
        [
            f"`python benchmarks/large_sets.py`: {arguments.pictures:,} pictures of mixed sizes and modes; memory of the process "
            "(`RssAnon`) when a tenth is encoded, and how much more it has at the most afterwards. The list of bytes is in "
            f"memory from the beginning; the features are 3 MB ({machine()}).",
            "",
            *table(["form", "after a tenth", "growth", "time"], rows),
        ]
    )
    print(page)
    if arguments.output:
        (arguments.output / "large-sets.md").write_text(page + "\n")


if __name__ == "__main__":
    main()
