"""One thread per worker, fixed examples, `--long` for what takes minutes, `--record` for the record of the theorems."""

import os
import shutil
import sys
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, Phase, settings

sys.path.append(str(Path(__file__).resolve().parent.parent / "docs"))
torch.set_num_threads(1)
settings.register_profile(
    "fixed",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)
settings.register_profile("deep", settings.get_profile("fixed"), max_examples=1000)  # with --long
settings.register_profile(
    "fast", settings.get_profile("fixed"), max_examples=5, phases=[Phase.explicit, Phase.generate]
)  # for mutation testing: no search for the simplest failure
settings.load_profile("fixed")


CIFAR = Path(os.environ.get("SUBMATCH_CIFAR10", "~/.cache/submatch/cifar10-jpeg")).expanduser()
needs_cifar = pytest.mark.skipif(
    not (CIFAR / "test").is_dir(), reason="no CIFAR-10 folder; set SUBMATCH_CIFAR10"
)
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def once(tmp_path_factory, name, make):
    "The folder that make(folder) makes, once for all workers."
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            make(folder)
    return folder


@pytest.fixture(scope="module")
def browser():
    "A real browser with an empty profile; the tests that need one are skipped where there is none."
    if not CHROMIUM:
        pytest.skip(
            "no Chromium on this machine: install it (apt-get install chromium) to run the browser tests"
        )
    playwright = pytest.importorskip(
        "playwright.sync_api",
        reason="no playwright: pip install playwright to run the browser tests",
    )
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser):
    "open(url, width, scheme) -> a page without a network; what it asked for beyond its own files is in `.asked`, what went wrong in `.errors`."
    contexts = []

    def open(url, width=1200, scheme="light", **settings):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, **settings
        )
        contexts.append(context)
        page = context.new_page()
        page.asked, page.errors = [], []
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith(("file:", "data:", "blob:"))
                else page.asked.append(request.url)
            ),
        )
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on(
            "console",
            lambda message: page.errors.append(message.text) if message.type == "error" else None,
        )
        page.goto(str(url) if "://" in str(url) else url.resolve().as_uri())
        return page

    yield open
    for context in contexts:
        context.close()


def serious(page):
    "What axe finds serious or worse, as (rule, element)."
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        (violation["id"], node["html"][:120])
        for violation in found
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


def pytest_addoption(parser):
    parser.addoption(
        "--long",
        action="store_true",
        help="also run the tests that take minutes, and ten times the examples",
    )
    parser.addoption("--record", action="store_true", help="write nbs/theorems.json")


def pytest_configure(config):
    if config.getoption("--long"):
        settings.load_profile("deep")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--long"):
        return
    for item in items:
        if "long" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="takes minutes: run with --long"))
