"""Measures against their published formulas, written out by QR and SVD on activations.

The oracles share no code with submatch. Also: streaming equals batch, what each measure does not
see, planted layers found again, and other packages where they are installed.
"""

import math
import warnings
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from conftest import seeds
from instances import CLOSENESS, KINDS, MILD, make
from scipy.linalg import orthogonal_procrustes

from submatch_nb import (
    Comparisons,
    cca,
    cka,
    compare_activations,
    compare_all,
    epsilon_profile,
    identify_layers,
    linear_regression,
    procrustes,
    pwcca,
    svcca,
)
from submatch_nb.engine.canonical import Canonical
from submatch_nb.engine.inputs import SubmatchWarning
from submatch_nb.engine.layer import Layer
from submatch_nb.engine.moments import Moments
from submatch_nb.measures import MEASURES, cca_angle, value_of

pytestmark = pytest.mark.filterwarnings("ignore::submatch_nb.SubmatchWarning")

# Oracles: on activations, each as its source writes it.


def centred(Z):
    "Less the means; a constant column is 0."
    Z = np.asarray(Z, float)
    return np.where((Z[0] == Z).all(0), 0, Z - Z.mean(0))


def basis(Z):
    "Orthonormal columns with the span of the columns of Z, each at length 1."
    Z = Z[:, Z.any(0)]
    U, s, _ = np.linalg.svd(Z / np.linalg.norm(Z, axis=0), full_matrices=False)
    return U[:, s > 1e-6 * s[0]]


def by_qr(X, Y):
    "Canonical correlations and variables of X (Björck and Golub 1973)."
    Q, P = basis(centred(X)), basis(centred(Y))
    U, rho, _ = np.linalg.svd(Q.T @ P, full_matrices=False)
    return rho.clip(max=1), Q @ U


def oracle_cca(X, Y):
    return by_qr(X, Y)[0].mean()


def oracle_pwcca(X, Y):
    rho, variables = by_qr(X, Y)
    weights = [np.abs(h @ centred(X)).sum() for h in variables.T]
    return np.average(rho, weights=weights)


def leading(Z, share=0.99):
    "The left singular vectors that hold the share of the variance."
    U, s, _ = np.linalg.svd(centred(Z), full_matrices=False)
    held = np.cumsum(s**2) / (s**2).sum()
    return U[:, : int((held < share).sum()) + 1]


def oracle_svcca(X, Y):
    return np.linalg.svd(leading(X).T @ leading(Y), compute_uv=False).mean()


def oracle_cka(X, Y):
    "By the d x d kernels and the centring matrix: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))."
    X, Y = (Z / np.linalg.norm(centred(Z)) for Z in (X, Y))  # against overflow
    H = np.eye(len(X)) - 1 / len(X)
    K, L = (H @ centred(Z) @ centred(Z).T @ H for Z in (X, Y))
    return (K * L).sum() / math.sqrt((K * K).sum() * (L * L).sum())


def oracle_procrustes(X, Y):
    "The angle between unit configurations after SciPy's best rotation of one onto the other."
    width = max(X.shape[1], Y.shape[1])
    X, Y = (np.pad(centred(Z), ((0, 0), (0, width - Z.shape[1]))) for Z in (X, Y))
    X, Y = X / np.linalg.norm(X), Y / np.linalg.norm(Y)
    R, _ = orthogonal_procrustes(Y, X)
    return 2 * math.asin(min(np.linalg.norm(X - Y @ R) / 2, 1))


def oracle_regression(X, Y):
    X, Q = centred(X), basis(centred(Y))
    return 1 - np.linalg.norm(X - Q @ (Q.T @ X)) ** 2 / np.linalg.norm(X) ** 2


ORACLES = {
    "cka": oracle_cka,
    "cca": oracle_cca,
    "svcca": oracle_svcca,
    "pwcca": oracle_pwcca,
    "procrustes": oracle_procrustes,
    "linear_regression": oracle_regression,
}
INVERTING = ("cca", "pwcca", "linear_regression")  # that divide by small directions too


def tied(X, Y):
    "Are two canonical correlations equal, so that the canonical variables are not determined?"
    rho = by_qr(X, Y)[0]
    return len(rho) > 1 and np.diff(rho).max() > -1e-5 and np.ptp(rho) > 1e-9


def constant(Z):
    return not centred(Z).any()


def expected(name, X, Y):
    return math.nan if constant(X) or constant(Y) else ORACLES[name](X, Y)


def near(name, found, value):
    "Equal to 1e-7; angles near 0, where a cosine has half the digits, to 1e-5."
    return found == pytest.approx(value, abs=1e-5 if name == "procrustes" else 1e-7, nan_ok=True)


def determined(name, kind, X, Y):
    "Is the value well-defined: no nearly singular layer, no ties for PWCCA, one share of 99 %?"
    if name in INVERTING and kind in CLOSENESS:
        return False
    if constant(X) or constant(Y):
        return True
    if name == "svcca":
        return not (on_the_edge(X) or on_the_edge(Y))
    return name != "pwcca" or not tied(X, Y)


def on_the_edge(Z):
    "Do the leading components hold the share within rounding, or are two of them equal there?"
    s = np.linalg.svd(centred(Z), compute_uv=False) ** 2
    held = np.cumsum(s) / s.sum()
    last, after = [*s, 0][(k := int((held < 0.99).sum())) : k + 2]
    return abs(held - 0.99).min() < 1e-6 or last - after < 1e-6 * s[0]


@pytest.mark.parametrize("seed", seeds(4, 40))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MEASURES)
def test_each_measure_is_its_published_formula(name, kind, seed):
    X, Y = make(kind, seed)
    for first, second in ((X, Y), (Y, X)):
        if determined(name, kind, first, second):
            found = MEASURES[name](first, second)
            assert near(name, found, expected(name, first, second))


def test_enough_instances_are_determined():
    "The test above leaves out few."
    pairs = [
        (name, kind, *make(kind, seed)) for name in MEASURES for kind in MILD for seed in (0, 1)
    ]
    said = [determined(name, kind, X, Y) for name, kind, X, Y in pairs]
    assert np.mean(said) > 0.8
    assert sum(yes for yes, (name, *_) in zip(said, pairs, strict=True) if name == "pwcca") > 10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MEASURES)
def test_measures_lie_where_they_say(name, kind):
    top = math.pi / 2 if name == "procrustes" else 1
    for seed in range(5):
        found = MEASURES[name](*make(kind, seed))
        assert math.isnan(found) or 0 <= found <= top


# The same from moments, however they came about


@pytest.mark.parametrize("kind", MILD)
def test_streaming_equals_batch(kind):
    X, Y = make(kind, 3)
    whole = Moments(X, Y)
    parts = [
        Moments(x, y)
        for x, y in zip(np.array_split(X, 4), np.array_split(Y, 4), strict=True)
        if len(x)
    ]
    streamed = sum(parts[1:], parts[0])
    layer = Layer("fc", ("fc", "fc"), "unit", moments=whole)
    forms = [whole, streamed, Moments(X, Y, root=True), layer, Canonical(whole)]
    for name, measure in MEASURES.items():
        if determined(name, kind, X, Y):
            for form in forms:
                assert near(name, measure(form), measure(X, Y))


@pytest.mark.parametrize(
    "make_array", [torch.as_tensor, np.asarray, np.ndarray.tolist, np.asfortranarray]
)
def test_any_array_will_do(make_array):
    X, Y = make("relu_features", 1)
    for measure in MEASURES.values():
        assert measure(make_array(X), make_array(Y)) == pytest.approx(measure(X, Y), abs=1e-12)


def test_one_factorisation_serves_all():
    "A Canonical factors nothing twice, and nothing that was not asked for."
    layers = Canonical(Moments(*make("relu_features", 2)))
    cka(layers)
    assert "eigen" not in vars(layers.a) and "correlations" not in vars(layers)
    linear_regression(layers)
    assert "eigen" not in vars(layers.a) and "eigen" in vars(layers.b)
    first = {name: measure(layers) for name, measure in MEASURES.items()}
    held = [dict(vars(part)) for part in (layers, layers.a, layers.b)]
    assert first == {name: measure(layers) for name, measure in MEASURES.items()}
    for part, before in zip((layers, layers.a, layers.b), held, strict=True):
        assert all(vars(part)[name] is value for name, value in before.items())


# What a measure does not see

MAPS = {
    "permutation": lambda Z, rng: rng.permutation(Z, axis=1),
    "isotropic scale": lambda Z, rng: Z * -(10 ** rng.uniform(-6, 6)),
    "scale by neuron": lambda Z, rng: Z * 10 ** rng.uniform(-3, 3, Z.shape[1]),
    "orthogonal": lambda Z, rng: Z @ np.linalg.qr(rng.normal(size=(Z.shape[1],) * 2))[0],
    "invertible": lambda Z, rng: Z @ well_conditioned(Z.shape[1], rng),
    "shift": lambda Z, rng: Z + 10 * rng.normal(size=Z.shape[1]) * Z.std(),
}
EUCLIDEAN = ("permutation", "isotropic scale", "orthogonal", "shift")
# Measure -> the maps of X, and of Y, that leave it as it is
BLIND = {
    "cka": (EUCLIDEAN, EUCLIDEAN),
    "procrustes": (EUCLIDEAN, EUCLIDEAN),
    "svcca": (EUCLIDEAN, EUCLIDEAN),
    "cca": (tuple(MAPS), tuple(MAPS)),
    "pwcca": (("permutation", "isotropic scale", "shift"), tuple(MAPS)),
    "linear_regression": (EUCLIDEAN, tuple(MAPS)),
}


def well_conditioned(n, rng):
    "Singular values from 1 to 10, of any order."
    U, V = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
    return U * np.linspace(1, 10, n) @ V


@pytest.mark.parametrize("seed", seeds(3, 20))
@pytest.mark.parametrize("change", MAPS)
@pytest.mark.parametrize("name", MEASURES)
def test_what_a_measure_does_not_see(name, change, seed):
    "And what it sees: every cell of the table of chapter 09, either way."
    rng = np.random.default_rng([seed, 5])
    F = rng.normal(size=(200, 6)) * np.logspace(0, -1, 6)
    X = F @ rng.normal(size=(6, 8)) + 0.1 * rng.normal(size=(200, 8)) + 1
    Y = F @ rng.normal(size=(6, 7)) + 0.2 * rng.normal(size=(200, 7)) + 1
    measure, before = MEASURES[name], MEASURES[name](X, Y)
    changed = measure(MAPS[change](X, rng), Y), measure(X, MAPS[change](Y, rng))
    for blind, after in zip(BLIND[name], changed, strict=True):
        if change in blind:
            assert after == pytest.approx(before, abs=1e-7)
        else:
            assert abs(after - before) > 1e-4


@pytest.mark.parametrize("kind", MILD)
def test_symmetric_where_they_say_so(kind):
    X, Y = make(kind, 7)
    for name in ("cka", "cca", "svcca", "procrustes"):
        if determined(name, kind, X, Y):
            assert near(name, MEASURES[name](X, Y), MEASURES[name](Y, X))


def test_two_are_not_symmetric():
    X, Y = make("relu_features", 0)
    assert abs(pwcca(X, Y) - pwcca(Y, X)) > 1e-3
    assert abs(linear_regression(X, Y) - linear_regression(Y, X)) > 0.01


@pytest.mark.parametrize("kind", [kind for kind in MILD if kind != "all_dead_side"])
def test_a_layer_is_like_itself(kind):
    X, _ = make(kind, 1)
    for name, measure in MEASURES.items():
        assert measure(X, X) == pytest.approx(0 if name == "procrustes" else 1, abs=1e-7)


def test_one_neuron_a_side_is_the_correlation():
    rng = np.random.default_rng(0)
    x = rng.normal(size=100) + 5
    y = 0.5 * x + rng.normal(size=100)
    r = np.corrcoef(x, y)[0, 1]
    X, Y = x[:, None], y[:, None]
    for measure in (cca, svcca, pwcca):
        assert measure(X, Y) == pytest.approx(abs(r), abs=1e-12)
    for measure in (cka, linear_regression):
        assert measure(X, Y) == pytest.approx(r**2, abs=1e-12)
    assert procrustes(X, Y) == pytest.approx(math.acos(abs(r)), abs=1e-12)


def test_squares_are_means_of_squares():
    X, Y = make("relu_features", 0)
    rho, _ = by_qr(X, Y)
    assert cca(X, Y, squared=True) == pytest.approx((rho**2).mean(), abs=1e-10)


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_the_share_of_svcca(share):
    X, Y = make("gaussian", 4)
    a, b = (leading(Z, share) if share < 1 else basis(centred(Z)) for Z in (X, Y))
    plainly = np.linalg.svd(a.T @ b, compute_uv=False).mean()
    assert svcca(X, Y, share=share) == pytest.approx(plainly, abs=1e-9)


def test_all_components_are_those_that_count():
    "With share=1 a direction that is rounding does not count."
    X = np.random.default_rng(0).normal(size=(400, 2)) * [1, 1e-7]
    Y = np.random.default_rng(1).normal(size=(400, 2))
    assert svcca(X, Y, share=1) == pytest.approx(svcca(X[:, :1], Y, share=1), abs=1e-9)


def test_procrustes_is_a_metric():
    "The triangle inequality, on layers near and far, of different widths."
    rng = np.random.default_rng(1)
    for _ in range(200):
        F = rng.normal(size=(30, 4))
        layers = [
            F @ rng.normal(size=(4, n)) + rng.choice([0.01, 0.3, 3]) * rng.normal(size=(30, n))
            for n in rng.integers(1, 9, 3)
        ]
        ab, bc, ac = (procrustes(layers[i], layers[j]) for i, j in ((0, 1), (1, 2), (0, 2)))
        assert ac <= ab + bc + 1e-9


# What is odd


def test_large_means_cost_nothing():
    X, Y = make("relu_features", 5)
    for measure in MEASURES.values():
        assert measure(X + 1e6, Y - 3e6) == pytest.approx(measure(X, Y), abs=1e-7)


def test_extreme_scales():
    X, Y = make("relu_features", 6)
    for measure in MEASURES.values():
        for factor in (1e-120, 1e120):
            assert measure(factor * X, Y / factor) == pytest.approx(measure(X, Y), abs=1e-9)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=list(MEASURES))
def test_constant_layers_have_no_number(measure):
    X, _ = make("gaussian", 0)
    for Y in (np.zeros((len(X), 2)), np.full((len(X), 3), 0.1)):
        assert math.isnan(measure(X, Y)) and math.isnan(measure(Y, X))
    assert math.isnan(measure(X[:1], X[:1]))


@pytest.mark.parametrize("measure", [cca, pwcca, linear_regression])
def test_too_few_samples_are_said(measure):
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(10, 4)), rng.normal(size=(10, 12))
    with pytest.warns(SubmatchWarning, match="neurons of Y span all 9 dimensions that 10 samples"):
        assert measure(X, Y) == pytest.approx(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(*rng.normal(size=(2, 40, 5)))


@pytest.mark.parametrize("measure", MEASURES.values(), ids=list(MEASURES))
def test_bad_input_is_named(measure):
    X, Y = make("gaussian", 0)
    with pytest.raises(ValueError, match="X has .* samples and Y has"):
        measure(X, Y[:-1])
    with pytest.raises(TypeError, match="Y is missing"):
        measure(X)
    with pytest.raises(TypeError, match="X holds the moments of both networks"):
        measure(Moments(X, Y), Y)
    with pytest.raises(ValueError, match="layer 'fc' has no moments"):
        measure(Layer("fc", ("fc", "fc"), "unit"))
    with pytest.raises(ValueError, match="X: neuron 0 is nan at sample 2"):
        measure(np.where(np.arange(len(X))[:, None] == 2, np.nan, X), Y)


@pytest.mark.parametrize("share", [0, -1, 1.5, math.nan])
def test_a_share_is_a_share(share):
    with pytest.raises(ValueError, match="share is"):
        svcca(*make("gaussian", 0), share=share)


# Other packages, where they are installed


def layers_for_packages():
    rng = np.random.default_rng(3)
    F = rng.normal(size=(80, 5))
    return [
        F @ rng.normal(size=(5, n)) + noise * rng.normal(size=(80, n))
        for n, noise in ((9, 0.3), (7, 0.5))
    ]


@pytest.mark.parametrize("scale", [1e-200, 1e200])
@pytest.mark.parametrize("name", MEASURES)
def test_what_is_too_large_to_square_is_refused_with_a_remedy_that_keeps_the_number(name, scale):
    X, Y = np.random.default_rng(0).normal(size=(2, 40, 3)) * [1, 10, 100]
    with pytest.raises(ValueError, match="divide those of each network by their largest value"):
        MEASURES[name](Moments(X * scale, Y))
    smaller = X * scale / np.abs(X * scale).max()
    assert MEASURES[name](Moments(smaller, Y)) == pytest.approx(MEASURES[name](Moments(X, Y)))


def test_rsatoolbox_says_the_same():
    "Its Bures similarity is the cosine of the Procrustes angle, its whitened cosine linear CKA."
    rsatoolbox = pytest.importorskip("rsatoolbox", reason="pip install rsatoolbox")
    X, Y = layers_for_packages()
    of = [rsatoolbox.rdm.calc_rdm(rsatoolbox.data.Dataset(Z), method="euclidean") for Z in (X, Y)]
    said = {m: rsatoolbox.rdm.compare(*of, method=m).item() for m in ("bures", "cosine_cov")}
    assert math.cos(procrustes(X, Y)) == pytest.approx(
        said["bures"], abs=1e-6
    )  # roots of eigenvalues
    assert cka(X, Y) == pytest.approx(said["cosine_cov"], abs=1e-9)


def test_repsim_says_the_same():
    "Pillai's is the mean of ρ, Yanai's that of ρ², and PWCCA the mean of both directions."
    repsim = pytest.importorskip("repsim", reason="pip install repsim, with a C++ compiler")
    X, Y = layers_for_packages()
    said = {
        cka(X, Y): repsim.cka([X, Y], "linear", "gretton"),
        cca(X, Y): repsim.cca([X, Y], "pillai"),
        cca(X, Y, squared=True): repsim.cca([X, Y], "yanai"),
        (pwcca(X, Y) + pwcca(Y, X)) / 2: repsim.pwcca([X, Y]),
    }
    for ours, theirs in said.items():
        assert ours == pytest.approx(theirs[0, 1], abs=1e-9)


# Which layer is it?


def planted(networks=3, seed=0, noise=0.3):
    "Layers (200, n) of several networks, which share the features of each layer."
    rng = np.random.default_rng(seed)
    features = {f"layer{k}": rng.normal(size=(200, 5)) for k in range(4)}
    found = []
    for _ in range(networks):
        widths = dict(zip(features, (6, 9, 7, 8), strict=True))
        found.append(
            {
                name: F @ rng.normal(size=(5, widths[name]))
                + noise * rng.normal(size=(200, widths[name]))
                for name, F in features.items()
            }
        )
    return found


def crossed(networks):
    "All pairs of networks, every layer with every layer."
    pairs = combinations(range(len(networks)), 2)
    return Comparisons(
        {
            (a, b): compare_activations(networks[a], networks[b], "cross", progress=False)
            for a, b in pairs
        }
    )


@pytest.fixture(scope="module")
def three():
    return crossed(planted())


NAMES = [
    *MEASURES,
    "half",
    "area",
    "similarity ε=0.5",
    "similarity epsilon=0.5",
    "half centred",
    "area centred",
    "similarity ε=0.5 centred",
]


@pytest.mark.parametrize("measure", NAMES)
def test_planted_layers_are_found(three, measure):
    found = identify_layers(three, measure)
    assert found.queries == 3 * 2 * 4 and found.hits == found.queries and found.accuracy == 1
    assert found.table.loc["layer2"].to_dict() == {**dict.fromkeys(found.table, 0), "layer2": 6}


@pytest.mark.parametrize("measure", [*MEASURES, "half"])
def test_unrelated_layers_are_found_by_chance(measure):
    "A quarter of the queries at most a few times too often."
    rng = np.random.default_rng(5)
    networks = [
        {name: rng.normal(size=Z.shape) for name, Z in layers.items()} for layers in planted(6)
    ]
    found = identify_layers(crossed(networks), measure)
    assert found.queries == 120 and found.hits < 60


@pytest.mark.parametrize("name", ORACLES)
def test_identification_by_hand(name):
    "The loops written out, with the oracles; layers that are hard to tell apart."
    rng = np.random.default_rng(2)
    common = rng.normal(size=(60, 4))
    networks = []
    for _ in range(3):
        layers, Z = {}, common
        for k, n in enumerate((5, 7, 6)):
            Z = Z + 0.4 * rng.normal(size=Z.shape)
            layers[f"l{k}"] = Z @ rng.normal(size=(4, n)) + 0.2 * rng.normal(size=(60, n))
        networks.append(layers)
    hits, sign = 0, -1 if name == "procrustes" else 1
    for one, other in permutations(networks, 2):
        for asked, X in one.items():
            values = {layer: sign * ORACLES[name](X, Y) for layer, Y in other.items()}
            hits += max(values, key=values.get) == asked
    found = identify_layers(crossed(networks), name)
    assert (found.hits, found.queries) == (hits, 18)
    assert 0 < found.hits < 18 or name == "cka"


def test_ties_are_no_answer():
    networks = planted(2)
    for layers in networks:
        layers["layer1"] = 3 * layers["layer0"] @ np.eye(6, 6)[::-1]
    found = identify_layers(crossed(networks), "cka")
    assert found.table.loc[["layer0", "layer1"], "none"].tolist() == [2, 2] and found.hits == 4
    assert (found.table.sum(axis=1) == 2).all()
    nothing = identify_layers(crossed(networks), lambda layer: 0.5)
    assert nothing.hits == 0 and (nothing.table["none"] == 2).all()


def test_what_is_no_number_is_no_answer():
    networks = planted(2)
    for layers in networks:
        layers["layer3"] = np.ones_like(layers["layer3"])
    found = identify_layers(crossed(networks), "cka")
    assert found.hits == 6 and found.table.loc["layer3", "none"] == 2


def test_one_comparison_is_no_identification():
    X, Y = make("relu_features", 8)
    with pytest.raises(TypeError, match="several networks, by pair, not one comparison: compare_"):
        identify_layers(compare_activations(X, Y, progress=False), "cka")


def test_the_numbers_that_names_stand_for():
    X, Y = make("relu_features", 8)
    plain, affine = epsilon_profile(X, Y), epsilon_profile(X, Y, center=True)
    layer = compare_activations(X, Y, progress=False)["a ~ b"]
    for profile, end in ((plain, ""), (affine, " centred")):
        assert value_of(f"half{end}")(layer) == pytest.approx(profile.half, abs=1e-7)
        assert value_of(f"area{end}")(layer) == pytest.approx(profile.area, abs=1e-7)
        for e in (0.3, 0.9):
            assert value_of(f"similarity ε={e}{end}")(layer) == profile.similarity(e)
    assert plain.half < affine.half - 0.01
    assert value_of("cca")(layer) == pytest.approx(cca(X, Y), abs=1e-9)


def test_sampled_positions_give_the_mean_of_the_draws():
    rng = np.random.default_rng(0)
    profiles = tuple(epsilon_profile(*rng.normal(size=(2, 30, 4))) for _ in range(3))
    layer = Layer("c", ("c", "c"), "channel", profile=profiles[0], profiles=profiles)
    assert value_of("half")(layer) == pytest.approx(np.mean([p.half for p in profiles]))


def test_a_function_of_a_layer(three):
    by_name = identify_layers(three, "cca")
    assert identify_layers(three, lambda layer: cca(layer)).table.equals(by_name.table)
    away = identify_layers(three, lambda layer: -cca(layer))
    assert away.hits == 0


@pytest.mark.parametrize(
    "measure", ["CKA", "half ", "similarity", "similarity ε=x", "cka centred", ""]
)
def test_a_measure_that_is_none(three, measure):
    with pytest.raises(ValueError, match="measure is|could not convert"):
        identify_layers(three, measure)


@pytest.mark.parametrize("epsilon", ["1.5", "-1", "nan"])
def test_an_epsilon_that_is_none(three, epsilon):
    with pytest.raises(ValueError, match="outside"):
        identify_layers(three, f"similarity ε={epsilon}")


def test_layers_over_different_samples_are_refused():
    def network(n):
        torch.manual_seed(n)
        return torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(256, 5),
            torch.nn.ReLU(),
        )

    images = torch.randn(50, 1, 8, 8)
    networks = [network(0), network(1)]
    pooled = compare_all(networks, images, "cross", progress=False)
    with pytest.raises(ValueError, match=r'over 3,200 samples .* over 50 .*positions="mean"'):
        identify_layers(pooled, "cka")
    alike = compare_all(networks, images, "cross", positions="mean", progress=False)
    assert identify_layers(alike, "cka").queries == 4


def test_layers_that_did_not_meet_are_refused():
    a, b = planted(2)
    diagonal = Comparisons({(0, 1): compare_activations(a, b, progress=False)})
    with pytest.raises(ValueError, match="each met every layer"):
        identify_layers(diagonal, "cka")
    renamed = {f"{name}x": Z for name, Z in b.items()}
    other = Comparisons({(0, 1): compare_activations(a, renamed, "cross", progress=False)})
    with pytest.raises(ValueError, match="each met every layer"):
        identify_layers(other, "cka")
    one = Comparisons({(0, 1): compare_activations(a["layer0"], b["layer0"], progress=False)})
    with pytest.raises(ValueError, match="each met every layer"):
        identify_layers(one, "cka")


def test_what_a_file_without_moments_can_tell(three, tmp_path):
    three.save(tmp_path / "three.safetensors")
    loaded = Comparisons.load(tmp_path / "three.safetensors")
    assert identify_layers(loaded, "half").table.equals(identify_layers(three, "half").table)
    for measure in ("cka", "pwcca", "half centred"):
        with pytest.raises(ValueError, match="layer 'layer0' has no moments"):
            identify_layers(loaded, measure)


# Network against network


def test_networks_and_their_measure(three):
    first, second = planted()[:2]
    found = three.networks("pwcca", "layer1")
    assert found.loc[0, 1] == pytest.approx(pwcca(first["layer1"], second["layer1"]), abs=1e-9)
    assert found.loc[1, 0] == pytest.approx(pwcca(second["layer1"], first["layer1"]), abs=1e-9)
    assert found.to_numpy().diagonal().tolist() == pytest.approx([math.nan] * 3, nan_ok=True)
    similar = three.networks("similarity ε=0.5", "layer1")
    assert similar.loc[0, 2] == similar.loc[2, 0] == three[0, 2].similarity("layer1", 0.5)
    with pytest.raises(KeyError, match="no layer 'layer9'"):
        three.networks("cka", "layer9")


@pytest.mark.parametrize("measure", ["procrustes", "cka", "cca"])
def test_distances_are_metrics(measure):
    rng = np.random.default_rng(0)
    F = rng.normal(size=(30, 4))
    widths = rng.integers(1, 9, 12)
    networks = [
        {"fc": F @ rng.normal(size=(4, n)) + rng.choice([0.01, 0.3, 3]) * rng.normal(size=(30, n))}
        for n in widths
    ]
    networks[1] = {"fc": networks[0]["fc"] @ np.linalg.qr(rng.normal(size=(widths[0],) * 2))[0]}
    pairs = {
        (a, b): compare_activations(networks[a], networks[b], progress=False)
        for a, b in combinations(range(12), 2)
    }
    d = Comparisons(pairs).distances(measure, "fc").to_numpy()
    assert (d == d.T).all() and (d.diagonal() == 0).all() and d[0, 1] < 1e-6
    assert (d[2:, 0] > 1e-3).all()
    for a, b, c in permutations(range(12), 3):
        assert d[a, c] <= d[a, b] + d[b, c] + 1e-9


def test_the_mean_correlation_alone_is_no_metric():
    "Why the angle divides by both ranks: a span in a larger one would be at distance 0."
    X = np.random.default_rng(0).normal(size=(50, 6))
    assert cca(X[:, :2], X) == pytest.approx(1)
    assert cca_angle(Moments(X[:, :2], X)) == pytest.approx(math.acos(math.sqrt(2 / 6)))


def test_a_distance_that_is_none(three):
    with pytest.raises(ValueError, match='measure is .pwcca.: use "procrustes" or "cka" or "cca"'):
        three.distances("pwcca", "layer0")
