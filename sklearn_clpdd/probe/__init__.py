"""The closed-form probe.

============================ =======================================================================================
file                         what it holds
============================ =======================================================================================
``_probe.py``                the estimator
``_input.py``                validation of features, labels and weights
``_predict.py``              its methods that predict
``_export.py``               the probe as scikit-learn's own linear model, and as an ONNX graph
``_partial_fit.py``          its methods that see the samples in batches
``_solved.py``               probes for solutions computed elsewhere, and with relative ridge strengths
``_state.py``                a fitted probe as tensors and JSON, and back
``_solver.py``               from rows or statistics to coefficients, with the choice of ridge strength and temperature
``_selection.py``            leave-one-out scores of ridge strengths
``_calibration.py``          from scores to probabilities: the temperature and compression with the least log-loss
``_logistic.py``             the logistic loss: coordinates, folds, and the choice of its strength
``_lbfgs.py``                several logistic regressions on the same rows, solved together
``_leave_one_out.py``        leave-one-out predictions, in sample space and in feature space
``_inverse.py``              one factorisation for many penalties
``_stream.py``               what `partial_fit` and `merge` keep: moments, and a sample of the rows
``_moments.py``              weighted Gram matrix and class means
``_reservoir.py``            uniform sample of a stream
``_rows.py``                 feature matrices that are read in chunks
``_kernels.py``              kernels
============================ =======================================================================================
"""

from ._probe import ClosedFormProbe

__all__ = ["ClosedFormProbe"]
