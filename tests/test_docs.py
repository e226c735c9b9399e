"""The README and the docs: length, width of the code, and figures that are those of the results."""

import re
import textwrap
from pathlib import Path

import pytest
from sklearn.base import BaseEstimator

import sklearn_clpdd
from sklearn_clpdd import baselines

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = sorted(
    [*(ROOT / "docs").glob("*.rst"), *(ROOT / "docs" / "guide").glob("*.rst"), *(ROOT / "docs" / "howto").glob("*.rst")]
)


def _tables(text):
    """Cells of the Markdown tables of a text, by table and row."""
    tables = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            tables[-1] += [cells] if set(line) - set("|- ") else []
        elif tables[-1]:
            tables.append([])
    return [table for table in tables if table]


def _first(name):
    return _tables((RESULTS / name).read_text())[0]


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_fits_into_the_column(page):
    """At 1,280 px, 88 characters do."""
    code = re.findall(r"^( *)\.\. code-block::.*\n((?:\1 +.*\n|\n)+)", page.read_text(), flags=re.MULTILINE)
    for _, block in code:
        assert max(map(len, textwrap.dedent(block).splitlines())) <= 88


def test_probes_of_the_readme_are_those_of_the_results():
    readme = _tables((ROOT / "README.md").read_text())[0]
    folders = {"Imagenette": "imagenette", "CIFAR-10": "cifar10", "Tiny ImageNet": "tiny-imagenet-200"}
    head, *results = _first("probe-real.md")
    columns = [head.index(name) for name in ("fit", "accuracy", "log-loss")]
    assert len(readme) == 6
    for name, *cells in readme[1:]:
        known, _, size = name.partition(", ")
        own = [row for row in results if row[0].startswith(f"{folders[known]}, {size},")]
        rows = [
            next(row for row in own if row[1] == f"`{who}`") for who in ("ClosedFormProbe()", "LogisticRegression, 5-fold search")
        ]
        assert cells == [row[i] for row in rows for i in columns]


def test_peers_of_the_readme_are_those_of_the_results():
    readme = _tables((ROOT / "README.md").read_text())[1]
    rows = {
        "random real images": "random real",
        "real images nearest": "nearest to k-means centres",
        "LGM": "LGM, from noise",
        "CLP-DD": "CLP-DD of the paper, from noise",
        "`CLPDistiller()`": "`CLPDistiller()`",
    }
    assert len(readme) == 6
    for column, name in enumerate(("imagenette", "cifar10", "tiny-imagenet-200"), start=1):
        results = _first(f"table-{name}/table.md")
        for row in readme[1:]:
            wanted = next(measured for begin, measured in rows.items() if re.sub(r"[\[\]]", "", row[0]).startswith(begin))
            found = [cells for cells in results if cells[0].startswith(wanted)]
            assert found, f"{wanted} is not one of {[cells[0] for cells in results]}"
            assert found[0][results[0].index("closed-form probe")].startswith(row[column].strip("*"))


def test_the_question_mark_of_an_estimator_leads_to_its_page():
    """The pages are named as `docs/api.rst` lists them."""
    listed = set(re.findall(r"^    ([\w.]+)$", (ROOT / "docs" / "api.rst").read_text(), flags=re.MULTILINE))
    kinds = [getattr(module, name) for module in (sklearn_clpdd, baselines) for name in module.__all__]
    estimators = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseEstimator)]
    assert len(estimators) >= 10
    for kind in estimators:
        estimator = object.__new__(kind)
        page = re.fullmatch(r"https://.*/generated/sklearn_clpdd\.([\w.]+)\.html", estimator._get_doc_link())
        assert page
        assert page[1] in listed
    probe = sklearn_clpdd.ClosedFormProbe()
    assert (
        'href="https://sklearn-clpdd.readthedocs.io/en/latest/generated/sklearn_clpdd.ClosedFormProbe.html"'
        in probe._repr_html_()
    )
