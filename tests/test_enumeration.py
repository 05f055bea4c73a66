"""All v-minimal matches of a neuron, against every pair of subsets: ten thousand small instances,
hostile kinds among them; and what limit, budget and the flag of completeness promise.

The residuals on every subset are taken once, in one singular value decomposition a side; matches
and the smallest of them are then a matter of bits. Nothing of this is shared with submatch.
"""

import itertools
import warnings

import numpy as np
import pytest
import torch
from conftest import seeds
from instances import make, neurons
from tqdm import auto as tqdm_auto

from submatch_nb import (
    Match,
    MinimalMatches,
    Moments,
    is_unique,
    maximum_match,
    minimal_match,
    minimal_matches,
    necessary,
    simple_matches,
)
from submatch_nb.engine.enumeration import EXHAUSTIVE, Enumeration, members
from submatch_nb.engine.search import inside
from submatch_nb.neurons import digits_layers
from submatch_nb.reference import algorithm_1, algorithm_2, algorithm_3

pytestmark = pytest.mark.filterwarnings("ignore::submatch_nb.SubmatchWarning")
CHUNK = 250  # instances in one test; 40 of them are the ten thousand

# Instances of up to 6 + 6 neurons


def shared(rng):
    "Sparse mixtures of the same few vectors."
    n_x, n_y = rng.integers(1, 7, 2)
    k = int(rng.integers(1, 6))
    B = rng.normal(size=(k + int(rng.integers(1, 5)), k))
    return B @ sparse(rng, k, n_x), B @ sparse(rng, k, n_y)


def sparse(rng, k, n):
    "(k, n) coefficients, most of them 0, no column of zeros."
    mix = rng.choice([0, 0, 0, 1, 1, -1, 2], (k, n)).astype(float)
    mix[rng.integers(0, k, n), np.arange(n)] = 1
    return mix


def noisy(rng):
    X, Y = shared(rng)
    size = rng.choice([0.03, 0.1, 0.3])
    return X + size * rng.normal(size=X.shape), Y + size * rng.normal(size=Y.shape)


def copies(rng):
    X, Y = shared(rng)
    few = X[:, rng.integers(0, X.shape[1], 3)] * [1, -1, 2]
    return X, np.concatenate([Y[:, :3], few], 1)


def dependent(rng):
    "More neurons than dimensions: any of them may stand for another."
    r = int(rng.integers(1, 4))
    B = rng.normal(size=(7, r))
    sides = rng.integers(r, 6, 2)
    return tuple(B @ rng.integers(-2, 3, (r, n)) for n in sides)


def with_dead(rng):
    X, Y = noisy(rng)
    X[:, rng.integers(0, X.shape[1])] = 0
    Y[:, rng.integers(0, Y.shape[1])] *= rng.integers(0, 2)
    return X, Y


def scaled(rng):
    return tuple(Z * 10 ** rng.uniform(-6, 6, Z.shape[1]) for Z in rng.choice(PLAIN)(rng))


def whole_numbers(rng):
    "Residuals as 3/5 and 4/5, many of them equal."
    sides = rng.integers(1, 7, 2)
    return tuple(rng.choice([-4, -3, 0, 0, 0, 3, 4], (5, n)).astype(float) for n in sides)


def nearly_orthogonal(rng):
    "Every neuron has a partner of its own and leans on a few others."
    n = int(rng.integers(2, 7))
    B = np.eye(n + 2, n)
    return tuple(B + rng.choice([0, 0.1, 0.2], B.shape) * rng.normal(size=B.shape) for _ in "xy")


PLAIN = np.array([shared, noisy, copies, dependent, whole_numbers])
SMALL = [shared, noisy, copies, dependent, with_dead, scaled, whole_numbers, nearly_orthogonal]

# Every pair of subsets


def unit_columns(Z):
    lengths = np.linalg.norm(Z, axis=0)
    live = np.flatnonzero(lengths)
    return Z[:, live] / lengths[live], live


def residuals_of_subsets(own, others):
    """(2**k, t) residuals of unit columns on every subset of k own ones.

    None where a rank is in doubt.
    """
    k = own.shape[1]
    chosen = np.arange(2**k)[:, None] >> np.arange(k) & 1
    U, values, _ = np.linalg.svd(own * chosen[:, None, :], full_matrices=False)
    if ((values > 1e-13) & (values < 1e-5)).any():
        return None
    U = U * (values > 1e-9)[:, None, :]
    rest = others - U @ (U.transpose(0, 2, 1) @ others)
    rest -= U @ (U.transpose(0, 2, 1) @ rest)
    return np.linalg.norm(rest, axis=1)


class Enumerated:
    "All matches of two small layers at an epsilon, as bits: the live neurons of X first."

    def __init__(self, X, Y, rng):
        (X, self.live_x), (Y, self.live_y) = unit_columns(X), unit_columns(Y)
        self.n_x = len(self.live_x)
        self.epsilon = None
        if not (len(self.live_x) and len(self.live_y)):
            return
        sides = residuals_of_subsets(X, Y), residuals_of_subsets(Y, X)
        if any(side is None for side in sides):
            return
        levels = np.concatenate([side.ravel() for side in sides])
        self.epsilon = some_epsilon(levels, rng)
        if self.epsilon is None:
            return
        of_x, of_y = (bits_within(side, self.epsilon) for side in sides)
        x, y = np.arange(len(of_x))[:, None], np.arange(len(of_y))
        matching = ((y & ~of_x[:, None]) == 0) & ((x & ~of_y) == 0)
        self.masks = (x + (y << self.n_x))[matching]

    def name(self, i):
        return ("x", self.live_x[i]) if i < self.n_x else ("y", self.live_y[i - self.n_x])

    @property
    def maximum(self):
        return [i for i in range(12) if np.bitwise_or.reduce(self.masks) >> i & 1]

    def minimal(self, v):
        "The v-minimal matches, each a set of neurons."
        having = sorted(self.masks[self.masks >> v & 1 == 1].tolist(), key=int.bit_count)
        least = []
        for mask in having:
            if not any(mask & other == other for other in least):
                least.append(mask)
        return {frozenset(self.name(i) for i in members(mask)) for mask in least}


def bits_within(residuals, epsilon):
    return (residuals <= epsilon + 1e-10) @ (1 << np.arange(residuals.shape[1]))


def some_epsilon(levels, rng):
    "0, a residual that occurs, or one between two; None where one is too near to tell."
    levels = np.unique(levels[(levels > 1e-12) & (levels < 0.95)])
    how = rng.integers(0, 5)
    epsilon = 0.0
    if len(levels) and how > 1:
        i = int(rng.integers(0, len(levels)))
        epsilon = float(levels[i])
        if how == 2:
            above = levels[levels > epsilon + 1e-6]
            epsilon = (epsilon + (above[0] if len(above) else 0.99)) / 2
    off = np.abs(levels - epsilon)
    return None if ((off > 1e-13) & (off < 1e-7)).any() else epsilon


def drawn(start, count):
    "Seeded instances whose residuals can be told from epsilon, and in which something matches."
    for seed in itertools.count(start * 10**6):
        rng = np.random.default_rng(seed)
        kind = SMALL[int(rng.integers(0, len(SMALL)))]
        X, Y = kind(rng)
        every = Enumerated(X, Y, rng)
        if every.epsilon is None or not len(every.maximum):
            continue
        yield X, Y, every, rng, kind.__name__
        count -= 1
        if not count:
            return


# Against every pair of subsets


def check_limit_and_budget(first, v, epsilon, complete, rng):
    "Any limit and any budget: what is listed is right, and so is the flag."
    all_of_them = set(complete)
    limit = int(rng.integers(1, len(complete) + 2))
    some = minimal_matches(*first, v=v, epsilon=epsilon, limit=limit)
    assert set(some) <= all_of_them and len(set(some)) == min(limit, len(complete))
    assert some.complete == (len(some) == len(complete))
    budget = int(rng.integers(1, complete.calls + 2))
    some = minimal_matches(*first, v=v, epsilon=epsilon, budget=budget)
    assert set(some) <= all_of_them and some.calls == min(budget, complete.calls)
    assert some.complete == (budget >= complete.calls)
    assert not some.complete or set(some) == all_of_them


@pytest.mark.parametrize("chunk", seeds(1, 40))
def test_all_of_ten_thousand_instances(chunk):
    several = 0
    for X, Y, every, rng, kind in drawn(chunk, CHUNK):
        epsilon = every.epsilon
        first = (X, Y)
        assert neurons(maximum_match(X, Y, epsilon)) == {every.name(i) for i in every.maximum}
        for turn, v in enumerate(rng.permutation(every.maximum)[:2]):
            minimal, v = every.minimal(v), every.name(v)
            found = minimal_matches(*first, v=v, epsilon=epsilon)
            assert found.complete, (kind, v)
            assert len(found) == len(minimal) == found.shrinks, (kind, v)
            assert {neurons(match) for match in found} == minimal, (kind, v)
            assert [len(match) for match in found] == sorted(map(len, minimal))
            assert minimal_match(*first, v=v, epsilon=epsilon) in found
            if turn == 0:
                check_limit_and_budget(first, v, epsilon, found, rng)
            several += len(minimal) > 1
    assert several > CHUNK / 8


@pytest.mark.mutate
def test_the_instances_are_of_every_kind():
    "And at epsilon 0, at a residual that occurs, and in between; with one match and with many."
    kinds, at, sizes = set(), set(), set()
    for X, Y, every, rng, kind in drawn(0, 60):
        kinds.add(kind)
        at.add(every.epsilon == 0)
        sizes |= {len(every.minimal(v)) for v in every.maximum}
        assert max(X.shape[1], Y.shape[1]) <= 6
        v = every.maximum[0]
        found = minimal_matches(X, Y, every.name(v), every.epsilon)
        assert {neurons(match) for match in found} == every.minimal(v)
    assert kinds == {kind.__name__ for kind in SMALL} and at == {True, False}
    assert 1 in sizes and max(sizes) > 4


# What it promises besides


def example():
    "x0 has two copies; a third way to explain it needs x1, y2 and y3."
    a, b = np.random.default_rng(0).normal(size=(2, 20))
    return np.stack([a, b], 1), np.stack([a, a, b, a + b], 1)


def with_many(k):
    "A neuron, y0, that has k 2**(k - 1) v-minimal matches: lemma *how many simple matches*."
    x = np.eye(k)
    return x, np.hstack([x.sum(1, keepdims=True), x, x])


@pytest.mark.mutate
def test_all_of_the_example_step_by_step():
    X, Y = example()
    found = minimal_matches(X, Y, ("x", 0), 0)
    assert [(m.x.tolist(), m.y.tolist()) for m in found] == [
        ([0], [0]),
        ([0], [1]),
        ([0, 1], [2, 3]),
    ]
    assert found.complete and found.v == ("x", 0) and found.shrinks == 3
    assert all(match.epsilon == 0 and (match.n_x, match.n_y) == (2, 4) for match in found)
    said = f"MinimalMatches(all 3 of x0; {found.calls} maximum matches, 3 runs of Algorithm 2)"
    assert repr(found) == said
    some = minimal_matches(X, Y, ("x", 0), 0, limit=2)
    assert repr(some).startswith("MinimalMatches(2 of x0, perhaps not all; ")


@pytest.mark.mutate
def test_a_sequence():
    found = minimal_matches(*with_many(3), ("y", 0), 0)
    assert len(found) == 12 and list(found) == [found[i] for i in range(12)]
    assert found[-1] in found and found[2:5] == list(found)[2:5]
    assert Match([0], [0], 0, 3, 7) not in found
    assert isinstance(found, MinimalMatches) and {len(match) for match in found} == {6}


@pytest.mark.mutate
def test_as_the_plain_algorithm_3():
    for seed, kind in itertools.product(range(2), ("planted_groups", "duplicates", "dead")):
        X, Y = (Z[:, :5] for Z in make(kind, seed))
        for epsilon in (0, 0.3):
            for v in list(maximum_match(X, Y, epsilon))[::2]:
                plain = algorithm_3(X, Y, v, epsilon)
                assert plain[0] == algorithm_2(X, Y, v, epsilon)
                assert len(set(plain)) == len(plain)
                assert set(minimal_matches(X, Y, v, epsilon)) == set(plain)


@pytest.mark.mutate
def test_algorithm_3_tells_what_it_deletes():
    "One neuron other than v from each match found so far; a match is found without what goes."
    X, Y = example()
    told = []
    found = algorithm_3(X, Y, ("x", 0), 0, log=lambda *row: told.append(row))
    assert [match for _, match in told if match is not None] == found
    assert told[0] == (set(), found[0]) and told[-1][1] is None
    before = []
    for deleted, match in told:
        assert len(deleted) <= len(before) and ("x", 0) not in deleted
        assert all(deleted & set(other) for other in before)
        if match is not None:
            assert not deleted & set(match)
            before.append(match)
    last = [deleted for deleted, match in told if match is None]
    ways = set(map(frozenset, itertools.product(*(set(m) - {("x", 0)} for m in found))))
    assert ways <= set(map(frozenset, last))  # every way to hit all of them was tried
    n = X.shape[1] + Y.shape[1]
    assert len(told) <= (len(found) + 1) * n ** len(found)  # theorem *running times*


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_how_many_there_can_be(k):
    "Lemma *how many simple matches*, and every list of a given length is as long as asked for."
    X, Y = with_many(k)
    found = minimal_matches(X, Y, ("y", 0), 0)
    assert found.complete and len(found) == k * 2 ** (k - 1) == len(set(found))
    for match in found:
        copies_of = sorted((match.y[1:] - 1) % k)
        assert match.x.tolist() == list(range(k)) and match.y[0] == 0
        assert len(copies_of) == len(set(copies_of)) == k - 1
    for limit in range(1, len(found) + 2, max(1, len(found) // 8)):
        some = minimal_matches(X, Y, ("y", 0), 0, limit=limit)
        assert len(some) == min(limit, len(found)) and set(some) <= set(found)
        assert some.complete == (limit >= len(found))


@pytest.mark.mutate
def test_under_every_budget():
    "What is found within a budget is found within a larger one; complete only with the proof."
    for X, Y, v, epsilon in (
        (*example(), ("x", 0), 0),
        (*with_many(3), ("y", 0), 0),
        (*with_many(3), ("x", 1), 0),
        (*digits_layers(), ("x", 16), 0.1325),
    ):
        whole = minimal_matches(X, Y, v, epsilon, budget=None)
        assert whole.complete
        before = set()
        for budget in range(1, whole.calls + 3):
            some = minimal_matches(X, Y, v, epsilon, budget=budget)
            assert some.calls == min(budget, whole.calls) and some.shrinks == len(some)
            assert before <= set(some) <= set(whole)
            assert some.complete == (budget >= whole.calls)
            before = set(some)
        assert before == set(whole)


class Watched(Enumeration):
    "Which sets were tried, and how many calls were not for Algorithm 2."

    def __init__(self, *given):
        super().__init__(*given)
        self.tried = []

    def without(self, gone):
        self.tried.append(gone)
        return super().without(gone)


def minimal_cuts(every, v):
    "The smallest sets that every match with v has a neuron of."
    having = every.masks[every.masks >> v & 1 == 1].tolist()
    rest = [1 << i for i in every.maximum if i != v]
    least = []
    for k in range(len(rest) + 1):
        for chosen in itertools.combinations(rest, k):
            cut = sum(chosen)
            if all(cut & mask for mask in having) and not any(c & cut == c for c in least):
                least.append(cut)
    return least


@pytest.mark.mutate
def test_no_call_is_wasted():
    """Theorem *enumeration*: besides Algorithm 2 a call finds a match or a minimal cut, no set is
    tried twice, and what every match needs is never deleted along with something else.
    """
    said = 0
    for X, Y, every, *_ in drawn(100, 40):
        numbers = [*every.live_x.tolist(), *(every.live_y + X.shape[1]).tolist()]
        for v in every.maximum[:3]:
            search = Watched(inside(X, Y, every.name(v), every.epsilon, "exclude")).run()
            cuts = [sum(1 << numbers[i] for i in members(cut)) for cut in minimal_cuts(every, v)]
            assert len(set(search.tried)) == len(search.tried)
            assert set(search.cuts) <= set(cuts) and len(set(search.cuts)) == len(search.cuts)
            # every match but the first comes from a set that was tried
            assert len(search.tried) == len(search.cuts) + len(search.found) - 1
            single = sum(cut for cut in cuts if cut.bit_count() == 1)  # N(v), v left out
            assert not any(gone & single for gone in search.tried if gone.bit_count() > 1)
            said += len(search.found) > 3
    assert said > 5


def test_on_a_trained_layer():
    """Where the list is complete on a layer of 64 neurons: minimal matches by definition, that any
    order's answer is in, that share what every match needs, and one where there is one.
    """
    X, Y = digits_layers()
    moments = Moments(X, Y)
    for epsilon in (0.1325, 0.138):
        need = necessary(X, Y, epsilon)
        sizes = set()
        for v in list(maximum_match(X, Y, epsilon))[::9]:
            found = minimal_matches(X, Y, v, epsilon)
            assert found.complete and set(found) == set(
                minimal_matches(moments, v=v, epsilon=epsilon)
            )
            for order in range(4):
                assert minimal_match(X, Y, v, epsilon, order) in found
            assert frozenset.intersection(*map(neurons, found)) == neurons(need[v])
            assert is_unique(X, Y, v, epsilon) == (len(found) == 1)
            sizes.add(len(found))
        assert len(sizes) > 1


@pytest.mark.mutate
def test_more_than_the_budget_allows():
    X, Y = digits_layers()
    some = minimal_matches(X, Y, ("x", 0), 0.2, budget=150)
    assert not some.complete and some.calls == 150 and 3 < len(some) == len(set(some))
    assert some[0] < maximum_match(X, Y, 0.2)
    few = minimal_matches(X, Y, ("x", 0), 0.2, limit=2)
    assert len(few) == 2 and not few.complete and few.calls < 150


@pytest.mark.mutate
def test_invariances():
    "Swapped, permuted, rescaled: the same matches."
    X, Y = (Z[:, :6] for Z in make("duplicates", 5))
    rng = np.random.default_rng(1)
    p, q = rng.permutation(6), rng.permutation(6)
    for v in list(maximum_match(X, Y, 0.3))[::2]:
        found = {neurons(match) for match in minimal_matches(X, Y, v, 0.3)}

        def renamed(given, rename):
            return {frozenset(map(rename, match)) for match in given}

        def swap(u):
            return ("yx"["xy".index(u[0])], u[1])

        swapped = minimal_matches(Y, X, swap(v), 0.3)
        assert renamed(swapped, swap) == found
        scales = 10 ** rng.uniform(-4, 4, (2, 6))
        scaled = minimal_matches(X * scales[0], -Y * scales[1], v, 0.3)
        assert {neurons(match) for match in scaled} == found

        def moved(u):
            return (u[0], int((p if u[0] == "x" else q)[u[1]]))

        there = (v[0], int(np.argsort(p if v[0] == "x" else q)[v[1]]))
        permuted = minimal_matches(X[:, p], Y[:, q], there, 0.3)
        assert renamed(permuted, moved) == found


@pytest.mark.mutate
def test_centred():
    "With center=True: what the plain algorithms say of neurons less their means."
    checked = 0
    for kind in ("planted_groups", "relu_features", "duplicates", "constant_channels"):
        X, Y = (Z[:, :6] + np.arange(1, 7) for Z in make(kind, 2))
        centred = [Z - Z.mean(0) for Z in (X, Y)]
        for Z in centred:
            Z[:, np.ptp(Z, axis=0) < 1e-12] = 0  # a constant neuron is dead
        epsilon = 0.8
        neurons_in = list(algorithm_1(*centred, epsilon))[::2]
        checked += len(neurons_in)
        for v in neurons_in:
            for first in ((X, Y), (Moments(X, Y),)):
                given = {"v": v, "epsilon": epsilon, "center": True}
                assert minimal_match(*first, **given) == algorithm_2(*centred, v, epsilon)
                found = minimal_matches(*first, **given)
                assert found.complete
                assert set(found) == set(minimal_matches(*centred, v, epsilon))
    assert checked > 5


@pytest.mark.mutate
def test_dead_neurons():
    X, Y = np.array([[1.0, 0], [1, 0]]), np.array([[2.0, 2], [2, 2]])
    with pytest.raises(ValueError, match=r"\('x', 1\) is in no match at epsilon = 0: it is dead"):
        minimal_matches(X, Y, ("x", 1), 0)
    alone = minimal_matches(X, Y, ("x", 1), 0, dead="literal")
    assert [neurons(match) for match in alone] == [{("x", 1)}] and alone.complete
    assert (alone.calls, alone.shrinks) == (0, 0)
    live = minimal_matches(X, Y, ("x", 0), 0, dead="literal")
    assert live.complete and set(live) == set(algorithm_3(X, Y, ("x", 0), 0, dead="literal"))
    assert len(live) == 2
    assert [neurons(m) for m in algorithm_3(X, Y, ("x", 1), 0, dead="literal")] == [{("x", 1)}]


@pytest.mark.mutate
@pytest.mark.parametrize("value", [0, -1, 1.5, "all"])
@pytest.mark.parametrize("name", ["limit", "budget"])
def test_bad_limit_and_budget(name, value):
    with pytest.raises(ValueError, match=rf"^{name} is {value!r}: a whole number, at least 1, is"):
        minimal_matches(*example(), ("x", 0), 0, **{name: value})


@pytest.mark.mutate
def test_old_names():
    "`minimum_match` is the same function; `exhaustive=True` warns and gives the same lists."
    import submatch_nb

    X, Y = example()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert submatch_nb.minimum_match is minimal_match
        submatch_nb.minimum_match(X, Y, ("x", 0), 0)
    with pytest.warns(DeprecationWarning, match=r"minimal_matches\(X, Y, v, epsilon\)") as caught:
        every = simple_matches(X, Y, 0, exhaustive=True)
    assert caught[0].filename == __file__
    for v in every.neurons:
        assert every.of(v) == list(minimal_matches(X, Y, v, 0))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_exhaustive_however_alike():
    "The worst: all copies of one neuron, and all in one subspace of half as many dimensions."
    rng = np.random.default_rng(0)
    x = np.ones((20, 1)) @ np.ones((1, 8))
    copies = simple_matches(x, x, 0, exhaustive=True)
    assert len(copies) == 64 and all(len(copies.of(v)) == 8 for v in copies.neurons)
    B = rng.normal(size=(20, 3))
    X, Y = B @ rng.normal(size=(3, 5)), B @ rng.normal(size=(3, 5))
    found = simple_matches(X, Y, 0, exhaustive=True)
    # any three of one side with any three of the other
    assert len(found) == 10 * 10 and {len(m) for m in found} == {6}
    assert all(len(found.of(v)) == 6 * 10 for v in found.neurons)


@pytest.mark.mutate
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_exhaustive_is_refused_where_it_would_not_end():
    x = np.ones((20, 1)) @ np.ones((1, EXHAUSTIVE + 1))
    with pytest.raises(
        ValueError,
        match=rf"{EXHAUSTIVE + 1} \+ 2 neurons.*at most {EXHAUSTIVE} a side: minimal_matches",
    ):
        simple_matches(x, x[:, :2], 0, exhaustive=True)
    with pytest.raises(ValueError, match="leave orders = 2 out"):
        simple_matches(x, x, 0, orders=2, exhaustive=True)
    rng = np.random.default_rng(0)
    X = np.hstack([x[:, :2], rng.normal(size=(20, 12))])
    many = simple_matches(X, x[:, :2], 0, exhaustive=True)
    assert len(many) == 4  # what counts is the match, not the layer


@pytest.mark.mutate
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_exhaustive_with_dead_neurons_read_literally():
    X, Y = np.array([[1.0, 0], [1, 0]]), np.array([[2.0], [2]])
    found = simple_matches(X, Y, 0, dead="literal", exhaustive=True)
    assert [neurons(m) for m in found.of(("x", 1))] == [{("x", 1)}]
    assert [neurons(m) for m in found.of(("x", 0))] == [{("x", 0), ("y", 0)}]


@pytest.mark.mutate
def test_progress_is_shown_late_and_then_goes(monkeypatch):
    bars = []
    tqdm = tqdm_auto.tqdm

    def noted(*items, **how):
        bar = tqdm(*items, **how)
        bars.append((bar, how))
        return bar

    monkeypatch.setattr(tqdm_auto, "tqdm", noted)
    found = minimal_matches(*example(), ("x", 0), 0, budget=50)
    ((bar, how),) = bars
    late = {"desc": "minimal matches", "unit": " calls", "delay": 2, "leave": False, "total": 50}
    assert how.items() >= late.items() and bar.n == found.calls > 1
    bars.clear()
    with pytest.warns(DeprecationWarning):
        simple_matches(*example(), 0, exhaustive=True)
    ((bar, how),) = bars
    late = {"desc": "all simple matches", "unit": " neurons", "delay": 2, "leave": False}
    assert how.items() >= late.items() and bar.n == bar.total > 1


@pytest.mark.mutate
def test_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    X, Y = example()
    on = [torch.as_tensor(Z, device="cuda") for Z in (X, Y)]
    assert list(minimal_matches(*on, ("x", 0), 0)) == list(minimal_matches(X, Y, ("x", 0), 0))
