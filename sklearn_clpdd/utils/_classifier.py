"""A classifier whose score takes the labels that its `fit` takes."""

from sklearn.base import ClassifierMixin

from ._labels import as_labels


class LabelCheckedClassifier(ClassifierMixin):
    """scikit-learn's mixin, with a `score` for labels of all accepted types."""

    def score(self, X, y, sample_weight=None):
        """Accuracy.

        Parameters
        ----------
        X : as in `predict`
            Samples.
        y : array-like of shape (n_samples,)
            Class labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.

        Returns
        -------
        float
            Fraction of samples with the right label, in [0, 1].
        """
        return super().score(X, as_labels(y), sample_weight)
