"""The paper's experiments in small: a config from end to end, killed and continued, and what is wrong in a config, a folder, a network."""
import json
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from submatch_nb.cli import main
from submatch_nb.comparison import EPSILONS, Comparison, compare
from submatch_nb.networks import build, load_checkpoint, load_data
from submatch_nb.neurons import load_tensors
from submatch_nb.paper import Results, accuracies, configs, figures, load_config, plot_similarity, plot_width, renormalise, reproduce, simple_sizes, summary
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
    "What is in every file that must not depend on when a run was interrupted: all numbers, to the last bit."
    found = {}
    for p in (p for folder in ("networks", "moments", "results") for p in (out / folder).iterdir() if p.name != "results.json"):
        if p.suffix == ".safetensors":
            tensors, about = load_tensors(p, "checkpoint" if p.parent.name == "networks" else "comparison")
            found |= {(p.name, p.parent.name, name): (t.dtype, t.shape, bytes(t.numpy().data)) for name, t in tensors.items()}
        else: about = json.loads(p.read_text())
        found[p.name, p.parent.name] = about
    return found


# From end to end

def test_every_stage_leaves_its_files(straight):
    stages = ("untrained", "epoch1", "epoch2", "trained")
    pairs = [f"seed{a}_seed{b}" for a, b in combinations(range(3), 2)]
    names = sorted(f"digits-vgg-w0.5_{stage}_{pair}.safetensors" for stage in stages for pair in pairs)
    assert sorted(p.name for p in (straight / "moments").iterdir()) == names
    assert sorted(p.name for p in (straight / "results").glob("*.safetensors")) == names
    assert sorted(p.name for p in (straight / "figures").iterdir()) == sorted(
        [f"digits-vgg-w0.5-{what}.png" for what in ("similarity", "profile", "simple-size", "simple-count", "training")] + ["similarities.csv"])


def test_results_are_what_compare_gives(straight):
    "Each kept profile against `compare` of the checkpoints, by the library's own route."
    results, images = Results(straight / "results"), load_data("digits", "test")
    nets = [load_checkpoint(straight / f"networks/digits-vgg-w0.5-seed{s}.safetensors").model for s in range(3)]
    for a, b in combinations(range(3), 2):
        ours, plain = results.comparisons["digits-vgg-w0.5", "trained", (f"seed{a}", f"seed{b}")], compare(nets[a], nets[b], images, progress=False)
        assert ours.layers == plain.layers and ours.neurons == plain.neurons and not ours.moments
        for layer in ours.layers:
            for side in "xy": assert np.allclose(getattr(ours.profiles[layer], side), getattr(plain.profiles[layer], side), atol=1e-6)
    untrained = [build("digits-vgg", seed=s, width=0.5) for s in (0, 2)]
    plain = compare(*untrained, images, progress=False)
    for layer, p in results.comparisons["digits-vgg-w0.5", "untrained", ("seed0", "seed2")].profiles.items(): assert np.allclose(p.x, plain.profiles[layer].x, atol=1e-6)


def test_stages_are_different_networks(straight):
    results = Results(straight / "results")
    fc = [results.comparisons["digits-vgg-w0.5", stage, ("seed0", "seed1")].profiles["fc1.relu"].x for stage in ("untrained", "epoch 1", "epoch 2", "trained")]
    assert all(not np.array_equal(a, b) for a, b in combinations(fc, 2))
    for epoch in (1, 2):
        with pytest.warns(UserWarning, match=f"epoch {epoch} of 4"): load_checkpoint(straight / f"networks/digits-vgg-w0.5-seed1-epoch{epoch}.safetensors")


def test_simple_sizes_are_those_of_simple_matches(straight):
    results = Results(straight / "results")
    held = Comparison.load(straight / "moments/digits-vgg-w0.5_trained_seed0_seed1.safetensors")
    for layer, e in (("fc1.relu", 0.5), ("conv1_1.relu", 0.5), ("fc2.relu", 0.3)):
        rows = results.simple.query("layer == @layer and epsilon == @e and pair == 'seed0 and seed1'")
        plain = simple_matches(held.moments[layer], epsilon=e)
        assert len(rows) == 2 and rows["count"].iloc[0] == len(plain) and rows.largest.iloc[0] == max(map(len, plain), default=0)
        both = {m for m in simple_matches(held.moments[layer], epsilon=e, orders=2)}
        assert max(rows["count"]) <= len(both) <= sum(rows["count"])
    drawn = simple_sizes(held.moments["fc1.relu"], 0.5, 1, most=5)
    everything = simple_sizes(held.moments["fc1.relu"], 0.5, 1)
    assert drawn["tried"] == 5 < drawn["matched"] == everything["matched"] == everything["tried"] and set(drawn["sizes"][0]) <= set(everything["sizes"][0])


def test_summary_is_mean_and_range_of_all_pairs(straight):
    results = Results(straight / "results")
    table = summary(results, "digits-vgg-w0.5")
    for layer in table.index:
        values = [results.comparisons["digits-vgg-w0.5", "trained", pair].profiles[layer].similarity(0.5) for pair in results.pairs("digits-vgg-w0.5")]
        assert len(values) == 3 and tuple(table.loc[layer, [("mean", 0.5), ("min", 0.5), ("max", 0.5)]]) == pytest.approx((np.mean(values), min(values), max(values)))
    assert list(table["mean"].columns) == list(EPSILONS)
    with pytest.raises(ValueError, match="no pair of 'vgg16'"): summary(results, "vgg16")


def test_provenance(straight):
    about = json.loads((straight / "results/results.json").read_text())
    assert about["data"]["train"]["fingerprint"] == load_data("digits", "train").fingerprint() and about["data"]["test"]["images"] == 360
    assert about["versions"]["torch"] == version("torch") and [n["seed"] for n in about["networks"]] == [0, 1, 2]
    for n in about["networks"]: assert n["test_accuracy"] == load_checkpoint(straight / f"networks/digits-vgg-w0.5-{n['member']}.safetensors").about["test_accuracy"]
    assert all(about["seconds"][stage]["wall"] > 0 for stage in ("train", "collect", "match")) and str(straight) not in json.dumps(about) and str(Path.home()) not in json.dumps(about)


# Interrupted

@pytest.mark.parametrize("moment", ["networks/digits-vgg-w0.5-seed1-epoch1.safetensors", "moments/digits-vgg-w0.5_epoch1_seed0_seed2.safetensors"])
def test_killed_and_continued(moment, toy, straight, tmp_path):
    "A real second process with two workers, ended by SIGKILL; its workers go too, and the same command gives what the uninterrupted run gave."
    out = tmp_path / "run"
    command = [sys.executable, "-m", "submatch_nb", "reproduce", str(toy), "--out", str(out), "--workers", "2"]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (out / moment).exists() and run.poll() is None: time.sleep(0.02)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    workers = children.read_text().split() if children.exists() else []
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL and not (out / "results/results.json").exists()
    for _ in range(200):
        alive = [pid for pid in workers if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"]
        if not alive: break
        time.sleep(0.05)
    assert not alive, "workers outlive the process that started them"
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    for path in out.rglob("*.part"): path.unlink()  # what was being written
    ours, theirs = kept(out), kept(straight)
    assert ours.keys() == theirs.keys() and [key for key in ours if ours[key] != theirs[key]] == []
    assert len(Results(out / "results").about["elapsed"]) == 2


def test_nothing_is_made_twice(toy, straight, monkeypatch, capsys):
    before = {p: p.stat().st_mtime_ns for folder in ("networks", "moments") for p in (straight / folder).iterdir()}
    monkeypatch.setattr("submatch_nb.networks._epoch", lambda *args: pytest.fail("trained again"))
    monkeypatch.setattr("submatch_nb.paper.collect_all", lambda *args, **kwargs: pytest.fail("collected again"))
    monkeypatch.setattr("submatch_nb.paper.simple_sizes", lambda *args: pytest.fail("matched again"))
    reproduce(toy, straight, workers=1)
    assert before == {p: p.stat().st_mtime_ns for p in before} and "3 of 3" in capsys.readouterr().out


# What is wrong

@pytest.mark.parametrize("change, message", [
    (('epochs = 4', 'epoch = 4'), "number 1 of toy.toml has no key 'epoch'.*did you mean 'epochs'"),
    (('seeds =', 'seed ='), "toy.toml has no key 'seed'.*did you mean 'seeds'"),
    (('"digits-vgg"', '"digits-vg"'), "no architecture 'digits-vg'.*did you mean 'digits-vgg'"),
    (('"digits-vgg"', '"torchvision/resnet51"'), "torchvision has no classifier 'resnet51'.*did you mean 'resnet50'"),
    (('epochs = 4', 'epochs = "four"'), "epochs is 'four'.*int"), (('epochs = 4', 'epochs = true'), "epochs is True"), (('[1, 2]', '[1, 4]'), "during holds 4.*1 to 3"),
    (('"ramp"', '"cosine"'), "schedule is 'cosine': choose steps or ramp"), (('[0, 1, 2]', '[0, 0, 1]'), "seeds is"), (('[0, 1, 2]', '[0]'), "two or more"),
    (('orders = 2', 'epsilon = [0.3, 1.5]'), "epsilon"), (('orders = 2', 'orders = 0'), "orders 1 or more"), (('width = 0.5', 'width = -1'), "above 0"),
    (('architecture = "digits-vgg"', ''), "lacks the key 'architecture'"), (('[[networks]]', '[networks'), "not a TOML file"), (('width = 0.5', 'weights = ["a", "b"]'), "no epochs during")])
def test_wrong_configs(change, message, tmp_path):
    path = tmp_path / "toy.toml"
    path.write_text(TOY.replace(*change))
    assert path.read_text() != TOY
    with pytest.raises(ValueError, match=message): load_config(path)


def test_no_such_config(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config 'laptob'.*did you mean 'laptop'"): load_config("laptob")
    with pytest.raises(ValueError, match="paper-imagenet takes a folder of images.*--data"): reproduce("paper-imagenet", tmp_path)
    with pytest.raises(FileNotFoundError, match="no results in"): Results(tmp_path)


def test_folder_of_another_config(straight, toy, tmp_path):
    before = kept(straight)
    other = tmp_path / "toy.toml"
    other.write_text(TOY.replace("epochs = 4", "epochs = 5"))
    with pytest.raises(ValueError, match=r"holds results of another config \(config.networks.0.epochs: 4, not 5\): choose another folder"): reproduce(other, straight, workers=1)
    other.write_text(TOY.replace('about = "a test"', 'about = "other words"'))
    for split in ("train", "test"):
        for label in "01":
            (tmp_path / "images" / split / label).mkdir(parents=True)
            for i in range(4): Image.new("RGB", (8, 8), (int(label) * 200, i, 0)).save(tmp_path / "images" / split / label / f"{i}.png")
    with pytest.raises(ValueError, match="another config .data.train: "): reproduce(other, straight, tmp_path / "images", workers=1)
    reproduce(other, straight, workers=1)  # words do not matter
    assert kept(straight) == before


def test_lost_checkpoint_is_named(toy, straight, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    (out / "networks/digits-vgg-w0.5-seed1-epoch2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="seed1-epoch2.safetensors is gone.*delete .*seed1.safetensors"): reproduce(toy, out, workers=1)


def test_diverged_seed_is_named_and_left_out(toy, tmp_path, monkeypatch, capsys):
    from submatch_nb import networks
    plain = networks._epoch
    def epoch(model, optimizer, images, recipe, seed, number, bar):
        if seed == 1 and number == 2:
            with torch.no_grad(): next(model.parameters()).fill_(float("nan"))
        return plain(model, optimizer, images, recipe, seed, number, bar)
    monkeypatch.setattr(networks, "_epoch", epoch)
    results = reproduce(toy, tmp_path, workers=1)
    assert results.pairs("digits-vgg-w0.5") == [("seed0", "seed2")] and set(results.similarities.pair) == {"seed0 and seed2"}
    row = accuracies(results).loc["digits-vgg-w0.5"]
    assert (row["networks"], row["diverged"], row["pairs"]) == ("2 of 3", "seed1", 1)
    said = capsys.readouterr().out
    assert "seed 1: training diverged: the loss is nan in epoch 2 of 4" in said and "2 of 3" in said
    assert "1 pair" in plot_similarity(results, "digits-vgg-w0.5").axes[0].get_title("left")


def test_only_one_left(toy, tmp_path, monkeypatch):
    from submatch_nb import networks
    plain = networks._epoch
    def epoch(model, optimizer, images, recipe, seed, number, bar):
        if seed: raise FloatingPointError("training diverged")
        return plain(model, optimizer, images, recipe, seed, number, bar)
    monkeypatch.setattr(networks, "_epoch", epoch)
    results = reproduce(toy, tmp_path, workers=1)
    assert accuracies(results).loc["digits-vgg-w0.5", "networks"] == "1 of 3" and not results.comparisons and not list(figures(results))


# Samples

def test_samples_are_drawn_where_a_layer_has_more(toy, tmp_path):
    path = tmp_path / "toy.toml"
    path.write_text(TOY.replace("orders = 2", "orders = 1\nsamples = 400").replace("during = [1, 2]", "").replace("epochs = 4", "epochs = 0"))
    results = reproduce(path, tmp_path / "run", workers=1)
    compared = results.comparisons["digits-vgg-w0.5", "trained", ("seed0", "seed1")]
    assert compared.counts == {"conv1_1.relu": 400, "conv1_2.relu": 400, "conv2_1.relu": 400, "conv2_2.relu": 400, "fc1.relu": 360, "fc2.relu": 360}
    again = results.comparisons["digits-vgg-w0.5", "untrained", ("seed0", "seed1")]  # without an epoch of training the same networks, so the same samples give the same
    for layer in compared.layers: assert np.array_equal(compared.profiles[layer].x, again.profiles[layer].x)


# Weights of others

def photographs(folder, n=6):
    "A folder as ImageNet's, with very few images."
    rng = np.random.default_rng(0)
    for label in ("n01440764", "n01443537"):
        (folder / "val" / label).mkdir(parents=True)
        for i in range(n): Image.fromarray(rng.integers(0, 255, (80, 100, 3), np.uint8)).save(folder / "val" / label / f"{i}.JPEG")


@pytest.mark.filterwarnings("ignore:layer .* span all of")
def test_weights_of_others(tmp_path):
    "The route of paper-imagenet: a folder of larger images, torchvision's architectures, weights from files."
    photographs(tmp_path / "imagenet")
    for name in ("squeezenet1_1", "resnet18"):
        for seed in (5, 6): torch.save(build(f"torchvision/{name}", 1000, seed).state_dict(), tmp_path / f"{name}-{seed}.pth")
    config = tmp_path / "others.toml"
    config.write_text("samples = 50\nneurons = 2\n" + "".join(
        f'[[networks]]\narchitecture = "torchvision/{name}"\nweights = {json.dumps([str(tmp_path / f"{name}-{seed}.pth") for seed in (5, 6)])}\nlayers = "{layers}"\n'
        for name, layers in (("squeezenet1_1", "features.3"), ("resnet18", "layer4"))))
    results = reproduce(config, tmp_path / "run", tmp_path / "imagenet", workers=1)
    squeezed, resnet = (results.comparisons[f"torchvision-{name}", "trained", (f"{name}-5", f"{name}-6")] for name in ("squeezenet1_1", "resnet18"))
    assert squeezed.layers == [f"features.3.{part}_activation" for part in ("squeeze", "expand1x1", "expand3x3")] and resnet.layers == ["layer4.0.relu", "layer4.0.relu:1", "layer4.1.relu", "layer4.1.relu:1"]
    assert squeezed.counts["features.3.squeeze_activation"] == 50 and results.about["data"]["test"]["images"] == 12 and "train" not in results.about["data"]
    images = load_data(tmp_path / "imagenet", "test")
    plain = compare(*(build("torchvision/resnet18", 1000, seed) for seed in (5, 6)), images, ["layer4.1.relu"], progress=False)
    assert plain.counts["layer4.1.relu"] == 12 * 49 and not np.array_equal(plain.profiles["layer4.1.relu"].x, resnet.profiles["layer4.1.relu"].x)  # all positions, not 50 of them
    with pytest.raises(ValueError, match="has no ReLU inside 'layer9'"):
        config.write_text(config.read_text().replace('"layer4"', '"layer9"'))
        reproduce(config, tmp_path / "other", tmp_path / "imagenet", workers=1)
    with pytest.raises(ValueError, match="resnet50 has no weights, and there is no file, 'IMAGENET1K_V3' .did you mean 'IMAGENET1K_V[12]'"):
        config.write_text('[[networks]]\narchitecture = "torchvision/resnet50"\nweights = ["IMAGENET1K_V3", "IMAGENET1K_V4"]')
        reproduce(config, tmp_path / "third", tmp_path / "imagenet", workers=1)


def test_images_are_normalised_as_the_weights_want():
    x = torch.rand(2, 3, 4, 4)
    given = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    wanted = (x - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    assert torch.allclose(renormalise((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))(None, (given,))[0], wanted, atol=1e-5)


# The configs that come with the package

def test_configs_are_what_they_say():
    assert configs() == ["digits", "laptop", "paper-cifar", "paper-imagenet", "width"]
    loaded = {name: load_config(name) for name in configs()}
    assert all(c.epsilon == EPSILONS and c.about and c.name == name for name, c in loaded.items())
    paper = loaded["paper-cifar"]
    assert {"vgg11", "vgg13", "vgg16", "vgg19", "resnet18", "resnet20", "resnet56"} <= {e.architecture for e in paper.networks} and paper.seeds == (0, 1, 2)
    for e in paper.networks: assert (e.recipe.epochs, e.recipe.batch, e.recipe.decay, e.recipe.schedule, e.width) == (160, 128, 5e-4, "steps", 1)
    assert {e.recipe.rate for e in paper.networks if e.architecture == "vgg16"} == {0.05}
    assert {(e.architecture, e.width) for e in loaded["laptop"].networks} == {("vgg16_bn", 0.25), ("resnet18", 0.25)}
    assert all(len(e.weights) == 2 and not e.during for e in loaded["paper-imagenet"].networks)
    assert len({e.width for e in loaded["width"].networks}) == 4 and len({e.architecture for e in loaded["width"].networks}) == 1


def test_width_config_at_toy_size(tmp_path):
    path = tmp_path / "width.toml"
    path.write_text('data = "digits"\nseeds = [0, 1]\n' + "".join(f'[[networks]]\narchitecture = "digits-mlp"\nepochs = 1\nwidth = {w}\n' for w in (0.25, 0.5)))
    results = reproduce(path, tmp_path / "run", workers=1)
    assert "width" in [p.stem for p in (tmp_path / "run/figures").iterdir()]
    assert {text.get_text() for text in plot_width(results, 0.5).axes[0].get_legend().get_texts()} == {"width 0.25", "width 0.5"}


def test_command_line_says_what_is_wrong(toy, tmp_path, capsys):
    assert main(["reproduce", "laptob"]) == 2 and "did you mean 'laptop'" in capsys.readouterr().err
    (tmp_path / "taken").write_text("")
    assert main(["reproduce", str(toy), "--out", str(tmp_path / "taken" / "run")]) == 2 and "taken" in capsys.readouterr().err
