"""What the bench of theorems is made of: small integer layers that make a statement say something, and a count of those that did."""

import functools
import json
import zlib
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import hypothesis
import numpy as np
from hypothesis import assume, given, seed, settings, strategies as st

from instances import Oracle, dot, exact_residual2, span_of_integers, subsets
from submatch_nb.engine.files import write_whole
from submatch_nb.engine.moments import Moments

RECORD, FILE = Path(__file__).parent.parent / "nbs" / "theorems.json", "tests/test_theorems.py"
FIXED = 100  # the `max_examples` at which the counts of the record were made
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
    "Two layers of small integers and a squared epsilon, a fraction: everything about them is known exactly."

    X: np.ndarray
    Y: np.ndarray
    e2: Fraction
    order: tuple  # a permutation of the neurons, the first network's first

    @property
    def epsilon(self):
        return float(self.e2) ** 0.5

    @property
    def key(self):
        return self.X.tobytes(), self.Y.tobytes(), self.X.shape, self.e2, self.order

    @functools.cached_property
    def oracle(self):
        return oracle_of(self.X, self.Y)

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
        "What fast functions take; moments, which cannot tell squared residuals 1e-11 apart, where that does not matter."
        tie = any(r2 and abs(r2 - self.e2) < 1e-11 for r2 in self.oracle.level.values())
        return given_of(self.X, self.Y)[: 1 if tie else 2]

    def kinds(self):
        "Which hostile kinds it is of, by what it is and not by how it was made."
        pairs = [
            (a, b)
            for Z in (self.X, self.Y)
            for i, a in enumerate(Z.T.tolist())
            for b in Z.T.tolist()[:i]
            if any(a) and any(b)
        ]
        n_x, n_y = self.X.shape[1], self.Y.shape[1]
        return [
            kind
            for kind, found in zip(
                HOSTILE,
                (
                    any(a == b for a, b in pairs),
                    len(self.live) < n_x + n_y,
                    any(a != b and dot(a, b) ** 2 == dot(a, a) * dot(b, b) for a, b in pairs),
                    any(0 < abs(r2 - self.e2) <= 1e-6 for r2 in self.oracle.level.values()),
                    abs(n_x - n_y) >= 2,
                    n_x == n_y == 1,
                    not self.maximum,
                ),
            )
            if found
        ] or ["none of these"]


def oracle_of(X, Y):
    return Oracle(X, Y, exact_residual2)


def given_of(X, Y):
    "Activations; and second moments, where no independent neurons of a side are so close to dependent that squaring costs digits."
    independent = [
        Z[:, S]
        for Z in (X, Y)
        for S in map(sorted, subsets(range(Z.shape[1])))
        if S and len(span_of_integers(Z[:, S])) == len(S)
    ]
    mild = all(np.linalg.cond(Z / np.linalg.norm(Z, axis=0)) < 100 for Z in independent)
    return [(X, Y), (Moments(X, Y),)] if mild else [(X, Y)]


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
    return (
        (np.triu(T, 1) + largest * np.eye(n, dtype=np.int64))[:, draw(st.permutations(range(n)))]
        if independent
        else T
    )


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
    """Neurons of both sides that mix the same few vectors, sparsely, at a scale beside which noise of size 1 is small; then a twist of a hostile kind.

    `independent`: without dependent neurons, but for the twists that make some. `at(oracle, levels)`: the squared epsilons to choose from, of all at which a pair
    of subsets becomes a match; `between`: or half way to the next.
    """
    twist = draw(st.sampled_from((*["none"] * 5, *HOSTILE)))
    (n_x, n_y), scale = widths(draw, twist, fewest, most), draw(st.sampled_from(scales))
    shared, d = max(n_x, n_y), max(n_x, n_y) + draw(st.integers(0, 2))
    sides = []
    for n in (n_x, n_y):
        Z = np.zeros((d, n), dtype=np.int64)
        Z[:shared] = mixtures(
            draw, shared, independent, mixing, 1000 if twist == "near ties at epsilon" else 1
        )[:, :n]
        Z[shared:] = draw(matrix(st.sampled_from(strangers), d - shared, n))
        sides.append(
            twisted(
                draw, scale * Z + (scale > 1) * draw(matrix(st.sampled_from(noise), d, n)), twist
            )
        )
    X, Y = sides
    if twist == "empty maximum match":
        Y = np.roll(Y, d - 1, axis=0) + X[:, :1] * draw(st.integers(0, 1))
    oracle = oracle_of(X, Y)
    levels = sorted({r2 for M, r2 in oracle.level.items() if M and r2 < 1})
    chosen = at(oracle, levels) if at else levels
    e2 = draw(st.sampled_from(chosen)) if chosen else Fraction(0)
    if twist == "near ties at epsilon":
        e2 *= 1 + draw(st.sampled_from([1, -1, 0])) * Fraction(1, 10**7)
    elif twist == "empty maximum match" and levels:
        e2 = levels[0] / 2
    elif between and draw(st.booleans()):
        e2 = (e2 + min((r2 for r2 in levels if r2 > e2), default=1)) / 2
    assume(e2 < 1 and not any(0 < abs(r2 - e2) <= CLOSE * r2 for r2 in levels))
    case = Case(X, Y, e2, tuple(draw(st.permutations(range(X.shape[1] + Y.shape[1])))))
    case.__dict__["oracle"] = oracle
    return case


# The registry

STATEMENTS, TALLIES = {}, {}


class Tally:
    "The distinct instances that a statement was tried on, those in which it said something, and of which kinds they were."

    def __init__(self):
        self.seen, self.tried, self.said = set(), Counter(), Counter()

    def add(self, case, said):
        if case.key in self.seen:
            return
        self.seen.add(case.key)
        for kind in ("all", *case.kinds()):
            self.tried[kind] += 1
            self.said[kind] += bool(said)

    def counts(self):
        kinds = {
            kind: {"tried": self.tried[kind], "instances": self.said[kind]}
            for kind in (*HOSTILE, "none of these")
        }
        return {"tried": self.tried["all"], "instances": self.said["all"], "kinds": kinds}


def statement(name, source, chapter, says, strategy=None, examples=2.5):
    """Register a test of one statement. It is given a `Case` from the strategy, and returns whether the statement said something about it.

    `says` tells in words when it does. At least as many distinct instances as the profile's `max_examples` must, from 100 up; `examples` times as many are tried.
    """

    def register(check):
        def test(request):
            wanted, tally = settings().max_examples, TALLIES.setdefault(name, Tally())

            @seed(zlib.crc32(name.encode()))
            @settings(max_examples=int(examples * wanted))
            @given(layers() if strategy is None else strategy)
            def each(case):
                tally.add(case, check(case))

            each()
            if wanted < FIXED:
                return
            assert tally.said["all"] >= wanted, (
                f"{name}: {tally.said['all']} of {tally.tried['all']} instances say something, {wanted} are wanted"
            )
            assert all(tally.tried[kind] for kind in HOSTILE), (
                f"{name}: not tried on every hostile kind, {tally.counts()['kinds']}"
            )
            known = json.loads(RECORD.read_text())
            if (
                wanted == FIXED
                and not request.config.getoption("--record")
                and known["hypothesis"] == hypothesis.__version__
            ):  # another version draws other instances
                assert STATEMENTS[name] | tally.counts() == known["statements"].get(name), (
                    f"{RECORD.name} is out of step: pytest {FILE} --record"
                )

        test.__name__, test.__doc__, test.__module__ = (
            check.__name__,
            check.__doc__,
            check.__module__,
        )
        STATEMENTS[name] = {
            "source": source,
            "chapter": chapter,
            "says": says,
            "test": f"{FILE}::{check.__name__}",
        }
        return test

    return register


def write_record():
    "Write the record of this run, of all statements or not at all."
    assert TALLIES.keys() == STATEMENTS.keys(), (
        f"the record is of all statements, tried in one process: pytest {FILE} --record"
    )
    statements = {
        name: about | TALLIES[name].counts() for name, about in sorted(STATEMENTS.items())
    }
    write_whole(
        RECORD,
        lambda part: part.write_text(
            json.dumps({"hypothesis": hypothesis.__version__, "statements": statements}, indent=1)
            + "\n"
        ),
    )
