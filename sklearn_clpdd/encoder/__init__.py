"""The frozen encoder: images → features.

========================= ==========================================================================================
file                      what it holds
========================= ==========================================================================================
``_encoder.py``           the estimator
``_extractor.py``         a loaded network with the estimator's settings: batches, cached blocks, features of several encoders
``images/``               every accepted form of images, and what becomes of one picture
``_preprocessing.py``     sizes and positions of resizing and cropping, as timm has them
``_loading.py``           from a name or a module to a frozen network, once per process
``sources/``              names and modules of timm, transformers, open_clip and torchvision; add one there
``_precision.py``         float32, or the fastest precision that agrees with it
``_backbone.py``          a frozen network and its preprocessing
``_weights.py``           weights files, and which of several networks in one is loaded
``_copying.py``           copies of a user's network with its hooks and closures
``_verification.py``      looks at a network before it is trusted
``_folding.py``           batch norms and paddings, folded into convolutions
``_frozen_layers.py``     layers that save less for the gradient
``_feature_cache.py``     features on disk, shared by processes
``_shared_module.py``     networks as parameters: shared by clones, sent to workers once
========================= ==========================================================================================
"""

from ._encoder import FrozenEncoder

__all__ = ["FrozenEncoder"]
