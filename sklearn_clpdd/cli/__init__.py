"""The command line, ``python -m sklearn_clpdd``: the main jobs on folders of images.

======================= ==================================================
file                    what it holds
======================= ==================================================
``_main.py``            commands and their options, errors, exit codes
``_images.py``          the images of a folder, for training and for the test
``_commands.py``        what each command does
======================= ==================================================
"""

from ._main import main

__all__ = ["main"]
