"""v-minimal and simple matches against enumeration, against Algorithm 2 with the same order, and
against one another.
"""

import numpy as np
import pytest
import torch
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

from submatch_nb.engine import peel as engine_peel
from submatch_nb.engine import search as engine_search
from submatch_nb.engine.inputs import SubmatchWarning
from submatch_nb.engine.moments import Moments
from submatch_nb.engine.peel import start
from submatch_nb.engine.search import needs
from submatch_nb.match import Match, is_match
from submatch_nb.maximum import algorithm_1, epsilon_profile, maximum_match
from submatch_nb.neurons import digits_layers
from submatch_nb.simple import algorithm_2, is_unique, minimal_match, simple_matches

pytestmark = pytest.mark.filterwarnings("ignore::submatch_nb.SubmatchWarning")
SEEDS = st.integers(0, 10**6)


def some_epsilons(X, Y, closeness, count=2):
    "A few epsilons with something in the maximum match, away from every breakpoint."
    found = [
        e
        for e in between(epsilon_profile(X, Y).breakpoints, closeness)
        if len(maximum_match(X, Y, e))
    ]
    return found[:: max(1, len(found) // count)][:count]


def check_against(oracle, given, X, Y, epsilon, e2, rng):
    "Every question that the module answers, against all matches of a small instance."
    maximum, order = oracle.maximum(e2), rng.permutation(len(oracle.neurons))
    simple = simple_matches(*given, epsilon=epsilon, orders=2)
    for v in oracle.neurons:
        if v not in maximum:
            for f in (minimal_match, is_unique):
                with pytest.raises(ValueError, match="is in no match"):
                    f(*given, v=v, epsilon=epsilon)
            with pytest.raises(ValueError, match="is in no match"):
                simple.of(v)
            continue
        minimal = oracle.minimal(v, e2)
        for how in (None, 5, order):
            found = minimal_match(*given, v=v, epsilon=epsilon, order=how)
            assert neurons(found) in minimal
            assert found == algorithm_2(X, Y, v, epsilon, how)
        assert is_unique(*given, v=v, epsilon=epsilon) == (len(minimal) == 1)
        assert {neurons(m) for m in simple.of(v)} <= minimal
    assert {neurons(m) for m in simple} <= oracle.simple(e2)
    assert frozenset().union(*(neurons(m) for m in simple)) == maximum


# Against the definition


@settings(max_examples=25)
@given(integer_layers(3), SEEDS)
def test_exact_at_every_breakpoint(layers, seed):
    X, Y = layers
    oracle, rng = Oracle(X, Y, exact_residual2), np.random.default_rng(seed)
    for e2 in {0, *oracle.breakpoints2()}:
        for first in ((X, Y), (Moments(X, Y),)):
            check_against(oracle, first, X, Y, float(e2) ** 0.5, e2, rng)


@pytest.mark.parametrize("kind", MILD)
@settings(max_examples=2)
@given(seed=SEEDS)
def test_hostile_instances_against_enumeration(kind, seed):
    X, Y = (Z[:, :4] for Z in make(kind, seed))
    oracle, rng = Oracle(X, Y, float_residual2), np.random.default_rng(seed)
    for epsilon in some_epsilons(X, Y, 1e-5):
        for first in ((X, Y), (Moments(X, Y),)):
            check_against(oracle, first, X, Y, epsilon, epsilon**2, rng)


@settings(max_examples=20)
@given(integer_layers(3))
def test_dead_read_literally(layers):
    X, Y = layers
    oracle = Oracle(X, Y, exact_residual2, dead="literal")
    for e2 in {0, *oracle.breakpoints2()}:
        epsilon = float(e2) ** 0.5
        simple = simple_matches(X, Y, epsilon, dead="literal")
        for v in oracle.maximum(e2):
            minimal, found = oracle.minimal(v, e2), minimal_match(X, Y, v, epsilon, dead="literal")
            assert neurons(found) in minimal and found == algorithm_2(
                X, Y, v, epsilon, dead="literal"
            )
            assert is_unique(X, Y, v, epsilon, dead="literal") == (len(minimal) == 1)
            assert {neurons(m) for m in simple.of(v)} <= minimal
        assert frozenset().union(*(neurons(m) for m in simple)) == oracle.maximum(e2)


@pytest.mark.mutate
def test_the_papers_own_example_is_not_unique():
    "z_x = z_y0 = z_y1 gives x two of them."
    X, Y = np.ones((4, 1)), np.ones((4, 2))
    assert not is_unique(X, Y, ("x", 0), 0) and is_unique(X, Y[:, :1], ("x", 0), 0)
    assert {m.y.tolist()[0] for m in simple_matches(X, Y, 0, orders=8).of(("x", 0))} == {0, 1}
    assert is_unique(X, Y, ("y", 1), 0) and minimal_match(X, Y, ("y", 1), 0) == Match(
        [0], [1], 0, 1, 2
    )


# Against Algorithm 2


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=2)
@given(seed=SEEDS)
def test_search_is_algorithm_2_in_the_same_order(kind, seed):
    "For one neuron alone and for all at once; all together they make up the maximum match."
    X, Y = make(kind, seed)
    n = X.shape[1] + Y.shape[1]
    for epsilon in some_epsilons(X, Y, CLOSENESS.get(kind, 1e-7)):
        maximum = algorithm_1(X, Y, epsilon)
        every = simple_matches(X, Y, epsilon, orders=2)
        for v in np.random.default_rng(seed).permutation(len(maximum))[:3]:
            v = list(maximum)[v]
            plain = [algorithm_2(X, Y, v, epsilon, order) for order in (None, 1)]
            assert plain == [minimal_match(X, Y, v, epsilon, order) for order in (None, 1)]
            assert every.of(v) == list(dict.fromkeys(plain))
        for v in maximum:
            assert every.smallest(v) in every.of(v) and len(every.smallest(v)) == min(
                map(len, every.of(v))
            )
            assert all(v in m and is_match(X, Y, epsilon, m.x, m.y) for m in every.of(v))
        assert len(set(every)) == len(every) and set(every) == {
            m for v in maximum for m in every.of(v)
        }
        union = every[0]
        for m in every[1:]:
            union = union | m
        assert union == maximum
        order = np.random.default_rng(seed).permutation(n)
        assert minimal_match(X, Y, v, epsilon, order) == algorithm_2(X, Y, v, epsilon, order)


@pytest.mark.mutate
def test_algorithm_2_tells_what_it_tries():
    """Every neuron that is still there, in order, but v; whether it could be dropped; and the match
    after that.
    """
    X, Y = make("planted_groups", 0)
    n, v = X.shape[1] + Y.shape[1], list(maximum_match(X, Y, 0.3))[2]
    order, left, dropped = np.random.default_rng(0).permutation(n), maximum_match(X, Y, 0.3), []

    def log(u, could, match):
        number = u[1] + (u[0] == "y") * X.shape[1]
        skipped = [
            ("x", i) if i < X.shape[1] else ("y", i - X.shape[1])
            for i in order[len(log.numbers) : list(order).index(number)].tolist()
        ]
        assert u != v and u in log.left and not any(w in log.left and w != v for w in skipped)
        assert (match < log.left and u not in match) if could else match == log.left
        log.numbers, log.left = order[: list(order).index(number) + 1], match
        dropped.append(could)

    log.numbers, log.left = [], left
    assert (
        algorithm_2(X, Y, v, 0.3, order, log=log) == log.left == minimal_match(X, Y, v, 0.3, order)
    )
    assert 0 < sum(dropped) < len(dropped) < len(left)


@pytest.mark.parametrize(
    "settings_",
    [
        {"PENDING_ROWS": 1},
        {"PENDING_ROWS": 2, "DROP_BELOW": 1},
        {"PENDING_ROWS": 3, "AFRESH_BELOW": 0.6},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_search_with_hardly_anything_pending(kind, settings_, monkeypatch):
    """Rows settle within trials and between them, dead ones are dropped at once, states are
    factored afresh: the answer stays Algorithm 2's.
    """
    for name, value in settings_.items():
        monkeypatch.setattr(engine_peel, name, value)
    X, Y = make(kind, 4)
    for epsilon in some_epsilons(X, Y, CLOSENESS.get(kind, 1e-7)):
        every = simple_matches(X, Y, epsilon, orders=2)
        for v in list(algorithm_1(X, Y, epsilon))[::5]:
            assert every.of(v) == list(
                dict.fromkeys(algorithm_2(X, Y, v, epsilon, order) for order in (None, 1))
            )


@pytest.mark.parametrize("kind", marked(KINDS))
def test_arrows_foretell_only_what_happens(kind):
    "A neuron said to need another is not in the maximum match without it."
    X, Y = make(kind, 6)
    total = X.shape[1] + Y.shape[1]
    for epsilon in some_epsilons(X, Y, CLOSENESS.get(kind, 1e-7), 3):
        peel = start(X, Y, epsilon)[0].down_to(epsilon)
        left = peel.left()
        table = needs(peel, left, epsilon, total)
        assert (
            table[left].diagonal().all() and not table[np.setdiff1d(np.arange(total), left)].any()
        )
        for u, row in enumerate(table):
            rest = np.setdiff1d(left, u)
            without = algorithm_1(
                X, Y, epsilon, rest[rest < X.shape[1]], rest[rest >= X.shape[1]] - X.shape[1]
            )
            kept = {*without.x, *(without.y + X.shape[1])}
            assert not kept & set(left[row].tolist())


def test_arrows_save_trials():
    "On a trained layer, where most trials would fail; the answers are the same without arrows."
    X, Y = digits_layers(32)

    def search(needs):
        trials, copy = [], engine_peel.Peel.copy
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine_peel.Peel, "copy", lambda self: (trials.append(1), copy(self))[1])
            patch.setattr(engine_search, "needs", needs)
            return [minimal_match(X, Y, v, 0.2) for v in maximum_match(X, Y, 0.2)], len(trials)

    with_arrows, few = search(needs)
    without, many = search(
        lambda peel, group, epsilon, total: torch.arange(total)[:, None] == group
    )
    assert with_arrows == without and few < 0.6 * many


@pytest.mark.mutate
def test_table_of_sizes():
    X, Y = make("duplicates", 2)
    simple = simple_matches(X, Y, 0.3, orders=6)
    table = simple.table()
    assert (
        table.v.tolist() == [f"{side}{i}" for side, i in simple.neurons]
        and table.distinct.max() > 1
    )
    for (_, row), v in zip(table.iterrows(), simple.neurons):
        sizes = [len(m) for m in simple.of(v)]
        assert (row.distinct, row.smallest, row.largest) == (
            len(sizes),
            min(sizes),
            max(sizes),
        ) and row.smallest == len(simple.smallest(v))
    assert list(
        simple_matches(*np.random.default_rng(0).normal(size=(2, 50, 3)), 0.1).table().columns
    ) == list(table.columns)


def test_a_neuron_that_left_by_itself_is_not_dropped_again():
    "Its place in the basis may be a copy's by then. Rare: one in hundreds of these shows it."
    for seed in range(20, 60):
        X, Y = make("duplicates", seed)
        profile = epsilon_profile(X, Y)
        epsilons = [e for e in between(profile.breakpoints, 1e-7) if len(profile.match(e)) > 3]
        for epsilon in epsilons[:: max(1, len(epsilons) // 3)]:
            v = list(profile.match(epsilon))[seed % len(profile.match(epsilon))]
            assert minimal_match(X, Y, v, epsilon, seed) == algorithm_2(X, Y, v, epsilon, seed)


@pytest.mark.parametrize("kind", MILD)
@settings(max_examples=2)
@given(seed=SEEDS)
def test_moments_say_the_same(kind, seed):
    X, Y = make(kind, seed)
    for epsilon in some_epsilons(X, Y, 1e-4):
        M = Moments(X, Y)
        a, b = simple_matches(X, Y, epsilon, orders=2), simple_matches(M, epsilon=epsilon, orders=2)
        for v in list(maximum_match(X, Y, epsilon))[::4]:
            assert (
                minimal_match(M, v=v, epsilon=epsilon)
                == minimal_match(X, Y, v, epsilon)
                == a.of(v)[0]
            )
            assert a.of(v) == b.of(v)
            assert is_unique(M, v=v, epsilon=epsilon) == is_unique(X, Y, v, epsilon)


def test_minimal_by_definition_on_trained_layers():
    "No maximum match of what is left without any one of its neurons still holds v."
    X, Y = digits_layers(32)
    epsilon = next(e for e in (0.3, 0.4, 0.5, 0.6) if len(maximum_match(X, Y, e)) > 15)
    simple = simple_matches(Moments(X, Y), epsilon=epsilon, orders=2)
    for v in list(maximum_match(X, Y, epsilon))[::20]:
        for m in simple.of(v):
            assert is_match(X, Y, epsilon, m.x, m.y)
            for u in set(m) - {v}:
                rest = [[i for s, i in m if s == side and (s, i) != u] for side in "xy"]
                assert v not in algorithm_1(X, Y, epsilon, *rest)
        assert (
            minimal_match(X, Y, v, epsilon, order=2)
            == algorithm_2(X, Y, v, epsilon, order=2)
            == minimal_match(Moments(X, Y), v=v, epsilon=epsilon, order=2)
        )
        if is_unique(X, Y, v, epsilon):
            assert len(simple.of(v)) == 1


# What must not change the answer


@pytest.mark.parametrize("kind", [k for k in MILD if k != "all_dead_side"])
def test_invariances(kind):
    "Swapped, permuted, rescaled or rotated, with the order carried along: the same neurons."
    X, Y = make(kind, 11)
    rng, (n_x, n_y) = np.random.default_rng(1), (X.shape[1], Y.shape[1])
    order, p, q = rng.permutation(n_x + n_y), rng.permutation(n_x), rng.permutation(n_y)
    back_x, back_y = np.argsort(p), np.argsort(q)

    def scale(n):
        return rng.choice([-1, 1], n) * 10 ** rng.uniform(-6, 6, n)

    rotation = np.linalg.qr(rng.normal(size=(len(X),) * 2))[0]
    for epsilon in some_epsilons(X, Y, 1e-6):
        v = list(maximum_match(X, Y, epsilon))[0]
        m = minimal_match(X, Y, v, epsilon, order)
        swapped = minimal_match(
            Y, X, ("xy"[v[0] == "x"], v[1]), epsilon, (order + n_y) % (n_x + n_y)
        )
        assert (swapped.x.tolist(), swapped.y.tolist()) == (m.y.tolist(), m.x.tolist())
        assert (
            minimal_match(X * scale(n_x), Y * scale(n_y), v, epsilon, order)
            == m
            == minimal_match(rotation @ X, rotation @ Y, v, epsilon, order)
        )
        moved = minimal_match(
            X[:, p],
            Y[:, q],
            (v[0], int((back_x if v[0] == "x" else back_y)[v[1]])),
            epsilon,
            np.r_[back_x, back_y + n_x][order],
        )
        assert (sorted(p[moved.x]), sorted(q[moved.y])) == (m.x.tolist(), m.y.tolist())
        assert is_unique(Y, X, ("xy"[v[0] == "x"], v[1]), epsilon) == is_unique(X, Y, v, epsilon)


@pytest.mark.mutate
def test_a_layer_on_itself_matches_neuron_by_neuron():
    X, _ = make("relu_features", 1)
    every = simple_matches(X, X, 0)
    assert [(m.x.tolist(), m.y.tolist()) for m in every] == [([i], [i]) for i in range(X.shape[1])]
    assert all(is_unique(X, X, v, 0) for v in (("x", 0), ("y", 3)))


# A sequence of matches


@pytest.mark.mutate
def test_simple_matches_are_a_sequence():
    X, Y = make("planted_groups", 3)
    every = simple_matches(X, Y, 0.3)
    assert (
        list(every) == [every[i] for i in range(len(every))]
        and every[-1] in every
        and every.epsilon == 0.3
    )
    assert all(m.epsilon == 0.3 for m in every)
    none = simple_matches(*(np.random.default_rng(0).normal(size=(2, 50, 3))), 0.1)
    assert len(none) == 0 and repr(none) == "SimpleMatches(0 distinct for 0 neurons at epsilon 0.1)"
    sizes = [len(m) for m in every]
    assert (
        repr(every)
        == f"SimpleMatches({len(sizes)} distinct for {len(every.neurons)} neurons at epsilon 0.3,"
        f" median size {np.median(sizes):g})"
    )


@pytest.mark.mutate
def test_more_orders_never_lose_one():
    X, Y = make("duplicates", 2)
    few, many = simple_matches(X, Y, 0.3, orders=1), simple_matches(X, Y, 0.3, orders=6)
    assert set(few) < set(many)
    for v in maximum_match(X, Y, 0.3):
        assert set(few.of(v)) <= set(many.of(v)) and len(many.smallest(v)) <= len(few.smallest(v))


# Bad input

X, Y = make("planted_groups", 0)
ONE = [minimal_match, is_unique, algorithm_2]


@pytest.mark.mutate
@pytest.mark.parametrize("f", ONE)
@pytest.mark.parametrize(
    "v, error, says",
    [
        (("z", 0), TypeError, r"v is \('z', 0\)"),
        (3, TypeError, "v is 3"),
        ("x3", TypeError, "v is 'x3'"),
        (("x", 1.5), TypeError, r"\('x', 1.5\)"),
        (("x", "1"), TypeError, r"\('x', '1'\)"),
        (("x",), TypeError, r"\('x',\)"),
        (None, TypeError, "v is None"),
        (("y", -1), IndexError, r"\('y', -1\)"),
        (
            ("x", X.shape[1]),
            IndexError,
            rf"^v is \('x', {X.shape[1]}\), but x has neurons 0 to {X.shape[1] - 1}$",
        ),
        (
            ("y", Y.shape[1]),
            IndexError,
            rf"^v is \('y', {Y.shape[1]}\), but y has neurons 0 to {Y.shape[1] - 1}$",
        ),
    ],
)
def test_unknown_neuron(f, v, error, says):
    with pytest.raises(error, match=says):
        f(X, Y, v, 0.3)


@pytest.mark.mutate
@pytest.mark.parametrize("f", ONE)
def test_a_neuron_in_no_match(f):
    A = np.c_[X, np.random.default_rng(0).normal(size=len(X)), np.zeros(len(X))]
    lone, dead = ("x", X.shape[1]), ("x", X.shape[1] + 1)
    for side, first in (("x", (A, Y)), ("y", (Y, A))):
        with pytest.raises(
            ValueError,
            match=(
                rf"^\('{side}', {lone[1]}\) is in no match at epsilon = 0.3: its critical epsilon,"
                r" which epsilon_profile gives, is larger$"
            ),
        ):
            f(*first, (side, lone[1]), 0.3)
        with pytest.raises(
            ValueError,
            match=(
                rf"^\('{side}', {dead[1]}\) is in no match at epsilon = 0.3: it is dead, 0 on every"
                r" sample$"
            ),
        ):
            f(*first, (side, dead[1]), 0.3)
    with pytest.raises(
        ValueError, match=rf"\('x', {lone[1]}\) is in no match at epsilon = 0.3; .neurons lists"
    ):
        simple_matches(A, Y, 0.3).of(lone)
    with pytest.raises(IndexError, match="99"):
        simple_matches(A, Y, 0.3).of(("y", 99))


@pytest.mark.mutate
@pytest.mark.parametrize("f", ONE + [simple_matches])
def test_bad_epsilon_and_bad_activations(f):
    rest = {} if f is simple_matches else {"v": ("x", 0)}
    for epsilon, error in (
        (1, ValueError),
        (-0.1, ValueError),
        (np.nan, ValueError),
        ("0.3", TypeError),
        (None, TypeError),
    ):
        with pytest.raises(error, match="epsilon is"):
            f(X, Y, epsilon=epsilon, **rest)
    bad = Y.copy()
    bad[3, 1] = np.nan
    for culprit, error, says in (
        (bad, ValueError, "Y: neuron 1 is nan at sample 3"),
        (Y[1:], ValueError, "Y has 49"),
        (Y[:, 0], ValueError, r"Y has shape \(50,\)"),
        (Y[:, :0], ValueError, r"Y has shape \(50, 0\)"),
        (0.3, TypeError, "Y is 0.3.*keyword"),
    ):
        with pytest.raises(error, match=says):
            f(X, culprit, epsilon=0.3, **rest)
    with pytest.raises(ValueError, match="dead is 'no'"):
        f(X, Y, epsilon=0.3, dead="no", **rest)
    if f is not algorithm_2:
        with pytest.raises(TypeError, match="Y is left out"):
            f(Moments(X, Y), Y, epsilon=0.3, **rest)
        with pytest.raises(TypeError, match="Y is missing"):
            f(X, epsilon=0.3, **rest)


@pytest.mark.mutate
@pytest.mark.parametrize(
    "order",
    [
        [0, 1],
        list(range(1, X.shape[1] + Y.shape[1] + 1)),
        [0] * (X.shape[1] + Y.shape[1]),
        np.eye(3),
        "random",
        1.5,
        -1,
    ],
)
@pytest.mark.parametrize("f", [minimal_match, algorithm_2])
def test_bad_order(f, order):
    with pytest.raises(
        (ValueError, TypeError), match=rf"order .*permutation of range\({X.shape[1] + Y.shape[1]}\)"
    ):
        f(X, Y, list(maximum_match(X, Y, 0.3))[0], 0.3, order)


@pytest.mark.mutate
@pytest.mark.parametrize("orders", [0, -1, 1.5, None])
def test_bad_number_of_orders(orders):
    with pytest.raises((ValueError, TypeError), match="orders"):
        simple_matches(X, Y, 0.3, orders=orders)


@pytest.mark.mutate
def test_seeds_are_reproducible_and_matter():
    A, B = make("duplicates", 2)
    v = ("x", 0) if ("x", 0) in maximum_match(A, B, 0.3) else list(maximum_match(A, B, 0.3))[0]
    found = [minimal_match(A, B, v, 0.3, seed) for seed in range(4)]
    assert found == [minimal_match(A, B, v, 0.3, seed) for seed in range(4)]
    order = np.random.default_rng(0).permutation(A.shape[1] + B.shape[1])
    for same in (order.tolist(), torch.as_tensor(order), order.astype(np.int32)):
        assert minimal_match(A, B, v, 0.3, same) == minimal_match(A, B, v, 0.3, order)
    assert any(
        len({minimal_match(A, B, u, 0.3, seed) for seed in range(8)}) > 1
        for u in maximum_match(A, B, 0.3)
    )


@pytest.mark.mutate
@pytest.mark.filterwarnings("error::submatch_nb.SubmatchWarning")
def test_spans_that_fill_the_space_warn():
    A, B = np.random.default_rng(0).normal(size=(2, 4, 6))
    for first in ((A, B), (Moments(A, B),)):
        for f, rest in (
            (minimal_match, {"v": ("x", 0)}),
            (is_unique, {"v": ("x", 0)}),
            (simple_matches, {}),
        ):
            with pytest.warns(SubmatchWarning, match=r"span all of R\^4"):
                f(*first, epsilon=0.3, **rest)


@pytest.mark.mutate
def test_inputs_stay_as_they_were():
    A, B = (torch.tensor(Z, requires_grad=True) for Z in (X, Y))
    M = Moments(A, B)
    gram = M.gram.clone()
    for first in ((A, B), (M,)):
        v = list(maximum_match(X, Y, 0.3))[0]
        (
            minimal_match(*first, v=v, epsilon=0.3),
            is_unique(*first, v=v, epsilon=0.3),
            simple_matches(*first, epsilon=0.3),
        )
    assert (
        np.array_equal(A.detach(), X)
        and np.array_equal(B.detach(), Y)
        and torch.equal(M.gram, gram)
        and A.grad is None
    )


@pytest.mark.mutate
def test_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    on = [torch.as_tensor(Z, device="cuda") for Z in (X, Y)]
    for v in maximum_match(X, Y, 0.3):
        assert minimal_match(*on, v, 0.3) == minimal_match(X, Y, v, 0.3) and is_unique(
            *on, v, 0.3
        ) == is_unique(X, Y, v, 0.3)
    assert list(simple_matches(*on, 0.3, orders=2)) == list(simple_matches(X, Y, 0.3, orders=2))
