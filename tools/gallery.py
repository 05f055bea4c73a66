"""Look at two networks of `submatch reproduce laptop` as chapter 13 looks at the digits networks.

`OMP_NUM_THREADS=1 python tools/gallery.py A B IMAGES` takes two checkpoints of VGG-16 and a folder
of images with a split "test", and writes nbs/gallery.json, the properties and critical ε of
every neuron of the fully connected layers, and nbs/images/gallery.png, what three neurons of two
layers look at. The chapter reads both, since the networks do not come with the book.
"""

import argparse
import json
from functools import partial
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from submatch_nb.comparison import compare
from submatch_nb.engine.tops import top_samples
from submatch_nb.engine.writing import write_whole
from submatch_nb.gallery import SHOWN, draw_gallery, lowest_middle_highest, studied
from submatch_nb.networks import load_checkpoint, load_data

NBS = Path(__file__).resolve().parent.parent / "nbs"
UNITS = ("fc1.relu", "fc2.relu")  # whose neurons are studied
DRAWN = ("conv5_3.relu", "fc1.relu")


def draw(networks, data, images, labels):
    "Of the first network: three neurons of each layer, by critical ε, with their images."
    models = [network.model for network in networks]
    found = compare(*models, data, list(DRAWN), null=0, groups=0, progress=False)
    fig = plt.figure(figsize=(9, 6.8), layout="constrained")
    for part, layer in zip(fig.subfigures(len(DRAWN)), DRAWN, strict=True):
        critical = found.profiles[layer].x
        neurons = lowest_middle_highest(critical)
        top = top_samples(models[0], data, layer, neurons, 50, progress=False)
        widths = [1] * SHOWN + [2.4]
        axes = part.subplots(len(neurons), SHOWN + 1, width_ratios=widths)
        draw_gallery(images, labels, top, critical[neurons], axes)
        part.suptitle(layer.removesuffix(".relu"), fontsize=10)
    return fig


def record(networks, data, images, labels):
    "What the chapter computes with, and where it comes from."
    models = [network.model for network in networks]
    tables = {}
    for layer in UNITS:
        tables |= studied(models, layer, images, labels)
    about = [network.about for network in networks]
    return {
        "networks": [
            {key: one[key] for key in ("architecture", "width", "seed", "test_accuracy")}
            for one in about
        ],
        "data": {"name": data.name, "images": len(data), "fingerprint": data.fingerprint()},
        "versions": {name: version(name) for name in ("submatch_nb", "torch", "numpy")},
        "layers": [
            {"layer": layer, "network": name, "neurons": table.round(6).to_dict("list")}
            for (layer, name), table in tables.items()
        ],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("a", "b", "images"):
        parser.add_argument(name)
    given = parser.parse_args()
    networks = [load_checkpoint(path) for path in (given.a, given.b)]
    data = load_data(given.images, "test")
    images = torch.stack([image for image, _ in data])
    labels = np.array([int(label) for _, label in data])
    text = json.dumps(record(networks, data, images, labels), indent=1)
    fig = draw(networks, data, images, labels)
    write_whole(NBS / "gallery.json", lambda part: part.write_text(text))
    save = partial(fig.savefig, format="png", dpi=100)
    write_whole(NBS / "images" / "gallery.png", save)


if __name__ == "__main__":
    main()
