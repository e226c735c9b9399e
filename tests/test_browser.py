"""The report and the docs in a real browser: on a phone and on a desktop, and against accessibility rules (`tox -e slow`)."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from networks import tiny_encoder

from sklearn_clpdd import CLPDistiller, FrozenEncoder, distillation_report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install sklearn-clpdd[slow]")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no chromium and chromedriver on this machine; apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory, colors):
    X, y = colors
    encoder = FrozenEncoder(tiny_encoder(), image_size=16, device="cpu")
    distiller = CLPDistiller(encoder, images_per_class=3, max_iter=25, random_state=0).fit(X, y)
    other = {"a smaller one with a long name": FrozenEncoder(tiny_encoder(), image_size=12, device="cpu")}
    return distillation_report(distiller, X, y, tmp_path_factory.mktemp("r") / "report.html", X=X, y=y, encoders=other)


@pytest.mark.parametrize(("width", "height"), [(360, 740), (1280, 900)], ids=["phone", "desk"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_can_be_read(browser, report, width, height, scheme):
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    browser.get(report.as_uri())
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width  # no horizontal scrolling
    assert (
        browser.execute_script("return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length")
        == 0
    )
    images = browser.execute_script("return [...document.images].map(i => [i.naturalWidth, i.getBoundingClientRect().width])")
    assert len(images) == 9
    assert all(natural == 16 and shown > 80 for natural, shown in images)
    curve = browser.execute_script(
        "const r = document.querySelector('.curve svg').getBoundingClientRect(); return [r.width, r.height]"
    )
    assert min(curve) > 200


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_passes_the_accessibility_rules(browser, report, scheme):
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    axe = pytest.importorskip("axe_selenium_python", reason="pip install sklearn-clpdd[slow]").Axe(browser)
    browser.get(report.as_uri())
    axe.inject()
    found = axe.run()
    assert [(rule["id"], rule["help"], [node["html"][:80] for node in rule["nodes"]]) for rule in found["violations"]] == []
    assert len(found["passes"]) >= 10


def test_pictures_and_tables_have_descriptions(browser, report):
    browser.get(report.as_uri())
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    names = {}
    for node in nodes:
        if not node.get("ignored"):
            names.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    assert sum(name.startswith("synthetic image of class") for name in names["image"]) == 9
    assert any(name.startswith("Learning curve. The loss goes") for name in names["image"])
    assert all(names["table"])
    assert {"red", "green", "blue"} <= set(names["rowheader"])
    assert names["heading"][0] == "60 images distilled to 9"


PAGES = [
    "index",
    "install",
    "quickstart",
    "guide/index",
    "guide/probe",
    "guide/distilling",
    "howto/sharing",
    "howto/command_line",
    "auto_examples/index",
    "auto_examples/a_folder_of_photos",
    "api",
    "generated/sklearn_clpdd.ClosedFormProbe",
    "peers",
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The docs, without running the gallery."""
    for package in ("sphinx", "sphinx_gallery", "sphinx_design", "numpydoc", "pydata_sphinx_theme", "myst_parser"):
        pytest.importorskip(package, reason="pip install sklearn-clpdd[docs]")
    folder = tmp_path_factory.mktemp("site")
    docs = Path(__file__).parents[1] / "docs"
    skipped = ["-D", "sphinx_gallery_conf.plot_gallery=0"]
    subprocess.run([sys.executable, "-m", "sphinx", "-q", *skipped, docs, folder], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_pages_of_the_docs_can_be_read(browser, site, page):
    for width in (390, 1280):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get((site / f"{page}.html").as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        cut = "[...document.querySelectorAll('div.highlight pre')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
        assert width < 500 or browser.execute_script(f"return {cut}") == 0  # code fits into the column
        title = "document.querySelector('.navbar-header-items__start').getBoundingClientRect().right"
        links = "document.querySelector('.navbar-header-items').getBoundingClientRect().left"
        assert width < 500 or browser.execute_script(f"return {title} <= {links}")
        broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
        assert browser.execute_script(f"return {broken}") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_pages_of_the_docs_pass_the_accessibility_rules(browser, site, page, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": "reduce"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    axe = pytest.importorskip("axe_selenium_python", reason="pip install sklearn-clpdd[slow]").Axe(browser)
    browser.get((site / f"{page}.html").as_uri())
    axe.inject()
    # Of the theme: role="main" on <main>, which is redundant, and a button outside of all landmarks.
    found = [rule for rule in axe.run()["violations"] if rule["id"] not in ("aria-allowed-role", "region")]
    assert [(rule["id"], [node["html"][:80] for node in rule["nodes"]]) for rule in found] == []
