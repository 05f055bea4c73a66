"""What the bench of theorems is made of.

Small integer layers that make a statement say something, and a count of those that did.
"""

import functools
import json
import zlib
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import assume, given, seed, settings
from hypothesis import strategies as st
from instances import Oracle, dot, exact_residual2, span_of_integers, subsets

from submatch_nb.engine.moments import Moments
from submatch_nb.engine.writing import write_whole

RECORD = Path(__file__).parent.parent / "nbs" / "theorems.json"
FILE = "tests/test_theorems.py"
FIXED = 100  # instances that count for each statement, in the record and in the long tier
SOME = 30  # by default
HOSTILE = (
    "duplicates",
    "dead neurons",
    "collinear pairs",
    "near ties at epsilon",
    "unequal widths",
    "one neuron a side",
    "empty maximum match",
)
CLOSE = Fraction(1, 10**8)  # no level but epsilon itself may be closer to it than this share


@dataclass(frozen=True, eq=False)
class Case:
    """Two layers of small integers and a squared epsilon, a fraction.

    Everything about them is known exactly.
    """

    X: np.ndarray
    Y: np.ndarray
    e2: Fraction
    order: tuple  # a permutation of the neurons, the first network's first
    oracle: Oracle  # of both layers

    @property
    def epsilon(self):
        return float(self.e2) ** 0.5

    @property
    def key(self):
        return self.X.tobytes(), self.Y.tobytes(), self.X.shape, self.e2, self.order

    @functools.cached_property
    def matches(self):
        return self.oracle.matches(self.e2)

    @functools.cached_property
    def maximum(self):
        return self.oracle.maximum(self.e2)

    @property
    def ordered(self):
        return [sorted(self.oracle.neurons)[i] for i in self.order]

    @property
    def live(self):
        return frozenset().union(*self.oracle.level)

    @property
    def given(self):
        """What fast functions take: activations, and moments.

        Not moments where it matters that they cannot tell squared residuals 1e-11 apart.
        """
        tie = any(r2 and abs(r2 - self.e2) < 1e-11 for r2 in self.oracle.level.values())
        return given_of(self.X, self.Y)[: 1 if tie else 2]

    def kinds(self):
        "Which hostile kinds it is of, by what it is and not by how it was made."
        pairs = [*live_pairs(self.X), *live_pairs(self.Y)]
        n_x, n_y = self.X.shape[1], self.Y.shape[1]
        is_of = {
            "duplicates": any(a == b for a, b in pairs),
            "dead neurons": len(self.live) < n_x + n_y,
            "collinear pairs": any(a != b and collinear(a, b) for a, b in pairs),
            "near ties at epsilon": any(
                0 < abs(r2 - self.e2) <= 1e-6 for r2 in self.oracle.level.values()
            ),
            "unequal widths": abs(n_x - n_y) >= 2,
            "one neuron a side": n_x == n_y == 1,
            "empty maximum match": not self.maximum,
        }
        return [kind for kind in HOSTILE if is_of[kind]] or ["none of these"]


def live_pairs(Z):
    "Any two neurons of a layer that are not dead."
    live = [z for z in Z.T.tolist() if any(z)]
    return combinations(live, 2)


def collinear(a, b):
    return dot(a, b) ** 2 == dot(a, a) * dot(b, b)


def oracle_of(X, Y):
    return Oracle(X, Y, exact_residual2)


def given_of(X, Y):
    """Activations; and second moments, where squaring costs no digits.

    That is where no independent neurons of a side are close to dependent.
    """
    mild = conditioned(X) and conditioned(Y)
    return [(X, Y), (Moments(X, Y),)] if mild else [(X, Y)]


def conditioned(Z):
    "Is every set of independent neurons far from dependent?"
    for S in filter(None, map(sorted, subsets(range(Z.shape[1])))):
        some = Z[:, S]
        independent = len(span_of_integers(some)) == len(S)
        if independent and not np.linalg.cond(some / np.linalg.norm(some, axis=0)) < 100:
            return False
    return True


# Layers that make a statement say something


def matrix(elements, rows, columns):
    return st.lists(elements, min_size=rows * columns, max_size=rows * columns).map(
        lambda z: np.array(z, dtype=np.int64).reshape(rows, columns)
    )


def twisted(draw, Z, twist):
    "One neuron overwritten, by a copy of another or by a multiple; or a dead one put in."
    n = Z.shape[1]
    i, j = draw(st.integers(0, n - 1)), draw(st.integers(0, n - 1))
    if twist == "duplicates":
        Z[:, i] = Z[:, j]
    if twist == "dead neurons":
        return np.insert(Z, i, 0, axis=1)
    if twist == "collinear pairs" and i != j:
        Z[:, i] = draw(st.sampled_from([-1, 2, -3])) * Z[:, j]
    return Z


def widths(draw, twist, fewest, most):
    if twist == "one neuron a side":
        return 1, 1
    if twist == "unequal widths":
        return draw(st.permutations([draw(st.integers(1, most - 2)), most]))
    return draw(st.integers(fewest, most)), draw(st.integers(fewest, most))


def mixtures(draw, n, independent, mixing, largest):
    "(n, n) sparse integers; independent: triangular, columns shuffled."
    T = draw(matrix(st.sampled_from(mixing), n, n))
    if not independent:
        return T
    triangle = np.triu(T, 1) + largest * np.eye(n, dtype=np.int64)
    return triangle[:, draw(st.permutations(range(n)))]


def two_sides(draw, twist, scales, mixing, noise, strangers, independent, fewest, most):
    "Both layers before what is said of epsilon; arguments as in `layers`."
    widths_of = widths(draw, twist, fewest, most)
    scale = draw(st.sampled_from(scales))
    shared = max(widths_of)
    d = shared + draw(st.integers(0, 2))
    largest = 1000 if twist == "near ties at epsilon" else 1
    sides = []
    for n in widths_of:
        Z = np.zeros((d, n), dtype=np.int64)
        Z[:shared] = mixtures(draw, shared, independent, mixing, largest)[:, :n]
        Z[shared:] = draw(matrix(st.sampled_from(strangers), d - shared, n))
        rough = draw(matrix(st.sampled_from(noise), d, n))
        sides.append(twisted(draw, scale * Z + (scale > 1) * rough, twist))
    X, Y = sides
    if twist == "empty maximum match":
        Y = np.roll(Y, d - 1, axis=0) + X[:, :1] * draw(st.integers(0, 1))
    return X, Y


def squared_epsilon(draw, twist, levels, chosen, between):
    "One of the chosen levels, or near one, or half way to the next of all."
    e2 = draw(st.sampled_from(chosen)) if chosen else Fraction(0)
    if twist == "near ties at epsilon":
        return e2 * (1 + draw(st.sampled_from([1, -1, 0])) * Fraction(1, 10**7))
    if twist == "empty maximum match" and levels:
        return levels[0] / 2
    if between and draw(st.booleans()):
        return (e2 + min((r2 for r2 in levels if r2 > e2), default=1)) / 2
    return e2


@st.composite
def layers(
    draw,
    scales=(1, 1, 4, 12),
    mixing=(0, 0, 1, 1, -1, 2),
    noise=(0, 0, 0, 0, 1, -1),
    strangers=(0, 0, 0, 0, 1),
    independent=False,
    fewest=2,
    most=4,
    at=None,
    between=True,
):
    """Neurons of both sides that mix the same few vectors, then a twist of a hostile kind.

    They mix them sparsely, at a scale beside which noise of size 1 is small. `independent`: without
    dependent neurons, but for the twists that make some. `at(oracle, levels)`: the squared epsilons
    to choose from, of all at which a pair of subsets becomes a match; `between`: or half way to the
    next.
    """
    twist = draw(st.sampled_from((*["none"] * 5, *HOSTILE)))
    X, Y = two_sides(draw, twist, scales, mixing, noise, strangers, independent, fewest, most)
    oracle = oracle_of(X, Y)
    levels = sorted({r2 for M, r2 in oracle.level.items() if M and r2 < 1})
    e2 = squared_epsilon(draw, twist, levels, at(oracle, levels) if at else levels, between)
    assume(e2 < 1 and not any(0 < abs(r2 - e2) <= CLOSE * r2 for r2 in levels))
    order = tuple(draw(st.permutations(range(X.shape[1] + Y.shape[1]))))
    return Case(X, Y, e2, order, oracle)


# The registry

STATEMENTS, TALLIES = {}, {}


class Tally:
    """The distinct instances that a statement was tried on.

    And those in which it said something, and of which kinds they were.
    """

    def __init__(self):
        self.seen = set()
        self.tried = Counter()
        self.said = Counter()

    def add(self, case, said):
        if case.key in self.seen:
            return
        self.seen.add(case.key)
        for kind in ("all", *case.kinds()):
            self.tried[kind] += 1
            self.said[kind] += bool(said)

    def counts(self):
        kinds = {}
        for kind in (*HOSTILE, "none of these"):
            kinds[kind] = {"tried": self.tried[kind], "instances": self.said[kind]}
        return {"tried": self.tried["all"], "instances": self.said["all"], "kinds": kinds}


def statement(name, source, chapter, says, strategy=None, examples=2.5):
    """Register a test of one statement.

    It is given a `Case` from the strategy, and returns whether the statement said something about
    it; `says` tells in words when it does. So many distinct instances must: `SOME` by default,
    `FIXED` in the long tier and for the record. `examples` times as many are tried.
    """

    def register(check):
        @pytest.mark.mutate
        @pytest.mark.parametrize("wanted", [SOME, pytest.param(FIXED, marks=pytest.mark.long)])
        def test(request, wanted):
            record = request.config.getoption("--record")
            if record:
                wanted = FIXED
            tally = try_on(
                name, check, layers() if strategy is None else strategy, wanted, examples
            )
            if wanted == FIXED and not record and settings().max_examples == 100:
                assert_recorded(name, tally)

        test.__name__ = check.__name__
        test.__doc__ = check.__doc__
        test.__module__ = check.__module__
        STATEMENTS[name] = {
            "source": source,
            "chapter": chapter,
            "says": says,
            "test": f"{FILE}::{check.__name__}",
        }
        return test

    return register


def try_on(name, check, strategy, wanted, examples):
    "Check a statement on instances; enough of them must say something. Returns the tally."
    share = settings().max_examples / 100  # 1, 10 with --deep, less where mutants are tested
    tally = TALLIES[name] = Tally()

    @seed(zlib.crc32(name.encode()))
    @settings(
        max_examples=int(examples * (wanted * share if share >= 1 else settings().max_examples))
    )
    @given(strategy)
    def each(case):
        tally.add(case, check(case))

    each()
    if share >= 1:
        # a short run may draw the same instance twice, and not every hostile kind
        needed = wanted * share if wanted == FIXED else wanted / 2
        assert tally.said["all"] >= needed, (
            f"{name}: {tally.said['all']} of {tally.tried['all']} instances say something, "
            f"{needed:g} are wanted"
        )
    if share >= 1 and wanted == FIXED:
        assert all(tally.tried[kind] for kind in HOSTILE), (
            f"{name}: not tried on every hostile kind, {tally.counts()['kinds']}"
        )
    return tally


def assert_recorded(name, tally):
    "The counts are those of the record, unless another version draws other instances."
    known = json.loads(RECORD.read_text())
    if known["hypothesis"] == hypothesis.__version__:
        assert STATEMENTS[name] | tally.counts() == known["statements"].get(name), (
            f"{RECORD.name} is out of step: pytest {FILE} --record"
        )


def write_record():
    "Write the record of this run, of all statements or not at all."
    assert TALLIES.keys() == STATEMENTS.keys(), (
        f"the record is of all statements, tried in one process: pytest {FILE} --record"
    )
    statements = {}
    for name, about in sorted(STATEMENTS.items()):
        statements[name] = about | TALLIES[name].counts()
    record = {"hypothesis": hypothesis.__version__, "statements": statements}
    text = json.dumps(record, indent=1) + "\n"
    write_whole(RECORD, lambda part: part.write_text(text))
