"""Saving and sharing: distilled sets as folders, and reports.

======================== ============================================================================================
file                     what it holds
======================== ============================================================================================
``_distilled_set.py``    `save_distilled` and `load_distilled`
``_manifest.py``         the manifest: provenance, accuracies, files
``_card.py``             the card, ``README.md``
``_replace.py``          replacing an existing set without touching other files
``_report.py``           `distillation_report`, with the template ``report.html.jinja``
======================== ============================================================================================
"""

from ._distilled_set import load_distilled, save_distilled
from ._report import distillation_report

__all__ = ["distillation_report", "load_distilled", "save_distilled"]
