"""Image sets as ``X`` and ``y``.

========================= ==========================================================================================
file                      what it holds
========================= ==========================================================================================
``_folders.py``           a folder of class folders
``_libraries.py``         data sets of Hugging Face and torch
``_digits.py``            scikit-learn's digits as images
========================= ==========================================================================================
"""

from ._digits import load_digit_images
from ._folders import load_image_folder
from ._libraries import load_hf_dataset, load_torch_dataset

__all__ = ["load_digit_images", "load_hf_dataset", "load_image_folder", "load_torch_dataset"]
