"""Progress bars: tqdm's, or none."""

from typing import Any

from tqdm.auto import tqdm


class HiddenBar:
    """Takes the calls of a progress bar.

    tqdm's hidden bars share a lock with forked processes: if one of these is killed while it holds the lock, all others wait for
    ever.
    """

    disable = True
    total: int | None = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def update(self, n: int = 1) -> None:
        """Ignore progress."""

    def set_postfix(self, *shown, **options) -> None:
        """Ignore figures."""

    def close(self) -> None:
        """Do nothing."""


def progress_bar(*, hidden: bool, **options: Any) -> "tqdm | HiddenBar":
    """A progress bar with tqdm's options, unless it is hidden."""
    return HiddenBar() if hidden else tqdm(**options)
