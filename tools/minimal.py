"""List v-minimal matches of neurons of the digits layers, by epsilon: how many, and how large.

`OMP_NUM_THREADS=1 python tools/minimal.py` writes nbs/minimal.json, in half an hour on an idle
core. Each layer is looked at just above some of its critical values, early ones first; of the
maximum match there every neuron, or, from where a list was not complete, a few.
"""

import json
import platform
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from submatch_nb.engine.collecting import collect
from submatch_nb.engine.moments import Moments
from submatch_nb.engine.writing import write_whole
from submatch_nb.match import Match
from submatch_nb.maximum import epsilon_profile
from submatch_nb.networks import load_data, trained_pair
from submatch_nb.neurons import digits_layers
from submatch_nb.simple import minimal_match, minimal_matches
from submatch_nb.structure import necessary

RECORD = Path(__file__).resolve().parent.parent / "nbs" / "minimal.json"
BUDGET = 2000  # maximum matches for one neuron
LEVELS = 12  # critical values of a layer, every one in the beginning, then more and more apart
ABOVE = 1e-5  # so far above a critical value
FEW = 8  # neurons of a maximum match, from where not every list is complete
ORDERS = 10  # of Algorithm 2: by index, and drawn from the seeds 1, 2, ...


def layers() -> dict[str, Moments]:
    "The layers of the first chapters, and those of the two networks that come with the package."
    networks = [trained.model for trained in trained_pair()]
    found = collect(*networks, load_data("digits", "all"), progress=False)
    return {"perceptrons": Moments(*digits_layers())} | {
        name.removesuffix(".relu"): layer.moments for name, layer in found.items()
    }


def levels(moments: Moments) -> Iterator[tuple[float, Match]]:
    "Some epsilons, each with its maximum match."
    profile = epsilon_profile(moments)
    critical = profile.breakpoints[profile.breakpoints < 1 - ABOVE]
    places = np.geomspace(1, len(critical), LEVELS).round().astype(int)
    for place in np.unique(places):
        epsilon = float(critical[place - 1] + ABOVE)
        yield epsilon, profile.match(epsilon)


def row(moments: Moments, v: tuple[str, int], epsilon: float, needed: int) -> dict:
    "What is found of one neuron."
    found = minimal_matches(moments, v=v, epsilon=epsilon, budget=BUDGET)
    sizes = Counter(len(match) for match in found)
    answers = [
        len(minimal_match(moments, v=v, epsilon=epsilon, order=order))
        for order in (None, *range(1, ORDERS))
    ]
    return {
        "v": f"{v[0]}{v[1]}",
        "needed": needed,
        "found": len(found),
        "complete": found.complete,
        "calls": found.calls,
        "sizes": {str(size): sizes[size] for size in sorted(sizes)},
        "algorithm 2": answers,
    }


def lists(moments: Moments, say: str) -> Iterator[dict]:
    "For each epsilon, the lists of some neurons."
    complete = True
    for epsilon, match in levels(moments):
        neurons = list(match)
        if not complete:
            neurons = neurons[:: -(-len(neurons) // FEW)]
        needed = necessary(moments, epsilon=epsilon)
        bar = tqdm(neurons, desc=f"{say} at {epsilon:.4f}", leave=False)
        rows = [row(moments, v, epsilon, len(needed[v])) for v in bar]
        complete = complete and all(r["complete"] for r in rows)
        yield {"epsilon": round(epsilon, 8), "matched": len(match), "neurons": rows}


def main() -> None:
    "Write them all."
    made = {
        "made by": "tools/minimal.py",
        "on": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "budget": BUDGET,
        "orders": ORDERS,
    }
    found = {name: list(lists(moments, name)) for name, moments in layers().items()}
    text = json.dumps(made | {"layers": found})
    write_whole(RECORD, lambda part: part.write_text(text + "\n"))


if __name__ == "__main__":
    main()
