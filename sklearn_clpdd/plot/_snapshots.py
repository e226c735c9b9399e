"""Snapshots: an animation of the synthetic images during a run."""

import os
from numbers import Integral

import numpy as np
from PIL import Image, ImageDraw
from sklearn.utils import check_scalar

from ..utils._arrays import evenly_spaced
from ..utils._pictures import columns_for, mosaic, to_8_bit
from ._images import checked_columns


class Snapshots:
    """Callback that records the synthetic images during a run, and makes an animation of them.

    Parameters
    ----------
    every : int, default=20
        Steps between two snapshots; one is also taken at step ``max_iter - 1``. On a GPU, callbacks see the images at every tenth
        step only, and a snapshot is taken at the next of these steps.
    max_images : int, default=20
        Images that are recorded, at most, evenly spaced among all.

    Attributes
    ----------
    steps_ : list of int
        Steps of the snapshots.
    frames_ : list of ndarray of shape (n_images, height, width, 3), uint8
        The images at these steps.

    Examples
    --------
    >>> from sklearn_clpdd import CLPDistiller, FrozenEncoder, Snapshots
    >>> from sklearn_clpdd.datasets import load_digit_images
    >>> X, y = load_digit_images()
    >>> snapshots = Snapshots(every=1)
    >>> distiller = CLPDistiller(FrozenEncoder(image_size=32), max_iter=3, callback=snapshots, random_state=0).fit(X[:50], y[:50])
    >>> snapshots.steps_
    [0, 1, 2]
    """

    def __init__(self, every=20, *, max_images=20):
        check_scalar(every, "every", Integral, min_val=1)
        check_scalar(max_images, "max_images", Integral, min_val=1)
        self.every = every
        self.max_images = max_images
        self.steps_: list[int] = []
        self.frames_: list[np.ndarray] = []

    def __call__(self, distiller, record):
        """Take a snapshot if one is due."""
        step = record["step"]
        if step == 0:  # another run
            self.steps_, self.frames_ = [], []
        if step != distiller.n_iter_ - 1:
            return  # on a GPU records come in groups of ten, and the images are those of the last one
        last = self.steps_[-1] if self.steps_ else -1
        if step // self.every > last // self.every or step == distiller.max_iter - 1:
            images = distiller.transform()
            if images.ndim != 4:
                raise ValueError("snapshots need images, and the distiller has points of feature space (encoder=None)")
            self.steps_.append(step)
            self.frames_.append(to_8_bit(images[evenly_spaced(len(images), self.max_images)]))

    def save_gif(self, path, *, n_columns=None, duration=4.0):
        """Write the animation.

        Parameters
        ----------
        path : str or path
            GIF file; an existing one is replaced.
        n_columns : int, default=None
            Columns of the grid. ``None``: about twice as many as rows.
        duration : float, default=4.0
            Duration in seconds, without the last frame, which stays for two seconds.

        Raises
        ------
        ValueError
            If there are no snapshots.
        """
        if not self.frames_:
            raise ValueError(
                "there are no snapshots: pass this object as callback= to a distiller, and fit it to images. A search or a "
                "sampler fits a clone; its `callback` has the snapshots"
            )
        n_columns = checked_columns(n_columns, columns_for(len(self.frames_[0])))
        pages = [_titled(mosaic(frame, n_columns), f"step {s}") for s, frame in zip(self.steps_, self.frames_, strict=True)]
        each = max(20, round(1000 * duration / max(1, len(pages) - 1)))
        durations = [each] * (len(pages) - 1) + [2000]
        pages[0].save(os.fspath(path), format="gif", save_all=True, append_images=pages[1:], duration=durations, loop=0)


def _titled(picture: np.ndarray, title: str, margin: int = 14) -> Image.Image:
    page = Image.new("RGB", (picture.shape[1], picture.shape[0] + margin), "white")
    page.paste(Image.fromarray(picture), (0, margin))
    ImageDraw.Draw(page).text((2, 1), title, fill="black")
    return page
