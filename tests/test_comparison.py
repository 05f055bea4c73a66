"""Two networks in, a Comparison out: against the plain algorithm, planted answers, files that survive, figures that show the numbers."""
import io
import math
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.text import Text
from torch import nn
from torchvision.models import resnet18, vgg11

import submatch_nb.comparison as module
from submatch_nb.comparison import EPSILONS, Comparison, compare
from submatch_nb.layers import as_matrix, capture, collect, evaluating, layer_names
from submatch_nb.maximum import algorithm_1
from submatch_nb.networks import build, load_data, recipe_for, train
from submatch_nb.neurons import SubmatchWarning, load_tensors, save_tensors
from submatch_nb.simple import simple_matches

DIGITS = load_data("digits", "all")
IMAGES = torch.stack([x for x, _ in DIGITS])
LAYERS = ["conv1_1.relu", "conv1_2.relu", "conv2_1.relu", "conv2_2.relu", "fc1.relu", "fc2.relu"]
SMALL = ["conv1_1.relu", "conv2_2.relu", "fc2.relu"]


@pytest.fixture(scope="module")
def networks():
    recipe = recipe_for("digits-vgg", epochs=4)
    return [train("digits-vgg", "digits", seed=seed, recipe=recipe, progress=False).model for seed in (0, 1)]


@pytest.fixture(scope="module")
def comparison(networks):
    return compare(*networks, DIGITS, progress=False)


@pytest.fixture(scope="module")
def baseline():
    return compare(build("digits-vgg", seed=0), build("digits-vgg", seed=1), DIGITS, progress=False)


def fresh(comparison):
    "Its smaller layers, with no simple matches found yet."
    return Comparison(*({layer: part[layer] for layer in SMALL} for part in (comparison.profiles, comparison.neurons, comparison.moments)))


def kill(model, name, units):
    "Make some units of a fully connected layer put out 0 for every image."
    linear = model.get_submodule(name)
    with torch.no_grad(): linear.weight[units], linear.bias[units] = 0, -1


# the numbers

def test_against_the_plain_algorithm(networks):
    few = compare(*networks, IMAGES[:300], progress=False)
    with evaluating(*networks), capture(networks[0], "relu") as a, capture(networks[1], "relu") as b:
        for model in networks: model(IMAGES[:300])
    table = few.table((0.3, 0.5, 0.7))
    assert list(table.index) == few.layers == LAYERS
    for layer in LAYERS:
        X, Y = as_matrix(a[layer])[0], as_matrix(b[layer])[0]
        for e in (0.3, 0.5, 0.7):
            match = algorithm_1(X, Y, epsilon=e)
            assert match == few.profiles[layer].match(e) and table.loc[layer, f"ε={e}"] == match.similarity
    assert 0 < table.loc["fc1.relu", "ε=0.7"] < 1, "an instance that tells nothing"


def test_a_row_of_the_table(comparison):
    row = comparison.table().loc["fc1.relu"]
    profile = comparison.profiles["fc1.relu"]
    dead = [len(side) for side in comparison.moments["fc1.relu"].dead]
    assert (row["neuron"], row["neurons a"], row["neurons b"], row["samples"]) == ("unit", 128, 128, 1797)
    assert [row["dead a"], row["dead b"]] == dead
    assert row["chance ε"] == pytest.approx(math.sqrt(1 - (128 - min(dead)) / 1797))
    assert [c for c in row.index if c.startswith("ε=")] == ["ε=0.15", "ε=0.2", "ε=0.25", "ε=0.3", "ε=0.5"]
    assert [row[f"ε={e:g}"] for e in EPSILONS] == [profile.similarity(e) for e in EPSILONS]
    assert comparison.counts["conv2_1.relu"] == 1797 * 16 and comparison.neurons["conv2_1.relu"] == "channel"
    assert comparison.table()["samples"].dtype == int and comparison.table()["ε=0.5"].dtype == float


def test_itself_is_similar_but_for_its_dead():
    model = build("digits-vgg", seed=3)
    kill(model, "fc2.linear", [1, 5, 40])
    table = compare(model, model, DIGITS, progress=False).table((0, 1e-3, 0.9))
    assert table.loc["fc2.relu", "dead a"] >= 3
    for column in ("ε=0", "ε=0.001", "ε=0.9"):
        np.testing.assert_allclose(table[column], 1 - (table["dead a"] + table["dead b"]) / (table["neurons a"] + table["neurons b"]))


def test_permuted_and_rescaled_units_are_the_same_representation():
    "A planted answer: ReLU lets a unit be rescaled and moved without changing the network's function."
    a, b = build("digits-mlp", seed=0), build("digits-mlp", seed=0)
    order, scale = torch.randperm(256, generator=torch.Generator().manual_seed(0)), torch.logspace(-3, 3, 256)
    with torch.no_grad():
        b.fc1.linear.weight[:] = a.fc1.linear.weight[order] * scale[:, None]
        b.fc1.linear.bias[:] = a.fc1.linear.bias[order] * scale
        b.fc2.linear.weight[:] = a.fc2.linear.weight[:, order] / scale
    table = compare(a, b, DIGITS, progress=False).table(1e-3)
    np.testing.assert_allclose(table["ε=0.001"], 1 - (table["dead a"] + table["dead b"]) / (table["neurons a"] + table["neurons b"]))
    assert (compare(a, build("digits-mlp", seed=1), DIGITS, progress=False).table(1e-3)["ε=0.001"] < 0.1).all()


def test_exchanging_the_networks(networks, comparison):
    swapped = compare(*networks[::-1], DIGITS, progress=False)
    for layer in LAYERS:
        np.testing.assert_allclose(swapped.profiles[layer].x, comparison.profiles[layer].y, atol=1e-6)
        np.testing.assert_allclose(swapped.profiles[layer].y, comparison.profiles[layer].x, atol=1e-6)


def test_different_widths_and_layers_by_pairs():
    a, b = build("digits-vgg", seed=0), build("digits-vgg", seed=1, width=0.5)
    table = compare(a, b, DIGITS, layers=["fc1.relu", ("conv1_1.relu", "conv1_2.relu")], progress=False).table()
    assert list(table.index) == ["fc1.relu", "conv1_1.relu ~ conv1_2.relu"]
    assert list(table["neurons a"]) == [128, 16] and list(table["neurons b"]) == [64, 8]


def test_torchvision_models():
    torch.manual_seed(0)
    images = nn.functional.interpolate(IMAGES[:40], size=32).expand(-1, 3, -1, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SubmatchWarning)  # 40 images, 512 channels
        early = [name for name in layer_names(resnet18(), "relu") if "layer3" not in name and "layer4" not in name]
        resnet = compare(resnet18(num_classes=10), resnet18(num_classes=10), images, early, progress=False)
        vgg = compare(vgg11(init_weights=False), vgg11(init_weights=False), images[:4], ["features.1", "features.6"], progress=False)
    assert len(resnet.layers) == 9 and resnet.layers[:3] == ["relu", "layer1.0.relu", "layer1.0.relu:1"]
    assert list(vgg.table()["samples"]) == [4 * 32 * 32, 4 * 8 * 8]
    assert [t.get_text() for t in resnet.plot().axes[0].get_xticklabels()][-1] == "layer2.1.relu:1"


# baselines and simple matches

def test_baseline_columns(comparison, baseline):
    table = comparison.table((0.2, 0.5), baseline=baseline)
    for e in ("ε=0.2", "ε=0.5"):
        assert table[f"baseline {e}"].tolist() == baseline.table((0.2, 0.5))[e].tolist()
        assert table[e].tolist() == comparison.table((0.2, 0.5))[e].tolist()
    other = compare(build("digits-mlp", seed=0), build("digits-mlp", seed=1), IMAGES, progress=False)
    for use in (comparison.table, comparison.plot, lambda baseline: comparison.plot_profile("fc1.relu", baseline=baseline)):
        with pytest.raises(ValueError, match=r"the baseline has no layer conv1_1.relu.*it has fc1.relu, fc2.relu"): use(baseline=other)


def test_simple_matches_are_found_once(comparison, monkeypatch):
    calls, mine = [], fresh(comparison)
    def counted(moments, epsilon):
        calls.append(epsilon)
        return simple_matches(moments, epsilon=epsilon)
    monkeypatch.setattr(module, "simple_matches", counted)
    table = mine.table(0.3, simple=0.5)
    assert mine.table(0.3, simple=0.5).equals(table) and calls == [0.5] * 3
    for layer in SMALL:
        sizes = [len(m) for m in simple_matches(comparison.moments[layer], epsilon=0.5)]
        assert table.loc[layer, "simple ε=0.5"] == len(sizes)
        np.testing.assert_equal(table.loc[layer, "size ε=0.5"], np.median(sizes) if sizes else np.nan)
    assert table["simple ε=0.5"].max() > 10, "an instance that tells nothing"


# bad input

@pytest.mark.parametrize("epsilon, error", [(1.0, ValueError), (-0.1, ValueError), (math.nan, ValueError), ("0.3", TypeError), ((0.3, 1.5), ValueError)])
def test_bad_epsilon(comparison, epsilon, error):
    for use in (comparison.table, comparison.plot):
        with pytest.raises(error, match="epsilon is"): use(epsilon)
    if np.ndim(epsilon) == 0:
        with pytest.raises(error, match="epsilon is"): comparison.simple(epsilon)


def test_bad_activations_name_the_layer():
    broken = build("digits-vgg", seed=1)
    with torch.no_grad(): broken.conv2_1.conv.weight[7] = float("nan")
    with pytest.raises(ValueError, match="layer 'conv2_1.relu', batch 0: the second network: neuron 7 is nan"): compare(build("digits-vgg"), broken, DIGITS, progress=False)


def test_full_spans_warn_with_the_layer():
    pair = [build("digits-mlp", seed=seed) for seed in (0, 1)]
    with pytest.warns(SubmatchWarning) as caught: few = compare(*pair, IMAGES[:40], progress=False)
    assert {str(w.message).split(":")[0] for w in caught} == {"layer 'fc1.relu'", "layer 'fc2.relu'"}
    assert caught[0].filename == __file__, "the warning must point at the call of compare"
    assert (few.table(0)["chance ε"] == 0).all()
    np.testing.assert_allclose(few.table(0)["ε=0"], 1 - (few.table(0)["dead a"] + few.table(0)["dead b"]) / (few.table(0)["neurons a"] * 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(*pair, DIGITS, progress=False)


# files

def test_round_trip(comparison, baseline, tmp_path):
    mine = fresh(comparison)
    mine.simple(0.5), mine.simple(0.4)
    mine.save(tmp_path / "new" / "c.safetensors")
    again = Comparison.load(tmp_path / "new" / "c.safetensors")
    assert again.layers == SMALL and again.counts == mine.counts and again.neurons == mine.neurons and again.moments == {}
    for layer in SMALL:
        for side in "xy": np.testing.assert_array_equal(getattr(again.profiles[layer], side), getattr(mine.profiles[layer], side))
        for e in (0.4, 0.5):
            ours, theirs = mine.simple(e)[layer], again.simple(e)[layer]
            assert list(ours) == list(theirs) and ours.epsilon == theirs.epsilon
            for v in mine.profiles[layer].match(e): assert ours.of(v) == theirs.of(v)
    assert again.table(simple=0.5, baseline=baseline).equals(mine.table(simple=0.5, baseline=baseline))
    assert repr(again) == repr(mine) and again._repr_html_() == mine._repr_html_()
    again.plot(baseline=baseline), again.plot_profile("fc2.relu", 0.5)
    with pytest.raises(ValueError, match=r"epsilon = 0.25 take the moments.*save\(path, moments=True\)"): again.table(simple=0.25)
    with pytest.raises(ValueError, match="no moments to save"): again.save(tmp_path / "again", moments=True)
    assert not (tmp_path / "again").exists()


def test_round_trip_with_moments(comparison, tmp_path):
    mine = fresh(comparison)
    mine.save(tmp_path / "c.safetensors", moments=True)
    again = Comparison.load(tmp_path / "c.safetensors")
    for layer in SMALL:
        ours, theirs = mine.moments[layer], again.moments[layer]
        assert torch.equal(ours.gram, theirs.gram) and torch.equal(ours.sum, theirs.sum)
        assert (ours.count, ours.n_x, ours.n_y, ours.error) == (theirs.count, theirs.n_x, theirs.n_y, theirs.error)
    assert again.table(simple=0.4).equals(mine.table(simple=0.4))


def test_brackets_and_routes_are_saved(networks, tmp_path):
    "Also those of a file from before there were any."
    mine = compare(*networks, IMAGES[:300], ["fc2.relu"], progress=False, precision="exact")
    path = tmp_path / "c.safetensors"
    mine.save(path, moments=True)
    again = Comparison.load(path)
    for ours, theirs in ((mine.profiles["fc2.relu"], again.profiles["fc2.relu"]),):
        assert ours.route == theirs.route == "root" == again.moments["fc2.relu"].route
        for sides in zip((*ours.lower, *ours.upper), (*theirs.lower, *theirs.upper)): np.testing.assert_array_equal(*sides)
        assert max(np.subtract(high, low, where=np.isfinite(low), out=np.zeros(len(low))).max() for low, high in zip(ours.lower, ours.upper)) < 1e-3
    tensors, about = load_tensors(path, "comparison")
    old = {name: t for name, t in tensors.items() if name in ("0.x", "0.y")}
    save_tensors(path, "comparison", old, layers=[{key: l[key] for key in ("layer", "neuron", "count")} for l in about["layers"]], simple=[])
    before = Comparison.load(path).profiles["fc2.relu"]
    assert before.route == "" and before.similarity(0.5) == mine.profiles["fc2.relu"].similarity(0.5) and set(before.lower.x[np.isfinite(before.lower.x)]) == {0}


def test_files_that_are_not_a_comparison(comparison, networks, tmp_path):
    path = tmp_path / "c.safetensors"
    comparison.save(path)
    whole = path.read_bytes()
    for cut in (0, 5, len(whole) // 3, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="c.safetensors is not a safetensors file, or is damaged"): Comparison.load(path)
    comparison.moments["fc1.relu"].save(path)
    with pytest.raises(ValueError, match="holds moments, not a submatch comparison"): Comparison.load(path)
    with pytest.raises(FileNotFoundError, match="nowhere"): Comparison.load(tmp_path / "nowhere")


def test_what_cannot_be_written_leaves_the_old_file(comparison, tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    comparison.save(path)
    old = path.read_bytes()
    with pytest.raises(OSError, match="cannot write"): comparison.save(path / "inside_a_file")
    def full_disk(tensors, part, metadata):
        part.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("submatch_nb.neurons.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"): comparison.save(path)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


# figures

def test_figure_shows_the_numbers(comparison, baseline):
    fig = comparison.plot((0.3, 0.5), baseline=baseline)
    solid = [l for l in fig.axes[0].lines if l.get_linestyle() == "-"]
    dashed = [l for l in fig.axes[0].lines if l.get_linestyle() == "--"]
    for lines, source in ((solid, comparison), (dashed, baseline)):
        np.testing.assert_array_equal([l.get_ydata() for l in lines], source.table((0.3, 0.5))[["ε=0.3", "ε=0.5"]].T.to_numpy())
    assert [t.get_text() for t in fig.axes[0].texts] == ["ε = 0.3", "ε = 0.5"]
    assert [t.get_text().split("\n")[0] for t in fig.axes[0].get_xticklabels()] == [layer.removesuffix(".relu") for layer in LAYERS]
    assert plt.get_fignums() == [], "a figure that stays open is shown twice, and never freed"


def test_labels_do_not_overlap_and_nothing_is_cut(comparison, baseline):
    for fig in (comparison.plot(baseline=baseline), comparison.plot(np.linspace(0, 0.3, 9)), comparison.plot_profile("fc1.relu", 0.5, baseline)):
        fig.savefig(io.BytesIO())
        ax, page = fig.axes[0], fig.bbox
        for labels in (ax.texts, ax.get_xticklabels()):
            boxes = [Text.get_window_extent(t) for t in labels]
            assert all(page.x0 <= b.x0 and b.x1 <= page.x1 and page.y0 <= b.y0 and b.y1 <= page.y1 for b in boxes)
            assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_hollow_markers_where_spans_fill_the_space():
    with pytest.warns(SubmatchWarning): few = compare(build("digits-vgg"), build("digits-vgg", seed=1), IMAGES[:50], progress=False)
    ax = few.plot(0.3).axes[0]
    hollow = [tuple(c) == to_rgba("white") for c in ax.collections[0].get_facecolors()]
    assert hollow == [False] * 4 + [True, few.counts["fc2.relu"] <= max(np.isfinite(s).sum() for s in (few.profiles["fc2.relu"].x, few.profiles["fc2.relu"].y))]
    assert "hollow" in ax.get_title("left")


def test_profile_curve(comparison):
    ax = comparison.plot_profile("fc1.relu", epsilon=0.5).axes[0]
    lines = {l.get_label(): l for l in ax.lines}
    profile = comparison.profiles["fc1.relu"]
    grid, curve = lines["similarity"].get_data()
    np.testing.assert_array_equal(curve, profile.similarity(grid))
    np.testing.assert_allclose((lines["network A alone"].get_ydata() + lines["network B alone"].get_ydata()) / 2, curve, atol=1 / 256)
    dot = next(l for label, l in lines.items() if label.startswith("ε = 0.5"))
    assert dot.get_xydata().tolist() == [[0.5, profile.similarity(0.5)]]
    with pytest.raises(KeyError, match="no layer 'fc9' in this comparison; its layers: conv1_1.relu"): comparison.plot_profile("fc9")


def test_names_are_shortened():
    assert module._short(["a.b.c", "a.d.c"]) == ["b", "d"]
    assert module._short(["relu", "layer1.0.relu"]) == ["relu", "layer1.0.relu"]
    assert module._short(["fc1.relu"]) == ["fc1.relu"]


def test_moments_collected_apart(networks, comparison):
    parts = [collect(*networks, half, progress=False) for half in (IMAGES[:1000], IMAGES[1000:])]
    whole = Comparison.from_moments({layer: parts[0][layer] + parts[1][layer] for layer in parts[0]})
    for layer in LAYERS: np.testing.assert_allclose(whole.profiles[layer].x, comparison.profiles[layer].x, atol=1e-6)
    assert whole.neurons["fc1.relu"] == "neuron" and "6 layers, conv1_1.relu to fc2.relu" in repr(whole)
