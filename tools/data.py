"""Make what comes with the package, from the trained pair of networks.

`make data` makes again, from the networks in submatch_nb/assets:

- submatch_nb/assets/demo.safetensors: their comparison on all 1,797 digits, with every simple
  match at the paper's five epsilons (`submatch_nb.explorer.demo_comparison`);
- nbs/images/explorer.png: the README's picture of the explorer, by a Chromium.

`OMP_NUM_THREADS=1 python tools/data.py --train` makes the networks themselves, too, by
the recipe for digits-vgg with one thread:

- submatch_nb/assets/digits-vgg-seed0.safetensors and -seed1: trained;
- submatch_nb/assets/digits-vgg-seed0-untrained.safetensors and -seed1-untrained: before
  training, with batch norms settled on all 1,797 digits;
- submatch_nb/assets/digits-vgg-seed2.safetensors to -seed4: three more for chapter 09, trained.

On another processor these are other networks, and every number in README and the chapters
changes with them: look for epsilons that lie within 1e-4 of a critical value (`close` below
prints them), run all notebooks again, and commit it all at once.
"""

import shutil
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from submatch_nb.comparison import Comparison, compare
from submatch_nb.engine.files import save_tensors
from submatch_nb.engine.inputs import EPSILONS
from submatch_nb.engine.training import Recipe
from submatch_nb.explorer import save_html
from submatch_nb.networks import (
    accuracy,
    load_data,
    settle_norms,
    train,
    trained_pair,
    untrained,
    untrained_pair,
)

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "submatch_nb/assets"
CLEARANCE = 1e-4  # how far from every critical value a printed epsilon has to lie


def train_seed(seed: int) -> dict:
    "The network from one seed, trained, into the package; what made it."
    path = ASSETS / f"digits-vgg-seed{seed}.safetensors"
    path.unlink(missing_ok=True)  # afresh: a finished checkpoint would only be loaded
    return train("digits-vgg", "digits", seed, path).about


def save_untrained(about: dict) -> None:
    "The network that training began with, into the package."
    model = settle_norms(untrained(about), load_data("digits", "all")).eval()
    recipe = replace(Recipe(**about["recipe"]), epochs=0)
    start = {
        **about,
        "recipe": asdict(recipe),
        "epoch": 0,
        "history": [],
        "test_accuracy": accuracy(model, load_data("digits", "test")),
        "norms_of": "digits, all",
    }
    weights = {f"model.{name}": t for name, t in model.state_dict().items()}
    path = ASSETS / f"digits-vgg-seed{about['seed']}-untrained.safetensors"
    save_tensors(path, "checkpoint", weights, **start)


def train_networks() -> None:
    "The networks from seeds 0 to 4, and those that the first two were before, into the package."
    torch.set_num_threads(1)
    for seed in range(5):
        about = train_seed(seed)
        if seed < 2:
            save_untrained(about)


def close(comparison: Comparison) -> list[str]:
    "The layers and epsilons of the paper that lie too close to a critical value to be printed."
    return [
        f"{layer} at {epsilon:g}: {distance:.1e} from a critical value"
        for layer, profile in comparison.profiles.items()
        for epsilon in EPSILONS
        if (distance := np.abs(np.r_[profile.x, profile.y] - epsilon).min()) < CLEARANCE
    ]


def compare_pairs() -> Comparison:
    "The comparison of the trained pair, into the package; what must not be printed is."
    digits = load_data("digits", "all")
    for pair in (untrained_pair(), trained_pair()):
        a, b = (net.model for net in pair)
        comparison = compare(a, b, digits, progress=False)
        print(*close(comparison), sep="\n", end="")
    for epsilon in EPSILONS:
        comparison.simple(epsilon)
    comparison.save(ASSETS / "demo.safetensors")
    return comparison


def picture(page: Path) -> None:
    "The explorer in a browser, as README.md shows it."
    from playwright.sync_api import sync_playwright

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
    if "--train" in sys.argv[1:]:
        train_networks()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "explorer.html"
        save_html(compare_pairs(), page, layer="fc1.relu", epsilon=0.25)
        picture(page)
