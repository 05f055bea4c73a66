"""Exact matches as a graph, the certified angle, stability, uniqueness of all neurons at once: on
hostile instances and bad input.
"""

import math
import re
from itertools import combinations

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import KINDS, MILD, Oracle, between, float_residual2, make, marked, neurons
from scipy.linalg import subspace_angles
from tqdm import auto as tqdm_auto

from submatch_nb import (
    Moments,
    are_unique,
    exact_simple_matches,
    find_unstable,
    independence_angle,
    is_stable,
    is_unique,
    maximum_match,
    minimal_matches,
    necessary,
    simple_matches,
)
from submatch_nb.engine.inputs import SubmatchWarning
from submatch_nb.engine.peel import start
from submatch_nb.engine.search import name_neuron
from submatch_nb.maximum import epsilon_profile
from submatch_nb.neurons import residuals
from submatch_nb.structure import (
    STABLE_UP_TO,
    dependency_graph,
    intersection_factor,
    missed_without,
    plot_dependencies,
    reachable,
)

pytestmark = pytest.mark.filterwarnings("ignore::submatch_nb.SubmatchWarning")
SEEDS = st.integers(0, 10**6)
COEFFICIENTS = (
    "exact simple matches are read off coefficients, which are unique only if the matched neurons"
    " of each network are linearly independent"
)


def layered(seed, n=8, d=40):
    """Independent neurons with a planted exact match: each y is a sparse mixture of x's, in
    shuffled order; a few neurons match nothing.
    """
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, n + 1))
    mix = np.triu(rng.choice([0, 0, 0, 1, -2], (k, k)), 1) + np.eye(k)
    for i in range(0, k - 1, 3):
        mix[i + 1, i] = rng.choice([0, 1])
    if np.linalg.cond(mix) > 1e3:
        mix = np.eye(k)
    B = rng.normal(size=(d, k))
    X, Y = (
        np.concatenate([Z, rng.normal(size=(d, int(rng.integers(0, 3))))], 1) for Z in (B, B @ mix)
    )
    return tuple(rng.permutation(Z * 10 ** rng.uniform(-3, 3, Z.shape[1]), axis=1) for Z in (X, Y))


@settings(max_examples=60)
@given(seed=SEEDS)
def test_the_graph_gives_what_trying_every_subset_gives(seed):
    X, Y = layered(seed)
    found = exact_simple_matches(X, Y)
    assert list(found.neurons) == list(maximum_match(X, Y, 0)) and len(found)
    for v in found.neurons:
        every = minimal_matches(X, Y, v, 0)
        assert every.complete and found.of(v) == list(every)
    moments, swapped = exact_simple_matches(Moments(X, Y)), exact_simple_matches(Y, X)
    assert set(found) == set(moments) == set(exact_simple_matches(torch.tensor(X), torch.tensor(Y)))
    assert {neurons(m) for m in found} == {
        frozenset(("yx"["xy".index(s)], i) for s, i in m) for m in swapped
    }


@settings(max_examples=20)
@given(seed=SEEDS)
def test_arrows_of_the_search_are_those_of_the_graph(seed):
    "At epsilon 0, with independent neurons: in both, v -> u says that v needs u."
    X, Y = layered(seed)
    peel, n, _ = start(X, Y)
    peel.down_to(0)
    graph = dependency_graph(X, Y)
    needed_by = peel.arrows(0)  # row u, column w: w is lost without u
    names = [name_neuron(v, n) for v in peel.ids.tolist()]
    found = {(names[w], names[u]) for u, w in needed_by.nonzero().tolist()}
    assert found == set(graph.edges)


@pytest.mark.mutate
def test_no_exact_match():
    rng = np.random.default_rng(0)
    assert list(exact_simple_matches(rng.normal(size=(20, 3)), rng.normal(size=(20, 4)))) == []
    assert list(exact_simple_matches(np.zeros((20, 3)), rng.normal(size=(20, 4)))) == []


@pytest.mark.mutate
def test_reach_of_a_chain_and_a_cycle():
    graph = nx.DiGraph([(0, 1), (1, 2), (2, 1), (2, 3), (4, 4)])
    assert reachable(graph) == {0: {0, 1, 2, 3}, 1: {1, 2, 3}, 2: {1, 2, 3}, 3: {3}, 4: {4}}


@pytest.mark.mutate
@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("side, names", [("x", "[012]"), ("y", "[012]")])
def test_dependent_neurons_are_named(moments, side, names):
    "Only where they are in the match: the third neuron of a plane, on either side."
    rng = np.random.default_rng(1)
    B = rng.normal(size=(30, 2))
    three, two, alone = (
        B @ rng.normal(size=(2, 3)),
        B @ rng.normal(size=(2, 2)),
        rng.normal(size=(30, 1)),
    )
    X, Y = (three, two) if side == "x" else (two, three)
    first = (Moments(X, Y),) if moments else (X, Y)
    with pytest.raises(
        ValueError,
        match=(
            rf"^{COEFFICIENTS}: {side}{names} is only \d\.\de-\d+ of its length away .* 2 matched"
            rf" neurons of {side}.*simple_matches\(X, Y, 0\)"
        ),
    ):
        exact_simple_matches(*first)
    apart = (
        np.hstack([X, alone, 2 * alone]),
        np.hstack([Y[:, :1], rng.normal(size=(30, 1))]),
    )  # dependent, and in no match
    assert len(exact_simple_matches(*apart)) == len(maximum_match(*apart, 0)) == 0


@pytest.mark.mutate
def test_more_matched_neurons_than_samples():
    rng = np.random.default_rng(2)
    with pytest.raises(ValueError, match="linearly independent: [xy]"):
        exact_simple_matches(rng.normal(size=(3, 5)), rng.normal(size=(3, 4)))


@pytest.mark.mutate
def test_another_epsilon_is_refused():
    X = np.eye(3)
    with pytest.raises(ValueError, match=r"those at epsilon = 0, not 0\.3.*simple_matches"):
        exact_simple_matches(X, X, 0.3)
    for epsilon in (-1, 1.5, math.nan):  # no advice that would fail too
        with pytest.raises(ValueError, match="epsilon is"):
            exact_simple_matches(X, X, epsilon)
    with pytest.raises(ValueError, match=r"neuron 1 is nan at sample 2"):
        exact_simple_matches(np.array([[1, 0], [0, 1], [0, np.nan]]), X)
    with pytest.raises(ValueError, match="same inputs"):
        exact_simple_matches(X[:2], X)
    with pytest.raises(TypeError, match="X holds the moments of both"):
        exact_simple_matches(Moments(X, X), 0.3)


# The angle


def by_enumeration(Z):
    n = Z.shape[1]
    parts = [list(p) for k in range(1, n) for p in combinations(range(n), k) if 0 in p]
    return min(subspace_angles(Z[:, p], np.delete(Z, p, 1)).min() for p in parts)


@pytest.mark.parametrize("kind", marked(KINDS))
@settings(max_examples=4)
@given(seed=SEEDS)
def test_the_angle_is_a_lower_bound(kind, seed):
    for Z in make(kind, seed):
        Z = Z[:, Z.any(0)][:, :6]
        if Z.shape[1] < 2:
            continue
        Z = Z / np.linalg.norm(Z, axis=0)
        bound = independence_angle(Z)
        assert 0 <= bound <= np.pi / 2
        if bound:
            assert bound <= by_enumeration(Z) + 1e-7
        else:
            assert np.linalg.svd(Z, compute_uv=False)[-1] < 1e-12 or Z.shape[1] > len(Z)
        assert np.isclose(independence_angle(Z * np.logspace(-3, 3, Z.shape[1])), bound, rtol=1e-6)


@pytest.mark.mutate
def test_angles_that_are_known():
    for degrees in (1e-3, 5, 45, 89, 90):
        a = np.radians(degrees)
        assert np.isclose(
            independence_angle(np.array([[1, np.cos(a)], [0, np.sin(a)]])), a, rtol=1e-6
        )
    assert independence_angle(np.ones((4, 1))) == np.pi / 2
    assert (
        np.pi / 2 - 1e-12 < independence_angle(np.hstack([np.eye(4), np.zeros((4, 2))])) < np.pi / 2
    )  # dead ones are left out, rounding taken off
    for n in range(2, 50):
        assert (
            independence_angle(
                np.random.default_rng(n).normal(size=(60, 1))
                @ np.random.default_rng(n).normal(size=(1, n))
            )
            == 0
        )
    assert (
        independence_angle(np.ones((4, 2))) == 0 == independence_angle(np.eye(3)[:, [0, 1, 2, 0]])
    )
    for a in (1e-10, 1e-12, 1e-13):
        assert (
            0.97 * a < independence_angle(np.array([[1, 1], [0, a]])) < a
        )  # what rounding can hide is taken off, not added
    assert (
        np.isclose(intersection_factor(np.pi / 6), 5)
        and intersection_factor(np.pi / 2) == 3
        and intersection_factor(0) == np.inf
    )


@pytest.mark.mutate
def test_what_has_no_angle():
    with pytest.raises(
        ValueError,
        match=(
            "^X: every neuron is dead, 0 on every sample, and theta-strong independence is about"
            " non-zero vectors$"
        ),
    ):
        independence_angle(np.zeros((4, 2)))
    with pytest.raises(TypeError, match="not an array of activations"):
        independence_angle(0.3)
    with pytest.raises(
        TypeError,
        match=(
            "^X holds moments of two networks: an angle is certified from the activations of one$"
        ),
    ):
        independence_angle(Moments(np.eye(3), np.eye(3)))
    for theta in (-0.1, 2, np.nan):
        with pytest.raises(ValueError, match="theta is .*radians"):
            intersection_factor(theta)


# Stability


def leaning(residual):
    "x0 leans from y0 towards y1 and y2; x1 = y1, x2 = y2."
    X = np.eye(3)
    X[1:, 0] = residual / np.sqrt(2 * (1 - residual**2))
    return X, np.eye(3)


@pytest.mark.parametrize("kind", marked(MILD))
@settings(max_examples=4)
@given(seed=SEEDS)
def test_stable_where_no_residual_on_any_subset_is_in_between(kind, seed):
    X, Y = (Z[:, :4] for Z in make(kind, seed))
    oracle, rng = Oracle(X, Y, float_residual2), np.random.default_rng(seed)
    levels = [0, *sorted({r2 for r2 in oracle.r2.values() if r2 > 1e-9}), 1]
    for epsilon in (rng.uniform(0, 0.5), rng.choice(levels) ** 0.5 * 0.999, 0):
        factor = rng.uniform(1.01, 4)
        low2, high2 = epsilon**2, (factor * epsilon) ** 2
        if any(
            abs(r2 - edge) < 1e-8 for r2 in oracle.r2.values() for edge in (low2, high2) if edge
        ):
            continue
        expected = {vS for vS, r2 in oracle.r2.items() if low2 < r2 <= high2}
        for first in ((X, Y), (Moments(X, Y),)):
            found = list(find_unstable(*first, epsilon=epsilon, factor=factor))
            assert {(u.v, frozenset(u.others)) for u in found} == expected
            assert len(found) == len(expected)
            for u in found:
                r2 = oracle.r2[u.v, frozenset(u.others)]
                assert abs(u.residual - r2**0.5) < 1e-6
            assert is_stable(*first, epsilon=epsilon, factor=factor) == (not expected)


@pytest.mark.mutate
def test_one_that_satisfies_the_corollary_and_one_that_just_misses_it():
    for residual, stable, several in ((0.099, True, False), (0.101, False, True)):
        X, Y = leaning(residual)
        factor = intersection_factor(min(map(independence_angle, (X, Y))))
        assert is_stable(X, Y, 0.1, factor) == is_stable(Y, X, 0.1, factor) == stable
        assert is_stable(Moments(X, Y), epsilon=0.1, factor=factor) == stable
        assert (len(minimal_matches(X, Y, ("x", 0), 0.1)) > 1) == several
        assert all(are_unique(X, Y, 0.1).values()) != several
    found = list(find_unstable(X, Y, 0.1, factor))
    assert [(u.v, u.others) for u in found] == [(("y", 0), (("x", 0),)), (("x", 0), (("y", 0),))]
    assert all(abs(u.residual - 0.101) < 1e-12 for u in found)


@pytest.mark.mutate
def test_both_ends_of_what_stability_forbids():
    "epsilon itself is allowed, factor * epsilon is not; the empty subset counts; 0 is stable."
    X, Y = np.eye(2)[:, :1], np.array([[0.8], [0.6]])
    assert is_stable(X, Y, 0.6, 1.5) and not is_stable(X, Y, 0.599, 1.5)
    assert not is_stable(X, Y, 0.3, 2) and is_stable(X, Y, 0.3, 1.99)
    assert is_stable(X, X, 0.4, 2.4) and not is_stable(X, X, 0.4, 2.5)  # residual 1 on nothing
    ((v, others, residual), *_) = find_unstable(X, X, 0.4, 2.5)
    assert (v, others, residual) == (("y", 0), (), 1)
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(2, 20, 3))
    assert is_stable(A, B, 0, 1e9) and is_stable(A, B, 0, math.inf)
    assert not is_stable(A, B, 0.1, math.inf)
    dead = np.hstack([np.eye(2)[:, :1], np.zeros((2, 1))])
    assert is_stable(dead, Y, 0.6, 1.5) and not is_stable(dead, Y, 0.599, 1.5)


@pytest.mark.mutate
@pytest.mark.parametrize("f", [find_unstable, is_stable])
def test_what_stability_is_not_tried_on(f):
    X, Y = leaning(0.1)
    for factor in (1, 0.5, -2, math.nan, None, "2"):
        with pytest.raises(ValueError, match=rf"^factor is {factor!r}: a number above 1"):
            f(X, Y, 0.1, factor)
    for epsilon, error in ((1, ValueError), (None, TypeError)):
        with pytest.raises(error, match="epsilon is"):
            f(X, Y, epsilon, 2)
    with pytest.raises(TypeError, match="Y is missing"):
        f(X, epsilon=0.1, factor=2)
    n = STABLE_UP_TO + 1
    wide = np.eye(n + 1)[:, :n]
    for first in ((wide, wide[:, :2]), (wide[:, :2], wide)):
        with pytest.raises(ValueError, match=rf"{n} live neurons.*at most {STABLE_UP_TO} a side"):
            f(*first, 0.1, 2)


# Uniqueness of every neuron


@pytest.mark.parametrize("kind", marked(MILD))
@settings(max_examples=3)
@given(seed=SEEDS)
def test_what_every_match_needs(kind, seed):
    "N(v) is the intersection of all matches with v; unique where there is one v-minimal match."
    X, Y = (Z[:, :4] for Z in make(kind, seed))
    oracle = Oracle(X, Y, float_residual2)
    for epsilon in list(between(epsilon_profile(X, Y).breakpoints, 1e-5))[:6]:
        for first in ((X, Y), (Moments(X, Y),)):
            need, unique = necessary(*first, epsilon=epsilon), are_unique(*first, epsilon=epsilon)
            assert set(need) == set(unique) == oracle.maximum(epsilon**2)
            for v in need:
                assert neurons(need[v]) == frozenset.intersection(
                    *(M for M in oracle.matches(epsilon**2) if v in M)
                )
                assert unique[v] == (len(oracle.minimal(v, epsilon**2)) == 1)


@pytest.mark.parametrize("kind", KINDS)
def test_all_at_once_is_one_by_one(kind):
    X, Y = make(kind, 3)
    for epsilon in (0, 0.1, 0.4):
        unique = are_unique(X, Y, epsilon)
        assert list(unique) == list(maximum_match(X, Y, epsilon))
        assert unique == {v: is_unique(X, Y, v, epsilon) for v in unique}


@pytest.mark.mutate
@pytest.mark.parametrize("f", [necessary, are_unique])
def test_bad_input_and_chance(f):
    X, Y = make("planted_groups", 0)
    for epsilon, error in (
        (1, ValueError),
        (-0.1, ValueError),
        (np.nan, ValueError),
        ("0.3", TypeError),
        (None, TypeError),
    ):
        with pytest.raises(error, match="epsilon is"):
            f(X, Y, epsilon)
    with pytest.raises(TypeError, match="Y is missing"):
        f(X, epsilon=0.3)
    with pytest.raises(TypeError, match="Y is left out"):
        f(Moments(X, Y), Y, 0.3)
    with pytest.warns(SubmatchWarning, match="at or above the Gaussian chance level"):
        f(X, Y, 0.99)


@pytest.mark.mutate
@pytest.mark.parametrize(
    "call, desc",
    [
        (necessary, "dropping each neuron"),
        (are_unique, "dropping each neuron"),
        (simple_matches, "simple matches"),
    ],
)
def test_progress_is_shown_late_and_in_full_and_then_goes(call, desc, monkeypatch):
    bars = []
    tqdm = tqdm_auto.tqdm

    def noted(*items, **how):
        bar = tqdm(*items, **how)
        bars.append((bar, how))
        return bar

    monkeypatch.setattr(tqdm_auto, "tqdm", noted)
    X, Y = make("planted_groups", 0)
    call(*(Z[:, :5] for Z in (X, Y)), epsilon=0.3)
    ((bar, how),) = bars
    late = {"desc": desc, "unit": " neurons", "delay": 2, "leave": False}
    assert how.items() >= late.items()
    assert bar.n == bar.total > 1


# The errors of the exact case


@pytest.mark.mutate
@pytest.mark.parametrize("m", [8, 3])
def test_the_error_names_a_neuron_that_depends_on_others(m):
    "x0 is orthogonal to the rest; x1 and x2 are alike, or among more neurons than dimensions."
    e = np.eye(m)
    X = e[:, [0, 1, 1]] if m == 8 else np.c_[e[:, 0], [0, 1, 2], [0, 1, 3], [0, 1, 4]]
    Y = e[:, :2] if m == 8 else e
    with pytest.raises(
        ValueError,
        match=r"independent: x[123] is only \d\.\de-\d+|independent: x[123] is only 0\.0e\+00",
    ):
        exact_simple_matches(X, Y)


@pytest.mark.mutate
def test_the_error_says_how_near_and_what_counts_as_0():
    """x3 = x4 within what counts as 0, which no other neuron is near; x0 and x1 are nearer to each
    other than any coefficient needs to be known, and independent.
    """
    rng, e = np.random.default_rng(0), np.eye(9)
    for near, far, handed in (
        (5e-12, 1e-9, lambda *both: both),
        (5e-7, 2e-5, lambda *both: (Moments(*both),)),
    ):
        X = np.stack([e[0], e[0] + far * e[1], e[2], e[3], e[3] + near * e[4], e[5]], 1) @ np.diag(
            rng.uniform(1, 9, 6)
        )
        with pytest.raises(ValueError, match=COEFFICIENTS) as error:
            exact_simple_matches(*handed(X, X[:, ::-1]))
        named, length, zero = re.search(
            r": ([xy]\d) is only (\S+) of its length away .* up to (\S+) counts as 0",
            str(error.value),
        ).groups()
        assert (
            named in ("x3", "x4")
            and near * 0.69 < float(length) < near * 1.05
            and near < float(zero) < far
        )


@pytest.mark.mutate
def test_the_error_names_one_of_those_that_cancel_whatever_rounding_does():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        B = np.linalg.qr(rng.normal(size=(20, 6)))[0]
        X = np.c_[B[:, :3], B[:, 3:] @ rng.normal(size=(3, 4))] @ np.diag(rng.uniform(1, 9, 7))
        with pytest.raises(ValueError, match=r"independent: x[3456] is only .*-1[5-9] of"):
            exact_simple_matches(X, B)


@pytest.mark.mutate
def test_what_each_would_miss():
    "The residual of each without one own neuron, and how far that one is from the rest."
    rng = np.random.default_rng(0)
    own = rng.normal(size=(12, 5))
    own /= np.linalg.norm(own, axis=0)
    others = own @ rng.choice([0, 1, -2], (5, 7)) + 1e-3 * own[:, :1]
    others /= np.linalg.norm(others, axis=0)
    missed, distance = missed_without(*map(torch.as_tensor, (own, others)))
    for u in range(5):
        rest = np.delete(own, u, 1)
        np.testing.assert_allclose(missed[:, u], residuals(others, rest), atol=1e-13)
        np.testing.assert_allclose(distance[u], residuals(own[:, [u]], rest)[0], atol=1e-13)


@pytest.mark.mutate
def test_a_small_coefficient_is_one():
    "y0 = x0 + 1e-9 x1; and neurons 1e-9 apart are independent."
    e = np.eye(3)
    found = exact_simple_matches(e[:, :2], np.stack([e[0] + 1e-9 * e[1], e[1]], 1))
    assert [neurons(m) for m in found.of(("y", 0))] == [
        {("x", 0), ("x", 1), ("y", 0), ("y", 1)}
    ] and len(found.of(("y", 1))[0]) == 2
    X = np.stack([e[0], e[0] + 1e-9 * e[1]], 1)
    assert [neurons(m) for m in exact_simple_matches(X, X)] == [
        {("x", 0), ("y", 0)},
        {("x", 1), ("y", 1)},
    ]


def test_the_graph_can_be_drawn():
    X, Y = layered(5)
    graph = dependency_graph(X, Y)
    axis = plot_dependencies(graph, list(graph)[0])
    assert len(axis.texts) >= len(graph)
    with pytest.raises(KeyError, match="no neuron.*its neurons: x0"):
        plot_dependencies(graph, ("x", 99))
    plt.close(axis.figure)
