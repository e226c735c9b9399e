"""How good a distilled set is: compared with real images, and for other probes than its own.

======================= =============================================================================================
file                    what it holds
======================= =============================================================================================
``_comparison.py``      distilled, random and all real images with the closed-form probe
``_scores.py``          scores of the closed-form probe, of other probes, and with other encoders
``_head.py``            a linear head trained as LGM trains it
``_inheritance.py``     the probe of all real images, behind another encoder than its own
``_probes.py``          training and scoring of all of these probes
======================= =============================================================================================
"""

from ._comparison import compare_with_real
from ._head import sgd_probe_scores
from ._inheritance import inherited_probe_scores
from ._scores import closed_form_probe_scores, probe_scores, transfer_scores

__all__ = [
    "closed_form_probe_scores",
    "compare_with_real",
    "inherited_probe_scores",
    "probe_scores",
    "sgd_probe_scores",
    "transfer_scores",
]
