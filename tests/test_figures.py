"""What figures mark: no similarity of layers that have nothing in common stands unmarked, planted
ones do, and where any two networks match they are crossed.
"""

import warnings
from functools import cache

import numpy as np
import pytest
from instances import noise, positions_alike
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba

from submatch_nb import compare_activations
from submatch_nb.engine.inputs import SubmatchWarning
from submatch_nb.figures import mark_of

IMAGES, POSITIONS = 60, 4
IDS = np.repeat(np.arange(IMAGES), POSITIONS)
EPSILONS = (0.2, 0.45, 0.7, 0.9)
SHOWN = {
    "ReLU, large means": 12,
    "low rank and a mean": 12,
    "dead neurons": 9,
    "means of any size": 12,
    "twins": 8,
    "one direction": 12,
    "few images": 70,
}


def compared(one, other, layers=None):
    options = {"images": IDS, "null": 19, "groups": 0, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SubmatchWarning)
        return compare_activations(one, other, layers, **options)


def unrelated(rng, wider=0):
    "Layers of every kind, of images whose positions are alike."
    layers = {"positions": positions_alike(rng, IMAGES, POSITIONS, 10 + wider, 2.0, 0.3)}
    for kind, n in SHOWN.items():
        layers[kind] = noise(rng, len(IDS), n + wider, kind)
    return layers


@cache
def independent(layers=None):
    one, other = unrelated(np.random.default_rng(0)), unrelated(np.random.default_rng(1), 4)
    return compared(one, other, layers)


@cache
def planted(layers=None):
    "Half of the neurons are shared, or all; or both layers span one space of three inputs."
    rng = np.random.default_rng(2)
    sides = {}, {}
    for name, share in (("half", 6), ("all", 12)):
        shared = positions_alike(rng, IMAGES, POSITIONS, share, 2.0, 0.3)
        for side in sides:
            private = positions_alike(rng, IMAGES, POSITIONS, 12 - share, 2.0, 0.3)
            side[name] = np.concatenate([shared @ rng.normal(size=(share, share)), private], 1)
    inputs = rng.normal(size=(len(IDS), 3))
    for side in sides:
        side["trivial"] = inputs @ rng.normal(size=(3, 8))
    return compared(*sides, layers)


def hollow(ax, which=0):
    "Of each circle of the figure: is it empty?"
    circles = [c for c in ax.collections if isinstance(c, PathCollection)]
    return [tuple(face) == to_rgba("white") for face in circles[which].get_facecolors()]


def cells(ax):
    "(row, column) -> hatching, where there is some."
    return {
        (round(patch.get_y() + 0.45), round(patch.get_x() + 0.45)): patch.get_hatch()
        for patch in ax.patches
        if patch.get_hatch()
    }


def hatched_share(ax, layer):
    "Which part of the curve that is above 0 is hatched, in epsilon; and the hatching."
    grid = np.linspace(0.005, 0.995, 199)
    above = layer.profile.similarity(grid) > 0
    areas = [c for c in ax.collections if c.get_hatch()]
    inside = np.zeros(len(grid), bool)
    for area in areas:
        for path in area.get_paths():
            left, right = path.vertices[:, 0].min(), path.vertices[:, 0].max()
            inside |= (grid >= left - 0.005) & (grid <= right + 0.005)
    return (inside & above).sum() / max(above.sum(), 1), {c.get_hatch() for c in areas}


def unmarked(shown, marked):
    "How many of the cells that show similarity are not marked, and how many show it."
    return sum(s and not m for s, m in zip(shown, marked, strict=True)), sum(shown)


def test_no_similarity_of_independent_layers_stands_unmarked_against_depth():
    "By the rule of the table one in ten may, by chance."
    comparison = independent()
    left, of = 0, 0
    for epsilon in EPSILONS:
        (ax,) = comparison.plot(epsilon).axes
        shown = [comparison.similarity(name, epsilon) > 0 for name in comparison]
        one, every = unmarked(shown, hollow(ax))
        left += one
        of += every
        assert hollow(ax) == [
            s and comparison[name].void(epsilon) for s, name in zip(shown, comparison, strict=True)
        ]
    assert of >= 12 and left <= 0.1 * of
    (ax,) = comparison.plot().axes
    halves = [layer.profile.half < 1 for layer in comparison.values()]
    assert unmarked(halves, hollow(ax))[0] <= 1 and "hollow" in ax.get_title("left")


def test_no_similarity_of_independent_layers_stands_unmarked_in_a_heat_map():
    comparison = independent("cross")
    left, of = 0, 0
    for epsilon in EPSILONS:
        fig = comparison.plot_matrix(epsilon)
        matrix, marked = comparison.matrix(epsilon).to_numpy(), cells(fig.axes[0])
        shown = {tuple(map(int, cell)) for cell in np.argwhere(matrix > 0)}
        assert set(marked) <= shown
        left += len(shown - set(marked))
        of += len(shown)
        assert bool(marked) == (fig.get_suptitle() != "")
    assert of >= 60 and left <= 0.1 * of


def test_no_similarity_of_independent_layers_stands_unmarked_in_a_profile():
    found = []
    for name, layer in independent().items():
        (ax,) = independent().plot_profile(name, 0.9).axes
        found.append(hatched_share(ax, layer)[0])
    assert sum(share < 0.95 for share in found) <= 1, found


def test_large_means_of_many_neurons_are_marked():
    "100 neurons relu(N(2, 1)) and 4,000 samples: similarity 1 at 0.45."
    rng = np.random.default_rng(0)
    X, Y = (np.maximum(rng.normal(2, 1, (4000, 100)), 0) for _ in "xy")
    comparison = compare_activations(X, Y, null=19, groups=0, progress=False)
    (name,) = comparison
    assert comparison.similarity(name, 0.45) == 1
    assert hollow(comparison.plot(0.45).axes[0]) == hollow(comparison.plot().axes[0]) == [True]
    (ax,) = comparison.plot_profile(name, 0.45).axes
    assert hatched_share(ax, comparison[name])[0] == 1
    (dot,) = [line for line in ax.lines if line.get_marker() == "o"]
    assert to_rgba(dot.get_markerfacecolor()) == to_rgba("white")


@pytest.mark.parametrize("epsilon", [0.05, 0.1])
def test_planted_similarity_stands_unmarked_and_trivial_is_crossed(epsilon):
    comparison = planted()
    assert [comparison.similarity(name, epsilon) for name in comparison] == [0.5, 1, 1]
    for ax in (comparison.plot(epsilon).axes[0], comparison.plot().axes[0]):
        assert hollow(ax) == [False, False, True]
        assert ax.collections[1].get_offsets()[:, 0].tolist() == [2]
        assert "crossed" in ax.get_title("left") and "hollow" not in ax.get_title("left")
    shares = [hatched_share(comparison.plot_profile(n).axes[0], comparison[n]) for n in comparison]
    assert shares[0] == shares[1] == (0, set()) and shares[2][0] == 1 and "x" in shares[2][1].pop()
    crossed = planted("cross")
    fig = crossed.plot_matrix(epsilon)
    marked = cells(fig.axes[0])
    assert crossed.matrix(epsilon).iloc[0, 0] == 0.5 and (0, 0) not in marked
    assert (1, 1) not in marked and marked[2, 2] == "xxxx"
    assert "crossed: trivial" in fig.get_suptitle()


def test_marks_of_several_are_those_of_half_of_them():
    yes, no = independent(), planted()
    void = {"a": yes["ReLU, large means"]}
    read = {"a": no["all"]}
    assert mark_of([type(yes)(void)], "a", 0.9) == "void" and mark_of([type(yes)(read)], "a") == ""
    assert mark_of([type(yes)(void), type(yes)(read)], "a", 0.9) == "void"
    assert mark_of([type(yes)(one) for one in (void, read, read)], "a", 0.9) == ""
