"""Algorithm 1 against every pair of subsets, all that is faster against Algorithm 1.

The epsilon-profile and the maximum match, on hostile instances; and the state that both keep.
"""

import warnings

import numpy as np
import pytest
import torch
from conftest import seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import (
    CLOSENESS,
    KINDS,
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

from submatch_nb import maximum
from submatch_nb.engine import peel as engine_peel
from submatch_nb.engine.factors import UNIT
from submatch_nb.engine.inputs import TOLERANCE, SubmatchWarning
from submatch_nb.engine.moments import Moments
from submatch_nb.engine.peel import (
    CONDITION,
    condense,
    dependence,
    from_moments,
    root_of_gram,
    span_of,
    start,
    tells_apart,
)
from submatch_nb.engine.shifts import measured
from submatch_nb.match import is_match
from submatch_nb.maximum import (
    Profile,
    algorithm_1,
    epsilon_profile,
    max_match_similarity,
    maximum_match,
)
from submatch_nb.neurons import chance_epsilon, digits_layers

pytestmark = pytest.mark.filterwarnings("ignore::submatch_nb.SubmatchWarning")
SEEDS = st.integers(0, 10**6)
EPSILONS = (0, 0.15, 0.2, 0.25, 0.3, 0.5, 0.9)


def agree(X, Y, closeness, given=None):
    """The profile of `given` (X, Y itself if None) holds what Algorithm 1 finds.

    At every epsilon away from a breakpoint.
    """
    profile = epsilon_profile(X, Y) if given is None else epsilon_profile(given)
    for epsilon in between(profile.breakpoints, closeness):
        expected = algorithm_1(X, Y, epsilon)
        assert profile.match(epsilon) == expected
        assert profile.similarity(epsilon) == expected.similarity
    return profile


# Against the definition


@settings(max_examples=120)
@given(integer_layers(4))
def test_exact_at_every_breakpoint(layers):
    "In rational arithmetic on epsilon squared: the sets at each breakpoint, and just below it."
    X, Y = layers
    oracle = Oracle(X, Y, exact_residual2)
    profiles = epsilon_profile(X, Y), epsilon_profile(Moments(X, Y))
    steps = [0, *oracle.breakpoints2()]
    for side, profile in enumerate(profiles):
        for v in oracle.neurons:
            c2, got = oracle.critical2(v), getattr(profile, v[0])[v[1]]
            assert np.isinf(got) if c2 is None else abs(got - float(c2) ** 0.5) < 1e-9
        assert len(profile.breakpoints) == len(
            {oracle.critical2(v) for v in oracle.neurons} - {None}
        )
    for low, high in zip(steps, [*steps[1:], 1]):
        expected = oracle.maximum(low)
        for epsilon in {float(low) ** 0.5, float((low + high) / 2) ** 0.5}:
            if epsilon >= 1:
                continue
            found = [
                algorithm_1(X, Y, epsilon),
                maximum_match(X, Y, epsilon),
                maximum_match(Moments(X, Y), epsilon=epsilon),
            ]
            found += [profile.match(epsilon) for profile in profiles]
            assert all(neurons(match) == expected for match in found)
            assert (
                {m.similarity for m in found}
                == {len(expected) / len(oracle.neurons)}
                == {max_match_similarity(X, Y, epsilon)}
            )


@pytest.mark.mutate
@settings(max_examples=40)
@given(integer_layers(4))
def test_dead_read_literally(layers):
    X, Y = layers
    oracle = Oracle(X, Y, exact_residual2, dead="literal")
    profile = epsilon_profile(X, Y, dead="literal")
    for e2 in oracle.breakpoints2():
        for epsilon in (float(e2) ** 0.5, float((1 + e2) / 2) ** 0.5):
            expected = oracle.maximum(epsilon**2 * (1 + 1e-9))
            assert (
                neurons(algorithm_1(X, Y, epsilon, dead="literal"))
                == expected
                == neurons(maximum_match(X, Y, epsilon, dead="literal"))
            )
            assert max_match_similarity(X, Y, epsilon, "literal") == len(expected) / len(
                oracle.neurons
            )
            assert (
                neurons(profile.match(epsilon))
                == expected
                == neurons(maximum_match(Moments(X, Y), epsilon=epsilon, dead="literal"))
            )


@settings(max_examples=25)
@given(SEEDS, st.sampled_from(MILD))
def test_algorithm_1_is_the_union_of_all_matches(seed, kind):
    X, Y = (Z[:, :4] for Z in make(kind, seed))
    oracle = Oracle(X, Y, float_residual2)
    steps = np.sqrt(np.clip([float(b) for b in oracle.breakpoints2()], 0, 1))
    for epsilon in between(steps, 1e-7):
        expected = oracle.maximum(epsilon**2)
        assert (
            neurons(algorithm_1(X, Y, epsilon))
            == expected
            == neurons(epsilon_profile(X, Y).match(epsilon))
        )


@pytest.mark.mutate
def test_three_four_five():
    "r(x | y) = 4/5 exactly: in at 0.8, out just below."
    X, Y = np.array([[3.0], [4]]), np.array([[1.0], [0]])
    assert (
        maximum_match(X, Y, 0.8).similarity == 1 and maximum_match(X, Y, 0.8 - 1e-9).similarity == 0
    )
    assert epsilon_profile(X, Y).x == pytest.approx([0.8], abs=1e-15)


def cascade():
    "The unit vectors, and two layers of two neurons."
    e = np.eye(5)
    X = np.stack([e[0], e[3] + 2 * e[4]], 1)
    Y = np.stack([e[0] + e[3], e[0] - e[3]], 1)
    return e, X, Y


@pytest.mark.mutate
def test_a_cascade_by_hand():
    """x1 fits on nothing; without it y0 and y1 do not fit at 0.65, and without them x0 does not.

    One more neuron of X saves all but x1.
    """
    e, X, Y = cascade()
    assert len(maximum_match(X, Y, 0.65)) == 0
    assert neurons(maximum_match(np.c_[X, e[3]], Y, 0.65)) == {
        ("x", 0),
        ("x", 2),
        ("y", 0),
        ("y", 1),
    }


# The profile against Algorithm 1


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10)
@given(seed=SEEDS)
def test_profile_is_algorithm_1_at_every_epsilon(kind, seed):
    X, Y = make(kind, seed)
    profile = agree(X, Y, CLOSENESS.get(kind, 1e-8))
    for epsilon in EPSILONS:
        if np.abs(profile.breakpoints - epsilon).min(initial=1) > CLOSENESS.get(kind, 1e-8):
            assert (
                maximum_match(X, Y, epsilon) == algorithm_1(X, Y, epsilon) == profile.match(epsilon)
            )


@pytest.mark.parametrize("kind", MILD)
@settings(max_examples=6)
@given(seed=SEEDS)
def test_moments_say_the_same(kind, seed):
    "Outside their error: a squared residual is known to about 1e-11, one near 0 to 3e-6."
    X, Y = make(kind, seed)
    raw = epsilon_profile(X, Y)
    moments = agree(X, Y, 1e-5, given=Moments(X, Y))
    for a, b in ((raw.x, moments.x), (raw.y, moments.y)):
        np.testing.assert_allclose(b, a, atol=1e-5)


@pytest.mark.parametrize("kind", marked(KINDS))
def test_moments_of_anything_give_finite_answers(kind):
    "Where the moments cannot see small differences the answer may differ, but it is one."
    for seed in range(3):
        X, Y = make(kind, seed)
        profile = epsilon_profile(Moments(X, Y))
        values = np.concatenate([profile.x, profile.y])
        live = np.concatenate([X.any(0), Y.any(0)])
        assert ((values >= 0) & (values <= 1))[live].all() and np.isinf(values[~live]).all()
        for epsilon in EPSILONS:
            assert profile.match(epsilon) == maximum_match(Moments(X, Y), epsilon=epsilon)


def test_on_trained_layers():
    X, Y = digits_layers(32)
    profile = agree(X, Y, 1e-7)
    agree(X, Y, 1e-6, given=Moments(X, Y))
    assert 0 < profile.similarity(0.5) < 1
    for epsilon in EPSILONS[1:]:
        assert is_match(X, Y, epsilon, profile.match(epsilon).x, profile.match(epsilon).y)


@pytest.mark.mutate
def test_profile_is_critical_at_its_own_breakpoints():
    "At a breakpoint some residual inside is the breakpoint itself, by fresh factorisation."
    for kind in ("planted_groups", "relu_features", "unequal_widths"):
        X, Y = make(kind, 4)
        for b in epsilon_profile(X, Y).breakpoints:
            match = epsilon_profile(X, Y).match(min(b, 1 - 1e-12))
            if not len(match) or b >= 1:
                continue
            r2 = [float_residual2(X[:, i], list(Y[:, match.y].T)) for i in match.x] + [
                float_residual2(Y[:, j], list(X[:, match.x].T)) for j in match.y
            ]
            assert max(r2) == pytest.approx(b**2, abs=1e-9)


@pytest.mark.mutate
def test_similarity_takes_arrays():
    X, Y = make("planted_groups", 1)
    profile = epsilon_profile(X, Y)
    grid = np.linspace(0, 0.99, 12).reshape(3, 4)
    assert profile.similarity(grid).shape == (3, 4) and type(profile.similarity(0.3)) is float
    assert profile.similarity(grid).ravel().tolist() == [
        maximum_match(X, Y, e).similarity for e in grid.ravel()
    ]
    assert (np.diff(profile.similarity(grid.ravel())) >= 0).all()
    assert profile.similarity([0, 1e-9]).tolist() == [
        profile.similarity(0)
    ] * 2 and profile.similarity([]).shape == (0,)


# What must not change the answer


@pytest.mark.parametrize("kind", marked(MILD))
@settings(max_examples=4)
@given(seed=SEEDS)
def test_invariances(kind, seed):
    X, Y = make(kind, seed)
    rng = np.random.default_rng(seed)
    d = len(X)
    profile = epsilon_profile(X, Y)
    x, y = profile.x, profile.y
    p, q = rng.permutation(X.shape[1]), rng.permutation(Y.shape[1])
    scale_x, scale_y = (
        rng.choice([-1, 1], n) * 10 ** rng.uniform(-6, 6, n) for n in (X.shape[1], Y.shape[1])
    )
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    shuffle = rng.permutation(d)
    halves = Moments(X[: d // 2], Y[: d // 2]), Moments(X[d // 2 :], Y[d // 2 :])
    twice = np.concatenate([X, X]), np.concatenate([Y, Y])
    for what, same, expected in (
        ("swap", (Y, X), (y, x)),
        ("permute neurons", (X[:, p], Y[:, q]), (x[p], y[q])),
        ("rescale neurons", (X * scale_x, Y * scale_y), (x, y)),
        ("rotate samples", (rotation @ X, rotation @ Y), (x, y)),
        ("shuffle samples", (X[shuffle], Y[shuffle]), (x, y)),
        ("samples twice", twice, (x, y)),
        ("swap moments", (Moments(X, Y).swap(),), (y, x)),
        ("add moments", (halves[0] + halves[1],), (x, y)),
    ):
        other = epsilon_profile(*same)
        for got, value in zip((other.x, other.y), expected, strict=True):
            np.testing.assert_allclose(
                got, value, atol=1e-5 if "moments" in what else 1e-7, err_msg=what
            )


@pytest.mark.parametrize("kind", KINDS)
def test_compared_with_itself_all_but_the_dead_match(kind):
    for seed in range(3):
        Z, _ = make(kind, seed)
        X = np.concatenate([Z, np.zeros((len(Z), seed))], 1)
        alive = X.any(0).mean()
        for epsilon in EPSILONS:
            for first in ((X, X), (Moments(X, X),)):
                assert (
                    epsilon_profile(*first).similarity(epsilon)
                    == alive
                    == max_match_similarity(*first, epsilon=epsilon)
                )
                assert max_match_similarity(*first, epsilon=epsilon, dead="literal") == 1
            assert algorithm_1(X, X, epsilon).similarity == alive


@pytest.mark.mutate
def test_mixing_by_an_orthogonal_matrix_keeps_everything():
    X, _ = make("gaussian", 3)
    mixed = X @ np.linalg.qr(np.random.default_rng(0).normal(size=(X.shape[1],) * 2))[0]
    assert (
        max_match_similarity(X, mixed, 1e-9)
        == 1
        == max_match_similarity(Moments(X, mixed), epsilon=1e-5)
    )
    for first in ((X, mixed), (Moments(X, mixed),)):
        assert not epsilon_profile(*first).breakpoints.any()  # what counts as 0 is 0


@pytest.mark.mutate
def test_removal_order_does_not_matter():
    "The paper's own loop: one offender at a time, at random."
    rng = np.random.default_rng(0)
    for kind in ("planted_groups", "relu_features", "shared_subspace"):
        X, Y = make(kind, 7)
        for epsilon in (0.25, 0.5):
            x, y = list(range(X.shape[1])), list(range(Y.shape[1]))
            while True:
                out = [(x, i) for i in x if float_residual2(X[:, i], list(Y[:, y].T)) > epsilon**2]
                out += [(y, j) for j in y if float_residual2(Y[:, j], list(X[:, x].T)) > epsilon**2]
                if not out:
                    break
                side, neuron = out[rng.integers(len(out))]
                side.remove(neuron)
            match = maximum_match(X, Y, epsilon)
            assert (match.x.tolist(), match.y.tolist()) == (x, y)


# Squared or not


def pair(sine2, d=40):
    "A neuron, and one whose squared distance from its span is given; neither has a 0."
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(d, 2)))[0]
    return np.stack([3 * Q[:, 0], (1 - sine2) ** 0.5 * Q[:, 0] + sine2**0.5 * Q[:, 1]], 1)


@pytest.mark.mutate
def test_second_moments_tell_neurons_apart_where_rounding_is_a_thousandth():
    far = np.random.default_rng(1).normal(size=(40, 3))
    for side in (0, 1):
        for times, apart in ((1.3, True), (0.75, False)):

            def moments(near, side=side):
                layers = np.c_[near, np.zeros(40)], far
                return Moments(*layers[:: 1 - 2 * side])

            limit = 1e3 * 2 * moments(pair(1e-6)).error
            assert tells_apart(moments(pair(times * limit))) == apart
    assert tells_apart(
        Moments(pair(1e-6)[:, :1], pair(1e-6)[:, 1:])
    )  # in one network each: no trouble


@pytest.mark.mutate
def test_dependence_is_how_near_the_nearest_is():
    near = torch.as_tensor(pair(1e-3) / [3, 1])
    assert (
        dependence(near.T @ near) == pytest.approx(1e3, rel=1e-9)
        and dependence(torch.eye(3)) == 1
        and dependence(torch.eye(0)) == 0
    )
    assert (
        dependence(torch.ones(2, 2))
        == dependence(torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]]))
        == np.inf
    )
    assert tells_apart(Moments(np.zeros((40, 2)), pair(1e-3))) and not tells_apart(
        Moments(pair(0), np.zeros((40, 2)))
    )  # with nobody, no trouble


@pytest.mark.mutate
def test_where_squaring_costs_digits_an_r_factor_is_held():
    """Where one neuron is nearly in a span, of the others of its network or of the other network.

    Or there are no more samples than neurons; or squares overflow.
    """
    far = np.random.default_rng(1).normal(size=(40, 3))

    def held(*layers):
        return condense(*(torch.as_tensor(Z) for Z in layers))[0]

    def roots(*layers):
        units = (torch.as_tensor(Z / np.linalg.norm(Z, axis=0)) for Z in layers)
        return Moments(parts=measured(*units, root=True, centring=False))

    one = far @ np.ones((3, 1)) + 9
    for layers in (
        lambda near: (near[:, :1], np.c_[near[:, 1:], far]),
        lambda near: (np.c_[near[:, :1], far], near[:, 1:]),
        lambda near: (np.c_[far, near], one),
        lambda near: (one, np.c_[far, near]),
    ):
        assert (
            held(*layers(pair(1.3 / CONDITION))).route == "gram"
            and held(*layers(pair(0.75 / CONDITION))).route == "root"
        )
    assert held(far[:, [0, 1, 0]], one).route == held(one, far[:, [0, 1, 0]]).route == "root"
    Z = np.random.default_rng(2).normal(size=(8, 8))
    assert held(Z[:, :3], Z[:, 3:7]).route == "gram" and held(Z[:, :3], Z[:, 3:]).route == "root"
    extreme = held(1e200 * Z[:, :3], 1e-200 * Z[:, 3:])
    plain = roots(Z[:, :3], Z[:, 3:])
    assert extreme.route == "root"
    assert extreme.error == plain.error + 5 * UNIT
    np.testing.assert_allclose(extreme.gram, plain.gram, atol=1e-14)
    near = np.c_[far, pair(0)]
    tall = roots(near, one)
    assert 0.9 * tall.error < held(near, one).error - 5 * UNIT < 1.1 * tall.error


@pytest.mark.mutate
def test_what_counts_as_0_is_what_is_known():
    X, Y = make("gaussian", 0)
    squared, root = Moments(X, Y), Moments(X, Y, root=True)
    assert (
        squared.error < TOLERANCE == from_moments(squared).zero
        and from_moments(root).zero == TOLERANCE**2
    )
    squared = squared.replaced(error=1e-9)
    assert from_moments(squared).zero == 1e-9


@pytest.mark.mutate
def test_root_of_a_gram_of_any_rank():
    for shape in ((9, 5), (3, 5)):
        Z = torch.as_tensor(np.random.default_rng(0).normal(size=shape))
        F = root_of_gram(Z.T @ Z)
        np.testing.assert_allclose(F.T @ F, Z.T @ Z, atol=1e-12)


# The downdated span, step by step


def unit_live(*layers):
    "The live neurons of each layer, scaled to length 1."
    return [Z[:, Z.any(0)] / np.linalg.norm(Z[:, Z.any(0)], axis=0) for Z in layers]


def fresh_residual2(own, others):
    return np.array([float_residual2(z, list(own.T)) for z in others.T])


@pytest.mark.parametrize("kind", marked(KINDS))
@settings(max_examples=10)
@given(seed=SEEDS)
def test_span_after_each_removal(kind, seed):
    """The squared residuals kept up to date are those of a fresh factorisation.

    Or the span says that it must be factored afresh.
    """
    own, others = unit_live(*make(kind, seed))
    span = span_of(torch.as_tensor(own), torch.as_tensor(others), 1e-22)
    alive = np.ones(own.shape[1], bool)
    for block in np.array_split(
        np.random.default_rng(seed).permutation(own.shape[1]), max(1, own.shape[1] * 2 // 3)
    ):
        gone = np.isin(np.arange(own.shape[1]), block)
        alive &= ~gone
        if not span.leave(torch.as_tensor(gone)):
            break
        np.testing.assert_allclose(
            span.residual2, fresh_residual2(own[:, alive], others), atol=1e-7
        )


def test_span_that_swaps_in_a_nearly_parallel_spare():
    "Own neurons e0, e1 and one 1e-9 from e0 in their plane: it replaces e1, then goes too."
    for k in (1e-3, 1e-5, 1e-7, 1e-9):
        own = np.array([[1, 0, 1], [0, 1, k], [0, 0, 0]])
        others = np.array([[1.0, 1, 0], [0, 1, 1], [1, 1, 1]]) / np.sqrt([2, 3, 2])
        for order in ([0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1]):
            span = span_of(torch.as_tensor(own), torch.as_tensor(others), 1e-22)
            alive = np.ones(3, bool)
            for i in order:
                alive[i] = False
                if not span.leave(torch.arange(3) == i):
                    break
                np.testing.assert_allclose(
                    span.residual2,
                    fresh_residual2(own[:, alive], others),
                    atol=1e-6,
                    err_msg=f"{k} {order}",
                )


@pytest.mark.parametrize(
    "settings_",
    [
        {"PENDING_ROWS": 1},
        {"PENDING_ROWS": 2},
        {"PENDING_ROWS": 3, "DROP_BELOW": 1},
        {"DROP_BELOW": 0},
        {"AFRESH_BELOW": 0.9},
        {"PENDING_ROWS": 3, "AFRESH_BELOW": 0.6},
        {"CONDITION": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", seeds(1, 4))
@pytest.mark.parametrize("kind", marked(KINDS, few=["ill_conditioned"]))
def test_when_rows_settle_or_go_and_when_all_is_factored_afresh_changes_nothing(
    kind, settings_, seed, monkeypatch
):
    """However few rows may be pending, however soon those of the dead are dropped.

    And however often a pivot says that digits are going, also amid a block.
    """
    expected = epsilon_profile(*make(kind, seed))
    for name, value in settings_.items():
        monkeypatch.setattr(engine_peel, name, value)
    other = epsilon_profile(*make(kind, seed))
    np.testing.assert_allclose(
        np.r_[other.x, other.y], np.r_[expected.x, expected.y], atol=CLOSENESS.get(kind, 1e-8)
    )
    agree(*make(kind, seed), CLOSENESS.get(kind, 1e-8))


def count_factoring(monkeypatch):
    "A list that grows by the number of neurons each time that all is factored."
    factored = []
    begin = engine_peel.Peel.begin

    def counted(self, F, *args):
        factored.append(F.shape[1])
        begin(self, F, *args)

    monkeypatch.setattr(engine_peel.Peel, "begin", counted)
    return factored


@pytest.mark.mutate
def test_small_pivots_are_factored_afresh(monkeypatch):
    """What two near duplicates alone explain of others is known when both have left after many.

    And when one has.
    """
    afresh = count_factoring(monkeypatch)
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(2, 40, 8))
    X[:, 1] = X[:, 0] + 1e-7 * rng.normal(size=40)
    for spare in (
        X[:, :0],
        2 * X[:, 4:5],
        X[:, 1:2] + X[:, 5:6],
    ):  # none, one that stays out, and one that takes a place when digits have gone
        A = np.c_[X, spare]
        n = A.shape[1]
        peel, *_ = start(A, Y)
        afresh.clear()
        for i in (3, 0, n + 1, 1):
            peel.remove(peel.ids == i)
        assert afresh
        rest = [2, *range(4, n)]
        np.testing.assert_allclose(
            peel.residual2()[peel.ids >= n][peel.alive[peel.ids >= n]],
            fresh_residual2(A[:, rest], Y[:, [0, *range(2, 8)]]),
            atol=1e-12,
        )


@pytest.mark.mutate
@pytest.mark.parametrize("block", [1, 3, 32])
def test_where_no_digits_go_all_is_factored_once(block, monkeypatch):
    """One after another, several at once, and where copies take places.

    Nothing is factored again until hardly any are left.
    """
    monkeypatch.setattr(engine_peel, "PENDING_ROWS", block)
    afresh = count_factoring(monkeypatch)
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(2, 400, 12))
    for first in ((X, Y), (X[:, [*range(12), 3, 5]], Y)):
        for many in (1, 3):
            peel, *_ = start(*first)
            afresh.clear()
            pending = []
            for ids in rng.permutation(peel.ids)[:18].reshape(-1, many):
                peel.remove(torch.isin(peel.ids, torch.as_tensor(ids)))
                pending += [len(peel.by_x.pending), len(peel.by_y.pending)]
            assert (
                max(pending) < block
                and (block == 1 or max(pending) > 1)
                and not afresh
                and peel.alive.sum() == len(first[0].T) + 12 - 18
            )
            left = peel.left().numpy()
            x, y = left[left < first[0].shape[1]], left[left >= first[0].shape[1]]
            y = y - first[0].shape[1]
            np.testing.assert_allclose(
                peel.residual2()[peel.alive],
                np.r_[
                    fresh_residual2(first[1][:, y], first[0][:, x]),
                    fresh_residual2(first[0][:, x], first[1][:, y]),
                ],
                atol=1e-12,
            )


@pytest.mark.mutate
def test_what_is_waited_for_ends_the_peeling():
    "In the cascade above x1 leaves first; what would follow is left undone unless asked for."
    _, X, Y = cascade()
    for ids, left in (([1], [0, 2, 3]), ([0], []), ([0, 1], []), ([1, 2], [0])):
        keep = torch.isin(torch.arange(4), torch.tensor(ids))
        assert start(X, Y).peel.down_to(0.65, keep).left().tolist() == left


@pytest.mark.parametrize("kind", marked(KINDS))
@pytest.mark.parametrize("block", [1, 2, 3, 32])
def test_copies_go_their_own_ways(kind, block, monkeypatch):
    """Copies of copies, each losing neurons in its own order, before and after rows are settled.

    Every residual is a fresh factorisation's.
    """
    monkeypatch.setattr(engine_peel, "PENDING_ROWS", block)
    X, Y = make(kind, 3)
    columns = np.concatenate([X, Y], 1)
    rng = np.random.default_rng(block)
    peels = [start(X, Y).peel]
    for _ in range(12):
        peel = peels[rng.integers(len(peels))]
        if not peel.alive.any():
            continue
        peels.append(peel.copy())
        if rng.random() < 0.3:
            peel.by_x.settle()
            peel.by_y.settle()
        if rng.random() < 0.3:
            peel.arrows(0.3)
        peel.remove(peel.ids == rng.choice(peel.left()))
    for peel in peels:
        residual2 = dict(zip(peel.left().tolist(), peel.residual2()[peel.alive].tolist()))
        x = [i for i in residual2 if i < X.shape[1]]
        y = [i for i in residual2 if i >= X.shape[1]]
        for own, others in ((x, y), (y, x)):
            np.testing.assert_allclose(
                [residual2[i] for i in others],
                fresh_residual2(columns[:, own], columns[:, others]),
                atol=1e-7,
            )


@pytest.mark.parametrize("kind", marked(KINDS))
@settings(max_examples=6)
@given(seed=SEEDS)
def test_consequences_of_single_losses(kind, seed):
    """A neuron said to exceed the limit does, after some have left too.

    And all that do are named where the state is well conditioned.
    """
    own, others = unit_live(*make(kind, seed))
    span = span_of(torch.as_tensor(own), torch.as_tensor(others), 1e-22)
    alive = np.ones(own.shape[1], bool)
    for _ in range(2):
        for limit in (0.01, 0.3):
            above = span.consequences(limit).numpy()
            for i in alive.nonzero()[0]:
                fresh = fresh_residual2(own[:, alive & (np.arange(len(alive)) != i)], others)
                assert (fresh[above[i]] > limit - 1e-7).all()
                if kind in ("gaussian", "relu_features"):
                    assert above[i][fresh > limit + 1e-9].all()
        gone = alive & (np.random.default_rng(seed).random(len(alive)) < 0.3)
        if not span.leave(torch.as_tensor(gone)):
            break
        alive &= ~gone


@pytest.mark.mutate
def test_arrows_are_the_losses_of_single_neurons():
    """Of both networks, before and after some have left: exactly these, where all is far apart.

    And of neurons that depend on no others where some do.
    """
    X, Y = np.random.default_rng(0).normal(size=(2, 20, 8))
    for A, sure in ((X, np.ones(16, bool)), (np.c_[X, X[:, 0]], ~np.isin(np.arange(17), [0, 8]))):
        peel = start(A, Y).peel
        columns = np.c_[A, Y]
        x = np.arange(A.shape[1] + 8) < A.shape[1]
        for gone in ([], [2], [3, 5, 11]):
            peel.remove(torch.isin(peel.ids, torch.as_tensor(gone)))
            left = peel.left().numpy()
            arrows = peel.arrows(0.8)[peel.alive][:, peel.alive].numpy()
            for i, u in enumerate(left):
                other = x[left] != x[u]
                rest = left[~other & (left != u)]
                lost = fresh_residual2(columns[:, rest], columns[:, left[other]]) > 0.64
                if sure[u]:
                    assert not arrows[i][~other].any() and (arrows[i][other] == lost).all()
                else:
                    assert not arrows[i].any()
            assert 0 < arrows.sum() < arrows.size / 2


@pytest.mark.mutate
def test_no_consequence_is_drawn_from_lost_digits():
    """One of two near duplicates has left: what is known of the other alone is rounding error.

    Until all is factored afresh.
    """
    rng = np.random.default_rng(0)
    own, others = rng.normal(size=(2, 30, 6))
    for distance in (1e-6, 1e-7, 1e-8, 1e-9):
        own[:, 1] = own[:, 0] + distance * rng.normal(size=30)
        others[:, 0] = own[:, 1]
        span = span_of(*map(torch.as_tensor, unit_live(own, others)), 1e-22)
        assert span.leave(torch.arange(6) == 0)
        above = span.consequences(0.5)
        assert not above[1].any() and above[2:].any()


def state(peel):
    "All tensors of a Peel, copied."
    tensors = [peel.alive, peel.ids]
    for span in (peel.by_x, peel.by_y):
        tensors += [t for t in vars(span).values() if torch.is_tensor(t)]
    return [t.clone() for t in tensors]


@pytest.mark.parametrize(
    "kind",
    marked(["duplicates", "relu_features", "near_duplicates", "dependent_near_duplicates"]),
)
def test_a_copied_peel_is_left_as_it_was(kind):
    peel = start(*make(kind, 5)).peel
    before = state(peel)
    for i in range(len(peel.alive)):
        peel.copy().remove(torch.arange(len(peel.alive)) == i)
    peel.copy().down_to(0.2)
    assert all(torch.equal(a, b) for a, b in zip(before, state(peel), strict=True))


# Bad input


@pytest.mark.mutate
@pytest.mark.parametrize("f", [algorithm_1, maximum_match, max_match_similarity])
@pytest.mark.parametrize(
    "epsilon, error, says",
    [
        (1, ValueError, "epsilon is 1,"),
        (-0.1, ValueError, "epsilon is -0.1"),
        (np.nan, ValueError, "epsilon is nan"),
        (np.inf, ValueError, "epsilon is inf"),
        ("0.3", TypeError, "epsilon is '0.3'"),
        (None, TypeError, "epsilon is missing"),
        ([0.3], TypeError, r"epsilon is \[0.3\]"),
        (0.3j, TypeError, "epsilon is 0.3j"),
    ],
)
def test_bad_epsilon(f, epsilon, error, says):
    X, Y = make("gaussian", 0)
    with pytest.raises(error, match=says):
        f(X, Y, epsilon)
    if f is maximum_match and epsilon is not None:
        profile = epsilon_profile(X, Y)
        with pytest.raises(error, match="epsilon is"):
            profile.match(epsilon)
        with pytest.raises(error, match="epsilon is"):
            profile.similarity(epsilon if np.ndim(epsilon) == 0 else ["0.3"])


@pytest.mark.mutate
def test_a_number_where_Y_belongs():
    X, Y = make("gaussian", 0)
    for call in (
        lambda: epsilon_profile(X, 0.3),
        lambda: maximum_match(X, 0.3, epsilon=0.3),
        lambda: algorithm_1(X, 0.3, 0.3),
        lambda: maximum_match(X, 0.3),
    ):
        with pytest.raises(TypeError, match=r"Y is 0.3.*epsilon=0.3"):
            call()
    for call in (
        lambda: epsilon_profile(Moments(X, Y), 0.3),
        lambda: maximum_match(Moments(X, Y), 0.3, epsilon=0.3),
        lambda: maximum_match(Moments(X, Y), 0.3),
    ):
        with pytest.raises(TypeError, match="epsilon=0.3"):
            call()


@pytest.mark.mutate
def test_moments_and_Y():
    X, Y = make("gaussian", 0)
    with pytest.raises(
        TypeError,
        match="^X holds the moments of both networks, "
        "so Y is left out and the rest goes by keyword$",
    ):
        epsilon_profile(Moments(X, Y), Y)
    for call in (
        lambda: epsilon_profile(Moments(X, Y), Y),
        lambda: maximum_match(Moments(X, Y), Y, 0.3),
        lambda: max_match_similarity(Moments(X, Y), Y, 0.3),
    ):
        with pytest.raises(TypeError, match="Y is left out") as error:
            call()
        assert len(str(error.value)) < 300


@pytest.mark.mutate
def test_Y_missing():
    X, Y = make("gaussian", 0)
    for call in (lambda: epsilon_profile(X), lambda: maximum_match(X, epsilon=0.3)):
        with pytest.raises(
            TypeError,
            match="^Y is missing: pass the activations of both networks, or one Moments of both$",
        ):
            call()
    with pytest.raises(TypeError, match="epsilon is missing"):
        maximum_match(X, Y)


@pytest.mark.mutate
@pytest.mark.parametrize("f", [algorithm_1, maximum_match, max_match_similarity, epsilon_profile])
def test_dead_is_one_of_two_words(f):
    X, Y = make("gaussian", 0)
    with pytest.raises(ValueError, match="dead is 'no'.*exclude.*literal"):
        f(X, Y, **({} if f is epsilon_profile else {"epsilon": 0.3}), dead="no")


@pytest.mark.mutate
@pytest.mark.parametrize("f", [algorithm_1, maximum_match, max_match_similarity, epsilon_profile])
def test_bad_activations_name_the_culprit(f):
    X, Y = make("relu_features", 0)
    rest = {} if f is epsilon_profile else {"epsilon": 0.3}
    for bad in (np.nan, np.inf, -np.inf):
        Y2 = Y.copy()
        Y2[[7, 9], [2, 3]] = bad
        with pytest.raises(
            ValueError,
            match=rf"Y: neuron 2 is {bad} at sample 7 "
            rf"\(2 such values in 2 of {Y.shape[1]} neurons\)",
        ):
            f(X, Y2, **rest)
    with pytest.raises(ValueError, match="X has 60 samples and Y has 59"):
        f(X, Y[:-1], **rest)
    with pytest.raises(ValueError, match=r"X has shape \(0, 3\).*no samples"):
        f(np.empty((0, 3)), np.empty((0, 3)), **rest)
    with pytest.raises(ValueError, match=r"Y has shape \(60, 0\).*no neurons"):
        f(X, Y[:, :0], **rest)
    with pytest.raises(ValueError, match=r"X has shape \(60,\).*column"):
        f(X[:, 0], Y, **rest)
    with pytest.raises(ValueError, match=r"Y has shape \(60, 1, 1\)"):
        f(X, Y[:, :1, None], **rest)
    with pytest.raises(TypeError, match="X holds complex128"):
        f(X * 1j, Y, **rest)


@pytest.mark.mutate
@pytest.mark.filterwarnings("error::submatch_nb.SubmatchWarning")
def test_spans_that_fill_the_space_warn():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(5, 6)), rng.normal(size=(5, 3))
    for first in ((X, Y), (Moments(X, Y),)):
        for call in (
            lambda: epsilon_profile(*first),
            lambda: maximum_match(*first, epsilon=0.3),
            lambda: max_match_similarity(*first, epsilon=0.3),
        ):
            with pytest.warns(SubmatchWarning, match=r"neurons of X span all of R\^5"):
                call()
    with pytest.warns(SubmatchWarning) as caught:
        assert maximum_match(X, rng.normal(size=(5, 7)), 0.01).similarity == 1
    assert [str(w.message)[:17] for w in caught] == [f"the neurons of {s} " for s in "XY"]
    epsilon_profile(
        rng.normal(size=(7, 6)), rng.normal(size=(7, 6))
    )  # six of seven dimensions: no warning


@pytest.mark.mutate
def test_epsilon_at_chance_warns():
    """Of the larger layer's live neurons: at the level itself, and not just below.

    Where the span is everything another warning says so.
    """
    X, Y = np.random.default_rng(0).normal(size=(2, 16, 12))
    Y[:, 3:] = 0
    assert chance_epsilon(16, 12) == 0.5
    says = (
        "^epsilon = 0.5 is at or above the Gaussian chance level 0.500 for 12 neurons and "
        "16 samples, the residual of one Gaussian vector: layers of Gaussian noise match from not "
        "far above it, and activations, which share their means, match by chance from below it. "
        r"Compare with shuffled images \(permutation_test\), or use a smaller epsilon or more "
        "samples.$"
    )
    for first in ((X, Y), (Y, X), (Moments(X, Y),)):
        with pytest.warns(SubmatchWarning, match=says):
            maximum_match(*first, epsilon=0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            maximum_match(*first, epsilon=0.5 - 1e-9)
            epsilon_profile(*first)
    with pytest.warns(SubmatchWarning) as caught:
        maximum_match(X[:8], Y[:8], 0)
    assert len(caught) == 1 and "span all of R^8" in str(caught[0].message)


@pytest.mark.mutate
def test_a_profile_says_what_it_knows():
    X, Y = make("dead", 3)
    profile = epsilon_profile(X, Y)
    live = X.any(0).sum(), Y.any(0).sum()
    assert (
        live[0] < X.shape[1]
        and live[1] < Y.shape[1]
        and profile.live == max(live) == epsilon_profile(Y, X).live
    )
    assert profile.count == len(X) and profile.chance == chance_epsilon(len(X), max(live))
    assert repr(profile) == (
        f"Profile({X.shape[1]} + {Y.shape[1]} neurons, {len(X)} samples, "
        f"{len(profile.breakpoints)} breakpoints)"
    )
    assert "2,000 samples" in repr(Profile([0], [0], 2000))
    assert (np.diff(profile.breakpoints) > 0).all() and set(profile.breakpoints) == set(
        np.r_[profile.x, profile.y][np.r_[X.any(0), Y.any(0)]]
    )


@pytest.mark.mutate
def test_critical_values_nearer_than_the_tolerance_are_one():
    for apart, count in ((1e-12, 1), (1e-9, 2)):
        X, Y = np.zeros((2, 4, 2))
        for i, r in enumerate((0.6, 0.6 + apart)):
            X[2 * i : 2 * i + 2, i] = 1, r / (1 - r**2) ** 0.5
            Y[2 * i, i] = 1
        assert len(epsilon_profile(X, Y).breakpoints) == count
    assert epsilon_profile([[1], [0]], [[1e-7], [1]]).x.tolist() == [
        1
    ]  # 1 - 1e-14, squared: in no match


@pytest.mark.mutate
def test_the_profile_is_asked_only_where_rounds_decide_nothing(monkeypatch):
    "At a tie, r(x | y) = 4/5, and just not there; and a dead neuron decides nothing."
    asked = []
    peel_all = maximum.peel_all

    def noted(*args):
        asked.append(1)
        return peel_all(*args)

    monkeypatch.setattr(maximum, "peel_all", noted)
    X, Y = np.array([[3.0, 0, 0], [4, 1, 0], [0, 0, 0]]), np.array([[1.0], [0], [0]])
    for dead in ("exclude", "literal"):
        for epsilon, times in ((0.8 - 1e-9, 0), (0.8, 1), (0.8 + 1e-9, 0)):
            asked.clear()
            match = maximum_match(X[:, [0, 2]], Y, epsilon, dead)
            assert (
                len(asked) == times
                and (("x", 0) in match) == (epsilon >= 0.8)
                and (("x", 1) in match) == (dead == "literal")
            )
    asked.clear()
    for kind in ("relu_features", "planted_groups", "shared_subspace"):
        maximum_match(*make(kind, 1), 0.33)
    assert not asked


@pytest.mark.mutate
def test_activations_too_large_or_small_to_square():
    "Every neuron keeps its residual on any scale that a float can hold; only exact 0 is dead."
    X, Y = make("relu_features", 0)
    profile = epsilon_profile(X, Y)
    for scale in (1e-300, 1e-160, 1e160, 1e300):
        for side in (0, 1):
            A, B = X.copy(), Y.copy()
            (A, B)[side][:, 1] *= scale
            other = epsilon_profile(A, B)
            np.testing.assert_allclose(
                np.r_[other.x, other.y],
                np.r_[profile.x, profile.y],
                atol=1e-9,
                err_msg=f"{scale} {side}",
            )


# What arrays may be


@pytest.mark.parametrize("kind", marked(["relu_features", "dead"]))
def test_any_array_of_real_numbers(kind):
    X, Y = make(kind, 2)
    profile = epsilon_profile(X, Y)

    def grad(Z):
        return torch.tensor(Z, requires_grad=True)

    def strided(Z):
        return torch.as_tensor(np.repeat(np.repeat(Z, 2, 0), 3, 1))[::2, ::3]

    for f in (
        grad,
        strided,
        torch.as_tensor,
        np.asfortranarray,
        lambda Z: Z.tolist(),
        lambda Z: np.repeat(Z, 2, 1)[:, ::2],
    ):
        other = epsilon_profile(f(X), f(Y))
        np.testing.assert_allclose(np.r_[other.x, other.y], np.r_[profile.x, profile.y], rtol=1e-12)
        assert other.x.dtype == np.float64 and isinstance(other.x, np.ndarray)


@pytest.mark.mutate
def test_profile_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    for kind in KINDS:
        X, Y = make(kind, 2)
        on = [torch.as_tensor(Z, device="cuda") for Z in (X, Y)]
        profile, other = epsilon_profile(X, Y), epsilon_profile(*on)
        np.testing.assert_allclose(
            np.r_[other.x, other.y], np.r_[profile.x, profile.y], atol=CLOSENESS.get(kind, 1e-7)
        )
        assert maximum_match(*on, 0.4) == maximum_match(X, Y, 0.4) == algorithm_1(*on, 0.4)


@pytest.mark.mutate
def test_inputs_stay_as_they_were():
    X, Y = (torch.as_tensor(Z) for Z in make("dead", 1))
    before, moments = (X.clone(), Y.clone()), Moments(X, Y)
    gram = moments.gram.clone()
    for first in ((X, Y), (moments,)):
        epsilon_profile(*first)
        maximum_match(*first, epsilon=0.3)
    algorithm_1(X, Y, 0.3)
    assert (
        torch.equal(X, before[0]) and torch.equal(Y, before[1]) and torch.equal(moments.gram, gram)
    )


# Numbers without an epsilon


def similarity_on_a_grid(profile, count=20_000):
    "The mean over the middles of so many equal parts of [0, 1)."
    return profile.similarity((np.arange(count) + 0.5) / count).mean()


@pytest.mark.parametrize("dead", ["exclude", "literal"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_half_epsilon_and_area_are_what_the_similarity_says(kind, dead):
    for seed in range(3):
        profile = epsilon_profile(*make(kind, seed), dead=dead)
        half = profile.half
        assert profile.area == pytest.approx(similarity_on_a_grid(profile), abs=1e-4)
        if half < 1:
            assert profile.similarity(half) >= 0.5
            assert half == 0 or profile.similarity(half * (1 - 1e-9)) < 0.5
        else:
            assert half == 1 and profile.similarity(1 - 1e-9) < 0.5


def test_half_epsilon_of_known_profiles():
    for critical, half, area in (
        ([0.2, 0.4, 0.6, 0.8], 0.4, 0.5),
        ([0.2, 0.4, 0.6], 0.4, 0.6),
        ([0.2, np.inf, np.inf, 0.6], 0.6, 0.3),
        ([0.2, np.inf, np.inf], 1.0, 0.8 / 3),
        ([1.0, 1.0], 1.0, 0.0),
        ([np.inf, np.inf], 1.0, 0.0),
        ([1e-13, 0.5], 0.0, 0.75),
        ([0.0, 0.0], 0.0, 1.0),
    ):
        profile = Profile(critical[:1], critical[1:], 10)
        assert isinstance(profile.half, float) and isinstance(profile.area, float)
        assert profile.half == half and profile.area == pytest.approx(area, abs=1e-12)


# Ranks


def convolved(seed, images, bias=False):
    "32 channels of a convolution with random weights."
    torch.manual_seed(seed)
    with torch.no_grad():
        return torch.nn.Conv2d(3, 32, 3, bias=bias)(images).movedim(1, -1).flatten(0, 2)


@pytest.mark.parametrize("count", [40, 1000])
@pytest.mark.parametrize("root", [False, True])
def test_layers_that_are_linear_in_the_same_input_match_trivially(root, count):
    "In float32, whose rounding spans nothing; with biases they do once they are centred."
    images = torch.rand(count, 3, 12, 12, generator=torch.manual_seed(9))
    moments = Moments(convolved(0, images), convolved(1, images), root)
    assert moments.ranks == (27, 27, 27) and moments.trivial
    assert epsilon_profile(moments).half < 1e-5
    assert moments.centered().ranks == (27, 27, 27) and moments.centered().trivial
    biased = Moments(convolved(0, images, True), convolved(1, images, True), root)
    assert biased.ranks == (28, 28, 28) and biased.centered().ranks == (27, 27, 27)
    assert biased.trivial and biased.centered().trivial
    # fewer channels than dimensions: whatever is common was learnt, or happens
    few = Moments(convolved(0, images)[:, :20], convolved(1, images)[:, :20], root)
    assert few.ranks == (20, 20, 27) and not few.trivial


@pytest.mark.parametrize("d", [400, 100_000])
@pytest.mark.parametrize("root", [False, True])
def test_low_rank_alone_is_not_trivial(root, d):
    "Nor is a layer with itself, whose neurons are independent but for dead ones."
    rng = np.random.default_rng(0)
    X, Y = (rng.normal(size=(d, 15)) @ rng.normal(size=(15, 60)) for _ in range(2))
    moments = Moments(X, Y, root)
    assert moments.ranks == (15, 15, 30) and not moments.trivial
    assert epsilon_profile(moments).similarity(0.9) == 0
    assert Moments(X, X, root).trivial
    X[:, 15:] = 0
    assert Moments(X, X, root).ranks == (15, 15, 15) and not Moments(X, X, root).trivial
    none = Moments(0 * X, Y, root)
    assert none.ranks == (0, 15, 15) and not none.trivial
