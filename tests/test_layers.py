"""Capturing layers of real models: what a copy, a call, a neuron and a stream are.

Also what happens when something fails midway.
"""

import gc
import re
import warnings

import numpy as np
import pytest
import torch
from conftest import CIFAR, needs_cifar
from exact import assert_bound_holds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instances import KINDS, make
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import convnext_tiny, resnet18, vgg11, vgg16_bn, vit_b_16
from torchvision.models.vgg import cfgs, make_layers

from submatch_nb.engine import collecting, distributed, passes, sums
from submatch_nb.engine import roots as roots_module
from submatch_nb.engine.collecting import lay_out, run_through
from submatch_nb.engine.feeding import inputs_in
from submatch_nb.engine.files import save_tensors
from submatch_nb.engine.inputs import SubmatchWarning
from submatch_nb.engine.moments import Moments
from submatch_nb.engine.reading import Reading
from submatch_nb.engine.request import Request
from submatch_nb.engine.roots import Roots
from submatch_nb.layers import (
    Sampled,
    as_matrix,
    batches,
    capture,
    collect,
    collect_all,
    evaluating,
    feed,
    layer_names,
)
from submatch_nb.maximum import epsilon_profile

DIGITS = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
IMAGES = nn.functional.interpolate(DIGITS[:20], size=32).expand(-1, 3, -1, -1).contiguous()


def resnet(seed=0):
    torch.manual_seed(seed)
    return resnet18(num_classes=10).eval()


def small(seed=0, inplace=True, channels=6):
    "Two convolutions and two fully connected layers for 8 x 8 digits."
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, channels, 3),
        nn.ReLU(inplace=inplace),
        nn.Conv2d(channels, 5, 3),
        nn.ReLU(inplace=inplace),
        nn.Flatten(),
        nn.Linear(80, 12),
        nn.ReLU(inplace=inplace),
        nn.Linear(12, 10),
    ).eval()


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def flags(model):
    "Which of its modules are training."
    return [module.training for module in model.modules()]


def outputs_of(a, b, inputs, layers="relu"):
    "What two networks, in evaluation mode, put out for the same inputs."
    with evaluating(a, b), capture(a, layers) as x, capture(b, layers) as y:
        a(inputs)
        b(inputs)
    return x, y


class Failing(nn.Module):
    "Runs a network, and raises on the batch numbered `at`."

    def __init__(self, net, at):
        super().__init__()
        self.net, self.at = net, at
        self.runs = 0

    def forward(self, x):
        y = self.net[:4](x)
        self.runs += 1
        if self.runs > self.at:
            raise RuntimeError("midway")
        return self.net[4:](y)


def same(a, b, rtol=1e-5):
    "Are two dicts of Moments the same up to the rounding of float32 forward passes?"
    assert list(a) == list(b)
    return all(
        torch.allclose(a[k].gram, b[k].gram, rtol=rtol, atol=rtol * float(b[k].gram.abs().max()))
        and a[k].count == b[k].count
        for k in a
    )


# capture


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_in_place_successors_do_not_overwrite(kind):
    plain, inplace = small(inplace=False), small(inplace=True)
    with capture(inplace, kind) as outputs:
        inplace(DIGITS[:9])
    with capture(plain, kind) as expected:
        plain(DIGITS[:9])
    assert list(outputs) == list(expected) and len(outputs) == 2
    for name in outputs:
        assert torch.equal(outputs[name], expected[name])
        assert (outputs[name] < 0).any(), "rectified: the successor overwrote what was captured"


def test_torchvision_blocks_add_in_place():
    "A ResNet block does `out += identity` on its batch norm's output and calls one ReLU twice."
    model = resnet()
    block = model.layer1[0]
    with capture(model, ["maxpool", "layer1.0.bn2", "layer1.0.relu", "layer1.0"]) as outputs:
        model(IMAGES)
    with torch.no_grad():
        hidden = block.bn1(block.conv1(outputs["maxpool"])).relu()
        bn2 = block.bn2(block.conv2(hidden))
    assert list(outputs) == [
        "maxpool",
        "layer1.0.relu",
        "layer1.0.bn2",
        "layer1.0.relu:1",
        "layer1.0",
    ]
    torch.testing.assert_close(outputs["layer1.0.relu"], hidden)
    torch.testing.assert_close(outputs["layer1.0.bn2"], bn2)
    torch.testing.assert_close(outputs["layer1.0.relu:1"], (bn2 + outputs["maxpool"]).relu())
    assert torch.equal(outputs["layer1.0"], outputs["layer1.0.relu:1"])


def test_one_call_of_many():
    model = resnet()
    with (
        capture(model, "layer1.0.relu") as both,
        capture(model, ["layer1.0.relu:1", "layer1.1.relu:0"]) as single,
    ):
        model(IMAGES)
    assert list(both) == ["layer1.0.relu", "layer1.0.relu:1"] and list(single) == [
        "layer1.0.relu:1",
        "layer1.1.relu:0",
    ]
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
        self.one, self.two = nn.ReLU(), nn.ReLU()
        self.grad = []

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
    gelu = nn.Sequential(nn.Linear(3, 3), nn.GELU())
    assert layer_names(gelu) == layer_names(gelu, "activation") == ["1"]
    with pytest.raises(KeyError, match=r"of kind 'relu' in Sequential; .* activation \(1\)"):
        layer_names(gelu, "relu")
    assert layer_names(model, ["relu"]) == ["relu"], "a list holds names, not kinds"
    with capture(model, "all") as outputs:
        model(IMAGES[:2])
    assert "layer1" in outputs and outputs["fc"].shape == (2, 10)


def test_unknown_layers_list_those_there_are():
    model = resnet()
    with (
        pytest.raises(
            KeyError,
            match=r"no layer 'layer1.0.con1' in ResNet \(did you mean 'layer1.0.conv1'"
            r".*layer4.1.conv2.*kinds: relu",
        ),
        capture(model, ["fc", "layer1.0.con1"]),
    ):
        pass
    with pytest.raises(KeyError, match="no layer 'layer9:1'"):
        layer_names(model, "layer9:1")
    with pytest.raises(KeyError, match="no module or function of kind 'relu' in Linear"):
        layer_names(nn.Linear(2, 2), "relu")
    with pytest.raises(TypeError, match="torch.nn.Module, not str"):
        layer_names("resnet18")
    with pytest.raises(TypeError, match="named by a string"):
        layer_names(model, [("fc", "fc")])
    with pytest.raises(ValueError, match="empty"):
        layer_names(model, [])
    assert hooks(model) == 0


def test_layer_that_did_not_run():
    model = resnet()
    with capture(model, ["fc"]) as outputs:
        with pytest.raises(KeyError, match="'fc' has not run"):
            outputs["fc"]
        model(IMAGES[:2])
        with pytest.raises(KeyError, match="'conv1' has not run; these have: fc"):
            outputs["conv1"]


def test_capture_only_watches():
    "Flags, weights, gradients and hooks are as they were, and outputs carry no graph."
    model = resnet()
    model.layer1.train()
    before = flags(model)
    with capture(model, "conv") as outputs:
        model(IMAGES[:4]).sum().backward()
    assert hooks(model) == 0 and flags(model) == before and torch.is_grad_enabled()
    assert model.conv1.weight.grad is not None
    assert not any(o.requires_grad for o in outputs.values())


def test_hooks_go_after_an_exception():
    model = Failing(small(), at=0)
    with pytest.raises(RuntimeError, match="midway"), capture(model, "relu") as outputs:
        model(DIGITS[:3])
    assert hooks(model) == 0 and list(outputs) == ["net.1", "net.3"]


def test_foreign_hooks_stay():
    model, seen = small(), []
    handle = model[0].register_forward_hook(lambda *_: seen.append(1))
    with capture(model, "conv"):
        model(DIGITS[:3])
    model(DIGITS[:3])
    assert len(seen) == 2 and hooks(model) == 1
    handle.remove()


def test_tuples_and_what_is_no_tensor():
    class Odd(nn.Module):
        def forward(self, x):
            return str(x.shape)

    lstm = nn.LSTM(8, 4, batch_first=True)
    model = nn.Sequential(lstm)
    with capture(model, ["0"]) as outputs:
        expected = model(DIGITS[:5, 0])[0]
    assert torch.equal(outputs["0"], expected)
    odd = nn.Sequential(nn.ReLU(), Odd())
    with capture(odd, "all") as outputs:
        odd(DIGITS[:2])
    assert list(outputs) == ["0"]
    with pytest.raises(TypeError, match="layer '1' puts out str"), capture(odd, ["1"]):
        odd(DIGITS[:2])
    assert hooks(odd) == 0


# what a neuron is


def test_neurons():
    x = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    matrix, neuron = as_matrix(x)
    assert neuron == "channel" and matrix.shape == (40, 3)
    assert all(
        matrix[(i * 4 + r) * 5 + c, k] == x[i, k, r, c]
        for i in range(2)
        for k in range(3)
        for r in range(4)
        for c in range(5)
    )
    tokens, neuron = as_matrix(x[:, :, :, 0])
    assert neuron == "feature" and torch.equal(tokens[3:], x[1, :, :, 0])
    units, neuron = as_matrix(x[:, :, 0, 0])
    assert neuron == "unit" and torch.equal(units, x[:, :, 0, 0])
    assert as_matrix(torch.zeros(2, 3, 4, 5, 6))[0].shape == (2 * 4 * 5 * 6, 3)
    with pytest.raises(ValueError, match=r"shape \(7,\) has no neurons"):
        as_matrix(torch.zeros(7))


# collect


@pytest.mark.parametrize("batch_size", [1, 7, 20, 64])
def test_streaming_is_all_at_once(batch_size):
    a, b = resnet(0), resnet(1)
    layers = ["relu", "layer1.0.relu", "layer4.1.relu", "fc"]
    x, y = outputs_of(a, b, IMAGES, layers)
    whole = {
        name: Moments(as_matrix(x[name])[0], as_matrix(y[name])[0])
        for name in [
            "relu",
            "layer1.0.relu",
            "layer1.0.relu:1",
            "layer4.1.relu",
            "layer4.1.relu:1",
            "fc",
        ]
    }
    streamed = collect(a, b, IMAGES, layers, batch_size=batch_size, progress=False)
    assert same(streamed, whole)
    assert (
        streamed["relu"].count == 20 * 16 * 16
        and streamed.neurons["relu"] == "channel"
        and streamed.neurons["fc"] == "unit"
    )


def test_precision_and_routes():
    "Second moments where they tell neurons apart, R factors where not or where asked for."
    a, b = small(0), small(1)
    plain = collect(a, b, DIGITS, progress=False)
    exact = collect(a, b, DIGITS, progress=False, precision="exact")
    assert {m.route for m in plain.values()} == {"gram"}
    assert {m.route for m in exact.values()} == {"root"}
    assert same(plain, exact), "the same inner products"
    with torch.no_grad():  # two units of the last layer that are almost one
        a[5].weight[1] = a[5].weight[0] * (1 + 1e-6)
        a[5].bias[1] = a[5].bias[0]
        a[5].bias[:2] += 3  # alive
    routes = {layer: m.route for layer, m in collect(a, b, DIGITS, progress=False).items()}
    assert routes == {"1": "gram", "3": "gram", "6": "root"}
    # fewer samples than neurons: the activations themselves
    few = collect(a, b, DIGITS[:9], ["6"], progress=False)["6"]
    assert few.route == "root" and few.error < 1e-14 and few.skew == 0 and len(few.root) == 9
    with pytest.raises(ValueError, match="precision is 'high'"):
        collect(a, b, DIGITS, precision="high")


def stretched(Z, rng):
    "Each neuron in the first few samples silent, or on a scale of its own."
    return np.concatenate(
        [Z[:16] * rng.choice([0, 1, 1, 10 ** rng.uniform(-9, 3)], Z.shape[1]), Z[16:]]
    )


def grown_apart(Z, rng):
    "The first neuron is a near copy of the second in the first few samples, and itself afterwards."
    Z = Z.copy()
    Z[:16, 0] = Z[:16, -1] * (1 + 10 ** rng.uniform(-16, -3) * rng.normal(size=len(Z[:16])))
    return Z


def streamed(layers):
    """The moments of two layers whose samples come in by sixes, and which samples were substituted.

    Of each sample that had a root to be substituted in: whether it was.
    """
    roots, tried = Roots(*(layer.shape[1] for layer in layers), "cpu"), []
    follow = roots.follow

    def noted(Z, room):
        ready, before = len(roots.root) == len(Z), Z.clone()
        gram, root = roots.gram.clone(), roots.root
        followed = follow(Z, room)
        if ready:
            tried.extend(followed.tolist())
        assert torch.equal(Z, before)
        assert followed.any() or (torch.equal(gram, roots.gram) and root is roots.root)
        return followed

    roots.follow = noted
    for parts in zip(*(torch.as_tensor(layer)[:, :, None].split(6) for layer in layers)):
        roots.add(parts)
    return roots.moments(), tried


@pytest.fixture
def short_chunks(monkeypatch):
    "Chunks of four samples: the first sixteen of eight neurons are factored."
    monkeypatch.setattr(roots_module, "CHUNK", 4)
    monkeypatch.setattr(roots_module, "CHUNK_NUMBERS", 0)


@pytest.mark.parametrize(
    "change", [lambda Z, rng: Z, stretched, grown_apart], ids=["alike", "stretched", "grown_apart"]
)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6))
def test_an_r_factor_of_samples_that_come_in_is_within_its_own_bound(
    short_chunks, kind, change, seed
):
    rng = np.random.default_rng(seed)
    layers = [change(np.concatenate([Z[:, :4]] * 2), rng) for Z in make(kind, seed)]
    moments, whole = streamed(layers)[0], Moments(*layers, root=True)
    assert moments.error < 1e-12 and moments.skew < 1e-11 and moments.count == whole.count
    assert torch.equal(moments.alike, whole.alike) and torch.allclose(
        moments.gram, whole.gram, rtol=1e-9, atol=1e-9 * float(whole.square.max())
    )
    assert_bound_holds(moments, np.concatenate(layers, 1), rng)


def test_samples_are_substituted_where_that_loses_nothing_and_factored_where_it_would(short_chunks):
    rng = np.random.default_rng(0)
    layers = [rng.normal(size=(400, 4)) for _ in range(2)]
    assert np.mean(streamed(layers)[1]) > 0.95, "like the first ones"
    layers[0][:, 1] = layers[0][:, 0] + 1e-9 * rng.normal(size=400)
    moments, tried = streamed(layers)
    assert np.mean(tried) > 0.95 and epsilon_profile(moments).route == "root", (
        "neurons that nearly depend on each other"
    )
    for side in "xy":
        np.testing.assert_allclose(
            getattr(epsilon_profile(moments), side),
            getattr(epsilon_profile(Moments(*layers, root=True)), side),
            rtol=1e-6,
        )
    for what in (0, 1e-6):
        late = [Z.copy() for Z in layers]
        late[1][:40, 2] *= what
        tried = streamed(late)[1]
        assert 0 < np.mean(tried[:60]) < 0.8 and np.mean(tried[-200:]) > 0.95, (
            "a neuron that is silent, or nearly, at first"
        )


@pytest.mark.long
def test_vgg_relu_layers():
    torch.manual_seed(0)
    a, b = vgg11(num_classes=10).eval(), vgg11(num_classes=10).eval()
    del a.classifier[3:], b.classifier[3:]  # 4096-unit moments twice are slow
    a.classifier[0] = b.classifier[0] = nn.Linear(512 * 49, 32)
    collected = collect(a, b, IMAGES[:4], progress=False)
    assert [m.n_x for m in collected.values()] == [64, 128, 256, 256, 512, 512, 512, 512, 32]
    assert [m.count for m in collected.values()] == [
        4 * s * s for s in (32, 16, 8, 8, 4, 4, 2, 2)
    ] + [4]


class Rows(Dataset):
    "A map-style data set of (image, label)."

    def __len__(self):
        return 20

    def __getitem__(self, i):
        return DIGITS[i], i % 10


@pytest.mark.parametrize(
    "data",
    [
        DIGITS[:20],
        DIGITS[:20].numpy(),
        DIGITS[:20].double().numpy(),
        TensorDataset(DIGITS[:20], torch.arange(20)),
        Rows(),
        DataLoader(Rows(), batch_size=6),
        [DIGITS[:15], DIGITS[15:20]],
        [(DIGITS[:15], None), (DIGITS[15:20], None)],
        [{"input": DIGITS[:3]}, {"input": DIGITS[3:20]}],
    ],
    ids=lambda d: type(d).__name__,
)
def test_any_data(data):
    a, b = small(0), small(1)
    assert same(
        collect(a, b, data, progress=False),
        collect(a, b, (d for d in [DIGITS[:20]]), progress=False),
    )


def test_token_ids_stay_integers():
    model = nn.Sequential(nn.Embedding(17, 6), nn.Linear(6, 5))
    tokens = (DIGITS[:12, 0].flatten(1) * 16).long()
    collected = collect(model, model, tokens, "linear", progress=False)
    assert collected["1"].count == 12 * 64 and collected.neurons["1"] == "feature"


def test_half_precision_weights():
    a = small(0).bfloat16()
    m = collect(a, small(0), DIGITS[:20], ["1"], progress=False)["1"]
    assert m.gram.dtype == torch.float64
    torch.testing.assert_close(
        m.gram[:6, :6], m.gram[6:, 6:], rtol=0.03, atol=0.03 * float(m.gram.max())
    )


def test_models_are_left_as_they_were():
    a, b = resnet(0), resnet(1)
    a.train()
    b.layer2.train()
    before = flags(a), flags(b)
    state = {k: v.clone() for k, v in a.state_dict().items()}
    collect(a, b, IMAGES, ["fc"], progress=False)
    assert (flags(a), flags(b)) == before
    assert all(torch.equal(v, state[k]) for k, v in a.state_dict().items()), (
        "batch norm counted the images: not in evaluation mode"
    )
    assert hooks(a) == hooks(b) == 0 and torch.is_grad_enabled()


def test_no_graph_is_built():
    model = Branching()
    collect(model, model, DIGITS[:4, 0, 0], ["one"], progress=False)
    assert model.grad == [False], "a model that stands for both networks runs once"


def test_an_exception_midway_leaves_no_trace():
    a, b = small(0).train(), Failing(small(1), at=1).train()
    b.net[2].eval()
    before = flags(b)
    with pytest.raises(RuntimeError, match="midway"):
        collect(a, b, DIGITS[:30], [("0", "net.0")], batch_size=10, progress=False)

    def data():
        yield DIGITS[:5]
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        collect(a, a, data(), progress=False)
    assert a.training and flags(b) == before
    assert hooks(a) == hooks(b) == 0 and torch.is_grad_enabled()


def test_different_architectures_by_pairs():
    a, b = small(0, channels=6), small(1, channels=9)
    collected = collect(a, b, DIGITS[:20], [("1", "0"), "3", ("5", "7")], progress=False)
    assert list(collected) == ["1 ~ 0", "3", "5 ~ 7"]
    assert [(m.n_x, m.n_y) for m in collected.values()] == [(6, 9), (5, 5), (12, 10)]
    whole = Moments(as_matrix(a[:2](DIGITS[:20]))[0], as_matrix(b[:1](DIGITS[:20]))[0])
    assert same({"1 ~ 0": collected["1 ~ 0"]}, {"1 ~ 0": whole})


def test_calls_are_paired_in_order():
    a, b = resnet(0), resnet(1)
    collected = collect(
        a,
        b,
        IMAGES[:6],
        [
            ("layer1.0.relu", "layer1.1.relu"),
            ("layer1.0.relu:1", "maxpool"),
            ["conv1", "conv1"],
            "conv1",
        ],
        progress=False,
    )
    assert list(collected) == [
        "conv1",
        "layer1.0.relu ~ layer1.1.relu",
        "layer1.0.relu:1 ~ maxpool",
        "layer1.0.relu:1 ~ layer1.1.relu:1",
    ]
    assert collected["conv1"].count == 6 * 16 * 16, "a layer named twice was counted twice"
    with pytest.raises(
        ValueError,
        match=r"'layer1.0.relu' ran 2 times in the first network and 'maxpool' 1 time in"
        r".*layer1.0.relu:0",
    ):
        collect(a, b, IMAGES[:6], [("layer1.0.relu", "maxpool")], progress=False)
    with pytest.raises(
        ValueError, match="'maxpool:1' did not run in a forward pass of the second network"
    ):
        collect(a, b, IMAGES[:6], [("layer1.0.relu:1", "maxpool:1")], progress=False)


def test_bad_activations_name_the_layer():
    good, bad = small(0), small(1)
    with torch.no_grad():
        bad[2].weight[3] = float("nan")
    with pytest.raises(
        ValueError, match="layer '3', batch 0: the second network: neuron 3 is nan at sample 0"
    ):
        collect(good, bad, DIGITS[:4], progress=False)
    with pytest.raises(ValueError, match="layer '3'.*: the first network: neuron 3 is nan"):
        collect(bad, good, DIGITS[:4], progress=False)
    data = DIGITS[:9].clone()
    data[7, 0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="layer '1', batch 2"):
        collect(good, good, data, batch_size=3, progress=False)


@pytest.mark.parametrize("precision", ["auto", "exact"])
@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e160])
@pytest.mark.parametrize("start", [0, 50])
def test_activations_that_cannot_be_squared_name_the_layer(precision, scale, start):
    "Also where they come after samples on which the neuron was silent."
    data = torch.randn(60, 4, dtype=torch.float64)
    data[:, 2] = 0
    data[start:, 2] = scale
    nets = [nn.Sequential(nn.Identity(), nn.Linear(4, 4, bias=False)).double() for _ in range(2)]
    with torch.no_grad():
        nets[0][1].weight[:, 2] = 0
        nets[1][1].weight.copy_(torch.eye(4))
    with pytest.raises(
        ValueError, match="layer '1': .* too large or too small to be squared.*divide"
    ):
        collect(*nets, data, ["1"], batch_size=10, progress=False, precision=precision)


def test_samples_that_differ():
    a, b = small(0), small(1)
    with pytest.raises(
        ValueError,
        match=r"layer '1 ~ 3', batch 0.*\(4, 6, 6, 6\) in the first network "
        r"and \(4, 5, 4, 4\) in the second",
    ):
        collect(a, b, DIGITS[:4], [("1", "3")], progress=False)
    # 8 x 6 and 6 x 8: as many positions, other ones
    tall = nn.Sequential(nn.Conv2d(1, 2, (1, 3)))
    wide = nn.Sequential(nn.Conv2d(1, 2, (3, 1)))
    with pytest.raises(ValueError, match="samples differ"):
        collect(tall, wide, DIGITS[:4], "conv", progress=False)
    with pytest.raises(ValueError, match="only in the first: 3, 6; only in the second: 2"):
        collect(
            small(0),
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.ReLU()),
            DIGITS[:4],
            progress=False,
        )


def test_data_that_is_none():
    model = small()
    with pytest.raises(ValueError, match="no batch"):
        collect(model, model, [], progress=False)
    with pytest.raises(TypeError, match="not str"):
        collect(model, model, "digits", progress=False)
    with pytest.raises(TypeError, match="not int"):
        batches(7)
    with pytest.raises(TypeError, match="Module, not Tensor"):
        collect(DIGITS, model, DIGITS, progress=False)
    with pytest.raises(ValueError, match="pairs of names"):
        collect(model, model, DIGITS, [("0", "1", "2")], progress=False)


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
    for handle in handles:
        handle.remove()
    assert len(runs) == 3 * 3, "each network once for each batch"
    assert list(collected) == [("a", "b"), ("a", "c"), ("b", "c")]
    for (i, j), of_pair in collected.items():
        assert same(
            of_pair, collect(models[i], models[j], DIGITS[:300], batch_size=100, progress=False)
        )
    assert list(collect_all(list(models.values()), DIGITS[:9], ["1"], progress=False)) == [
        (0, 1),
        (0, 2),
        (1, 2),
    ]


def test_cross():
    a, b = small(0), small(1, channels=7)
    with pytest.raises(ValueError, match=r"samples differ.*positions=\"pooled\""):
        collect(a, b, DIGITS[:300], "cross", progress=False)
    collected = collect(a, b, DIGITS[:300], "cross", positions="pooled", progress=False)
    assert list(collected) == ["1", "1 ~ 3", "1 ~ 6", "3 ~ 1", "3", "3 ~ 6", "6 ~ 1", "6 ~ 3", "6"]
    assert collected.pairs["3 ~ 1"] == ("3", "1") and collected.pairs["1"] == ("1", "1")
    assert [collected.positions[k] for k in ("1", "1 ~ 3", "3 ~ 1", "1 ~ 6", "6")] == [
        "all",
        "pooled to 4 x 4",
        "pooled to 4 x 4",
        "mean",
        "all",
    ]
    x, y = outputs_of(a, b, DIGITS[:300])
    grid = nn.AdaptiveAvgPool2d(4)
    assert same(
        {k: collected[k] for k in ("1", "3 ~ 1", "1 ~ 6")},
        {
            "1": Moments(*(as_matrix(z["1"])[0] for z in (x, y))),
            "3 ~ 1": Moments(as_matrix(x["3"])[0], as_matrix(grid(y["1"].double()))[0]),
            "1 ~ 6": Moments(x["1"].double().mean((2, 3)), y["6"]),
        },
    )


def test_sampled_positions():
    a, b = small(0), small(1)
    collected = collect(
        a, b, DIGITS[:50], positions=Sampled(500, 3, seed=5), batch_size=16, progress=False
    )
    assert [len(draws) for draws in collected.draws.values()] == [3, 3, 3]
    assert [collected[k].count for k in collected] == [500, 500, 50] and collected.positions[
        "1"
    ] == "sampled, 3 x 500, seed 5"
    x, y = outputs_of(a, b, DIGITS[:50])
    for layer in collected:
        X, Y = (as_matrix(z[layer])[0] for z in (x, y))
        for draw, m in enumerate(collected.draws[layer]):
            chosen = Sampled(500, 3, seed=5).indices(draw, len(X))
            assert len(set(chosen)) == m.count and same(
                {layer: m}, {layer: Moments(X[chosen], Y[chosen])}
            )
    assert not torch.equal(*(m.gram for m in collected.draws["1"][:2]))
    with pytest.raises(ValueError, match="length is known"):
        collect(a, b, iter([DIGITS[:9]]), positions="sampled", progress=False)
    with pytest.raises(ValueError, match="positions is 'some'"):
        collect(a, b, DIGITS, positions="some", progress=False)


# interrupted passes


class Breaking(Dataset):
    "Digits whose reading fails once `at` of them were read."

    def __init__(self, at):
        self.at = at
        self.read = 0

    def __len__(self):
        return 300

    def __getitem__(self, i):
        if self.read == self.at:
            raise OSError("the disk went away")
        self.read += 1
        return DIGITS[i]


@pytest.mark.parametrize(
    "options",
    [{}, {"precision": "exact"}, {"positions": Sampled(400, 2)}],
    ids=["auto", "exact", "sampled"],
)
def test_an_interrupted_pass_resumes(tmp_path, monkeypatch, options):
    monkeypatch.setattr(collecting, "SHARD", 4)
    a, b = small(0).train(), small(1)
    path, seen = tmp_path / "sums.safetensors", []
    options |= {"batch_size": 20, "progress": False}
    with pytest.raises(OSError, match="went away"):
        collect(a, b, Breaking(190), resume=path, **options)
    assert a.training and hooks(a) == hooks(b) == 0
    assert path.exists() and [p.name for p in tmp_path.iterdir()] == [path.name]
    handle = a.register_forward_pre_hook(lambda *_: seen.append(1))
    resumed = collect(a, b, Breaking(None), resume=path, **options)
    handle.remove()
    assert len(seen) == 1 + 15 - 8, (
        "the first batch, and what came after eight batches, two shards of four"
    )
    whole = collect(a, b, DIGITS[:300], **options)
    assert same(resumed, whole, 1e-6) and all(
        resumed[k].route == whole[k].route and torch.equal(resumed[k].alike, whole[k].alike)
        for k in whole
    )
    assert not path.exists()


def test_a_pass_over_many_networks_resumes(tmp_path, monkeypatch):
    "More than ten parts wait for the first decision, and each goes back to its own network."
    nets = [
        nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU())
        for _ in range(12)
    ]
    path, whole = tmp_path / "sums", collect_all(nets, DIGITS[:300], batch_size=20, progress=False)
    monkeypatch.setattr(collecting, "SHARD", 1)
    with pytest.raises(OSError, match="went away"):
        collect_all(nets, Breaking(40), batch_size=20, progress=False, resume=path)
    again = collect_all(nets, Breaking(None), batch_size=20, progress=False, resume=path)
    for pair in whole:
        assert same(again[pair], whole[pair])


@pytest.mark.parametrize(
    "change, word",
    [
        ({"preprocess": lambda x: -x}, "first batch"),
        ({"data": DIGITS[:310]}, "first batch, number of inputs"),
    ],
)
def test_a_pass_over_other_inputs_is_refused(tmp_path, change, word):
    path = tmp_path / "sums"
    with pytest.raises(OSError, match="went away"):
        collect(
            small(0),
            small(1),
            Breaking(150),
            batch_size=20,
            progress=False,
            resume=path,
            positions="sampled",
        )
    options = {"data": Breaking(None)} | change
    with pytest.raises(ValueError, match=rf"left by another pass \({word} differ"):
        collect(
            small(0),
            small(1),
            batch_size=20,
            progress=False,
            resume=path,
            positions="sampled",
            **options,
        )


def test_networks_that_change_their_inputs():
    "The other network, and the caller, have the data as they were."
    rectifying, plain = (
        nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 6), nn.ReLU()),
        nn.Sequential(nn.Linear(8, 6), nn.ReLU()),
    )
    for data in (torch.randn(40, 8), torch.randn(40, 8).numpy()):
        before = data.copy() if isinstance(data, np.ndarray) else data.clone()
        found = collect(rectifying, plain, data, [("2", "1")], progress=False)["2 ~ 1"]
        assert (data == before).all()
        data = torch.as_tensor(data)
        with torch.no_grad():
            assert same({"2": found}, {"2": Moments(rectifying[1:](data.relu()), plain(data))})
    with pytest.raises(
        ValueError, match="preprocess of the first network changes the batch in place"
    ):
        collect(plain, plain, torch.randn(40, 8), progress=False, preprocess=lambda x: x.sub_(0.5))


def test_misspelt_keys():
    nets = small(0), small(1)
    with pytest.raises(
        ValueError, match="preprocess has 'a', and the networks are called 'first', 'second'"
    ):
        collect(*nets, DIGITS[:8], progress=False, preprocess={"a": torch.neg})
    with pytest.raises(
        ValueError, match="neurons has 'cnov', which fits none of the layers: 0, 1,"
    ):
        collect(*nets, DIGITS[:8], progress=False, neurons={"cnov": "unit"})
    with pytest.raises(TypeError, match=r"neurons has \('0', '1'\): name layers with text"):
        collect(*nets, DIGITS[:8], progress=False, neurons={("0", "1"): "unit"})
    with pytest.raises(ValueError, match="one of unit, channel, feature, not 'features'"):
        as_matrix(torch.ones(2, 3, 4), "features")
    with pytest.raises(
        ValueError,
        match="'conv' stands for 2 layers in the first network .0, 2., "
        "'relu' for 3 in the second network .1, 3, 6.: pair them by name",
    ):
        collect(*nets, DIGITS[:8], [("conv", "relu")], progress=False)


def test_a_loader_that_shuffles_is_not_shared():
    "Every process would draw another order, in whatever way the loader shuffles."
    data = TensorDataset(torch.arange(10))
    for loader in (
        DataLoader(data, 2, shuffle=True),
        DataLoader(data, batch_size=None, shuffle=True),
        DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 5, False)),
    ):
        with pytest.raises(ValueError, match="RandomSampler.*shuffle=False"):
            distributed.check_stream(loader)
    distributed.check_stream(
        DataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), 5, False))
    )


def test_what_tells_the_axis():
    """A batch norm, with nothing before it, has its neurons second; an LSTM last.

    The LSTM has them last even where the sizes would fit the other way.
    """
    first = nn.Sequential(nn.BatchNorm1d(12), nn.ReLU())
    found = collect(first, first, torch.randn(5, 12, 100), "all", progress=False)
    assert set(found.neurons.values()) == {"channel"} and found["1"].n_x == 12

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.lstm = nn.Conv1d(3, 7, 1), nn.LSTM(7, 5, batch_first=True)

        def forward(self, x):
            return self.lstm(self.conv(x).movedim(1, 2))[0]

    found = collect(
        Recurrent(), Recurrent(), torch.randn(4, 3, 7), ["conv", "lstm"], progress=False
    )
    assert found.neurons == {"conv": "channel", "lstm": "feature"} and found["lstm"].n_x == 5


def test_the_size_of_any_batch():
    X, words = torch.ones(3, 4), ["a", "b", "c"]
    for batch in (
        X,
        X.numpy(),
        (X, words),
        [X],
        {"x": X, "mask": X},
        ({"x": X, "mask": X}, X),
        {"texts": words},
        [words],
        words,
    ):
        assert inputs_in(batch) == 3
    with pytest.raises(ValueError, match="holds no batch"):
        collect(small(0), small(1), DIGITS[:0], progress=False)


def test_draws_are_let_go():
    collect(small(0), small(1), DIGITS[:30], progress=False, positions=Sampled(50, draws=2))
    gc.collect()
    assert not any(type(thing) is passes.Pass for thing in gc.get_objects())


def test_what_another_process_wants_exactly_is_collected_again():
    "Also where a pair has two calls of one module."
    models = {"a": resnet(0), "b": resnet(1)}
    options = {
        "layers": ["layer1.0.relu"],
        "progress": False,
        "cross": True,
        "preprocess": {"a": torch.neg},
    }
    request = Request(**options)
    laid = lay_out(models, IMAGES, request)
    held = run_through(laid, request)
    before = dict(held.collected()["a", "b"])
    assert len(before) == 4 and {m.route for m in before.values()} == {"gram"}
    agreed = [distributed.Told(group.pairs, False) for group in held.all_groups()]
    distributed.once_more(models, IMAGES, request, held, distributed.late_pairs(held, agreed))
    again = held.collected()["a", "b"]
    assert {m.route for m in again.values()} == {"root"} and same(again, before)


def test_the_file_of_another_pass_is_refused(tmp_path):
    a, b = small(0), small(1)
    path = tmp_path / "sums.safetensors"
    with pytest.raises(OSError):
        collect(a, b, Breaking(60), batch_size=20, resume=path, progress=False)
    before = path.read_bytes()
    for other, data, options, what in (
        (small(2), Breaking(None), {}, "weights"),
        (b, DIGITS[1:301], {}, "first batch"),
        (b, Breaking(None), {"layers": "conv"}, "layers"),
        (b, Breaking(None), {"precision": "exact"}, "precision"),
        (b, Breaking(None), {"batch_size": 10}, "first batch"),
    ):
        with pytest.raises(
            ValueError,
            match=rf"sums.safetensors was left by another pass \({what} differ\): delete it",
        ):
            collect(
                a, other, data, **{"batch_size": 20, "resume": path, "progress": False} | options
            )
    assert path.read_bytes() == before
    path.write_bytes(before[:-10])
    with pytest.raises(ValueError, match="damaged"):
        collect(a, b, Breaking(None), batch_size=20, resume=path, progress=False)


def test_a_full_disk(tmp_path, monkeypatch):
    "Before the pass has begun an error; later a warning, and the pass goes on."
    a, b = small(0), small(1)
    saves = []
    monkeypatch.setattr(collecting, "SHARD", 2)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write"):
        collect(
            a, b, DIGITS[:100], batch_size=20, resume=tmp_path / "file" / "sums", progress=False
        )

    def full(path, *args, **about):
        saves.append(about["batch"])
        if len(saves) == 2:
            raise OSError(f"cannot write {path}: No space left on device")
        save_tensors(path, *args, **about)

    monkeypatch.setattr(passes, "save_tensors", full)
    with pytest.warns(SubmatchWarning, match="No space left.*The pass goes on"):
        found = collect(a, b, DIGITS[:100], batch_size=20, resume=tmp_path / "sums", progress=False)
    assert saves == [1, 2, 4] and same(found, collect(a, b, DIGITS[:100], progress=False))


def test_a_generator_is_skipped_batch_by_batch(tmp_path):
    a, b = small(0), small(1)
    path = tmp_path / "sums"

    def data(fail):
        for i, batch in enumerate(DIGITS[:100].split(20)):
            if fail and i == 3:
                raise RuntimeError("midway")
            yield batch

    with pytest.raises(RuntimeError):
        collect(a, b, data(True), resume=path, progress=False)
    assert same(
        collect(a, b, data(False), resume=path, progress=False),
        collect(a, b, DIGITS[:100], progress=False),
    )


def test_progress(capsys):
    collect(small(0), small(1), DIGITS[:100], batch_size=25)
    assert re.search(
        r"collecting: 100%.*100/100 \[\d\d:\d\d<00:00, +[\d.]+k? inputs/s\]",
        capsys.readouterr().err,
    )


# names and neurons in other people's models


def test_patterns_and_mixed_lists():
    model = resnet()
    assert layer_names(model, "layer3.*.relu") == ["layer3.0.relu", "layer3.1.relu"]
    assert layer_names(
        model, ["layer3.?.conv1", "linear", "layer4.1.relu:1", "layer4.1.re*:1"]
    ) == ["layer3.0.conv1", "layer3.1.conv1", "fc", "layer4.1.relu:1"]
    with pytest.raises(KeyError, match=r"no layer 'layer9.\*' in ResNet"):
        layer_names(model, "layer9.*")
    with pytest.raises(KeyError, match=r"no module of kind 'conv' in Linear.*its layers: none"):
        layer_names(nn.Linear(2, 2), "conv")
    a, b = resnet(0), resnet(1)
    assert (
        len(collect(a, b, IMAGES[:4], progress=False)) == 17
        and len(collect(a, b, IMAGES[:4], "layer?.*.relu", progress=False)) == 16
    )
    assert list(
        collect(a, b, IMAGES[:4], [("layer1.*.conv1", "layer1.*.conv2")], progress=False)
    ) == ["layer1.0.conv1 ~ layer1.0.conv2", "layer1.1.conv1 ~ layer1.1.conv2"]


class Functional(nn.Module):
    "Two activations of which one is a module."

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(64, 8), nn.Linear(8, 8)
        self.act = nn.ReLU()

    def forward(self, x):
        return nn.functional.gelu(self.two(self.act(self.one(x)))).relu()


def test_functional_activations_are_collected():
    a, b = Functional(), Functional()
    x = DIGITS[:40].flatten(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = collect(a, b, x, progress=False)
    assert list(found) == ["act", ":gelu", ":relu"] and hooks(a) == hooks(b) == 0
    with torch.no_grad():
        X, Y = (nn.functional.gelu(net.two(net.act(net.one(x)))) for net in (a, b))
        assert same(
            {key: found[key] for key in (":gelu", ":relu")},
            {":gelu": Moments(X, Y), ":relu": Moments(X.relu(), Y.relu())},
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collect(a, b, x, ["act", "two"], progress=False)
        collect(resnet(0), resnet(1), IMAGES[:4], progress=False)
    with pytest.raises(
        KeyError,
        match=r"no module or function of kind 'activation' in Sequential.*linear \(1\), all \(1\)",
    ):
        layer_names(nn.Sequential(nn.Linear(2, 2)))


def test_convolutions_in_one_dimension():
    "Channels of a convolution and what follows it, features of a linear layer; both of three axes."

    def model():
        return nn.Sequential(
            nn.Conv1d(8, 5, 3),
            nn.ReLU(),
            nn.Conv1d(5, 7, 1),
            nn.BatchNorm1d(7),
            nn.GELU(),
            nn.Linear(6, 4),
            nn.ReLU(),
        )

    a, b = model(), model()
    x = DIGITS[:50, 0]
    collected = collect(a, b, x, "all", progress=False)
    assert collected.neurons == {
        "0": "channel",
        "1": "channel",
        "2": "channel",
        "3": "channel",
        "4": "channel",
        "5": "feature",
        "6": "feature",
    }
    assert (
        collected["1"].n_x == 5
        and collected["1"].count == 50 * 6
        and collected["6"].n_x == 4
        and collected["6"].count == 50 * 7
    )
    chosen = collect(a, b, x, ["1", "6"], neurons={"1": "feature", "6": "unit"}, progress=False)
    assert chosen.neurons == {"1": "feature", "6": "unit"} and (
        chosen["1"].n_x,
        chosen["6"].n_x,
        chosen["6"].count,
    ) == (6, 28, 50)
    with pytest.raises(ValueError, match="a neuron is one of unit, channel, feature, not 'pixel'"):
        collect(a, b, x, "all", neurons="pixel", progress=False)


def test_identical_neurons_are_remembered():
    "Over batches in which they are silent, too; and no longer when one sample tells them apart."
    net = nn.Sequential(nn.Linear(64, 6), nn.ReLU())
    with torch.no_grad():
        net[0].weight[3], net[0].bias[3] = net[0].weight[1], net[0].bias[1]
        net[0].weight[4:6], net[0].bias[4:6] = 0, -1
    other, x = nn.Sequential(nn.Linear(64, 6), nn.ReLU()), DIGITS[:90].flatten(1)
    assert collect(net, other, x, batch_size=30, progress=False)["1"].alike.tolist() == [
        0,
        1,
        2,
        1,
        *range(4, 12),
    ]
    groups = torch.zeros(4, dtype=torch.int64)
    for Z in (
        torch.tensor([[1.0, 1], [1, 1], [0, 0], [0, 0]]),
        torch.zeros(4, 2),
        torch.tensor([[0.0, 2], [0, 2], [1, 1], [0, 0]]),
    ):
        groups = sums.still_alike(groups, Z.double())
    assert groups.tolist() == [0, 0, 2, 3]


@pytest.mark.parametrize("seed", range(20))
def test_identical_neurons_are_those_with_one_history(seed):
    "On small integers, with silent neurons and both zeros, against a comparison of all with all."
    rng = torch.Generator().manual_seed(seed)
    for _ in range(20):
        neurons, chunks, samples = torch.randint(1, 8, (3,), generator=rng).tolist()
        Z = torch.randint(-1, 2, (chunks, neurons, samples), generator=rng).double()
        Z *= (torch.rand(chunks, neurons, 1, generator=rng) > 0.4) * torch.sign(Z + 0.5)
        alike = torch.zeros(neurons, dtype=torch.int64)
        for k in range(chunks):
            alike = sums.still_alike(alike, Z[k])
        history = [Z[:, n].flatten().tolist() for n in range(neurons)]
        assert alike.tolist() == [history.index(row) for row in history]


def test_compiled_and_wrapped_models():
    a, b = small(0), small(1)
    plain = collect(a, b, DIGITS[:40], progress=False)
    compiled = torch.compile(small(0), backend="eager")
    compiled(DIGITS[:2])
    assert layer_names(compiled) == ["1", "3", "6"]
    with capture(compiled, "relu") as outputs:
        compiled(DIGITS[:2])
    assert list(outputs) == ["1", "3", "6"]
    inner = small(1)
    inner[2] = torch.compile(inner[2], backend="eager")
    assert same(collect(compiled, nn.DataParallel(inner), DIGITS[:40], progress=False), plain)
    assert layer_names(inner, "conv") == ["0", "2"]


def test_autocast_and_mixed_precision():
    a, b = small(0), small(1)
    plain = collect(a, b, DIGITS[:60], progress=False)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = collect(a, b, DIGITS[:60], progress=False)
    assert (
        same(mixed, plain, 0.03)
        and not same(mixed, plain, 1e-5)
        and not torch.is_autocast_enabled("cpu")
    )


def test_batches_of_another_size():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small()

        def forward(self, x):
            return self.net(x[::2])

    with pytest.raises(
        ValueError,
        match=r"layer '1 ~ net.1', batch 0: the samples differ: "
        r"outputs of shape \(8, .* in the first network and \(4,",
    ):
        collect(small(), Half(), DIGITS[:8], [("1", "net.1")], progress=False)


def test_preprocessing_of_each_network():
    a, b = small(0), small(1)
    halved = collect_all(
        {"a": a, "b": b},
        DIGITS[:40] * 2,
        progress=False,
        preprocess={"a": lambda x: x / 2, "b": lambda x: x / 2},
    )["a", "b"]
    assert same(halved, collect(a, b, DIGITS[:40], progress=False))
    assert same(
        collect(a, b, [(DIGITS[:40], 0)], progress=False, preprocess=lambda batch: batch[0]), halved
    )


def test_models_that_are_none():
    for models, error, match in (
        (small(), TypeError, "models must be a list"),
        ([small()], ValueError, "two networks or more, not 1"),
        ({"a": small(), "b": 3}, TypeError, "Module, not int"),
    ):
        with pytest.raises(error, match=match):
            collect_all(models, DIGITS[:4], progress=False)


# real models


def pair(make):
    nets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        nets.append(make())
    return nets


@pytest.mark.parametrize(
    "make, layers, found, neuron, count",
    [
        (lambda: resnet18(num_classes=10), "relu", 17, "channel", 8),
        pytest.param(
            lambda: vgg16_bn(num_classes=10).features,
            "relu",
            13,
            "channel",
            8 * 4,
            marks=pytest.mark.long,
        ),
        pytest.param(
            lambda: vit_b_16(image_size=32, num_classes=10),
            ["encoder.layers.*.ln_2", "encoder.layers.encoder_layer_11.mlp.1"],
            13,
            "feature",
            8 * 5,
            marks=pytest.mark.long,
        ),
    ],
    ids=["resnet18", "vgg16_bn", "vit_b_16"],
)
def test_torchvision(make, layers, found, neuron, count):
    "Layers all through a network, in one pass; the last is what a pass of one's own gives."
    nets = pair(make)
    collected = collect(*nets, IMAGES[:8], layers, batch_size=3, progress=False)
    last = list(collected)[-1]
    assert (
        len(collected) == found
        and set(collected.neurons.values()) == {neuron}
        and collected[last].count == count
    )
    a, b = outputs_of(*nets, IMAGES[:8], [last])
    assert same(
        {last: collected[last]}, {last: Moments(as_matrix(a[last])[0], as_matrix(b[last])[0])}, 1e-4
    )


@pytest.mark.long
@needs_cifar
def test_torchvision_images():
    "CIFAR-10 as anyone would read it: a folder of images, a transform, a loader."
    images = Subset(ImageFolder(CIFAR / "test", transforms.ToTensor()), range(0, 10_000, 100))
    collected = collect(
        resnet(0),
        resnet(1),
        DataLoader(images, batch_size=32),
        ["relu", "layer4.1.relu"],
        progress=False,
    )
    assert (
        collected["relu"].count == 100 * 16 * 16
        and collected["layer4.1.relu:1"].count == 100
        and min(collected["relu"].square) > 0
    )


def test_torchvision_with_in_place_successors():
    "Batch-normalised VGG: the batch norm's outputs are rectified in place by the next module."
    nets = pair(lambda: make_layers(cfgs["D"], batch_norm=True)[:7])  # the first layers of vgg16_bn
    found = collect(*nets, IMAGES[:6], ["1", "2"], progress=False)
    a, b = outputs_of(*nets, IMAGES[:6], ["1"])
    assert (
        same({"1": found["1"]}, {"1": Moments(as_matrix(a["1"])[0], as_matrix(b["1"])[0])})
        and (a["1"] < 0).any()
    )
    assert hooks(nets[0]) == hooks(nets[1]) == 0


def test_torchvision_channels_last():
    "A ConvNeXt has its channels first, and in its blocks last."
    nets = pair(lambda: convnext_tiny(num_classes=10).features[:2])
    collected = collect(
        *nets, IMAGES[:8], ["0.0", "1.0.block.0", "1.0.block.4", "1.0"], progress=False
    )
    assert list(collected.neurons.values()) == ["channel", "channel", "feature", "channel"]
    assert [m.n_x for m in collected.values()] == [96, 96, 384, 96] and {
        m.count for m in collected.values()
    } == {8 * 64}


@pytest.mark.long
def test_timm():
    timm = pytest.importorskip("timm", reason="no timm: pip install timm to test its models")
    nets = pair(lambda: timm.create_model("resnet10t", num_classes=10)) + pair(
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=10)
    )
    collected = collect(*nets[:2], IMAGES[:8], progress=False)
    assert (
        len(collected) > 8
        and set(collected.neurons.values()) == {"channel"}
        and collected["layer1.0.act1"].count == 8 * 64
    )
    mixed = collect(
        nets[0],
        nets[2],
        IMAGES[:8],
        [("layer2.0.act1", "blocks.1.mlp.act")],
        positions="mean",
        progress=False,
    )
    assert (
        mixed.neurons == {"layer2.0.act1 ~ blocks.1.mlp.act": "channel ~ feature"}
        and mixed["layer2.0.act1 ~ blocks.1.mlp.act"].count == 8
    )


@pytest.mark.long
def test_transformers():
    "Dict batches with more than the model takes, outputs that are dataclasses, own activations."
    transformers = pytest.importorskip(
        "transformers", reason="no transformers: pip install transformers to test its models"
    )
    config = transformers.BertConfig(
        vocab_size=17,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=40,
        max_position_embeddings=64,
    )
    nets = pair(lambda: transformers.BertModel(config))
    tokens = (DIGITS[:30, 0].flatten(1) * 16).long()
    data = [
        {"input_ids": t, "attention_mask": torch.ones_like(t), "digit": 3} for t in tokens.split(10)
    ]
    collected = collect(*nets, data, progress=False)
    inner = [f"encoder.layer.{i}.intermediate.intermediate_act_fn" for i in (0, 1)]
    assert list(collected) == [*inner, "pooler.activation"]
    assert list(collected.neurons.values()) == ["feature", "feature", "unit"]
    assert all(collected[k].count == 30 * 64 and collected[k].n_x == 40 for k in inner)
    pooled = collected["pooler.activation"]  # a tanh, once a text
    assert pooled.count == 30 and pooled.n_x == 24
    whole = collect(*nets, data, ["encoder"], progress=False)["encoder"]

    def hidden(net):
        return torch.cat([net(input_ids=t).last_hidden_state for t in tokens.split(10)])

    with evaluating(*nets):
        X, Y = map(hidden, nets)
    assert same({"encoder": whole}, {"encoder": Moments(X.flatten(0, 1), Y.flatten(0, 1))}, 1e-4)


class Streamed:
    "Batches of 20, of which reading breaks off after some."

    def __init__(self, data, batches, at=None):
        self.data, self.batches, self.at = data, batches, at

    def __iter__(self):
        for k in range(self.batches):
            if k == self.at:
                raise OSError("the disk went away")
            yield self.data[20 * k : 20 * k + 20]


def others_of(data):
    "Data with the same first batch and the same length."
    changed, swapped, last = data.clone(), data.clone(), data.clone()
    changed[25] += 1
    swapped[[30, 31]] = swapped[[31, 30]]
    last[159, -1, -1, -1] += 1e-3
    return {"changed": changed, "swapped": swapped, "last that was read": last}


@pytest.mark.parametrize("other", ["changed", "swapped", "last that was read", "shorter"])
def test_a_pass_over_other_inputs_after_the_first_batch_is_refused(other, tmp_path, monkeypatch):
    "All that was read before an interruption is held to a digest."
    monkeypatch.setattr(collecting, "SHARD", 4)
    path, options = tmp_path / "sums", {"progress": False}
    with pytest.raises(OSError, match="went away"):
        collect(small(0), small(1), Streamed(DIGITS, 15, 9), resume=path, **options)
    again = Streamed(others_of(DIGITS[:300])[other], 15) if other != "shorter" else None
    with pytest.raises(ValueError, match="had read other data after its first batch"):
        collect(small(0), small(1), again or Streamed(DIGITS, 5), resume=path, **options)
    resumed = collect(small(0), small(1), Streamed(DIGITS, 15), resume=path, **options)
    assert same(resumed, collect(small(0), small(1), Streamed(DIGITS, 15), **options), 1e-6)


@pytest.mark.parametrize("other", ["changed", "swapped"])
def test_numbered_data_are_held_to_their_digest_too(other, tmp_path, monkeypatch):
    monkeypatch.setattr(collecting, "SHARD", 4)

    class Digits(Breaking):
        def __init__(self, at, data):
            super().__init__(at)
            self.data = data

        def __getitem__(self, i):
            super().__getitem__(i)
            return self.data[i]

    options = {"batch_size": 20, "progress": False, "resume": tmp_path / "sums"}
    data = DIGITS[:300]
    order = Reading(data).order.inputs  # in which they are read
    with pytest.raises(OSError, match="went away"):
        collect(small(0), small(1), Digits(190, data), **options)
    changed = data.clone()
    place = order[25:27]
    changed[place] = changed[place[::-1].copy()] if other == "swapped" else changed[place] + 1
    with pytest.raises(ValueError, match="had read other data after its first batch"):
        collect(small(0), small(1), Digits(None, changed), **options)


ACTIVATIONS = {"other": nn.Tanh, "slope": lambda: nn.LeakyReLU(1e-6), "function": None}


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_a_pass_with_another_activation_is_refused(kind, tmp_path):
    "The weights are the same, and so is the data."

    class Bent(nn.Linear):
        def forward(self, x):
            return super().forward(x).abs()

    def net(other):
        torch.manual_seed(0)
        first = Bent(64, 9) if other and kind == "function" else nn.Linear(64, 9)
        bent = ACTIVATIONS[kind]() if other and ACTIVATIONS[kind] else nn.ReLU()
        return nn.Sequential(nn.Flatten(), first, bent)

    options = {"batch_size": 20, "progress": False, "resume": tmp_path / "sums"}
    with pytest.raises(OSError, match="went away"):
        collect(net(False), net(False), Breaking(150), ["2"], **options)
    with pytest.raises(ValueError, match="left by another pass .*modules"):
        collect(net(True), net(False), Breaking(None), ["2"], **options)
