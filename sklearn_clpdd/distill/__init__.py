"""Dataset distillation: synthetic images learned for probes on a frozen encoder.

The path of a fit, and where each part of it lives:

========================= ==========================================================================================
file                      what it holds
========================= ==========================================================================================
``_base.py``              validation and prediction, which all distillers share
``_gradient.py``          distillers that learn images by gradient descent
``_clp.py``               CLPDistiller: its objectives and temperatures
``_fit_data.py``          what a distiller is fitted to, and its result
``_adapters.py``          images behind encoders, or feature vectors, as the data of a fit
``_real_features.py``     features of the real samples, their held-out part, and batches of them
``_start.py``             real samples that the synthetic ones start from
``_loop.py``              the optimisation: one step, in chunks of views
``_state.py``             what a run changes, and a checkpoint contains
``_objectives.py``        losses; add one here
``_parametrizations.py``  what the optimiser moves; add one here
``_augmentations.py``     random views; add one here
``_schedule.py``          learning-rate schedule
``_trainer.py``           history, held-out scores, stopping, progress
``_held_out.py``          loss and accuracy on held-out features
``_checkpoint.py``        checkpoint files
``_identity.py``          what a run shares with its continuation, and with the other processes of the run
``_callbacks.py``         what callbacks are told
``_allocation.py``        images per class from a total
``_sampler.py``           DistilledSampler, for imbalanced-learn
``_summary.py``           provenance of a fitted distiller
========================= ==========================================================================================

Symbols in the docstrings of these files:

====== ===============================================================================
``n``  number of real images
``C``  number of classes
``m``  number of synthetic images
``k``  views of each synthetic image per step, including the unaugmented image if it is used
``d``  feature dimension
``θ``  what the optimiser moves; a parametrisation decodes it to the images ``S``
``S``  synthetic images, ``(m, 3, H, W)`` in [0, 1], or synthetic points ``(m, d)``
``Z``  features of the ``mk`` views, ``(mk, d)``
``Y``  their targets, ``(mk, C)``: one-hot, unless they are learned
``K``  their Gram matrix ``Z Zᵀ``, ``(mk, mk)``
``W``  weights of the linear probe, ``(d, C)``
``R``  features of real images, ``(B, d)``, with class indices ``r`` of shape ``(B,)``
``λ``  ridge strength, relative to the mean squared norm of the rows of ``Z``; ``λ̃`` is their product
``τ``  temperature of the softmax of scores; ``τ'`` is that of squared distances
====== ===============================================================================
"""

from ..utils._ranks import LostProcessError
from ._allocation import allocate_images
from ._augmentations import DSA, Augmentation
from ._checkpoint import Checkpoint
from ._clp import CLPDistiller
from ._parametrizations import Parametrization
from ._sampler import DistilledSampler
from ._schedule import LinearSchedule

__all__ = [
    "DSA",
    "Augmentation",
    "CLPDistiller",
    "Checkpoint",
    "DistilledSampler",
    "LinearSchedule",
    "LostProcessError",
    "Parametrization",
    "allocate_images",
]
