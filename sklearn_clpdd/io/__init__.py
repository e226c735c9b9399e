"""Saving and sharing: distilled sets as folders, probes as files, both on the Hugging Face hub, and reports.

======================== ============================================================================================
file                     what it holds
======================== ============================================================================================
``_distilled_set.py``    `save_distilled` and `load_distilled`
``_manifest.py``         the manifest: provenance, accuracies, files
``_replace.py``          replacing an existing set without touching other files
``_probe_file.py``       `save_probe` and `load_probe`
``_encoder_record.py``   which encoder a set or a probe belongs to, and building it again
``_card.py``             the cards, ``README.md``
``_push.py``             `push_to_hub`
``_download.py``         names on the hub, ``hf:OWNER/NAME``
``_skops.py``            `TRUSTED_TYPES`, for files of skops
``_report.py``           `distillation_report`, with the template ``report.html.jinja``
======================== ============================================================================================
"""

from ._distilled_set import load_distilled, save_distilled
from ._probe_file import load_probe, save_probe
from ._push import push_to_hub
from ._report import distillation_report
from ._skops import TRUSTED_TYPES

__all__ = [
    "TRUSTED_TYPES",
    "distillation_report",
    "load_distilled",
    "load_probe",
    "push_to_hub",
    "save_distilled",
    "save_probe",
]
