"""Measures against their published formulas, written out by QR and SVD on activations.

The oracles share no code with submatch. Also: streaming equals batch, what each measure does not
see, planted layers found again, and other packages where they are installed.
"""

import math
import warnings

import numpy as np
import pytest
import torch
from conftest import seeds
from instances import CLOSENESS, KINDS, MILD, make
from scipy.linalg import orthogonal_procrustes

from submatch_nb import cca, cka, linear_regression, procrustes, pwcca, svcca
from submatch_nb.engine.canonical import Canonical
from submatch_nb.engine.inputs import SubmatchWarning
from submatch_nb.engine.layer import Layer
from submatch_nb.engine.moments import Moments
from submatch_nb.measures import MEASURES

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
    forms = [whole, streamed, layer, Canonical(whole)]
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
    X, Y = make("duplicates", 2)
    assert svcca(X, Y, share=1) == pytest.approx(cca(X, Y), abs=1e-7)


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
