"""Many processes, for real: torchrun starts them on this machine, they talk by gloo over the
loopback, and give what one process gives.
"""

import json
import os
import re
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from submatch_nb.cli import main
from submatch_nb.comparison import Comparison, Comparisons
from submatch_nb.engine.moments import Moments
from submatch_nb.engine.processes import share
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


# shares


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 100])
def test_shares_are_a_partition(count):
    """Every input once, in order, the shares' sizes at most one apart: of tensors, data sets and
    loaders.
    """
    x = torch.arange(count)
    loader = DataLoader(TensorDataset(x), 3)
    for data, read in (
        (x, lambda part: part.tolist()),
        (x.numpy(), lambda part: part.tolist()),
        (TensorDataset(x), lambda part: [part[i][0].item() for i in range(len(part))]),
        (loader, lambda part: [v for (batch,) in part for v in batch.tolist()]),
    ):
        for size in (1, 2, 4, 7):
            parts = [read(share(data, rank, size)) for rank in range(size)]
            assert sum(parts, []) == x.tolist() and max(map(len, parts)) - min(map(len, parts)) <= 1


def test_shares_of_batches_and_loaders():
    batches = [torch.tensor([k]) for k in range(7)]
    for data in (
        batches,
        DataLoader(TensorDataset(torch.arange(7)), batch_sampler=[[k] for k in range(7)]),
    ):
        assert sorted(int(b[0]) for rank in range(3) for b in share(data, rank, 3)) == list(
            range(7)
        )
    part = share(
        DataLoader(
            TensorDataset(torch.arange(11)),
            4,
            drop_last=True,
            collate_fn=lambda items: [i.item() for (i,) in items],
        ),
        1,
        2,
    )
    assert list(part) == [[4, 5, 6, 7]], "of the 8 inputs that the loader would give"
    with pytest.raises(ValueError, match="RandomSampler.*another order.*shuffle=False"):
        share(DataLoader(TensorDataset(torch.arange(8)), 2, shuffle=True), 0, 2)


# collecting

PROGRAM = textwrap.dedent("""
    import json, sys, torch, torch.distributed as dist
    from pathlib import Path
    from torch.utils.data import Dataset
    from submatch_nb.engine import collecting
    from submatch_nb.comparison import compare
    from submatch_nb.engine.processes import processes, share
    from submatch_nb.layers import Sampled, collect_all, collect_distributed
    from submatch_nb.networks import build, load_data

    torch.set_num_threads(1)
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
                for k, moments in enumerate(layers.draws.get(layer, [m])): moments.save(out / f"{size}.{name}.{'-'.join(pair)}.{layer}.{k}")
                facts[f"{'-'.join(pair)}.{layer}"] = [layers.pairs[layer], layers.neurons[layer], layers.positions[layer], len(layers.draws.get(layer, [m]))]
        (out / f"{size}.{name}.json").write_text(json.dumps(facts))

    keep("plain", collect_distributed(networks, images[:301], layers, progress=False))
    keep("exact", collect_distributed(two, images[:301], layers, precision="exact", progress=False))
    keep("sampled", collect_distributed(two, images[:203], layers, positions=Sampled(150, 2, 1), progress=False))
    keep("few", collect_distributed(two, images[:50], layers, positions=Sampled(3, 2, 1), progress=False))  # a share may have none of a draw
    keep("cross", collect_distributed(two, images[:3], layers, cross=True, positions="pooled", progress=False))  # fewer images than processes
    keep("batches", collect_distributed(two, [images[:100], images[100:150]], layers, progress=False))
    twice = images[:300].clone()
    twice[150:] = images[0]  # one share needs an R factor, since all its images are the same
    keep("routes", collect_distributed(two, twice, ["fc2.relu"], progress=False))
    alone = compare(*two.values(), images[:200], ["fc2.relu"], progress=False) if rank == 0 else None  # waits for nobody
    broken = images[:301].clone()
    broken[-1] = float("nan")
    for data in (broken, images[:0], broken[:0]):
        try: collect_distributed(two, data, layers, progress=False)
        except ValueError as error: (out / f"{size}.errors.{rank}").open("a").write(f"{error}\\n")
    keep("after", collect_distributed(two, images[:50], layers, progress=False))

    class Breaking(Dataset):
        at = 280  # in the last share
        def __len__(self): return 301
        def __getitem__(self, i):
            if i >= self.at: raise OSError("the disk went away")
            return images[i]

    collecting.SHARD, seen, options = 2, [], dict(batch_size=20, progress=False, resume=out / f"{size}.sums")
    try: collect_distributed(two, Breaking(), layers, **options)
    except (OSError, ValueError) as error: (out / f"{size}.interrupted.{rank}").write_text(f"{type(error).__name__}: {error}")
    Breaking.at = 301
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
        *((n, "plain", NETWORKS, IMAGES[:301], {}) for n in (2, 4)),
        *(
            (n, name, TWO, data, options)
            for n in (2, 4)
            for name, data, options in (
                ("exact", IMAGES[:301], {"precision": "exact"}),
                ("sampled", IMAGES[:203], {"positions": Sampled(150, 2, 1)}),
                ("few", IMAGES[:50], {"positions": Sampled(3, 2, 1)}),
                ("cross", IMAGES[:3], {"cross": True, "positions": "pooled"}),
                ("batches", IMAGES[:150], {}),
                ("after", IMAGES[:50], {}),
                ("resumed", IMAGES[:301], {}),
            )
        ),
    ],
)
def test_many_processes_give_what_one_gives(collected, n, name, networks, data, options):
    expected = collect_all(networks, data, LAYERS, progress=False, **options)
    facts = json.loads((collected / f"{n}.{name}.json").read_text())
    assert list(facts) == [
        f"{'-'.join(pair)}.{layer}" for pair in expected for layer in expected[pair]
    ]
    for pair, layers in expected.items():
        for layer, moments in layers.items():
            key = f"{'-'.join(pair)}.{layer}"
            draws = layers.draws.get(layer, [moments])
            assert facts[key] == [
                list(layers.pairs[layer]),
                layers.neurons[layer],
                layers.positions[layer],
                len(draws),
            ]
            for k, want in enumerate(draws):
                have = Moments.load(collected / f"{n}.{name}.{key}.{k}")
                length = want.square.sqrt().clamp(min=1e-300)
                assert (have.n_x, have.n_y, have.count) == (
                    want.n_x,
                    want.n_y,
                    want.count,
                ) and torch.equal(have.alike, want.alike)
                assert (
                    (have.gram - want.gram).abs() / length / length[:, None]
                ).max() < 1e-12 and torch.allclose(have.sum, want.sum, rtol=1e-12)
                assert have.error < 1e-11 and (name != "exact" or have.route == "root")


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
    assert moments.route == "root" and moments.count == 300
    half = collect_all(TWO, IMAGES[:150], ["fc2.relu"], progress=False)["p", "q"]["fc2.relu"]
    assert half.route == "gram", "an instance that tells nothing"


@pytest.mark.parametrize("n", [2, 4])
def test_an_error_in_one_share_is_an_error_in_all(collected, n):
    for rank in range(n):
        nan, *empty = (collected / f"{n}.errors.{rank}").read_text().splitlines()
        assert re.search(r"layer 'conv1_1.relu'.*is nan", nan) and (
            f"process {n - 1}: " in nan
        ) == (rank < n - 1)
        assert len(empty) == 2 and all("no batch" in line for line in empty)


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
    batches, done = -(-len(share(IMAGES[:301], n - 1, n)) // 20), (280 - 301 * (n - 1) // n) // 20
    assert int((collected / f"{n}.seen.{n - 1}").read_text()) == 1 + batches - done and done > 0, (
        "the first batch, to know the pass by, and what was not yet added"
    )
    assert all((collected / f"{n}.seen.{rank}").read_text() == "1" for rank in range(n - 1)), (
        "what was whole is not run again"
    )
    assert not list(collected.glob(f"{n}.sums*"))


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
    run = torchrun(
        2, "-m", "submatch_nb", "compare", runs, "--split", "all", "--out", "two", cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    assert main(f"compare {runs} --split all --out {tmp_path / 'one'}".split()) == 0
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
    def deadly(model, batch):
        if rank == 1: os.kill(os.getpid(), signal.SIGKILL)
        return feed(model, batch)
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
