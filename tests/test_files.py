"""Files: written whole or not at all, by many at once, over nothing else; refused where one bit has
changed; and what stands in them can do nothing but be read.
"""

import contextlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from submatch_nb import compare_activations, load_checkpoint, load_data
from submatch_nb.cli import main
from submatch_nb.comparison import Comparison, Comparisons, compare, compare_all
from submatch_nb.engine import writing
from submatch_nb.engine.architectures import build
from submatch_nb.engine.configs import load_config
from submatch_nb.engine.files import (
    holds,
    load_json,
    load_tensors,
    save_json,
    save_tensors,
    seal_of,
)
from submatch_nb.engine.inputs import SubmatchWarning
from submatch_nb.engine.moments import Moments
from submatch_nb.engine.reproducing import reproduce
from submatch_nb.engine.results import Results
from submatch_nb.engine.training import Recipe, train
from submatch_nb.engine.weights import read_weights
from submatch_nb.engine.writing import (
    Output,
    check_free,
    containing,
    sweep,
    write_together,
    write_whole,
)
from submatch_nb.explorer import save_html
from submatch_nb.layers import Sampled

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 5)), RNG.normal(size=(60, 4))
TEXT = containing("a text", b"", start=b"text")


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SubmatchWarning)
        yield


def listing(folder):
    return sorted(path.name for path in Path(folder).iterdir())


# The writer


@pytest.mark.parametrize("many", [threading.Thread, multiprocessing.get_context("fork").Process])
def test_many_write_one_path_and_readers_see_whole_files(many, tmp_path):
    "Also processes that believe to be the same one, as in two containers."
    path = tmp_path / "one"
    texts = [f"text {k} " * 4000 for k in range(8)]
    write_whole(path, lambda part: part.write_text(texts[0]))

    def work(text):
        os.getpid = lambda: 1  # in a thread for all; nobody asks
        for _ in range(12):
            write_whole(path, lambda part: part.write_text(text))

    pid = os.getpid
    try:
        workers = [many(target=work, args=(text,)) for text in texts]
        for worker in workers:
            worker.start()
        seen = set()
        while any(worker.is_alive() for worker in workers):
            seen.add(path.read_text())
    finally:
        os.getpid = pid
    for worker in workers:
        worker.join()
        assert getattr(worker, "exitcode", 0) == 0
    assert seen <= set(texts) and path.read_text() in texts
    assert listing(tmp_path) == ["one"]


@pytest.mark.parametrize("kind", ["link", "file", "folder"])
def test_what_stands_at_the_temporary_name_is_not_touched(kind, tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(writing, "_own_name", lambda: ".planted.part")
    planted = tmp_path / ".planted.part"
    {
        "link": lambda: planted.symlink_to(victim),
        "file": lambda: planted.write_text("somebody's"),
        "folder": planted.mkdir,
    }[kind]()
    with pytest.raises(OSError, match="cannot write .*new"):
        write_whole(tmp_path / "new", lambda part: part.write_text("text"))
    assert victim.read_text() == "precious" and not (tmp_path / "new").exists()


def test_a_link_in_the_place_of_the_file_is_replaced_not_followed(tmp_path):
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_text("text of somebody")
    link.symlink_to(victim)
    write_whole(link, lambda part: part.write_text("text"), TEXT)
    assert victim.read_text() == "text of somebody" and not link.is_symlink()
    link.unlink()
    link.symlink_to(tmp_path / "nowhere")
    write_whole(link, lambda part: part.write_text("text"), TEXT)
    assert link.read_text() == "text" and not (tmp_path / "nowhere").exists()


def test_temporary_names_are_drawn(tmp_path):
    names = set()
    for k in range(50):
        write_whole(tmp_path / "f", lambda part: names.add(part.name))
    assert len(names) == 50 and all(writing._OWN.fullmatch(name) for name in names)


@pytest.mark.parametrize("name", ["é" * 120, "a" * 255, "with\nline", " ", "f.part"])
def test_odd_names(name, tmp_path):
    write_whole(tmp_path / name, lambda part: part.write_text("text"))
    assert (tmp_path / name).read_text() == "text" and len(listing(tmp_path)) == 1


def test_what_a_killed_writer_left_beside_its_file_is_swept(tmp_path):
    "A real process, ended while safetensors has a temporary file of its own."
    path = tmp_path / "tensors"
    save_tensors(path, "checkpoint", {"a": torch.ones(2)})
    child = os.fork()
    if child == 0:

        def deadly(part):
            part.with_name(".tmpAbCdEf").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

        write_whole(path, deadly)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = [found for found in tmp_path.iterdir() if found != path]
    assert len(left) == 1 and writing._OWN.fullmatch(left[0].name)
    assert torch.equal(load_tensors(path, "checkpoint")[0]["a"], torch.ones(2))
    old = time.time() - 10 * 24 * 3600
    os.utime(left[0], (old, old))
    save_tensors(path, "checkpoint", {"a": torch.zeros(2)})
    assert listing(tmp_path) == ["tensors"]


def test_leavings_are_swept_only_ours_and_only_old_ones(tmp_path):
    ours = tmp_path / f".submatch-{'0' * 16}.part"
    folder = tmp_path / f".submatch-{'1' * 16}.part"
    young = tmp_path / f".submatch-{'2' * 16}.part"
    link = tmp_path / f".submatch-{'3' * 16}.part"
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_text("kept")
    folder.mkdir()
    (folder / "half").write_text("half")
    others = ["video.1.part", ".submatch-xyz.part", f"submatch-{'4' * 16}.part", "movie.part"]
    for path in (ours, young, *(tmp_path / name for name in others)):
        path.write_text("half")
    link.symlink_to(tmp_path / "outside")
    old = time.time() - 10 * 24 * 3600
    for path in (ours, folder, link, *(tmp_path / name for name in others)):
        os.utime(path, (old, old), follow_symlinks=False)
    write_whole(tmp_path / "new", lambda part: part.write_text("text"))
    assert listing(tmp_path) == sorted([*others, young.name, "new", "outside"])
    assert (tmp_path / "outside" / "kept").read_text() == "kept"
    sweep(tmp_path / "nowhere")  # nothing to do


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyError("own"), KeyboardInterrupt()]
)
def test_the_real_error_is_shown_where_cleaning_up_fails_too(error, tmp_path, monkeypatch):
    def write(part):
        part.write_text("half")
        monkeypatch.setattr(Path, "unlink", read_only)
        monkeypatch.setattr(os, "rmdir", read_only)
        raise error

    def read_only(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    with pytest.raises(type(error)) as caught:
        write_whole(tmp_path / "f", write)
    assert "Read-only" not in str(caught.value)
    assert "No space left" in str(caught.value) or not isinstance(error, OSError)
    with pytest.raises(type(error)) as caught:
        write_together(tmp_path, [Output("f", TEXT, write)])
    assert "Read-only" not in str(caught.value)


def test_a_folder_that_cannot_be_written(tmp_path):
    code = """
        import os, sys
        from submatch_nb.engine.writing import write_whole, write_together, Output, TABLE
        os.chmod(sys.argv[1], 0o555)
        if os.getuid() == 0:
            os.setuid(12345)
        for write in (lambda: write_whole(sys.argv[1] + "/f", lambda part: None),
                      lambda: write_together(sys.argv[1], [Output("f", TABLE, lambda part: None)])):
            try:
                write()
            except OSError as error:
                print(error)
    """
    folder = tmp_path / "locked"
    folder.mkdir()
    for above in (tmp_path, *tmp_path.parents[:-1]):
        os.chmod(above, os.stat(above).st_mode | stat.S_IXOTH | stat.S_IROTH)
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(folder)], capture_output=True, text=True
    )
    folder.chmod(0o755)
    assert run.stdout.count("Permission denied") == 2 and "cannot write" in run.stdout, run.stderr
    assert not listing(folder)


# Sets


def pair(number):
    "A set of three files."
    return [
        Output(name, TEXT, lambda part, name=name: part.write_text(f"text {name} {number}"))
        for name in ("table", "figure", "comparison")
    ]


def numbers(folder):
    "The run that each visible file is of."
    return {path.read_text().split()[-1] for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("at", range(6))
def test_a_kill_between_the_files_of_a_set_never_mixes_two(at, tmp_path):
    "A real process, ended at one of its moves."
    write_together(tmp_path, pair("old"))
    child = os.fork()
    if child == 0:
        count, real = iter(range(100)), os.replace

        def deadly(here, there):
            if next(count) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            real(here, there)

        os.replace = deadly
        write_together(tmp_path, pair("new"))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(numbers(tmp_path)) <= 1
    write_together(tmp_path, pair("last"))
    assert numbers(tmp_path) == {"last"} and len(list(tmp_path.glob("[!.]*"))) == 3


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("error", [OSError(5, "I/O error"), KeyboardInterrupt()])
def test_a_set_that_fails_leaves_the_old_one(at, error, tmp_path, monkeypatch):
    write_together(tmp_path, pair("old"))
    (tmp_path / "explorer").write_text("text explorer old")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    count, real = iter(range(100)), os.replace

    def failing(here, there):
        if next(count) == at:
            raise error
        real(here, there)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(type(error)):
        write_together(tmp_path, pair("new"), {"explorer": TEXT})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_set_removes_what_no_longer_belongs_and_nothing_else(tmp_path):
    write_together(tmp_path, [*pair("old"), Output("page", TEXT, lambda p: p.write_text("text"))])
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "folder").mkdir()
    family = dict.fromkeys(("page", "notes", "table", "folder", "gone"), TEXT)
    write_together(tmp_path, pair("new"), family)
    assert listing(tmp_path) == ["comparison", "figure", "folder", "notes", "table"]


def test_a_set_is_not_written_over_another_kind(tmp_path):
    (tmp_path / "figure").write_text("my thesis")
    with pytest.raises(FileExistsError, match="figure: what is there is not a text"):
        write_together(tmp_path, pair("new"))
    assert listing(tmp_path) == ["figure"]
    (tmp_path / "figure").unlink()
    (tmp_path / "figure").mkdir()
    with pytest.raises(IsADirectoryError):
        write_together(tmp_path, pair("new"))
    assert listing(tmp_path) == ["figure"]


# Kinds


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "One file of each kind, by what wrote it."
    folder = tmp_path_factory.mktemp("made")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SubmatchWarning)
        moments = Moments(X, Y)
        moments.save(folder / "moments")
        Moments(X, Y, root=True).save(folder / "root")
        comparison = compare_activations({"f": X, "g": X}, {"f": Y, "g": Y}, progress=False)
        comparison.table(simple=0.5)
        comparison.save(folder / "comparison", moments=True)
        comparison.save(folder / "small")
        Comparisons({("a", "b"): comparison}).save(folder / "comparisons")
        save_html(comparison, folder / "page")
    train("digits-mlp", seed=3, path=folder / "checkpoint", recipe=Recipe(0), progress=False)
    save_json(folder / "json", "facts", {"a": 0.5})
    return folder


WRITERS = {
    "moments": lambda path: Moments(X, Y).save(path),
    "comparison": lambda path: compare_activations(X, Y, progress=False).save(path),
    "comparisons": lambda path: Comparisons(
        {("a", "b"): compare_activations(X, Y, progress=False)}
    ).save(path),
    "page": lambda path: save_html(compare_activations(X, Y, progress=False), path),
    "checkpoint": lambda path: save_tensors(path, "checkpoint", {"a": torch.ones(2)}),
    "json": lambda path: save_json(path, "facts", {}),
}
LOADERS = {
    "moments": Moments.load,
    "root": Moments.load,
    "comparison": Comparison.load,
    "small": Comparison.load,
    "comparisons": Comparisons.load,
    "checkpoint": load_checkpoint,
    "json": lambda path: load_json(path, "facts"),
}


@pytest.mark.parametrize("new", WRITERS)
def test_nothing_is_overwritten_by_another_kind(new, made, tmp_path):
    path = tmp_path / "f"
    for old in WRITERS:
        path.write_bytes((made / old).read_bytes())
        before = path.read_bytes()
        if old == new:
            WRITERS[new](path)
            continue
        with pytest.raises(FileExistsError, match="cannot write .*f: what is there is not a"):
            WRITERS[new](path)
        assert path.read_bytes() == before, (old, new)
    for content in (b"\x93NUMPY", b"PK\x03\x04", b"notes", b"\x80\x04.", b"<!doctype html><p>mine"):
        path.write_bytes(content)
        with pytest.raises(FileExistsError):
            WRITERS[new](path)
        assert path.read_bytes() == content
    for nothing in ("empty", "missing"):
        path.write_bytes(b"") if nothing == "empty" else path.unlink()
        WRITERS[new](path)
        check_free(path, containing("anything", b""))


# Seals


@pytest.mark.parametrize("name", LOADERS)
def test_every_flipped_bit_is_refused(name, made, tmp_path):
    "Drawn everywhere in the file, and all of its first bytes."
    whole = (made / name).read_bytes()
    path = tmp_path / f"{name}.file"
    path.write_bytes(whole)
    LOADERS[name](path)
    bits = random.Random(name).sample(range(8 * len(whole)), min(200, 8 * len(whole)))
    for bit in [*bits, *range(8 * 24)]:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            LOADERS[name](path)


@pytest.mark.parametrize("name", LOADERS)
def test_every_cut_and_every_tail_is_refused(name, made, tmp_path):
    whole = (made / name).read_bytes()
    path = tmp_path / f"{name}.file"
    draw = random.Random(name)
    for size in [0, 1, 7, 8, 9, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(40))]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=re.escape(str(path))):
            LOADERS[name](path)
    for tail in (b"\0", b"0", b"\n", b" ", whole):
        path.write_bytes(whole + tail)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            LOADERS[name](path)


def test_swapped_blocks_are_refused(made, tmp_path):
    "Damage that leaves the sum of all bytes as it was."
    whole = (made / "comparison").read_bytes()
    path = tmp_path / "c"
    for start in range(0, len(whole) - 128, len(whole) // 30):
        block = whole[start : start + 128]
        swapped = whole[:start] + block[64:] + block[:64] + whole[start + 128 :]
        if swapped == whole:
            continue
        path.write_bytes(swapped)
        with pytest.raises(ValueError):
            Comparison.load(path)


def test_what_the_version_before_wrote_is_read_with_a_warning(made, tmp_path):
    for name in ("moments", "comparison", "comparisons", "checkpoint"):
        with safe_open(made / name, "pt") as f:
            names = list(f.keys())
            tensors = {key: f.get_tensor(key) for key in names}
            metadata = f.metadata()
        metadata.pop("sha256")
        save_file(tensors, tmp_path / name, metadata)
        with pytest.warns(SubmatchWarning, match=f"{name} is unverified"):
            LOADERS[name](tmp_path / name)
    old = json.loads((made / "json").read_text())
    (tmp_path / "json").write_text(json.dumps({"a": old["a"]}))
    with pytest.warns(SubmatchWarning, match="json is unverified"):
        assert load_json(tmp_path / "json", "facts") == {"a": 0.5}
    for lacking in ("submatch", "sha256"):
        (tmp_path / "json").write_text(json.dumps({k: v for k, v in old.items() if k != lacking}))
        with pytest.raises(ValueError, match="json is damaged"):
            load_json(tmp_path / "json", "facts")


def test_the_same_content_makes_the_same_bytes(tmp_path):
    for k in range(6):
        Moments(X, Y).save(tmp_path / f"{k}")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    Moments(X + 1, Y).save(tmp_path / "other")
    assert seal_of(tmp_path / "0") == seal_of(tmp_path / "1") != seal_of(tmp_path / "other")
    (tmp_path / "plain").write_bytes(b"ab")
    assert seal_of(tmp_path / "plain").startswith("fb8e20fc2e4c3f24")  # SHA-256 of "ab"
    with pytest.raises(FileNotFoundError):
        seal_of(tmp_path / "none")


def test_any_name_of_a_tensor_and_any_value_comes_back(tmp_path):
    "The header is rewritten after safetensors has made it."
    names = ["".join(map(chr, range(k, k + 64))) for k in range(0, 0x300, 64)]
    names += ['"sha256":"' + "0" * 64 + '"', "\\", "", "é" * 50, "\U0001f600", "\u2028"]
    tensors = {name: torch.full((k % 3 + 1,), float(k)) for k, name in enumerate(names)}
    tensors |= {
        "half": torch.ones(3).bfloat16(),
        "scalar": torch.tensor(2),
        "none": torch.ones(0, 4),
    }
    about = {name: [name, 0.1, None, float("inf")] for name in names}
    save_tensors(tmp_path / "t", "thing", tensors, held=about)
    back, said = load_tensors(tmp_path / "t", "thing")
    assert said == {"held": about} and back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert holds(tmp_path / "t") == "thing"


def test_a_warning_that_is_an_error_is_no_damage(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "old", {"submatch": "thing", "about": "{}"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SubmatchWarning, match="unverified"):
            load_tensors(tmp_path / "old", "thing")


# What is saved comes back


def same_layer(one, other):
    assert one.name == other.name and one.names == other.names
    assert (one.neuron, one.positions) == (other.neuron, other.positions)
    assert len(one.profiles) == len(other.profiles)
    for p, q in zip([one.profile, *one.profiles], [other.profile, *other.profiles]):
        assert (p.count, p.route) == (q.count, q.route)
        for a, b in zip([p.x, p.y, *p.lower, *p.upper], [q.x, q.y, *q.lower, *q.upper]):
            np.testing.assert_array_equal(a, b)
    for a, b in zip(one.residual, other.residual):
        np.testing.assert_array_equal(a, b)


def convolutions(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 3), torch.nn.ReLU()
    )


@pytest.mark.parametrize("precision", ["auto", "exact"])
def test_draws_come_back_with_their_bounds_and_routes(precision, tmp_path):
    networks = {("net", seed): convolutions(seed) for seed in (0, 1)}
    images = torch.rand(40, 1, 8, 8)
    sampled = Sampled(50, draws=3, seed=1)
    found = compare_all(networks, images, progress=False, positions=sampled, precision=precision)
    found.save(tmp_path / "several")
    again = Comparisons.load(tmp_path / "several")
    assert list(again) == list(found) == [(("net", 0), ("net", 1))]
    (pair,) = found
    found[pair].save(tmp_path / "one")
    for loaded in (again[pair], Comparison.load(tmp_path / "one")):
        assert loaded.layers == found[pair].layers
        for name, layer in found[pair].items():
            assert len(layer.profiles) == 3 and {p.route for p in layer.profiles} != {""}
            same_layer(layer, loaded[name])


@pytest.mark.parametrize(
    "names", [("a", "b"), (0, 1), (("vgg", 0), ("vgg", 1)), (("a", (1, 2)), 2), (1.5, True)]
)
def test_names_of_networks_come_back(names, tmp_path):
    comparison = compare_activations(X, Y, progress=False)
    Comparisons({names: comparison}).save(tmp_path / "c")
    (back,) = Comparisons.load(tmp_path / "c")
    assert back == names and [type(n) for n in back] == [type(n) for n in names]
    numbered = Comparisons({(np.int64(0), np.str_("b")): comparison})
    numbered.save(tmp_path / "c")
    assert list(Comparisons.load(tmp_path / "c")) == [(0, "b")]
    for odd in (object(), None, float("nan")):
        with pytest.raises(TypeError, match="a network is called .*which cannot be saved"):
            Comparisons({(odd, "b"): comparison}).save(tmp_path / "d")
    assert listing(tmp_path) == ["c"]


def test_layers_with_odd_names_come_back(tmp_path):
    names = ["a ~ b", " ~ ", "", "\x1b[31m", "=1+1", "$x", "</script>", "a\nb", "é", "submatch"]
    one = dict.fromkeys(names, X[:, :3])
    comparison = compare_activations(one, one, progress=False)
    comparison.save(tmp_path / "c", moments=True)
    again = Comparison.load(tmp_path / "c")
    assert again.layers == comparison.layers and again.grid is None
    for name in comparison:
        same_layer(comparison[name], again[name])
        assert torch.equal(comparison[name].gram, again[name].gram)


# Hostile files: whole, with a digest that is right, and made to harm

HOSTILE = [
    *(None, True, -1, 0, 2, 10**30, 1.5, -0.5, float("nan"), float("inf"), "", "x", "\x1b[2J"),
    *("../../x", "\ud800", [], {}, [None], {"a": 1}, [[[]]], [0.1] * 3, "9" * 50),
]


def places(value, at=()):
    "The keys that lead to each part of a JSON value."
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in items:
        if isinstance(part, dict | list):
            yield from places(part, (*at, key))
        else:
            yield (*at, key)


def changed(value, at, new):
    "A copy with another part in one place."
    value = json.loads(json.dumps(value))
    if not at:
        return new
    part = value
    for key in at[:-1]:
        part = part[key]
    part[at[-1]] = new
    return value


def lacking(value, at):
    "A copy without one part."
    value = json.loads(json.dumps(value))
    part = value
    for key in at[:-1]:
        part = part[key]
    del part[at[-1]]
    return value


def used(name, loaded):
    "Whatever was let through can be worked with."
    if name in ("comparison", "small", "comparisons"):
        return str(loaded), loaded.table().to_string()
    if name in ("moments", "root"):
        return str(loaded), loaded.gram.sum(), loaded.dead
    return str(loaded)


def tried(name, path):
    "None where the file is refused as it should be, else what was made of it."
    try:
        loaded = LOADERS[name](path)
    except ValueError as error:
        assert str(path) in str(error), error
        return None
    return used(name, loaded)


KINDS = {name: name for name in LOADERS} | {"root": "moments", "small": "comparison"}


@pytest.mark.parametrize("name", [name for name in LOADERS if name != "json"])
def test_hostile_values_are_refused_by_the_name_of_the_file(name, made, tmp_path):
    tensors, about = load_tensors(made / name, KINDS[name])
    path = tmp_path / "hostile"
    where = [at for at in places(about) if at]
    draw = random.Random(name)
    refused = 0
    cases = [(at, new) for at in where for new in HOSTILE]
    for at, new in draw.sample(cases, min(400, len(cases))):
        try:
            save_tensors(path, KINDS[name], tensors, **changed(about, at, new))
        except (UnicodeEncodeError, TypeError):
            continue
        refused += tried(name, path) is None
    assert refused > 150 or refused > len(cases) / 2
    for at in where:
        save_tensors(path, KINDS[name], tensors, **lacking(about, at))
        tried(name, path)
    save_tensors(path, KINDS[name], tensors, **about, surplus=1)
    assert tried(name, path) is None or name == "checkpoint"


def hostile_tensors(tensor):
    "Other tensors in its place."
    yield tensor.new_zeros(())
    yield tensor.new_zeros(0)
    yield tensor[None]
    yield tensor.flatten()[:-1]
    yield torch.cat([tensor, tensor])
    yield tensor.to(torch.float16)
    yield tensor.to(torch.int8)
    yield tensor.bool()
    yield torch.complex(tensor.float(), tensor.float())
    for value in (-1, float("nan"), float("inf"), 2**40, -(2**62)):
        if tensor.numel() and (tensor.is_floating_point() or isinstance(value, int)):
            other = tensor.clone()
            other.view(-1)[-1] = value
            yield other


@pytest.mark.parametrize("name", [name for name in LOADERS if name != "json"])
def test_hostile_tensors_are_refused_by_the_name_of_the_file(name, made, tmp_path):
    tensors, about = load_tensors(made / name, KINDS[name])
    path = tmp_path / "hostile"
    refused = tries = 0
    for key, tensor in tensors.items():
        for other in hostile_tensors(tensor):
            save_tensors(path, KINDS[name], {**tensors, key: other}, **about)
            refused += tried(name, path) is None
            tries += 1
        save_tensors(path, KINDS[name], {k: t for k, t in tensors.items() if k != key}, **about)
        tried(name, path)
    save_tensors(path, KINDS[name], {**tensors, "surplus": torch.ones(1)}, **about)
    assert tried(name, path) is None
    assert refused > 0.6 * tries


# Images


def pictures(folder, parts=("train", "test"), classes=("left", "right"), n=2):
    rng = np.random.default_rng(0)
    for part in parts:
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return folder


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
(HERE) (w) file closefile
showpage
"""


@pytest.mark.parametrize(
    "content",
    [
        EPS,
        b"%PDF-1.4\n",
        b"GIF89a",
        b"\xd7\xcd\xc6\x9a" + bytes(40),
        b"P8 8\n",
        b"8BPS" + bytes(26),
    ],
    ids=["eps", "pdf", "gif", "wmf", "odd", "psd"],
)
def test_only_formats_that_are_meant_are_opened(content, tmp_path, monkeypatch):
    folder = pictures(tmp_path / "d")
    bad = folder / "train" / "left" / "0.png"
    bad.write_bytes(content.replace(b"HERE", str(tmp_path / "run").encode()))
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a) or 1 / 0)
    monkeypatch.setattr(subprocess, "check_call", lambda *a, **k: started.append(a))
    with pytest.raises(ValueError, match=re.escape(str(bad))):
        load_data(folder, "train")
    assert not started and not (tmp_path / "run").exists()


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "tiff", "ppm"])
def test_images_of_every_format_that_is_meant(ending, tmp_path):
    folder = pictures(tmp_path)
    Image.new("RGB", (8, 8), (255, 0, 0)).save(folder / "train" / "left" / f"0.{ending}")
    assert load_data(folder, "train").pixels.shape[0] == 5 - (ending == "png")


@pytest.mark.parametrize("where", ["train/left/loop", "train/loop", "loop"])
@pytest.mark.parametrize("target", [".", "train", "train/left", "train/right", ".."])
def test_a_link_back_into_the_folder_counts_nothing_twice(where, target, tmp_path):
    folder = pictures(tmp_path / "data", n=2)
    plain = load_data(folder, "all")
    (folder / where).symlink_to((folder / target).resolve(), target_is_directory=True)
    for split, count in (("train", 4), ("all", 8)):
        linked = load_data(folder, split)
        assert len(linked) == count and linked.classes == plain.classes
    assert linked.fingerprint() == plain.fingerprint()


def test_links_to_other_places_are_followed(tmp_path):
    folder = pictures(tmp_path / "data")
    more = pictures(tmp_path / "elsewhere", parts=("more",))
    (folder / "train" / "left" / "more").symlink_to(more / "more" / "left")
    (folder / "train" / "up").symlink_to(more / "more" / "right")
    (folder / "test" / "up").symlink_to(more / "more" / "right")
    images = load_data(folder, "train")
    assert images.classes == ["left", "right", "up"] and images.labels.tolist() == [0] * 4 + [
        1,
        1,
        2,
        2,
    ]
    (tmp_path / "alias").symlink_to(folder)
    assert load_data(tmp_path / "alias", "train").fingerprint() == images.fingerprint()


@pytest.mark.parametrize("target", ["train/left/0.png", "train/right/1.png"])
def test_a_link_to_an_image_of_the_folder_counts_nothing_twice(target, tmp_path):
    folder = pictures(tmp_path / "data", n=2)
    plain = load_data(folder, "train")
    (folder / "train" / "left" / "again.png").symlink_to(folder / target)
    with pytest.warns(SubmatchWarning, match="again.png leads back"):
        assert load_data(folder, "train").fingerprint() == plain.fingerprint()
    (tmp_path / "other.png").write_bytes((folder / target).read_bytes())
    (folder / "train" / "left" / "other.png").symlink_to(tmp_path / "other.png")
    with pytest.warns(SubmatchWarning, match="again.png leads back"):
        assert len(load_data(folder, "train")) == 5


@pytest.mark.parametrize("kind", ["pipe", "nothing", "itself"])
def test_what_only_looks_like_an_image_is_named_and_not_waited_for(kind, tmp_path):
    folder = pictures(tmp_path / "data", n=2)
    path = folder / "train" / "left" / "odd.png"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "nothing" if kind == "nothing" else path)
    if kind == "itself":  # leads back, and so is passed over
        with pytest.warns(SubmatchWarning, match="odd.png leads back"):
            assert len(load_data(folder, "train")) == 4
        return
    with pytest.raises(ValueError, match="odd.png is not an image that can be read"):
        load_data(folder, "train")


def test_a_replaced_image_of_equal_size_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("submatch_nb.engine.images._BYTES_IN_MEMORY", 0)
    folder = pictures(tmp_path)
    before = load_data(folder, "train").fingerprint()
    assert load_data(folder, "train").fingerprint() == before
    path = folder / "train" / "right" / "1.png"
    held, times = path.read_bytes(), path.stat()
    path.write_bytes(held[:60] + bytes([held[60] ^ 1]) + held[61:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert load_data(folder, "train").fingerprint() != before
    path.write_bytes(held)
    assert load_data(folder, "train").fingerprint() == before


# Experiments: what is shown together belongs together

SMALL = """
data = "digits"
seeds = [0, 1]
samples = 500
epsilon = [0.5]
neurons = 3

[[networks]]
architecture = "digits-mlp"
epochs = 1
width = 0.25
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    (folder / "small.toml").write_text(SMALL)
    reproduce(folder / "small.toml", folder / "run", workers=1)
    return folder


@pytest.fixture
def run(experiment, tmp_path):
    "A copy of it that may be spoilt."
    shutil.copytree(experiment, tmp_path / "copy")
    return tmp_path / "copy"


def again(run):
    return reproduce(run / "small.toml", run / "run", workers=1)


def another_network(run, seed):
    "A checkpoint in the place of one, as if it had been made again on another machine."
    path = run / "run" / "networks" / f"digits-mlp-w0.25-seed{seed}.safetensors"
    tensors, about = load_tensors(path, "checkpoint")
    tensors["model.fc1.dense.weight" if "model.fc1.dense.weight" in tensors else min(tensors)] += (
        0.5
    )
    about["test_accuracy"] = 0.123
    save_tensors(path, "checkpoint", tensors, **about)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_network_made_again_is_compared_again(seed, run):
    before = Results(run / "run" / "results")
    before.comparisons  # noqa: B018 (read now)
    another_network(run, seed)
    results = again(run)
    assert [n["test_accuracy"] for n in results.about["networks"]][seed] == 0.123
    old, new = (
        r.comparisons["digits-mlp-w0.25", "trained", ("seed0", "seed1")] for r in (before, results)
    )
    assert any(
        not np.array_equal(old.profiles[layer].x, new.profiles[layer].x) for layer in new.layers
    )
    net = [
        load_checkpoint(run / "run" / "networks" / f"digits-mlp-w0.25-seed{k}.safetensors").model
        for k in (0, 1)
    ]
    plain = compare(*net, load_data("digits", "test"), positions=Sampled(500, 1), progress=False)
    for layer in new.layers:
        np.testing.assert_allclose(new.profiles[layer].x, plain.profiles[layer].x, atol=1e-6)


@pytest.mark.parametrize("stage", ["collect_stage", "match_pair", "write_results"])
def test_results_of_two_networks_are_never_shown_as_one(stage, run, monkeypatch):
    "Interrupted after a network was made again, before one of the later steps."
    another_network(run, 0)

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"submatch_nb.engine.reproducing.{stage}", killed)
    with pytest.raises(KeyboardInterrupt):
        again(run)
    monkeypatch.undo()
    old = Results(run / "run" / "results")
    assert old.about["networks"][0]["test_accuracy"] != 0.123
    if stage == "write_results":
        with pytest.raises(ValueError, match="is of other networks than results.json tells of"):
            old.similarities  # noqa: B018
    new = again(run)
    assert new.about["networks"][0]["test_accuracy"] == 0.123 and len(new.similarities) == 4


def test_a_file_of_another_pair_is_noticed(run):
    "Sizes of simple matches, and profiles, that somebody has copied from another run."
    another_network(run, 1)
    kept = {p: p.read_bytes() for p in (run / "run" / "results").glob("*_trained_*")}
    results = again(run)
    assert len(results.simple) == 2
    for path, old in kept.items():
        new = path.read_bytes()
        path.write_bytes(old)
        fresh = Results(run / "run" / "results")
        with pytest.raises(ValueError, match=f"{path.name[:20]}.*is of other networks"):
            fresh.simple if path.suffix == ".json" else fresh.similarities  # noqa: B018
        path.write_bytes(new)
        again(run)


def test_what_a_kill_left_in_the_log_costs_one_line(run):
    log = run / "run" / "log.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"stage": "trai')
    again(run)
    lines = log.read_text().splitlines()
    assert lines[len(whole.splitlines())] == '{"stage": "trai' and '"begin"' in lines[-2]
    log.write_text(log.read_text() + '[1]\n{"stage": 3}\n"begin"\n' + "[" * 9000 + "\n\x00\xff\n")
    (run / "run" / "results" / "results.json").unlink()
    assert len(again(run).about["elapsed"]) == 3


@pytest.mark.parametrize("name", ["results.json", "config.json", "pair.json", "log"])
def test_damaged_files_of_an_experiment_are_named(name, run):
    folder = run / "run"
    path = {
        "results.json": folder / "results" / "results.json",
        "config.json": folder / "config.json",
        "pair.json": folder / "results" / "digits-mlp-w0.25_trained_seed0_seed1.json",
        "log": folder / "log.jsonl",
    }[name]
    whole = path.read_bytes()
    draw = random.Random(name)
    texts = [b"", b"[]", b"null", b"[" * 9000, b"\xff", b'{"a": 1}', whole[:-9], b"{" + whole]
    if name == "pair.json":  # sealed
        for _ in range(50):
            bit = draw.randrange(8 * len(whole))
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            texts.append(bytes(flipped))
    for text in texts:
        path.write_bytes(text)
        if name == "log":
            again(run)
            continue
        with pytest.raises(ValueError, match=re.escape(str(folder))):
            if name == "config.json":
                again(run)
            else:
                Results(folder / "results").simple  # noqa: B018
        path.write_bytes(whole)


def test_hostile_results_are_refused(run):
    path = run / "run" / "results" / "results.json"
    about = json.loads(path.read_text())
    draw = random.Random(0)
    cases = [(at, new) for at in places(about) if at for new in HOSTILE]
    for at, new in draw.sample(cases, 300):
        path.write_text(json.dumps(changed(about, at, new)))
        try:
            results = Results(run / "run" / "results")
            str(results), results.similarities, results.simple  # noqa: B018
        except ValueError as error:
            assert "results" in str(error)
        except FileNotFoundError as error:
            assert str(run / "run" / "results") in str(error)
    about["networks"][0]["member"] = "../../../etc/x"
    path.write_text(json.dumps(about))
    with pytest.raises(ValueError, match="leads out of the folder"):
        Results(run / "run" / "results")


@pytest.mark.parametrize(
    "name", ["../out", "/tmp/x", "..", ".", "a/b", "a\\\\b", "a\\nb", "\\u001b[2J", "c:x"]
)
def test_the_name_of_a_config_leads_nowhere(name, tmp_path):
    (tmp_path / "x.toml").write_text(f'name = "{name}"\n' + SMALL)
    with pytest.raises(ValueError, match="name is .*a folder is called so"):
        load_config(tmp_path / "x.toml")


def test_hostile_configs_are_refused(tmp_path):
    path = tmp_path / "x.toml"
    values = [
        *("-1", "0", "1.5", "nan", "inf", "-inf", "true", '""', '"x"', "[]", "[[]]", "[1]", "{}"),
        *("9" * 30, "1e400", '"../x"', '[""]', "[nan, nan]", "1979-05-27", "[{}]", '["a", "b"]'),
    ]
    keys = ["data", "seeds", "epsilon", "samples", "orders", "neurons", "about", "name", "networks"]
    inner = ["architecture", "width", "epochs", "rate", "batch", "decay", "schedule", "precision"]
    inner += ["during", "weights", "layers"]
    for value in values:
        for key in keys:
            text = re.sub(rf"(?m)^{key} = .*$", "", SMALL)
            path.write_text(f"{key} = {value}\n{text}")
            with contextlib.suppress(ValueError):
                load_config(path)
        for key in inner:
            text = re.sub(rf"(?m)^{key} = .*$", "", SMALL)
            path.write_text(f"{text}\n{key} = {value}\n")
            with contextlib.suppress(ValueError):
                load_config(path)
    for text in ("[" * 9000, "a = " + "[" * 9000, "a = " + "9" * 5000, "\x00", "=", "a = 1\na = 2"):
        path.write_text(text)
        with pytest.raises(ValueError, match="x.toml is not a TOML file|x.toml"):
            load_config(path)
    for key, words in (("decay", "decay is nan"), ("rate", "rate above 0"), ("width", "width is")):
        text = re.sub(rf"(?m)^{key} = .*$", "", SMALL)
        path.write_text(f"{text}\n{key} = nan\n")
        with pytest.raises(ValueError, match=words):
            load_config(path)


# The commands


@pytest.mark.parametrize(
    "line, words",
    [
        ("reproduce {small} --device nowhere --out {tmp}/o", "there is no device 'nowhere'"),
        ("reproduce {small} --device meta --out {tmp}/o", "there is no device 'meta'"),
        ("reproduce {small} --device cuda:99 --out {tmp}/o", "there is no device 'cuda:99'"),
        ("reproduce {small} --workers 0 --out {tmp}/o", "--workers 0: give a number"),
        ("reproduce {small} --workers -3 --out {tmp}/o", "--workers -3: give a number"),
        ("reproduce {small} --out ~no-such-user/o", "the home folder is not known"),
        ("compare {x} {x} --epsilon 0.3 0.3 --out {tmp}/o", "epsilon holds 0.3 and 0.3"),
        ("reproduce {small} --out {small}", "cannot write to the folder"),
        ("compare {x} {x} --epsilon 0.3 0.5 0.3000004 --out {tmp}/o", "which is one twice"),
        ("compare {x} {x} --epsilon nan --out {tmp}/o", "epsilon is nan"),
        ("compare {x} {x} --out ~no-such-user/o", "the home folder is not known"),
        ("train --data ~no-such-user/d --out {tmp}/o", "the home folder is not known"),
        ("explore {x} --out ~no-such-user/o", "the home folder is not known"),
        ("train --width nan --out {tmp}/o", "width is nan"),
        ("train --width inf --out {tmp}/o", "width is inf"),
        ("train --rate nan --out {tmp}/o", "rate above 0"),
        ("train --seeds 0 99999999999999999999 --out {tmp}/o", "below 2\\^46"),
    ],
)
def test_surroundings_and_numbers_that_cannot_be(line, words, tmp_path, capsys):
    (tmp_path / "small.toml").write_text(SMALL)
    np.save(tmp_path / "x.npy", X)
    values = {"tmp": tmp_path, "small": tmp_path / "small.toml", "x": tmp_path / "x.npy"}
    assert main(line.format(**values).split()) == 2
    said = capsys.readouterr().err
    assert re.search(f"submatch: error: .*{words}", said) and "Traceback" not in said


def test_without_a_home(tmp_path):
    "Where HOME is no folder that can be made."
    environment = {**os.environ, "HOME": "/dev/null/home"}
    run = subprocess.run(
        [sys.executable, "-m", "submatch_nb", "train", "--data", "cifar10", "--out", "out"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2 and "Traceback" not in run.stderr
    assert re.search("submatch: error: CIFAR-10 is not in /dev/null/home", run.stderr)


@pytest.fixture
def checkpoints(tmp_path):
    "r/trained.safetensors and r/untrained.safetensors: names that a report would take, too."
    for name, seed in (("trained", 0), ("untrained", 1)):
        train(
            "digits-mlp",
            seed=seed,
            path=tmp_path / "r" / f"{name}.safetensors",
            recipe=Recipe(0),
            width=0.25,
            progress=False,
        )
    return tmp_path / "r"


def test_no_command_overwrites_its_input_or_another_kind(checkpoints, made, tmp_path, capsys):
    a, b = (str(checkpoints / f"{name}.safetensors") for name in ("trained", "untrained"))
    before = {path: path.read_bytes() for path in checkpoints.iterdir()}
    assert main(["compare", a, b, "--out", str(checkpoints)]) == 2
    assert "untrained.safetensors: what is there is not a submatch comp" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in checkpoints.iterdir()} == before
    path = tmp_path / "c.safetensors"
    path.write_bytes((made / "comparison").read_bytes())
    for out in (path, tmp_path / "." / "c.safetensors", checkpoints / "trained.safetensors"):
        assert main(["explore", str(path), "--out", str(out)]) == 2
        assert "is not a page of the explorer" in capsys.readouterr().err
    assert path.read_bytes() == (made / "comparison").read_bytes()
    for name in ("table.csv", "similarity.png", "explorer.html"):
        out = tmp_path / f"with {name}"
        out.mkdir()
        (out / name).write_text("my own")
        np.save(tmp_path / "x.npy", X)
        assert main(["compare", *[str(tmp_path / "x.npy")] * 2, "--out", str(out)]) == 2
        assert listing(out) == [name] and (out / name).read_text() == "my own"


def test_a_page_that_no_longer_belongs_goes(tmp_path):
    np.savez(tmp_path / "a.npz", one=X, two=X[:, :3])
    files = [str(tmp_path / "a.npz")] * 2
    out = tmp_path / "out"
    assert main(["compare", *files, "--out", str(out)]) == 0
    assert "explorer.html" in listing(out)
    (out / "notes.html").write_text("mine")
    (out / "untrained.safetensors").write_bytes(b"")
    assert main(["compare", *files, "--layers", "cross", "--out", str(out)]) == 0
    assert "explorer.html" not in listing(out) and "notes.html" in listing(out)


def test_weights_that_are_pickled_are_answered_with_python(tmp_path, capsys, monkeypatch):
    "The five lines are run: they compare the networks."
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        torch.save(convolutions(seed).state_dict(), f"net{seed}.pth")
    (tmp_path / "pickle").write_bytes(b"\x80\x04N.")
    assert main(["compare", "net0.pth", "net1.pth", "--out", "out"]) == 2
    said = capsys.readouterr().err
    lines = [line.strip() for line in said.splitlines() if line.startswith("    ")]
    assert len(lines) == 5 and not listing(tmp_path / "out")
    space = {"YourNetwork": lambda: convolutions(5), "images": torch.rand(30, 1, 8, 8)}
    exec("\n".join(lines), space)
    assert torch.equal(space["a"][0].weight, convolutions(0)[0].weight)
    assert "channel" in capsys.readouterr().out
    for files in (["pickle", "net0.pth"], ["net1.pth"]):
        assert main(["compare", *files, "--out", "out"]) == 2
        assert "may hold pickled objects" in capsys.readouterr().err


ODD = ["\x1b[31mred\x1b[0m", "=1+1", "+x", "-x", "@x", "$\\frac{1}$", "a\nb", "\u202edne", "<b>"]


def test_names_of_layers_do_nothing(tmp_path, capsys):
    "In the terminal, the table, the figure and the page."
    np.savez(tmp_path / "a.npz", **dict.fromkeys(ODD, X))
    files = [str(tmp_path / "a.npz")] * 2
    for layers in ([], ["--layers", "cross"], ["--layers", "\x1b[31mno"]):
        done = main(["compare", *files, *layers, "--no-simple", "--out", str(tmp_path / "out")])
        assert done == (2 if "\x1b[31mno" in layers else 0)
        printed = capsys.readouterr()
        assert "\x1b" not in printed.out + re.sub(r"\x1b\[A|\r", "", printed.err)
        assert "\u202e" not in printed.out + printed.err
        if done == 0 and not layers:
            table = (tmp_path / "out" / "table.csv").read_text()
            cells = pd.read_csv(tmp_path / "out" / "table.csv")["layer"]
            assert not any(cell[0] in "=+-@\t\r" for cell in cells) and "\x1b" not in table
            assert "'=1+1" in list(cells) and len(cells) == len(ODD)
            assert "<b>" not in (tmp_path / "out" / "explorer.html").read_text().split("json")[1]
            comparison = Comparison.load(tmp_path / "out" / "comparison.safetensors")
            assert comparison.layers == ODD
            for name in ODD:
                comparison.plot_profile(name).canvas.draw()


# Activations that other tools saved


def gram(path):
    found = compare_activations(path, path, progress=False, null=0, groups=0).moments
    return {name: moments.gram for name, moments in found.items()}


def activation_files(folder):
    np.savez(folder / "stored.npz", a=X, b=np.asfortranarray(X))
    np.savez_compressed(folder / "packed.npz", a=X, b=X[:, :3])
    np.save(folder / "one.npy", X)
    save_file({"a": torch.tensor(X)}, folder / "one.safetensors")
    torch.save({"a": torch.tensor(X)}, folder / "one.pt")
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "name", ["one.npy", "one.pt", "one.safetensors", "packed.npz", "stored.npz"]
)
def test_damaged_activations_end_in_one_kind_of_error(name, tmp_path):
    """200 of 200 flips in an .npz are refused or change no number: its members have checksums, its
    time stamps do not. The others have none.
    """
    assert name in activation_files(tmp_path)
    path = tmp_path / name
    whole, right = path.read_bytes(), gram(path)
    draw = random.Random(name)
    for bit in draw.sample(range(8 * len(whole)), 200):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            found = gram(path)
        except ValueError as error:
            assert str(path) in str(error) or "too large or too small" in str(error)
            continue
        if name.endswith(".npz"):
            assert found.keys() == right.keys()
            assert all(torch.equal(found[key], right[key]) for key in right)
    for size in (0, 1, 6, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=re.escape(str(path))):
            gram(path)


def array_file(header):
    "An .npy file with a header of our own."
    text = (header + "\n").encode("latin1")
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(320)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (10**9, 10**9), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (999999999999, 99999999), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-10, 4), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (10, 4), }",
        "{'descr': '<f8', 'fortran_order': 3, 'shape': (10, 4), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': 40, }",
        "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (10, 4), }",
        "{'descr': '<c16', 'fortran_order': False, 'shape': (5, 4), }",
        "{'descr': '<U9', 'fortran_order': False, 'shape': (2, 4), }",
        "__import__('os').system('touch here')",
        "(" * 500,
        "[1",
        "",
    ],
)
@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_hostile_headers_of_arrays(header, ending, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"x.{ending}"
    if ending == "npy":
        path.write_bytes(array_file(header))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", array_file(header))
    with pytest.raises(ValueError, match=re.escape(str(path))):
        gram(path)
    assert listing(tmp_path) == [path.name]


def test_flipped_numbers_in_weights_of_others_are_refused(tmp_path):
    model = build("digits-mlp", seed=0)
    path = tmp_path / "weights.pth"
    torch.save(model.state_dict(), path)
    read_weights(model, "digits-mlp", str(path))
    whole = path.read_bytes()
    weight = next(iter(model.state_dict().values())).numpy()
    start = whole.index(weight.tobytes())
    for place in np.random.default_rng(0).integers(start, start + weight.nbytes, 20):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(place % 8)
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="weights.pth.*damaged"):
            read_weights(model, "digits-mlp", str(path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int16])
def test_flipped_numbers_in_a_file_of_torch_are_refused(dtype, tmp_path):
    "`torch.load` does not look at the checksums that `torch.save` writes."
    path, other = tmp_path / "a.pt", tmp_path / "b.pt"
    X = torch.arange(200).reshape(50, 4).to(dtype)
    torch.save({"layer": X}, path)
    torch.save({"layer": X}, other)
    raw = path.read_bytes()
    start = raw.index(X.numpy().tobytes())
    for place in np.random.default_rng(0).integers(start, start + X.numpy().nbytes, 50):
        broken = bytearray(raw)
        broken[place] ^= 1 << int(place % 8)
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="a.pt.*damaged"):
            compare_activations(path, other, progress=False)
