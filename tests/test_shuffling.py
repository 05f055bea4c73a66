"""The null that is collected in the pass, against one that stores all activations and shuffles."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from instances import NOISES, noise, positions_alike
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from submatch_nb import (
    Comparison,
    Comparisons,
    bootstrap,
    cka,
    compare,
    compare_activations,
    compare_all,
    permutation_test,
)
from submatch_nb.engine import collecting, shuffling
from submatch_nb.engine.inputs import SubmatchWarning
from submatch_nb.engine.moments import Moments
from submatch_nb.engine.reading import order_of
from submatch_nb.engine.shuffling import permutation
from submatch_nb.maximum import epsilon_profile

QUIET = {"progress": False}
LAYERS = ["1", "3", "6"]
COUNT = 150
LABELS = np.arange(COUNT) * 10 // COUNT  # the data are sorted by class


def network(seed, wide=6):
    "Two convolutions and a layer of units, float64."
    torch.manual_seed(seed)
    layers = [
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, wide, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * wide, 7),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers).double().eval()


def sorted_images():
    "(150, 1, 7, 7): ten classes, one after the other, each with a pattern of its own."
    rng = torch.Generator().manual_seed(3)
    patterns = torch.randn(10, 1, 7, 7, generator=rng, dtype=torch.float64)
    noise = torch.randn(COUNT, 1, 7, 7, generator=rng, dtype=torch.float64)
    return patterns[torch.as_tensor(LABELS)] + 0.5 * noise


NETS = [network(0), network(1, wide=5)]
DATA = sorted_images()


def outputs(net, data=DATA):
    "Layer -> (inputs, neurons, positions) of all inputs."
    found, Z = {}, data
    with torch.no_grad():
        for name, layer in net.named_children():
            Z = layer(Z)
            found[name] = Z.flatten(2).numpy() if Z.ndim > 2 else Z.numpy()[:, :, None]
    return found


def windows_of(images, window, counted):
    "Lists of images that are shuffled with each other; the last takes what is left if counted."
    count = max(1, len(images) // window) if counted else -(-len(images) // window)
    starts = [k * window for k in range(count)]
    return [images[a:b] for a, b in zip(starts, [*starts[1:], len(images)], strict=True)]


def shuffled(A, B, k, *, shuffles=1, window=256, numbered=True, counted=True, ids=None):
    "What shuffle k lays side by side: (samples, neurons) of both networks."
    order = order_of(len(A), ids, shuffled=numbered)
    images = [order.inputs[a:b] for a, b in itertools.pairwise(order.starts)]
    rows = []
    for w, own in enumerate(windows_of(images, window, counted)):
        beside = permutation(k, w, len(own), derange=shuffles == 1)
        for image, other in zip(own, beside, strict=True):
            rows += zip(image, own[other], strict=False)  # as many rows as both have
    x, y = np.array(rows).T
    return [Z.transpose(0, 2, 1).reshape(-1, Z.shape[1]) for Z in (A[x], B[y])]


def assert_null(layer, A, B, shuffles=1, **options):
    "Moments and profiles of the null are those of shuffled activations."
    assert len(layer.null) == len(layer.null_moments) == shuffles
    for k in range(shuffles):
        X, Y = shuffled(A, B, k, shuffles=shuffles, **options)
        plain, found = Moments(X, Y), layer.null_moments[k]
        length = plain.square.sqrt().clamp(min=1e-300)
        apart = (found.gram - plain.gram) / length / length[:, None]
        assert apart.abs().max() < 1e-12 and found.count == plain.count
        torch.testing.assert_close(found.sum, plain.sum, rtol=1e-10, atol=1e-10)
        profile = epsilon_profile(X, Y)
        for side in ("x", "y"):
            have, want = (np.minimum(getattr(p, side), 1) for p in (layer.null[k], profile))
            np.testing.assert_allclose(have, want, rtol=1e-6)


# The null of the pass is the plain one

A, B = map(outputs, NETS)


@pytest.mark.parametrize("window", [256, 32])
@pytest.mark.parametrize("shuffles", [1, 19])
def test_the_null_is_that_of_stored_activations_shuffled(monkeypatch, shuffles, window):
    monkeypatch.setattr(shuffling, "MOST", window)
    options = {} if shuffles == 1 else {"null": shuffles}  # one is the default
    found = compare(*NETS, DATA, LAYERS, batch_size=40, **options, **QUIET)
    for name, layer in found.items():
        assert layer.null_about == "over all images"
        assert_null(layer, A[name], B[name], shuffles, window=window)


@pytest.mark.parametrize(
    "data",
    [
        DATA.numpy(),
        TensorDataset(DATA, torch.as_tensor(LABELS)),
        DataLoader(TensorDataset(DATA), batch_size=17),
        DataLoader(TensorDataset(DATA), batch_size=64, num_workers=1),
    ],
    ids=["array", "dataset", "loader", "loader with a worker"],
)
def test_data_whose_inputs_are_numbered_are_shuffled_over_all_images(data):
    found = compare(*NETS, data, LAYERS, **QUIET)
    for name, layer in found.items():
        assert layer.null_about == "over all images"
        assert_null(layer, A[name], B[name])


def test_the_null_of_a_cross_and_of_means():
    "Units and means over positions: every layer with every layer."
    found = compare(*NETS, DATA, LAYERS, cross=True, positions="mean", **QUIET)
    assert len(found) == 9
    for layer in found.values():
        a, b = (Z[name].mean(2, keepdims=True) for Z, name in zip((A, B), layer.names, strict=True))
        assert_null(layer, a, b)


def test_the_null_of_a_cross_over_the_smaller_grid():
    "5 x 5 positions averaged to 2 x 2, beside 2 x 2."
    found = compare(*NETS, DATA, ["1", "3"], cross=True, positions="pooled", **QUIET)
    grid = nn.AdaptiveAvgPool2d(2)
    large = torch.from_numpy(A["1"]).unflatten(2, (5, 5))
    assert_null(found["1 ~ 3"], grid(large).flatten(2).numpy(), B["3"])


def test_the_null_of_every_pair_of_several_networks():
    nets = {"p": NETS[0], "q": NETS[1], "r": network(2)}
    held = {name: outputs(net) for name, net in nets.items()}
    for (a, b), comparison in compare_all(nets, DATA, LAYERS, null=2, **QUIET).items():
        for name, layer in comparison.items():
            assert_null(layer, held[a][name], held[b][name], shuffles=2)


@pytest.mark.parametrize("shuffles", [1, 3])
def test_films_trade_places_frame_by_frame(monkeypatch, shuffles):
    monkeypatch.setattr(shuffling, "MOST", 16)
    films = np.random.default_rng(0).integers(0, 40, COUNT)  # of one frame to many
    found = compare(*NETS, DATA, LAYERS, images=films, null=shuffles, **QUIET)
    for name, layer in found.items():
        assert layer.images == len(set(films.tolist()))
        assert_null(layer, A[name], B[name], shuffles, window=16, ids=films)


def test_rows_of_activations_that_belong_to_images():
    X, Y = (Z["3"].transpose(0, 2, 1).reshape(-1, Z["3"].shape[1]) for Z in (A, B))
    ids = np.repeat(np.arange(COUNT), 4)
    (layer,) = compare_activations(X, Y, images=ids, null=2, **QUIET).values()
    assert layer.images == COUNT
    assert_null(layer, X[:, :, None], Y[:, :, None], shuffles=2, ids=ids)


# Streams

ANY = np.random.default_rng(5).permutation(COUNT)  # an order in which classes are mixed


class Lines(IterableDataset):
    "The images one after the other."

    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return iter(self.data)


@pytest.mark.parametrize("kind", ["generator", "list", "iterable data set"])
@pytest.mark.parametrize("window", [4096, 32])
def test_a_stream_is_shuffled_within_windows_and_says_so(monkeypatch, kind, window):
    monkeypatch.setattr(shuffling, "MOST_STREAMED", window)
    data = DATA[ANY]
    made = {
        "generator": (batch for batch in data.split(20)),
        "list": list(data.split(20)),
        "iterable data set": DataLoader(Lines(data), batch_size=20),
    }[kind]
    found = compare(*NETS, made, LAYERS, null=2, **QUIET)
    for name, layer in found.items():
        whole = window > COUNT
        assert layer.null_about == (
            "over all images" if whole else f"within windows of {window} images"
        )
        beside = {"shuffles": 2, "window": window, "numbered": False, "counted": kind == "list"}
        assert_null(layer, A[name][ANY], B[name][ANY], **beside)


def test_a_loader_that_shuffles_is_read_as_it_comes(monkeypatch):
    monkeypatch.setattr(shuffling, "MOST_STREAMED", 32)
    numbered = TensorDataset(DATA, torch.arange(COUNT))

    def loader():
        return DataLoader(
            numbered, batch_size=25, shuffle=True, generator=torch.Generator().manual_seed(4)
        )

    order = torch.cat([numbers for _, numbers in loader()]).numpy()
    found = compare(*NETS, loader(), LAYERS, **QUIET)
    for name, layer in found.items():
        assert layer.null_about == "within windows of 32 images"
        assert_null(layer, A[name][order], B[name][order], window=32, numbered=False)


def test_a_stream_in_order_of_classes_warns(monkeypatch):
    monkeypatch.setattr(shuffling, "MOST_STREAMED", 16)
    with pytest.warns(SubmatchWarning, match="like images stand together.*Shuffle the data"):
        found = compare(*NETS, list(DATA.split(20)), LAYERS, **QUIET)
    assert found["6"].null_about == "within windows of 16 images, which are not in random order"


def test_a_generator_that_is_used_up_is_named():
    generator = (batch for batch in DATA[ANY].split(20))
    compare(*NETS, generator, "6", **QUIET)
    with pytest.raises(ValueError, match="no batch.*generator can be read only once"):
        compare(*NETS, generator, "6", **QUIET)


# Sorted by class


def class_layers(seed=0, images=400, classes=10):
    "Two layers that share nothing but the class of an image; images sorted by class."
    rng = np.random.default_rng(seed)
    of = np.arange(images) * classes // images
    means = rng.normal(size=(2, classes, 24)) * 2
    return [mean[of] + rng.normal(size=(images, 24)) for mean in means]


def half_of_shuffles(X, Y, orders):
    "Mean half-epsilon with the rows of Y in other orders."
    return np.mean([epsilon_profile(X, Y[order]).half for order in orders])


def test_data_in_order_of_classes_have_the_null_of_a_full_shuffle(monkeypatch):
    monkeypatch.setattr(shuffling, "MOST", 32)
    monkeypatch.setattr(shuffling, "FEWEST", 32)
    X, Y = class_layers()
    rng = np.random.default_rng(0)
    anywhere = half_of_shuffles(X, Y, [rng.permutation(400) for _ in range(20)])
    batches = np.arange(400).reshape(-1, 40)
    within = [rng.permuted(batches, axis=1).ravel() for _ in range(20)]
    in_batches = half_of_shuffles(X, Y, within)
    observed = epsilon_profile(X, Y).half
    assert anywhere - in_batches > 0.1  # who shuffles in batches is fooled by the classes

    def null():
        (layer,) = compare_activations(X, Y, groups=0, **QUIET).values()
        return layer.null[0].half

    assert abs(null() - anywhere) < 0.03 < anywhere - observed

    def in_order(count, ids=None, shuffled=True):
        return order_of(count, ids, shuffled=False)

    monkeypatch.setattr("submatch_nb.engine.reading.order_of", in_order)
    assert abs(null() - anywhere) > 0.1  # so this test catches it


# An interrupted pass


@pytest.mark.parametrize("options", [{}, {"null": 3}, {"images": np.arange(COUNT) % 61}])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("stop", [2, 5])
def test_an_interrupted_pass_has_the_same_null(tmp_path, monkeypatch, options, streamed, stop):
    monkeypatch.setattr(shuffling, "MOST", 32)
    monkeypatch.setattr(shuffling, "MOST_STREAMED", 32)
    monkeypatch.setattr(collecting, "SHARD", 2)
    if streamed and "images" in options:
        options = {"images": np.arange(COUNT) // 3}
    left = [0]

    class Failing(torch.utils.data.Dataset):
        def __len__(self):
            return COUNT

        def __getitem__(self, i):
            if left[0] == 0:
                raise OSError("the disk went away")
            left[0] -= 1
            return DATA[ANY][i]

    class Stream:
        def __iter__(self):
            data = Failing()
            for start in range(0, COUNT, 20):
                yield torch.stack([data[i] for i in range(start, min(start + 20, COUNT))])

    data = Stream() if streamed else Failing()
    options = options | {"batch_size": 20} | QUIET
    left[0] = COUNT
    whole = compare(*NETS, data, LAYERS, **options)
    left[0] = 20 * stop + 5
    with pytest.raises(OSError, match="went away"):
        compare(*NETS, data, LAYERS, resume=tmp_path / "sums", **options)
    left[0] = 2 * COUNT
    again = compare(*NETS, data, LAYERS, resume=tmp_path / "sums", **options)
    for name, layer in whole.items():
        other = again[name]
        assert len(other.null_moments) == len(layer.null_moments) >= 1
        assert other.null_about == layer.null_about
        for have, want in zip(other.null_moments, layer.null_moments, strict=True):
            torch.testing.assert_close(have.gram, want.gram, rtol=1e-12, atol=1e-12)
        for have, want in zip(other.groups, layer.groups, strict=True):
            torch.testing.assert_close(have.gram, want.gram, rtol=1e-12, atol=1e-12)


# Independent layers are void, planted ones are not


SHAPES = {
    "many samples": (400, 20, 20),
    "few samples": (50, 20, 20),
    "samples as neurons": (20, 20, 20),
    "fewer samples than neurons": (12, 20, 20),
    "between": (36, 24, 20),
    "widths": (200, 6, 48),
}
GRID = np.linspace(0, 0.999, 101)


def read_as_similar(kind, shape, center, seed, null=1):
    "Does any number of two independent layers of units not stand as void?"
    d, n_x, n_y = SHAPES[shape]
    rng = np.random.default_rng(seed)
    X, Y = noise(rng, d, n_x, kind), noise(rng, d, n_y, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SubmatchWarning)
        comparison = compare_activations(X, Y, center=center, null=null, groups=0, **QUIET)
    (layer,) = comparison.values()
    void = [layer.void(epsilon) for epsilon in GRID]
    return not (layer.void() and all(void))


ROTATED = [kind for kind in NOISES if kind not in ("sparse", "heavy tails")]
BY_ONE = ("between", "samples as neurons", "fewer samples than neurons")  # no draws from moments


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(
    "shape", [pytest.param(s, marks=[] if s in BY_ONE else pytest.mark.long) for s in SHAPES]
)
def test_independent_layers_are_void_at_every_epsilon(shape, center):
    "Each kind is not, by chance, in at most one of ten: p of half-epsilon, or of any epsilon."
    wrong = [kind for kind in ROTATED if read_as_similar(kind, shape, center, seed=0)]
    assert len(wrong) <= 3, wrong


@pytest.mark.parametrize("kind", ["ReLU, large means", "low rank", "dead neurons"])
def test_independent_layers_are_void_in_short(kind):
    assert not read_as_similar(kind, "many samples", False, seed=0)


@pytest.mark.parametrize("kind", ["sparse", "heavy tails"])
def test_layers_that_few_images_make_take_real_shuffles(kind):
    "Draws from moments do not know them (theorem *shuffles and rotations*); shuffles do."
    wrong = [read_as_similar(kind, "few samples", False, seed, null=19) for seed in range(10)]
    assert sum(wrong) <= 3


@pytest.mark.long
@pytest.mark.parametrize("kind", ROTATED)
def test_independent_layers_are_read_as_similar_as_seldom_as_said(kind):
    "In at most one of ten; of 120, 21 or more have a chance of 0.8 %."
    wrong = sum(read_as_similar(kind, "few samples", False, seed) for seed in range(120))
    assert wrong <= 20


CONVOLUTIONS = list(itertools.product((40, 200), (4, 25), (0.0, 3.0)))


def independent_convolutions(images, positions, mean, null):
    "What is known of two convolutions of 16 channels that have nothing in common."
    rng = np.random.default_rng(7)
    X, Y = (positions_alike(rng, images, positions, 16, mean, 0.3) for _ in "ab")
    ids = np.repeat(np.arange(images), positions)
    (layer,) = compare_activations(X, Y, images=ids, null=null, groups=0, **QUIET).values()
    return layer


@pytest.mark.parametrize("shape", CONVOLUTIONS)
def test_independent_convolutions_are_void_beside_one_shuffle(shape):
    layer = independent_convolutions(*shape, null=1)
    assert layer.p is None and layer.void()
    assert all(layer.void(epsilon) for epsilon in GRID)


def test_independent_convolutions_are_void_beside_19_shuffles():
    "Each has p <= 0.05 by chance in at most one of ten."
    layers = [independent_convolutions(*shape, null=19) for shape in CONVOLUTIONS]
    similar = [not all(layer.void(epsilon) for epsilon in GRID) for layer in layers]
    assert all(layer.p is not None for layer in layers) and sum(similar) <= 2


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("mean", [0.0, 2.0])
@pytest.mark.parametrize("positions", [1, 4])
def test_the_planted_share_is_found(share, mean, positions):
    "Neurons that both layers have, among others that have nothing in common."
    rng = np.random.default_rng(1)
    n, images = 24, 300
    planted = int(share * n)
    shared = positions_alike(rng, images, positions, planted, mean, 0.3)
    sides = []
    for _ in "ab":
        private = positions_alike(rng, images, positions, n - planted, mean, 0.3)
        mixed = (shared - mean) @ rng.normal(size=(planted, planted))
        sides.append(np.concatenate([mixed, private], axis=1))
    ids = np.repeat(np.arange(images), positions)
    for null in (1, 19):
        found = compare_activations(*sides, images=ids, null=null, groups=0, **QUIET)
        (layer,) = found.values()
        for epsilon in (0.05, 0.1):
            assert layer.profile.similarity(epsilon) == share
            assert layer.null[0].similarity(epsilon) == 0
            assert not layer.void(epsilon)


# Bad input


class Torn(nn.Module):
    "Images and positions in one axis, after a step that hides how they got there."

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.out = nn.ReLU()

    def forward(self, x):
        rows = self.net[:2](x).flatten(1).reshape(-1, 5)
        return self.out(torch.from_numpy(rows.numpy()))


def test_a_layer_whose_images_cannot_be_told_from_positions_is_refused():
    "With images= the rows are told apart again."
    nets = [Torn(net) for net in NETS]
    with pytest.raises(ValueError, match="'out'.*which axis counts the 128 inputs.*compare_acti"):
        compare(*nets, DATA, "out", **QUIET)
    with torch.no_grad():
        X, Y = (net(DATA) for net in nets)
    ids = np.repeat(np.arange(COUNT), 20)
    (layer,) = compare_activations(X, Y, images=ids, **QUIET).values()
    assert layer.images == COUNT and len(layer.null) == 1
    plain = [Z.unflatten(0, (COUNT, 20)).movedim(2, 1).numpy() for Z in (X, Y)]
    assert_null(layer, *plain)


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (DATA[:2], {}),
        ([DATA[:2]], {}),
        (DATA[:20], {"images": np.arange(20) % 2}),
        (DATA[:2], {"null": 19}),
    ],
    ids=["tensor", "stream", "two films", "many shuffles"],
)
def test_two_images_have_no_null(data, options):
    with pytest.raises(ValueError, match="three images or more; the data have 2.*or null=0"):
        compare(*NETS, data, "6", **options, **QUIET)
    X = outputs(NETS[0])["6"][:2, :, 0]
    with pytest.raises(ValueError, match="three images or more; the data have 2.*or null=0"):
        compare_activations(X, X, **QUIET)


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (DATA[:10], {"groups": 11}),
        ([DATA[:10]], {"groups": 11}),
        (DATA[:20], {"groups": 6, "images": np.arange(20) % 5}),
    ],
    ids=["tensor", "stream", "films"],
)
def test_more_groups_than_images_are_refused(data, options):
    with pytest.raises(ValueError, match="no more groups than images, or groups=0"):
        compare(*NETS, data, "6", **options, **QUIET)


def test_by_itself_there_are_no_more_groups_than_images():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SubmatchWarning)  # as few images as neurons
        found = compare(*NETS, DATA[:7], "6", **QUIET)
    assert len(found["6"].left_out) == 7


def test_a_network_and_itself():
    "It is said; all matches at once, and no shuffle does."
    with pytest.warns(SubmatchWarning, match="one and the same.*copy.deepcopy"):
        found = compare(NETS[0], NETS[0], DATA, "6", **QUIET)
    layer = found["6"]
    assert layer.profile.half == 0 < layer.null[0].half and layer.p == 1 / 200
    assert not layer.void(0.3)


def test_a_saved_comparison_says_what_it_does_not_have(tmp_path):
    comparison = compare(*NETS, DATA, LAYERS, **QUIET)
    full = comparison.table(0.3, measures=["cka"])
    assert full[["cka null", "cka low", "cka high"]].notna().all(axis=None)
    for name, moments in (("bare", False), ("moments", True)):
        comparison.save(tmp_path / name, moments=moments)
    bare, held = (Comparison.load(tmp_path / name) for name in ("bare", "moments"))
    remedy = r"compare again, or\s+use save\(path, moments=True\)"
    for ask in (
        lambda: bare.table(0.3, measures=["cka"]),
        lambda: permutation_test(bare["6"]),
        lambda: cka(bare["6"]),
    ):
        with pytest.raises(ValueError, match=remedy):
            ask()
    lost = "cka: no null.*no interval.*No file keeps these sums: compare again"
    with pytest.warns(SubmatchWarning, match=lost):
        table = held.table(0.3, measures=["cka"])
    pd.testing.assert_series_equal(table["cka"], full["cka"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        held.table(0.3)
        compare(*NETS, DATA, "6", null=0, groups=0, **QUIET).table(0.3, measures=["cka"])
        intervals = bootstrap(bare)
    pd.testing.assert_frame_equal(intervals, bootstrap(comparison))
    with pytest.raises(ValueError, match="each group of images, which no file keeps: compare"):
        bootstrap(held, measures=["cka"])
    assert permutation_test(held["6"], shuffles=19).p <= 0.05
    with pytest.raises(ValueError, match=r"samples of 150 images.*null=19.*pass X, Y and images="):
        permutation_test(held["1"])


def test_several_saved_networks_say_what_they_do_not_have(tmp_path):
    nets = {"p": NETS[0], "q": NETS[1], "r": network(2)}
    compare_all(nets, DATA, "6", **QUIET).save(tmp_path / "several", moments=True)
    loaded = Comparisons.load(tmp_path / "several")
    with pytest.warns(
        SubmatchWarning, match="cka: no null, which takes the sums of each shuffle. "
    ):
        table = bootstrap(loaded, measures=["cka"])
    assert table.loc[("6", "cka"), ["value", "low", "high"]].notna().all()
    assert np.isnan(table.loc[("6", "cka"), "null"])
