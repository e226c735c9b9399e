import os
from itertools import groupby
from pathlib import Path

from sklearn_clpdd import __version__

os.environ["MPLBACKEND"] = "agg"  # the gallery is built without a screen

project = "sklearn-clpdd"
author = "the sklearn-clpdd developers"
copyright = "2026, the sklearn-clpdd developers"
release = __version__
version = release

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "myst_parser",
    "numpydoc",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
suppress_warnings = ["myst.xref_missing", "myst.header"]  # CHANGELOG.md is for a reader of the repository, too
templates_path = ["_templates"]
html_theme = "pydata_sphinx_theme"
html_title = "sklearn-clpdd"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_sidebars = {page: [] for page in ("index", "install", "quickstart", "changelog")}
html_theme_options = {"show_prev_next": False, "header_links_before_dropdown": 4}

autosummary_generate = True
autodoc_typehints = "none"
default_role = "code"
toc_object_entries_show_parents = "hide"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    # The others need photos, a cluster, or MLflow; they are shown, not run.
    "filename_pattern": "plot_",
    "within_subsection_order": "FileNameSortKey",
    "backreferences_dir": "generated/backreferences",
    "doc_module": ("sklearn_clpdd",),
    "min_reported_time": 10**6,
    "show_memory": False,
    "abort_on_example_error": True,
    "parallel": 2,  # each process computes with half of the cores
}


def tables(app):
    """The tables of `benchmarks/results` for `csv-table`, so that no figure is written twice.

    ``name.md``, or ``name/table.md``, gives ``name.csv`` and, where it holds several tables, ``name-2.csv`` and so on.
    """
    folder = Path(app.srcdir, "generated")
    folder.mkdir(exist_ok=True)
    results = Path(app.srcdir).parent / "benchmarks" / "results"
    for path in [*results.glob("*.md"), *results.glob("*/table.md")]:
        stem = path.stem if path.parent == results else path.parent.name
        runs = groupby(path.read_text().splitlines(), lambda line: line.startswith("|"))
        blocks = [list(lines) for is_table, lines in runs if is_table]
        for i, block in enumerate(blocks):
            rows = [line.strip()[1:-1].split("|") for line in block]
            cells = [[cell.strip().replace('"', '""') for cell in row] for row in rows if not set("".join(row)) <= set("- ")]
            lines = [",".join(f'"{cell}"' for cell in row) for row in cells]
            Path(folder, f"{stem}{f'-{i + 1}' if i else ''}.csv").write_text("\n".join(lines) + "\n")


def setup(app):
    app.connect("builder-inited", tables)
