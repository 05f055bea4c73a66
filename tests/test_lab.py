"""The explorer in a live JupyterLab: the chapter is run there, Python sees what the reader does,
and the page what Python does.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from conftest import CHROMIUM
from test_explorer import LIT, of

from submatch_nb.explorer import demo_comparison

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab with the chapter in its folder: its address, and the folder."
    if not CHROMIUM:
        pytest.skip(
            "no Chromium on this machine: install it (apt-get install chromium) to run the browser"
            " tests"
        )
    for name in ("jupyterlab", "anywidget", "playwright"):
        pytest.importorskip(
            name, reason=f"no {name}: pip install '.[dev]' to test in a live JupyterLab"
        )
    home = tmp_path_factory.mktemp("lab")
    for name, value in SETTINGS.items():
        file = home / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))
    (home / "chapter.ipynb").write_bytes((ROOT / "nbs/08_explorer.ipynb").read_bytes())
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTER_PLATFORM_DIRS": "1",
    }
    arguments = [
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=chapter",
        f"--ServerApp.root_dir={home}",
        f"--LabApp.user_settings_dir={home / 'settings'}",
    ]
    with open(home / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *arguments],
            stdout=log,
            stderr=log,
            env=env,
            cwd=home,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api?token=chapter", timeout=5)
                break
            except OSError:
                time.sleep(0.5)
            assert server.poll() is None, (home / "log").read_text()
        else:
            raise AssertionError((home / "log").read_text())
        yield address, home
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def run_all(browser, lab, name="chapter.ipynb"):
    "Open a notebook, run all its cells, wait until they have run."
    page = browser.new_context(viewport={"width": 1300, "height": 1000}).new_page()
    page.goto(f"{lab[0]}/lab/tree/{name}?token=chapter&reset")
    page.wait_for_selector(".jp-Notebook", timeout=120_000)
    idle = page.get_by_text("| Idle").first
    idle.wait_for(state="attached", timeout=120_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.wait_for_function(
        "() => { const prompts = [...document.querySelectorAll('.jp-CodeCell"
        " .jp-InputPrompt')].map(p => p.textContent); return prompts.length && prompts.every(p =>"
        " !p.includes('*') && p.trim() !== '[ ]:'); }",
        timeout=240_000,
    )
    return page


def ask(page, code):
    "Run code in a cell of its own below the last one; what it prints."
    before = page.locator(".jp-CodeCell").count()
    page.locator(".jp-CodeCell .jp-InputArea-editor .cm-content").last.click()
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    page.wait_for_function(
        f"() => document.querySelectorAll('.jp-CodeCell').length === {before + 1}", timeout=30_000
    )
    page.keyboard.press("Enter")
    page.keyboard.insert_text(code)
    page.keyboard.press("Control+Enter")
    cell = page.locator(".jp-CodeCell").nth(before)
    cell.locator(".jp-OutputArea-output").first.wait_for(timeout=60_000)
    return cell.locator(".jp-OutputArea-output").first.inner_text().strip()


def lit(page):
    return page.locator(".submatch-explorer").first.evaluate(
        "root => " + LIT.removeprefix("() => ").replace("document.", "root.")
    )


def becomes(page, expected):
    "Whether the squares that are filled become these within ten seconds."
    for _ in range(100):
        if lit(page) == expected:
            return True
        page.wait_for_timeout(100)
    return False


def test_the_chapter_runs_and_both_sides_see_each_other(browser, lab):
    comparison = demo_comparison()
    page = run_all(browser, lab)
    assert (
        page.locator(
            ".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr'],"
            " .jp-RenderedText[data-mime-type='application/vnd.jupyter.error']"
        ).count()
        == 0
    )
    assert page.locator(".submatch-explorer").count() == 1
    fc1, fc2 = (comparison.profiles[name] for name in ("fc1.relu", "fc2.relu"))
    assert becomes(page, of(fc2.match(0.3)))  # the chapter's last word on it

    slider = page.get_by_role("slider", name="Tolerance ε")
    slider.focus()
    page.keyboard.press("PageDown")
    page.keyboard.press("ArrowRight")  # JupyterLab has a use of its own for the arrows
    assert becomes(page, of(fc2.match(0.255))) and ask(page, "print(explorer.epsilon)") == "0.255"

    page.locator(".submatch-explorer select").select_option(label="fc1.relu")
    assert becomes(page, of(fc1.match(0.255)))
    cell = page.locator(".submatch-explorer .grid span").nth(4)
    cell.click()
    assert (
        ask(page, "print(explorer.layer, explorer.selected)")
        == f"fc1.relu ('x', {cell.get_attribute('data-neuron')})"
    )

    assert (
        ask(
            page,
            "explorer.epsilon = 0.123456; explorer.layer = 'fc2.relu'; explorer.epsilon ="
            " 0.2000001; explorer.selected = ('y', 7); print('set')",
        )
        == "set"
    )
    assert becomes(page, of(fc2.match(0.2000001)))
    assert (
        page.locator(".submatch-explorer [aria-selected=true]").get_attribute("data-neuron") == "7"
    )
    assert (
        page.locator(".submatch-explorer .number b").first.inner_text() == "0.2"
        and slider.evaluate("slider => slider.valueAsNumber") == 0.2
    )
    page.context.close()


def test_a_script_that_says_nothing_would_be_noticed(browser, lab):
    nb = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(
                "from submatch_nb import explorer as e\nasset = e.asset\nclass Mute:\n    def"
                " __init__(self, path): self.path = path\n    def read_text(self, code): return"
                " self.path.read_text(code).replace('model.save_changes();', '')\ne.asset = lambda"
                " name: Mute(asset(name)) if name == 'explorer.js' else asset(name)\nexplorer ="
                " e.explore(e.demo_comparison(), layer='fc1.relu')\nexplorer"
            )
        ]
    )
    nb.metadata["kernelspec"] = {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    }
    nbformat.write(nb, lab[1] / "mute.ipynb")
    page = run_all(browser, lab, "mute.ipynb")
    page.get_by_role("slider", name="Tolerance ε").focus()
    page.keyboard.press("PageDown")
    assert becomes(page, of(demo_comparison().profiles["fc1.relu"].match(0.25)))
    assert ask(page, "print(explorer.epsilon)") == "0.3"  # the page moved, and Python was not told
    page.context.close()


def test_python_searches_for_the_neuron_that_is_pointed_at(browser, lab):
    code = (
        "import numpy as np\nfrom submatch_nb import compare_activations, explore, minimal_match\n"
        "rng = np.random.default_rng(0)\nX = rng.normal(size=(300, 8))\n"
        "Y = X @ rng.normal(size=(8, 8)) + 0.2 * rng.normal(size=(300, 8))\n"
        "c = compare_activations({'l': X}, {'l': Y}, progress=False)\n"
        "explorer = explore(c, epsilon=0.61)\nexplorer"
    )
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3"}}
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata=kernel)
    nbformat.write(book, lab[1] / "pointed.ipynb")
    page = run_all(browser, lab, "pointed.ipynb")
    page.locator(".submatch-explorer .lit").first.hover()
    page.get_by_text("minimal at ε = 0.61").wait_for(timeout=60_000)
    page.wait_for_function(
        "() => document.querySelector('.verdict').textContent.includes('199 shuffles')",
        timeout=60_000,
    )
    page.context.close()
