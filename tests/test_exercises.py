"""The checker of the exercises: it lets every right function pass, and tells wrong ones apart.

The wrong functions are written as students write them, without the checker's list of mistakes.
"""

import re
import subprocess
import sys
import time

import nbformat
import numpy as np
import pytest
import torch
from instances import CLOSENESS, KINDS
from test_notebooks import ROOT

from submatch_nb import exercises, is_match
from submatch_nb.engine.answers import UnreadableError, indices, number, truth, two_sets
from submatch_nb.engine.checking import Case, answers_alike, attempt, level, limited
from submatch_nb.engine.match_tasks import hand_layers
from submatch_nb.engine.oracles import pairs, plain_maximum
from submatch_nb.engine.shrinking import size
from submatch_nb.exercises import EXERCISES, check, progress
from submatch_nb.maximum import algorithm_1 as library_algorithm_1
from submatch_nb.maximum import epsilon_profile
from submatch_nb.measures import cca as library_cca
from submatch_nb.measures import cka as library_cka
from submatch_nb.neurons import residuals
from submatch_nb.simple import minimal_matches
from submatch_nb.structure import necessary

CHAPTER = ROOT / "nbs/14_exercises.ipynb"
SLACK = 1e-9


def cells(tag):
    nb = nbformat.read(CHAPTER, 4)
    return [cell for cell in nb.cells if tag in cell.metadata.get("tags", [])]


def code_of(cell):
    return re.search(r"```python\n(.*?)```", cell.source, re.DOTALL)[1]


def solutions():
    "What the chapter's solutions define, and the warm-up."
    space = {"np": np, "torch": torch}
    for cell in cells("solution"):
        exec(code_of(cell), space)
    space["dead"] = lambda X: [j for j in range(X.shape[1]) if not X[:, j].any()]
    return space


RIGHT = solutions()
residual, explained = RIGHT["residual"], RIGHT["explained"]
largest_match, everybody = RIGHT["largest_match"], RIGHT["everybody"]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    "No test sees what another one solved."
    monkeypatch.setattr(exercises, "_verdicts", {})


# Right answers


@pytest.mark.parametrize("name", EXERCISES)
def test_every_solution_passes_in_seconds(name):
    start = time.perf_counter()
    verdict = check(name, RIGHT[name])
    assert verdict and verdict.solved, verdict
    assert time.perf_counter() - start < 6


@pytest.mark.parametrize("name", EXERCISES)
def test_solutions_pass_on_other_seeds(name):
    for seed in (1, 2, 3):
        assert check(name, RIGHT[name], seed=seed)


def sets_as(convert):
    "algorithm_1, its answer in another form."

    def function(X, Y, epsilon):
        x, y = RIGHT["algorithm_1"](X, Y, epsilon)
        return convert(x, y, X.shape[1], Y.shape[1])

    return function


@pytest.mark.parametrize(
    "convert",
    [
        lambda x, y, n_x, n_y: [x[::-1], y],
        lambda x, y, n_x, n_y: (set(x), set(y)),
        lambda x, y, n_x, n_y: (np.array(x, int), torch.tensor(y)),
        lambda x, y, n_x, n_y: (np.isin(range(n_x), x), [j in y for j in range(n_y)]),
        lambda x, y, n_x, n_y: {("x", i) for i in x} | {("y", j) for j in y},
        lambda x, y, n_x, n_y: {"x": x, "y": y},
        lambda x, y, n_x, n_y: (dict.fromkeys(x).keys(), (np.int64(j) for j in y)),
    ],
)
def test_sets_may_be_returned_in_any_container(convert):
    assert check("algorithm_1", sets_as(convert))


def test_the_librarys_own_functions_pass():
    assert check("algorithm_1", library_algorithm_1)
    assert check("critical", epsilon_profile)
    assert check("residual", lambda v, S: residuals(v[:, None], S) if S.size else 1)
    assert check("is_match", is_match)


def residual_of_normal_equations(v, S):
    S = S / np.where(S.any(0), np.linalg.norm(S, axis=0), 1)
    rest = v - S @ (np.linalg.pinv(S.T @ S, rcond=1e-9) @ (S.T @ v))
    return (rest @ rest / (v @ v)) ** 0.5


def residual_of_torch(v, S):
    v, S = torch.tensor(v), torch.tensor(S)
    U, s, _ = torch.linalg.svd(S, full_matrices=False)
    U = U[:, s > 1e-11 * s.max()] if len(s) else U
    return ((v - U @ (U.T @ v)).norm() / v.norm()).reshape(1)


def residual_by_gram_schmidt(v, S):
    basis = []
    for s in S.T:
        length = np.linalg.norm(s)
        for _ in range(2):
            s = s - sum((q * (q @ s) for q in basis), np.zeros(len(s)))
        if np.linalg.norm(s) > 1e-9 * length:
            basis.append(s / np.linalg.norm(s))
    rest = v - sum((q * (q @ v) for q in basis), np.zeros(len(v)))
    return [float(np.linalg.norm(rest) / np.linalg.norm(v))]


@pytest.mark.parametrize(
    "function", [residual_of_normal_equations, residual_of_torch, residual_by_gram_schmidt]
)
def test_other_ways_to_a_residual_pass(function):
    assert check("residual", function)


@pytest.mark.parametrize(
    "order",
    [
        ["x1", "x2", "y2", "y1"],
        [("y", 2), ("x", 2), ("y", 1), ("x", 1)],
        [["x1", "x2", "y2"], ["y1"]],
        (("x1", "y2"), "y1", "x2"),
    ],
)
def test_every_order_by_hand_is_right(order):
    assert check("by_hand", order) and check("by_hand", lambda: order)


def test_every_order_of_algorithm_2_is_right():
    def backwards(X, Y, v, epsilon):
        match = largest_match(X, Y, epsilon, everybody(X, Y))
        if v not in match:
            return None
        for u in sorted(match - {v}, reverse=True):
            smaller = largest_match(X, Y, epsilon, match - {u})
            match = smaller if v in smaller else match
        return match

    def one_by_one(X, Y, v, epsilon):
        match = largest_match(X, Y, epsilon, everybody(X, Y))
        if v not in match:
            return None
        for u in sorted(match - {v}):
            if v in largest_match(X, Y, epsilon, match - {u}):
                match = match - {u}
        return match

    assert check("algorithm_2", backwards) and check("algorithm_2", one_by_one)


def test_other_instances_pass():
    X = np.array([[1.0, 1.0], [1.0, -1.0], [0.0, 0.2]])
    copies = [[1, 1.1, 0.9], [1, 1, 1.1], [0, 0.1, 0.2]]
    assert check("two_answers", {"X": X, "Y": copies, "v": "x0", "epsilon": 0.5})
    rng = np.random.default_rng(0)
    s, p, q = np.split(np.linalg.qr(rng.normal(size=(12, 12)))[0], 3, axis=1)
    R = torch.tensor(np.vstack([np.eye(4), -3 * np.eye(4)]))
    assert check("johnson", [np.hstack([s + 3 * p, p]), R, np.hstack([s + 3 * q, q]), R])


def test_a_p_value_may_shuffle_the_first_layer_and_leave_out_a_call():
    def other(X, Y, images, statistic, shuffles, rng):
        values = [statistic(X, Y)]
        for _ in range(shuffles):
            values.append(statistic(torch.tensor(RIGHT["shuffle_images"](X, images, rng)), Y))
        return np.mean(np.array(values) >= values[0])

    assert check("p_value", other)


# Wrong answers, as students write them: exercise -> words of the message -> function


def rest(v, S):
    return v - S @ np.linalg.lstsq(S, v, rcond=None)[0]


def projection(v, S):
    return S @ np.linalg.lstsq(S, v, rcond=None)[0]


def with_inverse(v, S):
    return np.linalg.norm(v - S @ np.linalg.inv(S.T @ S) @ S.T @ v) / np.linalg.norm(v)


def endless(*given):
    while True:
        pass


def deep(*given):
    return deep(*given)


def spoils(v, S):
    value = residual(v, S)
    v /= 2
    return value


def is_match_of(rule):
    def wrong(X, Y, epsilon, x, y):
        X, Y = X[:, list(x)], Y[:, list(y)]
        with np.errstate(all="ignore"):
            r_x = [residual(v, Y) if v.any() else np.inf for v in X.T]
            r_y = [residual(v, X) if v.any() else np.inf for v in Y.T]
        return rule(np.array(r_x), np.array(r_y), epsilon)

    return wrong


def match_one_round(X, Y, epsilon):
    x = [i for i in range(X.shape[1]) if explained(X[:, i], Y, epsilon)]
    y = [j for j in range(Y.shape[1]) if explained(Y[:, j], X, epsilon)]
    return x, y


def match_x_only(X, Y, epsilon):
    return match_one_round(X, Y, epsilon)[0], range(Y.shape[1])


def match_one_after_the_other(X, Y, epsilon):
    x = [i for i in range(X.shape[1]) if explained(X[:, i], Y, epsilon)]
    y = [j for j in range(Y.shape[1]) if explained(Y[:, j], X[:, x], epsilon)]
    return x, y


def match_renumbered(X, Y, epsilon):
    x, y = RIGHT["algorithm_1"](X, Y, epsilon)
    return list(range(len(x))), list(range(len(y)))


def match_left_out(X, Y, epsilon):
    x, y = RIGHT["algorithm_1"](X, Y, epsilon)
    return set(range(X.shape[1])) - set(x), set(range(Y.shape[1])) - set(y)


def match_without_slack(X, Y, epsilon):
    x, y = list(range(X.shape[1])), list(range(Y.shape[1]))
    while True:
        new_x = [i for i in x if X[:, i].any() and residual(X[:, i], Y[:, y]) <= epsilon]
        new_y = [j for j in y if Y[:, j].any() and residual(Y[:, j], X[:, x]) <= epsilon]
        if new_x == x and new_y == y:
            return x, y
        x, y = new_x, new_y


def match_with_dead(X, Y, epsilon):
    x, y = RIGHT["algorithm_1"](X, Y, epsilon)
    dead_x, dead_y = np.flatnonzero(~X.any(0)), np.flatnonzero(~Y.any(0))
    return [*x, *dead_x], [*y, *dead_y]


def match_removing_while_looping(X, Y, epsilon):
    x, y = list(range(X.shape[1])), list(range(Y.shape[1]))
    while True:
        before = len(x) + len(y)
        for i in range(X.shape[1]):
            if not explained(X[:, x[i]], Y[:, y], epsilon):
                x.remove(x[i])
        for j in range(Y.shape[1]):
            if not explained(Y[:, y[j]], X[:, x], epsilon):
                y.remove(y[j])
        if len(x) + len(y) == before:
            return x, y


def first_residuals(X, Y):
    e_x = [residual(v, Y) if v.any() else np.inf for v in X.T]
    e_y = [residual(v, X) if v.any() else np.inf for v in Y.T]
    return e_x, e_y


def peeled(update, leaves, dead=np.inf, value=lambda r, level: level):
    "critical, with one line of it changed."

    def wrong(X, Y):
        e = dict.fromkeys(everybody(X, Y), dead)
        layer = {"x": X, "y": Y}
        left = {(s, i) for s, i in e if layer[s][:, i].any()}
        level = 1.0
        while left:
            r = {}
            for s, i in left:
                other = "y" if s == "x" else "x"
                S = layer[other][:, sorted(j for t, j in left if t == other)]
                r[s, i] = residual(layer[s][:, i], S)
            level = update(level, r.values())
            gone = [v for v in left if leaves(r[v], level)]
            for v in gone:
                e[v] = value(r[v], level)
            left -= set(gone)
        x, y = range(X.shape[1]), range(Y.shape[1])
        return [e["x", i] for i in x], [e["y", j] for j in y]

    return wrong


def highest(r, level):
    return r >= level - SLACK


def smallest_level(level, r):
    return min(level, max(r))


def squares(X, Y):
    e_x, e_y = RIGHT["critical"](X, Y)
    return e_x**2, e_y**2


def minimal(rule):
    "algorithm_2, with one line of it changed."

    def wrong(X, Y, v, epsilon):
        match = largest_match(X, Y, epsilon, everybody(X, Y))
        if v not in match:
            return None
        return rule(X, Y, v, epsilon, match)

    return wrong


def stop_at_failure(X, Y, v, epsilon, match):
    for u in sorted(match - {v}):
        smaller = largest_match(X, Y, epsilon, match - {u})
        if v not in smaller:
            break
        match = smaller
    return match


def drop_once(X, Y, v, epsilon, match):
    for u in sorted(match - {v}):
        smaller = largest_match(X, Y, epsilon, match - {u})
        if v in smaller:
            return smaller
    return match


def v_can_go(X, Y, v, epsilon, match):
    for u in sorted(match):
        smaller = largest_match(X, Y, epsilon, match - {u})
        match = smaller or match
    return match


def explaining(X, Y, v, epsilon, match):
    side = {"x": X, "y": Y}
    other = "y" if v[0] == "x" else "x"
    kept = sorted(i for s, i in match if s == other)
    for i in list(kept):
        fewer = [k for k in kept if k != i]
        if explained(side[v[0]][:, v[1]], side[other][:, fewer], epsilon):
            kept = fewer
    return {v} | {(other, i) for i in kept}


def needed(X, Y, v, epsilon, match):
    return RIGHT["in_every"](X, Y, v, epsilon)


def empty_for_none(function):
    def wrong(X, Y, v, epsilon):
        found = function(X, Y, v, epsilon)
        return ([], []) if found is None else found

    return wrong


def immediate(X, Y, v, epsilon, match):
    side = {"x": X, "y": Y}
    other = "y" if v[0] == "x" else "x"
    there = sorted(i for s, i in match if s == other)
    found = {v}
    for i in there:
        fewer = [k for k in there if k != i]
        if not explained(side[v[0]][:, v[1]], side[other][:, fewer], epsilon):
            found.add((other, i))
    return found


def who_needs_v(X, Y, v, epsilon, match):
    without = largest_match(X, Y, epsilon, match - {v})
    return {v} | (match - without)


def arrows(X, Y, zero=1e-9):
    n = X.shape[1]
    of_x = np.linalg.lstsq(Y, X, rcond=None)[0]
    of_y = np.linalg.lstsq(X, Y, rcond=None)[0]
    needs = {}
    for k in range(n):
        needs["x", k] = {("y", j) for j in range(n) if abs(of_x[j, k]) > zero}
        needs["y", k] = {("x", i) for i in range(n) if abs(of_y[i, k]) > zero}
    return needs


def closure(needs):
    matches = {}
    for v in needs:
        match = {v}
        while any(needs[u] - match for u in match):
            match = match.union(*(needs[u] for u in match))
        matches[v] = match
    return matches


def one_step(X, Y):
    return {v: {v} | others for v, others in arrows(X, Y).items()}


def two_steps(X, Y):
    needs = arrows(X, Y)
    return {v: {v}.union(needs[v], *(needs[u] for u in needs[v])) for v in needs}


def reversed_arrows(X, Y):
    needs = arrows(X, Y)
    return closure({v: {u for u in needs if v in needs[u]} for v in needs})


def components(X, Y):
    needs = arrows(X, Y)
    return closure({v: needs[v] | {u for u in needs if v in needs[u]} for v in needs})


def only_of_x(X, Y):
    needs = arrows(X, Y)
    return closure({v: needs[v] if v[0] == "x" else set() for v in needs})


def hooked(
    copy=True, lists=True, names_checked=True, removed=True, safe=True, mode="restored", grad=False
):
    "hook, with one of its parts left out."

    def wrong(model, names, images):
        modules = dict(model.named_modules())
        outputs = {}

        def keep(name):
            def after(module, inputs, output):
                output = output.clone() if copy else output
                if lists:
                    outputs.setdefault(name, []).append(output)
                else:
                    outputs[name] = output

            return after

        handles = []
        if names_checked:
            names = [name for name in names if modules[name]]
        for name in names:
            if name in modules:
                handles.append(modules[name].register_forward_hook(keep(name)))
        before = {module: module.training for module in model.modules()}
        if mode != "left":
            model.eval()

        def clean():
            for handle in handles if removed else ():
                handle.remove()
            if mode == "restored":
                for module, training in before.items():
                    module.training = training

        try:
            with torch.set_grad_enabled(grad):
                model(images)
        except Exception:
            if safe:
                clean()
            raise
        clean()
        return outputs

    return wrong


def registers_one_by_one(model, names, images):
    for name in names:
        handle = model.get_submodule(name).register_forward_hook(print)
    handle.remove()
    return RIGHT["hook"](model, names, images)


def blocks(G, n_x):
    return G[:n_x, :n_x], G[n_x:, n_x:], G[:n_x, n_x:]


def cka_of(A, B, C):
    return (C**2).sum() / ((A**2).sum() * (B**2).sum()) ** 0.5


def cca_of(A, B, C):
    root_a, root_b = RIGHT["inverse_root"](A), RIGHT["inverse_root"](B)
    return np.linalg.svd(root_a.T @ C @ root_b, compute_uv=False)


def cca_by_inverse(G, s, d, n_x):
    A, B, C = RIGHT["centred_blocks"](G, s, d, n_x)
    squares = np.linalg.eigvals(np.linalg.inv(A) @ C @ np.linalg.inv(B) @ C.T)
    return np.sqrt(np.abs(squares)).sum() / min(len(A), len(B))


def centred(function):
    return lambda G, s, d, n_x: function(*RIGHT["centred_blocks"](G, s, d, n_x))


def shuffled_within(Y, images, rng):
    out = Y.copy()
    for image in np.unique(images):
        rows = np.flatnonzero(images == image)
        out[rows] = Y[rng.permutation(rows)]
    return out


def shuffled_backwards(Y, images, rng):
    out = Y.copy()
    ids = np.unique(images)
    for image, other in zip(ids, rng.permutation(ids), strict=True):
        out[images == image] = Y[images == other][::-1]
    return out


def shuffled_in_blocks(Y, images, rng):
    count = len(np.unique(images))
    return rng.permutation(Y.reshape(count, -1, Y.shape[1])).reshape(Y.shape)


def shuffled_with(order):
    "shuffle_images, with another permutation."

    def wrong(Y, images, rng):
        ids = np.unique(images)
        out = Y.copy()
        for image, other in zip(ids, order(ids, rng), strict=True):
            out[images == image] = Y[images == other]
        return out

    return wrong


def derangement(ids, rng):
    while True:
        found = rng.permutation(ids)
        if len(ids) < 2 or (found != ids).all():
            return found


def p_of(number, shuffle=None):
    "p_value, with another number or another shuffle."

    def wrong(X, Y, images, statistic, shuffles, rng):
        observed = statistic(X, Y)
        shuffled = shuffle or RIGHT["shuffle_images"]
        null = [statistic(X, shuffled(Y, images, rng)) for _ in range(shuffles)]
        return number(np.array(null), observed, shuffles)

    return wrong


def right_p(null, observed, K):
    return (1 + (null >= observed).sum()) / (1 + K)


def p_of_one_seed(X, Y, images, statistic, shuffles, rng):
    null = [
        statistic(X, RIGHT["shuffle_images"](Y, images, np.random.default_rng(0)))
        for _ in range(shuffles)
    ]
    return right_p(np.array(null), statistic(X, Y), shuffles)


def p_of_both(X, Y, images, statistic, shuffles, rng):
    null = []
    for _ in range(shuffles):
        seed = int(rng.integers(10**6))
        both = [RIGHT["shuffle_images"](Z, images, np.random.default_rng(seed)) for Z in (X, Y)]
        null.append(statistic(*both))
    return right_p(np.array(null), statistic(X, Y), shuffles)


def p_of_ten(X, Y, images, statistic, shuffles, rng):
    null = [statistic(X, RIGHT["shuffle_images"](Y, images, rng)) for _ in range(10)]
    return right_p(np.array(null), statistic(X, Y), 10)


def hits(scores):
    own = np.diag(scores)
    row = [(own[i] > np.delete(scores[i], i)).all() for i in range(len(scores))]
    column = [(own[i] > np.delete(scores[:, i], i)).all() for i in range(len(scores))]
    return np.array(row), np.array(column)


def johnson_with(change):
    def wrong():
        return change(*RIGHT["johnson"]())

    return wrong


E2 = np.eye(2)
THREE = np.array([[1.0, 1, 1], [1, -1, 2]])

WRONG = {
    "dead": {
        "0 on some sample": lambda X: np.flatnonzero((X == 0).any(axis=0)),
        "sums or means": lambda X: [j for j in range(X.shape[1]) if X[:, j].sum() == 0],
        "faint": lambda X: np.flatnonzero(np.linalg.norm(X, axis=0) < 1e-6),
        "alive": lambda X: [j for j in range(X.shape[1]) if X[:, j].any()],
        "rows": lambda X: [i for i in range(len(X)) if not X[i].any()],
        "indices of neurons": lambda X: "none",
        "returns None": lambda X: print("dead:", np.flatnonzero(~X.any(0))),
    },
    "residual": {
        "distance itself": lambda v, S: np.linalg.norm(rest(v, S)),
        "take the root": lambda v, S: rest(v, S) @ rest(v, S) / (v @ v),
        "what is left": lambda v, S: np.linalg.norm(projection(v, S)) / np.linalg.norm(v),
        "best single neuron": lambda v, S: min(
            [np.linalg.norm(rest(v, s[:, None])) / np.linalg.norm(v) for s in S.T], default=1
        ),
        "only where these are orthogonal": lambda v, S: (
            np.linalg.norm(v - sum(((s @ v) / (s @ s) * s for s in S.T if s.any()), 0 * v))
            / np.linalg.norm(v)
        ),
        "subtracts means": lambda v, S: residual(v - v.mean(), S - S.mean(axis=0)),
        "raises LinAlgError": with_inverse,
        "one number": lambda v, S: rest(v, S) / np.linalg.norm(v),
        "does its loop end": endless,
        "RecursionError": deep,
        "changes the arrays": spoils,
    },
    "is_match": {
        "last digit": is_match_of(lambda r_x, r_y, e: (r_x <= e).all() and (r_y <= e).all()),
        "neurons of X only": is_match_of(lambda r_x, r_y, e: (r_x <= e + SLACK).all()),
        "neurons of Y only": is_match_of(lambda r_x, r_y, e: (r_y <= e + SLACK).all()),
        "one of the two sides": is_match_of(
            lambda r_x, r_y, e: (r_x <= e + SLACK).all() or (r_y <= e + SLACK).all()
        ),
        "ignores x and y": lambda X, Y, epsilon, x, y: RIGHT["is_match"](
            X, Y, epsilon, range(X.shape[1]), range(Y.shape[1])
        ),
        "whole other layer": lambda X, Y, epsilon, x, y: (
            all(explained(X[:, i], Y, epsilon) for i in x)
            and all(explained(Y[:, j], X, epsilon) for j in y)
        ),
        "squared": is_match_of(lambda r_x, r_y, e: (np.append(r_x, r_y) ** 2 <= e + SLACK).all()),
        "two empty sets": lambda X, Y, epsilon, x, y: (
            len(x) + len(y) > 0 and RIGHT["is_match"](X, Y, epsilon, x, y)
        ),
        "True or False": is_match_of(lambda r_x, r_y, e: r_x <= e),
    },
    "by_hand": {
        "stops too early": ["y2"],
        "leaves too early": ["y1", "y2", "x1", "x2"],
        "leaves twice": ["y2", "x1", "y2"],
        "no neuron x7": ["y2", "x7"],
        "neither": ["y2", "third"],
        "list of neurons": 4,
        "x3 leaves too early": ["x3"],
    },
    "algorithm_1": {
        "last digit": match_without_slack,
        "one round": match_one_round,
        "neurons of X only": match_x_only,
        "then through Y": match_one_after_the_other,
        "from 0": match_renumbered,
        "that leave": match_left_out,
        "dead neurons": match_with_dead,
        "raises IndexError": match_removing_while_looping,
        "only 4": lambda X, Y, epsilon: ([4], []),
    },
    "critical": {
        "whole other layer": first_residuals,
        "rises again": peeled(lambda level, r: max(r), highest),
        "own residual": peeled(smallest_level, highest, value=lambda r, level: r),
        "worst has to go": peeled(lambda level, r: min(r), lambda r, level: r <= level + SLACK),
        "take the root": squares,
        "is infinite": peeled(smallest_level, highest, dead=0.0),
        "number for each neuron of X": lambda X, Y: (first_residuals(X, Y)[1], [0.0]),
        "does its loop end": peeled(smallest_level, lambda r, level: r > level),
    },
    "algorithm_2": {
        "returns the maximum match": minimal(lambda X, Y, v, epsilon, match: match),
        "drops one neuron": minimal(drop_once),
        "cannot be dropped": minimal(stop_at_failure),
        "explained, too": minimal(explaining),
        "without v": minimal(v_can_go),
        "the answer is None": empty_for_none(RIGHT["algorithm_2"]),
        "is no match": minimal(needed),
    },
    "two_answers": {
        "only one minimal match": (E2, E2 @ [[1, 1], [1, -1]], "x0", 0.0),
        "multiples of one another": (E2[:, :1], np.array([[1.0, 2], [0, 0]]), "x0", 0.0),
        "is dead": (np.array([[1.0, 0], [0, 0]]), THREE, "x0", 0.0),
        "in no match": (np.eye(3), np.array([[1.0], [1], [1]]), "x0", 0.0),
        "no such neuron": (E2, THREE, "x5", 0.0),
        "outside [0, 1)": (E2, THREE, "x0", 1.0),
        "more than 5": (np.eye(6), np.ones((6, 6)), "x0", 0.0),
        "two matrices": (E2, np.ones((3, 2)), "x0", 0.0),
        "X, Y, v, epsilon": (E2, THREE),
        "not finite": (E2, THREE * np.nan, "x0", 0.0),
    },
    "in_every": {
        "leaves v out": lambda X, Y, v, epsilon: (
            None
            if RIGHT["in_every"](X, Y, v, epsilon) is None
            else RIGHT["in_every"](X, Y, v, epsilon) - {v}
        ),
        "returns the maximum match": minimal(lambda X, Y, v, epsilon, match: match),
        "one v-minimal match": RIGHT["algorithm_2"],
        "roles swapped": minimal(who_needs_v),
        "others may leave after it": minimal(immediate),
        "do without": minimal(
            lambda X, Y, v, epsilon, match: match - RIGHT["in_every"](X, Y, v, epsilon)
        ),
        "the answer is None": empty_for_none(RIGHT["in_every"]),
    },
    "reachable": {
        "one step": one_step,
        "two steps": two_steps,
        "up to rounding": lambda X, Y: closure(arrows(X, Y, zero=0.0)),
        "backwards": reversed_arrows,
        "both directions": components,
        "from X to Y only": only_of_x,
        "out of its own match": lambda X, Y: {
            v: match - {v} for v, match in RIGHT["reachable"](X, Y).items()
        },
        "lacks a neuron": lambda X, Y: {
            v: match for v, match in RIGHT["reachable"](X, Y).items() if v[0] == "x"
        },
        "a dict": lambda X, Y: list(RIGHT["reachable"](X, Y).values()),
    },
    "hook": {
        "keep a copy": hooked(copy=False),
        "one entry a call": hooked(lists=False),
        "raise a KeyError": hooked(names_checked=False),
        "stay in the network.": hooked(removed=False),
        "a name is not there": registers_one_by_one,
        "forward pass fails": hooked(safe=False),
        "has counted the batch": hooked(mode="left"),
        "another mode": hooked(mode="eval"),
        "autograd graph": hooked(grad=True),
        "no entry for the layer": lambda model, names, images: (
            hooked()(model, names, images) and {}
        ),
    },
    "cka": {
        "does not centre": lambda G, s, d, n_x: cka_of(*blocks(G, n_x)),
        "without dividing it by d": lambda G, s, d, n_x: cka_of(*blocks(G - np.outer(s, s), n_x)),
        "by d²": lambda G, s, d, n_x: cka_of(*blocks(G - np.outer(s / d, s / d), n_x)),
        "does not square": lambda *given: RIGHT["cka"](*given) ** 0.5,
        "divide by Frobenius norms": centred(
            lambda A, B, C: (C**2).sum() / (np.trace(A) * np.trace(B))
        ),
        "norms of both moment matrices squared": centred(
            lambda A, B, C: (C**2).sum() / ((A**2).sum() * (B**2).sum())
        ),
        "one number": centred(lambda A, B, C: (1, 2)),
        "raises": lambda G, s, d: 1.0,
    },
    "cca": {
        "does not centre": lambda G, s, d, n_x: cca_of(*blocks(G, n_x)).mean(),
        "squared correlations": centred(lambda A, B, C: (cca_of(A, B, C) ** 2).mean()),
        "largest correlation": centred(lambda A, B, C: cca_of(A, B, C)[0]),
        "adds the correlations up": centred(lambda A, B, C: cca_of(A, B, C).sum()),
        "adds no rank": centred(lambda A, B, C: cca_of(A, B, C).sum() / min(len(A), len(B))),
        "divides by the wider": centred(
            lambda A, B, C: cca_of(A, B, C).sum() / max(len(A), len(B))
        ),
        "raises LinAlgError": cca_by_inverse,
    },
    "shuffle_images": {
        "mixes rows of different images:": lambda Y, images, rng: rng.permutation(Y),
        "moves the positions": shuffled_backwards,
        "loses some rows": lambda Y, images, rng: Y[rng.integers(len(Y), size=len(Y))],
        "do not stand together": shuffled_in_blocks,
        "never leaves an image in its place": shuffled_with(derangement),
        "only rolls": shuffled_with(lambda ids, rng: np.roll(ids, rng.integers(len(ids)))),
        "draw from the rng": shuffled_with(lambda ids, rng: np.random.permutation(ids)),
        "same way every time": shuffled_with(
            lambda ids, rng: np.random.default_rng(0).permutation(ids)
        ),
        "leaves every image": lambda Y, images, rng: Y.copy(),
        "no rows of Y": lambda Y, images, rng: RIGHT["shuffle_images"](Y, images, rng) + 0.5,
        "shape": lambda Y, images, rng: rng.permutation(np.unique(images)),
        "changes the array": lambda Y, images, rng: rng.shuffle(Y) or Y,
    },
    "p_value": {
        "mixes rows": p_of(right_p, lambda Y, images, rng: rng.permutation(Y)),
        "moves the positions": p_of(right_p, shuffled_within),
        "p can be 0": p_of(lambda null, observed, K: 0),
        "ties and the observed one": p_of(lambda null, observed, K: (null > observed).mean()),
        "leaves out the observed": p_of(lambda null, observed, K: (null >= observed).mean()),
        "leaves out ties:": p_of(lambda null, observed, K: (1 + (null > observed).sum()) / (1 + K)),
        "divides by K": p_of(lambda null, observed, K: (1 + (null >= observed).sum()) / K),
        "less similar": p_of(lambda null, observed, K: (1 + (null <= observed).sum()) / (1 + K)),
        "Nothing is ever shuffled": p_of_both,
        "same shuffle each time": p_of_one_seed,
        "fewer than 19 times": p_of_ten,
    },
    "identify": {
        "layers of a only": lambda scores: hits(scores)[0].mean(),
        "layers of b only": lambda scores: hits(scores)[1].mean(),
        "comes first": lambda scores: np.mean(
            [scores.argmax(0) == range(len(scores)), scores.argmax(1) == range(len(scores))]
        ),
        "both directions find it": lambda scores: np.logical_and(*hits(scores)).mean(),
        "one of the directions": lambda scores: np.logical_or(*hits(scores)).mean(),
        "number of queries": lambda scores: int(sum(map(sum, hits(scores)))),
        "large is similar": lambda scores: np.mean(hits(-scores)),
        "True or False": None,
    },
    "johnson": {
        "match at ε": johnson_with(lambda W_a, R_a, W_b, R_b: (W_a, R_a, W_a, R_a)),
        "different things": johnson_with(lambda W_a, R_a, W_b, R_b: (W_a, R_a, W_b, 2 * R_b)),
        "outputs are 0": johnson_with(
            lambda W_a, R_a, W_b, R_b: (np.repeat(W_a[:, :1], 2, 1), [[1], [-1]]) * 2
        ),
        "not read": johnson_with(
            lambda W_a, R_a, W_b, R_b: (
                np.hstack([W_a, W_b]),
                np.vstack([R_a, 0 * R_b]),
                W_b,
                R_b,
            )
        ),
        "is dead": johnson_with(
            lambda W_a, R_a, W_b, R_b: (np.hstack([W_a, 0 * W_a]), np.vstack([R_a, R_a]), W_b, R_b)
        ),
        "12 input features": johnson_with(lambda W_a, R_a, W_b, R_b: (W_a[:9], R_a, W_b, R_b)),
        "and R_b reads": johnson_with(lambda W_a, R_a, W_b, R_b: (W_a, R_a, W_b, R_b[:-1])),
        "are asked for": johnson_with(lambda *weights: weights[:2]),
    },
}
del WRONG["identify"]["True or False"]
SHOWN = [
    pytest.param(name, words, function, id=f"{name}-{words}")
    for name, wrong in WRONG.items()
    for words, function in wrong.items()
]


def test_there_are_five_wrong_answers_for_each():
    assert list(WRONG) == list(EXERCISES)
    assert min(map(len, WRONG.values())) >= 5


@pytest.mark.parametrize("name, words, function", SHOWN)
def test_a_wrong_answer_is_told_from_all_others(name, words, function):
    start = time.perf_counter()
    verdict = check(name, function)
    assert time.perf_counter() - start < 12
    assert not verdict and words in verdict.says, verdict
    others = [other for other in WRONG[name] if other != words and other in verdict.says]
    assert all(other in words for other in others), others
    assert repr(verdict).startswith(f"✗ {name}: {verdict.says}")
    assert_smallest(EXERCISES[name], function, verdict)


def assert_smallest(exercise, function, verdict):
    "No input that was tried and shows this mistake is smaller; and it does show it."
    if exercise.handed:
        return
    named = [mistake for mistake in exercise.mistakes if mistake.says == verdict.says]
    case = Case("", verdict.smallest)
    assert any(attempt(exercise, function, case).problem for _ in range(3))  # chance may hide it
    for trial in verdict.trials:
        if trial.problem is None or trial.size >= size(verdict.smallest):
            continue
        if named:
            assert not any(answers_alike(exercise, mistake, trial) for mistake in named)
        else:
            assert trial.problem.says != verdict.says


# What is said around it


def test_an_unfinished_function_is_no_mistake():
    def stub(*given):
        raise NotImplementedError

    verdict = check("residual", stub)
    assert not verdict and verdict.says == "nothing is written yet."
    assert repr(verdict) == "· residual: nothing is written yet."
    assert "tried" not in repr(progress())


def test_what_is_no_function_and_what_is_no_exercise():
    assert check("residual", 0.5).says == "hand in a function, not float."
    with pytest.raises(ValueError, match="there is no exercise 'residuals'; there are: dead, res"):
        check("residuals", residual)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, MemoryError, AssertionError])
def test_whatever_is_raised_becomes_a_sentence(error):
    def wrong(v, S):
        raise error("enough")

    said = check("residual", wrong).says
    assert said.startswith(f"It raises {error.__name__}: enough, in the line `raise error")


def test_the_readers_own_line_is_named():
    def wrong(v, S):
        return v @ np.linalg.inv(S)

    assert "in the line `return v @ np.linalg.inv(S)`" in check("residual", wrong).says


def test_a_loop_that_catches_everything_ends_too():
    def stubborn():
        while True:
            try:
                time.sleep(0.001)
            except Exception:
                pass

    start = time.perf_counter()
    assert limited(stubborn, 0.2).endless
    assert time.perf_counter() - start < 3


def test_prints_and_warnings_of_the_reader_are_dropped(capsys, recwarn):
    def talks(v, S):
        print("here")
        np.float64(1) / np.float64(0)
        return residual(v, S)

    assert check("residual", talks)
    assert capsys.readouterr().out == "" and not recwarn.list


def test_the_board_counts_this_session():
    assert progress().solved == 0
    check("residual", with_inverse)
    check("residual", with_inverse)
    check("dead", WRONG["dead"]["alive"])
    text = repr(progress())
    assert "0 of 17 solved" in text and "tried 2 times" in text
    check("residual", residual)
    check("residual", with_inverse)  # solved stays solved
    board = progress()
    assert board.solved == 1 and repr(board).splitlines()[2].endswith("solved")
    html = board._repr_html_()
    assert html.count("<tr>") == 1 + len(EXERCISES) and 'value="1" max="17"' in html


@pytest.mark.parametrize("name", ["residual", "algorithm_1", "p_value"])
def test_a_check_says_the_same_again(name):
    words, function = list(WRONG[name].items())[1]
    first, second = check(name, function), check(name, function)
    assert repr(first) == repr(second) and words in first.says


def test_the_smallest_input_of_a_mistake_is_known():
    "Smaller ones cannot show it."
    verdict = check("residual", WRONG["residual"]["best single neuron"])
    assert verdict.smallest["S"].shape == (2, 2)  # two neurons, and a plane
    verdict = check("algorithm_1", match_one_round)
    n = verdict.smallest["X"].shape[1] + verdict.smallest["Y"].shape[1]
    assert n == 3  # one leaves, another one loses what explained it
    assert check("dead", WRONG["dead"]["sums or means"]).smallest["X"].shape == (2, 1)
    assert size(check("identify", WRONG["identify"]["comes first"]).smallest) == (4, 0)


# The oracles


@pytest.mark.filterwarnings("ignore::submatch_nb.SubmatchWarning")
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {*CLOSENESS, "scales"}))
def test_oracles_and_library_agree(kind):
    "Where spans are well defined; the oracles cut nearly dependent ones at another place."
    rng = np.random.default_rng(0)
    for _ in range(6):
        X, Y = (Z[:, :5] for Z in KINDS[kind](rng))
        table = pairs(X, Y)
        assert np.allclose(
            [*table.critical().values()], [*np.concatenate(profile_of(X, Y))], atol=1e-7
        )
        for epsilon in (0.0, 0.3, 0.6):
            if not table.is_clear(epsilon):
                continue
            best = table.maximum(epsilon)
            assert best == frozenset(library_algorithm_1(X, Y, epsilon))
            assert best == plain_maximum(X, Y, epsilon)
            for v in sorted(best)[:2]:
                found = minimal_matches(X, Y, v, epsilon)
                assert found.complete
                assert set(table.minimal(v, epsilon)) == {frozenset(match) for match in found}
                needed = frozenset(necessary(X, Y, epsilon)[v])
                assert table.in_every(v, epsilon) == needed | {v}


def profile_of(X, Y):
    profile = epsilon_profile(X, Y)
    return profile.x, profile.y


def test_too_many_neurons_are_not_enumerated():
    with pytest.raises(ValueError, match="at most 6 a side"):
        pairs(np.ones((3, 7)), np.ones((3, 2)))


def test_oracles_of_measures_agree_with_the_library():
    for case in EXERCISES["cka"].cases(np.random.default_rng(3)):
        for name, measure in (("cka", library_cka), ("cca", library_cca)):
            assert np.isclose(EXERCISES[name].right(**case.given), measure(**case.given))


# Reading answers


@pytest.mark.parametrize(
    "read, value",
    [
        (number, None),
        (number, [1, 2]),
        (number, "one"),
        (truth, 0.3),
        (truth, [True, False]),
        (lambda v: indices(v, 3), [0, 3]),
        (lambda v: indices(v, 3), [0.5]),
        (lambda v: indices(v, 3), "x0"),
        (lambda v: two_sets(v, 2, 2), [0, 1, 2]),
        (lambda v: two_sets(v, 2, 2), 7),
        (lambda v: two_sets(v, 2, 2), {"x5"}),
        (lambda v: two_sets(v, 2, 2), [("z", 1)]),
        (lambda v: two_sets(v, 2, 2), ([2], [])),
        (lambda v: two_sets(v, 2, 2), ([[0], [1]], [])),
    ],
)
def test_what_cannot_be_read_is_said(read, value):
    with pytest.raises(UnreadableError) as error:
        read(value)
    assert re.fullmatch(r"It (returns|names) .*\.|.*\?", str(error.value))


# The chapter, and the copy without solutions


def test_the_chapter_has_every_exercise_with_all_its_parts():
    nb = nbformat.read(CHAPTER, 4)
    text = "\n\n".join(cell.source for cell in nb.cells)
    hand = EXERCISES["dead"]  # done in full view, so without a solution
    for exercise in EXERCISES.values():
        if exercise is hand:
            continue
        part = re.search(rf"^### {exercise.name}\n(.*?)(?=^##|\Z)", text, re.M | re.S)[1]
        assert f"{level(exercise)} · {exercise.minutes} minutes · chapter " in part
        for summary in ("Hint 1", "Hint 2", "Solution"):
            assert part.count(f"<details><summary>{summary}</summary>") == 1
        assert part.count("</details>") == 3
        stub = f"def {exercise.name}\\(.*\\):\n    raise NotImplementedError\n\n\n"
        assert re.search(stub + f'check\\("{exercise.name}", {exercise.name}\\)', part)
    assert len(EXERCISES) >= 14 and len(cells("solution")) == len(EXERCISES) - 1


def test_the_hand_layers_are_whole_numbers():
    for Z in hand_layers():
        assert np.array_equal(Z, Z.astype(int))


def student():
    sys.path.append(str(ROOT / "tools"))
    return __import__("student")


@pytest.fixture
def copy(tmp_path):
    "The copy for students, as `make student` writes it."
    path = tmp_path / "some where" / "exercises.ipynb"
    subprocess.run([sys.executable, ROOT / "tools/student.py", path], check=True)
    return path


def test_the_copy_for_students_has_everything_but_solutions(copy):
    chapter, nb = nbformat.read(CHAPTER, 4), nbformat.read(copy, 4)
    sources = [cell.source for cell in nb.cells]
    text = "\n".join(sources)
    for cell in cells("solution"):
        assert cell.source not in text and code_of(cell) not in text
        for line in code_of(cell).splitlines():
            stub = re.match(r"def \w+\(", line) or "import" in line
            assert stub or len(line.strip()) < 15 or line.strip() not in text, line
    assert "Solution" not in text and text.count("raise NotImplementedError") == 16
    left_out = (*cells("solution"), *cells("colab"))
    expected = [
        student().linked(cell.source) if cell.cell_type == "markdown" else cell.source
        for cell in chapter.cells
        if cell not in left_out
    ]
    assert sources == expected
    assert not re.search(r"\]\((?!https://)", text)
    assert not any(cell.get("outputs") for cell in nb.cells)


def test_the_copy_for_students_runs_and_can_be_solved(copy):
    execute = pytest.importorskip("execute", reason="no nbclient: pip install '.[dev]'")
    empty = execute.run(copy)
    assert "1 of 17 solved" in empty.cells[-3].outputs[0].data["text/plain"]
    nb = nbformat.read(copy, 4)
    code = {re.search(r"def (\w+)\(", stub)[1]: stub for stub in map(code_of, cells("solution"))}
    code = {
        name: solution
        for solution in code.values()
        for name in EXERCISES
        if f"def {name}(" in solution
    }
    for cell in nb.cells:
        name = re.search(r'check\("(\w+)", \1\)', cell.source)
        if name and "NotImplementedError" in cell.source:
            cell.source = "import torch\n" + code[name[1]] + name[0]
    nbformat.write(nb, copy)
    solved = execute.run(copy)
    assert "17 of 17 solved" in solved.cells[-3].outputs[0].data["text/plain"]
