"""Proven brackets: outside them no membership differs from exact arithmetic.

And on trained layers they are narrow.
"""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from exact import critical2, critical2_wide, integers, residuals2
from instances import KINDS, make

from submatch_nb.engine.brackets import bars_from_gram, bars_from_root, residual2_steps
from submatch_nb.engine.factors import UNIT
from submatch_nb.engine.inputs import TOLERANCE
from submatch_nb.engine.moments import Moments
from submatch_nb.engine.results import Results
from submatch_nb.explorer import demo_comparison
from submatch_nb.maximum import Profile, epsilon_profile, maximum_match
from submatch_nb.neurons import digits_layers

pytestmark = pytest.mark.filterwarnings("ignore::submatch_nb.SubmatchWarning")


def conditioned(rng, n, d):
    """Two layers with condition numbers from 1 to 1e12, in part of a shared subspace.

    Some neurons are nearly or exactly alike.
    """
    shared = rng.normal(size=(d, n))

    def side():
        k = int(rng.integers(1, n + 1))
        U = np.linalg.qr(np.concatenate([shared[:, :k], rng.normal(size=(d, n))], 1))[0][:, :n]
        Z = U * np.logspace(0, -rng.uniform(0, 12), n) @ np.linalg.qr(rng.normal(size=(n, n)))[0]
        Z += 10.0 ** -rng.integers(0, 12) * rng.normal(size=Z.shape) * (rng.random(n) < 0.3)
        near, to = rng.integers(0, n, 2)
        if rng.random() < 0.5:
            Z[:, near] = Z[:, to] * (1 + 10 ** rng.uniform(-15, -1) * rng.normal(size=d))
        return Z * 10 ** rng.uniform(-3, 3, n)

    return side(), side()


def hostile(seed, most=12):
    "One of the kinds of `instances`, or one badly conditioned; up to `most` neurons a side."
    rng = np.random.default_rng(seed)
    if rng.random() < 0.5:
        return conditioned(
            rng, int(rng.integers(2, most + 1)), int(rng.integers(most + 1, 3 * most))
        )
    return tuple(Z[:, :most] for Z in make(rng.choice(list(KINDS)), seed))


def routes(X, Y, cut):
    "Every way to the same answer."
    yield X, Y
    for root in (False, True):
        yield (Moments(X, Y, root),)
        yield (Moments(X[:cut], Y[:cut], root) + Moments(X[cut:], Y[cut:], root),)
    yield (Moments(X[:cut], Y[:cut]) + Moments(X[cut:], Y[cut:], True),)


def near(rng, exact2):
    "Epsilons within 1e-16 to 1e-6 of a critical one, on either side, and at it."
    for c2 in {c2 for c2 in exact2 if c2 is not None}:
        for e in (
            float(c2) ** 0.5,
            float(c2) ** 0.5 + rng.choice([-1, 1]) * 10.0 ** -rng.integers(6, 17),
        ):
            if 0 <= e < 1:
                yield e


def check(X, Y, exact2, seed, ways=None, **options):
    "Every route: the brackets hold what is exact, and decided memberships are right."
    rng = np.random.default_rng(seed)
    dead = np.array([c2 is None for c2 in exact2])
    for data in ways or routes(X, Y, len(X) // 2):
        profile = epsilon_profile(*data, **options)
        value, lower, upper = (
            np.concatenate(sides)
            for sides in ((profile.x, profile.y), profile.lower, profile.upper)
        )
        assert (
            (lower <= value).all()
            and (value <= upper).all()
            and np.isinf(lower[dead]).all()
            and np.isfinite(upper[~dead]).all()
        )
        for c2, low, high in zip(exact2, lower.tolist(), upper.tolist()):
            if c2 is not None:
                assert Fraction(low) ** 2 <= c2 <= Fraction(high) ** 2, (
                    seed,
                    data,
                    low,
                    float(c2) ** 0.5,
                    high,
                )
        for i, epsilon in enumerate(near(rng, exact2)):
            decided = ~in_layers(profile.undecided(epsilon), X, Y)
            expected = np.array([c2 is not None and c2 <= Fraction(epsilon) ** 2 for c2 in exact2])
            matches = [profile.match(epsilon)]
            if i < 3:
                matches.append(maximum_match(*data, epsilon=epsilon, **options))
            for match in matches:
                inside = in_layers((match.x, match.y), X, Y)
                assert (inside == expected)[decided].all(), (seed, data, epsilon)


def in_layers(sides, X, Y):
    "A mask over all neurons, of those that index arrays name."
    return np.concatenate(
        [np.isin(np.arange(Z.shape[1]), indices) for indices, Z in zip(sides, (X, Y), strict=True)]
    )


def check_small(seeds):
    for seed in seeds:
        X, Y = hostile(seed)
        check(X, Y, critical2(X, Y), seed)


def check_wide(seeds):
    for seed in seeds:
        X, Y = conditioned(np.random.default_rng(seed), 64, 140)
        check(X, Y, critical2_wide(X, Y), seed)


FEW = 25  # instances in the short tier


@pytest.mark.parametrize("part", [pytest.param(0, marks=pytest.mark.mutate), *range(1, FEW // 5)])
def test_no_decided_membership_is_wrong(part):
    check_small(range(part * 5, part * 5 + 5))


FEW_WIDE = 2


def test_no_decided_membership_is_wrong_in_wide_layers():
    check_wide(range(FEW_WIDE))


# Bars, against errors made on purpose as large as they may be, and all in the worst direction


def leaning(k, angle):
    "k unit columns whose sum has length 1, and that sum, turned out of their span by an angle."
    F = np.zeros((k + 1, k + 1))
    F[:k, :k] = np.linalg.cholesky((1 + 1 / k) * np.eye(k) - 1 / k).T
    F[:k, k] = np.cos(angle) * F[:k, :k].sum(1)
    F[k, k] = np.sin(angle)
    return F


def on_the_first(F):
    "The residual of the last column on the first 0, 1, ... others."
    residuals = []
    for j in range(F.shape[1]):
        coefficients = np.linalg.lstsq(F[:, :j], F[:, -1], rcond=None)[0]
        residuals.append(np.linalg.norm(F[:, -1] - F[:, :j] @ coefficients))
    return np.minimum(1, residuals)


def gram_bars(G, k, error):
    "Bounds on the last column's residuals, from a Gram matrix."
    G = torch.as_tensor(G)
    return (b.numpy()[:, 0] for b in bars_from_gram(G[:k, :k], G[:k, k:], error))


def root_bars(F, k, error, skew=0.0):
    "The same from columns."
    return (b.numpy()[:, 0] for b in bars_from_root(torch.as_tensor(F), k, error, skew))


@pytest.mark.parametrize("error", [1e-5, 1e-8])
@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_bars_hold_what_errors_can_do_at_worst_and_hardly_more(k, error):
    signs = np.array([1.0] * k + [-1])
    for angle in (0.5, 0.1, 10 * error, 0):
        F = leaning(k, angle)
        true = on_the_first(F)
        for sign in (1, -1):
            G = F.T @ F + sign * error * np.outer(signs, signs)
            low, high = gram_bars(G, k, error)
            assert (low <= true + 1e-15).all() and (true - 1e-15 <= high).all()
            if angle < 0.1:
                continue
            explained = G[k, :k] @ np.linalg.solve(G[:k, :k], G[:k, k])
            seen = (G[k, k] - explained) ** 0.5  # with the errors
            reach = ((low if sign > 0 else high)[k] - seen) / (true[k] - seen)
            assert 1 <= reach < 1.1 * (1 + 4 * np.tan(angle) / k)

            off = F.copy()
            off[k] += sign * error * signs  # each off by the error, in the residual's direction
            low, high = root_bars(off, k, error)
            assert (low <= true).all() and (true <= high).all()
            seen = on_the_first(off)[k]
            reach = ((high if sign > 0 else low)[k] - seen) / (true[k] - seen)
            assert 1 <= reach < (2 if sign > 0 else 9)
        off = F.copy()
        off[k] += error * signs
        low, high = root_bars(off, k, error)
        assert (low <= true).all() and (true <= high).all()
        assert angle or high[k] < 9 * (k + 1) * error


def kahan(k, angle):
    "k unit columns, each nearer the span of those before it, the first two an angle apart (Kahan)."
    return np.sin(angle) ** np.arange(k)[:, None] * (
        np.eye(k) - np.cos(angle) * np.triu(np.ones((k, k)), 1)
    )


@pytest.mark.mutate
@pytest.mark.parametrize("error", [1e-4, 1e-5, 1e-8])
@pytest.mark.parametrize(
    "k, angles", [(2, np.logspace(0, -8, 33)), (8, (1.3, 1, 0.7, 0.5, 0.4))], ids=["two", "eight"]
)
def test_bars_hold_where_neurons_nearly_depend_on_one_another(k, angles, error):
    """And the other is in the direction in which they hardly differ: there errors do most.

    Turned out of their span or not.
    """
    for angle in angles:
        own = kahan(k, angle)
        U, _, V = np.linalg.svd(own)
        theta = [np.linalg.norm(np.linalg.pinv(own[:, :j])) for j in range(1, k + 1)]
        reach = np.array([1, *np.hypot(1, theta)])
        signs = np.r_[np.sign(V[-1]), -1]
        for tilt in (0, 10 * error, 0.5):
            F = np.block([[own, np.cos(tilt) * U[:, -1:]], [np.zeros((1, k)), np.sin(tilt)]])
            true = np.array([*on_the_first(F)[:-1], np.sin(tilt)])
            narrow = (error * reach < 0.001) & (true > 0.4)
            assert narrow[:2].all() >= (tilt == 0.5)
            for sign in (1, -1, 0):
                G = F.T @ F + sign * error * np.outer(signs, signs)
                off = F + sign * error * signs * np.eye(k + 1)[:, -1:]
                for low, high in (gram_bars(G, k, error), root_bars(off, k, error)):
                    assert (low >= 0).all() and (low <= true + 1e-14).all()
                    assert (true <= high + 1e-14).all() and (high <= 1).all()
                wide = 12 * error * (k + 1) ** 0.5 * reach
                assert ((high - low)[narrow] < wide[narrow]).all()
        low, high = root_bars(np.c_[own, own[:, 0]], k, error)
        assert (low[1:] == 0).all()
        # of a copy little is left, however near the others are
        assert (high[1:] < 9 * (k + 1) * error).all()


@pytest.mark.mutate
@pytest.mark.parametrize("k", [0, 1, 2, 5, 30])
def test_bars_hold_what_is_exact_where_all_errors_are_rounding(k):
    "Neurons in general position, and so near one another that digits are lost."
    for near in (1, 1e-2, 1e-4, 1e-6):
        rng = np.random.default_rng(k)
        F = rng.normal(size=(k + 3, k + 2))
        F[:, :k] = F[:, -1:] + near * F[:, :k]
        F /= np.linalg.norm(F, axis=0)
        G = F.T @ F
        np.fill_diagonal(G, 1)
        Z = integers(F)
        scaled = [int(Fraction(g) * 2**80) for g in G.ravel().tolist()]
        whole = np.array(scaled, object).reshape(G.shape)
        T = torch.as_tensor(G)
        for gram, bars in (
            (whole, bars_from_gram(T[:k, :k], T[:k, k:], 0.0)),
            (Z.T @ Z, bars_from_root(torch.as_tensor(F), k, 4 * UNIT, 0.0)),
        ):
            for j, (low, high) in enumerate(zip(*(b.tolist() for b in bars), strict=True)):
                exact = residuals2(gram, list(range(j)), [k, k + 1])
                for r2, a, b in zip(exact, low, high, strict=True):
                    assert Fraction(a) ** 2 <= r2 <= Fraction(b) ** 2
            assert near < 1 or (bars.upper - bars.lower).max() < 1e-12 * (k + 1)


@pytest.mark.mutate
def test_where_neurons_cannot_be_factored_nothing_is_left_of_others():
    own = torch.eye(4, dtype=torch.float64)
    own[:3, :3] = torch.tensor([[1, 0.5, 0.5], [0.5, 1, 1], [0.5, 1, 1]])
    cross = torch.tensor([[0.5, 0], [0, 0.5], [0, 0.5], [0.5, 0.5]], dtype=torch.float64)
    steps = residual2_steps(own, cross, -1e-9)
    assert torch.equal(steps[:3], residual2_steps(own[:2, :2], cross[:2], -1e-9))
    assert (steps[0] == 1 - 1e-9).all() and (steps[2] > 0.5).all() and not steps[3:].any()
    assert (residual2_steps(own, cross, 1e-9) > 0.3).all()
    assert torch.equal(own.diagonal(), torch.ones(4, dtype=torch.float64))


@pytest.mark.mutate
@pytest.mark.parametrize("k", [1, 3])
def test_bars_from_the_root_hold_a_skew(k):
    "All lengths out of the span are seen too small, or too large, by the skew."
    for skew in (1e-3, 1e-6):
        F = leaning(k, 0.5)
        for stretch in (1 + skew, 1 / (1 + skew)):
            off = F * np.r_[np.ones(k), stretch][:, None]
            low, high = (b[k] for b in root_bars(off, k, 0.0, skew))
            assert low <= np.sin(0.5) <= high and high - low < 6 * skew * np.sin(0.5)


@pytest.mark.mutate
def test_bars_that_know_nothing_say_so():
    F = torch.as_tensor(leaning(2, 0.5))
    G = F.T @ F
    for error, known in ((0.0029, True), (0.0031, False)):
        low, high = bars_from_gram(G[:2, :2], G[:2, 2:], error)
        assert (
            ((high < 1)[1:].all() and (low[:2] > 0).all())
            if known
            else (low == 0).all() and (high == 1).all()
        )
    for skew, known in ((0.009, True), (0.0095, False)):
        low, high = bars_from_root(F, 2, 1e-9, skew)
        assert (
            ((high < 1)[1:].all() and (low > 0).all())
            if known
            else (low == 0).all() and (high == 1).all()
        )


@pytest.mark.long
@pytest.mark.parametrize("part", range(100))
def test_no_decided_membership_is_wrong_in_10_000(part):
    check_small(range(max(part * 100, FEW), part * 100 + 100))


@pytest.mark.long
@pytest.mark.parametrize("part", range(20))
def test_no_decided_membership_is_wrong_in_200_wide_layers(part):
    check_wide(range(max(part * 10, FEW_WIDE), part * 10 + 10))


# Not vacuous


def share_undecided(profile):
    draws = np.random.default_rng(0).uniform(0.1, 0.6, 1000)
    undecided = [sum(map(len, profile.undecided(epsilon))) for epsilon in draws]
    return np.mean(undecided) / (len(profile.x) + len(profile.y))


@pytest.mark.parametrize("width", [pytest.param(32, marks=pytest.mark.mutate), 64])
@pytest.mark.parametrize(
    "way",
    [
        lambda X, Y: (X, Y),
        lambda X, Y: (Moments(X, Y),),
        lambda X, Y: (Moments(X, Y, root=True),),
        lambda X, Y: (Moments(X[:900], Y[:900], root=True) + Moments(X[900:], Y[900:], root=True),),
    ],
    ids=["activations", "moments", "root", "roots added"],
)
def test_brackets_of_trained_layers_are_narrow(width, way):
    profile = epsilon_profile(*way(*digits_layers(width)))
    lower, upper = (np.concatenate(sides) for sides in (profile.lower, profile.upper))
    live = np.isfinite(lower)
    assert share_undecided(profile) < 1e-3 and (upper[live] - lower[live]).max() < 1e-6


@pytest.mark.mutate
def test_brackets_of_the_demo_are_narrow():
    "Every layer that `make demo` compares."
    comparison = demo_comparison()
    assert len(comparison.layers) == 6
    for profile in comparison.profiles.values():
        assert (np.concatenate(profile.upper) < 1).any() and share_undecided(profile) < 1e-3


@pytest.mark.parametrize("run, pairs, layers", [("laptop", 20, 320), ("half", 4, 62)])
def test_brackets_of_networks_trained_on_cifar_10_are_narrow(run, pairs, layers):
    "Every layer of every pair of trained networks in the results that the paper's chapter shows."
    results = Results(Path(__file__).parent.parent / "nbs/results" / run)
    trained = [
        comparison
        for (_, stage, _), comparison in results.comparisons.items()
        if stage == "trained"
    ]
    assert len(trained) == pairs and sum(len(one.layers) for one in trained) == layers
    shares = [
        share_undecided(profile)
        for comparison in trained
        for profile in comparison.profiles.values()
    ]
    assert max(shares) < 1e-3


@pytest.mark.mutate
def test_near_copies_are_resolved_by_the_root_only():
    "Second moments cannot hold a difference of 1e-8; upper bounds stay narrow even so."
    X, Y = digits_layers(32)
    noise = np.random.default_rng(0).normal(size=len(X))
    twin = X[:, 7] + 1e-8 * np.linalg.norm(X[:, 7]) / len(X) ** 0.5 * noise
    X = np.c_[X, twin]
    by_gram = epsilon_profile(Moments(X, Y))
    by_root = epsilon_profile(Moments(X, Y, root=True))
    plain = epsilon_profile(X, Y)
    assert share_undecided(by_gram) > 0.01 and share_undecided(by_root) < 1e-3
    assert plain.route == "root" == by_root.route and by_gram.route == "gram"
    live = np.isfinite(by_gram.y)
    assert (by_gram.upper.y[live] - by_gram.y[live]).max() < 1e-6 and (
        by_gram.lower.y[live] <= by_root.y[live]
    ).all()


@pytest.mark.mutate
def test_a_tie_is_undecided():
    "r(x | y) = 4/5 exactly; float64 has no 4/5."
    profile = epsilon_profile([[3.0], [4]], [[1.0], [0]])
    for epsilon, open_ in (
        (0.8, 1),
        (0.8 * (1 - TOLERANCE / 2), 1),
        (0.8 - 1e-9, 0),
        (0.8 + 1e-9, 0),
    ):
        assert [len(s) for s in profile.undecided(epsilon)] == [
            open_,
            open_,
        ]  # in by tolerance: not decided
    with pytest.raises(ValueError, match="epsilon is 1"):
        profile.undecided(1)


@pytest.mark.mutate
def test_undecided_from_the_lower_bound_to_below_the_upper():
    profile = Profile(
        [0.5, 0.5],
        [0.5],
        10,
        lower=(np.array([0.25, 0.5]), np.array([0.5])),
        upper=(np.array([0.75, 0.75]), np.array([0.5])),
        route="root",
    )
    for epsilon, x in ((0.2, []), (0.25, [0]), (0.5, [0, 1]), (0.7, [0, 1]), (0.75, [])):
        assert [side.tolist() for side in profile.undecided(epsilon)] == [x, []]
    assert (
        profile.route == "root"
        and profile.lower.x.tolist() == [0.25, 0.5]
        and profile.upper.y.tolist() == [0.5]
    )


@pytest.mark.mutate
def test_dead_neurons_are_never_undecided():
    X, Y = make("dead", 3)
    for dead, value in (("exclude", np.inf), ("literal", 0)):
        profile = epsilon_profile(X, Y, dead=dead)
        gone = ~X.any(0)
        assert (
            (profile.lower.x[gone] == value).all()
            and (profile.upper.x[gone] == value).all()
            and gone.any()
        )


@pytest.mark.mutate
def test_a_profile_without_brackets_knows_nothing():
    assert Profile([0], [1], 10).x.dtype == Profile([0], [1], 10).y.dtype == float
    profile = Profile([0.2, np.inf], [0.3], 10)
    assert (
        profile.lower.x.tolist() == [0, np.inf]
        and profile.upper.x.tolist() == [1, np.inf]
        and profile.undecided(0.5).x.tolist() == [0]
        and profile.route == ""
    )


@pytest.mark.mutate
@pytest.mark.parametrize("root", [False, True])
def test_copies_leave_the_brackets_as_they_are(root):
    "Identical neurons are known to be so; those that are identical in one batch only are not."
    X, Y = digits_layers(32)
    copies = np.c_[X, X[:, [7, 3]]], np.c_[Y[:, :1], Y]
    first = Moments(*(Z[:900] for Z in copies), root=root)
    second = Moments(*(Z[900:] for Z in copies), root=root)
    for moments in (Moments(*copies, root=root), first + second, (first + second).swap().swap()):
        assert moments.alike.tolist() == [*range(32), 7, 3, 34, 34, *range(36, 67)]
        one, two = epsilon_profile(Moments(X, Y, root=root)), epsilon_profile(moments)
        assert share_undecided(two) < 1e-3
        np.testing.assert_allclose(two.upper.x, one.upper.x[[*range(32), 7, 3]], atol=1e-6)
        np.testing.assert_allclose(two.lower.y, one.lower.y[[0, *range(32)]], atol=1e-6)
    half = np.c_[X, X[:, 7]]
    half[0, -1] += 1
    assert (Moments(half[:900], Y[:900]) + Moments(half[900:], Y[900:])).alike.tolist() == list(
        range(65)
    )
    assert epsilon_profile(np.c_[X, 3 * X[:, 7]], Y).upper.x[-1] == pytest.approx(
        one.upper.x[7], abs=1e-6
    )
