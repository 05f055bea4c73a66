"""How long the explorer takes to redraw two VGG-16 in a real browser, against drawing a whole layer
anew, in the same run: `make bench`.
"""

import statistics
import sys
import tempfile
from pathlib import Path

from conftest import CHROMIUM, QUIET
from playwright.sync_api import sync_playwright
from test_explorer import SLIDE, vgg16

from submatch_nb import save_html

LIMIT = 50  # ms, for each
TIME = """what => {
    const times = [], menu = document.querySelector("select");
    const cells = document.querySelectorAll(".grid span");
    const over = () => new PointerEvent("pointerover", { bubbles: true });
    const acts = { slider: i => (SLIDE)((i * 37 % 100) / 100),
                   neuron: i => cells[i * 25].dispatchEvent(over()),
                   layer: i => { menu.value = i % 15; menu.dispatchEvent(new Event("change")); } };
    for (let i = 0; i < 40; i++) {
        const start = performance.now();
        acts[what](i);
        document.body.getBoundingClientRect();
        getComputedStyle(document.querySelector(".grid span:last-child")).color;
        times.push(performance.now() - start);
    }
    return times; }""".replace("SLIDE", SLIDE)


if __name__ == "__main__":
    if not CHROMIUM:
        sys.exit("no Chromium on this machine: install it (apt-get install chromium)")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        path = Path(folder) / "vgg16.html"
        save_html(vgg16(), path, layer="layer14")
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = chromium.new_page(viewport={"width": 1400, "height": 900})
        page.goto(path.as_uri())
        times = {what: page.evaluate(TIME, what) for what in ("slider", "neuron", "layer")}
        chromium.close()
    print(
        f"{__doc__}\n\n{'redraw':12}{'median (ms)':>14}{'slowest (ms)':>14}{'of a layer anew':>18}"
    )
    medians = {what: statistics.median(found) for what, found in times.items()}
    for what, found in times.items():
        verdict = "" if medians[what] < LIMIT else f"  NOT MET: under {LIMIT} ms"
        share = medians[what] / medians["layer"]
        print(f"{what:12}{medians[what]:14.1f}{max(found):14.1f}{share:18.2f}{verdict}")
    sys.exit(any(median >= LIMIT for median in medians.values()))
