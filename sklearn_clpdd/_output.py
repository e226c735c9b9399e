"""What `set_output` asks for, looked at before an encoder is at work."""

from importlib.util import find_spec

from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils._set_output import ADAPTERS_MANAGER, _get_output_config


class Transformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """scikit-learn's transformer, that refuses a container which cannot be had at once, not after the work."""

    def set_output(self, *, transform=None):
        """Set the container of `transform`'s output.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"}, default=None
            An array, or a data frame of one of the two libraries. ``None`` leaves it as it is.

        Returns
        -------
        estimator
            Itself.

        Raises
        ------
        ValueError
            For another container.
        ImportError
            If its library is not installed.
        """
        before = dict(getattr(self, "_sklearn_output_config", {}))
        super().set_output(transform=transform)
        try:
            self._check_output()
        except (ValueError, ImportError):
            self._sklearn_output_config = before
            raise
        return self

    def _check_output(self) -> None:
        """Raise for a container that is not known, or whose library is not there; `set_config` may have named it, too."""
        wanted = _get_output_config("transform", self)["dense"]
        adapter = ADAPTERS_MANAGER.adapters.get(wanted)
        if adapter is not None and find_spec(adapter.container_lib) is None:
            raise ImportError(
                f"set_output(transform={wanted!r}) needs {adapter.container_lib}: pip install {adapter.container_lib}"
            )
