"""Residuals and moments against exact and extended arithmetic, and errors that name the culprit.

Whole files, and what is packaged for the first chapters.
"""

import copy
import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from exact import assert_bound_holds
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import KINDS, MILD, exact_residual2, float_residual2, integer_layers, make
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from submatch_nb.engine.factors import rounding, second_moments
from submatch_nb.engine.files import (
    digest,
    digest_bytes,
    digest_file,
    load_tensors,
    save_tensors,
)
from submatch_nb.engine.inputs import SubmatchWarning, check_choice, check_dead
from submatch_nb.engine.moments import Moments
from submatch_nb.engine.perceptrons import WIDTHS, perceptron
from submatch_nb.engine.writing import write_whole
from submatch_nb.maximum import epsilon_profile, max_match_similarity, maximum_match
from submatch_nb.neurons import chance_epsilon, digits_layers, residuals, unit
from submatch_nb.simple import is_unique, simple_matches

SEEDS = st.integers(0, 10**6)
QUIET = pytest.mark.filterwarnings("ignore::submatch_nb.SubmatchWarning")


# Residuals


@QUIET
@settings(max_examples=100)
@given(integer_layers(4))
def test_residuals_are_exact(layers):
    "Against rational arithmetic: a dependent neuron to 1e-14, not to the root of rounding."
    X, Y = layers
    expected = [
        exact_residual2(tuple(x.tolist()), tuple(map(tuple, Y.T.tolist()))) ** 0.5
        if x.any()
        else math.nan
        for x in X.T
    ]
    for A, B in (
        (X, Y),
        (X * 1e-8, Y * 1e8),
        (-3 * X * 10.0 ** np.arange(X.shape[1]), Y * 10.0 ** -np.arange(Y.shape[1])),
    ):
        np.testing.assert_allclose(residuals(A, B), expected, atol=1e-14)


@QUIET
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5)
@given(seed=SEEDS)
def test_residuals_of_hostile_instances(kind, seed):
    X, Y = make(kind, seed)
    for A, B in ((X, Y), (Y, X)):
        got, live = residuals(A, B), A.any(0)
        expected = [float_residual2(z, list(B.T)) ** 0.5 for z in A.T]
        np.testing.assert_allclose(
            got[live], np.array(expected)[live], atol=1e-13 if kind in MILD else 1e-5
        )
        assert np.isnan(got[~live]).all() and got.dtype == np.float64 and got.shape == (A.shape[1],)
        assert ((got >= 0) & (got <= 1))[live].all()
        np.testing.assert_allclose(residuals(A, A)[live], 0, atol=1e-14)


@QUIET
@pytest.mark.parametrize("kind", MILD)
def test_residuals_do_not_depend_on_scale_rotation_or_order(kind):
    X, Y = make(kind, 5)
    rng = np.random.default_rng(0)

    def scale(n):
        return rng.choice([-1, 1], n) * 10 ** rng.uniform(-8, 8, n)

    rotation = np.linalg.qr(rng.normal(size=(len(X),) * 2))[0]
    p, q = rng.permutation(X.shape[1]), rng.permutation(Y.shape[1])
    expected = residuals(X, Y)
    for A, B, order in (
        (X * scale(X.shape[1]), Y * scale(Y.shape[1]), ...),
        (rotation @ X, rotation @ Y, ...),
        (X[:, p], Y[:, q], p),
        (X * 1e-200, Y * 1e200, ...),
    ):
        np.testing.assert_allclose(residuals(A, B), expected[order], atol=1e-12)


def test_residuals_only_fall_when_the_span_grows():
    for kind in MILD:
        X, Y = make(kind, 3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SubmatchWarning)
            steps = np.array([residuals(X, Y[:, :k]) for k in range(1, Y.shape[1] + 1)])
        assert (np.diff(steps[:, X.any(0)], axis=0) <= 1e-14).all()


def test_pythagoras_by_hand():
    X, Y = np.array([[3, 1, 0], [4, 0, 0], [0, 0, 2]]), np.array([[1.0], [0], [0]])
    assert residuals(X, Y) == pytest.approx([0.8, 0, 1], abs=1e-15)


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1, 1e200, 1e308])
def test_unit_at_any_scale(scale):
    Z = torch.tensor([[3.0, 0, 1], [4, 0, 0]], dtype=torch.float64) * torch.tensor(
        [1, 1, scale], dtype=torch.float64
    )
    np.testing.assert_allclose(unit(Z).norm(dim=0), [1, 0, 1], rtol=1e-15)


@pytest.mark.filterwarnings("error::submatch_nb.SubmatchWarning")
def test_a_span_that_fills_the_space_warns():
    rng = np.random.default_rng(0)
    with pytest.warns(
        SubmatchWarning, match=r"neurons of Y span all of R\^5.*5 samples.*more samples"
    ):
        assert residuals(rng.normal(size=(5, 2)), rng.normal(size=(5, 6))).max() < 1e-14
    residuals(rng.normal(size=(5, 6)), rng.normal(size=(5, 4)))
    residuals(
        rng.normal(size=(5, 2)), rng.normal(size=(5, 2)) @ rng.normal(size=(2, 9))
    )  # nine neurons, two dimensions


@pytest.mark.parametrize("d, n", [(400, 100), (1000, 500), (200, 199)])
def test_chance_is_what_random_neurons_have(d, n):
    rng = np.random.default_rng(0)
    r = residuals(rng.normal(size=(d, 200)), rng.normal(size=(d, n)))
    assert np.sqrt((r**2).mean()) == pytest.approx(chance_epsilon(d, n), rel=0.1)
    assert chance_epsilon(5, 5) == chance_epsilon(5, 9) == 0 and chance_epsilon(5, 0) == 1


@pytest.mark.parametrize("d, n", [(0, 3), (-1, 3), (5, -1)])
def test_chance_of_nothing(d, n):
    with pytest.raises(ValueError, match=rf"d = {d}, n = {n}"):
        chance_epsilon(d, n)


# Moments


def columns(X, Y):
    return np.concatenate([X, Y], 1)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5)
@given(seed=SEEDS)
def test_moments_are_within_their_own_bound(kind, seed):
    "Each inner product of unit neurons is off by at most `error`, against exact fractions."
    X, Y = (Z[:, :4] for Z in make(kind, seed))
    Z, cut = columns(X, Y), len(X) // 2
    exact = [
        [
            sum(Fraction(a) * Fraction(b) for a, b in zip(Z[:, i].tolist(), Z[:, j].tolist()))
            for j in range(Z.shape[1])
        ]
        for i in range(Z.shape[1])
    ]
    for moments in (
        Moments(X, Y),
        Moments(X[:cut], Y[:cut]) + Moments(X[cut:], Y[cut:]),
        Moments(X[:1], Y[:1]) + Moments(X[1:], Y[1:]),
    ):
        assert moments.count == len(X) and 0 < moments.error < 1e-12
        for i in range(Z.shape[1]):
            for j in range(Z.shape[1]):
                off = abs(Fraction(moments.gram[i, j].item()) - exact[i][j])
                assert off**2 <= Fraction(moments.error) ** 2 * exact[i][i] * exact[j][j]
        np.testing.assert_allclose(
            moments.sum, Z.sum(0), rtol=1e-12, atol=1e-12 * np.abs(Z).sum(0).max()
        )


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5)
@given(seed=SEEDS)
def test_r_factors_are_within_their_own_bound(kind, seed):
    "Also after adding parts."
    X, Y = (Z[:, :4] for Z in make(kind, seed))
    cut, rng = len(X) // 2, np.random.default_rng(seed)

    def part(rows):
        return Moments(X[rows], Y[rows], root=True)

    for moments in (
        part(slice(None)),
        part(slice(cut)) + part(slice(cut, None)),
        part(slice(1)) + part(slice(1, None)),
    ):
        assert (
            moments.route == "root"
            and moments.root.shape[0] <= moments.root.shape[1]
            and moments.error < 1e-12
            and moments.skew < 1e-11
        )
        assert_bound_holds(moments, columns(X, Y), rng)


def test_r_factors_in_files_and_sums(tmp_path):
    X, Y = make("relu_features", 0)
    root, gram = Moments(X, Y, root=True), Moments(X, Y)
    root.save(tmp_path / "m.safetensors")
    again = Moments.load(tmp_path / "m.safetensors")
    assert torch.equal(again.root, root.root) and (
        again.route,
        again.error,
        again.skew,
        again.count,
    ) == ("root", root.error, root.skew, root.count)
    assert "R factor" in repr(again) and gram.route == "gram" and "R factor" not in repr(gram)
    assert (
        torch.allclose(root.gram, gram.gram)
        and torch.allclose(root.swap().gram, gram.swap().gram)
        and root.swap().root is not None
    )
    assert (root + root).route == "root" and (root + gram).route == "gram" == (gram + root).route
    for total in (root + gram, root.squared()):
        assert total.error > gram.error and torch.allclose(
            total.gram, gram.gram * (total.count // gram.count)
        )
    assert (
        Moments(X * 0, Y, root=True).dead.x.tolist()
        == list(range(X.shape[1]))
        == (Moments(X * 0, Y, root=True) + Moments(X * 0, Y, root=True)).dead.x.tolist()
    )
    with pytest.raises(ValueError, match="too large or too small"):
        Moments(X * 1e200, Y, root=True)


def test_the_bound_grows_with_what_was_added():
    X, Y = make("gaussian", 0)
    part = Moments(X, Y)
    total = sum([part] * 9, part)
    assert total.error > part.error and total.count == 10 * part.count
    assert (part + total).error >= total.error


@pytest.mark.parametrize("d", [1000, 200_000])
def test_the_bound_holds_over_many_samples(d):
    "Against extended precision, in sums that cancel and in sums that do not."
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(d, 4)) + [0, 0, 3, 1e4]
    moments, wide = Moments(Z[:, :2], Z[:, 2:]), Z.astype(np.longdouble)
    exact = wide.T @ wide
    off = np.abs(moments.gram.numpy() - exact) / np.sqrt(
        np.outer(exact.diagonal(), exact.diagonal())
    )
    assert off.max() <= moments.error


def test_a_sum_of_parts_is_exact_on_integers():
    X, Y = make("integer_ties", 3)
    whole, parts = (
        Moments(X, Y),
        sum(
            (Moments(X[i : i + 2], Y[i : i + 2]) for i in range(2, len(X), 2)),
            Moments(X[:2], Y[:2]),
        ),
    )
    assert (
        torch.equal(whole.gram, parts.gram)
        and torch.equal(whole.sum, parts.sum)
        and whole.count == parts.count
    )
    assert (
        np.array_equal(whole.gram, columns(X, Y).T @ columns(X, Y))
        and whole.gram.dtype == torch.float64
    )


@pytest.mark.parametrize("root", [False, True])
def test_neurons_that_are_silent_in_a_part_stay_alike(root):
    """A ReLU and its copy are both 0 on many a batch.

    A neuron that is silent elsewhere is no copy, nor are dead ones of each other.
    """
    rng = np.random.default_rng(0)
    X, Y = (np.maximum(rng.normal(size=(90, 6)), 0) for _ in range(2))
    X[:30, :3] = Y[60:, 4:] = 0  # silent together in the first part, or in the last
    X[:, 2], Y[:, 5] = X[:, 0], Y[:, 4]
    X[:, 4:] = 0
    parts = [Moments(X[i : i + 30], Y[i : i + 30], root=root) for i in (0, 30, 60)]
    whole = Moments(X, Y, root=root)
    assert whole.alike.tolist() == [0, 1, 0, 3, 4, 5, *range(6, 11), 10]
    for added in (
        parts[0] + parts[1] + parts[2],
        parts[2] + (parts[1] + parts[0]),
        parts[0] + (parts[1] + parts[2]),
    ):
        assert torch.equal(added.alike, whole.alike)
    added = parts[0] + parts[1] + parts[2]
    assert (
        [len(side) for side in epsilon_profile(added).undecided(0.5)]
        == [0, 0]
        == [len(side) for side in epsilon_profile(whole).undecided(0.5)]
    )


def test_copies_behind_a_near_copy_are_found():
    b = np.random.default_rng(0).normal(size=(20, 1))
    near = b * np.r_[1 + 1e-14, np.ones(19)][:, None]
    X = np.hstack([near, b, b, b + 1, near])
    assert Moments(X, X[:, :1]).alike.tolist() == [0, 1, 1, 3, 0, 5]


def test_swap_exchanges_the_networks():
    X, Y = make("unequal_widths", 1)
    a, b = Moments(X, Y).swap(), Moments(Y, X)
    np.testing.assert_allclose(a.gram, b.gram, rtol=1e-14)
    assert (a.n_x, a.n_y, a.count, a.error) == (b.n_x, b.n_y, b.count, b.error) and torch.equal(
        a.sum, b.sum
    )
    assert torch.equal(a.swap().gram, Moments(X, Y).gram)


def test_dead_neurons_are_named():
    X, Y = np.ones((5, 4)), np.ones((5, 3))
    X[:, [1, 3]], Y[:, 0], Y[1:, 2] = 0, 0, 0
    X[4, 3] = 1e-100
    dead = Moments(X, Y).dead
    assert dead.x.tolist() == [1] and dead.y.tolist() == [0]
    assert (Moments(X[:2], Y[:2]) + Moments(X[2:], Y[2:])).dead.x.tolist() == [1]


@pytest.mark.parametrize("root", [False, True])
def test_moments_are_read_only(root):
    X, Y = make("dead", 0)
    moments = Moments(X, Y, root=root)
    held = ["gram", "root", "route", "square", "sum", "count", "n_x", "n_y"]
    for name in (*held, "error", "skew", "alike", "dead", "anything"):
        with pytest.raises(AttributeError):
            setattr(moments, name, 1)
    again = copy.deepcopy(moments)
    assert torch.equal(again.gram, moments.gram) and again.route == moments.route


@pytest.mark.parametrize("root", [False, True])
def test_moments_with_a_part_replaced(root):
    "The others stay, the old moments too; a silent neuron is identical to none."
    X, Y = make("dead", 0)
    X[:, 0] = 0
    moments = Moments(X, Y, root=root)
    n = len(moments.sum)
    own = moments.alike.clone()
    other = moments.replaced(error=1e-9)
    assert other.error == 1e-9 and torch.equal(other.sum, moments.sum)
    assert torch.equal(other.gram, moments.gram) and torch.equal(other.alike, own)
    assert moments.error < 1e-12 and moments.count == len(X)
    alike = moments.replaced(alike=torch.full((n,), n - 1)).alike
    silent = moments.square == 0
    assert silent[0] and torch.equal(alike[silent], torch.arange(n)[silent])
    assert (alike[~silent] == n - 1).all() and torch.equal(moments.alike, own)
    assert (other.route, other.skew, other.n_x) == (moments.route, moments.skew, moments.n_x)


def test_moments_hold_either_gram_or_root():
    for held in ({}, {"gram": torch.eye(2), "root": torch.eye(2)}):
        with pytest.raises(TypeError, match="either gram or root"):
            Moments.from_parts(torch.ones(2), 3, 1, 0.0, **held)


def test_moments_of_other_neurons_cannot_be_added():
    X, Y = make("gaussian", 0)
    with pytest.raises(
        ValueError, match=rf"Moments\({X.shape[1]} \+ {Y.shape[1]} neurons.*different neurons"
    ):
        Moments(X, Y) + Moments(X, np.c_[Y, Y])
    with pytest.raises(TypeError):
        Moments(X, Y) + 1


@pytest.mark.parametrize("scale", [1e-200, 1e200, 1e-160])
def test_moments_of_numbers_that_cannot_be_squared(scale):
    "Also where squares are still there but have lost their digits."
    X, Y = make("gaussian", 0)
    with pytest.raises(ValueError, match="too large or too small.*divide"):
        Moments(X * scale, Y)


# Files


def test_moments_come_back_from_a_file(tmp_path):
    X, Y = make("dead", 0)
    moments, path = Moments(X, Y), tmp_path / "new" / "m.safetensors"
    moments.save(path)
    again = Moments.load(path)
    assert (
        torch.equal(again.gram, moments.gram)
        and torch.equal(again.sum, moments.sum)
        and again.gram.dtype == torch.float64
    )
    assert (again.count, again.n_x, again.n_y, again.error) == (
        moments.count,
        moments.n_x,
        moments.n_y,
        moments.error,
    )
    assert [p.name for p in path.parent.iterdir()] == ["m.safetensors"]
    assert again.dead.x.tolist() == moments.dead.x.tolist()


@pytest.mark.parametrize("kind", ["gram", "root"])
def test_a_file_as_it_was_written_before_is_read(tmp_path, kind):
    tensors = {
        kind: torch.eye(3, dtype=torch.float64),
        "sum": torch.ones(3, dtype=torch.float64),
        "alike": torch.tensor([0, 0, 2]),
    }
    about = '{"count": 5, "n_x": 2, "error": 1e-13, "skew": 0.0}'
    save_file(tensors, tmp_path / "m", {"submatch": "moments", "about": about})
    moments = Moments.load(tmp_path / "m")
    assert (moments.route, moments.count, moments.n_x, moments.n_y) == (kind, 5, 2, 1)
    assert moments.alike.tolist() == [0, 0, 2] and moments.error == 1e-13


def test_digests_are_those_that_files_hold():
    "Checkpoints and results written by earlier versions hold them, so they never change."
    weights = {"weight": torch.eye(2), "bias": [torch.arange(3), None]}
    assert digest(weights, ("a", 1.5)) == "7d8fd2704c74942e"
    assert digest(np.arange(6.0).reshape(2, 3).T) == "37a8af34e832ec86"
    assert digest(torch.tensor(3)) == "a6e6d2e1864c7e48"


def test_a_digest_of_bytes_and_of_a_file(tmp_path):
    (tmp_path / "f").write_bytes(b"ab")
    assert digest_file(tmp_path / "f") == digest_bytes(b"ab") == digest_bytes(b"a", b"b")
    assert digest_bytes(memoryview(np.frombuffer(b"ab", np.uint8))) == digest_bytes(b"ab")
    assert digest_bytes(b"ab") == "0e52b5f187de1088" != digest_bytes(b"ba")
    with pytest.raises(FileNotFoundError):
        digest_file(tmp_path / "none")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        Moments.load(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError):
        Moments.load(tmp_path)


def test_every_cut_of_a_file_is_noticed(tmp_path):
    path = tmp_path / "m.safetensors"
    Moments(*make("gaussian", 0)).save(path)
    whole = path.read_bytes()
    for size in (0, 1, 7, 8, 9, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(
            ValueError, match="m.safetensors is not a safetensors file, or is damaged or cut short"
        ):
            Moments.load(path)


def test_another_file(tmp_path):
    path = tmp_path / "m.safetensors"
    save_tensors(path, "comparison", {"gram": torch.eye(2)})
    with pytest.raises(ValueError, match="holds comparison, not a submatch moments"):
        Moments.load(path)
    save_file({"weight": torch.eye(2)}, path)
    with pytest.raises(ValueError, match="tensors of another program, not a submatch moments"):
        Moments.load(path)
    path.write_text("a poem")
    with pytest.raises(ValueError, match="not a safetensors file"):
        Moments.load(path)


def test_tensors_and_values_come_back(tmp_path):
    tensors = {
        "a": torch.arange(6).reshape(2, 3).T,
        "b": torch.ones(2, requires_grad=True),
        "c": np.eye(2),
    }
    save_tensors(tmp_path / "t", "thing", tensors, names=["r1", "r2"], epsilon=0.1, none=None)
    back, about = load_tensors(tmp_path / "t", "thing")
    assert about == {"names": ["r1", "r2"], "epsilon": 0.1, "none": None}
    assert (
        torch.equal(back["a"], tensors["a"])
        and torch.equal(back["b"], torch.ones(2))
        and back["c"].dtype == torch.float64
    )


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, Interrupted, RuntimeError, OSError("disk full")]
)
def test_an_interrupted_write_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "m"
    path.write_text("old")

    def write(part):
        part.write_text("half")
        raise error

    with pytest.raises(OSError if isinstance(error, OSError) else error):
        write_whole(path, write)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written(tmp_path):
    moments = Moments(*make("gaussian", 0))
    blocker, taken = tmp_path / "file", tmp_path / "folder"
    blocker.write_text("old")
    taken.mkdir()
    for path in (blocker / "m", taken, "/proc/none/m", ""):
        with pytest.raises(OSError, match=f"cannot write {path}"):
            moments.save(path)
    assert blocker.read_text() == "old" and not list(taken.iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


# Bad input


@pytest.mark.parametrize("f", [residuals, Moments])
def test_bad_activations_name_the_culprit(f):
    X, Y = make("relu_features", 0)
    for bad in (np.nan, np.inf, -np.inf):
        broken = X.copy()
        broken[[4, 2], [1, 5]] = bad
        where = rf"\(2 such values in 2 of {X.shape[1]} neurons\)"
        with pytest.raises(ValueError, match=f"X: neuron 5 is {bad} at sample 2 {where}"):
            f(broken, Y)
        with pytest.raises(ValueError, match="X: neuron 5"):
            f(torch.as_tensor(broken).half(), Y)
    both_signs = Y.copy()
    both_signs[0, :2] = np.inf, -np.inf
    with pytest.raises(ValueError, match="Y: neuron 0 is inf at sample 0"):
        f(X, both_signs)
    for A, B, error, says in (
        (X, Y[1:], ValueError, "X has 60 samples and Y has 59"),
        (X[:0], Y[:0], ValueError, r"X has shape \(0, .*no samples"),
        (X, Y[:, :0], ValueError, r"Y has shape \(60, 0\).*no neurons"),
        (X[:, 0], Y, ValueError, r"X has shape \(60,\).*two axes"),
        (X, Y[None], ValueError, r"Y has shape \(1, 60"),
        ([], Y, ValueError, "X has shape"),
        (X, 0.3, TypeError, r"Y is 0.3.*keyword.*epsilon=0.3"),
        (X, None, TypeError, "Y is None"),
        ("X", Y, TypeError, "X is 'X'"),
        (X, np.float64(0.3), TypeError, "Y is "),
        (X + 0j, Y, TypeError, "X holds complex128"),
        (X.astype(str), Y, TypeError, "X holds <U"),
        (torch.as_tensor(X) + 0j, Y, TypeError, "X holds torch.complex128"),
        (X.astype(object), Y, TypeError, "X holds object"),
        (
            torch.as_tensor(X).to_sparse(),
            Y,
            TypeError,
            r"X is a sparse tensor: pass X.to_dense\(\)",
        ),
        ([[1, 2], [3]], Y, TypeError, "X cannot be read as an array"),
        (X, [torch.ones(2, requires_grad=True)] * 3, TypeError, "Y cannot be read as an array"),
        (X, np.ma.array(Y, mask=Y > 0), ValueError, "Y has masked values"),
        (X, torch.tensor(0.3), (TypeError, ValueError), r"Y "),
    ):
        with pytest.raises(error, match=says):
            f(A, B)


def test_a_choice_is_one_of_its_words():
    assert check_choice("auto", ("auto", "exact"), "precision") == "auto"
    for wrong in ("high", None, 1, ["auto"]):
        with pytest.raises(ValueError, match='^precision is .*: use "auto" or "exact"$'):
            check_choice(wrong, ("auto", "exact"), "precision")
    with pytest.raises(ValueError, match=r'"exclude" \(in no match\) or "literal" \(residual 0\)$'):
        check_dead("yes")


@QUIET
def test_largest_finite_numbers_are_no_infinities():
    Z = np.array([[1e308, 1.0], [1e308, -1], [1e308, 1]])
    assert residuals(Z, Z[:, :1]) == pytest.approx([0, math.sqrt(8 / 9)], abs=1e-15)


# What arrays may be

ROWS = 2.0 * np.random.default_rng(0).integers(0, 8, (30, 4))


@pytest.mark.parametrize(
    "kind",
    [
        "float64",
        "float32",
        "float16",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "longdouble",
        ">f8",
        ">i4",
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int8,
        torch.int64,
        torch.uint8,
    ],
)
def test_any_real_type(kind):
    X = torch.as_tensor(ROWS).to(kind) if isinstance(kind, torch.dtype) else ROWS.astype(kind)
    Y = ROWS[:, ::-1] + np.eye(30)[:, :4]
    np.testing.assert_array_equal(residuals(X, Y.copy()), residuals(ROWS, Y.copy()))
    assert torch.equal(Moments(X, Y.copy()).gram, Moments(ROWS, Y.copy()).gram)


def test_booleans_count_as_0_and_1():
    B = ROWS > 6
    for b in (B, torch.as_tensor(B)):
        np.testing.assert_array_equal(residuals(b, ROWS), residuals(B.astype(float), ROWS))


@pytest.mark.parametrize(
    "view",
    [
        lambda Z: Z[::-1],
        lambda Z: Z[:, ::-1],
        lambda Z: np.asfortranarray(Z),
        lambda Z: np.repeat(Z, 3, 1)[:, ::3],
        lambda Z: Z.tolist(),
        lambda Z: torch.as_tensor(Z.T.copy()).T,
        lambda Z: torch.tensor(Z, requires_grad=True),
        lambda Z: torch.tensor(Z, requires_grad=True) * 1,
        lambda Z: torch.as_tensor(Z).expand(30, 4),
        lambda Z: np.ma.asarray(Z),
    ],
)
def test_any_layout(view):
    Z = view(ROWS)
    plain = Z.detach().numpy() if torch.is_tensor(Z) else np.array(Z)
    np.testing.assert_allclose(
        residuals(Z, ROWS + np.eye(30)[:, :4]),
        residuals(plain, ROWS + np.eye(30)[:, :4]),
        rtol=1e-13,
    )
    np.testing.assert_allclose(Moments(Z, Z).gram, plain_gram(plain), rtol=1e-13)


def plain_gram(Z):
    return columns(Z, Z).T @ columns(Z, Z)


def test_read_only_arrays_pass_without_a_word(tmp_path):
    "As from np.load(mmap_mode='r')."
    np.save(tmp_path / "z.npy", ROWS)
    Z = np.load(tmp_path / "z.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(
            residuals(Z, ROWS + np.eye(30)[:, :4]), residuals(ROWS, ROWS + np.eye(30)[:, :4])
        )


def test_inputs_stay_as_they_were_and_are_not_shared():
    X = torch.tensor(ROWS, requires_grad=True)
    Y = ROWS[:, :2].copy()
    before = Y.copy()
    moments = Moments(X, Y)
    gram = moments.gram.clone()
    residuals(X, Y)
    assert (
        np.array_equal(X.detach(), ROWS)
        and np.array_equal(Y, before)
        and X.grad is None
        and not moments.gram.requires_grad
    )
    Y[:] = 0
    other = moments + Moments(X, before)
    assert torch.equal(moments.gram, gram) and torch.equal(other.gram, 2 * gram)


# Warnings and files


def test_warnings_point_at_the_line_that_asked():
    "Here, however deep in the package they arise."
    X, Y = np.random.default_rng(0).normal(size=(2, 5, 8))
    for call in (
        lambda: residuals(X, Y),
        lambda: maximum_match(X, Y, 0.3),
        lambda: max_match_similarity(X, Y, 0.3),
        lambda: epsilon_profile(X, Y),
        lambda: simple_matches(X, Y, 0.3),
        lambda: is_unique(X, Y, ("x", 0), 0.3),
    ):
        with pytest.warns(SubmatchWarning, match=r"span all of R\^5") as caught:
            call()
        assert {w.filename for w in caught} == {__file__}


def test_dead_neurons_do_not_lower_the_chance_level():
    X, Y = np.random.default_rng(0).normal(size=(2, 100, 40))
    X[:, :20] = Y[:, :20] = 0
    level = epsilon_profile(X, Y).chance
    assert level == chance_epsilon(100, 20) > chance_epsilon(100, 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maximum_match(X, Y, level - 0.01)
    with pytest.warns(SubmatchWarning, match=f"chance level {level:.3f}"):
        maximum_match(X, Y, level)


def test_files_have_the_mode_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    Moments(*make("gaussian", 0)).save(tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "n, strip, chunk", [(1, 4, 4), (5, 2, 3), (6, 3, 4), (7, 100, 100), (8, 4, 1)]
)
def test_second_moments_in_strips_and_chunks(n, strip, chunk, monkeypatch):
    """Whatever the sizes: every product of two neurons, both ways round.

    And a bound that grows with what is summed in a row.
    """
    monkeypatch.setattr("submatch_nb.engine.factors.GRAM_STRIP", strip)
    monkeypatch.setattr("submatch_nb.engine.factors.CHUNK", chunk)
    Z = torch.as_tensor(np.random.default_rng(n).normal(size=(9, n)))
    gram, error = second_moments(Z)
    assert torch.equal(gram, gram.T)
    length = Z.norm(dim=0)
    assert ((gram - Z.T @ Z).abs() <= 2 * error * torch.outer(length, length) + 1e-30).all()
    assert error == rounding(min(chunk, 9) + -(-9 // chunk) - 1)


# The example of the first chapters


@pytest.mark.parametrize("width", WIDTHS)
def test_packaged_perceptrons_read_the_digits(width, monkeypatch):
    "Without training; their second layers are full of what the images are."
    monkeypatch.setattr("sklearn.neural_network.MLPClassifier.fit", None)
    digits_layers.cache_clear()
    X, Y = digits_layers(width)
    assert X.shape == Y.shape == (1797, width) and X.dtype == Y.dtype == np.float64
    labels = load_digits().target
    for Z in (X, Y):
        assert (Z >= 0).all()
        fit = np.linalg.lstsq(Z, np.eye(10)[labels])[0]
        assert ((Z @ fit).argmax(1) == labels).mean() > 0.95
    assert digits_layers(width) is digits_layers(width)


def test_perceptrons_of_other_widths_are_trained():
    first, second = perceptron(8, seed=0)
    assert first.weights.shape == (64, 8) and second.weights.shape == (8, 8)
    assert second.bias.shape == (8,) and perceptron(32, seed=2)[1].bias.shape == (32,)
