"""Warnings that point to the user's own line."""

import contextlib
import os
import sys
import warnings
from pathlib import Path

import joblib
import sklearn

_ROOTS = [Path(sklearn.__file__).parent, Path(joblib.__file__).parent, Path(__file__).parents[1]]
_LIBRARIES = (contextlib.__file__, *(os.path.join(root, "") for root in _ROOTS))


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the innermost line that belongs to neither this library nor scikit-learn nor joblib."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
