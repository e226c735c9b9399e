"""Cards, which Hugging Face shows as the README of a distilled set or a probe."""

import json
import re
from typing import Any
from urllib.parse import quote

from ..distill._summary import are_real, summary_of
from ..utils._arrays import evenly_spaced
from ..utils._labels import label_text
from ._manifest import MANIFEST

# Images on the card, at most.
_MAX_ON_CARD = 50
# The hub's names for the number of samples, and the first number that is too large.
_SIZES = {"n<1K": 10**3, "1K<n<10K": 10**4, "10K<n<100K": 10**5, "100K<n<1M": 10**6}


def card_of(name: str, manifest: dict[str, Any]) -> str:
    """README.md: what the set is, with its images, and how to read it."""
    entries, name = manifest["images"], label_text(name)
    scores = _accuracy_table(manifest["accuracies"])
    size = next((word for word, limit in _SIZES.items() if len(entries) < limit), "n>1M")
    encoders = ", ".join(f"`{e['model']}` at {e['image_size']} px" for e in manifest["encoders"])
    data = manifest["data"]
    height, width = manifest["image_shape"][:2]
    kind, how = ("real images", "selected") if are_real(manifest) else ("synthetic images", "learned")
    n_real, n_classes = data["n_samples"], len(data["class_counts"])
    return f"""---
pretty_name: {json.dumps(name)}
task_categories:
- image-classification
size_categories:
- {size}
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
their features classifies real images. {summary_of(manifest, len(entries))}.

{_image_table(manifest)}{scores}

They were {how} for {encoders}. `{MANIFEST}` contains the parameters, the versions, and digests of the weights, of the
real images and of these files.

## How to read it

```python
from sklearn_clpdd import ClosedFormProbe, FrozenEncoder, load_distilled
from sklearn.pipeline import make_pipeline

images, labels, manifest = load_distilled({name!r})  # or "hf:OWNER/NAME", from the hub
encoder = {encoder_call(manifest["encoders"][0])}
probe = make_pipeline(encoder, ClosedFormProbe(1.0, temperature=0.2)).fit(images, labels)
```

Other libraries read it as an image folder: `torchvision.datasets.ImageFolder({name!r})`, `datasets.load_dataset({name!r})`.
"""


def probe_card_of(info: dict[str, Any], repo_id: str) -> str:
    """README.md of a probe: what it classifies, by which features, and how to load it."""
    state, encoder = info["probe"], info["encoder"]
    kind = "labels" if state["multilabel"] else "classes"
    n_outputs = len(state["classes"])
    shown = "".join(f"\n- {_cell(label)}" for label in state["classes"][:_MAX_ON_CARD]) if not state["multilabel"] else ""
    more = f"\n\n{_MAX_ON_CARD} of {n_outputs} {kind}." if n_outputs > _MAX_ON_CARD and shown else ""
    before = (
        f"the features of `{encoder['model']}` at {encoder['image_size']} px (SHA-256 of the weights {encoder['weights_sha256']})"
        if encoder
        else f"{state['n_features']} features"
    )
    task = "pipeline_tag: image-classification\n" if encoder else ""
    given = ", encoder=FrozenEncoder(...)" if encoder and encoder["weights"] == "own" else ""
    return f"""---
library_name: sklearn-clpdd
{task}tags:
- linear-probe
- sklearn-clpdd
---

# {_cell(repo_id)}

A probe of {n_outputs} {kind} on {before}.{_accuracy_table(info["accuracies"])}

## How to use it

```python
from sklearn_clpdd import FrozenEncoder, load_probe

probe = load_probe("hf:{repo_id}"{given})  # no code is run; the weights of the encoder are compared with those of the training
probe.predict({'["photo.jpg"]' if encoder else "features"})
```

## {kind.capitalize()}
{shown or f"{n_outputs} columns of an indicator matrix."}{more}
"""


def with_metadata(card: str, metadata: dict[str, Any]) -> str:
    """A card with some of its metadata replaced."""
    from huggingface_hub import RepoCard

    parsed = RepoCard(card)
    for name, value in metadata.items():
        parsed.data[name] = value
    return str(parsed)


def _accuracy_table(accuracies: list[dict[str, Any]]) -> str:
    rows = "\n".join(f"| {_cell(one['protocol'])} | {one['accuracy']:.3f} |" for one in accuracies)
    return f"\n\n| protocol | accuracy |\n| --- | --- |\n{rows}" if rows else ""


def encoder_call(entry: dict[str, Any]) -> str:
    """How to build an encoder, as code; an ellipsis where its name is not known to others."""
    model = entry["model"]
    known = model[:1].islower() and "…" not in model  # and not the class of a module
    return f"FrozenEncoder({json.dumps(model) if known else '...'}, image_size={entry['image_size']})"


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
