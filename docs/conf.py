import os
from importlib.metadata import version
from pathlib import Path

os.environ["MPLBACKEND"] = "agg"  # the gallery is built without a screen

project = "sklearn-clpdd"
author = "the sklearn-clpdd developers"
copyright = "2026, the sklearn-clpdd developers"
release = version("sklearn-clpdd")
version = release

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
html_theme = "pydata_sphinx_theme"
html_theme_options = {"show_prev_next": False}

autosummary_generate = True
autodoc_typehints = "none"
default_role = "code"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    # The folder example needs a folder; it is shown, not run.
    "filename_pattern": "plot_(digits|probe)",
    "min_reported_time": 10**6,
    "show_memory": False,
    "abort_on_example_error": True,
}


def tables(app):
    """The tables of `benchmarks/results` for `csv-table`, so that no figure is written twice."""
    folder = Path(app.srcdir, "generated")
    folder.mkdir(exist_ok=True)
    for path in Path(app.srcdir).parent.glob("benchmarks/results/*.md"):
        rows = [line.strip()[1:-1].split("|") for line in path.read_text().splitlines() if line.startswith("|")]
        cells = [[cell.strip().replace('"', '""') for cell in row] for row in rows if not set("".join(row)) <= set("- ")]
        lines = [",".join(f'"{cell}"' for cell in row) for row in cells]
        Path(folder, f"{path.stem}.csv").write_text("\n".join(lines) + "\n")


def setup(app):
    app.connect("builder-inited", tables)
