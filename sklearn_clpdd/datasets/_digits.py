"""scikit-learn's digits as images."""

import numpy as np
from sklearn.datasets import load_digits


def load_digit_images():
    """The 1,797 handwritten digits bundled with scikit-learn, as images.

    Returns
    -------
    images : ndarray of shape (1797, 8, 8), float32
        Grey values in [0, 1].
    labels : ndarray of shape (1797,), int
        Digits 0 to 9.

    Examples
    --------
    >>> from sklearn_clpdd.datasets import load_digit_images
    >>> images, labels = load_digit_images()
    >>> images.shape, float(images.max())
    ((1797, 8, 8), 1.0)
    """
    digits = load_digits()
    return (digits.images / 16).astype(np.float32), digits.target
