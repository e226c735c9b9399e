"""A trained probe as one file that runs no code: tensors and JSON, with the provenance of its encoder."""

import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sklearn.pipeline import Pipeline
from torch import Tensor

from .._version import __version__
from ..encoder import FrozenEncoder
from ..probe import ClosedFormProbe
from ..probe._state import probe_from, state_of
from ..utils._tensor_file import read_tensors, write_tensors
from ..utils._torch_modes import standard_torch_modes
from ._download import PROBE_FILE, downloaded_file
from ._encoder_record import encoder_from, record_of
from ._manifest import recorded_accuracies
from ._replace import check_place

FORMAT = "sklearn-clpdd probe"
VERSION = 1


@standard_torch_modes()
def save_probe(probe, path, X_test=None, y_test=None, *, accuracies=None, overwrite=False):
    """Write a trained probe, alone or behind its encoder, as one file that can be loaded without running code.

    The file is in the safetensors format, with JSON in its header: parameters and fitted attributes of the probe; name,
    preprocessing and digest of the weights of the encoder, but not the weights themselves; accuracies, versions, and a digest.
    It contains no paths and no names of your machine.

    Parameters
    ----------
    probe : ClosedFormProbe, or Pipeline of a FrozenEncoder and a ClosedFormProbe
        Fitted.
    path : str or path
        File to write, such as ``"probe.safetensors"``.
    X_test, y_test : images or features, and labels, default=None
        Test samples; the accuracy on them is recorded.
    accuracies : dict of str to float in [0, 1], default=None
        Other accuracies to record, by the protocol with which they were measured.
    overwrite : bool, default=False
        Whether to replace an existing file. Only a file that this function has written is replaced.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    FileExistsError
        If the file exists and is not replaced.
    NotFittedError, TypeError, ValueError
        If the probe is not fitted; if its kernel is a function; if a pipeline has other steps; if an accuracy is not in [0, 1].
    OSError
        If the file cannot be written; an existing one is then unchanged.

    Notes
    -----
    What `ClosedFormProbe.partial_fit` keeps to see further batches is not saved. `device`, `n_jobs`, `memory`, `batch_size`,
    `verbose`, and any `dtype` but ``"float32"`` are those of a new encoder after loading. For pipelines with
    other steps there is `skops <https://skops.readthedocs.io>`_.

    See Also
    --------
    load_probe : Reads the file.
    push_to_hub : Uploads it.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn_clpdd import ClosedFormProbe, FrozenEncoder, load_probe, save_probe
    >>> from sklearn_clpdd.datasets import load_digit_images
    >>> X, y = load_digit_images()
    >>> probe = make_pipeline(FrozenEncoder(image_size=32), ClosedFormProbe()).fit(X[:200], y[:200])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_probe(probe, f"{folder}/digits.safetensors", X[200:300], y[200:300])
    ...     loaded = load_probe(path)
    >>> bool((loaded.predict(X[:9]) == probe.predict(X[:9])).all())
    True
    """
    steps = _steps_of(probe)
    path = Path(path)
    check_probe_target(path, overwrite)
    tensors, state = state_of(steps[-1][1])
    record = record_of(steps[0][1]) if len(steps) == 2 else None
    if record is not None:
        state["feature_names"] = None  # of an encoder with set_output
    info = {
        "format": FORMAT,
        "format_version": VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "steps": [name for name, _ in steps],
        "probe": state,
        "encoder": record,
        "accuracies": recorded_accuracies(probe, X_test, y_test, accuracies),
        "versions": {"python": platform.python_version(), "sklearn-clpdd": __version__},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    check_probe_target(path, overwrite)  # it may have come into being in the meantime
    write_tensors(path, tensors, info)
    return path


@standard_torch_modes()
def load_probe(path, *, encoder=None):
    """Read a probe that `save_probe` has written, and check it against its digest.

    Parameters
    ----------
    path : str or path
        File; ``"hf:OWNER/NAME"`` or ``"hf:OWNER/NAME@REVISION"`` for one on the Hugging Face hub.
    encoder : FrozenEncoder, str or torch.nn.Module, default=None
        The encoder, if the probe was saved behind a module, or behind weights of a local file. ``None``: the network is built by
        its recorded name.

    Returns
    -------
    ClosedFormProbe or Pipeline
        As it was saved: the probe alone, or behind its encoder, whose weights and preprocessing are those that were recorded.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If it was not written by `save_probe`, was changed, or was written by a later version; if the encoder cannot be built, or
        has other weights or another preprocessing; if ``encoder`` is passed for a probe that was saved alone.
    OSError, ImportError
        If the weights of the encoder, or the file, cannot be downloaded; if the library of the encoder is not installed.

    Notes
    -----
    Nothing is unpickled, and no code of the file is run. The digest finds damage, not forgery.

    See Also
    --------
    save_probe : Writes the file; with an example.
    """
    path = downloaded_file(path, PROBE_FILE)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; pass one that save_probe has written")
    tensors, info = _read(path)
    try:
        probe, record = probe_from(tensors, info["probe"]), info["encoder"]
        names = [str(name) for name in info["steps"]]
        if len(names) != 1 + (record is not None):
            raise ValueError(f"its steps are {names}")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} does not contain a probe ({type(error).__name__}: {error}); get a fresh copy") from error
    if record is None:
        if encoder is not None:
            raise ValueError(f"{path} is a probe without an encoder; put both into a pipeline: make_pipeline(encoder, probe)")
        return probe
    how = f"pass encoder=, a FrozenEncoder of the network that {path} was saved with"
    try:
        return Pipeline(list(zip(names, [encoder_from(record, encoder, str(path), how), probe], strict=True)))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not name its encoder ({type(error).__name__}: {error}); get a fresh copy") from error


def probe_info(path: Path) -> dict[str, Any]:
    """What `save_probe` has written beside the tensors of a file."""
    return _read(path)[1]


def _steps_of(probe) -> list[tuple[str, Any]]:
    """Names and estimators of a probe, or of a pipeline of an encoder and a probe."""
    if type(probe) is ClosedFormProbe:  # a subclass may predict in another way
        return [("probe", probe)]
    steps = probe.steps if isinstance(probe, Pipeline) else []
    kinds = [type(step) for _, step in steps]
    if kinds == [FrozenEncoder, ClosedFormProbe]:
        return list(steps)
    seen = f"a pipeline of {', '.join(kind.__name__ for kind in kinds)}" if steps else f"a {type(probe).__name__}"
    raise TypeError(
        f"save_probe saves a ClosedFormProbe, or a pipeline of a FrozenEncoder and a ClosedFormProbe; got {seen}. Save other "
        "estimators with skops; of a distiller for one encoder, make_pipeline(distiller.encoder_, distiller.probe_)"
    )


def check_probe_target(path: Path, overwrite: bool) -> None:
    """Raise if a file may not be written."""
    check_place(path)
    if not os.path.lexists(path):
        return
    try:
        is_probe = path.is_file() and not path.is_symlink() and read_tensors(path)[1].get("format") == FORMAT
    except (OSError, ValueError):
        is_probe = False
    if not is_probe:
        raise FileExistsError(f"{path} exists, and is not a file of save_probe; pass a path that does not exist yet")
    if not overwrite:
        raise FileExistsError(f"{path} exists; overwrite=True replaces it. Or pass a path that does not exist yet")


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Content of a file of this or an earlier version."""
    try:
        tensors, info, is_intact = read_tensors(path)
        if info.get("format") != FORMAT:
            raise ValueError(f"its format is {info.get('format')!r}, not {FORMAT!r}")
        version = info.get("format_version")
        if type(version) is not int or version < 1 or (version == VERSION and not is_intact):
            raise ValueError("its content does not have its digest, so that it was changed or damaged")
    except ValueError as error:
        raise ValueError(f"{path} is not an intact file of save_probe ({error}); get a fresh copy") from error
    if version > VERSION:
        raise ValueError(f"{path} has format {version}, and this library reads up to {VERSION}; upgrade it")
    return tensors, info
