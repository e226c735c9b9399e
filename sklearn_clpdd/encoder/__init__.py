"""The frozen encoder: images → features.

========================= ==========================================================================================
file                      what it holds
========================= ==========================================================================================
``_encoder.py``           the estimator
``_extractor.py``         a loaded network with the estimator's settings: batches, cached blocks, features of several encoders
``_images.py``            every accepted form of images, read in batches
``_loading.py``           from a name or a module to a frozen network, once per process
``_names.py``             names that need more than timm's configuration; add one here
``_backbone.py``          a frozen network and its preprocessing
``_weights.py``           weights files
``_folding.py``           batch norms and paddings, folded into convolutions
``_frozen_layers.py``     layers that save less for the gradient
``_feature_cache.py``     features on disk, shared by processes
``_shared_module.py``     networks as parameters: shared by clones, sent to workers once
========================= ==========================================================================================
"""

from ._encoder import FrozenEncoder

__all__ = ["FrozenEncoder"]
