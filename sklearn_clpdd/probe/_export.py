"""A fitted probe as scikit-learn's own linear model, and as an ONNX graph.

skl2onnx calls the two ``onnx_`` methods of an estimator that it does not know; nothing has to be registered. It is imported
only there.
"""

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.utils.validation import check_is_fitted


class ExportMixin:
    """The methods of :class:`ClosedFormProbe` that give it to others."""

    classes_: np.ndarray
    coef_: np.ndarray
    intercept_: np.ndarray
    temperature_: Any
    compression_: Any
    multilabel_: bool
    alpha_: Any
    loss_: str
    kernel: Any
    n_features_in_: int

    def to_sklearn(self):
        """The fitted probe as scikit-learn's own linear model.

        Returns
        -------
        RidgeClassifier, LogisticRegression or Pipeline
            With the same `classes_` and the same predictions, for whatever reads scikit-learn's models: of the squared loss a
            ``RidgeClassifier`` with the same scores (which has no probabilities); of the logistic loss a ``LogisticRegression``
            with the same probabilities, whose coefficients are those of the probe over its temperature. With
            ``kernel="cosine"``, in a pipeline after a ``Normalizer``.

        Raises
        ------
        ValueError
            If the kernel has no coefficients.
        """
        check_is_fitted(self)
        self._check_coefficients("scikit-learn's linear models")
        if self.loss_ == "logistic":
            model = LogisticRegression(C=np.inf)
            model.classes_ = self.classes_
            model.coef_, model.intercept_ = self.coef_ / self.temperature_, self.intercept_ / self.temperature_
            model.n_iter_ = np.zeros(1, np.int32)
        else:
            model = RidgeClassifier(alpha=float(np.nan_to_num(self.alpha_).max()))
            labels = np.eye(len(self.classes_), dtype=int) if self.multilabel_ else self.classes_
            model.fit(np.arange(len(labels))[:, None], labels)  # learns the classes
            model.coef_, model.intercept_ = self.coef_, self.intercept_
        model.n_features_in_ = self.n_features_in_
        if hasattr(self, "feature_names_in_") and self.kernel == "linear":
            model.feature_names_in_ = self.feature_names_in_
        return make_pipeline(Normalizer(), model) if self.kernel == "cosine" else model

    def _check_coefficients(self, reader: str):
        if self.kernel not in ("linear", "cosine"):
            raise ValueError(
                f"a probe with kernel={self.kernel!r} has no coefficients of the features, which {reader} would need; use "
                "kernel='linear' or 'cosine', or make_pipeline(Nystroem(...), ClosedFormProbe())"
            )

    def onnx_shape_calculator(self):
        """For skl2onnx: a function that sets the types and shapes of label and probabilities."""
        from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType, StringTensorType

        check_is_fitted(self)
        self._check_coefficients("ONNX graphs")

        def calculate(operator):
            is_double = isinstance(operator.inputs[0].type, DoubleTensorType)
            n, n_outputs = operator.inputs[0].get_first_dimension(), len(self.classes_)
            of_labels = StringTensorType if self._onnx_classes().dtype.kind == "U" else Int64TensorType
            operator.outputs[0].type = of_labels([n, n_outputs] if self.multilabel_ else [n])
            operator.outputs[1].type = (DoubleTensorType if is_double else FloatTensorType)([n, n_outputs])

        return calculate

    def onnx_converter(self):
        """For skl2onnx: a function that adds the nodes of label and probabilities."""
        from skl2onnx.algebra import onnx_ops as ops
        from skl2onnx.common.data_types import DoubleTensorType, guess_numpy_type
        from skl2onnx.proto import onnx_proto

        def convert(scope, operator, container):
            version = {"op_version": container.target_opset}
            X = operator.inputs[0]
            dtype = np.float64 if isinstance(X.type, DoubleTensorType) else np.float32
            if guess_numpy_type(X.type) != dtype:
                X = ops.OnnxCast(X, to=onnx_proto.TensorProto.FLOAT, **version)
            if self.kernel == "cosine":
                ones = np.ones((self.n_features_in_, 1), dtype)
                norms = ops.OnnxSqrt(ops.OnnxMatMul(ops.OnnxMul(X, X, **version), ones, **version), **version)
                X = ops.OnnxDiv(X, ops.OnnxMax(norms, np.array([np.finfo(dtype).tiny], dtype), **version), **version)
            product = ops.OnnxMatMul(X, self.coef_.T.astype(dtype), **version)
            scores = ops.OnnxAdd(product, self.intercept_.astype(dtype), **version)
            if len(self.classes_) == 2 and not self.multilabel_:
                sign = np.array([[-1.0, 1.0]] if self.loss_ == "squared" else [[0.0, 1.0]], dtype)
                scores = ops.OnnxMatMul(scores, sign, **version)
            if self.multilabel_:
                positive = ops.OnnxGreater(scores, np.zeros(1, dtype), **version)
                label = ops.OnnxCast(positive, to=onnx_proto.TensorProto.INT64, output_names=operator.outputs[:1], **version)
                opposite = self._onnx_logits(ops, ops.OnnxNeg(scores, **version), dtype, version)
                difference = ops.OnnxSub(self._onnx_logits(ops, scores, dtype, version), opposite, **version)
                proba = ops.OnnxSigmoid(difference, output_names=operator.outputs[1:], **version)
            else:
                best = ops.OnnxArgMax(scores, axis=1, keepdims=0, **version)
                chosen = ops.OnnxArrayFeatureExtractor(self._onnx_classes(), best, **version)
                label = ops.OnnxReshape(chosen, np.array([-1]), output_names=operator.outputs[:1], **version)
                values = self._onnx_logits(ops, scores, dtype, version)
                proba = ops.OnnxSoftmax(values, axis=1, output_names=operator.outputs[1:], **version)
            label.add_to(scope, container)
            proba.add_to(scope, container)

        return convert

    def _onnx_logits(self, ops, scores, dtype, version):
        """The nodes of `logits`; the inverse hyperbolic sine by its logarithm, which runtimes have in double precision, too."""

        def constant(value):
            return np.atleast_1d(value).astype(dtype)

        compression = np.atleast_1d(self.compression_)
        linear = ops.OnnxDiv(scores, constant(self.temperature_), **version)
        if not compression.any():
            return linear
        safe = np.where(compression > 0, compression, 1.0)
        v = ops.OnnxMul(ops.OnnxAdd(scores, constant(1.0), **version), constant(safe), **version)
        size = ops.OnnxAbs(v, **version)
        root = ops.OnnxSqrt(ops.OnnxAdd(ops.OnnxMul(v, v, **version), constant(1.0), **version), **version)
        asinh = ops.OnnxMul(ops.OnnxSign(v, **version), ops.OnnxLog(ops.OnnxAdd(size, root, **version), **version), **version)
        compressed = ops.OnnxDiv(asinh, constant(safe * self.temperature_), **version)
        if compression.all():
            return compressed
        return ops.OnnxWhere(compression > 0, compressed, linear, **version)

    def _onnx_classes(self) -> np.ndarray:
        """Labels as integers or strings."""
        kind = self.classes_.dtype.kind
        if kind in "OUT":
            return self.classes_.astype(str)
        if kind in "biu" or (kind == "f" and (self.classes_ % 1 == 0).all()):
            return self.classes_.astype(np.int64)
        raise ValueError(f"labels of dtype {self.classes_.dtype} have no type in ONNX; fit the probe to strings or integers")
