"""Sets and probes on the Hugging Face hub, which is a folder here: its client is replaced, with the same signatures."""

import json
import shutil
from fnmatch import fnmatch
from types import SimpleNamespace
from unittest.mock import create_autospec

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard
from sklearn.pipeline import make_pipeline

from sklearn_clpdd import (
    ClosedFormProbe,
    FrozenEncoder,
    load_distilled,
    load_probe,
    push_to_hub,
    save_distilled,
    save_probe,
)
from sklearn_clpdd.baselines import ClassCentroids


class Hub:
    """Repositories as folders, ``ROOT/TYPE/OWNER/NAME/REVISION``."""

    def __init__(self, root):
        self.root = root
        self.commits = []

    def folder(self, repo_id, repo_type, revision):
        return self.root / (repo_type or "model") / repo_id / (revision or "main")

    def create_repo(self, repo_id, *, repo_type=None, private=None, exist_ok=False):
        self.folder(repo_id, repo_type, None).mkdir(parents=True, exist_ok=exist_ok)
        (self.folder(repo_id, repo_type, None) / ".gitattributes").touch()

    def repo_info(self, repo_id, *, repo_type=None, revision=None):
        folder = self.folder(repo_id, repo_type, revision)
        files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        return SimpleNamespace(sha=f"sha {len(self.commits)}", siblings=[SimpleNamespace(rfilename=name) for name in files])

    def create_commit(self, repo_id, operations, *, commit_message, repo_type=None, revision=None, parent_commit=None):
        assert parent_commit == f"sha {len(self.commits)}"
        folder = self.folder(repo_id, repo_type, revision)
        operations = list(operations)
        for one in operations:
            path = folder / one.path_in_repo
            if isinstance(one, CommitOperationDelete):
                path.unlink()
            else:
                assert isinstance(one, CommitOperationAdd)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(one.path_or_fileobj)
        self.commits.append(commit_message)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/{len(self.commits)}")

    def hf_hub_download(self, repo_id, filename, *, repo_type=None, revision=None):
        path = self.folder(repo_id, repo_type, revision) / filename
        if not path.is_file():
            raise huggingface_hub.errors.LocalEntryNotFoundError(f"no {filename} in {repo_id}")
        return str(path)

    def snapshot_download(self, repo_id, *, repo_type=None, revision=None, allow_patterns=None):
        source = self.folder(repo_id, repo_type, revision)
        if not source.is_dir():
            raise huggingface_hub.errors.LocalEntryNotFoundError(f"no {repo_id}")
        target = self.root / "cache" / repo_id / (revision or "main")
        shutil.rmtree(target, ignore_errors=True)
        for path in source.rglob("*"):
            name = path.relative_to(source).as_posix()
            if path.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (target / name).symlink_to(path)  # as in the hub's cache
        return str(target)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    fake = Hub(tmp_path / "hub")
    api = create_autospec(HfApi, instance=True)  # refuses arguments that the client does not have
    for name in ("create_repo", "repo_info", "create_commit", "hf_hub_download"):
        getattr(api, name).side_effect = getattr(fake, name)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token=None, library_name=None: api)
    for name in ("hf_hub_download", "snapshot_download"):
        wrapped = create_autospec(getattr(huggingface_hub, name), side_effect=getattr(fake, name))
        monkeypatch.setattr(huggingface_hub, name, wrapped)
    return fake


@pytest.fixture(scope="module")
def fitted(request):
    colors = request.getfixturevalue("colors")
    return ClassCentroids(FrozenEncoder(weights=None, image_size=32), images_per_class=2, random_state=0).fit(*colors)


@pytest.fixture
def saved(fitted, tmp_path):
    return save_distilled(fitted, tmp_path / "set")


@pytest.fixture
def probe(tmp_path, colors):
    pipeline = make_pipeline(FrozenEncoder(weights=None, image_size=32), ClosedFormProbe(1.0)).fit(*colors)
    return pipeline, save_probe(pipeline, tmp_path / "probe", *colors)


def test_a_set_there_and_back(hub, saved):
    url = push_to_hub(saved, "me/colors", metadata={"license": "cc-by-4.0", "tags": ["mine"]})
    assert url == "https://hub/me/colors/commit/1"
    images, labels, manifest = load_distilled("hf:me/colors")
    wanted = load_distilled(saved)
    np.testing.assert_array_equal(images, wanted[0])
    np.testing.assert_array_equal(labels, wanted[1])
    assert manifest == wanted[2]
    folder = hub.root / "dataset/me/colors/main"
    assert {path.name for path in folder.iterdir()} == {".gitattributes", "README.md", "manifest.json", "blue", "green", "red"}
    card = RepoCard.load(folder / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.tags == ["mine"]
    assert card.data.task_categories == ["image-classification"]
    assert card.data.size_categories == ["n<1K"]
    assert card.data.to_dict()["configs"][0]["data_files"][0] == {"split": "train", "path": "*/*.png"}
    assert card.text.lstrip() == RepoCard.load(saved / "README.md").text.lstrip()


def test_a_probe_there_and_back(hub, probe, colors):
    pipeline, path = probe
    push_to_hub(path, "hf:me/probe", revision=None, message="first")
    loaded = load_probe("hf:me/probe")
    np.testing.assert_array_equal(loaded.predict_proba(colors[0]), pipeline.predict_proba(colors[0]))
    assert hub.commits == ["first"]
    card = RepoCard.load(hub.root / "model/me/probe/main/README.md")
    assert card.data.to_dict()["library_name"] == "sklearn-clpdd"
    assert card.data.to_dict()["pipeline_tag"] == "image-classification"
    for text in ('load_probe("hf:me/probe")', f"{pipeline.score(*colors):.3f}", "- green", "`tf_efficientnet_lite0` at 32 px"):
        assert text in card.text


def test_revisions(hub, saved, fitted, tmp_path):
    push_to_hub(saved, "me/colors")
    shutil.copytree(hub.root / "dataset/me/colors/main", hub.root / "dataset/me/colors/v2")
    other = save_distilled(fitted, tmp_path / "other", accuracies={"mine": 0.5})
    push_to_hub(other, "me/colors", revision="v2", overwrite=True)
    assert load_distilled("hf:me/colors")[2]["accuracies"] == []
    assert load_distilled("hf:me/colors@v2")[2]["accuracies"] == [{"protocol": "mine", "accuracy": 0.5}]
    with pytest.raises(ValueError, match="as revision="):
        push_to_hub(other, "me/colors@v2")


def test_a_smaller_set_replaces_a_larger_one(hub, saved, colors, tmp_path):
    push_to_hub(saved, "me/colors")
    folder = hub.root / "dataset/me/colors/main"
    (folder / "notes.txt").write_text("mine")
    (folder / "assets").mkdir()
    (folder / "assets" / "figure.png").write_bytes(b"mine")
    small = ClassCentroids(FrozenEncoder(weights=None, image_size=32), random_state=0).fit(*colors)
    new = save_distilled(small, tmp_path / "new")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        push_to_hub(new, "me/colors")
    assert len(load_distilled("hf:me/colors")[0]) == 6
    push_to_hub(new, "me/colors", overwrite=True)
    assert len(load_distilled("hf:me/colors")[0]) == 3
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "assets" / "figure.png").read_bytes() == b"mine"
    assert len(list(folder.glob("*/*.png"))) == 4


def test_a_repository_of_something_else_is_left_alone(hub, saved, probe):
    for kind in ("dataset", "model"):
        folder = hub.root / kind / "me/other/main"
        folder.mkdir(parents=True)
        (folder / "train.csv").write_text("mine")
        with pytest.raises(FileExistsError, match=r"train\.csv"):
            push_to_hub(saved if kind == "dataset" else probe[1], "me/other", overwrite=True)
        assert sorted(path.name for path in folder.iterdir()) == [".gitattributes", "train.csv"]


def test_a_card_of_ones_own_and_files_of_other_tools(hub, saved, probe):
    folder = hub.root / "dataset/me/card/main"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        push_to_hub(saved, "me/card")
    assert (folder / "README.md").read_text() == "mine"
    push_to_hub(saved, "me/card", overwrite=True)
    assert len(load_distilled("hf:me/card")[0]) == 6
    for kind, name in (("dataset", "manifest.json"), ("model", "probe.safetensors")):
        folder = hub.root / kind / "me/tool/main"
        folder.mkdir(parents=True)
        (folder / name).write_text("{}")
        with pytest.raises(FileExistsError, match="of this library"):
            push_to_hub(saved if kind == "dataset" else probe[1], "me/tool", overwrite=True)
        assert (folder / name).read_text() == "{}"


def test_names_of_the_hub_are_no_paths(fitted, probe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for save in (lambda: save_distilled(fitted, "hf:me/x"), lambda: save_probe(probe[0], "hf:me/x")):
        with pytest.raises(ValueError, match="push_to_hub"):
            save()
    assert not (tmp_path / "hf:me").exists()


def test_nothing_broken_is_uploaded(hub, saved, probe, tmp_path):
    next(saved.glob("*/*.png")).write_bytes(b"")
    with pytest.raises(ValueError, match="changed"):
        push_to_hub(saved, "me/colors")
    path = probe[1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="fresh copy"):
        push_to_hub(path, "me/probe")
    with pytest.raises(FileNotFoundError, match="save_distilled"):
        push_to_hub(tmp_path / "nothing", "me/probe")
    assert not hub.root.exists()


@pytest.mark.parametrize("name", ["me", "hf:me", "a/b/c", "/b", "a/"])
def test_names_of_another_form(hub, saved, name):
    with pytest.raises(ValueError, match="OWNER/NAME"):
        push_to_hub(saved, name)
    for load in (load_distilled, load_probe):
        with pytest.raises(ValueError, match="OWNER/NAME"):
            load(f"hf:{name.removeprefix('hf:')}")


def test_without_a_network(saved, probe):
    """With the real client: this machine, or `HF_HUB_OFFLINE`, has no way to the hub."""
    for call in (
        lambda: load_distilled("hf:me/colors"),
        lambda: load_probe("hf:me/probe"),
        lambda: push_to_hub(saved, "me/colors"),
        lambda: push_to_hub(probe[1], "me/probe"),
    ):
        with pytest.raises(OSError, match="HF_TOKEN"):
            call()


def test_cards_have_metadata_that_yaml_reads(fitted, tmp_path):
    for name in ("a: b", "[x]", '"quoted"', "ü"):
        folder = save_distilled(fitted, tmp_path / name)
        assert RepoCard.load(folder / "README.md").data.to_dict()["pretty_name"] == name
        assert json.loads((folder / "manifest.json").read_text())["format"]
