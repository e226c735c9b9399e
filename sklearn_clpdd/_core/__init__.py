"""The numerical core: torch only, knows nothing of scikit-learn or of the estimators above it.

Symbols, used in every module of this package with one meaning:

====== ===============================================================================
``n``  number of real images
``C``  number of classes
``m``  number of synthetic images
``k``  views of each synthetic image per step, the whole image among them where it is one
``d``  feature dimension
``θ``  what the optimiser moves; a parametrisation decodes it to the images ``S``
``S``  synthetic images, ``(m, 3, H, W)`` in [0, 1], or synthetic points ``(m, d)``
``Z``  features of the ``mk`` views, ``(mk, d)``
``Y``  their targets, ``(mk, C)``: one-hot, unless they are learned
``K``  their Gram matrix ``Z Zᵀ``, ``(mk, mk)``
``W``  weights of the linear probe, ``(d, C)``
``R``  features of real images, ``(B, d)``, with class indices ``r`` of shape ``(B,)``
``λ``  ridge strength, relative to the mean squared norm of the rows of ``Z``
``τ``  temperature of the softmax of scores; ``τ'`` is that of squared distances
====== ===============================================================================
"""
