"""Two networks in, a Comparison out: against the plain algorithm, planted answers, files that
survive, figures that show the numbers.
"""

import inspect
import io
import json
import math
import pickle
import re
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.text import Text
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18, vgg11

import submatch_nb.comparison as module
from submatch_nb.comparison import (
    Comparison,
    Comparisons,
    compare,
    compare_activations,
    compare_all,
)
from submatch_nb.engine import compared, comparing, several
from submatch_nb.engine.activations import read_activations
from submatch_nb.engine.files import holds, load_tensors, save_tensors
from submatch_nb.engine.inputs import EPSILONS, Sides, SubmatchWarning, within
from submatch_nb.engine.layer import Layer
from submatch_nb.explorer import save_html
from submatch_nb.figures import short_names
from submatch_nb.layers import (
    Sampled,
    as_matrix,
    capture,
    collect,
    collect_all,
    evaluating,
    layer_names,
)
from submatch_nb.maximum import Profile, algorithm_1, epsilon_profile, maximum_match
from submatch_nb.networks import build, load_data, recipe_for, train, trained_pair
from submatch_nb.neurons import digits_layers
from submatch_nb.simple import simple_matches

DIGITS = load_data("digits", "all")
IMAGES = torch.stack([x for x, _ in DIGITS])
LAYERS = ["conv1_1.relu", "conv1_2.relu", "conv2_1.relu", "conv2_2.relu", "fc1.relu", "fc2.relu"]
SMALL = ["conv1_1.relu", "conv2_2.relu", "fc2.relu"]


@pytest.fixture(scope="module")
def networks():
    return [trained.model for trained in trained_pair()]


@pytest.fixture(scope="module")
def comparison(networks):
    return compare(*networks, DIGITS, progress=False)


@pytest.fixture(scope="module")
def baseline():
    return compare(build("digits-vgg", seed=0), build("digits-vgg", seed=1), DIGITS, progress=False)


def fresh(comparison):
    "Its smaller layers, with no simple matches found yet."
    return Comparison({layer: comparison[layer] for layer in SMALL})


def kill(model, name, units):
    "Make some units of a fully connected layer put out 0 for every image."
    linear = model.get_submodule(name)
    with torch.no_grad():
        linear.weight[units], linear.bias[units] = 0, -1


# the numbers


def test_against_the_plain_algorithm(networks):
    few = compare(*networks, IMAGES[:300], progress=False)
    with (
        evaluating(*networks),
        capture(networks[0], "relu") as a,
        capture(networks[1], "relu") as b,
    ):
        for model in networks:
            model(IMAGES[:300])
    table = few.table((0.3, 0.5, 0.7))
    assert list(table.index) == few.layers == LAYERS
    for layer in LAYERS:
        X, Y = as_matrix(a[layer])[0], as_matrix(b[layer])[0]
        for e in (0.3, 0.5, 0.7):
            match = algorithm_1(X, Y, epsilon=e)
            assert (
                match == few.profiles[layer].match(e)
                and table.loc[layer, f"ε={e}"] == match.similarity
            )
    assert 0 < table.loc["fc1.relu", "ε=0.7"] < 1, "an instance that tells nothing"


def test_a_row_of_the_table(comparison):
    row = comparison.table().loc["fc1.relu"]
    profile = comparison.profiles["fc1.relu"]
    dead = [len(side) for side in comparison.moments["fc1.relu"].dead]
    assert (row["neuron"], row["neurons a"], row["neurons b"], row["samples"]) == (
        "unit",
        128,
        128,
        1797,
    )
    assert [row["dead a"], row["dead b"]] == dead
    assert row["Gaussian ε"] == pytest.approx(math.sqrt(1 - (128 - min(dead)) / 1797))
    assert [c for c in row.index if c.startswith("ε=")] == [
        "ε=0.15",
        "ε=0.2",
        "ε=0.25",
        "ε=0.3",
        "ε=0.5",
    ]
    assert [row[f"ε={e:g}"] for e in EPSILONS] == [profile.similarity(e) for e in EPSILONS]
    assert (
        comparison.counts["conv2_1.relu"] == 1797 * 16
        and comparison.neurons["conv2_1.relu"] == "channel"
    )
    assert comparison.table()["samples"].dtype == int and comparison.table()["ε=0.5"].dtype == float


def test_itself_is_similar_but_for_its_dead():
    model = build("digits-vgg", seed=3)
    kill(model, "fc2.linear", [1, 5, 40])
    table = compare(model, model, DIGITS, progress=False).table((0, 1e-3, 0.9))
    assert table.loc["fc2.relu", "dead a"] >= 3
    for column in ("ε=0", "ε=0.001", "ε=0.9"):
        np.testing.assert_allclose(
            table[column],
            1 - (table["dead a"] + table["dead b"]) / (table["neurons a"] + table["neurons b"]),
        )


def test_permuted_and_rescaled_units_are_the_same_representation():
    """A planted answer: ReLU lets a unit be rescaled and moved without changing the network's
    function.
    """
    a, b = build("digits-mlp", seed=0), build("digits-mlp", seed=0)
    order, scale = (
        torch.randperm(256, generator=torch.Generator().manual_seed(0)),
        torch.logspace(-3, 3, 256),
    )
    with torch.no_grad():
        b.fc1.linear.weight[:] = a.fc1.linear.weight[order] * scale[:, None]
        b.fc1.linear.bias[:] = a.fc1.linear.bias[order] * scale
        b.fc2.linear.weight[:] = a.fc2.linear.weight[:, order] / scale
    table = compare(a, b, DIGITS, progress=False).table(1e-3)
    np.testing.assert_allclose(
        table["ε=0.001"],
        1 - (table["dead a"] + table["dead b"]) / (table["neurons a"] + table["neurons b"]),
    )
    assert (
        compare(a, build("digits-mlp", seed=1), DIGITS, progress=False).table(1e-3)["ε=0.001"] < 0.1
    ).all()


def test_exchanging_the_networks(networks, comparison):
    swapped = compare(*networks[::-1], DIGITS, progress=False)
    for layer in LAYERS:
        np.testing.assert_allclose(
            swapped.profiles[layer].x, comparison.profiles[layer].y, atol=1e-6
        )
        np.testing.assert_allclose(
            swapped.profiles[layer].y, comparison.profiles[layer].x, atol=1e-6
        )


def test_different_widths_and_layers_by_pairs():
    a, b = build("digits-vgg", seed=0), build("digits-vgg", seed=1, width=0.5)
    table = compare(
        a, b, DIGITS, layers=["fc1.relu", ("conv1_1.relu", "conv1_2.relu")], progress=False
    ).table()
    assert list(table.index) == ["conv1_1.relu ~ conv1_2.relu", "fc1.relu"]
    assert list(table["neurons a"]) == [16, 128] and list(table["neurons b"]) == [8, 64]


def test_torchvision_models():
    torch.manual_seed(0)
    images = nn.functional.interpolate(IMAGES[:40], size=32).expand(-1, 3, -1, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SubmatchWarning)  # 40 images, 512 channels
        early = [
            name
            for name in layer_names(resnet18(), "relu")
            if "layer3" not in name and "layer4" not in name
        ]
        resnet = compare(
            resnet18(num_classes=10), resnet18(num_classes=10), images, early, progress=False
        )
        vgg = compare(
            vgg11(init_weights=False),
            vgg11(init_weights=False),
            images[:4],
            ["features.1", "features.6"],
            progress=False,
        )
    assert len(resnet.layers) == 9 and resnet.layers[:3] == [
        "relu",
        "layer1.0.relu",
        "layer1.0.relu:1",
    ]
    assert list(vgg.table()["samples"]) == [4 * 32 * 32, 4 * 8 * 8]
    assert [t.get_text() for t in resnet.plot().axes[0].get_xticklabels()][-1] == "layer2.1.relu:1"


# baselines and simple matches


def test_baseline_columns(comparison, baseline):
    table = comparison.table((0.2, 0.5), baseline=baseline)
    for e in ("ε=0.2", "ε=0.5"):
        assert table[f"baseline {e}"].tolist() == baseline.table((0.2, 0.5))[e].tolist()
        assert table[e].tolist() == comparison.table((0.2, 0.5))[e].tolist()
    other = compare(
        build("digits-mlp", seed=0), build("digits-mlp", seed=1), IMAGES, progress=False
    )
    for use in (
        comparison.table,
        comparison.plot,
        lambda baseline: comparison.plot_profile("fc1.relu", baseline=baseline),
    ):
        with pytest.raises(
            ValueError, match=r"the baseline has no layer conv1_1.relu.*it has fc1.relu, fc2.relu"
        ):
            use(baseline=other)


def test_simple_matches_are_found_once(comparison, monkeypatch):
    calls, mine = [], fresh(comparison)

    def counted(moments, epsilon):
        calls.append(epsilon)
        return simple_matches(moments, epsilon=epsilon)

    monkeypatch.setattr("submatch_nb.engine.compared.simple_matches", counted)
    table = mine.table(0.3, simple=0.5)
    assert mine.table(0.3, simple=0.5).equals(table) and calls == [0.5] * 3
    for layer in SMALL:
        sizes = [len(m) for m in simple_matches(comparison.moments[layer], epsilon=0.5)]
        assert table.loc[layer, "simple ε=0.5"] == len(sizes)
        np.testing.assert_equal(
            table.loc[layer, "size ε=0.5"], np.median(sizes) if sizes else np.nan
        )
    assert table["simple ε=0.5"].max() > 10, "an instance that tells nothing"


# one object for each layer


def test_a_comparison_is_a_mapping_of_layers(comparison):
    assert list(comparison) == comparison.layers == list(comparison.keys()) == LAYERS
    layer = comparison["conv2_1.relu"]
    assert isinstance(layer, Layer) and layer.names == ("conv2_1.relu",) * 2
    views = {
        "profiles": layer.profile,
        "counts": 1797 * 16,
        "neurons": "channel",
        "positions": "all",
        "residuals": layer.residual,
        "moments": layer.moments,
    }
    for name, expected in views.items():
        view = getattr(comparison, name)
        assert list(view) == LAYERS and view[layer.name] is expected or view[layer.name] == expected
        with pytest.raises(TypeError):
            view[layer.name] = None
        with pytest.raises(AttributeError):
            setattr(comparison, name, {})
    assert comparison.draws == {} and "fc9" not in comparison and comparison.get("fc9") is None
    with pytest.raises(KeyError, match="no layer 'fc9' in this comparison; its layers: conv1_1"):
        comparison["fc9"]


def test_a_comparison_without_its_moments(comparison):
    mine = fresh(comparison)
    found = mine.simple(0.5)
    less = mine.without_moments()
    assert less.layers == SMALL and less.moments == {} and less.simple_epsilons == (0.5,)
    assert less.simple(0.5) == found and less.residuals == mine.residuals
    with pytest.raises(ValueError, match="saved without them"):
        less.simple(0.4)
    less._simple.clear()
    assert mine.simple_epsilons == (0.5,), "what one keeps is not the other's"


def test_the_constructor_of_before_still_works(comparison):
    with pytest.warns(DeprecationWarning, match="a Layer for each name") as caught:
        before = Comparison(comparison.profiles, comparison.neurons, residuals=comparison.residuals)
    assert caught[0].filename == __file__
    known = slice("neuron", "Gaussian ε")  # of what such a comparison was made of
    assert before.table().loc[:, known].equals(comparison.table().loc[:, known])
    assert before.residuals == comparison.residuals
    assert before.moments == {} and before.positions == comparison.positions


def test_a_name_is_not_taken_apart(tmp_path):
    "Layers called as a pair would be: no heat map, before and after a file."
    rng = np.random.default_rng(0)
    named = {name: rng.normal(size=(60, 4)) for name in ("a ~ b", "a", "c")}
    mine = compare_activations(named, named, progress=False)
    mine.save(tmp_path / "c.safetensors")
    Comparisons({(0, 1): mine}).save(tmp_path / "several.safetensors")
    again = Comparison.load(tmp_path / "c.safetensors")
    for one in (mine, again, Comparisons.load(tmp_path / "several.safetensors")[0, 1]):
        assert one.grid is None and one.layers == ["a ~ b", "a", "c"]
        assert one["a ~ b"].names == ("a ~ b", "a ~ b")
        with pytest.raises(ValueError, match="no layer met more than one other"):
            one.matrix()
    other = {name: rng.normal(size=(60, 3)) for name in ("x ~ y", "y")}
    crossed = compare_activations(named, other, "cross", progress=False)
    crossed.save(tmp_path / "c.safetensors")
    for one in (crossed, Comparison.load(tmp_path / "c.safetensors")):
        assert list(one.grid.index) == ["a ~ b", "a", "c"]
        assert list(one.grid.columns) == ["x ~ y", "y"]
        assert one.grid.loc["a", "x ~ y"] == "a ~ x ~ y" and one.matrix().notna().all(axis=None)


def test_a_module_holds_functions_and_classes_only():
    "`comparison.table` and the like were None."
    for place in (module, compared, several, comparing):
        assert [name for name, value in vars(place).items() if value is None] == []
    for name in ("table", "plot", "plot_profile", "matrix", "save"):
        assert callable(getattr(Comparison, name)) and not hasattr(module, name)


SAVED = Path(__file__).parent / "saved"


def test_a_report_has_the_numbers_of_the_table():
    X, Y = digits_layers()
    comparison = compare_activations({"fc2": X}, {"fc2": Y}, groups=10)
    row = comparison.table(0.25).loc["fc2"]
    (line,) = comparison.report(0.25).splitlines()[1:]
    assert line == (
        f"fc2 (32 + 32 neurons, 1,797 samples): similarity {row['ε=0.25']:.3f} at ε = 0.25 (images"
        f" shuffled: {row['null ε=0.25']:.3f}); half of the neurons match at ε = {row['half']:.3f}"
        f" (95 % interval over images {row['half low']:.3f} to {row['half high']:.3f}; images"
        f" shuffled: {row['half null']:.3f}; p = {row['p']:.3f}, corrected for all layers"
        f" {row['p Holm']:.3f})."
    )
    assert not row["void"] and row["ε=0.25"] > 0.5
    bare = compare_activations({"fc2": X}, {"fc2": Y}, null=0, groups=0, center=True).report()
    assert bare.count("no null") == 2 and "interval" not in bare and "less their means" in bare


def test_a_report_says_what_says_nothing():
    rng = np.random.default_rng(0)
    X, Y = (np.maximum(rng.normal(2, 1, (1000, 20)), 0) for _ in range(2))
    comparison = compare_activations(X, Y, groups=0)
    assert comparison.similarity(comparison.layers[0], 0.46) > 0.5
    said = comparison.report(0.46)
    assert "The similarity says nothing: p > 0.05." in said
    assert "The half-ε says nothing: p > 0.05." in said
    few = compare_activations(X[:15], Y[:15], groups=0).report()
    assert "The similarity says nothing: " in few and "(15 ≤ 20)" in few


def test_no_p_is_said_to_be_zero():
    alike, other = Profile([0.1], [0.1], 100), Profile([0.9], [0.9], 100)
    layer = Layer("fc2", ("fc2", "fc2"), "channel", profile=alike, null=(other,) * 2999)
    comparison = Comparison({"fc2": layer})
    assert comparison.table()["p"]["fc2"] == 1 / 3000
    assert "p = 0.0003, corrected for all layers 0.0003" in comparison.report()


def test_a_report_of_several_networks_has_the_numbers_of_their_table():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(300, 6))
    noise = [base + 0.3 * rng.normal(size=(300, 6)) for _ in range(3)]
    pairs = {}
    for a, b in ((0, 1), (0, 2), (1, 2)):
        sides = ({"loud": noise[k], "none": rng.normal(size=(300, 6))} for k in (a, b))
        pairs[a, b] = compare_activations(*sides, groups=0)
    several = Comparisons(pairs)
    row = several.table(0.4).loc["loud"]
    first, loud, none = several.report(0.4).splitlines()
    assert first.endswith("of neurons as they are. Means over 3 pairs of 3 networks.")
    assert loud == (
        f"loud (6 neurons, 300 samples): similarity {row['ε=0.4']:.3f} at ε = 0.4 (95 % interval"
        f" over networks {row['low ε=0.4']:.3f} to {row['high ε=0.4']:.3f}; images shuffled:"
        f" {row['null ε=0.4']:.3f}); half of the neurons match at ε = {row['half']:.3f} (95 %"
        f" interval over networks {row['half low']:.3f} to {row['half high']:.3f}; images shuffled:"
        f" {row['half null']:.3f})."
    )
    void = sum(c["none"].void() for c in pairs.values())
    assert void >= 2 and f"The half-ε says nothing in {void} of 3 pairs." in none
    assert none.count("interval") == 1 and "(images shuffled: 0.000); half" in none
    two = Comparisons({(0, 1): pairs[0, 1]}).report(0.4)
    assert "Means over 1 pair of 2 networks." in two and "interval" not in two
    with pytest.raises(ValueError, match="epsilon"):
        several.report(1.5)


def test_simple_matches_of_a_centred_comparison_are_affine():
    X, Y = digits_layers()
    plain, centred = (
        compare_activations(X, Y, center=center, null=0, groups=0) for center in (False, True)
    )
    for comparison, parts in ((plain, (X, Y)), (centred, (X - X.mean(0), Y - Y.mean(0)))):
        (found,) = comparison.simple(0.3).values()
        match = maximum_match(*parts, epsilon=0.3)
        assert {i for m in found for i in m.x} == set(match.x.tolist())
        assert {i for m in found for i in m.y} == set(match.y.tolist())
    assert plain.table(0.3)["ε=0.3"].item() != centred.table(0.3)["ε=0.3"].item()


@pytest.mark.parametrize("name", ["crossed", "drawn", "exact", "several"])
def test_a_file_of_the_version_before(name, tmp_path):
    "Whatever it says is what the version that wrote it said."
    said = json.loads((SAVED / "said.json").read_text())[name]
    kind = Comparisons if name == "several" else Comparison
    first = kind.load(SAVED / f"{name}.safetensors")
    first.save(tmp_path / "again.safetensors")
    for loaded in (first, kind.load(tmp_path / "again.safetensors")):
        assert repr(loaded) == said["repr"]
        answers = {"table": loaded.table}
        if name != "several":
            answers["simple"] = lambda c=loaded: c.table(0.3, simple=0.3).iloc[:, -2:]
        answers["matrix"] = lambda c=loaded: c.matrix(0.3)
        for what in said.keys() & answers.keys():
            expected = said[what]
            found = answers[what]()
            called = {"chance ε": "Gaussian ε"}  # since then
            columns = [called.get(column, column) for column in expected["columns"]]
            found = found[columns]  # what newer versions add stands beside
            for row, values in zip(found.to_numpy(), expected["data"]):
                for mine, value in zip(row, values):
                    same = mine == value or (value is None and np.isnan(mine))
                    assert same or mine == pytest.approx(value, abs=1e-9)


@pytest.mark.long
def test_every_published_comparison_loads():
    files = list((Path(__file__).parent.parent / "nbs" / "results").glob("*/*.safetensors"))
    assert len(files) > 10
    for file in files:
        loaded = Comparison.load(file)
        assert loaded.table().notna().to_numpy()[:, :4].all() and loaded.grid is None


# bad input


@pytest.mark.parametrize(
    "epsilon, error",
    [
        (1.0, ValueError),
        (-0.1, ValueError),
        (math.nan, ValueError),
        ("0.3", TypeError),
        ((0.3, 1.5), ValueError),
    ],
)
def test_bad_epsilon(comparison, epsilon, error):
    for use in (comparison.table, comparison.plot):
        with pytest.raises(error, match="epsilon is"):
            use(epsilon)
    if np.ndim(epsilon) == 0:
        with pytest.raises(error, match="epsilon is"):
            comparison.simple(epsilon)


def test_bad_activations_name_the_layer():
    broken = build("digits-vgg", seed=1)
    with torch.no_grad():
        broken.conv2_1.conv.weight[7] = float("nan")
    with pytest.raises(
        ValueError, match="layer 'conv2_1.relu', batch 0: the second network: neuron 7 is nan"
    ):
        compare(build("digits-vgg"), broken, DIGITS, progress=False)


def test_full_spans_warn_with_the_layer():
    pair = [build("digits-mlp", seed=seed) for seed in (0, 1)]
    with pytest.warns(SubmatchWarning) as caught:
        few = compare(*pair, IMAGES[:40], progress=False)
    assert {str(w.message).split(":")[0] for w in caught} == {
        "layer 'fc1.relu'",
        "layer 'fc2.relu'",
    }
    assert caught[0].filename == __file__, "the warning must point at the call of compare"
    assert (few.table(0)["Gaussian ε"] == 0).all()
    np.testing.assert_allclose(
        few.table(0)["ε=0"],
        1 - (few.table(0)["dead a"] + few.table(0)["dead b"]) / (few.table(0)["neurons a"] * 2),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(*pair, DIGITS, progress=False)


# files


def test_round_trip(comparison, baseline, tmp_path):
    mine = fresh(comparison)
    mine.simple(0.5)
    mine.simple(0.4)
    mine.save(tmp_path / "new" / "c.safetensors")
    again = Comparison.load(tmp_path / "new" / "c.safetensors")
    assert (
        again.layers == SMALL
        and again.counts == mine.counts
        and again.neurons == mine.neurons
        and again.moments == {}
    )
    for layer in SMALL:
        for side in "xy":
            np.testing.assert_array_equal(
                getattr(again.profiles[layer], side), getattr(mine.profiles[layer], side)
            )
        for e in (0.4, 0.5):
            ours, theirs = mine.simple(e)[layer], again.simple(e)[layer]
            assert list(ours) == list(theirs) and ours.epsilon == theirs.epsilon
            for v in mine.profiles[layer].match(e):
                assert ours.of(v) == theirs.of(v)
    assert again.table(simple=0.5, baseline=baseline).equals(
        mine.table(simple=0.5, baseline=baseline)
    )
    assert repr(again) == repr(mine) and again._repr_html_() == mine._repr_html_()
    again.plot(baseline=baseline)
    again.plot_profile("fc2.relu", 0.5)
    with pytest.raises(
        ValueError, match=r"epsilon = 0.25 take the moments.*save\(path, moments=True\)"
    ):
        again.table(simple=0.25)
    with pytest.raises(ValueError, match="no moments to save"):
        again.save(tmp_path / "again", moments=True)
    assert not (tmp_path / "again").exists()


def test_round_trip_with_moments(comparison, tmp_path):
    mine = fresh(comparison)
    mine.save(tmp_path / "c.safetensors", moments=True)
    again = Comparison.load(tmp_path / "c.safetensors")
    for layer in SMALL:
        ours, theirs = mine.moments[layer], again.moments[layer]
        assert torch.equal(ours.gram, theirs.gram) and torch.equal(ours.sum, theirs.sum)
        assert (ours.count, ours.n_x, ours.n_y, ours.error) == (
            theirs.count,
            theirs.n_x,
            theirs.n_y,
            theirs.error,
        )
    assert again.table(simple=0.4).equals(mine.table(simple=0.4))


def test_brackets_and_routes_are_saved(networks, tmp_path):
    "Also those of a file from before there were any."
    mine = compare(*networks, IMAGES[:300], ["fc2.relu"], progress=False, precision="exact")
    path = tmp_path / "c.safetensors"
    mine.save(path, moments=True)
    again = Comparison.load(path)
    for ours, theirs in ((mine.profiles["fc2.relu"], again.profiles["fc2.relu"]),):
        assert ours.route == theirs.route == "root" == again.moments["fc2.relu"].route
        for sides in zip((*ours.lower, *ours.upper), (*theirs.lower, *theirs.upper)):
            np.testing.assert_array_equal(*sides)
        assert (
            max(
                np.subtract(high, low, where=np.isfinite(low), out=np.zeros(len(low))).max()
                for low, high in zip(ours.lower, ours.upper)
            )
            < 1e-3
        )
    tensors, about = load_tensors(path, "comparison")
    old = {name: t for name, t in tensors.items() if name in ("0.x", "0.y")}
    save_tensors(
        path,
        "comparison",
        old,
        layers=[{key: l[key] for key in ("layer", "neuron", "count")} for l in about["layers"]],
        simple=[],
    )
    before = Comparison.load(path).profiles["fc2.relu"]
    assert (
        before.route == ""
        and before.similarity(0.5) == mine.profiles["fc2.relu"].similarity(0.5)
        and set(before.lower.x[np.isfinite(before.lower.x)]) == {0}
    )


def test_files_that_are_not_a_comparison(comparison, networks, tmp_path):
    path = tmp_path / "c.safetensors"
    comparison.save(path)
    whole = path.read_bytes()
    for cut in (0, 5, len(whole) // 3, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(
            ValueError, match="c.safetensors is not a safetensors file, or is damaged"
        ):
            Comparison.load(path)
    comparison.moments["fc1.relu"].save(path)
    with pytest.raises(ValueError, match="holds moments, not a submatch comparison"):
        Comparison.load(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Comparison.load(tmp_path / "nowhere")


def test_what_cannot_be_written_leaves_the_old_file(comparison, tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    comparison.save(path)
    old = path.read_bytes()
    with pytest.raises(OSError, match="cannot write"):
        comparison.save(path / "inside_a_file")

    def full_disk(tensors, part, metadata):
        part.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("submatch_nb.engine.files.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        comparison.save(path)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


# figures


def test_figure_shows_the_numbers(comparison, baseline):
    fig = comparison.plot((0.3, 0.5), baseline=baseline)
    solid = [l for l in fig.axes[0].lines if l.get_linestyle() == "-"]
    dashed = [l for l in fig.axes[0].lines if l.get_linestyle() == "--"]
    for lines, source in ((solid, comparison), (dashed, baseline)):
        np.testing.assert_array_equal(
            [l.get_ydata() for l in lines],
            source.table((0.3, 0.5))[["ε=0.3", "ε=0.5"]].T.to_numpy(),
        )
    assert [t.get_text() for t in fig.axes[0].texts] == ["ε = 0.3", "ε = 0.5"]
    assert [t.get_text().split("\n")[0] for t in fig.axes[0].get_xticklabels()] == [
        layer.removesuffix(".relu") for layer in LAYERS
    ]
    assert plt.get_fignums() == [], "a figure that stays open is shown twice, and never freed"


def test_figure_of_half_epsilon_shows_the_table(comparison, baseline):
    "Lines, the shuffles dotted, the baseline dashed, and a bar for each interval."
    (ax,) = comparison.plot(baseline=baseline).axes
    table, beside = comparison.table(), baseline.table()
    drawn = {style: [] for style in ("-", "--", ":")}
    for line in ax.lines:
        if len(line.get_ydata()) == len(LAYERS):
            drawn[line.get_linestyle()].append(line.get_ydata())
    np.testing.assert_array_equal(drawn["-"], [table["half"]])
    np.testing.assert_array_equal(drawn["--"], [beside["half"]])
    np.testing.assert_array_equal(drawn[":"], [table["half null"], beside["half null"]])
    bars = [line.get_ydata() for line in ax.lines if len(line.get_ydata()) == 2]
    np.testing.assert_array_equal(bars, table[["half low", "half high"]])
    for box, name in zip(ax.patches, ("fc1.relu", "fc2.relu") * 2, strict=True):
        own = comparison if box in ax.patches[:2] else baseline
        inside = [
            box.get_y() <= one.half <= box.get_y() + box.get_height() for one in own[name].shuffles
        ]
        assert 0.94 <= np.mean(inside) <= 0.96
    assert "lower: more alike" in ax.get_ylabel()
    assert [t.get_text() for t in ax.texts] == [
        "half-ε", "shuffled", "baseline", "baseline, shuffled"
    ]  # fmt: skip
    hollow = [tuple(c) == to_rgba("white") for c in ax.collections[0].get_facecolors()]
    assert hollow == list(table["void"])
    bare = Comparison(
        {
            name: replace(one, null=(), null_drawn=(), left_out=())
            for name, one in comparison.items()
        }
    )
    assert "not known" in bare.plot().axes[0].get_title("left")


def test_labels_do_not_overlap_and_nothing_is_cut(comparison, baseline):
    wide, narrow = (comparison.plot(baseline=baseline, width=width) for width in (7, 3.4))
    assert (
        wide.get_figwidth() == 7
        and narrow.get_figwidth() == 3.4
        and narrow.axes[0].xaxis.label.get_fontsize() < wide.axes[0].xaxis.label.get_fontsize() < 10
    )
    for fig in (
        wide,
        narrow,
        comparison.plot(np.linspace(0, 0.3, 9)),
        comparison.plot(EPSILONS, baseline=baseline),
        comparison.plot_profile("fc1.relu", 0.5, baseline),
    ):
        fig.savefig(io.BytesIO())
        ax, page = fig.axes[0], fig.bbox
        for labels in (ax.texts, ax.get_xticklabels()):
            boxes = [Text.get_window_extent(t) for t in labels]
            assert all(
                page.x0 <= b.x0 and b.x1 <= page.x1 and page.y0 <= b.y0 and b.y1 <= page.y1
                for b in boxes
            )
            assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_hollow_markers_where_spans_fill_the_space():
    with pytest.warns(SubmatchWarning):
        few = compare(build("digits-vgg"), build("digits-vgg", seed=1), IMAGES[:50], progress=False)
    ax = few.plot(0.3).axes[0]
    hollow = [tuple(c) == to_rgba("white") for c in ax.collections[0].get_facecolors()]
    assert hollow == [few.similarity(name, 0.3) > 0 and few[name].void(0.3) for name in LAYERS]
    assert hollow[4] and not all(hollow)
    assert "hollow" in ax.get_title("left")


def test_profile_curve(comparison):
    ax = comparison.plot_profile("fc1.relu", epsilon=0.5).axes[0]
    lines = {l.get_label(): l for l in ax.lines}
    assert not any("Gaussian" in label for label in lines)  # of activations that is not chance
    profile = comparison.profiles["fc1.relu"]
    grid, curve = lines["similarity"].get_data()
    np.testing.assert_array_equal(curve, profile.similarity(grid))
    for network, critical in (("a", profile.x), ("b", profile.y)):
        grid, share = lines[f"network {network} alone"].get_data()
        expected = [np.mean(critical <= within(e)) for e in grid]
        np.testing.assert_array_equal(share, expected)
        assert len(grid) > 500
    null = comparison["fc1.relu"].null
    every = np.concatenate([side for one in null for side in (one.x, one.y)])
    grid, share = lines.pop("images shuffled").get_data()
    np.testing.assert_array_equal(share, [np.mean(every <= within(e)) for e in grid])
    dot = next(l for label, l in lines.items() if label.startswith("ε = 0.5"))
    assert dot.get_xydata().tolist() == [[0.5, profile.similarity(0.5)]]
    with pytest.raises(
        KeyError, match="no layer 'fc9' in this comparison; its layers: conv1_1.relu"
    ):
        comparison.plot_profile("fc9")


def test_a_layer_that_is_not_there_is_named(comparison):
    for use in (
        comparison.plot_profile,
        lambda layer: comparison.similarity(layer, 0.3),
    ):
        with pytest.raises(
            KeyError,
            match="no layer 'fc3.relu' in this comparison; its layers: conv1_1.relu, .*fc2.relu",
        ):
            use("fc3.relu")


def test_hollow_where_one_network_alone_spans():
    """60 and 20 neurons, 50 samples: one network spans, the marker is hollow, and not everything
    matches everything.
    """
    rng = np.random.default_rng(0)
    for n, spans in (((60, 20), "X"), ((20, 60), "Y")):
        with pytest.warns(SubmatchWarning, match=f"the neurons of {spans} span all") as caught:
            one = compare_activations(*(rng.normal(size=(50, k)) for k in n), progress=False)
        assert len(caught) == 1 and one["a ~ b"].void() and one.similarity("a ~ b", 0.5) == 0


@pytest.mark.parametrize("function", [compare, compare_all, compare_activations])
def test_every_option_is_documented(function):
    "`help` has a line for each argument, with the values that it may have, and no others."
    parameters = (
        inspect.getdoc(function).split("Parameters\n----------\n")[1].split("\nReturns\n")[0]
    )
    headed = re.findall(r"^(\w[\w, ]*)(?: : (.+))?$", parameters, re.MULTILINE)
    documented = [name for names, _ in headed for name in names.split(", ")]
    signature = inspect.signature(function).parameters
    assert sorted(documented) == sorted(signature)
    if function is not compare_activations:
        assert set(inspect.signature(collect_all).parameters) - {"models"} < set(signature)
    assert all(p.annotation is not p.empty for p in signature.values())
    assert all(p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in signature.values())


def test_names_are_shortened():
    assert short_names(["a.b.c", "a.d.c"]) == ["b", "d"]
    assert short_names(["relu", "layer1.0.relu"]) == ["relu", "layer1.0.relu"]
    assert short_names(["fc1.relu"]) == ["fc1.relu"]


def test_moments_collected_apart(networks, comparison):
    parts = [collect(*networks, half, progress=False) for half in (IMAGES[:1000], IMAGES[1000:])]
    whole = Comparison.from_moments(
        {layer: parts[0][layer] + parts[1][layer] for layer in parts[0]}
    )
    for layer in LAYERS:
        np.testing.assert_allclose(whole.profiles[layer].x, comparison.profiles[layer].x, atol=1e-6)
    assert whole.neurons["fc1.relu"] == "neuron" and "6 layers, conv1_1.relu to fc2.relu" in repr(
        whole
    )


def test_figures_follow_a_dark_style(comparison, baseline):
    light = comparison.plot((0.2, 0.5), baseline=baseline).axes[0]
    with plt.style.context("dark_background"):
        dark = comparison.plot((0.2, 0.5), baseline=baseline).axes[0]
    for ax, ground in ((light, 1), (dark, 0)):
        assert ax.get_facecolor()[:3] == (ground,) * 3 and ax.xaxis.label.get_color() in (
            "black",
            "white",
        )
        luminance = [
            np.dot(np.power(to_rgba(l.get_color())[:3], 2.2), (0.2126, 0.7152, 0.0722))
            for l in ax.lines
        ]
        contrast = [(max(ground, l) + 0.05) / (min(ground, l) + 0.05) for l in luminance]
        assert min(contrast) > 1.8 and contrast[0] == max(contrast) > 10, (
            "the strictest line must stand out most"
        )


def test_figures_are_vectors(comparison):
    "A paper's figure: letters that can be searched, no picture of cells."
    for fig in (comparison.plot(0.3), crossed().plot()):
        with plt.rc_context({"svg.fonttype": "none"}):
            fig.savefig(page := io.StringIO(), format="svg")
        assert (
            "maximum match similarity</text>" in page.getvalue()
            and page.getvalue().count("<image") <= 1
        )  # the colour bar's scale


# every layer against every layer


@cache
def crossed(images=400):
    a, b = (build("digits-vgg", seed=seed) for seed in (0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SubmatchWarning)
        return compare(a, b, IMAGES[:images], "cross", null=19, groups=0, progress=False)


def test_matrix_is_every_pair_by_the_plain_algorithm():
    "The layers' outputs averaged to the smaller grid by a reading of our own."
    a, b = (build("digits-vgg", seed=seed) for seed in (0, 1))
    matrix = crossed().matrix(0.5)
    assert list(matrix.index) == list(matrix.columns) == LAYERS and matrix.notna().all(axis=None)
    with evaluating(a, b), capture(a, "relu") as one, capture(b, "relu") as other:
        a(IMAGES[:400])
        b(IMAGES[:400])

    def flat(z):
        return z.double().movedim(1, -1).flatten(0, -2)

    def mean(z):
        return z.double().flatten(2).mean(2) if z.ndim > 2 else z.double()

    def halved(z):
        return z.double().unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))

    for x, y, X, Y in (
        ("fc1.relu", "conv1_2.relu", mean(one["fc1.relu"]), mean(other["conv1_2.relu"])),
        (
            "conv1_1.relu",
            "conv2_2.relu",
            flat(halved(one["conv1_1.relu"])),
            flat(other["conv2_2.relu"]),
        ),
        ("conv2_1.relu", "conv2_2.relu", flat(one["conv2_1.relu"]), flat(other["conv2_2.relu"])),
        ("fc1.relu", "fc2.relu", one["fc1.relu"], other["fc2.relu"]),
    ):
        assert matrix.loc[x, y] == algorithm_1(X, Y, epsilon=0.5).similarity, (x, y)
    assert len(set(np.diag(matrix))) > 2, "an instance that tells nothing"


def test_heat_map_shows_the_matrix():
    comparison = crossed()
    fig = comparison.plot((0.3, 0.5))
    for ax, e in zip(fig.axes, (0.3, 0.5)):
        matrix = comparison.matrix(e)
        np.testing.assert_array_equal(ax.collections[0].get_array(), matrix)
        assert ax.collections[0].get_clim() == (0, 1) and ax.get_title() == f"ε = {e}"
        for text in ax.texts:
            column, row = text.get_position()
            assert abs(float(text.get_text()) - matrix.iloc[row, column]) < 0.00501
        assert len(ax.texts) == 36
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == [
        layer.removesuffix(".relu") for layer in LAYERS
    ]
    assert fig.axes[0].get_ylim()[0] < fig.axes[0].get_ylim()[1], "input below, output above"
    fig.savefig(io.BytesIO())
    for ax in fig.axes:
        boxes = [Text.get_window_extent(t) for t in ax.texts] + [
            Text.get_window_extent(t) for t in ax.get_xticklabels() if t.get_text()
        ]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    many = comparison.plot_matrix(EPSILONS, comparison)
    assert len(many.axes) == 11 and not many.axes[0].texts, (
        "ten maps and a bar, whose cells have no room for numbers"
    )
    few = crossed(40)
    hatched = [patch.get_xy() for patch in few.plot().axes[0].patches if patch.get_hatch()]
    assert (
        sorted(hatched)
        == sorted(
            (j - 0.45, i - 0.45)
            for (i, j), layer in np.ndenumerate(few.grid)
            if few.similarity(layer, 0.3) and few[layer].void(0.3)
        )
        and 0 < len(hatched) < 36
    )


def test_no_matrix_without_a_cross(comparison):
    assert comparison.grid is None
    for use in (comparison.matrix, comparison.plot_matrix):
        with pytest.raises(ValueError, match='compare with layers="cross"'):
            use()
    pairs = compare(
        build("digits-vgg"),
        build("digits-vgg", seed=1),
        IMAGES[:200],
        [("conv1_1.relu", "conv1_2.relu"), ("conv2_1.relu", "conv2_2.relu")],
        progress=False,
    )
    assert pairs.grid is None and list(pairs.table().index) == [
        "conv1_1.relu ~ conv1_2.relu",
        "conv2_1.relu ~ conv2_2.relu",
    ]


@pytest.mark.parametrize("turned, several", [(False, 6), (True, 6), (False, 16), (False, 2)])
def test_one_layer_against_several(turned, several, tmp_path):
    """A recording from one place in a brain and the layers of a network: its matrix, and a heat map
    whose cells have an area, whole and on the page.
    """
    shared, rng = np.random.default_rng(0).normal(size=(300, 8)), np.random.default_rng(1)

    def Z(k):
        return np.hstack([shared[:, :k], rng.normal(size=(300, 12 - k))])

    np.save(tmp_path / "brain.npy", Z(8))
    np.savez(
        tmp_path / "network.npz",
        **{f"layer{i}.0.relu{'' if i % 3 else ':1'}": Z(1 + i % 8) for i in range(several)},
    )
    files = [tmp_path / "brain.npy", tmp_path / "network.npz"]
    comparison = compare_activations(*files[::-1] if turned else files, "cross", progress=False)
    matrix = comparison.matrix(0.3)
    assert (matrix.T if turned else matrix).shape == (1, several) and list(
        matrix.columns if turned else matrix.index
    ) == ["brain"]
    np.testing.assert_array_equal(
        matrix.to_numpy().ravel(), [(1 + i % 8) / 12 for i in range(several)]
    )
    for fig, e, drawn in (
        (comparison.plot(), 0.3, [comparison]),
        (comparison.plot(width=3.4), 0.3, [comparison]),
        (comparison.plot_matrix((0.3, 0.5), comparison), 0.3, [comparison] * 2),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fig.savefig(io.BytesIO())
        cells, page = fig.axes[0].collections[0], fig.bbox
        np.testing.assert_array_equal(cells.get_array(), matrix)
        corners = cells.get_coordinates()
        assert (
            corners.shape == (matrix.shape[0] + 1, matrix.shape[1] + 1, 2)
            and (np.diff(corners[..., 0], axis=1) == 1).all()
            and (np.diff(corners[..., 1], axis=0) == 1).all()
        )
        words = [t for t in fig.findobj(Text) if t.get_text() and t.get_visible()]
        boxes = [Text.get_window_extent(t) for t in words]
        assert all(
            page.x0 <= b.x0 and b.x1 <= page.x1 and page.y0 <= b.y0 and b.y1 <= page.y1
            for b in boxes
        ), [t.get_text() for t in words]
        titles = [Text.get_window_extent(ax.title) for ax in fig.axes if ax.get_title()]
        assert not any(a.overlaps(b) for i, a in enumerate(titles) for b in titles[:i])


def test_a_matrix_wherever_a_layer_met_two():
    rng = np.random.default_rng(0)

    def Z(*names):
        return {name: rng.normal(size=(60, 4)) for name in names}

    some = compare_activations(
        Z("a", "b"), Z("x", "y", "z"), [("a", "x"), ("a", "y"), ("b", "z")], progress=False
    )
    assert some.grid.loc["a", "y"] == "a ~ y" and some.matrix().isna().to_numpy().tolist() == [
        [False, False, True],
        [True, True, False],
    ]
    alone = compare_activations(Z("a"), Z("x"), "cross", progress=False)
    with pytest.raises(
        ValueError,
        match='no layer met more than one other.*layers="cross" where a network has several',
    ):
        alone.matrix()


# one preprocessing for each network


def test_preprocessing_of_each_network(networks, comparison):
    "A network fed its images negated, that negates them back; and one whose images are larger."

    def own(c):
        gram = c.moments["fc2.relu"].gram
        return [gram[:64, :64], gram[64:, 64:]]

    for functions, right in (
        ((torch.neg, torch.neg), [True, True]),
        ([torch.neg, None], [True, False]),
        ({"second": torch.neg}, [False, True]),
    ):
        mine = compare(*networks, -IMAGES, SMALL, preprocess=functions, progress=False)
        assert [
            torch.allclose(x, y, rtol=1e-4) for x, y in zip(own(mine), own(comparison))
        ] == right, "the wrong network was given the function"
    large = build("digits-vgg", seed=1, shape=(1, 16, 16))
    table = compare(
        networks[0],
        large,
        DIGITS,
        ["fc1.relu"],
        preprocess=(None, lambda batch: nn.functional.interpolate(batch[0], size=16)),
        progress=False,
    ).table()
    assert table.loc["fc1.relu", "samples"] == 1797
    with pytest.raises(ValueError, match="preprocess holds 1 function for 2 networks"):
        compare(*networks, IMAGES, preprocess=[None], progress=False)


# several networks


@pytest.fixture(scope="module")
def three():
    nets = [build("digits-vgg", seed=seed) for seed in (0, 1, 2)]
    return nets, compare_all(dict(zip(("p", "q", "r"), nets)), IMAGES[:300], SMALL, progress=False)


def test_every_pair_of_several_networks(three):
    nets, comparisons = three
    assert (
        list(comparisons) == [("p", "q"), ("p", "r"), ("q", "r")]
        and comparisons.names == ["p", "q", "r"]
        and comparisons.layers == SMALL
    )
    assert (
        comparisons[1, 2] is comparisons["q", "r"] and comparisons[0, -1] is comparisons["p", "r"]
    )
    for (a, b), pair in zip(((0, 1), (0, 2), (1, 2)), comparisons.values()):
        alone = compare(nets[a], nets[b], IMAGES[:300], SMALL, progress=False)
        pd.testing.assert_frame_equal(pair.table(), alone.table(), atol=1e-6)
    assert list(compare_all(nets, IMAGES[:300], SMALL, progress=False)) == [(0, 1), (0, 2), (1, 2)]
    for wrong in (("q", "p"), ("p", "s"), (0, 3), "p", 0):
        with pytest.raises(KeyError, match="the networks are p, q, r"):
            comparisons[wrong]
        assert wrong not in comparisons


def test_table_of_several_networks(three, tmp_path):
    comparisons = three[1]
    table, pairs = (
        comparisons.table((0.3, 0.5), baseline=comparisons["p", "q"]),
        comparisons.table((0.3, 0.5), pairs=True),
    )
    assert pairs.loc["p", "r"].equals(comparisons["p", "r"].table((0.3, 0.5)))
    for layer in SMALL:
        values = pairs["ε=0.5"].xs(layer, level="layer")
        assert table.loc[layer, "ε=0.5"] == pytest.approx(values.mean()) and table.loc[
            layer, "± ε=0.5"
        ] == pytest.approx(values.std())
        assert table.loc[layer, "baseline ε=0.5"] == values["p", "q"]
        assert table.loc[layer, "dead"] == pytest.approx(
            pairs[["dead a", "dead b"]].xs(layer, level="layer").to_numpy().mean()
        )
        assert table.loc[layer, "Gaussian ε"] == pairs["Gaussian ε"].xs(layer, level="layer").min()
    assert table["± ε=0.5"].max() > 0.01, "an instance that tells nothing"
    beside = comparisons.table((0.3, 0.5), pairs=True, baseline=comparisons)
    for pair, c in comparisons.items():
        assert beside.loc[pair].equals(c.table((0.3, 0.5), baseline=comparisons))
    assert [c for c in beside if c.startswith("baseline")] == [
        "baseline ε=0.3",
        "baseline ε=0.5",
    ] and beside.loc["p", "r"]["baseline ε=0.5"].tolist() == table["ε=0.5"].tolist()
    other = Comparison({"fc9": comparisons["p", "q"]["fc2.relu"]})
    for pairs in (False, True):
        with pytest.raises(ValueError, match=r"the baseline has no layer conv1_1.relu.*it has fc9"):
            comparisons.table(pairs=pairs, baseline=other)
    assert Comparisons({("p", "q"): comparisons["p", "q"]}).table(0.5)["± ε=0.5"].isna().all()
    comparisons.save(tmp_path / "c.safetensors", moments=True)
    again = Comparisons.load(tmp_path / "c.safetensors")
    assert (
        again.table().equals(comparisons.table())
        and list(again) == list(comparisons)
        and repr(again) == repr(comparisons)
        and again._repr_html_() == comparisons._repr_html_()
    )
    assert torch.equal(
        again["q", "r"].moments["fc2.relu"].gram, comparisons["q", "r"].moments["fc2.relu"].gram
    )
    with pytest.raises(ValueError, match="holds comparisons, not a submatch comparison"):
        Comparison.load(tmp_path / "c.safetensors")


def test_figure_of_several_networks(three):
    comparisons = three[1]
    ax = comparisons.plot((0.3, 0.5), baseline=comparisons).axes[0]
    table = comparisons.table((0.3, 0.5))
    solid, dashed = (
        [l.get_ydata() for l in ax.lines if l.get_linestyle() == style] for style in ("-", "--")
    )
    np.testing.assert_allclose(solid, table[["ε=0.3", "ε=0.5"]].T)
    np.testing.assert_allclose(dashed, solid)
    band = [c for c in ax.collections if isinstance(c, PolyCollection)][-1]
    dots = ax.collections[-1].get_offsets()
    assert sorted(map(tuple, dots)) == sorted(
        (k, c.similarity(layer, 0.5)) for c in comparisons.values() for k, layer in enumerate(SMALL)
    )
    edge = band.get_paths()[0].vertices
    assert all(
        np.abs(edge - [k, mean + sign * spread]).max(1).min() < 1e-12
        for k, (mean, spread) in enumerate(zip(table["ε=0.5"], table["± ε=0.5"]))
        for sign in (-1, 1)
    )
    crosses = compare_all(three[0], IMAGES[:300], "cross", progress=False)
    np.testing.assert_allclose(
        crosses.plot(0.5).axes[0].collections[0].get_array(),
        np.mean([c.matrix(0.5) for c in crosses.values()], 0),
    )


def test_a_folder_of_checkpoints(comparison, tmp_path):
    (tmp_path / "notes.txt").write_text("no network")
    comparison.save(tmp_path / "comparison.safetensors")
    recipe = recipe_for("digits-mlp", epochs=0)
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        compare_all(tmp_path / "nowhere", IMAGES)
    for seed in (0, 1, 2):
        if seed < 2:
            with pytest.raises(
                ValueError, match=("holds no checkpoint", "two networks or more, not 1")[seed]
            ):
                compare_all(tmp_path, IMAGES)
        train(
            "digits-mlp",
            "digits",
            seed,
            tmp_path / f"seed{seed}.safetensors",
            recipe,
            progress=False,
        )
    found = compare_all(str(tmp_path), IMAGES[:500], "fc2.relu", progress=False)
    assert list(found) == [("seed0", "seed1"), ("seed0", "seed2"), ("seed1", "seed2")]
    expected = compare(
        build("digits-mlp", seed=0),
        build("digits-mlp", seed=2),
        IMAGES[:500],
        "fc2.relu",
        progress=False,
    )
    pd.testing.assert_frame_equal(found["seed0", "seed2"].table(), expected.table(), atol=1e-6)
    (tmp_path / "seed1.safetensors").write_bytes((tmp_path / "seed1.safetensors").read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged or cut short: .*seed1.safetensors"):
        compare_all(tmp_path, IMAGES)


def test_pairs_that_do_not_go_together(three, comparison):
    with pytest.raises(ValueError, match=r"pair \(1, 2\) has other layers"):
        Comparisons({(0, 1): three[1]["p", "q"], (1, 2): comparison})
    with pytest.raises(ValueError, match="no pair"):
        Comparisons({})
    with pytest.raises(ValueError, match="two networks or more, not 1"):
        compare_all(three[0][:1], IMAGES)
    with pytest.warns(SubmatchWarning) as caught:
        compare_all(three[0], IMAGES[:30], ["fc2.relu"], progress=False)
    assert {str(w.message).split(": ")[0] for w in caught} == {
        f"networks {a} and {b}" for a, b in ((0, 1), (0, 2), (1, 2))
    } and {w.filename for w in caught} == {__file__}


# sampled positions


def test_draws_are_averaged(tmp_path):
    a, b = (build("digits-vgg", seed=seed) for seed in (0, 1))
    sampled = compare(a, b, IMAGES[:100], SMALL, positions=Sampled(300, 4, 0), progress=False)
    moments = collect(a, b, IMAGES[:100], SMALL, positions=Sampled(300, 4, 0), progress=False)
    table = sampled.table((0.5, 0.7))
    for layer in ("conv1_1.relu", "conv2_2.relu"):
        values = [epsilon_profile(m).similarity(0.7) for m in moments.draws[layer]]
        assert table.loc[layer, "ε=0.7"] == pytest.approx(np.mean(values)) and table.loc[
            layer, "± ε=0.7"
        ] == pytest.approx(np.std(values, ddof=1))
        assert (
            sampled.positions[layer] == "sampled, 4 x 300, seed 0"
            and table.loc[layer, "samples"] == 300
        )
    assert table["± ε=0.7"].max() > 0, "an instance that tells nothing"
    np.testing.assert_array_equal(sampled.plot(0.7).axes[0].lines[0].get_ydata(), table["ε=0.7"])
    sampled.save(tmp_path / "c.safetensors")
    again = Comparison.load(tmp_path / "c.safetensors")
    assert (
        again.table((0.5, 0.7)).equals(table)
        and again.positions == sampled.positions
        and repr(again) == repr(sampled)
    )


# activations of other tools


def matrices(d=500, n=(12, 9), seed=0):
    """Two layers that share a part, with a dead neuron and a repeated one; small whole numbers over
    8, which any precision holds.
    """
    rng = np.random.default_rng(seed)
    shared = rng.integers(-8, 8, (d, 5))
    X, Y = (np.hstack([shared, rng.integers(-8, 8, (d, k - 5))]) / 8 for k in n)
    X[:, 3], Y[:, 1] = 0, Y[:, 0]
    return X, Y


def same(profile, X, Y):
    expected = epsilon_profile(X, Y)
    for side in "xy":
        np.testing.assert_allclose(getattr(profile, side), getattr(expected, side), atol=1e-6)
    assert profile.count == len(X) and 0 < expected.similarity(0.1) < 1


@pytest.mark.parametrize(
    "ending",
    [
        "npy",
        "fortran.npy",
        "swapped.npy",
        "half.npy",
        "single.npy",
        "npz",
        "compressed.npz",
        "safetensors",
        "bfloat16.safetensors",
    ],
)
def test_files_of_activations(ending, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "submatch_nb.engine.activations.ROWS", 64
    )  # several chunks, the last one shorter
    X, Y = matrices()
    paths = [tmp_path / f"{name}.{ending}" for name in "ab"]
    types = {"half": np.float16, "single": np.float32, "swapped": np.dtype(">f8")}
    for path, Z in zip(paths, (X, Y)):
        name = ending.split(".")[0]
        if ending.endswith("npy"):
            np.save(
                path,
                (
                    np.asfortranarray(Z)
                    if name == "fortran"
                    else Z.astype(types.get(name, np.float64))
                ),
            )
        elif ending.endswith("npz"):
            (np.savez_compressed if name == "compressed" else np.savez)(
                path, fc1=Z, fc2=np.asfortranarray(Z[:, ::-1]), counts=np.arange(len(Z))
            )
        else:
            save_file(
                {
                    layer: (
                        torch.tensor(z.copy()).to(
                            torch.bfloat16 if name == "bfloat16" else torch.float32
                        )
                    )
                    for layer, z in (("fc1", Z), ("fc2", Z[:, ::-1]))
                },
                path,
            )
    several = not ending.endswith("npy")
    comparison = compare_activations(
        *paths, layers=["fc1", "fc2"] if ending.endswith("npz") else None, progress=False
    )
    assert comparison.layers == (
        ["fc1", "fc2"]
        if several
        else [
            f"a.{ending[:-4]} ~ b.{ending[:-4]}".replace(".npy", "") if "." in ending else "a ~ b"
        ]
    )
    same(comparison.profiles[comparison.layers[0]], X, Y)
    if several:
        same(comparison.profiles["fc2"], X[:, ::-1], Y[:, ::-1])
    opened = next(iter(read_activations(paths[0]).values()))()
    assert isinstance(opened, np.memmap) or not isinstance(opened, np.ndarray), "all read at once"


def test_activations_in_memory_and_crossed():
    X, Y = matrices()
    same(compare_activations(X, torch.tensor(Y), progress=False).profiles["a ~ b"], X, Y)
    layers = {"one": X, "two": X[:, ::2]}
    comparison = compare_activations(layers, {"one": Y, "two": Y[:, ::2]}, "cross", progress=False)
    assert comparison.matrix(0.1).loc["two", "one"] == epsilon_profile(X[:, ::2], Y).similarity(0.1)
    paired = compare_activations(
        layers, {"uno": Y, "due": Y[:, ::2]}, [("one", "uno")], progress=False
    )
    assert (
        paired.layers == ["one ~ uno"]
        and compare_activations(X, Y, precision="exact", progress=False).profiles["a ~ b"].route
        == "root"
    )


def test_sources_without_a_layer():
    X = matrices()[0]
    for a, b, layers, words in (
        ({}, {}, None, "a holds no layer"),
        ({"fc": X}, {}, "cross", "b holds no layer"),
        (X, X, (), "layers is empty"),
    ):
        with pytest.raises(ValueError, match=words):
            compare_activations(a, b, layers, progress=False)


class Bomb:
    "What a pickle can do to the one who opens it."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def bad_files(tmp_path):
    X = matrices()[0]
    np.save(tmp_path / "good.npy", X)
    np.save(tmp_path / "shorter.npy", X[:-1])
    np.save(tmp_path / "vector.npy", X[:, 0])
    np.save(tmp_path / "maps.npy", X.reshape(500, 2, 2, 3))
    np.save(tmp_path / "complex.npy", X * 1j)
    np.save(tmp_path / "void.npy", X.astype(np.float16).view("V2"))
    np.save(tmp_path / "nan.npy", np.where(X[400, 2] == X, np.nan, X))
    np.save(tmp_path / "empty.npy", X[:0])
    np.savez(tmp_path / "two.npz", fc1=X, fc2=X)
    np.savez(tmp_path / "other.npz", fc1=X, fc3=X)
    np.savez(tmp_path / "labels.npz", fc1=X, y=X[:, 0])
    for name in ("bomb.npy", "bomb.npz"):
        (np.save if name.endswith("y") else np.savez)(
            tmp_path / name,
            np.array([[Bomb(tmp_path / "exploded")]], dtype=object),
            allow_pickle=True,
        )
    torch.save({"fc1": Bomb(tmp_path / "exploded")}, tmp_path / "torch.pt")
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    whole = (tmp_path / "good.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.npz").write_bytes((tmp_path / "two.npz").read_bytes()[:-500])
    save_file({"fc1": torch.tensor(X)}, tmp_path / "tensors.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(
        (tmp_path / "tensors.safetensors").read_bytes()[:-500]
    )


@pytest.mark.parametrize(
    "a, b, layers, error, words",
    [
        (
            "good.npy",
            "shorter.npy",
            None,
            ValueError,
            r"good.npy has 500 samples of 'good' and .*shorter.npy 499 of 'shorter'.*same order",
        ),
        (
            "good.npy",
            "vector.npy",
            None,
            ValueError,
            r"vector.npy, 'vector': has shape \(500,\), not \(samples, neurons\)",
        ),
        (
            "maps.npy",
            "good.npy",
            None,
            ValueError,
            r"maps.npy, 'maps': has shape \(500, 2, 2, 3\).*reshape\(-1, Z.shape\[-1\]\)",
        ),
        (
            "good.npy",
            "complex.npy",
            None,
            ValueError,
            "complex.npy, 'complex': holds complex128, not real numbers",
        ),
        ("void.npy", "good.npy", None, ValueError, "void.npy, 'void': .*bfloat16"),
        (
            "good.npy",
            "nan.npy",
            None,
            ValueError,
            r"nan.npy, 'nan', from row 0: neuron \d+ is nan at sample \d+",
        ),
        ("empty.npy", "empty.npy", None, ValueError, "empty.npy, 'empty': has shape"),
        (
            "two.npz",
            "other.npz",
            None,
            ValueError,
            "only in the first: fc2; only in the second: fc3",
        ),
        (
            "two.npz",
            "other.npz",
            ["fc2"],
            KeyError,
            "no layer 'fc2' in .*other.npz; its layers: fc1, fc3",
        ),
        (
            "labels.npz",
            "labels.npz",
            None,
            ValueError,
            "labels.npz, 'y': has shape .*naming those that are",
        ),
        ("two.npz", "two.npz", [("fc1", "fc2", "fc1")], ValueError, "pairs of names"),
        ("two.npz", "two.npz", [], ValueError, "layers is empty: name at least one layer"),
        ("bomb.npy", "good.npy", None, ValueError, "bomb.npy, 'bomb': cannot be read"),
        (
            "bomb.npz",
            "good.npy",
            None,
            ValueError,
            "bomb.npz, 'arr_0': cannot be read .*never loaded",
        ),
        (
            "torch.pt",
            "good.npy",
            None,
            ValueError,
            "torch.pt: .*weights_only=True.* refuses it",
        ),
        ("pickle.npy", "good.npy", None, ValueError, "pickle.npy is no .npy"),
        ("cut.npy", "good.npy", None, ValueError, "cut.npy, 'cut': cannot be read"),
        ("cut.npz", "two.npz", None, ValueError, "cut.npz is no .npy.*damaged or cut short"),
        (
            "cut.safetensors",
            "good.npy",
            None,
            ValueError,
            "cut.safetensors is no .npy.*damaged or cut short",
        ),
        ("good.npy", "nowhere.npy", None, FileNotFoundError, "nowhere.npy: no such file"),
    ],
)
def test_files_that_are_no_activations(a, b, layers, error, words, tmp_path):
    bad_files(tmp_path)
    with pytest.raises(error, match=words):
        compare_activations(tmp_path / a, tmp_path / b, layers, progress=False)
    assert not (tmp_path / "exploded").exists()


def test_what_a_file_holds(comparison, tmp_path):
    bad_files(tmp_path)
    comparison.save(tmp_path / "c.safetensors")
    assert [
        holds(tmp_path / name)
        for name in ("c.safetensors", "tensors.safetensors", "good.npy", "cut.safetensors")
    ] == ["comparison", "", None, None]
    with pytest.raises(
        ValueError, match="c.safetensors holds a submatch comparison, not activations"
    ):
        compare_activations(tmp_path / "c.safetensors", tmp_path / "good.npy")
    with pytest.raises(ValueError, match="precision is 'high'"):
        compare_activations(tmp_path / "good.npy", tmp_path / "good.npy", precision="high")


# files


def test_a_vgg16_takes_a_few_megabytes_and_comes_back_whole(tmp_path):
    """The sizes of the paper's VGG-16, random numbers: table, figures and explorer from the file
    alone.
    """
    rng = np.random.default_rng(0)
    sizes = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 8

    def sides(n):
        return Sides(*np.sort(rng.random((2, n))))

    def layer(name, n):
        profile = Profile(*sides(n), 10_000, sides(n), sides(n), "gram")
        return Layer(name, (name, name), "channel", profile=profile, residual=sides(n))

    layers = [f"layer{k}" for k in range(len(sizes))]
    comparison = Comparison({name: layer(name, n) for name, n in zip(layers, sizes)})
    comparison.save(tmp_path / "c.safetensors")
    assert (tmp_path / "c.safetensors").stat().st_size < 2**20
    again = Comparison.load(tmp_path / "c.safetensors")
    assert again.table().equals(comparison.table())
    for layer in layers:
        np.testing.assert_array_equal(again.residuals[layer].y, comparison.residuals[layer].y)
    again.plot()
    again.plot_profile("layer14")
    save_html(again, tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 10_000


HOSTILE = ("a & b", "x_1^2", "100% #1 $", "\\\\", "[0]", "*", "{\\input{x}}", "two\nlines ~ <|>")


def latex_cells(row):
    "The cells of a row of LaTeX: an ampersand with a backslash before it parts none."
    cells = re.split(r"(?<!\\)&", row.removesuffix(r" \\"))
    return [cell.strip().removesuffix(r"\rlap{$^{\ast}$}") for cell in cells]


def test_latex_has_the_numbers_of_the_table_whatever_layers_are_called():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(200, 3))
    a, b = (
        {name: np.hstack([shared, rng.normal(size=(200, 3))]) for name in HOSTILE} for _ in "ab"
    )
    found = compare_activations(a, b, progress=False)
    table = found.table((0.3, 0.5), measures="cka", baseline=found)
    lines = found.to_latex((0.3, 0.5), measures="cka", baseline=found, digits=3).split("\n")
    assert lines[0].startswith("% ") and not any("%" in re.sub(r"\\%", "", x) for x in lines[1:])
    rows = [latex_cells(line) for line in lines[5:-2]]
    assert len(rows) == len(HOSTILE) and {len(row) for row in rows} == {15}
    at = ["ε=0.3", "null ε=0.3", "baseline ε=0.3", "ε=0.5", "null ε=0.5", "baseline ε=0.5"]
    shown = [*at, "half", "half null", "p Holm", "cka", "cka null"]
    for row, (name, numbers) in zip(rows, table.iterrows(), strict=True):
        low, high = row[10].split("--")
        values = [float(x) for x in (*row[3:10], *row[11:], low, high)]
        expected = [*numbers[shown], numbers["half low"], numbers["half high"]]
        np.testing.assert_allclose(values, np.array(expected, float), atol=0.00051)
        assert row[1:3] == ["6 + 6", "200"]
        assert not row[0].startswith(("[", "*")) and "\n" not in row[0], name


def test_latex_stars_what_is_void_and_leaves_out_what_there_is_not():
    rng = np.random.default_rng(0)
    same = rng.normal(size=(100, 4))
    a = {"alike": same, "noise": rng.normal(size=(100, 4))}
    b = {"alike": same @ rng.normal(size=(4, 4)), "noise": rng.normal(size=(100, 4))}
    found = compare_activations(a, b, progress=False)
    alike, noise = found.to_latex(0.3).split("\n")[5:7]
    assert not found["alike"].void(0.3) and not found["alike"].void() and "ast" not in alike
    assert found["noise"].void(0.3) and found["noise"].void() and noise.count("ast") == 2
    bare = compare_activations(a, b, null=0, groups=0, images=np.arange(100) // 2, progress=False)
    heads = latex_cells(bare.to_latex(0.3).split("\n")[3])
    assert "null" not in heads and not any("95" in head for head in heads)


def test_a_mean_makes_what_it_shows_and_no_more():
    "Intervals over the images of one pair are in its own table, not in the mean of many."
    rng = np.random.default_rng(0)
    matrices = [{"f": rng.standard_normal((90, 4))} for _ in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SubmatchWarning)
        several = Comparisons(
            {
                (a, b): compare_activations(matrices[a], matrices[b], progress=False)
                for a, b in ((0, 1), (0, 2), (1, 2))
            }
        )
    layers = [comparison["f"] for comparison in several.values()]
    mean = several.table()
    assert [layer.left_out.missing for layer in layers] == [20] * 3
    assert [layer.null_drawn.missing for layer in layers] == [0] * 3
    each = several.table(pairs=True)
    assert [layer.left_out.missing for layer in layers] == [0] * 3
    assert each["half low"].notna().all() and several.table().equals(mean)
    assert mean.loc["f", "half"] == each["half"].mean()
    assert bool(mean.loc["f", "void"]) == (each["void"].mean() >= 0.5)
