"""Make what comes with the package for the explorer: the demo's comparison, with every smallest match, and the README's picture of it."""

import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

from submatch_nb.comparison import compare
from submatch_nb.engine.inputs import EPSILONS
from submatch_nb.explorer import save_html
from submatch_nb.networks import load_checkpoint, load_data

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "runs/demo"


def data():
    networks = [
        load_checkpoint(DEMO / f"digits-vgg-seed{seed}.safetensors").model for seed in (0, 1)
    ]
    comparison = compare(*networks, load_data("digits", "all"))
    for epsilon in EPSILONS:
        comparison.simple(epsilon)
    comparison.save(ROOT / "submatch_nb/assets/demo.safetensors")
    return comparison


def picture(page):
    "The explorer in a browser, as README.md shows it."
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(
            viewport={"width": 900, "height": 800}, device_scale_factor=1.5, reduced_motion="reduce"
        )
        tab.goto(page.as_uri())
        tab.locator(".grid span").nth(60).hover()
        tab.locator(".submatch-explorer").screenshot(path=ROOT / "nbs/images/explorer.png")
        browser.close()


if __name__ == "__main__":
    save_html(data(), DEMO / "explorer.html", layer="fc1.relu", epsilon=0.25)
    picture(DEMO / "explorer.html")
