"""What all tests share, and their two tiers.

`pytest` runs the short tier: minutes. `pytest --long` runs what that leaves out, and nothing twice:
kills, whole sweeps, foreign models, pages at every width. `--minutes M` cuts it short: the tests
come in
an order drawn from `--draw SEED`, and those that have not begun after M minutes are skipped.
`--deep` takes ten times the examples, `--record` writes the record of the theorems.
Each worker computes in one thread; examples are the same every time.
"""

import os
import random
import shutil
import sys
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import pytest  # noqa: E402 (after the threads are set)
import torch  # noqa: E402
from filelock import FileLock  # noqa: E402
from hypothesis import HealthCheck, Phase, settings  # noqa: E402

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
            "no Chromium on this machine: install it (apt-get install chromium) to run the browser"
            " tests"
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
    """open(url, width, scheme) -> a page without a network; what it asked for beyond its own files
    is in `.asked`, what went wrong in `.errors`.
    """
    contexts = []

    def open_page(url, width=1200, scheme="light", **settings):
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

    yield open_page
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


def seeds(few, many):
    "Seeds for `parametrize`: a few in the short tier, the others, up to many, in the long one."
    return [*range(few), *(pytest.param(k, marks=pytest.mark.long) for k in range(few, many))]


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the long tier, and only it")
    parser.addoption("--minutes", type=float, help="with --long: begin no test after so many")
    parser.addoption("--draw", type=int, default=0, help="with --long: seed of the order")
    parser.addoption("--deep", action="store_true", help="ten times the examples")
    parser.addoption("--record", action="store_true", help="write nbs/theorems.json")


def pytest_configure(config):
    if config.getoption("--deep"):
        settings.load_profile("deep")
    config.began = time.monotonic()


def pytest_collection_modifyitems(config, items):
    long = config.getoption("--long")
    chosen = [item for item in items if ("long" in item.keywords) == long]
    named = config.invocation_params.args and any("::" in str(arg) for arg in config.args)
    if named:  # a test asked for by its name is run, whatever its tier
        return
    left_out = [item for item in items if ("long" in item.keywords) != long]
    config.hook.pytest_deselected(items=left_out)
    if config.getoption("--minutes") is not None:
        random.Random(config.getoption("--draw")).shuffle(chosen)
    items[:] = chosen


def pytest_runtest_setup(item):
    minutes = item.config.getoption("--minutes")
    if minutes is not None and time.monotonic() - item.config.began > 60 * minutes:
        pytest.skip("no time left in this slice of the long tier")
