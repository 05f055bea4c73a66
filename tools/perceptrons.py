"""Train the perceptrons of the first chapters, and put their weights into the package.

`OMP_NUM_THREADS=1 python tools/perceptrons.py` writes submatch_nb/assets/perceptrons.safetensors.
With another processor or another scikit-learn these are other networks, and every number that the
chapters print of them changes.

`OMP_NUM_THREADS=1 python tools/perceptrons.py --check` writes nothing: it trains them and tells
how far their activations are from those of the packaged ones.
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from submatch_nb.engine.files import save_tensors
from submatch_nb.engine.perceptrons import (
    PERCEPTRONS,
    SEEDS,
    WIDTHS,
    Dense,
    perceptron,
    tensor_name,
    trained_perceptron,
)

ASSETS = Path(__file__).resolve().parent.parent / "submatch_nb/assets"


def write() -> None:
    "All widths and seeds into one file."
    tensors = {}
    for width in WIDTHS:
        for seed in SEEDS:
            for layer, dense in enumerate(trained_perceptron(width, seed)):
                for part, array in zip(Dense._fields, dense, strict=True):
                    tensors[tensor_name(width, seed, layer, part)] = array
    save_tensors(ASSETS / PERCEPTRONS, "perceptrons", tensors)


def answers(layers: list[Dense]) -> np.ndarray:
    "What the second hidden layer says to every digit, (1797, width)."
    hidden = load_digits().data / 16
    for weights, bias in layers:
        hidden = np.maximum(hidden @ weights + bias, 0)
    return hidden


def check() -> None:
    "The largest difference of activations, for each width and seed."
    for width in WIDTHS:
        for seed in SEEDS:
            ours, fresh = answers(perceptron(width, seed)), answers(trained_perceptron(width, seed))
            print(f"width {width}, seed {seed}: {np.abs(ours - fresh).max():.1e} apart")


if __name__ == "__main__":
    if "--check" in sys.argv:
        check()
    else:
        write()
