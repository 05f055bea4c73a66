"""The commands as a user gives them: the demo in a process of its own, training and comparing on a
folder of images, and what goes wrong.
"""

import io
import os
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import once
from PIL import Image
from sklearn.datasets import load_digits

from submatch_nb.cli import main
from submatch_nb.comparison import Comparison, Comparisons, compare
from submatch_nb.engine.commands import how_far_apart
from submatch_nb.engine.inputs import SubmatchWarning
from submatch_nb.explorer import demo_comparison
from submatch_nb.maximum import algorithm_1
from submatch_nb.networks import build, load_checkpoint, load_data, settle_norms
from submatch_nb.neurons import residuals
from submatch_nb.simple import simple_matches

EPSILONS = (0.15, 0.2, 0.25, 0.3, 0.5)


def submatch(*args, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "submatch_nb", *map(str, args)],
        capture_output=True,
        text=True,
        **kwargs,
    )


def compared(files, options, out):
    "Compare files of networks or of activations, with options as a user types them; all is well."
    assert main(["compare", *map(str, files), *options.split(), "--out", str(out)]) == 0


# The demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    "The demo, run once as a user would: what it printed, and its folder."

    def run(folder):
        done = submatch("demo", "--out", folder)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        (folder.parent / "demo.txt").write_text(done.stdout)

    out = once(tmp_path_factory, "demo", run)
    return (out.parent / "demo.txt").read_text(), out


@pytest.fixture(scope="module")
def table(demo):
    return pd.read_csv(demo[1] / "table.csv", index_col="layer")


def activations(model):
    """Every ReLU's output on the 1,797 digits as a matrix, by hooks and a reading of the images of
    our own.
    """
    x = torch.from_numpy(load_digits().images[:, None].astype("float32") / 16 - 0.305) / 0.376
    found = {}

    def hook(name):
        def keep(module, inputs, output):
            found[name] = output.movedim(1, -1).reshape(-1, output.shape[1]).double().numpy()

        return keep

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ReLU):
            module.register_forward_hook(hook(name))
    with torch.no_grad():
        return model.eval()(x).argmax(1).numpy(), found


@pytest.fixture(scope="module")
def networks(demo):
    return [
        activations(load_checkpoint(demo[1] / f"digits-vgg-seed{seed}.safetensors").model)
        for seed in (0, 1)
    ]


def test_demo_writes_what_it_says(demo):
    printed, out = demo
    assert sorted(p.name for p in out.iterdir()) == [
        "comparison.safetensors",
        "digits-vgg-seed0.safetensors",
        "digits-vgg-seed1.safetensors",
        "explorer.html",
        "similarity.png",
        "table.csv",
        "untrained.safetensors",
    ]
    width, height = Image.open(out / "similarity.png").size
    assert 400 < width < 1000 and 250 < height < 800
    assert "1,797 of digits; 1,437 of them seen in training, 360 held out" in printed
    assert all(
        str(out / name) in printed
        for name in ("digits-vgg-seed0.safetensors", "digits-vgg-seed1.safetensors")
    )
    assert len(max(printed[: printed.index("Images:")].splitlines()[4:], key=len)) < 130


def test_demo_says_how_far_it_is_from_what_the_chapters_print(demo):
    printed, out = demo
    here, there = Comparison.load(out / "comparison.safetensors"), demo_comparison()
    apart = [abs(here.similarity(n, e) - there.similarity(n, e)) for n in here for e in EPSILONS]
    last = printed.splitlines()[-1]
    if max(apart) == 0:
        assert last == "The similarities are those that the chapters print."
    else:
        assert f"differ from them by up to {max(apart):.3f} (" in last
    other = replace(there["fc1.relu"], name="fc", profile=there["fc2.relu"].profile)
    shifted = Comparison({"fc": other})
    alike = Comparison({"fc": replace(there["fc1.relu"], name="fc")})
    assert "by up to 0." in how_far_apart(shifted, alike, EPSILONS)


def test_demo_networks_read_digits(networks, demo):
    truth = load_digits().target
    for seed, (classes, _) in enumerate(networks):
        about = load_checkpoint(demo[1] / f"digits-vgg-seed{seed}.safetensors").about
        assert about["test_accuracy"] >= 0.97 and about["seed"] == seed
        assert (
            classes == truth
        ).mean() >= 0.97 and f"seed {seed}: trained; {about['test_accuracy']:.1%}" in demo[0]


def test_demo_table_has_every_relu_layer(networks, table):
    (_, a), (_, b) = networks
    assert list(table.index) == list(a) == list(b)
    for layer, row in table.iterrows():
        assert (row["samples"], row["neurons a"]) == a[layer].shape and row["neurons b"] == b[
            layer
        ].shape[1]
        assert (
            row["dead a"] == (~a[layer].any(0)).sum() and row["dead b"] == (~b[layer].any(0)).sum()
        )
    assert (
        sum(row["neuron"] == "channel" for _, row in table.iterrows()) >= 3
        and table["neurons a"][table.neuron == "channel"].max() >= 32
    )
    assert (
        128 in list(table["neurons a"][table.neuron == "unit"]) and sum(table.neuron == "unit") == 2
    )


@pytest.mark.parametrize("column, nets", [("ε={:g}", "trained"), ("baseline ε={:g}", "untrained")])
def test_demo_similarities_are_algorithm_1(networks, table, column, nets):
    "The table against the plain algorithm on activations that were got another way."
    a, b = (
        (found for _, found in networks)
        if nets == "trained"
        else (
            activations(settle_norms(build("digits-vgg", seed=seed), load_data("digits", "all")))[1]
            for seed in (0, 1)
        )
    )
    for layer in table.index:
        if a[layer].shape[0] > 100_000:
            a[layer], b[layer] = (
                torch.from_numpy(np.linalg.qr(np.c_[a[layer], b[layer]])[1][:, i]).numpy()
                for i in (slice(16), slice(16, 32))
            )
        for e in EPSILONS:
            assert table[column.format(e)][layer] == pytest.approx(
                algorithm_1(a[layer], b[layer], epsilon=e).similarity, abs=1e-9
            ), (layer, e)


def test_demo_simple_matches(networks, table):
    (_, a), (_, b) = networks
    with np.errstate(all="ignore"):
        found = simple_matches(a["fc2.relu"], b["fc2.relu"], epsilon=0.3)
    assert table["simple ε=0.3"]["fc2.relu"] == len(found) > 0 and table["size ε=0.3"][
        "fc2.relu"
    ] == np.median([len(m) for m in found])
    for m in found:  # each is a match, by the definition
        X, Y = a["fc2.relu"][:, m.x], b["fc2.relu"][:, m.y]
        assert residuals(X, Y).max() <= 0.3 + 1e-9 and residuals(Y, X).max() <= 0.3 + 1e-9
    none = table["ε=0.3"] == 0
    assert (table["simple ε=0.3"][none] == 0).all() and table["size ε=0.3"][none].isna().all()


def test_demo_saved_the_comparison(demo, table):
    for name, prefix in (("comparison", ""), ("untrained", "baseline ")):
        loaded = Comparison.load(demo[1] / f"{name}.safetensors").table(EPSILONS)
        for e in EPSILONS:
            assert np.array_equal(loaded[f"ε={e:g}"], table[f"{prefix}ε={e:g}"])


def test_demo_printed_the_table(demo, table):
    for layer, row in table.iterrows():
        first, second = (x.split() for x in demo[0].splitlines() if x.startswith(layer + " "))
        assert first[1:3] == [str(row["neurons a"]), str(row["samples"])]
        stars = ["*" if row[f"void ε={e:g}"] else "" for e in EPSILONS]
        assert first[4:9] == [
            f"{row[f'ε={e:g}']:.3f}{star}" for e, star in zip(EPSILONS, stars, strict=True)
        ]
        assert first[9:] == [f"{row[f'null ε={e:g}']:.3f}" for e in EPSILONS]
        assert second[1:6] == [f"{row[f'baseline ε={e:g}']:.3f}" for e in EPSILONS]
        known = ["half", "half null", "half low", "half high", "p Holm"]
        expected = [f"{row[name]:.3f}" for name in known if not np.isnan(row[name])]
        expected[0] += "*" if row["void"] else ""
        assert second[6 : 6 + len(expected)] == expected
        assert second[6 + len(expected)] == str(row["simple ε=0.3"])
    starred = table.filter(like="void ε").to_numpy()
    assert starred.any() and not starred.all(), "an instance that tells nothing"
    shown = [line for line in demo[0].splitlines() if line.startswith(("conv", "fc", " "))]
    assert max(map(len, shown)) <= 120


@pytest.mark.long
def test_demo_again_trains_nothing(demo, capsys, monkeypatch):
    out = demo[1]
    before = {p.name: p.read_bytes() for p in out.glob("*seed*")}
    table, threads = (out / "table.csv").read_bytes(), torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(
        "submatch_nb.engine.training._epoch", lambda *args: pytest.fail("trained again")
    )
    assert main(["demo", "--out", str(out)]) == 0
    assert capsys.readouterr().out.count("was trained already") == 2
    assert {p.name: p.read_bytes() for p in out.glob("*seed*")} == before and (
        out / "table.csv"
    ).read_bytes() == table
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)


def test_a_network_with_itself(demo, tmp_path):
    a = str(demo[1] / "digits-vgg-seed0.safetensors")
    compared([a, a], "--split all --epsilon 0 0.3 --no-simple", tmp_path)
    t = pd.read_csv(tmp_path / "table.csv", index_col="layer")
    assert np.allclose(t["ε=0"], 1 - t["dead a"] / t["neurons a"]) and "simple ε=0.3" not in t


# Training and comparing on a folder of images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of 8 x 8 pictures that a network can tell apart: brighter on the left, or on the
    right.
    """
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, n in (("train", 40), ("test", 30)):
        for c, name in enumerate(("left", "right")):
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = random.integers(0, 100, (8, 8, 3))
                pixels[:, 4 * c : 4 * c + 4] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    assert (
        main(
            f"train --data {folder} --arch digits-vgg --seeds 3 8 --epochs 3 --rate 0.02 --batch 16"
            f" --out {out}".split()
        )
        == 0
    )
    return [str(out / f"digits-vgg-seed{seed}.safetensors") for seed in (3, 8)]


def test_train_keeps_to_its_arguments(trained, folder):
    for path, seed in zip(trained, (3, 8)):
        about = load_checkpoint(path).about
        assert (about["seed"], about["epoch"], about["data"], about["shape"], about["classes"]) == (
            seed,
            3,
            folder.name,
            [3, 8, 8],
            2,
        )
        assert about["recipe"] == {
            "precision": "float32",
            "epochs": 3,
            "rate": 0.02,
            "batch": 16,
            "momentum": 0.9,
            "decay": 5e-4,
            "schedule": "steps",
        }


def test_compare_is_compare(trained, folder, tmp_path, capsys):
    compared(
        trained,
        f"--data {folder} --layers fc1.relu conv2_2.relu=conv2_1.relu --epsilon 0.4 --no-simple",
        tmp_path,
    )
    printed, table = capsys.readouterr(), pd.read_csv(tmp_path / "table.csv", index_col="layer")
    a, b = (load_checkpoint(p).model for p in trained)
    with pytest.warns(SubmatchWarning, match="fc1.relu.*60 samples"):
        expected = compare(
            a,
            b,
            load_data(folder, "test"),
            ["fc1.relu", ("conv2_2.relu", "conv2_1.relu")],
            progress=False,
        ).table(0.4)
    assert np.array_equal(table["ε=0.4"], expected["ε=0.4"]) and list(table["samples"]) == list(
        expected["samples"]
    )
    assert (
        sorted(table.index) == sorted(expected.index) == ["conv2_2.relu ~ conv2_1.relu", "fc1.relu"]
    )
    assert "60 of" in printed.out and "none that we know of seen in training" in printed.out
    assert "submatch: warning: layer 'fc1.relu'" in printed.err and ".py" not in printed.err


def test_compare_takes_shuffles_groups_and_centring(trained, folder, tmp_path):
    "The table of the command is that of Python, for checkpoints."
    layers = ["conv1_1.relu", "fc2.relu"]
    options = f"--data {folder} --layers {' '.join(layers)} --epsilon 0.4 --no-simple"
    compared(trained, f"{options} --null 19 --groups 4 --center", tmp_path)
    found = Comparison.load(tmp_path / "comparison.safetensors")
    a, b = (load_checkpoint(p).model for p in trained)
    data = load_data(folder, "test")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SubmatchWarning)  # few images
        expected = compare(a, b, data, layers, progress=False, null=19, groups=4, center=True)
    table = pd.read_csv(tmp_path / "table.csv", index_col="layer")
    columns = ["ε=0.4", "null ε=0.4", "half", "half null", "half low", "half high", "p"]
    pd.testing.assert_frame_equal(table[columns], expected.table(0.4)[columns])
    for layer in layers:
        assert (len(found[layer].null), len(found[layer].left_out)) == (19, 4)
        assert found[layer].centered and table.loc[layer, "p"] > 0
    compared(trained, f"{options} --null 0 --groups 0", tmp_path / "none")
    none = pd.read_csv(tmp_path / "none" / "table.csv", index_col="layer")
    assert none[["null ε=0.4", "half null", "half low", "p"]].isna().all(axis=None)


def test_the_written_table_says_why_a_layer_says_nothing(tmp_path):
    "Where any two networks match, where chance gives as much, and nothing where it may be read."
    rng = np.random.default_rng(0)
    few = rng.normal(size=(300, 3))
    shared = rng.normal(size=(300, 4))
    for name in "ab":
        np.savez(
            tmp_path / f"{name}.npz",
            low=few @ rng.normal(size=(3, 6)),
            alike=shared @ rng.normal(size=(4, 4)),
            noise=rng.normal(size=(300, 5)),
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SubmatchWarning)
        files = [str(tmp_path / f"{name}.npz") for name in "ab"]
        assert main(["compare", *files, "--out", str(tmp_path / "out")]) == 0
    table = pd.read_csv(tmp_path / "out" / "table.csv", index_col="layer")
    why = table["void because"].fillna("")
    assert "6 + 6 neurons span 3 dimensions together: any two networks match here" in why["low"]
    assert (why != "").tolist() == table["void"].tolist() == [True, False, True]
    saved = Comparison.load(tmp_path / "out" / "comparison.safetensors")
    assert why.tolist() == ["; ".join(layer.void_reasons()) for layer in saved.values()]


def test_compare_activations_takes_shuffles_groups_and_centring(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(90, 5)) + 3)
    files = [str(tmp_path / f"{name}.npy") for name in "ab"]
    compared(files, "--null 3 --groups 5 --center --no-simple", tmp_path / "out")
    (layer,) = Comparison.load(tmp_path / "out" / "comparison.safetensors").values()
    assert (len(layer.null), len(layer.left_out), layer.centered) == (3, 5, True)


@pytest.mark.parametrize("option", ["--null -1", "--groups -2", "--groups 1"])
def test_shuffles_and_groups_that_cannot_be(option, trained, folder, tmp_path, capsys):
    arguments = f"{option} --data {folder} --out {tmp_path / 'out'}".split()
    assert main(["compare", *trained, *arguments]) == 2
    assert option.split()[0][2:] in capsys.readouterr().err


def test_compare_every_pair_of_a_folder(trained, folder, tmp_path, capsys):
    "Three networks, named one by one and as their folder."
    runs = tmp_path / "runs"
    runs.mkdir()
    for k, path in enumerate((*trained, trained[0])):
        (runs / f"net{k}.safetensors").write_bytes(Path(path).read_bytes())
    (runs / "notes.txt").write_text("no network")
    for files, out in (
        ([runs], tmp_path / "folder"),
        (sorted(runs.glob("*.safetensors")), tmp_path / "files"),
    ):
        compared(files, f"--data {folder} --layers conv1_1.relu fc2.relu --epsilon 0.3 0.5", out)
    printed, found = (
        capsys.readouterr().out,
        Comparisons.load(tmp_path / "folder" / "comparisons.safetensors"),
    )
    assert list(found) == [("net0", "net1"), ("net0", "net2"), ("net1", "net2")] and sorted(
        p.name for p in (tmp_path / "folder").iterdir()
    ) == ["comparisons.safetensors", "similarity.png", "table.csv", "untrained.safetensors"]
    table, again = (
        pd.read_csv(tmp_path / name / "table.csv", index_col="layer")
        for name in ("folder", "files")
    )
    assert table.equals(again)
    live = found["net0", "net2"].table(0.3)
    assert np.allclose(live["ε=0.3"], 1 - live["dead a"] / live["neurons a"]), (
        "the same network twice"
    )
    for layer, row in table.iterrows():
        assert row["ε=0.3"] == pytest.approx(
            np.mean([c.similarity(layer, 0.3) for c in found.values()])
        ) and f"{row['ε=0.3']:.3f}" in next(l for l in printed.splitlines() if l.startswith(layer))
    assert "± 1 standard deviation" in printed and "the same, untrained" in printed


def test_compare_folders_of_one_network_each(trained, folder, tmp_path):
    for k, path in enumerate(trained):
        (tmp_path / f"{k}").mkdir()
        (tmp_path / f"{k}" / "net.safetensors").write_bytes(Path(path).read_bytes())
    for files in (trained, [str(tmp_path / "0"), str(tmp_path / "1")]):
        compared(files, f"--data {folder} --layers fc2 --no-simple", tmp_path / Path(files[0]).name)
    assert (tmp_path / "0" / "table.csv").read_bytes() == (
        tmp_path / Path(trained[0]).name / "table.csv"
    ).read_bytes()


def test_matrix_and_figure_are_at_the_epsilon_asked_for(
    trained, folder, tmp_path, capsys, monkeypatch
):
    drawn = []
    monkeypatch.setattr(
        "submatch_nb.engine.reports.save_report",
        lambda comparison, table, figure, *rest: (
            drawn.append([ax.get_title() for ax in figure.axes]) or []
        ),
    )
    for layers in (
        ["cross"],
        ["fc1=fc1", "fc1=fc2"],
    ):  # a cross, and a list in which one layer meets two
        compared(
            trained, f"--data {folder} --layers {' '.join(layers)} --epsilon 0.6 0.7", tmp_path
        )
        assert (
            "similarity at ε = 0.6" in capsys.readouterr().out
            and "ε = 0.6" in drawn[-1]
            and not any("0.3" in title for title in drawn[-1])
        )


@pytest.mark.parametrize(
    "positions, sample",
    [
        ("mean", "an image \\(the mean"),
        ("pooled", "a cell of a grid"),
        ("sampled", "a position in an image, drawn"),
        ("all", "a position in an image \\(neigh"),
    ],
)
def test_what_a_sample_is_is_said(positions, sample, trained, folder, tmp_path, capsys):
    compared(
        trained,
        f"--data {folder} --layers conv2_2.relu --no-simple --positions {positions}",
        tmp_path,
    )
    assert re.search(f"a sample is {sample}", capsys.readouterr().out)


def test_a_terminal_without_greek(trained, folder, tmp_path, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    compared(trained, f"--data {folder} --layers fc2 --no-simple", tmp_path)
    terminal.flush()
    assert b"similarity at ? =" in terminal.buffer.getvalue() and (tmp_path / "table.csv").exists()


def test_compare_every_layer_with_every_layer(trained, folder, tmp_path, capsys):
    compared(trained, f"--data {folder} --split all --layers cross", tmp_path)
    saved = Comparison.load(tmp_path / "comparison.safetensors")
    matrix, table = saved.matrix(0.3), saved.table(0.3)
    assert matrix.shape == (6, 6) and sorted(p.name for p in tmp_path.iterdir()) == [
        "comparison.safetensors",
        "similarity.png",
        "table.csv",
        "untrained.safetensors",
    ]
    printed = capsys.readouterr().out.splitlines()
    assert 0 < table["void ε=0.3"].sum() < len(table), "an instance that tells nothing"
    for layer, row in matrix.iterrows():
        similarity, null = (line.split()[1:] for line in printed if line.startswith(f"{layer} "))
        names = saved.grid.loc[layer]
        stars = ["*" if table.loc[name, "void ε=0.3"] else "" for name in names]
        assert similarity == [f"{v:.2f}{star}" for v, star in zip(row, stars, strict=True)]
        assert null == [f"{table.loc[name, 'null ε=0.3']:.2f}" for name in names]


def test_compare_activations(tmp_path, capsys):
    "The two files of another tool, and what one process of another program would read in them."
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(2000, 6))
    X, Y = (
        np.hstack([shared @ rng.normal(size=(6, 8)), rng.normal(size=(2000, 8))]).astype(np.float32)
        for _ in range(2)
    )
    np.savez(tmp_path / "a.npz", fc1=X, fc2=X[:, :9])
    np.savez(tmp_path / "b.npz", fc1=Y, fc2=Y[:, :9])
    assert (
        submatch(
            "compare", "a.npz", "b.npz", "--epsilon", "0.1", "--out", "out", cwd=tmp_path
        ).returncode
        == 0
    )
    table = pd.read_csv(tmp_path / "out" / "table.csv", index_col="layer")
    assert list(table.index) == ["fc1", "fc2"] and (table["neuron"] == "neuron").all()
    for layer, k in (("fc1", 16), ("fc2", 9)):
        assert (
            table.loc[layer, "ε=0.1"] == algorithm_1(X[:, :k], Y[:, :k], epsilon=0.1).similarity > 0
        )
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "comparison.safetensors",
        "explorer.html",
        "similarity.png",
        "table.csv",
    ]
    a, b = str(tmp_path / "a.npz"), str(tmp_path / "b.npz")
    compared([a, b], "--layers fc1=fc2 --no-simple", tmp_path / "one")
    assert list(pd.read_csv(tmp_path / "one" / "table.csv")["layer"]) == ["fc1 ~ fc2"]
    compared([a, b], "--layers cross", tmp_path / "cross")
    assert "layers of b across" in capsys.readouterr().out


def test_compare_knows_which_images_were_seen(trained, folder, tmp_path, capsys):
    for split, line in (
        ("all", "80 of them seen in training, 60 held out"),
        ("train", "all of them seen in training"),
    ):
        compared(trained, f"--data {folder} --split {split} --layers conv --no-simple", tmp_path)
        assert line in capsys.readouterr().out


def test_interrupted(monkeypatch, tmp_path, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("submatch_nb.engine.training._epoch", interrupted)
    assert main(["train", "--out", str(tmp_path)]) == 130 and "goes on" in capsys.readouterr().err
    monkeypatch.setattr("submatch_nb.engine.commands.open_networks", interrupted)
    assert (
        main(["compare", "a", "b", "--out", str(tmp_path)]) == 130
        and "nothing of it is kept" in capsys.readouterr().err
    )


# What goes wrong ends in one line


def test_help_is_enough(capsys):
    def ask(*args):
        with pytest.raises(SystemExit) as end:
            main(args)
        return end.value.code, capsys.readouterr()

    status, text = ask("--help")
    assert status == 0
    for word in ("demo", "train", "compare", "examples:", "submatch demo", "--out"):
        assert word in text.out
    for command, words in {
        "demo": ["--out"],
        "train": ["resnet56", "--epochs", "cifar10"],
        "compare": ["--layers", "FILE", "--split", "--positions"],
    }.items():
        status, text = ask(command, "--help")
        assert status == 0 and all(word in text.out for word in words)
    for mistake in ((), ("tain",), ("compare",), ("train", "--epochs", "many")):
        status, text = ask(*mistake)
        assert status == 2 and "usage: submatch" in text.err


def test_real_process_ends_with_status_2_and_no_traceback(tmp_path):
    run = submatch("train", "--data", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert run.returncode == 2 and "Traceback" not in run.stderr
    assert re.fullmatch(
        r"submatch: error: no data .*nowhere.*: give digits, cifar10, or a folder.*\n", run.stderr
    )
    with pytest.raises(FileNotFoundError, match="nowhere"):
        main(
            [
                "--traceback",
                "train",
                "--data",
                str(tmp_path / "nowhere"),
                "--out",
                str(tmp_path / "out"),
            ]
        )


@pytest.fixture
def files(tmp_path, trained):
    "What can be wrong with files."
    (tmp_path / "short.safetensors").write_bytes(Path(trained[0]).read_bytes()[:-100])
    (tmp_path / "notes.safetensors").write_text("not a checkpoint")
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "digits-mlp-seed8.safetensors").write_bytes(
        Path(trained[0]).read_bytes()[:-100]
    )
    for k, path in enumerate(trained):
        (tmp_path / "half" / f"net{k}.safetensors").write_bytes(Path(path).read_bytes())
    np.save(tmp_path / "x.npy", np.eye(3))
    np.save(tmp_path / "y.npy", np.eye(4))
    return {"tmp": tmp_path, "a": trained[0], "b": trained[1]}


@pytest.mark.parametrize(
    "line, message",
    [
        (
            "train --arch vgg12 --out {tmp}",
            "no architecture 'vgg12': choose one of digits-vgg.*resnet56",
        ),
        ("train --arch vgg11 --out {tmp}", "8 x 8 are too small.*32 x 32"),
        ("train --seeds 0 -1 --out {tmp}", "--seeds -1: give whole numbers from 0 up"),
        (
            "train --seeds 7 8 --arch digits-mlp --out {tmp}/half",
            "digits-mlp-seed8.safetensors.*damaged or cut short",
        ),
        ("train --seeds 3 3 --out {tmp}", "a seed stands twice in --seeds 3 3"),
        ("train --size 16 --out {tmp}", "--size is for a folder"),
        ("train --width 0 --out {tmp}", "width is 0.0: give a number above 0"),
        ("train --arch torchvision/resnet18 --out {tmp}", "takes images of 3 channels, not 1"),
        ("train --epochs -2 --out {tmp}", "epochs must be 0 or more"),
        (
            "train --rate 1e9 --arch digits-mlp --out {tmp}",
            "training diverged.*epoch 1.*lower learning rate",
        ),
        ("train --out {tmp}/taken", "cannot write to the folder .*taken"),
        ("demo --out {tmp}/taken/below", "cannot write to the folder .*below"),
        (
            "compare {a} {tmp}/none.safetensors --data {data} --out {tmp}",
            "none.safetensors: no such file",
        ),
        (
            "compare {a} {tmp}/short.safetensors --data {data} --out {tmp}",
            "short.safetensors.*damaged or cut short",
        ),
        ("compare {a} {tmp}/notes.safetensors --data {data} --out {tmp}", "notes.safetensors"),
        ("compare {a} {b} --out {tmp}", "trained on a folder called .*--data"),
        (
            "compare {a} {b} --data digits --out {tmp}",
            "trained on images of 3 x 8 x 8, those of digits are 1 x 8 x 8",
        ),
        ("compare {a} {b} --data {data}/missing --out {tmp}", "no data .*missing"),
        (
            "compare {a} {b} --data {data} --layers fc7.relu --out {tmp}",
            r"no layer 'fc7.relu'.*conv1_1.relu.*fc2.relu",
        ),
        (
            "compare {a} {b} --data {data} --epsilon 1 --out {tmp}",
            r"epsilon is 1.0, outside \[0, 1\)",
        ),
        ("compare {a} {b} --data {data} --out {tmp}/taken", "cannot write to the folder"),
        (
            "compare {a} --data {data} --out {tmp}",
            "seed3.safetensors: one network .digits-vgg-seed3., and comparing takes two or more",
        ),
        ("compare {tmp}/empty --out {tmp}", "empty holds no checkpoint"),
        (
            "compare {tmp}/half --data {data} --out {tmp}",
            "damaged or cut short: .*digits-mlp-seed8.safetensors",
        ),
        ("compare {a} {b} --data {data} --size 0 --out {tmp}", "--size 0: give a number of pixels"),
        ("compare {a} {b} --data digits --size 9 --out {tmp}", "--size is for a folder"),
        (
            "compare {a} {b} --data {data} --simple 0.3 --layers cross --out {tmp}",
            "--simple is for two networks compared layer by layer",
        ),
        (
            "compare {a} {b} --data {data} --simple 0.3 --layers fc1=fc1 fc1=fc2 --out {tmp}",
            "--simple is for two networks",
        ),
        (
            "compare {a} {b} {a} --data {data} --simple 0.3 --out {tmp}",
            "--simple is for two networks",
        ),
        (
            "compare {a} {tmp}/x.npy --out {tmp}",
            "x.npy is no checkpoint.*or two files of activations",
        ),
        (
            "compare {tmp}/x.npy {tmp}/y.npy --out {tmp}",
            "x.npy has 3 samples of 'x' and .*y.npy 4 of 'y'",
        ),
        (
            "compare {tmp}/x.npy {tmp}/x.npy --data digits --out {tmp}",
            "--data is for checkpoints; .*x.npy holds activations",
        ),
        ("compare {tmp}/x.npy {tmp}/x.npy --split test --out {tmp}", "--split is for checkpoints"),
        (
            "compare {tmp}/x.npy {tmp}/x.npy --layers fc1 --out {tmp}",
            "no layer 'fc1' in .*x.npy; its layers: x",
        ),
        ("compare {tmp}/x.npy {tmp}/none.npy --out {tmp}", "none.npy: no such file"),
    ],
)
def test_errors_are_one_line(line, message, files, folder, capsys):
    before = {p: p.read_bytes() for p in files["tmp"].rglob("*") if p.is_file()}
    assert main(line.format(data=folder, **files).split()) == 2
    error = [l for l in capsys.readouterr().err.splitlines() if l.startswith("submatch:")]
    assert (
        len(error) == 1
        and re.search(message, error[0])
        and error[0].startswith("submatch: error: ")
    )
    assert {p: p.read_bytes() for p in before} == before


def test_unwritable_folder_is_noticed_before_training(files, monkeypatch):
    monkeypatch.setattr(
        "submatch_nb.engine.commands.train", lambda *args: pytest.fail("trained before")
    )
    for command in ("demo", "train"):
        assert main([command, "--out", str(files["tmp"] / "taken")]) == 2


def test_checkpoint_of_another_run(files, trained, folder, capsys):
    out = Path(trained[0]).parent
    before = Path(trained[0]).read_bytes()
    assert (
        main(
            f"train --data {folder} --arch digits-vgg --seeds 3 --epochs 4 --rate 0.02 --batch 16"
            f" --out {out}".split()
        )
        == 2
    )
    assert "epochs 3, not 4" in capsys.readouterr().err and Path(trained[0]).read_bytes() == before


# The explorer


def test_explore(demo, tmp_path, capsys):
    out = tmp_path / "new" / "page.html"
    assert main(["explore", str(demo[1] / "comparison.safetensors"), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out and "fc1.relu" in out.read_text()
    copy = tmp_path / "mine.safetensors"
    copy.write_bytes((demo[1] / "comparison.safetensors").read_bytes())
    assert (
        main(["explore", str(copy)]) == 0
        and (tmp_path / "mine.html").read_text() == out.read_text()
    )


def test_explore_of_several(tmp_path, capsys):
    saved, out = Path(__file__).parent / "saved/several.safetensors", tmp_path / "page.html"
    assert main(["explore", str(saved), "--out", str(out), "--seconds", "0"]) == 0
    assert out.read_text().count('"pair": [') >= 3
    assert main(["explore", str(saved), "--out", str(out), "--seconds", "-1"]) == 2
    assert "seconds is -1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, words",
    [
        ("none.safetensors", "no such file"),
        ("digits-vgg-seed0.safetensors", "not a submatch comparison"),
    ],
)
def test_explore_says_what_is_wrong(demo, tmp_path, capsys, name, words):
    assert main(["explore", str(demo[1] / name), "--out", str(tmp_path / "page.html")]) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


# Quiet


def test_quiet_prints_results_alone(demo, tmp_path, capsys):
    networks = [str(demo[1] / f"digits-vgg-seed{seed}.safetensors") for seed in (0, 1)]
    command = ["compare", *networks, "--data", "digits", "--out", str(tmp_path / "loud")]
    assert main(command) == 0
    loud = capsys.readouterr()
    assert main(["--quiet", *command[:-1], str(tmp_path / "quiet")]) == 0
    quiet = capsys.readouterr()
    assert quiet.err == "" and "right on the images held out" in loud.out
    assert "right on the images held out" not in quiet.out
    table = loud.out[loud.out.index("layer") :].replace("loud", "quiet")
    assert table == quiet.out[quiet.out.index("layer") :]
    assert "SUBMATCH_QUIET" not in os.environ


def test_a_log_is_not_flooded(tmp_path):
    "A bar that nobody watches has few states."
    code = (
        "import time; from submatch_nb.engine.texts import progress_bar\n"
        "for _ in progress_bar(range(200)): time.sleep(0.01)"
    )
    log = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
    assert 1 <= log.count("it/s") <= 3
    for quiet in ("SUBMATCH_QUIET", "TQDM_DISABLE"):
        hidden = os.environ | {quiet: "1"}
        command = [sys.executable, "-c", code]
        run = subprocess.run(command, capture_output=True, text=True, env=hidden)
        assert run.returncode == 0 and run.stderr == "", quiet
