"""Uploading distilled sets and probes to the Hugging Face hub."""

import os
from pathlib import Path
from typing import Any

from ._card import probe_card_of, with_metadata
from ._distilled_set import load_distilled
from ._download import PREFIX, PROBE_FILE, hub_errors, repository
from ._manifest import CARD, MANIFEST, is_image_name, read_manifest
from ._probe_file import probe_info

# What a new repository contains.
_EMPTY = {".gitattributes"}


def push_to_hub(path, name, *, metadata=None, private=None, token=None, revision=None, message=None, overwrite=False):
    """Upload a distilled set or a probe to the Hugging Face hub.

    A folder of `save_distilled` becomes a data set, and a file of `save_probe` a model, in one commit, with a card.

    Parameters
    ----------
    path : str or path
        What `save_distilled` or `save_probe` has written. It is checked before anything is uploaded.
    name : str
        ``"OWNER/NAME"``, or ``"hf:OWNER/NAME"``. The repository is created if it does not exist.
    metadata : dict, default=None
        Metadata of the card, such as ``{"license": "cc-by-4.0"}``; see the `hub's documentation
        <https://huggingface.co/docs/hub/datasets-cards>`_. They replace those that are set here.
    private : bool, default=None
        Whether a new repository is private. ``None``: the default of its owner.
    token : str, default=None
        Token of the hub. ``None``: that of ``hf auth login``, or ``HF_TOKEN``.
    revision : str, default=None
        Branch. ``None``: the main one.
    message : str, default=None
        Message of the commit.
    overwrite : bool, default=False
        Whether to replace a set or a probe that is there. Other files are never removed, and the hub keeps earlier commits.

    Returns
    -------
    str
        Address of the commit.

    Raises
    ------
    FileNotFoundError, ValueError
        If the set or the probe is missing, was changed, or is of another version; if the name has another form.
    FileExistsError
        If there is a card, a set or a probe, and ``overwrite`` is not set; or if the repository contains other files only.
    OSError
        If the hub cannot be reached, or refuses.

    See Also
    --------
    load_distilled, load_probe : Read ``"hf:OWNER/NAME"``.

    Examples
    --------
    >>> from sklearn_clpdd import push_to_hub
    >>> push_to_hub("distilled", "me/imagenette-10", metadata={"license": "cc-by-4.0"})  # doctest: +SKIP
    'https://huggingface.co/datasets/me/imagenette-10/commit/…'
    """
    repo_id = _repo_id(name)
    path = Path(path)
    is_set = path.is_dir()
    files = _files_of_set(path) if is_set else _files_of_probe(path, repo_id)
    files[CARD] = with_metadata(files[CARD].decode("utf-8"), metadata or {}).encode("utf-8")
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=token, library_name="sklearn-clpdd")
    where: dict[str, Any] = {"repo_id": repo_id, "repo_type": "dataset" if is_set else "model"}
    with hub_errors(f"{path} could not be uploaded to {repo_id!r}"):
        api.create_repo(**where, private=private, exist_ok=True)
        info: Any = api.repo_info(**where, revision=revision)
        there = {one.rfilename for one in info.siblings or []}
        old = _replaced(api, where, there, revision, files, overwrite)
        operations: list[Any] = [CommitOperationAdd(file, content) for file, content in files.items()]
        operations += [CommitOperationDelete(file) for file in sorted(old - files.keys())]
        title = message or f"Upload {'distilled set' if is_set else 'linear probe'} with sklearn-clpdd"
        # With its parent, so that what others commit in the meantime is an error and not lost.
        done = api.create_commit(**where, operations=operations, commit_message=title, revision=revision, parent_commit=info.sha)
    return str(done.commit_url)


def _repo_id(name: str) -> str:
    given = os.fspath(name)
    found = repository(given if given.startswith(PREFIX) else PREFIX + given)
    assert found is not None
    if found.revision:
        raise ValueError(f"{given!r} names a revision; pass the branch as revision=")
    return found.repo_id


def _files_of_set(path: Path) -> dict[str, bytes]:
    """Contents of a distilled set, by their names."""
    entries = load_distilled(path)[2]["images"]
    names = [MANIFEST, *([CARD] if (path / CARD).is_file() else []), *(entry["file"] for entry in entries)]
    return {CARD: b""} | {name: (path / name).read_bytes() for name in names}


def _files_of_probe(path: Path, repo_id: str) -> dict[str, bytes]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; pass a folder of save_distilled or a file of save_probe")
    return {PROBE_FILE: path.read_bytes(), CARD: probe_card_of(probe_info(path), repo_id).encode("utf-8")}


def _replaced(
    api: Any, where: dict[str, Any], there: set[str], revision: str | None, files: dict[str, bytes], overwrite: bool
) -> set[str]:
    """Files of the set or probe that is in a repository; raise if it may not be replaced."""
    main = MANIFEST if MANIFEST in files else PROBE_FILE
    others = there - _EMPTY
    if not others:
        return set()
    listed = None
    if main in there:
        listed = _listed(Path(api.hf_hub_download(**where, filename=main, revision=revision)), is_set=main == MANIFEST)
    if listed is None and others != {CARD}:
        raise FileExistsError(
            f"{where['repo_id']} exists, and contains no {main} of this library but {', '.join(sorted(others)[:5])}; pass the "
            "name of a new repository"
        )
    if not overwrite:
        raise FileExistsError(
            f"{where['repo_id']} exists, and contains {', '.join(sorted(others)[:5])}; overwrite=True replaces the card and what "
            "else has the same name. Or pass another name"
        )
    return {name for name in listed or () if name in there and is_image_name(name)}


def _listed(main: Path, *, is_set: bool) -> list[str] | None:
    """The images of a set, or none of a probe; None for a file of another library."""
    try:
        if is_set:
            return [entry["file"] for entry in read_manifest(main)[0]["images"]]
        probe_info(main)
        return []
    except ValueError:
        return None
