"""Every statement of the theory, on small instances where it says something, against every pair of
subsets in exact arithmetic.

Each test checks the statement itself on the enumeration, and that the library obeys it. `--long`
tries ten times as many instances.
"""

import json
import math
import zlib
from fractions import Fraction
from itertools import combinations
from math import prod
from pathlib import Path

import numpy as np
import pytest
from instances import neurons, orthogonal, smallest_angle, span_of_integers, split, subsets
from theorems import FILE, FIXED, RECORD, STATEMENTS, given_of, layers, statement, write_record

from submatch_nb.match import Match, is_match
from submatch_nb.maximum import algorithm_1, epsilon_profile, max_match_similarity, maximum_match
from submatch_nb.neurons import chance_epsilon, residuals
from submatch_nb.simple import (
    algorithm_2,
    algorithm_3,
    is_unique,
    minimal_match,
    minimal_matches,
    simple_matches,
)
from submatch_nb.structure import (
    are_unique,
    exact_simple_matches,
    find_unstable,
    independence_angle,
    intersection_factor,
    is_stable,
    necessary,
)

pytestmark = pytest.mark.filterwarnings("ignore::submatch_nb.SubmatchWarning")
PAPER = "Wang et al. 2018"
NEURONS, MATCH, MAXIMUM, SIMPLE, STRUCTURE = (
    "00_neurons",
    "01_match",
    "02_maximum",
    "03_simple",
    "04_structure",
)
SPARSE = (0, 0, 0, 1, -1)  # coefficients


def union(sets):
    return frozenset().union(*sets)


def properly(a, b):
    return not a <= b and not b <= a


def some(items, most=4):
    return list(items)[:: max(1, len(items) // most)][:most]


def is_ours(case, M, epsilon=None):
    return is_match(case.X, case.Y, case.epsilon if epsilon is None else epsilon, *split(M))


def lower(oracle, levels):
    return levels[: (len(levels) + 1) // 2]


# Matches


@statement(
    "Monotonicity",
    f"{PAPER}, what every proof rests on",
    MATCH,
    "a neuron's residual falls when more neurons span",
)
def test_monotonicity(case):
    falls = False
    for (v, S), r2 in case.oracle.r2.items():
        larger = [r for (u, T), r in case.oracle.r2.items() if u == v and S < T]
        assert all(r <= r2 for r in larger)
        falls |= bool(S) and any(r < r2 for r in larger)
    Z = {"x": case.X, "y": case.Y}
    for S in {S for _, S in case.oracle.r2 if S}:
        (own, _), other = min(S), "xy"[min(S)[0] == "x"]
        for i, r in enumerate(residuals(Z[other], Z[own][:, sorted(i for _, i in S)])):
            r2 = case.oracle.r2.get(((other, i), S))
            assert np.isnan(r) if r2 is None else abs(r - float(r2) ** 0.5) < 1e-12
    return falls


@statement(
    "Closed under union",
    f"{PAPER}, lemma",
    MATCH,
    "two matches, neither inside the other",
    examples=3,
)
def test_closed_under_union(case):
    pairs = [(a, b) for a, b in combinations(case.matches, 2) if properly(a, b)]
    assert all(case.oracle.level[a | b] <= case.e2 for a, b in pairs)
    for a, b in some(pairs):
        ours = [Match(*split(M), case.epsilon, case.X.shape[1], case.Y.shape[1]) for M in (a, b)]
        assert (
            is_ours(case, a)
            and is_ours(case, b)
            and is_match(case.X, case.Y, case.epsilon, (ours[0] | ours[1]).x, (ours[0] | ours[1]).y)
        )
    return pairs


@statement(
    "The maximum match is the union of all matches",
    f"{PAPER}, definition and Algorithm 1",
    MAXIMUM,
    "it is not empty, and not every live neuron is in it",
    layers(at=lower),
    examples=3.5,
)
def test_maximum_is_the_union_of_all_matches(case):
    assert case.maximum in case.matches and all(case.maximum >= M for M in case.matches)
    assert neurons(algorithm_1(case.X, case.Y, case.epsilon)) == case.maximum
    for first in case.given:
        match = maximum_match(*first, epsilon=case.epsilon)
        assert neurons(match) == case.maximum and match.similarity == max_match_similarity(
            *first, epsilon=case.epsilon
        ) == len(case.maximum) / len(case.order)
    assert is_ours(case, case.maximum) and not any(
        is_ours(case, case.maximum | {v}) for v in case.live - case.maximum
    )
    return case.maximum and case.maximum < case.live


@statement(
    "The order of removal does not matter",
    f"{PAPER}, Algorithm 1",
    MAXIMUM,
    "two or more neurons are over epsilon at once, and a match is left",
    layers(at=lower, most=5),
    examples=6,
)
def test_order_of_removal(case):
    left, choices = case.live, 0
    while True:
        assert (
            case.maximum <= left
            and neurons(algorithm_1(case.X, case.Y, case.epsilon, *split(left))) == case.maximum
        )
        over = [
            v
            for v in case.ordered
            if v in left and case.oracle.r2[v, frozenset(u for u in left if u[0] != v[0])] > case.e2
        ]
        if not over:
            break
        choices = max(choices, len(over))
        left = left - {over[0]}
    assert left == case.maximum
    return choices > 1 and left


# Simple matches


def everything(*first, epsilon):
    "All v-minimal matches of every neuron v of the maximum match."
    found = {}
    for v in maximum_match(*first, epsilon=epsilon):
        found[v] = minimal_matches(*first, v=v, epsilon=epsilon)
        assert found[v].complete and len(set(found[v])) == len(found[v])
    return found


@statement(
    "Decomposition",
    f"{PAPER}, theorem",
    SIMPLE,
    "a match that is not simple, with several simple ones inside",
    examples=3.5,
)
def test_decomposition(case):
    simple = case.oracle.simple(case.e2)
    composed = [M for M in case.matches if M and M not in simple]
    for M in case.matches:
        assert union(S for S in simple if S <= M) == M
    for M in some(composed, 2):
        x, y = split(M)
        inside = everything(case.X[:, x], case.Y[:, y], epsilon=case.epsilon)
        parts = {
            frozenset([("x", x[i]) for i in m.x] + [("y", y[j]) for j in m.y])
            for of_v in inside.values()
            for m in of_v
        }
        assert union(parts) == M and parts == {S for S in simple if S <= M}
    return composed


@statement(
    "Simple if and only if v-minimal for some v",
    f"{PAPER}, theorem",
    SIMPLE,
    "two or more simple matches, and a match that is not simple",
    examples=3,
)
def test_simple_is_minimum(case):
    simple = case.oracle.simple(case.e2)
    assert simple == {M for v in case.maximum for M in case.oracle.minimal(v, case.e2)}
    for first in case.given:
        ours = everything(*first, epsilon=case.epsilon)
        assert {neurons(m) for of_v in ours.values() for m in of_v} == simple
        assert set(ours) == case.maximum
        for v in case.maximum:
            assert {neurons(m) for m in ours[v]} == case.oracle.minimal(v, case.e2)
        assert {
            neurons(m) for m in simple_matches(*first, epsilon=case.epsilon, orders=2)
        } <= simple
    return len(simple) > 1 and any(M and M not in simple for M in case.matches)


def plain_algorithm_2(case, v):
    "Algorithm 2 on the enumeration; and how many neurons it dropped and had to put back."
    match, dropped, kept = case.maximum, 0, 0
    for u in case.ordered:
        if u == v or u not in match:
            continue
        smaller = union(M for M in case.matches if match - {u} >= M)
        dropped, kept = dropped + (v in smaller), kept + (v not in smaller)
        if v in smaller:
            match = smaller
    return match, dropped and kept


@statement(
    "Algorithm 2 finds a v-minimal match",
    f"{PAPER}, Algorithm 2",
    SIMPLE,
    "some neurons are dropped and some must be put back",
    examples=3,
)
def test_algorithm_2(case):
    said = False
    for v in some(sorted(case.maximum), 3):
        match, both = plain_algorithm_2(case, v)
        assert match in case.oracle.minimal(v, case.e2)
        assert neurons(algorithm_2(case.X, case.Y, v, case.epsilon, case.order)) == match
        said |= bool(both)
    return said


@statement(
    "Block search finds what Algorithm 2 finds",
    "ours",
    SIMPLE,
    "at least three neurons to try, and a match strictly inside the maximum match",
    layers(most=5),
    examples=2.8,
)
def test_block_search(case):
    said, minimal = False, {v: case.oracle.minimal(v, case.e2) for v in case.maximum}
    for v in some(sorted(case.maximum), 2):
        match, _ = plain_algorithm_2(case, v)
        for first in case.given:
            assert (
                neurons(minimal_match(*first, v=v, epsilon=case.epsilon, order=case.order)) == match
            )
        said |= len(case.maximum) > 3 and match < case.maximum
    for first in case.given:
        found = simple_matches(*first, epsilon=case.epsilon, orders=2)
        assert found.neurons == sorted(case.maximum)
        for v in some(sorted(case.maximum), 1):
            assert found.of(v) == list(
                dict.fromkeys(
                    minimal_match(*first, v=v, epsilon=case.epsilon, order=order)
                    for order in (None, 1)
                )
            )
        for v in found.neurons:
            assert {neurons(m) for m in found.of(v)} <= minimal[v]
    return said


@statement(
    "Dropping in two steps",
    "ours",
    SIMPLE,
    "the loss of two neurons of a match inside most of the others takes a third with it",
)
def test_dropping_in_two_steps(case):
    "The maximum match of (the maximum match of A, less B) is that of A less B."
    said = False
    for left_out in case.ordered[:3]:
        A = frozenset(case.ordered) - {left_out}
        first = largest(case, A)
        for B in map(frozenset, combinations(case.ordered[-4:], 2)):
            at_once = largest(case, A - B)
            assert largest(case, first - B) == at_once
            plain = algorithm_1(case.X, case.Y, case.epsilon, *split(first - B))
            assert neurons(plain) == at_once
            said |= first >= B and at_once < first - B
    return said


def largest(case, S):
    "The maximum match of some neurons: the union of all matches inside."
    return union(M for M in case.matches if M <= S)


@statement(
    "Algorithm 3 finds all v-minimal matches",
    f"{PAPER}, Algorithm 3",
    SIMPLE,
    "a neuron has three or more",
    examples=10,
)
def test_algorithm_3(case):
    "And within the choices that theorem *running times* allows."
    said = False
    for v in some(sorted(case.maximum), 2):
        minimal = case.oracle.minimal(v, case.e2)
        for first in case.given:
            found = minimal_matches(*first, v=v, epsilon=case.epsilon)
            assert found.complete and len(found) == len(minimal) == found.shrinks
            assert {neurons(m) for m in found} == minimal
        said |= len(minimal) > 2
        if prod(len(M) - 1 for M in minimal) > 50:
            continue  # the plain algorithm would take too long
        tried = []
        plain = algorithm_3(
            case.X, case.Y, v, case.epsilon, log=lambda gone, _, tried=tried: tried.append(gone)
        )
        assert {neurons(m) for m in plain} == minimal and len(plain) == len(minimal)
        most = (len(minimal) + 1) * len(case.order) ** len(minimal)
        assert len(minimal) <= len(tried) <= most and all(v not in gone for gone in tried)
    return said


@statement(
    "A list is complete where its minimal hitting sets are cuts",
    "ours, after Reiter 1987",
    SIMPLE,
    "a neuron has three or more v-minimal matches",
    examples=10,
)
def test_a_complete_list(case):
    "And any list that lacks one has a minimal hitting set that is no cut."
    said = False
    for v in some(sorted(case.maximum), 2):
        minimal = case.oracle.minimal(v, case.e2)
        assert all(is_cut(case, v, D) for D in minimal_hitting_sets(case, v, minimal))
        for M in some(sorted(minimal, key=sorted), 3):
            without = minimal_hitting_sets(case, v, minimal - {M})
            assert not all(is_cut(case, v, D) for D in without)
        said |= len(minimal) > 2
    return said


def is_cut(case, v, D):
    "Is v lost without D?"
    return v not in largest(case, case.maximum - D)


def minimal_hitting_sets(case, v, sets):
    "The smallest sets of other neurons that have one of each set."
    found = []
    for D in subsets(case.maximum - {v}):
        if all(D & S for S in sets) and not any(smaller <= D for smaller in found):
            found.append(D)
    return found


# Structure

BELOW_1 = 1 - 1e-9  # out of reach of rounding


def theta(X, Y):
    return min(smallest_angle(Z[:, Z.any(0)]) for Z in (X, Y))


def factor(X, Y):
    return 2 / math.sin(theta(X, Y)) + 1 if theta(X, Y) else math.inf


def unstable(oracle, e2, f2):
    "Every neuron and subset of the other side with a squared residual in (e2, f2 e2]."
    return {vS for vS, r2 in oracle.r2.items() if e2 < r2 <= f2 * e2 * (1 + 1e-9)}


def stable(oracle, levels):
    """The squared epsilons above 0 at which no residual on a subset, the empty one included, is in
    (epsilon, (2/sin theta + 1) epsilon].
    """
    f2 = factor(*oracle.layers) ** 2
    return [r2 for r2 in levels if r2 and f2 < math.inf and not unstable(oracle, r2, f2)]


def met(oracle, e2):
    return {a & b for a, b in combinations(oracle.matches(e2), 2)}


def not_closed(oracle, levels):
    "Those at which an intersection of matches is no match, and the lemma promises something."
    f2 = factor(*oracle.layers) ** 2
    return [
        r2
        for r2 in levels
        if r2 and f2 * r2 < BELOW_1 and any(oracle.level[M] > r2 for M in met(oracle, r2))
    ]


def arrows(case):
    """v -> the neurons without which v would not lie in the span of the other side's matched
    neurons: where its unique coefficients are not 0.
    """
    side = {s: frozenset(v for v in case.maximum if v[0] == s) for s in "xy"}
    return {
        v: {
            u
            for u in side["xy"[v[0] == "x"]]
            if case.oracle.r2[v, side["xy"[v[0] == "x"]] - {u}] > 0
        }
        for v in case.maximum
    }


def reach(v, after):
    seen, todo = set(), [v]
    while todo:
        if (u := todo.pop()) not in seen:
            seen, todo = seen | {u}, todo + list(after[u])
    return frozenset(seen)


@statement(
    "Exact simple matches are reachability sets",
    f"ours, on the exact case of {PAPER}",
    STRUCTURE,
    "matched neurons of each side are independent, and two or more of their matches differ",
    layers(
        scales=(1,),
        mixing=SPARSE,
        independent=True,
        at=lambda oracle, levels: [Fraction(0)],
        between=False,
        most=5,
    ),
    examples=7,
)
def test_reachability(case):
    dependent = [
        s
        for s in "xy"
        if len(orthogonal(tuple(case.oracle.columns[v] for v in case.maximum if v[0] == s)))
        < sum(v[0] == s for v in case.maximum)
    ]
    simple, minimal, after = (
        case.oracle.simple(0),
        {v: case.oracle.minimal(v, 0) for v in case.maximum},
        arrows(case),
    )
    for first in case.given:
        if dependent:
            with pytest.raises(ValueError, match=rf"independent.*({'|'.join(dependent)})\d"):
                exact_simple_matches(*first)
            continue
        ours = exact_simple_matches(*first)
        assert set(ours.neurons) == case.maximum and ours.epsilon == 0
        assert {neurons(m) for m in ours} == simple and len(ours) <= len(case.maximum)
        for v in case.maximum:
            assert {neurons(m) for m in ours.of(v)} == minimal[v] == {reach(v, after)}
    return not dependent and len(simple) > 1


@statement(
    "Nearly closed under intersection",
    f"{PAPER}, lemma",
    STRUCTURE,
    "the intersection of two matches is none at epsilon itself, and (2/sin theta + 1) epsilon < 1",
    layers(
        scales=(9, 30),
        mixing=(0,) * 12 + (1,),
        noise=(0, 1, -1, 2),
        strangers=(0,),
        independent=True,
        fewest=4,
        at=not_closed,
        between=False,
    ),
    examples=6,
)
def test_nearly_closed_under_intersection(case):
    limit = intersection_factor(theta(case.X, case.Y)) * case.epsilon
    if not limit < BELOW_1:
        return False
    meets = met(case.oracle, case.e2)
    for M in meets:
        assert float(case.oracle.level[M]) ** 0.5 <= limit * (1 + 1e-9)
    for M in sorted(meets, key=lambda M: (case.oracle.level[M], sorted(M)))[-2:]:
        assert is_ours(case, M, limit * (1 + 1e-10))
    return any(case.oracle.level[M] > case.e2 for M in meets)


@statement(
    "Unique where stable",
    f"{PAPER}, corollary",
    STRUCTURE,
    "stable at an epsilon above 0, at which some match is not exact and some v-minimal match is not"
    " the maximum match",
    layers(
        scales=(60, 90),
        mixing=SPARSE,
        noise=(0, 0, 1, -1),
        independent=True,
        at=stable,
        between=False,
    ),
    examples=6,
)
def test_unique_where_stable(case):
    f2 = factor(case.X, case.Y) ** 2
    if not case.e2 or f2 == math.inf:
        return False
    out_of_place = unstable(case.oracle, case.e2, f2)
    if not any(abs(r2 - f2 * case.e2) < 1e-9 for r2 in case.oracle.r2.values()):
        found = find_unstable(case.X, case.Y, case.epsilon, f2**0.5)
        assert {(u.v, frozenset(u.others)) for u in found} == out_of_place
        assert is_stable(case.X, case.Y, case.epsilon, f2**0.5) == (not out_of_place)
    if out_of_place:
        return False
    assert all(case.oracle.level[a & b] <= case.e2 for a, b in combinations(case.matches, 2))
    assert all(len(case.oracle.minimal(v, case.e2)) == 1 for v in case.maximum)
    for first in case.given:
        assert all(are_unique(*first, epsilon=case.epsilon).values())
    return any(case.oracle.level[M] for M in case.matches) and any(
        case.maximum > M for M in case.oracle.simple(case.e2)
    )


@statement(
    "Wielandt's bound",
    "Wielandt's inequality; the certificate is ours",
    STRUCTURE,
    "an angle above 0 among two or more neurons of a side",
    layers(scales=(1, 3, 9), mixing=SPARSE, independent=True, most=5),
)
def test_wielandt(case):
    said = False
    for Z in (live for live in (Z[:, Z.any(0)] for Z in (case.X, case.Y)) if live.size):
        true, ours = smallest_angle(Z), independence_angle(Z)
        assert 0 <= ours <= true + 1e-12 and (ours > 0) == (true > 0)
        kappa = np.linalg.cond(Z / np.linalg.norm(Z, axis=0)) ** 2
        if true:
            assert math.sin(ours) == pytest.approx(2 * kappa**0.5 / (kappa + 1), abs=1e-9)
        if Z.shape[1] == 2:
            assert ours == pytest.approx(
                true, abs=1e-9
            )  # where it is no bound but the angle itself
        said |= true > 0 and Z.shape[1] > 1
    return said


@statement(
    "Uniqueness is decided by the neurons that every match of v needs",
    "ours",
    SIMPLE,
    "one neuron has a single v-minimal match, and it is not the maximum match; another has several",
    examples=4,
)
def test_uniqueness(case):
    unique = {}
    needs = {v: frozenset.intersection(*(M for M in case.matches if v in M)) for v in case.maximum}
    for v in case.maximum:
        minimal = case.oracle.minimal(v, case.e2)
        assert (
            (minimal == {needs[v]})
            == (len(minimal) == 1)
            == (v in union(M for M in case.matches if needs[v] >= M))
        )
        unique[v] = len(minimal) == 1
    for first in case.given:
        assert {
            v: neurons(m) for v, m in necessary(*first, epsilon=case.epsilon).items()
        } == needs and are_unique(*first, epsilon=case.epsilon) == unique
        for v in some(sorted(unique), 2):
            assert is_unique(*first, v=v, epsilon=case.epsilon) == unique[v]
    return not all(unique.values()) and any(unique[v] and needs[v] < case.maximum for v in unique)


# Every epsilon at once


@statement(
    "The profile holds the maximum match of every epsilon",
    "ours",
    MAXIMUM,
    "three or more critical values below 1",
    layers(most=5),
    examples=3,
)
def test_profile(case):
    breakpoints = case.oracle.breakpoints2()
    critical = {v: case.oracle.critical2(v) for v in case.oracle.neurons}
    for first in case.given:
        profile = epsilon_profile(*first)
        for v, c2 in critical.items():
            got = getattr(profile, v[0])[v[1]]
            assert np.isinf(got) if c2 is None else abs(got - float(c2) ** 0.5) < 1e-9
        assert len(profile.breakpoints) == len(set(critical.values()) - {None})
        for low, high in zip([0, *breakpoints], [*breakpoints, 1]):
            epsilon = float((low + high) / 2) ** 0.5
            assert profile.match(epsilon) == algorithm_1(case.X, case.Y, epsilon)
            assert neurons(profile.match(epsilon)) == case.oracle.maximum(epsilon**2)
            assert profile.similarity(epsilon) == sum(
                c2 is not None and c2 <= epsilon**2 for c2 in critical.values()
            ) / len(critical)
    return len(breakpoints) >= 3


# Chance

VECTORS = 20_000
MARGIN = math.sqrt(
    math.log(2e9) / 2 / VECTORS
)  # Hoeffding: the mean of so many values in [0, 1] is further off with probability below 1e-9


@statement(
    "Gaussian chance level", "ours", NEURONS, "the neurons span neither nothing nor everything"
)
def test_chance_level(case):
    """On a span of n dimensions in R^d, the squared residual of Gaussian neurons is 1 - n/d on
    average.
    """
    said, rng = False, np.random.default_rng(zlib.crc32(repr(case.key).encode()))
    for Z in (case.X, case.Y):
        d, n = len(Z), len(span_of_integers(Z))
        noise = rng.normal(size=(d, VECTORS))
        assert abs((residuals(noise, Z) ** 2).mean() - (1 - n / d)) < MARGIN
        assert chance_epsilon(d, n) == pytest.approx((1 - n / d) ** 0.5, abs=1e-15)
        said |= 0 < n < d
    return said


@statement(
    "Full spans match everything", "ours", NEURONS, "both sides span all of R^d, d at least 2"
)
def test_full_spans(case):
    ranks = [
        [len(span_of_integers(Z[:d])) for Z in (case.X, case.Y)] for d in range(len(case.X) + 1)
    ]
    d = max(d for d, r in enumerate(ranks) if r == [d, d])
    if not d:
        return False
    X, Y = case.X[:d], case.Y[:d]
    live = (X.any(0).sum() + Y.any(0).sum()) / (X.shape[1] + Y.shape[1])
    for first in given_of(X, Y):
        assert (
            max_match_similarity(*first, epsilon=0)
            == live
            == max_match_similarity(*first, epsilon=0.99)
        )
        assert epsilon_profile(*first).breakpoints.tolist() == [0]
    return d > 1


# The record


def test_the_record_is_in_step(request):
    "The table in chapter Structure is made from it. `--record` writes it anew."
    if request.config.getoption("--record"):
        write_record()
    known = json.loads(RECORD.read_text())["statements"]
    assert {
        name: {key: row[key] for key in about}
        for (name, about), row in zip(STATEMENTS.items(), map(known.get, STATEMENTS))
    } == STATEMENTS and len(known) == len(STATEMENTS)
    assert all(row["tried"] >= row["instances"] >= FIXED for row in known.values())
    assert all(
        f"def {row['test'].removeprefix(FILE + '::')}(case)" in Path(__file__).read_text()
        for row in known.values()
    )
