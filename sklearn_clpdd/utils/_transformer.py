"""A transformer that rejects an unavailable output container early."""

from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin

from ._sklearn_compat import check_output_container


class OutputCheckedTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """scikit-learn's transformer, whose output container is checked when it is set.

    A container may also be set by `set_config`; `transform` of a subclass therefore calls `check_output_container` first.
    """

    def set_output(self, *, transform=None):
        """Set the container of the output of `transform`.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"}, default=None
            ``"default"`` is a numpy array, the others are data frames. ``None`` leaves the setting as it is.

        Returns
        -------
        estimator
            The estimator itself.

        Raises
        ------
        ValueError
            If the container is unknown.
        ImportError
            If its library is not installed.
        """
        before = dict(getattr(self, "_sklearn_output_config", {}))
        super().set_output(transform=transform)
        try:
            check_output_container(self)
        except (ValueError, ImportError):
            self._sklearn_output_config = before
            raise
        return self
