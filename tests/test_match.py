"""Is a pair of sets a match: against the definition on every pair of subsets.

And matches as sets of neurons.
"""

import copy
import pickle
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import (
    MILD,
    Oracle,
    between,
    exact_residual2,
    float_residual2,
    integer_layers,
    make,
    marked,
    neurons,
)

from submatch_nb.engine.inputs import TOLERANCE, within
from submatch_nb.engine.moments import Moments
from submatch_nb.match import Match, is_match, plot_pair, toy
from submatch_nb.maximum import algorithm_1, maximum_match
from submatch_nb.neurons import residuals
from submatch_nb.simple import is_unique, minimal_match, simple_matches

SEEDS = st.integers(0, 10**6)


def split(M):
    return [[i for s, i in M if s == side] for side in "xy"]


# Against the definition


@settings(max_examples=25)
@given(integer_layers(3), st.sampled_from(["exclude", "literal"]))
def test_every_pair_of_subsets_at_every_breakpoint(layers, dead):
    X, Y = layers
    oracle = Oracle(X, Y, exact_residual2, dead)
    levels = sorted({r2 for r2 in oracle.level.values() if r2 < 1})
    for M, r2 in oracle.level.items():
        for e2 in {0, *levels[-2:], r2} & {0, *levels}:
            assert is_match(X, Y, float(e2) ** 0.5, *split(M), dead=dead) == (r2 <= e2)
        if 0 < r2 < 1:
            assert not is_match(X, Y, float(r2) ** 0.5 - 1e-9, *split(M), dead=dead)


@pytest.mark.parametrize("kind", marked(MILD))
@settings(max_examples=2)
@given(seed=SEEDS)
def test_hostile_instances(kind, seed):
    X, Y = (Z[:, :3] for Z in make(kind, seed))
    oracle = Oracle(X, Y, float_residual2)
    for M, r2 in oracle.level.items():
        for epsilon in (0, 0.3, 0.7):
            if abs(r2**0.5 - epsilon) > 1e-9 or r2 < 1e-24:
                assert is_match(X, Y, epsilon, *split(M)) == (r2 <= epsilon**2 + 1e-24)


@pytest.mark.mutate
def test_a_dead_neuron_is_in_no_match_unless_read_literally():
    X, Y = np.array([[1.0, 0], [1, 0]]), np.array([[2.0], [2]])
    assert (
        is_match(X, Y, 0, [0], [0])
        and not is_match(X, Y, 0.9, [0, 1], [0])
        and not is_match(X, Y, 0.9)
    )
    assert is_match(X, Y, 0, dead="literal") and is_match(X, Y, 0, [1], [], dead="literal")
    assert not is_match(X, Y, 0.9, [1], [])


@pytest.mark.mutate
def test_nothing_matches_nothing_and_something_never_does():
    X, Y = make("gaussian", 1)
    assert (
        is_match(X, Y, 0, [], [])
        and not is_match(X, Y, 0.99, [0], [])
        and not is_match(X, Y, 0.99, [], [0])
    )


@pytest.mark.mutate
def test_both_sides_count():
    "x lies in the plane of y0 and y1, each of which is far from it; and the other way round."
    X, Y = np.eye(3)[:, :1], np.eye(3)[:, :2]
    assert not is_match(X, Y, 0.9) and not is_match(Y, X, 0.9) and is_match(X, Y, 0, [0], [0])


@settings(max_examples=5)
@given(SEEDS)
def test_unions_of_matches_are_matches_and_matches_grow_with_epsilon(seed):
    X, Y = (Z[:, :3] for Z in make("shared_subspace", seed))
    oracle = Oracle(X, Y, float_residual2)
    for epsilon in between(np.sqrt(oracle.breakpoints2()), 1e-6):
        matches = [Match(*split(M), epsilon, 3, 3) for M in oracle.matches(epsilon**2)]
        for a in matches[:12]:
            for b in matches[-12:]:
                assert is_match(X, Y, epsilon, (a | b).x, (a | b).y)
            assert is_match(X, Y, (epsilon + 1) / 2, a.x, a.y)


@pytest.mark.mutate
def test_the_toy_is_what_it_says():
    """An exact match of a plane, an approximate one at 7/25, and x3.

    It lies in the span of two neurons that are 2/sqrt(5) away from it.
    """
    X, Y = toy()
    assert X.shape == (6, 4) and Y.shape == (6, 5) and X.dtype == Y.dtype == np.float64
    np.testing.assert_allclose(residuals(X, Y), [0, 0, 7 / 25, 0], atol=1e-15)
    np.testing.assert_allclose(residuals(Y, X), [0, 0, 7 / 25, *[2 / 5**0.5] * 2], atol=1e-15)
    for j in (0, 1):
        np.testing.assert_allclose(residuals(X[:, :2], Y[:, [j]]), 0.5**0.5)  # it takes both
    assert (
        np.linalg.matrix_rank(Y) == 5
        and is_match(X, Y, 0, [0, 1], [0, 1])
        and is_match(X, Y, 7 / 25, [2], [2])
        and not is_match(X, Y, 7 / 25 - 1e-9, [2], [2])
    )
    assert Y[:, 2].tolist() == [0, 0, 24, 7, 0, 0]  # as the chapter reads it off


@pytest.mark.mutate
def test_at_most_epsilon_has_a_relative_slack():
    assert (
        within(0) == TOLERANCE
        and 0.5 < within(0.5) < 0.5 * (1 + 2 * TOLERANCE)
        and within(1e-3) < 1e-3 + TOLERANCE / 100
    )


@pytest.mark.mutate
def test_indices_in_any_form():
    X, Y = make("planted_groups", 0)
    match = maximum_match(X, Y, 0.3)
    assert len(match.x) and len(match.y)
    for form in (
        list,
        tuple,
        np.array,
        torch.as_tensor,
        lambda i: i[::-1],
        lambda i: np.r_[i, i],
        lambda i: i.astype(np.uint8),
        lambda i: i,
    ):
        assert is_match(X, Y, 0.3, form(match.x.copy()), list(match.y))
    assert is_match(torch.as_tensor(X), Y.tolist(), 0.3, match.x, match.y)


@pytest.mark.mutate
def test_read_only_indices_pass_without_a_word():
    X, Y = make("planted_groups", 0)
    match = maximum_match(X, Y, 0.3)
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert is_match(X, Y, 0.3, match.x, match.y)
    finally:
        torch.set_warn_always(False)


# Bad input


@pytest.mark.mutate
@pytest.mark.parametrize(
    "epsilon, error, says",
    [
        (1, ValueError, r"epsilon is 1, outside \[0, 1\): at 1 every neuron matches every other$"),
        (-1, ValueError, r"epsilon is -1, outside \[0, 1\)$"),
        (1.5, ValueError, "1.5"),
        (-1e-9, ValueError, "-1e-09"),
        (np.nan, ValueError, "nan"),
        (np.inf, ValueError, "inf"),
        ("0.3", TypeError, "'0.3'"),
        (None, TypeError, "^epsilon is missing: pass it by keyword, epsilon=0.3$"),
        ([0.3], TypeError, r"\[0.3\]"),
        (0.3j, TypeError, "0.3j"),
    ],
)
def test_bad_epsilon(epsilon, error, says):
    X, Y = make("gaussian", 0)
    with pytest.raises(error, match=says):
        is_match(X, Y, epsilon)
    with pytest.raises(error, match=says):
        Match([0], [0], epsilon, 1, 1)
    with pytest.raises(error, match=says):
        plot_pair(X, Y, epsilon)


@pytest.mark.mutate
@pytest.mark.filterwarnings("ignore::submatch_nb.SubmatchWarning")
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_epsilon_of_any_precision_is_the_number_that_it_is(kind):
    "At a tie the slack decides, which float32 cannot hold."
    for k in range(1, 200, 6):
        epsilon = kind(k / 200)
        s = float(epsilon)
        X, Y = np.eye(4)[:, :1], np.array([[(1 - s**2) ** 0.5], [s], [0], [0]])
        assert within(epsilon) == within(s)
        for f in (
            maximum_match,
            lambda X, Y, epsilon: list(simple_matches(X, Y, epsilon=epsilon)),
            partial(minimal_match, v=("x", 0)),
            partial(is_unique, v=("x", 0)),
            algorithm_1,
        ):
            assert f(X, Y, epsilon=epsilon) == f(X, Y, epsilon=s)


@pytest.mark.mutate
@pytest.mark.parametrize(
    "x, error, says",
    [
        ([0, 1, 99], IndexError, "x names neuron 99, but there are {n}: 0 to {last}$"),
        ([0, -1], IndexError, "x names neuron -1, but there are {n}"),
        ([0.0], TypeError, "x must hold neuron indices, not float64"),
        ([2.9], TypeError, "not float64"),
        ([True], TypeError, "not bool"),
        (["0"], TypeError, "x must hold neuron indices"),
    ],
)
def test_bad_indices(x, error, says):
    X, Y = make("gaussian", 0)

    def of(side, n):
        return says.replace("x ", f"{side} ", 1).format(n=n, last=n - 1)

    for f in (
        *(partial(f, X, Y, 0.3) for f in (is_match, algorithm_1, plot_pair)),
        lambda x=(), y=(): Match(x, y, 0.3, X.shape[1], Y.shape[1]),
    ):
        with pytest.raises(error, match=of("x", X.shape[1])):
            f(x=x)
        with pytest.raises(error, match=of("y", Y.shape[1])):
            f(y=x)
    with pytest.raises(IndexError, match="x names neuron 3, but there are 3"):
        Match([3], [], 0.3, 3, 4)


@pytest.mark.mutate
def test_bad_activations_and_bad_dead():
    X, Y = make("gaussian", 0)
    bad = Y.copy()
    bad[3, 0] = np.nan
    for culprit, error, says in (
        (bad, ValueError, "Y: neuron 0 is nan at sample 3"),
        (Y[1:], ValueError, "samples and Y has"),
        (0.3, TypeError, "Y is 0.3"),
        (Y[:, 0], ValueError, "Y has shape"),
    ):
        with pytest.raises(error, match=says):
            is_match(X, culprit, 0.3)
    with pytest.raises(ValueError, match="dead is 'yes'"):
        is_match(X, Y, 0.3, dead="yes")
    with pytest.raises(TypeError, match="X is Moments"):
        is_match(Moments(X, Y), Y, 0.3)


@pytest.mark.mutate
def test_inputs_stay_as_they_were():
    X, Y = (torch.tensor(Z, requires_grad=True) for Z in make("dead", 0))
    before = X.detach().clone(), Y.detach().clone()
    assert isinstance(is_match(X, Y, 0.3), bool)
    assert (
        torch.equal(X.detach(), before[0]) and torch.equal(Y.detach(), before[1]) and X.grad is None
    )


# Matches as sets

PAIRS = st.tuples(st.sets(st.integers(0, 4)), st.sets(st.integers(0, 2)))


def match_of(pair, epsilon=0.3):
    return Match(sorted(pair[0], reverse=True), list(pair[1]), epsilon, 5, 3)


@pytest.mark.mutate
@given(PAIRS, PAIRS)
def test_matches_are_sets_of_neurons(p, q):
    a, b = match_of(p), match_of(q)
    A, B = neurons(a), neurons(b)
    assert {("x", i) for i in p[0]} | {("y", i) for i in p[1]} == A
    assert (
        neurons(a | b) == A | B
        and neurons(a & b) == A & B
        and (a | b).epsilon == (a & b).epsilon == 0.3
    )
    assert (a <= b, a < b, a == b, a >= b, a > b, a != b) == (
        A <= B,
        A < B,
        A == B,
        A >= B,
        A > B,
        A != B,
    )
    assert (
        len(a) == len(A)
        and list(a) == sorted(A)
        and a.similarity == len(A) / 8
        and bool(a) == bool(A)
    )
    assert (
        all(v in a for v in A)
        and not any(v in a for v in B - A)
        and ("z", 0) not in a
        and all(list(v) in a for v in A)
    )
    assert len({a, b, match_of(p)}) == len({A, B}) and hash(a) == hash(match_of(p))
    assert copy.deepcopy(a) == a == pickle.loads(pickle.dumps(a))


@pytest.mark.mutate
def test_hashes_tell_matches_apart():
    few = [Match(x, y, 0.3, 3, n_y) for x in ([], [0], [0, 2]) for y in ([], [1]) for n_y in (2, 3)]
    assert len(set(map(hash, few))) == len(few) == 12


@pytest.mark.mutate
def test_match_is_read_only_and_sorted():
    given = np.array([3, 1, 1])
    m = Match(given, torch.tensor([2, 0]), 0.3, 5, 3)
    assert m.x.tolist() == [1, 3] and m.y.tolist() == [0, 2] and m.x.dtype == m.y.dtype == np.int64
    for side in (m.x, m.y):
        with pytest.raises(ValueError, match="read-only"):
            side[0] = 4
    given[:] = 0
    assert m.x.tolist() == [1, 3]
    assert len(Match([], [], 0, 5, 3)) == 0 and Match([], [], 0, 5, 3).x.dtype == np.int64


@pytest.mark.mutate
def test_matches_that_cannot_be_joined():
    a = Match([0], [1], 0.3, 5, 3)
    with pytest.raises(ValueError, match="epsilon 0.3.*0.4"):
        a | Match([0], [1], 0.4, 5, 3)
    for f in (lambda b: a | b, lambda b: a & b, lambda b: a <= b):
        with pytest.raises(ValueError, match=r"different layers: 5 \+ 3 and 5 \+ 4"):
            f(Match([0], [1], 0.3, 5, 4))
        with pytest.raises(TypeError, match="is no Match"):
            f({("x", 0)})
    assert a != Match([0], [1], 0.3, 5, 4) and a != {("x", 0), ("y", 1)}


@pytest.mark.mutate
def test_a_match_says_what_it_is():
    assert (
        repr(Match([3, 1], [0], 0.3, 5, 3))
        == "Match(x=[1, 3], y=[0], epsilon=0.3, similarity=0.375)"
    )
    first = "0, 1, 2, 3, 4, 5, 6, 7"
    assert (
        repr(Match(range(20), range(8), 0.25, 20, 8))
        == f"Match(x=[{first}, ... 20 in all], y=[{first}], epsilon=0.25, similarity=1.000)"
    )
