"""What the other packages share.

======================= ===========================================================
file                    what it holds
======================= ===========================================================
``_ridge.py``           ridge regression in closed form, differentiable
``_arrays.py``          large, read-only and memory-mapped arrays
``_device.py``          devices and free memory
``_ranks.py``           processes of torch.distributed that work on one fit
``_torch_modes.py``     torch's modes while the library computes, forked processes
``_labels.py``          class labels: which ones are accepted, how they are shown and stored
``_heap.py``            glibc's allocator during long computations
``_fingerprint.py``     digests of parameters, networks and tensors
``_tensor_file.py``     files of tensors and JSON, replaced as a whole
``_progress.py``        progress bars
``_pictures.py``        synthetic images as PNG files, in a grid, in HTML
``_transformer.py``     a transformer that checks its output container early
``_classifier.py``      a classifier whose score takes all accepted labels
``_documented.py``      the link to the documentation in an estimator's HTML
``_warnings.py``        warnings that point to the user's own line
``_sklearn_compat.py``  private parts of scikit-learn
``_torch_compat.py``    private parts of torch and timm
======================= ===========================================================
"""
