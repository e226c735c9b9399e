import os
from importlib.metadata import version

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
