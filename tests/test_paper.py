"""The paper's experiments in small: a config from end to end, killed and continued, and what is
wrong in a config, a folder, a network.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from submatch_nb.cli import main
from submatch_nb.comparison import Comparison, compare, compare_all
from submatch_nb.engine.claims import claims
from submatch_nb.engine.configs import Config, Experiment, configs, load_config
from submatch_nb.engine.experiments import (
    Run,
    load_member,
    simple_sizes,
)
from submatch_nb.engine.files import load_tensors
from submatch_nb.engine.inputs import EPSILONS
from submatch_nb.engine.reproducing import figures, reproduce
from submatch_nb.engine.training import settle_norms
from submatch_nb.engine.weights import renormalise
from submatch_nb.layers import Sampled
from submatch_nb.measures import identify_layers
from submatch_nb.networks import Images, build, load_checkpoint, load_data
from submatch_nb.paper import (
    Results,
    accuracies,
    plot_half,
    plot_heat,
    plot_similarity,
    plot_sizes,
    summary,
)
from submatch_nb.simple import simple_matches

TOY = """
about = "a test"
data = "digits"
seeds = [0, 1, 2]
orders = 2

[[networks]]
architecture = "digits-vgg"
epochs = 4
rate = 0.05
schedule = "ramp"
width = 0.5
during = [1, 2]
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "toy.toml"
    path.write_text(TOY)
    return path


@pytest.fixture(scope="module")
def straight(toy, tmp_path_factory):
    "The folder of a run that nothing interrupted."
    out = tmp_path_factory.mktemp("straight") / "run"
    reproduce(toy, out, workers=1)
    return out


def kept(out):
    """What is in every file that must not depend on when a run was interrupted: all numbers, to the
    last bit.
    """
    found = {}
    for p in (
        p
        for folder in ("networks", "moments", "results")
        for p in (out / folder).iterdir()
        if p.name != "results.json"
    ):
        if p.suffix == ".safetensors":
            tensors, about = load_tensors(
                p, "checkpoint" if p.parent.name == "networks" else "comparison"
            )
            found |= {
                (p.name, p.parent.name, name): (t.dtype, t.shape, bytes(t.numpy().data))
                for name, t in tensors.items()
            }
        else:
            about = json.loads(p.read_text())
        found[p.name, p.parent.name] = about
    return found


# From end to end


def test_every_stage_leaves_its_files(straight):
    stages = ("untrained", "epoch1", "epoch2", "trained")
    pairs = [f"seed{a}_seed{b}" for a, b in combinations(range(3), 2)]
    names = sorted(
        f"digits-vgg-w0.5_{stage}_{pair}.safetensors" for stage in stages for pair in pairs
    )
    assert sorted(p.name for p in (straight / "moments").iterdir()) == names
    assert sorted(p.name for p in (straight / "results").glob("*.safetensors")) == names
    assert sorted(p.name for p in (straight / "figures").iterdir()) == sorted(
        [
            f"digits-vgg-w0.5-{what}.png"
            for what in (
                *("similarity", "half", "profile"),
                *("training", "sizes"),
            )
        ]
        + ["similarities.csv"]
    )


def test_an_architecture_with_seeds_of_its_own(straight, tmp_path):
    "Its networks begin from them, the others from the config's; one pair has no variance."
    narrow = """
[[networks]]
architecture = "digits-vgg"
width = 0.25
epochs = 1
seeds = [7, 1]
"""
    path = tmp_path / "toy.toml"
    path.write_text(TOY + narrow)
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    (out / "config.json").unlink()
    results = reproduce(path, out, workers=1)
    wide, narrow = results.labels
    assert results.members(wide) == ["seed0", "seed1", "seed2"]
    assert results.members(narrow) == ["seed7", "seed1"]
    kept = load_checkpoint(out / "networks/digits-vgg-w0.25-seed7.safetensors")
    assert kept.about["seed"] == 7
    run = Run(results.config, out, "digits", "cpu")
    its = results.experiment(narrow)
    untrained = [load_member(run, its, number, "untrained") for number in range(2)]
    for model, seed in zip(untrained, (7, 1), strict=True):
        built = build("digits-vgg", 10, seed, 0.25, (1, 8, 8))
        assert torch.equal(next(model.parameters()), next(built.parameters()))
    verdict = claims(results).loc[7, narrow]
    assert (verdict.here, verdict.agrees) == ("one pair", "cannot be said")


def test_results_are_what_compare_gives(straight):
    "Each kept profile against `compare` of the checkpoints, by the library's own route."
    results, images = Results(straight / "results"), load_data("digits", "test")
    nets = [
        load_checkpoint(straight / f"networks/digits-vgg-w0.5-seed{s}.safetensors").model
        for s in range(3)
    ]
    for a, b in combinations(range(3), 2):
        ours, plain = (
            results.comparisons["digits-vgg-w0.5", "trained", (f"seed{a}", f"seed{b}")],
            compare(nets[a], nets[b], images, progress=False),
        )
        assert ours.layers == plain.layers and ours.neurons == plain.neurons and not ours.moments
        for layer in ours.layers:
            for side in "xy":
                assert np.allclose(
                    getattr(ours.profiles[layer], side),
                    getattr(plain.profiles[layer], side),
                    atol=1e-6,
                )
    untrained = [settle_norms(build("digits-vgg", seed=s, width=0.5), images) for s in (0, 2)]
    plain = compare(*untrained, images, progress=False)
    for layer, p in results.comparisons[
        "digits-vgg-w0.5", "untrained", ("seed0", "seed2")
    ].profiles.items():
        assert np.allclose(p.x, plain.profiles[layer].x, atol=1e-6)


def test_untrained_networks_have_the_statistics_of_the_images(toy):
    """Batch norm of an untrained network, from one batch of all images; the same again, whatever
    was drawn before; the trained keep theirs, and a network without batch norm is as it was.
    """
    run, images = (
        Run(load_config(toy), Path("nowhere"), "digits", "cpu"),
        load_data("digits", "test"),
    )
    net = load_member(run, run.config.networks[0], 1, "untrained")
    plain, (x, _) = build("digits-vgg", seed=1, width=0.5), images.batch(range(len(images)))
    first, values = net.conv1_1.norm, plain.conv1_1.conv(x).detach()
    assert (
        not net.training
        and first.running_mean.abs().min() > 0
        and not plain.conv1_1.norm.running_mean.any()
    )
    assert torch.allclose(first.running_mean, values.mean((0, 2, 3)), atol=1e-6) and torch.allclose(
        first.running_var, values.var((0, 2, 3)), rtol=1e-4
    )
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters()))
    normed = first(net.conv1_1.conv(x))
    assert (
        normed.mean((0, 2, 3)).abs().max() < 1e-4 and (normed.var((0, 2, 3)) - 1).abs().max() < 1e-2
    )
    torch.rand(5)
    again, state = load_member(run, run.config.networks[0], 1, "untrained"), torch.get_rng_state()
    assert all(
        torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values())
    )
    mlp = build("digits-mlp")
    settled = settle_norms(build("digits-mlp"), images)
    assert torch.equal(state, torch.get_rng_state()) and all(
        torch.equal(a, b) for a, b in zip(mlp.state_dict().values(), settled.state_dict().values())
    )


def test_one_image_more_than_the_batches_hold():
    "501 images whose last layers have one position: a batch of one would have no variance."
    images = Images(
        torch.randint(0, 255, (501, 3, 8, 8), dtype=torch.uint8),
        torch.zeros(501, dtype=torch.int64),
        ["one"],
        "501",
    )
    net = settle_norms(build("resnet18", 1, 0, 0.0625, images.shape), images)
    assert (
        all(t.isfinite().all() for t in net.state_dict().values())
        and net.conv1.norm.num_batches_tracked == 2
    )


def test_stages_are_different_networks(straight):
    results = Results(straight / "results")
    fc = [
        results.comparisons["digits-vgg-w0.5", stage, ("seed0", "seed1")].profiles["fc1.relu"].x
        for stage in ("untrained", "epoch 1", "epoch 2", "trained")
    ]
    assert all(not np.array_equal(a, b) for a, b in combinations(fc, 2))
    for epoch in (1, 2):
        with pytest.warns(UserWarning, match=f"epoch {epoch} of 4"):
            load_checkpoint(straight / f"networks/digits-vgg-w0.5-seed1-epoch{epoch}.safetensors")


def test_simple_sizes_are_those_of_simple_matches(straight):
    results = Results(straight / "results")
    held = Comparison.load(straight / "moments/digits-vgg-w0.5_trained_seed0_seed1.safetensors")
    for layer, e in (("fc1.relu", 0.5), ("conv1_1.relu", 0.5), ("fc2.relu", 0.3)):
        rows = results.simple.query(
            "layer == @layer and epsilon == @e and pair == 'seed0 and seed1'"
        )
        plain = simple_matches(held.moments[layer], epsilon=e)
        assert (
            len(rows) == 2
            and rows["count"].iloc[0] == len(plain)
            and rows.largest.iloc[0] == max(map(len, plain), default=0)
        )
        both = set(simple_matches(held.moments[layer], epsilon=e, orders=2))
        assert max(rows["count"]) <= len(both) <= sum(rows["count"])
        distinct = results.distinct.query(
            "layer == @layer and epsilon == @e and pair == 'seed0 and seed1'"
        )
        assert sorted(distinct["size"]) == sorted(map(len, both))
    drawn = simple_sizes(held.moments["fc1.relu"], 0.5, 1, most=5)
    everything = simple_sizes(held.moments["fc1.relu"], 0.5, 1)
    assert drawn["tried"] == 5 < drawn["matched"] == everything["matched"] == everything[
        "tried"
    ] and set(drawn["sizes"][0]) <= set(everything["sizes"][0])


def test_summary_is_mean_and_range_of_all_pairs(straight):
    results = Results(straight / "results")
    table = summary(results, "digits-vgg-w0.5")
    for layer in table.index:
        values = [
            results.comparisons["digits-vgg-w0.5", "trained", pair].profiles[layer].similarity(0.5)
            for pair in results.pairs("digits-vgg-w0.5")
        ]
        assert len(values) == 3 and tuple(
            table.loc[layer, [("mean", 0.5), ("min", 0.5), ("max", 0.5)]]
        ) == pytest.approx((np.mean(values), min(values), max(values)))
    assert list(table["mean"].columns) == list(EPSILONS)
    with pytest.raises(ValueError, match="no pair of 'vgg16'"):
        summary(results, "vgg16")


def test_sizes_are_drawn_or_told():
    "Where a layer has fewer than ten simple matches a sentence says of how many neurons each is."
    results = Results(Path(__file__).parent.parent / "nbs/results/laptop")
    label, layers = "resnet18-w0.25", ["conv1.relu", "stage3_1.relu1", "stage4_2.relu2"]
    axes = plot_sizes(results, label, layers).axes
    rows = results.distinct.query("network == @label")
    assert [len(rows[rows.layer == layer]) for layer in layers] == [640, 0, 2]
    assert [bool(ax.lines) for ax in axes] == [True, False, False]
    assert [[text.get_text() for text in ax.texts] for ax in axes] == [
        [],
        ["nothing matches at any ε"],
        ["too few simple matches for a curve\n2 at ε = 0.5, of 2, 2 neurons"],
    ]


def test_provenance(straight):
    about = json.loads((straight / "results/results.json").read_text())
    assert (
        about["data"]["train"]["fingerprint"] == load_data("digits", "train").fingerprint()
        and about["data"]["test"]["images"] == 360
    )
    assert about["versions"]["torch"] == version("torch") and [
        n["seed"] for n in about["networks"]
    ] == [0, 1, 2]
    for n in about["networks"]:
        assert (
            n["test_accuracy"]
            == load_checkpoint(
                straight / f"networks/digits-vgg-w0.5-{n['member']}.safetensors"
            ).about["test_accuracy"]
        )
    assert (
        all(about["seconds"][stage]["wall"] > 0 for stage in ("train", "collect", "match"))
        and str(straight) not in json.dumps(about)
        and str(Path.home()) not in json.dumps(about)
    )


# Beside the profiles

MORE = TOY.replace(
    "orders = 2",
    """orders = 2
null = 19
groups = 5
center = true
measures = ["cka", "pwcca"]
crosses = ["cka", "linear_regression", "half", "similarity ε=0.3"]
mixed = true
""",
)


@pytest.fixture(scope="module")
def more(straight, tmp_path_factory):
    "A folder that was begun without them, collected anew with more beside the profiles."
    path = tmp_path_factory.mktemp("more") / "toy.toml"
    path.write_text(MORE)
    out = path.parent / "run"
    shutil.copytree(straight, out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "submatch_nb.engine.training._epoch", lambda *args: pytest.fail("trained again")
        )
        patch.setattr(
            "submatch_nb.engine.experiments.simple_sizes",
            lambda *args: pytest.fail("matched again"),
        )
        reproduce(path, out, workers=1)
    return path, out


def nets_of(out):
    name = "networks/digits-vgg-w0.5-seed{}.safetensors"
    return {f"seed{s}": load_checkpoint(out / name.format(s)).model for s in range(3)}


def test_more_is_collected_from_networks_that_are_there(straight, more):
    "Profiles are as they were; nulls, groups, centred twin, measures those of `compare`."
    before, after = Results(straight / "results"), Results(more[1] / "results")
    images, label = load_data("digits", "test"), "digits-vgg-w0.5"
    nets = nets_of(straight)
    for key, one in before.comparisons.items():
        for name, profile in one.profiles.items():
            assert np.allclose(profile.x, after.comparisons[key].profiles[name].x, atol=1e-9)
            trained = key[1] == "trained"
            assert len(after.comparisons[key][name].null) == (19 if trained else 1)
            assert len(after.comparisons[key][name].left_out) == (5 if trained else 0)
    key = label, "trained", ("seed0", "seed2")
    options = {"null": 19, "groups": 5, "progress": False}
    plain = compare(nets["seed0"], nets["seed2"], images, **options)
    twin = compare(nets["seed0"], nets["seed2"], images, center=True, **options)
    table = plain.table(measures=["cka", "pwcca"])
    rows = after.measures.query("stage == 'trained' and pair == 'seed0 and seed2'")
    chance = after.chance.query("stage == 'trained' and pair == 'seed0 and seed2'")
    for column in ("cka", "cka null", "cka low", "pwcca", "pwcca high"):
        assert np.allclose(rows[column], table[column], atol=1e-6)
    for column in ("half", "half null", "half low", "half high", "p"):
        assert np.allclose(chance[column], table[column], atol=1e-5)
    for name, layer in twin.items():
        kept = after.centred[key][name]
        assert kept.centered and np.allclose(kept.profile.x, layer.profile.x, atol=1e-6)
        assert np.allclose(kept.null[7].y, layer.null[7].y, atol=1e-6)
    assert before.measures.empty and before.identification.empty and not before.centred


def test_mixed_pairs_are_a_trained_network_and_an_untrained_one(more):
    path, out = more
    results, label = Results(out / "results"), "digits-vgg-w0.5"
    run = Run(load_config(path), out, "digits", "cpu")
    experiment = run.config.networks[0]
    for pair in ((0, 1), (1, 2)):
        nets = [load_member(run, experiment, n, s) for n, s in zip(pair, ("trained", "untrained"))]
        plain = compare(*nets, load_data("digits", "test"), groups=0, progress=False)
        mixed = results.comparisons[label, "mixed", tuple(f"seed{n}" for n in pair)]
        for name, layer in plain.items():
            assert np.allclose(mixed[name].profile.x, layer.profile.x, atol=1e-6)
            assert np.allclose(mixed[name].null[0].y, layer.null[0].y, atol=1e-6)
    assert set(results.similarities.stage) == {*experiment.stages, "mixed"}
    assert (label, "mixed", ("seed0", "seed1")) in results.centred


def test_identification_is_that_of_identify_layers(more):
    nets, images = nets_of(more[1]), load_data("digits", "test")
    crossed = compare_all(nets, images, "cross", positions="mean", null=0, groups=0, progress=False)
    table = Results(more[1] / "results").identification.set_index(["stage", "measure"])
    for measure in ("cka", "linear_regression", "half", "similarity ε=0.3"):
        plain = identify_layers(crossed, measure)
        row = table.loc["trained", measure]
        assert (row.hits, row.queries) == (plain.hits, plain.queries)
    assert table.hits.nunique() > 1


def test_what_is_collected_is_not_collected_twice(more, monkeypatch):
    path, out = more
    with monkeypatch.context() as patch:
        patch.setattr(
            "submatch_nb.engine.experiments.collect_all",
            lambda *args, **kwargs: pytest.fail("collected again"),
        )
        reproduce(path, out, workers=1)
    gone = out / "results/digits-vgg-w0.5_epoch1_seed0_seed1.measures.json"
    gone.unlink()
    reproduce(path, out, workers=1)
    assert gone.exists()


def test_damaged_measures_are_named(more, tmp_path):
    out = tmp_path / "results"
    shutil.copytree(more[1] / "results", out)
    path = out / "digits-vgg-w0.5_trained_seed0_seed1.measures.json"
    text = path.read_text()
    about = json.loads(text)
    about["measures"]["cka"].pop()
    path.write_text(json.dumps(about))
    with pytest.raises(ValueError, match="measures.json"):
        _ = Results(out).measures
    path.write_text(text[:50])
    with pytest.raises(ValueError, match="measures.json"):
        _ = Results(out).measures


# Claims


def layers_of(**similarities):
    "A network whose layers have these similarities, trained; 0 at the other stages."
    depth = {layer: d for d, layer in enumerate(similarities)}
    rows = [
        {
            "network": "net",
            "stage": stage,
            "pair": pair,
            "layer": layer,
            "depth": depth[layer],
            "neuron": "unit" if layer.startswith("fc") else "channel",
            "neurons": 10,
            "epsilon": 0.3,
            "similarity": (value + shift) if stage == "trained" else 0.0,
            "null": 0.0,
            "centred": np.nan,
        }
        for stage in ("untrained", "trained")
        for pair, shift in (("a and b", 0.02), ("a and c", -0.02))
        for layer, value in similarities.items()
    ]
    experiment = Experiment("digits-vgg")
    return SimpleNamespace(
        similarities=pd.DataFrame(rows),
        labels=["net"],
        pairs=lambda label: [("a", "b"), ("a", "c")],
        experiment=lambda label: experiment,
        config=Config((experiment,), epsilon=(0.3,), name="planted"),
        chance=pd.DataFrame(
            {"network": "net", "stage": "trained", "depth": range(len(depth)), "rank both": 20}
        ),
        simple=pd.DataFrame(
            [("net", layer, 0.3, 6, 6) for layer in similarities],
            columns=["network", "layer", "epsilon", "matched", "tried"],
        ),
        distinct=pd.DataFrame(
            [("net", "fc", 0.3, size) for size in (2, 4, 5, 5)],
            columns=["network", "layer", "epsilon", "size"],
        ),
    )


def verdicts(results):
    return claims(results).xs("net", level="network")


def test_claims_are_judged_by_their_rules():
    planted = layers_of(conv1=0.5, conv2=0.02, conv3=0.02, conv4=0.02, conv5=0.02, fc=0.9)
    table = verdicts(planted)
    assert list(table.agrees) == [
        *("yes", "no", "yes", "yes", "yes"),
        *("no", "yes", "yes", "yes", "yes"),
    ]
    assert set(table["agrees, centred"]) == {"not collected"}
    assert table.chance[1] == "5 of 5 (ε = 0.3)" and table.here[1] == "4 of 5 (ε = 0.3)"
    assert table.here[8] == "for each neuron 0.05 (ε = 0.3)"  # 2 of 20 neurons, in one of two pairs


@pytest.mark.parametrize(
    "change, claim, verdict",
    [
        ({"conv2": 0.11, "conv3": 0.11, "conv4": 0.11}, 1, "no"),
        ({"conv2": 0.09, "conv3": 0.09, "conv4": 0.09}, 1, "yes"),
        ({"conv1": 0.0, "conv2": 0.0, "conv3": 0.0, "conv4": 0.0, "conv5": 0.0}, 2, "yes"),
        ({"conv3": 0.9, "conv4": 0.9}, 3, "no"),
        ({"fc": 0.1}, 3, "no"),
        ({"fc": 0.05}, 4, "cannot be said"),
        ({"conv1": 0.1}, 5, "no"),
    ],
)
def test_claims_that_just_hold_or_miss(change, claim, verdict):
    layers = {"conv1": 0.5, "conv2": 0.02, "conv3": 0.02, "conv4": 0.02, "conv5": 0.02, "fc": 0.9}
    assert verdicts(layers_of(**layers | change)).agrees[claim] == verdict


def test_claims_of_ranks_spread_and_sizes():
    planted = layers_of(conv1=0.5, conv2=0.0, conv3=0.0, fc=0.9)
    planted.chance["rank both"] = 12
    spread = planted.similarities.pair.map({"a and b": 0.1, "a and c": -0.1})
    planted.similarities["similarity"] += spread * (planted.similarities.similarity > 0.1)
    planted.distinct = pd.DataFrame(
        [("net", layer, 0.3, 2) for layer in ("conv1",) * 6 + ("fc",) * 5],
        columns=planted.distinct.columns,
    )
    table = verdicts(planted)
    assert list(table.agrees[5:]) == ["yes", "no", "no", "no", "no"]
    assert table.here[6] == "12 dimensions for 20 neurons of both networks"
    nothing = layers_of(conv1=0.02, conv2=0.02, conv3=0.02, fc=0.02)
    nothing.similarities["similarity"] = 0.0
    nothing.distinct = nothing.distinct[:0]
    assert list(verdicts(nothing).agrees) == [
        *("yes", "yes", "cannot be said", "cannot be said", "cannot be said"),
        *("no", "cannot be said", "yes", "cannot be said", "yes"),
    ]
    lost = layers_of(conv1=0.5, conv2=0.0, conv3=0.0, fc=0.9)
    lost.distinct = lost.distinct[:0]  # as an older version left it
    assert list(verdicts(lost).agrees[7:]) == ["not collected"] * 3


def test_claims_of_a_run(more):
    "Chance and the centred twin are judged on their own numbers."
    results = Results(more[1] / "results")
    table = claims(results).xs("digits-vgg-w0.5", level="network")
    assert "not collected" not in set(table.agrees) | set(table["agrees, centred"][:5])
    rows = results.similarities.query("stage == 'trained' and layer == 'fc2.relu'")
    means = rows.groupby("epsilon")[["similarity", "null", "centred"]].mean()
    for column, shown in (("similarity", "here"), ("null", "chance"), ("centred", "centred")):
        first = [text.split(" : ")[0] for text in table[shown][3].split(", ")]
        assert first == [f"{value:.2f}" for value in means[column]]


# Interrupted


@pytest.mark.long
def test_killed_and_continued(toy, straight, tmp_path):
    """A real second process with two workers, ended by SIGKILL while it trains, and again while it
    collects; its workers go too, and the same command gives what the uninterrupted run gave.
    """
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "submatch_nb",
        "reproduce",
        str(toy),
        "--out",
        str(out),
        "--workers",
        "2",
    ]
    for moment in (
        "networks/digits-vgg-w0.5-seed1-epoch1.safetensors",
        "moments/digits-vgg-w0.5_epoch1_seed0_seed2.safetensors",
    ):
        killed_at(out / moment, command)
    assert not (out / "results/results.json").exists()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    for path in out.rglob(".submatch-*.part"):
        shutil.rmtree(path, ignore_errors=True)  # what was being written
    ours, theirs = kept(out), kept(straight)
    assert ours.keys() == theirs.keys() and [key for key in ours if ours[key] != theirs[key]] == []
    assert len(Results(out / "results").about["elapsed"]) == 3


def killed_at(path, command):
    "Give the command, and kill it as soon as there is such a file."
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not path.exists() and run.poll() is None:
        time.sleep(0.02)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    workers = children.read_text().split() if children.exists() else []
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    for _ in range(200):
        alive = [
            pid
            for pid in workers
            if Path(f"/proc/{pid}/stat").exists()
            and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
        ]
        if not alive:
            return
        time.sleep(0.05)
    pytest.fail("workers outlive the process that started them")


def test_nothing_is_made_twice(toy, straight, monkeypatch, capsys):
    before = {
        p: p.stat().st_mtime_ns
        for folder in ("networks", "moments")
        for p in (straight / folder).iterdir()
    }
    monkeypatch.setattr(
        "submatch_nb.engine.training._epoch", lambda *args: pytest.fail("trained again")
    )
    monkeypatch.setattr(
        "submatch_nb.engine.experiments.collect_all",
        lambda *args, **kwargs: pytest.fail("collected again"),
    )
    monkeypatch.setattr(
        "submatch_nb.engine.experiments.simple_sizes", lambda *args: pytest.fail("matched again")
    )
    reproduce(toy, straight, workers=1)
    assert (
        before == {p: p.stat().st_mtime_ns for p in before} and "3 of 3" in capsys.readouterr().out
    )


def test_provenance_is_of_the_call_that_made_something(toy, straight, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    path = out / "results/results.json"
    about = json.loads(path.read_text()) | {"machine": "another"}
    path.write_text(json.dumps(about))
    reproduce(toy, out, workers=1)
    assert json.loads(path.read_text()) == about
    (out / "results/digits-vgg-w0.5_epoch1_seed0_seed1.safetensors").unlink()
    reproduce(toy, out, workers=1)
    assert json.loads(path.read_text())["machine"]["device"] == "cpu"
    path.unlink()
    reproduce(toy, out, workers=1)
    assert path.exists()


# What is wrong


@pytest.mark.parametrize(
    "change, message",
    [
        (
            ("epochs = 4", "epoch = 4"),
            "number 1 of toy.toml has no key 'epoch'.*did you mean 'epochs'",
        ),
        (("seeds =", "seed ="), "toy.toml has no key 'seed'.*did you mean 'seeds'"),
        (('"digits-vgg"', '"digits-vg"'), "no architecture 'digits-vg'.*did you mean 'digits-vgg'"),
        (
            ('"digits-vgg"', '"torchvision/resnet51"'),
            "torchvision has no classifier 'resnet51'.*did you mean 'resnet50'",
        ),
        (("epochs = 4", 'epochs = "four"'), "epochs is 'four'.*int"),
        (("epochs = 4", "epochs = true"), "epochs is True"),
        (("[1, 2]", "[1, 4]"), "during holds 4.*1 to 3"),
        (('"ramp"', '"cosine"'), "schedule is 'cosine': choose steps or ramp"),
        (("[0, 1, 2]", "[0, 0, 1]"), "seeds is"),
        (("[0, 1, 2]", "[0]"), "two or more"),
        (("width = 0.5", "seeds = [4, 4]"), "digits-vgg: seeds is .*two or more different"),
        (("orders = 2", "orders = 0"), "orders 1 or more"),
        (("width = 0.5", "width = -1"), "above 0"),
        (("orders = 2", "null = -1"), "null must be 0 or more"),
        (("orders = 2", "groups = 1"), "groups 0, or 2 or more"),
        (("orders = 2", "center = 1"), "center is 1"),
        (("orders = 2", 'measures = ["cca2"]'), "cca2"),
        (("orders = 2", 'crosses = ["halb"]'), "halb"),
        (('architecture = "digits-vgg"', ""), "lacks the key 'architecture'"),
        (("[[networks]]", "[networks"), "not a TOML file"),
        (("width = 0.5", 'weights = ["a", "b"]'), "no epochs during"),
        (
            ("during = [1, 2]", 'weights = ["a", "b"]'),
            "with weights nothing is trained: leave out epochs, rate, schedule",
        ),
        (
            ("during = [1, 2]", 'seeds = [4, 5]\nweights = ["a", "b"]'),
            "with weights nothing is trained: leave out epochs, rate, schedule, seeds",
        ),
        (
            ("[[networks]]", "[networks]"),
            r"toy.toml: networks is no list of tables: write \[\[networks\]\]",
        ),
        (("orders = 2", 'epsilon = ["0.3"]'), "toy: epsilon is '0.3', not a number"),
        (("orders = 2", "epsilon = [0.3, 1.5]"), "toy: epsilon is 1.5"),
        (("orders = 2", "epsilon = [0.3, 0.5, 0.3000005]"), "0.3000005, which is one twice"),
    ],
)
def test_wrong_configs(change, message, tmp_path):
    path = tmp_path / "toy.toml"
    path.write_text(TOY.replace(*change))
    assert path.read_text() != TOY
    with pytest.raises(ValueError, match=message):
        load_config(path)


def test_a_config_saved_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "toy.toml"
    path.write_text(TOY, encoding="utf-8-sig")
    with_mark = load_config(path)
    path.write_text(TOY)
    assert with_mark == load_config(path)


def test_networks_that_are_no_tables(tmp_path):
    (tmp_path / "mine.toml").write_text('networks = ["digits-vgg"]')
    with pytest.raises(
        ValueError, match=r"mine.toml: networks is no list of tables: write \[\[networks\]\]"
    ):
        load_config(tmp_path / "mine.toml")


def test_any_epsilon(tmp_path):
    "Those that differ in the sixth digit are two, and are found again; nearer ones are refused."
    path = tmp_path / "toy.toml"
    path.write_text(
        TOY.replace("orders = 2", "orders = 1\nneurons = 2\nepsilon = [0.499998, 0.3333333, 0.5]")
        .replace("during = [1, 2]", "")
        .replace("epochs = 4", "epochs = 0")
    )
    results = reproduce(path, tmp_path / "run", workers=1)
    counts = results.simple.groupby("epsilon").size()
    assert (
        list(counts.index) == [0.3333333, 0.499998, 0.5]
        and counts.nunique() == 1
        and counts.iloc[0] == 3 * 6
    )


def test_no_such_config(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config 'laptob'.*did you mean 'laptop'"):
        load_config("laptob")
    with pytest.raises(ValueError, match="paper-imagenet takes a folder of images.*--data"):
        reproduce("paper-imagenet", tmp_path)
    with pytest.raises(FileNotFoundError, match="no results in"):
        Results(tmp_path)


def test_folder_of_another_config(straight, toy, tmp_path):
    before = kept(straight)
    other = tmp_path / "toy.toml"
    other.write_text(TOY.replace("epochs = 4", "epochs = 5"))
    with pytest.raises(
        ValueError,
        match=(
            r"holds results of another config \(config.networks.0.epochs: 4, not 5\): choose"
            r" another folder"
        ),
    ):
        reproduce(other, straight, workers=1)
    other.write_text(TOY.replace('about = "a test"', 'about = "other words"'))
    for split in ("train", "test"):
        for label in "01":
            (tmp_path / "images" / split / label).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (8, 8), (int(label) * 200, i, 0)).save(
                    tmp_path / "images" / split / label / f"{i}.png"
                )
    with pytest.raises(ValueError, match="another config .data.train: "):
        reproduce(other, straight, tmp_path / "images", workers=1)
    reproduce(other, straight, workers=1)  # words do not matter
    assert kept(straight) == before


def test_lost_checkpoint_is_named(toy, straight, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    (out / "networks/digits-vgg-w0.5-seed1-epoch2.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match="seed1-epoch2.safetensors is gone.*delete .*seed1.safetensors"
    ):
        reproduce(toy, out, workers=1)


def test_diverged_seed_is_named_and_left_out(toy, tmp_path, monkeypatch, capsys):
    from submatch_nb.engine import training as networks

    plain = networks._epoch

    def epoch(model, optimizer, images, recipe, seed, number, bar):
        if seed == 1 and number == 2:
            with torch.no_grad():
                next(model.parameters()).fill_(float("nan"))
        return plain(model, optimizer, images, recipe, seed, number, bar)

    monkeypatch.setattr(networks, "_epoch", epoch)
    results = reproduce(toy, tmp_path, workers=1)
    assert results.pairs("digits-vgg-w0.5") == [("seed0", "seed2")] and set(
        results.similarities.pair
    ) == {"seed0 and seed2"}
    row = accuracies(results).loc["digits-vgg-w0.5"]
    assert (row["networks"], row["diverged"], row["pairs"]) == ("2 of 3", "seed1", 1)
    said = capsys.readouterr().out
    assert "seed 1: training diverged: the loss is nan in epoch 2 of 4" in said and "2 of 3" in said
    assert "1 pair" in plot_similarity(results, "digits-vgg-w0.5").axes[0].get_title("left")


def test_only_one_left(toy, tmp_path, monkeypatch):
    from submatch_nb.engine import training as networks

    plain = networks._epoch

    def epoch(model, optimizer, images, recipe, seed, number, bar):
        if seed:
            raise FloatingPointError("training diverged")
        return plain(model, optimizer, images, recipe, seed, number, bar)

    monkeypatch.setattr(networks, "_epoch", epoch)
    results = reproduce(toy, tmp_path, workers=1)
    assert (
        accuracies(results).loc["digits-vgg-w0.5", "networks"] == "1 of 3"
        and not results.comparisons
        and not list(figures(results))
    )


# Samples


def test_samples_are_drawn_where_a_layer_has_more(toy, tmp_path):
    path = tmp_path / "toy.toml"
    path.write_text(
        TOY.replace("orders = 2", "orders = 1\nsamples = 400")
        .replace("during = [1, 2]", "")
        .replace("epochs = 4", "epochs = 0")
    )
    results = reproduce(path, tmp_path / "run", workers=1)
    compared = results.comparisons["digits-vgg-w0.5", "trained", ("seed0", "seed1")]
    assert compared.counts == {
        "conv1_1.relu": 400,
        "conv1_2.relu": 400,
        "conv2_1.relu": 400,
        "conv2_2.relu": 400,
        "fc1.relu": 360,
        "fc2.relu": 360,
    }
    nets = [
        load_checkpoint(tmp_path / f"run/networks/digits-vgg-w0.5-seed{s}.safetensors").model
        for s in (0, 1)
    ]
    again = compare(
        *nets, load_data("digits", "test"), positions=Sampled(400, draws=1), progress=False
    )  # the same samples give the same
    for layer in compared.layers:
        assert np.allclose(compared.profiles[layer].x, again.profiles[layer].x, rtol=0, atol=1e-9)


# Weights of others


def photographs(folder, n=6):
    "A folder as ImageNet's, with very few images."
    rng = np.random.default_rng(0)
    for label in ("n01440764", "n01443537"):
        (folder / "val" / label).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(rng.integers(0, 255, (80, 100, 3), np.uint8)).save(
                folder / "val" / label / f"{i}.JPEG"
            )


@pytest.mark.filterwarnings("ignore:layer .* span all of")
@pytest.mark.long
def test_weights_of_others(tmp_path):
    """The route of paper-imagenet: a folder of larger images, torchvision's architectures, weights
    from files.
    """
    photographs(tmp_path / "imagenet")
    for name in ("squeezenet1_1", "resnet18"):
        for seed in (5, 6):
            torch.save(
                build(f"torchvision/{name}", 1000, seed).state_dict(),
                tmp_path / f"{name}-{seed}.pth",
            )
    config = tmp_path / "others.toml"
    config.write_text(
        "samples = 50\nneurons = 2\nepsilon = [0.3]\n"
        + "".join(
            f'[[networks]]\narchitecture = "torchvision/{name}"\nweights ='
            f" {json.dumps([str(tmp_path / f'{name}-{seed}.pth') for seed in (5, 6)])}\nlayers ="
            f' "{layers}"\n'
            for name, layers in (("squeezenet1_1", "features.3"), ("resnet18", "layer4"))
        )
    )
    results = reproduce(config, tmp_path / "run", tmp_path / "imagenet", workers=1)
    squeezed, resnet = (
        results.comparisons[f"torchvision-{name}", "trained", (f"{name}-5", f"{name}-6")]
        for name in ("squeezenet1_1", "resnet18")
    )
    assert squeezed.layers == [
        f"features.3.{part}_activation" for part in ("squeeze", "expand1x1", "expand3x3")
    ] and resnet.layers == ["layer4.0.relu", "layer4.0.relu:1", "layer4.1.relu", "layer4.1.relu:1"]
    assert (
        squeezed.counts["features.3.squeeze_activation"] == 50
        and results.about["data"]["test"]["images"] == 12
        and "train" not in results.about["data"]
    )
    images = load_data(tmp_path / "imagenet", "test")
    plain = compare(
        *(build("torchvision/resnet18", 1000, seed) for seed in (5, 6)),
        images,
        ["layer4.1.relu"],
        progress=False,
    )
    assert plain.counts["layer4.1.relu"] == 12 * 49 and not np.array_equal(
        plain.profiles["layer4.1.relu"].x, resnet.profiles["layer4.1.relu"].x
    )  # all positions, not 50 of them
    with pytest.raises(ValueError, match="has no ReLU inside 'layer9'"):
        config.write_text(config.read_text().replace('"layer4"', '"layer9"'))
        reproduce(config, tmp_path / "other", tmp_path / "imagenet", workers=1)
    with pytest.raises(
        ValueError,
        match=(
            "resnet50 has no weights, and there is no file, 'IMAGENET1K_V3' .did you mean"
            " 'IMAGENET1K_V[12]'"
        ),
    ):
        config.write_text(
            '[[networks]]\narchitecture = "torchvision/resnet50"\nweights = ["IMAGENET1K_V3",'
            ' "IMAGENET1K_V4"]'
        )
        reproduce(config, tmp_path / "third", tmp_path / "imagenet", workers=1)


def test_weights_for_our_own_architectures(tmp_path):
    """Width, classes and shape are those of the config and the images; what does not fit, or is
    none, is named; and a file that was written anew is noticed.
    """
    for seed in (5, 6):
        torch.save(build("digits-mlp", 10, seed, 0.25).state_dict(), tmp_path / f"mlp-{seed}.pth")
    config, out = tmp_path / "own.toml", tmp_path / "run"

    def write(architecture="digits-mlp", width=0.25, names=("mlp-5.pth", "mlp-6.pth")):
        config.write_text(
            f'data = "digits"\n[[networks]]\narchitecture = "{architecture}"\nwidth ='
            f" {width}\nweights = {json.dumps([str(tmp_path / name) for name in names])}"
        )

    write()
    results, images = reproduce(config, out, workers=1), load_data("digits", "test")
    plain = compare(
        *(build("digits-mlp", 10, seed, 0.25) for seed in (5, 6)), images, progress=False
    )
    for layer, p in results.comparisons[
        "digits-mlp-w0.25", "trained", ("mlp-5", "mlp-6")
    ].profiles.items():
        assert np.allclose(p.x, plain.profiles[layer].x, atol=1e-6)
    assert 0 <= accuracies(results)["lowest accuracy"].iloc[0] < 0.5
    config.write_text("mixed = true\ncenter = true\n" + config.read_text())
    more = reproduce(config, out, workers=1)
    untrained = settle_norms(build("digits-mlp", 10, 1, 0.25), images)
    plain = compare(build("digits-mlp", 10, 5, 0.25), untrained, images, progress=False)
    mixed = more.comparisons["digits-mlp-w0.25", "mixed", ("mlp-5", "mlp-6")]
    for layer, p in plain.profiles.items():
        assert np.allclose(mixed[layer].profile.y, p.y, atol=1e-6)

    write(width=0.5)
    with pytest.raises(
        ValueError,
        match=(
            "mlp-5.pth does not fit digits-mlp .*size mismatch.*give the architecture, width and"
            " images"
        ),
    ):
        reproduce(config, tmp_path / "other", workers=1)
    (tmp_path / "junk.pth").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, message in (
        ("junk.pth", "junk.pth holds no weights"),
        ("list.pth", "list.pth does not fit digits-mlp"),
    ):
        write(names=(name, "mlp-6.pth"))
        with pytest.raises(ValueError, match=message):
            reproduce(config, tmp_path / name.replace(".", "-"), workers=1)

    write()
    torch.save(build("digits-mlp", 10, 7, 0.25).state_dict(), tmp_path / "mlp-6.pth")
    with pytest.raises(
        ValueError,
        match=(
            "another config .weights..*mlp-6.pth: [0-9a-f]{16}, not [0-9a-f]{16}.: choose another"
            " folder"
        ),
    ):
        reproduce(config, out, workers=1)
    mark = json.loads((out / "config.json").read_text())
    del mark["weights"]
    (out / "config.json").write_text(json.dumps(mark))
    reproduce(config, out, workers=1)  # a folder of before the mark held them


def test_images_are_normalised_as_the_weights_want():
    x = torch.rand(2, 3, 4, 4)
    given = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    wanted = (x - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.1, 0.2, 0.3])[
        :, None, None
    ]
    assert torch.allclose(
        renormalise((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))(None, (given,))[0], wanted, atol=1e-5
    )


# The configs that come with the package


def test_configs_are_what_they_say():
    assert configs() == [
        "digits",
        "full",
        "half",
        "laptop",
        "paper-cifar",
        "paper-imagenet",
        "width",
    ]
    loaded = {name: load_config(name) for name in configs()}
    assert all(c.epsilon == EPSILONS and c.about and c.name == name for name, c in loaded.items())
    paper = loaded["paper-cifar"]
    assert {"vgg11", "vgg13", "vgg16", "vgg19", "resnet18", "resnet20", "resnet56"} <= {
        e.architecture for e in paper.networks
    } and paper.seeds == (0, 1, 2, 3, 4)
    for e in paper.networks:
        assert (e.recipe.epochs, e.recipe.batch, e.recipe.decay, e.recipe.schedule, e.width) == (
            160,
            128,
            5e-4,
            "steps",
            1,
        )
    assert {e.recipe.rate for e in paper.networks if e.architecture == "vgg16"} == {0.05}
    assert {(e.architecture, e.width) for e in loaded["laptop"].networks} == {
        ("vgg16_bn", 0.25),
        ("resnet18", 0.25),
    }
    assert all(len(e.weights) == 2 and not e.during for e in loaded["paper-imagenet"].networks)
    assert (
        len({e.width for e in loaded["width"].networks}) == 3
        and len({e.architecture for e in loaded["width"].networks}) == 1
    )


def test_widths_that_have_pairs_are_drawn(tmp_path, monkeypatch):
    "Every width; or, where one has lost all networks but one, the others, and it is named."
    path = tmp_path / "width.toml"
    path.write_text(
        'data = "digits"\nseeds = [0, 1]\nepsilon = [0.3, 0.5]\n'
        + "".join(
            f'[[networks]]\narchitecture = "digits-mlp"\nepochs = 1\nwidth = {w}\n'
            for w in (0.25, 0.5)
        )
    )
    results = reproduce(path, tmp_path / "run", workers=1)
    assert "width" in [p.stem for p in (tmp_path / "run/figures").iterdir()]

    def drawn():
        (ax,) = dict(figures(results))["width"].axes
        return [text.get_text() for text in ax.get_legend().get_texts()], ax.get_title("left")

    assert drawn()[0] == ["width 0.25", "width 0.5"] and "no pair" not in drawn()[1]
    monkeypatch.setattr(
        Results,
        "pairs",
        lambda self, label, plain=Results.pairs: (
            [] if label.endswith("0.25") else plain(self, label)
        ),
    )
    assert drawn()[0] == ["width 0.5"] and drawn()[1].endswith("no pair of digits-mlp-w0.25")


def test_claims_on_simple_matches_take_all_neurons_that_match():
    "Around some of them only, fewer are found: how many there are cannot be said."
    label = "vgg16_bn-w0.25"
    results = Results(Path(__file__).parents[1] / "nbs/results/laptop")
    before = claims(results).agrees
    assert "cannot be said" not in [before[claim, label] for claim in (8, 9, 10)]
    for end, differ in ((0, {9, 10}), (-1, {8, 9, 10})):
        results = Results(Path(__file__).parents[1] / "nbs/results/laptop")
        layer = results.comparisons[label, "trained", ("seed0", "seed1")].layers[end]
        results.sizes = [
            (*key, e, found | {"tried": found["matched"] - 1} if some else found)
            for *key, e, found in results.sizes
            for some in [key[0] == label and key[3] == layer and float(e) == 0.5]
        ]
        after = claims(results).agrees
        assert set(after[after != before].index) == {(claim, label) for claim in differ}
        assert set(after[after != before]) == {"cannot be said"}


# The figures of the paper's question


def stored():
    "Results of an earlier version, which kept no chance."
    return Results(Path(__file__).parents[1] / "nbs/results/laptop-again")


def test_figures_say_what_is_dashed_and_nothing_false_of_chance():
    "A Gaussian epsilon is no level of chance of activations, so no figure says that it is."
    results = stored()
    for label in results.labels:
        (ax,) = plot_similarity(results, label).axes
        assert ax.get_title("left") == f"{label}, trained: mean and range of 3 pairs"
        assert (
            ax.get_legend().get_texts()[-1].get_text() == "untrained"
            and ax.get_legend().get_lines()[-1].get_linestyle() == "--"
        )
        bands = [c.get_paths()[0].vertices[:, 1] for c in ax.collections]
        assert (
            len(bands) == 2 * len(EPSILONS)
            and bands[-1].max() == summary(results, label, "untrained")["max"][0.5].max()
        )


def test_figures_show_what_chance_gives(more):
    results, label = Results(more[1] / "results"), "digits-vgg-w0.5"
    results.similarities["null"] = 0.0
    (ax,) = plot_similarity(results, label).axes
    assert "images shuffled: 0" in [text.get_text() for text in ax.get_legend().get_texts()]
    results.similarities.loc[results.similarities.layer == "fc1.relu", "null"] = 0.4
    (ax,) = plot_similarity(results, label).axes
    dotted = [line.get_ydata() for line in ax.get_lines() if line.get_linestyle() == ":"]
    assert len(dotted) == len(EPSILONS) and all(np.isclose(line.max(), 0.4) for line in dotted)
    (ax,) = plot_half(results, label).axes[:1]
    rows = results.chance.query("stage == 'trained'").groupby("depth")["half null"].mean()
    (chance,) = [line for line in ax.get_lines() if line.get_label() == "images shuffled"]
    assert np.allclose(chance.get_ydata(), rows)
    assert len(plot_half(results, label).axes) == 2  # the centred twin too
    assert len(plot_half(stored(), "vgg16_bn-w0.25").axes) == 1


def test_lines_on_the_heat_map_have_an_outline():
    ax = plot_heat(stored(), "vgg16_bn-w0.25").axes[0]
    assert len(ax.lines) == 1 + len(EPSILONS) and all(line.get_path_effects() for line in ax.lines)


def test_command_line_says_what_is_wrong(toy, tmp_path, capsys):
    assert main(["reproduce", "laptob"]) == 2 and "did you mean 'laptop'" in capsys.readouterr().err
    (tmp_path / "taken").write_text("")
    assert (
        main(["reproduce", str(toy), "--out", str(tmp_path / "taken" / "run")]) == 2
        and "taken" in capsys.readouterr().err
    )
