"""Many processes, for real: torchrun starts them on this machine, they talk by gloo over the
loopback, and give what one process gives.
"""

import json
import os
import random
import re
import subprocess
import sys
import textwrap
import time

import numpy as np
import pandas as pd
import pytest
import torch

from submatch_nb.cli import main
from submatch_nb.comparison import Comparison, Comparisons
from submatch_nb.engine import shuffling
from submatch_nb.engine.files import holds, load_tensors
from submatch_nb.engine.moments import Moments
from submatch_nb.engine.processes import cut
from submatch_nb.engine.reading import order_of
from submatch_nb.layers import Sampled, collect_all
from submatch_nb.networks import build, load_checkpoint, load_data

IMAGES = torch.stack([x for x, _ in load_data("digits", "all")])


def torchrun(n, *command, cwd):
    "Run a program or a module in n processes on this machine, one thread each."
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(n),
            *map(str, command),
        ],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


# collecting

PROGRAM = textwrap.dedent("""
    import json, sys, torch, torch.distributed as dist
    from pathlib import Path
    from torch.utils.data import Dataset
    from submatch_nb.engine import collecting, shuffling
    from submatch_nb.comparison import compare
    from submatch_nb.engine.processes import processes
    from submatch_nb.engine.reading import order_of
    from submatch_nb.layers import Sampled, collect_all, collect_distributed
    from submatch_nb.networks import build, load_data

    torch.set_num_threads(1)
    shuffling.MOST = shuffling.MOST_STREAMED = 32  # so that every process has a window
    dist.init_process_group()
    (rank, size), out = processes(), Path(sys.argv[1])
    images = torch.stack([x for x, _ in load_data("digits", "all")])
    networks = {name: build("digits-vgg", seed=seed).double() for seed, name in enumerate("pqr")}  # sums can then be compared to the last digits
    layers, two = ["conv1_1.relu", "fc2.relu"], {name: networks[name] for name in "pq"}

    def keep(name, collected):
        if rank > 0: return
        facts = {}
        for pair, layers in collected.items():
            for layer, m in layers.items():
                held = [*layers.draws.get(layer, [m.moments]), *m.null_moments, *m.groups]
                for k, moments in enumerate(held): moments.save(out / f"{size}.{name}.{'-'.join(pair)}.{layer}.{k}")
                facts[f"{'-'.join(pair)}.{layer}"] = [layers.pairs[layer], layers.neurons[layer], layers.positions[layer], len(layers.draws.get(layer, [m])), len(m.null_moments), len(m.groups), m.null_about]
        (out / f"{size}.{name}.json").write_text(json.dumps(facts))

    keep("plain", collect_distributed(networks, images[:301], layers, progress=False, null=2))
    keep("exact", collect_distributed(two, images[:301], layers, precision="exact", progress=False))
    keep("sampled", collect_distributed(two, images[:203], layers, positions=Sampled(150, 2, 1), progress=False))
    keep("few", collect_distributed(two, images[:50], layers, positions=Sampled(3, 2, 1), progress=False))  # a share may have none of a draw
    keep("cross", collect_distributed(two, images[:3], layers, cross=True, positions="pooled", progress=False))  # fewer images than processes
    keep("batches", collect_distributed(two, [*images[:90].split(40), images[90:150]], layers, progress=False))
    keep("films", collect_distributed(two, images[:150], layers, progress=False, images=torch.arange(150) % 61))
    keep("neither", collect_distributed(two, images[:301], layers, progress=False, null=0, groups=0))
    twice = images[:600].clone()
    twice[order_of(600).inputs[288:]] = images[0]  # a share needs an R factor, as all its images are the same
    keep("routes", collect_distributed(two, twice, ["fc2.relu"], progress=False))
    alone = compare(*two.values(), images[:200], ["fc2.relu"], progress=False) if rank == 0 else None  # waits for nobody
    broken = images[:301].clone()
    broken[-1] = float("nan")
    for data in (broken, images[:0], broken[:0]):
        try: collect_distributed(two, data, layers, progress=False)
        except ValueError as error: (out / f"{size}.errors.{rank}").open("a").write(f"{error}\\n")
    keep("after", collect_distributed(two, images[:50], layers, progress=False))

    class Breaking(Dataset):
        left = 102 if rank == size - 1 else 333  # the first batch and 32 more to lay the pass out, then 50
        def __len__(self): return 301
        def __getitem__(self, i):
            if not self.left: raise OSError("the disk went away")
            self.left -= 1
            return images[i]

    collecting.SHARD, seen, options = 2, [], dict(batch_size=20, progress=False, resume=out / f"{size}.sums")
    try: collect_distributed(two, Breaking(), layers, **options)
    except (OSError, ValueError) as error: (out / f"{size}.interrupted.{rank}").write_text(f"{type(error).__name__}: {error}")
    Breaking.left = 333
    handle = two["p"].register_forward_pre_hook(lambda *_: seen.append(1))
    keep("resumed", collect_distributed(two, Breaking(), layers, **options))
    handle.remove()
    (out / f"{size}.seen.{rank}").write_text(str(len(seen)))
    dist.destroy_process_group()
""")  # noqa: E501


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    "The program in 2 and 4 processes; the folder with what it left."
    out = tmp_path_factory.mktemp("collected")
    (out / "program.py").write_text(PROGRAM)
    for n in (2, 4):
        run = torchrun(n, "program.py", out, cwd=out)
        assert run.returncode == 0, run.stderr
    return out


NETWORKS = {name: build("digits-vgg", seed=seed).double() for seed, name in enumerate("pqr")}
TWO = {name: NETWORKS[name] for name in "pq"}
LAYERS = ["conv1_1.relu", "fc2.relu"]


@pytest.mark.parametrize(
    "n, name, networks, data, options",
    [
        *((n, "plain", NETWORKS, IMAGES[:301], {"null": 2}) for n in (2, 4)),
        *(
            (n, name, TWO, data, options)
            for n in (2, 4)
            for name, data, options in (
                ("exact", IMAGES[:301], {"precision": "exact"}),
                ("sampled", IMAGES[:203], {"positions": Sampled(150, 2, 1)}),
                ("few", IMAGES[:50], {"positions": Sampled(3, 2, 1)}),
                ("cross", IMAGES[:3], {"cross": True, "positions": "pooled"}),
                ("batches", [*IMAGES[:90].split(40), IMAGES[90:150]], {}),
                ("films", IMAGES[:150], {"images": torch.arange(150) % 61}),
                ("neither", IMAGES[:301], {"null": 0, "groups": 0}),
                ("after", IMAGES[:50], {}),
                ("resumed", IMAGES[:301], {}),
            )
        ),
    ],
)
def test_many_processes_give_what_one_gives(
    collected, monkeypatch, n, name, networks, data, options
):
    "Moments of all samples, of each shuffle and of each group of images."
    monkeypatch.setattr(shuffling, "MOST", 32)
    monkeypatch.setattr(shuffling, "MOST_STREAMED", 32)
    expected = collect_all(networks, data, LAYERS, progress=False, **options)
    facts = json.loads((collected / f"{n}.{name}.json").read_text())
    assert list(facts) == [
        f"{'-'.join(pair)}.{layer}" for pair in expected for layer in expected[pair]
    ]
    for pair, layers in expected.items():
        for name_of, layer in layers.items():
            key = f"{'-'.join(pair)}.{name_of}"
            draws = layer.draws or (layer.moments,)
            assert facts[key] == [
                list(layer.names),
                layer.neuron,
                layer.positions,
                len(draws),
                len(layer.null_moments),
                len(layer.groups),
                layer.null_about,
            ]
            if name != "neither":
                assert len(layer.null_moments) > 0 and len(layer.groups) > 1
            for k, want in enumerate([*draws, *layer.null_moments, *layer.groups]):
                have = Moments.load(collected / f"{n}.{name}.{key}.{k}")
                assert_nearly_equal(have, want)
                assert name != "exact" or (have.route == "root") == (k < len(draws))


def assert_nearly_equal(have, want):
    "The same sums, to the last digits of float64."
    length = want.square.sqrt().clamp(min=1e-300)
    assert (have.n_x, have.n_y, have.count) == (want.n_x, want.n_y, want.count)
    assert torch.equal(have.alike, want.alike)
    assert ((have.gram - want.gram).abs() / length / length[:, None]).max() < 1e-12
    torch.testing.assert_close(have.sum, want.sum, rtol=1e-12, atol=1e-12)
    assert have.error < 1e-11
    torch.testing.assert_close(have.constant, want.constant, rtol=0, atol=0, equal_nan=True)
    view, its = have.centered().squared(), want.centered().squared()
    length = its.square.sqrt().clamp(min=1e-300)
    assert ((view.gram - its.gram).abs() / length / length[:, None]).max() < view.error + its.error
    assert view.error < 1e-10 or want.count < 9


def test_one_profile_within_the_error_bars(collected):
    """What is proven of the sum of two or four processes holds for one process too, and the other
    way round.
    """
    alone = collect_all(NETWORKS, IMAGES[:301], LAYERS, progress=False)["p", "q"]
    for layer in LAYERS:
        one, *others = (
            Comparison.from_moments({layer: m}).profiles[layer]
            for m in (
                alone[layer],
                *(Moments.load(collected / f"{n}.plain.p-q.{layer}.0") for n in (2, 4)),
            )
        )
        for other in others:
            for side in "xy":
                a, b = (getattr(p, side) for p in (one, other))
                np.testing.assert_allclose(a, b, atol=1e-5)
                assert (getattr(other.lower, side) <= a + 1e-5).all() and (
                    a <= getattr(other.upper, side) + 1e-5
                ).all()
        assert one.similarity(0.7) > 0


@pytest.mark.parametrize("n", [2, 4])
def test_one_route_for_all(collected, n):
    "Some shares need an R factor, others do not: all take it."
    moments = Moments.load(collected / f"{n}.routes.p-q.fc2.relu.0")
    assert moments.route == "root" and moments.count == 600
    others = IMAGES[order_of(600).inputs[:288]]
    half = collect_all(TWO, others, ["fc2.relu"], progress=False)["p", "q"]["fc2.relu"]
    assert half.route == "gram", "an instance that tells nothing"


@pytest.mark.parametrize("n", [2, 4])
def test_an_error_in_one_share_is_an_error_in_all(collected, n):
    for rank in range(n):
        nan, *empty = (collected / f"{n}.errors.{rank}").read_text().splitlines()
        assert re.search(r"layer 'conv1_1.relu'.*is nan", nan)
        assert len(empty) == 2 and all("no batch" in line for line in empty)
    said = [(collected / f"{n}.errors.{rank}").read_text() for rank in range(n)]
    (own,) = (rank for rank, text in enumerate(said) if not text.startswith("process "))
    assert all(text.startswith(f"process {own}: ") for k, text in enumerate(said) if k != own)


@pytest.mark.parametrize("n", [2, 4])
def test_an_interrupted_pass_resumes_in_every_process(collected, n):
    """The process whose data broke goes on from its last whole shard; what it left is gone at the
    end.
    """
    for rank in range(n):
        error = (collected / f"{n}.interrupted.{rank}").read_text()
        assert (
            error.startswith("OSError: " if rank == n - 1 else f"ValueError: process {n - 1}: ")
            and "the disk went away" in error
        )
    for rank in range(n):
        windows = cut(9, rank, n)  # of 32 images, the last one of 45
        inputs = (301 if windows.stop == 9 else 32 * windows.stop) - 32 * windows.start
        batches = -(-inputs // 20)
        saved = 2 if rank == n - 1 else batches // 2 * 2
        seen = int((collected / f"{n}.seen.{rank}").read_text())
        assert seen == 1 + batches - saved, "the first, to know the pass by, and what was not saved"
    assert not list(collected.glob(f"{n}.sums*"))


DIFFERENT = textwrap.dedent("""
    import json, sys, torch, torch.distributed as dist
    from pathlib import Path
    from torch import nn
    from torch.utils.data import TensorDataset
    from submatch_nb.layers import collect_distributed

    torch.set_num_threads(1)
    dist.init_process_group()
    rank, X = dist.get_rank(), torch.randn(120, 6, generator=torch.Generator().manual_seed(0))

    class Net(nn.Sequential):
        def __init__(self, seed):
            torch.manual_seed(seed)
            super().__init__(nn.Linear(6, 5), nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 3))
            self.register_buffer("scale", torch.ones(3), persistent=False)
        def forward(self, x):
            return super().forward(x.to(self[0].weight.dtype)) * self.scale

    said = {}
    def attempt(name, change=lambda a, b: None, data=X, **options):
        a, b = Net(0), Net(1)
        if rank == 1: change(a, b)
        try:
            collect_distributed({"a": a, "b": b}, data, "all", progress=False, **options)
            said[name] = ""
        except ValueError as error: said[name] = str(error)

    def bump(tensor, by=1e-6):
        with torch.no_grad(): tensor.view(-1)[-1] += by

    odd, last = X.clone(), X.clone()
    if rank == 1: odd, last = X.flip(0), torch.cat([X[:-1], X[:1]])
    attempt("same")
    attempt("same stream", data=list(X.split(16)))
    attempt("weight", lambda a, b: bump(b[3].weight))
    attempt("bias", lambda a, b: bump(a[0].bias))
    attempt("statistics", lambda a, b: bump(b[2].running_var))
    attempt("buffer", lambda a, b: bump(b.scale))
    attempt("dtype", lambda a, b: b.double())
    attempt("module", lambda a, b: a.__setitem__(1, nn.Tanh()))
    attempt("order", data=odd)
    attempt("data set", data=TensorDataset(odd))
    attempt("last", data=last)
    attempt("shorter", data=X[:-1] if rank == 1 else X)
    attempt("stream", data=list(odd.split(16)))
    attempt("end of a stream", data=list(last.split(16)))
    attempt("shorter stream", data=list(X.split(16))[: 8 - rank])
    attempt("precision", precision="exact" if rank == 1 else "auto")
    attempt("images", images=torch.arange(120) % (30 + rank))
    attempt("null", null=1 + rank)
    attempt("same again")
    Path(sys.argv[1], f"said.{rank}").write_text(json.dumps(said))
    dist.destroy_process_group()
""")


def test_processes_that_have_other_networks_data_or_options_are_refused(tmp_path):
    (tmp_path / "program.py").write_text(DIFFERENT)
    run = torchrun(2, "program.py", tmp_path, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    one, other = (json.loads((tmp_path / f"said.{rank}").read_text()) for rank in (0, 1))
    assert one == other, "both say the same"
    words = {
        "weight": "the weights of network 'b'",
        "bias": "the weights of network 'a'",
        "statistics": "the weights of network 'b'",
        "buffer": "the weights of network 'b'",
        "dtype": "the weights of network 'b'",
        "module": "the modules of network 'a'",
        "precision": "the options",
        "images": "the options",
        "null": "the options",
    }
    for name, text in one.items():
        if name.startswith("same"):
            assert text == ""
        else:
            assert text.startswith(words.get(name, "the data") + " in process 1"), (name, text)


# the command line


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "Four seeds, trained by two processes."
    out = tmp_path_factory.mktemp("trained")
    run = torchrun(
        2,
        "-m",
        "submatch_nb",
        *[
            "train",
            "--data",
            "digits",
            "--arch",
            "digits-mlp",
            "--seeds",
            "0",
            "1",
            "2",
            "--epochs",
            "2",
            "--out",
            "runs",
        ],
        cwd=out,
    )
    assert run.returncode == 0, run.stderr
    return run, out / "runs"


def test_seeds_train_side_by_side(trained, tmp_path):
    "Each seed once, and the same weights as alone."
    run, runs = trained
    assert sorted(p.name for p in runs.iterdir()) == [
        f"digits-mlp-seed{seed}.safetensors" for seed in (0, 1, 2)
    ]
    for seed in (0, 1, 2):
        assert run.stdout.count(f"seed {seed}: trained") == 1
    assert run.stdout.count("Compare them: submatch compare") == 1
    assert (
        main(f"train --data digits --arch digits-mlp --seeds 1 --epochs 2 --out {tmp_path}".split())
        == 0
    )
    alone, beside = (
        load_checkpoint(folder / "digits-mlp-seed1.safetensors").model.state_dict()
        for folder in (tmp_path, runs)
    )
    assert all(torch.equal(alone[name], beside[name]) for name in alone)


def test_compare_in_two_processes_writes_what_one_writes(trained, tmp_path):
    runs = trained[1]
    options = ["compare", runs, "--split", "all", "--layers", "fc2.relu"]
    options += ["--out"]
    run = torchrun(2, "-m", "submatch_nb", *options, "two", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert main([*map(str, options), str(tmp_path / "one")]) == 0
    one, two = (
        pd.read_csv(tmp_path / name / "table.csv", index_col="layer") for name in ("one", "two")
    )
    pd.testing.assert_frame_equal(one, two, atol=1e-3)
    assert (
        sorted(p.name for p in (tmp_path / "two").iterdir())
        == sorted(p.name for p in (tmp_path / "one").iterdir())
        == ["comparisons.safetensors", "similarity.png", "table.csv", "untrained.safetensors"]
    )
    assert (
        len(Comparisons.load(tmp_path / "two" / "comparisons.safetensors")) == 3
        and run.stdout.count("Saved in two") == 1
    )


@pytest.mark.long
def test_a_mistake_is_said_once(trained, tmp_path):
    run = torchrun(
        2,
        "-m",
        "submatch_nb",
        "compare",
        trained[1],
        "--layers",
        "fc9.relu",
        "--out",
        tmp_path,
        cwd=tmp_path,
    )
    assert (
        run.returncode != 0
        and run.stderr.count("submatch: error: no layer 'fc9.relu'") == 1
        and not list(tmp_path.iterdir())
    )


KILLED = textwrap.dedent("""
    import os, signal, sys, time
    from submatch_nb.engine import pairing as layers
    from submatch_nb.cli import main
    from pathlib import Path

    rank, feed = int(os.environ["RANK"]), layers.feed
    def deadly(model, batch, place=None):
        if rank == 1: os.kill(os.getpid(), signal.SIGKILL)
        return feed(model, batch, place)
    layers.feed = deadly
    sys.exit(main(sys.argv[1:]))
""")


@pytest.mark.long
def test_a_killed_process_ends_all_and_nothing_is_half_written(trained, tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    out = tmp_path / "out"
    assert main(f"compare {trained[1]} --layers fc1 --out {out}".split()) == 0
    earlier = {path.name: path.read_bytes() for path in out.iterdir()}
    run = torchrun(2, "killed.py", "compare", trained[1], "--out", out, cwd=tmp_path)
    assert (
        run.returncode != 0
        and re.search(
            "submatch: error: another process of this run has ended|submatch: stopped", run.stderr
        )
        and "SIGKILL" in run.stderr
    )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == earlier


# Started in a job that is about something else


@pytest.mark.parametrize(
    "job, words",
    [
        ({"RANK": "0", "WORLD_SIZE": "4"}, "WORLD_SIZE is 4.*but not by torchrun"),
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE is x"),
        ({"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "a"}, "inside a distributed job"),
    ],
)
def test_a_command_in_a_job_that_is_not_meant_for_it_says_so(job, words, tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "submatch_nb", "demo", "--out", str(tmp_path / "out")],
        env={**os.environ, **job},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 2 and re.search(f"submatch: error: .*{words}", run.stderr)
    assert "env -u RANK" in run.stderr and not list(tmp_path.iterdir())


def test_a_job_of_one_process_is_none(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(["explore", str(tmp_path / "none.safetensors")]) == 2
    assert "no such file" in capsys.readouterr().err


JOB = textwrap.dedent("""
    import os, subprocess, sys

    command = [sys.executable, "-m", "submatch_nb", "explore", "none.safetensors"]
    if sys.argv[1] == "one" and os.environ["RANK"] != "0":
        sys.exit()  # this one does something else
    for _ in range(1 if sys.argv[1] == "one" else 2):
        run = subprocess.run(command, capture_output=True, text=True)
        print(run.returncode, *run.stderr.strip().splitlines()[-1:], flush=True)
""")


@pytest.mark.long
@pytest.mark.parametrize("who, words", [("one", "inside a distributed job"), ("all", "no such fi")])
def test_a_command_that_a_job_starts(who, words, tmp_path):
    "By one of its processes: an error, within a minute. By all, twice in turn: they work together."
    (tmp_path / "job.py").write_text(JOB)
    run = torchrun(2, "job.py", who, cwd=tmp_path)
    lines = [line for line in run.stdout.splitlines() if re.match("2( |$)", line)]
    assert len(lines) == {"one": 1, "all": 4}[who], run.stderr
    assert sum(words in line for line in lines) == {"one": 1, "all": 2}[who]


# Killed at any moment


PASS = textwrap.dedent("""
    import sys, time, torch
    from torch.utils.data import Dataset
    from submatch_nb.comparison import compare
    from submatch_nb.engine import collecting
    from submatch_nb.layers import Sampled
    from submatch_nb.networks import build, load_data

    torch.set_num_threads(1)
    collecting.SHARD = 2
    out = sys.argv[sys.argv.index("--out") + 1]
    images = torch.stack([x for x, _ in load_data("digits", "all")])

    class Slow(Dataset):
        def __len__(self): return len(images)
        def __getitem__(self, i):
            time.sleep(0.003)
            return images[i]

    class Stream:
        def __iter__(self):
            for batch in images.split(40):
                time.sleep(0.1)
                yield batch

    options = dict(batch_size=40, progress=False, resume=f"{out}/sums", null=2)
    if "sampled" in sys.argv: options["positions"] = Sampled(300, 2, 1)
    data = Stream() if "stream" in sys.argv else Slow()
    found = compare(*(build("digits-vgg", seed=seed) for seed in (0, 1)), data, "relu", **options)
    found.save(f"{out}/comparison.safetensors", moments=True)
""")
MOMENTS = {
    "compare": ["-m", "submatch_nb", "compare", "RUNS", "--split", "all", "--layers", "fc1.relu"],
    "demo": ["-m", "submatch_nb", "demo"],
    "pass": ["pass.py", "numbered"],
    "stream": ["pass.py", "stream"],
    "sampled": ["pass.py", "sampled"],
}


def run_until(seconds, *command, cwd):
    "Run a command, and kill it after so many seconds; its exit status."
    run = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        return run.wait(seconds)
    except subprocess.TimeoutExpired:
        run.kill()
        return run.wait()


@pytest.mark.long
@pytest.mark.parametrize("kind", MOMENTS)
def test_killed_at_random_moments_and_given_again(kind, trained, tmp_path):
    """Three kills, over and over in one folder, then the command once more: every file is that of
    an uninterrupted run. (The explorer is not compared: it holds what was found in its time.)
    """
    (tmp_path / "pass.py").write_text(PASS)
    command = [trained[1] if word == "RUNS" else word for word in MOMENTS[kind]]
    (tmp_path / "straight").mkdir()
    began = time.monotonic()
    assert run_until(600, *command, "--out", "straight", cwd=tmp_path) == 0
    took = time.monotonic() - began
    out = tmp_path / "out"
    out.mkdir()
    moments = random.Random(kind)
    for _ in range(3):
        run_until(moments.uniform(0.2, 1) * took, *command, "--out", "out", cwd=tmp_path)
        for path in out.glob("*.safetensors"):
            assert load_tensors(path, holds(path))[0], "written whole or not at all"
    assert run_until(600, *command, "--out", "out", cwd=tmp_path) == 0
    ours, theirs = (
        {path.name: path.read_bytes() for path in folder.glob("[!.]*") if path.suffix != ".html"}
        for folder in (out, tmp_path / "straight")
    )
    assert ours.keys() == theirs.keys() and ours
    assert [name for name in ours if ours[name] != theirs[name]] == []
    left = [path.name for path in out.glob(".*")]
    assert all(re.fullmatch(r"\.submatch-[0-9a-f]{16}\.part", name) for name in left), "is swept"
