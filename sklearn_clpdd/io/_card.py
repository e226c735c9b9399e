"""The card of a distilled set, which Hugging Face shows as its README."""

import re
from typing import Any
from urllib.parse import quote

from ..distill._summary import one_line_summary
from ..utils._arrays import evenly_spaced
from ..utils._labels import label_text
from ._manifest import MANIFEST

# Images on the card, at most.
_MAX_ON_CARD = 50


def card_of(distiller, name: str, manifest: dict[str, Any]) -> str:
    """README.md: what the set is, with its images, and how to read it."""
    entries, name = manifest["images"], label_text(name)
    accuracies = "\n".join(f"| {_cell(a['protocol'])} | {a['accuracy']:.3f} |" for a in manifest["accuracies"])
    scores = f"\n\n| protocol | accuracy |\n| --- | --- |\n{accuracies}" if accuracies else ""
    encoders = ", ".join(f"`{e['model']}` at {e['image_size']} px" for e in manifest["encoders"])
    data = manifest["data"]
    height, width = manifest["image_shape"][:2]
    selected = hasattr(distiller, "indices_")
    kind, how = ("real images", "selected") if selected else ("synthetic images", "learned")
    n_real, n_classes = data["n_samples"], len(data["class_counts"])
    return f"""---
task_categories:
- image-classification
tags:
- dataset-distillation
- sklearn-clpdd
configs:
- config_name: default
  drop_labels: false
  data_files:
  - split: train
    path: "*/*.png"
---

# {name}

{len(entries)} {kind} of {width} × {height} px that replace {n_real} real ones of {n_classes} classes: a linear probe trained on
their features classifies real images. {one_line_summary(distiller)}.

{_image_table(manifest)}{scores}

They were {how} for {encoders}. `{MANIFEST}` contains the parameters, the versions, and digests of the weights, of the
real images and of these files.

## How to read it

```python
from sklearn_clpdd import ClosedFormProbe, FrozenEncoder, load_distilled
from sklearn.pipeline import make_pipeline

images, labels, manifest = load_distilled({name!r})  # checked against the manifest
probe = make_pipeline(FrozenEncoder(...), ClosedFormProbe(1.0, temperature=0.2)).fit(images, labels)
```

Other libraries read it as an image folder: `torchvision.datasets.ImageFolder({name!r})`, `datasets.load_dataset({name!r})`.
"""


def _image_table(manifest: dict[str, Any]) -> str:
    """Some of the images, with their classes, in five columns."""
    entries = manifest["images"]
    labels = [manifest["classes"][entry["class"]]["label"] for entry in entries]
    rows = evenly_spaced(len(entries), _MAX_ON_CARD)
    pictures = [f"![{_cell(labels[i])}]({quote(entries[i]['file'])})<br>{_cell(labels[i])}" for i in rows]
    lines = [pictures[i : i + 5] for i in range(0, len(pictures), 5)]
    width = len(lines[0])
    lines[-1] += [""] * (width - len(lines[-1]))
    table = "\n".join(f"| {' | '.join(line)} |" for line in [[""] * width, ["---"] * width, *lines])
    return table + (f"\n\n{len(rows)} of {len(entries)} images." if len(rows) < len(entries) else "")


def _cell(text: Any) -> str:
    """Text in a cell of a Markdown table."""
    return re.sub(r"([\\|`*_\[\]<>])", r"\\\1", " ".join(label_text(text).split()))
