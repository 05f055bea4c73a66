"""Capturing layers of real models: what a copy, a call, a neuron and a stream are, and what happens when something fails midway."""
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.models import resnet18, vgg11

from submatch_nb.layers import Sampled, as_matrix, batches, capture, collect, collect_all, evaluating, feed, layer_names
from submatch_nb.neurons import Moments

DIGITS = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
IMAGES = nn.functional.interpolate(DIGITS[:20], size=32).expand(-1, 3, -1, -1).contiguous()


def resnet(seed=0):
    torch.manual_seed(seed)
    return resnet18(num_classes=10).eval()


def small(seed=0, inplace=True, channels=6):
    "Two convolutions and two fully connected layers for 8 x 8 digits."
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, channels, 3), nn.ReLU(inplace=inplace), nn.Conv2d(channels, 5, 3), nn.ReLU(inplace=inplace),
        nn.Flatten(), nn.Linear(80, 12), nn.ReLU(inplace=inplace), nn.Linear(12, 10)).eval()


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Failing(nn.Module):
    "Runs a network, and raises on the batch numbered `at`."
    def __init__(self, net, at):
        super().__init__()
        self.net, self.at, self.runs = net, at, 0

    def forward(self, x):
        y = self.net[:4](x)
        self.runs += 1
        if self.runs > self.at: raise RuntimeError("midway")
        return self.net[4:](y)


def same(a, b, rtol=1e-5):
    "Are two dicts of Moments the same up to the rounding of float32 forward passes?"
    assert list(a) == list(b)
    return all(torch.allclose(a[k].gram, b[k].gram, rtol=rtol, atol=rtol * float(b[k].gram.abs().max())) and a[k].count == b[k].count for k in a)


# capture

@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_in_place_successors_do_not_overwrite(kind):
    plain, inplace = small(inplace=False), small(inplace=True)
    with capture(inplace, kind) as outputs: inplace(DIGITS[:9])
    with capture(plain, kind) as expected: plain(DIGITS[:9])
    assert list(outputs) == list(expected) and len(outputs) == 2
    for name in outputs:
        assert torch.equal(outputs[name], expected[name])
        assert (outputs[name] < 0).any(), "rectified: the successor overwrote what was captured"


def test_torchvision_blocks_add_in_place():
    "A ResNet block does `out += identity` on its batch norm's output and calls one ReLU twice."
    model = resnet()
    block = model.layer1[0]
    with capture(model, ["maxpool", "layer1.0.bn2", "layer1.0.relu", "layer1.0"]) as outputs: model(IMAGES)
    with torch.no_grad():
        hidden = block.bn1(block.conv1(outputs["maxpool"])).relu()
        bn2 = block.bn2(block.conv2(hidden))
    assert list(outputs) == ["maxpool", "layer1.0.relu", "layer1.0.bn2", "layer1.0.relu:1", "layer1.0"]
    torch.testing.assert_close(outputs["layer1.0.relu"], hidden)
    torch.testing.assert_close(outputs["layer1.0.bn2"], bn2)
    torch.testing.assert_close(outputs["layer1.0.relu:1"], (bn2 + outputs["maxpool"]).relu())
    assert torch.equal(outputs["layer1.0"], outputs["layer1.0.relu:1"])


def test_one_call_of_many():
    model = resnet()
    with capture(model, "layer1.0.relu") as both, capture(model, ["layer1.0.relu:1", "layer1.1.relu:0"]) as single: model(IMAGES)
    assert list(both) == ["layer1.0.relu", "layer1.0.relu:1"] and list(single) == ["layer1.0.relu:1", "layer1.1.relu:0"]
    assert torch.equal(both["layer1.0.relu:1"], single["layer1.0.relu:1"])


def test_each_pass_starts_afresh():
    model = resnet()
    with capture(model, "relu") as outputs:
        model(IMAGES)
        first = dict(outputs)
        model(IMAGES[:7])
    assert list(outputs) == list(first) and len(outputs) == 17
    assert {len(o) for o in outputs.values()} == {7}


class Branching(nn.Module):
    "Runs its second layer only in its first pass, and notes whether gradients were on."
    def __init__(self):
        super().__init__()
        self.one, self.two, self.grad = nn.ReLU(), nn.ReLU(), []

    def forward(self, x):
        self.grad.append(torch.is_grad_enabled())
        return self.two(self.one(x)) if len(self.grad) == 1 else self.one(x)


def test_a_layer_that_is_skipped_leaves_nothing_behind():
    model = Branching()
    with capture(model, "relu") as outputs:
        model(DIGITS[:2])
        assert list(outputs) == ["one", "two"]
        model(DIGITS[:2])
    assert list(outputs) == ["one"]


def test_kinds():
    model, vgg = resnet(), vgg11(num_classes=10, init_weights=False)
    assert layer_names(model, "linear") == ["fc"] and len(layer_names(model, "conv")) == 20
    assert len(layer_names(model, "all")) == sum(1 for _ in model.modules()) - 1
    assert len(layer_names(vgg, "relu")) == 8 + 2
    assert layer_names(nn.Sequential(nn.Linear(3, 3), nn.GELU()), "relu") == ["1"]
    assert layer_names(model, ["relu"]) == ["relu"], "a list holds names, not kinds"
    with capture(model, "all") as outputs: model(IMAGES[:2])
    assert "layer1" in outputs and outputs["fc"].shape == (2, 10)


def test_unknown_layers_list_those_there_are():
    model = resnet()
    with pytest.raises(KeyError, match=r"no layer 'layer1.0.con1' in ResNet \(did you mean 'layer1.0.conv1'.*layer4.1.conv2.*kinds: relu"):
        with capture(model, ["fc", "layer1.0.con1"]): pass
    with pytest.raises(KeyError, match="no layer 'layer9:1'"): layer_names(model, "layer9:1")
    with pytest.raises(KeyError, match="no module of kind 'relu' in Linear"): layer_names(nn.Linear(2, 2), "relu")
    with pytest.raises(TypeError, match="torch.nn.Module, not str"): layer_names("resnet18")
    with pytest.raises(TypeError, match="named by a string"): layer_names(model, [("fc", "fc")])
    with pytest.raises(ValueError, match="empty"): layer_names(model, [])
    assert hooks(model) == 0


def test_layer_that_did_not_run():
    model = resnet()
    with capture(model, ["fc"]) as outputs:
        with pytest.raises(KeyError, match="'fc' has not run"): outputs["fc"]
        model(IMAGES[:2])
        with pytest.raises(KeyError, match="'conv1' has not run; these have: fc"): outputs["conv1"]


def test_capture_only_watches():
    "Flags, weights, statistics of a model in evaluation mode, gradients and hooks are as they were, and outputs carry no graph."
    model = resnet()
    model.layer1.train()
    flags = [m.training for m in model.modules()]
    with capture(model, "conv") as outputs: model(IMAGES[:4]).sum().backward()
    assert hooks(model) == 0 and [m.training for m in model.modules()] == flags and torch.is_grad_enabled()
    assert model.conv1.weight.grad is not None and not any(o.requires_grad for o in outputs.values())


def test_hooks_go_after_an_exception():
    model = Failing(small(), at=0)
    with pytest.raises(RuntimeError, match="midway"):
        with capture(model, "relu") as outputs: model(DIGITS[:3])
    assert hooks(model) == 0 and list(outputs) == ["net.1", "net.3"]


def test_foreign_hooks_stay():
    model, seen = small(), []
    handle = model[0].register_forward_hook(lambda *_: seen.append(1))
    with capture(model, "conv"): model(DIGITS[:3])
    model(DIGITS[:3])
    assert len(seen) == 2 and hooks(model) == 1
    handle.remove()


def test_tuples_and_what_is_no_tensor():
    class Odd(nn.Module):
        def forward(self, x): return str(x.shape)
    lstm = nn.LSTM(8, 4, batch_first=True)
    model = nn.Sequential(lstm)
    with capture(model, ["0"]) as outputs: expected = model(DIGITS[:5, 0])[0]
    assert torch.equal(outputs["0"], expected)
    odd = nn.Sequential(nn.ReLU(), Odd())
    with capture(odd, "all") as outputs: odd(DIGITS[:2])
    assert list(outputs) == ["0"]
    with pytest.raises(TypeError, match="layer '1' puts out str"):
        with capture(odd, ["1"]): odd(DIGITS[:2])
    assert hooks(odd) == 0


# what a neuron is

def test_neurons():
    x = torch.arange(2 * 3 * 4 * 5.).reshape(2, 3, 4, 5)
    matrix, neuron = as_matrix(x)
    assert neuron == "channel" and matrix.shape == (40, 3)
    assert all(matrix[(i * 4 + r) * 5 + c, k] == x[i, k, r, c] for i in range(2) for k in range(3) for r in range(4) for c in range(5))
    tokens, neuron = as_matrix(x[:, :, :, 0])
    assert neuron == "feature" and torch.equal(tokens[3:], x[1, :, :, 0])
    units, neuron = as_matrix(x[:, :, 0, 0])
    assert neuron == "unit" and torch.equal(units, x[:, :, 0, 0])
    assert as_matrix(torch.zeros(2, 3, 4, 5, 6))[0].shape == (2 * 4 * 5 * 6, 3)
    with pytest.raises(ValueError, match=r"shape \(7,\) has no neurons"): as_matrix(torch.zeros(7))


# collect

@pytest.mark.parametrize("batch_size", [1, 7, 20, 64])
def test_streaming_is_all_at_once(batch_size):
    a, b = resnet(0), resnet(1)
    layers = ["relu", "layer1.0.relu", "layer4.1.relu", "fc"]
    with evaluating(a, b), capture(a, layers) as x, capture(b, layers) as y: a(IMAGES), b(IMAGES)
    whole = {name: Moments(as_matrix(x[name])[0], as_matrix(y[name])[0]) for name in ["relu", "layer1.0.relu", "layer1.0.relu:1", "layer4.1.relu", "layer4.1.relu:1", "fc"]}
    streamed = collect(a, b, IMAGES, layers, batch_size=batch_size, progress=False)
    assert same(streamed, whole)
    assert streamed["relu"].count == 20 * 16 * 16 and streamed.neurons["relu"] == "channel" and streamed.neurons["fc"] == "unit"


def test_precision_and_routes():
    "Second moments where they tell neurons apart, R factors where they do not or where asked for; the same inner products."
    a, b = small(0), small(1)
    plain, exact = collect(a, b, DIGITS, progress=False), collect(a, b, DIGITS, progress=False, precision="exact")
    assert {m.route for m in plain.values()} == {"gram"} and {m.route for m in exact.values()} == {"root"} and same(plain, exact)
    with torch.no_grad():  # two units of the last layer that are almost one
        a[5].weight[1] = a[5].weight[0] * (1 + 1e-6)
        a[5].bias[1] = a[5].bias[0]
        a[5].bias[:2] += 3  # alive
    routes = {layer: m.route for layer, m in collect(a, b, DIGITS, progress=False).items()}
    assert routes == {"1": "gram", "3": "gram", "6": "root"}
    few = collect(a, b, DIGITS[:9], ["6"], progress=False)["6"]  # fewer samples than neurons: the activations themselves
    assert few.route == "root" and few.error == few.skew == 0 and len(few.root) == 9
    with pytest.raises(ValueError, match="precision is 'high'"): collect(a, b, DIGITS, precision="high")


def test_vgg_relu_layers():
    torch.manual_seed(0)
    a, b = vgg11(num_classes=10).eval(), vgg11(num_classes=10).eval()
    del a.classifier[3:], b.classifier[3:]  # 4096-unit moments twice are slow
    a.classifier[0] = b.classifier[0] = nn.Linear(512 * 49, 32)
    collected = collect(a, b, IMAGES[:4], progress=False)
    assert [m.n_x for m in collected.values()] == [64, 128, 256, 256, 512, 512, 512, 512, 32]
    assert [m.count for m in collected.values()] == [4 * s * s for s in (32, 16, 8, 8, 4, 4, 2, 2)] + [4]


class Rows(Dataset):
    "A map-style data set of (image, label)."
    def __len__(self): return 20
    def __getitem__(self, i): return DIGITS[i], i % 10


@pytest.mark.parametrize("data", [
    DIGITS[:20], DIGITS[:20].numpy(), DIGITS[:20].double().numpy(), TensorDataset(DIGITS[:20], torch.arange(20)), Rows(),
    DataLoader(Rows(), batch_size=6), [DIGITS[:15], DIGITS[15:20]], [(DIGITS[:15], None), (DIGITS[15:20], None)],
    [{"input": DIGITS[:3]}, {"input": DIGITS[3:20]}]], ids=lambda d: type(d).__name__)
def test_any_data(data):
    a, b = small(0), small(1)
    assert same(collect(a, b, data, progress=False), collect(a, b, (d for d in [DIGITS[:20]]), progress=False))


def test_token_ids_stay_integers():
    model = nn.Sequential(nn.Embedding(17, 6), nn.Linear(6, 5))
    tokens = (DIGITS[:12, 0].flatten(1) * 16).long()
    collected = collect(model, model, tokens, "linear", progress=False)
    assert collected["1"].count == 12 * 64 and collected.neurons["1"] == "feature"


def test_half_precision_weights():
    a = small(0).bfloat16()
    m = collect(a, small(0), DIGITS[:20], ["1"], progress=False)["1"]
    assert m.gram.dtype == torch.float64
    torch.testing.assert_close(m.gram[:6, :6], m.gram[6:, 6:], rtol=0.03, atol=0.03 * float(m.gram.max()))


def test_models_are_left_as_they_were():
    a, b = resnet(0), resnet(1)
    a.train(), b.layer2.train()
    flags = [[m.training for m in model.modules()] for model in (a, b)]
    state = {k: v.clone() for k, v in a.state_dict().items()}
    collect(a, b, IMAGES, ["fc"], progress=False)
    assert [[m.training for m in model.modules()] for model in (a, b)] == flags
    assert all(torch.equal(v, state[k]) for k, v in a.state_dict().items()), "batch norm counted the images: not in evaluation mode"
    assert hooks(a) == hooks(b) == 0 and torch.is_grad_enabled()


def test_no_graph_is_built():
    model = Branching()
    collect(model, model, DIGITS[:4, 0, 0], ["one"], progress=False)
    assert model.grad == [False, False]


def test_an_exception_midway_leaves_no_trace():
    a, b = small(0).train(), Failing(small(1), at=1).train()
    b.net[2].eval()
    flags = [m.training for m in b.modules()]
    with pytest.raises(RuntimeError, match="midway"): collect(a, b, DIGITS[:30], [("0", "net.0")], batch_size=10, progress=False)
    def data():
        yield DIGITS[:5]
        raise OSError("the disk went away")
    with pytest.raises(OSError, match="went away"): collect(a, a, data(), progress=False)
    assert a.training and [m.training for m in b.modules()] == flags and hooks(a) == hooks(b) == 0 and torch.is_grad_enabled()


def test_different_architectures_by_pairs():
    a, b = small(0, channels=6), small(1, channels=9)
    collected = collect(a, b, DIGITS[:20], [("1", "0"), "3", ("5", "7")], progress=False)
    assert list(collected) == ["1 ~ 0", "3", "5 ~ 7"]
    assert [(m.n_x, m.n_y) for m in collected.values()] == [(6, 9), (5, 5), (12, 10)]
    whole = Moments(as_matrix(a[:2](DIGITS[:20]))[0], as_matrix(b[:1](DIGITS[:20]))[0])
    assert same({"1 ~ 0": collected["1 ~ 0"]}, {"1 ~ 0": whole})


def test_calls_are_paired_in_order():
    a, b = resnet(0), resnet(1)
    collected = collect(a, b, IMAGES[:6], [("layer1.0.relu", "layer1.1.relu"), ("layer1.0.relu:1", "maxpool"), ["conv1", "conv1"], "conv1"], progress=False)
    assert list(collected) == ["layer1.0.relu ~ layer1.1.relu", "layer1.0.relu:1 ~ layer1.1.relu:1", "layer1.0.relu:1 ~ maxpool", "conv1"]
    assert collected["conv1"].count == 6 * 16 * 16, "a layer named twice was counted twice"
    with pytest.raises(ValueError, match=r"'layer1.0.relu' ran 2 times in the first network and 'maxpool' 1 times.*layer1.0.relu:0"):
        collect(a, b, IMAGES[:6], [("layer1.0.relu", "maxpool")], progress=False)
    with pytest.raises(ValueError, match="'maxpool:1' did not run in a forward pass of the second network"):
        collect(a, b, IMAGES[:6], [("layer1.0.relu:1", "maxpool:1")], progress=False)


def test_bad_activations_name_the_layer():
    good, bad = small(0), small(1)
    with torch.no_grad(): bad[2].weight[3] = float("nan")
    with pytest.raises(ValueError, match="layer '3', batch 0: the second network: neuron 3 is nan at sample 0"): collect(good, bad, DIGITS[:4], progress=False)
    with pytest.raises(ValueError, match="layer '3'.*: the first network: neuron 3 is nan"): collect(bad, good, DIGITS[:4], progress=False)
    data = DIGITS[:9].clone()
    data[7, 0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="layer '1', batch 2"): collect(good, good, data, batch_size=3, progress=False)


def test_samples_that_differ():
    a, b = small(0), small(1)
    with pytest.raises(ValueError, match=r"layer '1 ~ 3', batch 0.*\(4, 6, 6, 6\) in the first network and \(4, 5, 4, 4\) in the second"):
        collect(a, b, DIGITS[:4], [("1", "3")], progress=False)
    tall, wide = nn.Sequential(nn.Conv2d(1, 2, (1, 3))), nn.Sequential(nn.Conv2d(1, 2, (3, 1)))  # 8 x 6 and 6 x 8: as many positions, other ones
    with pytest.raises(ValueError, match="samples differ"): collect(tall, wide, DIGITS[:4], "conv", progress=False)
    with pytest.raises(ValueError, match="only in the first: 3, 6; only in the second: 2"):
        collect(small(0), nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.ReLU()), DIGITS[:4], progress=False)


def test_data_that_is_none():
    model = small()
    with pytest.raises(ValueError, match="no batch"): collect(model, model, [], progress=False)
    with pytest.raises(TypeError, match="not str"): collect(model, model, "digits", progress=False)
    with pytest.raises(TypeError, match="not int"): batches(7)
    with pytest.raises(TypeError, match="Module, not Tensor"): collect(DIGITS, model, DIGITS, progress=False)
    with pytest.raises(ValueError, match="pairs of names"): collect(model, model, DIGITS, [("0", "1", "2")], progress=False)


def test_feed_follows_the_model():
    double = small().double()
    assert feed(double, DIGITS[:2]).dtype == torch.float64
    assert torch.equal(feed(double, (DIGITS[:2].numpy(), "labels")), feed(double, DIGITS[:2]))
    assert isinstance(feed(nn.Identity(), np.ones(3)), torch.Tensor)


# several networks, crosses, positions

def test_several_networks_in_one_pass():
    models = {name: small(seed) for seed, name in enumerate("abc")}
    runs = []
    handles = [m.register_forward_pre_hook(lambda *_: runs.append(1)) for m in models.values()]
    collected = collect_all(models, DIGITS[:300], batch_size=100, progress=False)
    for handle in handles: handle.remove()
    assert len(runs) == 3 * 3, "each network once for each batch"
    assert list(collected) == [("a", "b"), ("a", "c"), ("b", "c")]
    for (i, j), of_pair in collected.items(): assert same(of_pair, collect(models[i], models[j], DIGITS[:300], batch_size=100, progress=False))
    assert list(collect_all(list(models.values()), DIGITS[:9], ["1"], progress=False)) == [(0, 1), (0, 2), (1, 2)]


def test_cross():
    a, b = small(0), small(1, channels=7)
    with pytest.raises(ValueError, match=r"samples differ.*positions=\"pooled\""): collect(a, b, DIGITS[:300], "cross", progress=False)
    collected = collect(a, b, DIGITS[:300], "cross", positions="pooled", progress=False)
    assert list(collected) == ["1", "1 ~ 3", "1 ~ 6", "3 ~ 1", "3", "3 ~ 6", "6 ~ 1", "6 ~ 3", "6"]
    assert collected.pairs["3 ~ 1"] == ("3", "1") and collected.pairs["1"] == ("1", "1")
    assert [collected.positions[k] for k in ("1", "1 ~ 3", "3 ~ 1", "1 ~ 6", "6")] == ["all", "pooled to 4 x 4", "pooled to 4 x 4", "mean", "all"]
    with evaluating(a, b), capture(a) as x, capture(b) as y: a(DIGITS[:300]), b(DIGITS[:300])
    grid, mean = nn.AdaptiveAvgPool2d(4), lambda z: z.double().mean((2, 3))
    assert same({k: collected[k] for k in ("1", "3 ~ 1", "1 ~ 6")}, {
        "1": Moments(*(as_matrix(z["1"])[0] for z in (x, y))), "3 ~ 1": Moments(as_matrix(x["3"])[0], as_matrix(grid(y["1"].double()))[0]),
        "1 ~ 6": Moments(mean(x["1"]), y["6"])})


def test_sampled_positions():
    a, b = small(0), small(1)
    collected = collect(a, b, DIGITS[:50], positions=Sampled(500, 3, seed=5), batch_size=16, progress=False)
    assert [len(draws) for draws in collected.draws.values()] == [3, 3, 3]
    assert [collected[k].count for k in collected] == [500, 500, 50] and collected.positions["1"] == "sampled, 3 x 500, seed 5"
    with evaluating(a, b), capture(a) as x, capture(b) as y: a(DIGITS[:50]), b(DIGITS[:50])
    for layer in collected:
        X, Y = (as_matrix(z[layer])[0] for z in (x, y))
        for draw, m in enumerate(collected.draws[layer]):
            chosen = Sampled(500, 3, seed=5).indices(draw, len(X))
            assert len(set(chosen)) == m.count and same({layer: m}, {layer: Moments(X[chosen], Y[chosen])})
    assert not torch.equal(*(m.gram for m in collected.draws["1"][:2]))
    with pytest.raises(ValueError, match="length is known"): collect(a, b, iter([DIGITS[:9]]), positions="sampled", progress=False)
    with pytest.raises(ValueError, match="positions is 'some'"): collect(a, b, DIGITS, positions="some", progress=False)
