"""What users bring: data in all its forms, outputs of every kind, weights anywhere, state.

A batch is run once; what cannot be compared is refused by name, alike everywhere.
"""

import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import (
    ChainDataset,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

from submatch_nb import (
    cca,
    cka,
    compare,
    compare_activations,
    epsilon_profile,
    linear_regression,
    maximum_match,
    procrustes,
)
from submatch_nb.engine import room
from submatch_nb.engine.feeding import Place, inputs_in
from submatch_nb.engine.inputs import SubmatchWarning, tensor_of
from submatch_nb.engine.moments import Moments
from submatch_nb.engine.names import glob
from submatch_nb.engine.shuffling import sums_bytes
from submatch_nb.layers import batches, capture, collect, collect_all, evaluating, feed, layer_names

PLAIN = {"progress": False, "null": 0, "groups": 0}
X = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))


def pair(make):
    "Two networks that a function makes, from two seeds."
    nets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        nets.append(make())
    return nets


def perceptron():
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU())


def expected(nets, x=X):
    with evaluating(*nets):
        return Moments(*(net(x).flatten(0, -2) for net in nets))


def assert_same(layer, moments):
    assert layer.count == moments.count
    scale = float(moments.gram.abs().max())
    torch.testing.assert_close(layer.gram, moments.gram, rtol=1e-4, atol=1e-5 * scale)


# data


class Duck:
    "Has the methods of a map-style data set, and nothing of its class."

    def __len__(self):
        return len(X)

    def __getitem__(self, k):
        return X[k], k % 3


class Talking(Duck):
    "One that can be iterated over, too: its items are single inputs."

    def __iter__(self):
        return (self[k] for k in range(len(self)))


class Records(Talking):
    "Its items are dicts of Python lists, as a library of texts has them."

    def __getitem__(self, k):
        return {"input": X[k].tolist(), "label": k}


class Stream(IterableDataset):
    def __iter__(self):
        return iter(X)


def read_only():
    array = X.numpy().copy()
    array.flags.writeable = False
    return array


DATA = {
    "duck": Duck(),
    "duck that is iterable": Talking(),
    "records of lists": Records(),
    "stream": Stream(),
    "records": [{"input": row.tolist()} for row in X],
    "frame": pd.DataFrame(X.numpy()),
    "frame that allows for missing values": pd.DataFrame(X.numpy()).convert_dtypes(),
    "lists": X.tolist(),
    "big-endian": X.numpy().astype(">f4"),
    "reversed": X.numpy()[::-1].copy()[::-1],
    "every second row": np.repeat(X.numpy(), 2, 0)[::2],
    "long double": X.numpy().astype(np.longdouble),
    "nothing masked": np.ma.masked_array(X.numpy()),
    "read only": read_only(),
    "a scalar first": [{"t": torch.tensor(1.0), "n": 3, "input": part} for part in X.split(9)],
    "tuple of batches": X.split(11),
    "with labels": TensorDataset(X, torch.arange(40)),
    "column-major": np.asfortranarray(X.numpy()),
}


@pytest.mark.parametrize("name", DATA)
def test_data_as_people_have_it(name):
    nets = pair(perceptron)
    for null in (0, 1):
        found = collect(*nets, DATA[name], progress=False, null=null, batch_size=7)["1"]
        assert_same(found, expected(nets))


def test_lists_keep_their_digits():
    values = (1 + 1e-12 * np.arange(24).reshape(12, 2)).tolist()
    assert tensor_of(values, "X").dtype == torch.float64
    exact = compare_activations(values, np.array(values), progress=False)
    assert exact.profiles["a ~ b"].x.max() == 0
    (batch,) = batches(values, 20)
    assert batch.dtype == torch.float64


@pytest.mark.parametrize(
    "data, error, match",
    [
        (np.ma.masked_less(X.numpy(), -1), ValueError, "data has masked values"),
        (scipy.sparse.csr_array(X.numpy()), TypeError, r"data is a sparse array: .*toarray"),
        (X.to_sparse(), TypeError, r"data is a sparse tensor: .*to_dense"),
        (np.array([["a", "b"]]), TypeError, "data holds <U1, not numbers"),
        ({"input": X}, TypeError, "not dict"),
        ("text", TypeError, "not str"),
        ([Image.new("L", (3, 4))] * 3, TypeError, "a batch holds Image, which no network takes"),
        (["a text", "another"], TypeError, "a batch holds str, which no network takes"),
        ([{"input": [1.0, 2.0]}, {"input": [1.0]}], ValueError, "cannot be put together"),
        ([{"input": [[1.0, 2.0], [1.0]]}], ValueError, "different lengths: pad them"),
        (list(X), ValueError, "single inputs in place of batches"),
    ],
)
def test_data_that_cannot_be_used(data, error, match):
    with pytest.raises(error, match=match):
        collect(*pair(perceptron), data, **PLAIN)


def test_a_data_set_of_images_without_a_transform():
    class Pictures(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, k):
            return Image.new("L", (3, 4), k), k

    nets = pair(perceptron)
    with pytest.raises(ValueError, match="cannot be put together.*tensors of one size"):
        collect(*nets, Pictures(), **PLAIN)
    pictures = [picture for picture, _ in (Pictures()[k] for k in range(4))]

    def read(pictures):
        return torch.stack([torch.tensor(np.array(p)).flatten().float() for p in pictures])

    found = collect(*nets, pictures, preprocess=read, batch_size=3, **PLAIN)["1"]
    assert_same(found, expected(nets, read(pictures)))


class Two(nn.Module):
    "Needs two inputs."

    def __init__(self):
        super().__init__()
        self.left, self.right, self.relu = nn.Linear(12, 8), nn.Linear(5, 8), nn.ReLU()

    def forward(self, left, right, scale=None):
        return self.relu(self.left(left) + self.right(right))


def test_several_inputs():
    nets, right = pair(Two), torch.randn(40, 5)
    with evaluating(*nets):
        moments = Moments(*(net(X, right) for net in nets))
    labels = torch.arange(40)
    for data in (
        TensorDataset(X, right, labels),
        [{"left": X, "right": right, "labels": labels}],
        [(X[:30], right[:30]), [X[30:], right[30:]]],
    ):
        assert_same(collect(*nets, data, **PLAIN)["relu"], moments)
    with pytest.raises(TypeError, match="Two takes 2 inputs, and a batch holds 1"):
        collect(*nets, TensorDataset(X), **PLAIN)


class Detector(nn.Module):
    "Takes a list of images of their own sizes."

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Linear(6, 4)

    def forward(self, images, targets=None):
        batch = images[0].new_zeros(len(images), 3, 9, 9)
        for k, image in enumerate(images):
            batch[k, :, : image.shape[1], : image.shape[2]].copy_(image)
        return self.head(self.relu(self.conv(batch)).mean((2, 3)))


def test_lists_of_images():
    images = [torch.rand(3, 5 + k % 4, 6) for k in range(12)]
    nets = pair(Detector)
    assert inputs_in((images, None)) == inputs_in({"images": images}) == 12
    with evaluating(*nets):
        moments = Moments(*(net(images) for net in nets))
    for data in ([(images[:5], None), (images[5:], None)], [{"images": images}]):
        found = collect(*nets, data, ["conv", "relu", "head"], progress=False)
        assert_same(found["head"], moments)
        assert found["relu"].count == 12 * 49 and found.neurons["relu"] == "channel"


# outputs


def made(function):
    "A module that puts out what a function makes of its input."

    class Made(nn.Module):
        def forward(self, y):
            return function(y)

    def net():
        return Around(Made())

    return net


class Around(nn.Module):
    "Runs a module on the side."

    def __init__(self, inner):
        super().__init__()
        self.fc, self.inner, self.head = nn.Linear(12, 12), inner, nn.Linear(12, 4)

    def forward(self, x):
        hidden = self.fc(x)
        self.inner(hidden)
        return self.head(hidden)


def ragged(y):
    return [row[None].expand(k % 3 + 1, -1) for k, row in enumerate(y)]


def packed(y):
    lengths = torch.arange(len(y)) % 3 + 1
    return pack_padded_sequence(y.view(-1, 3, 4), lengths, batch_first=True, enforce_sorted=False)


USED = {
    "quantised": (lambda y: torch.quantize_per_tensor(y, 0.01, 0, torch.qint32), 40, 12),
    "bool": (lambda y: y > 0, 40, 12),
    "integer": (lambda y: (9 * y).int(), 40, 12),
    "float8": (lambda y: y.to(torch.float8_e4m3fn), 40, 12),
    "half": (lambda y: y.half(), 40, 12),
    "of MKL-DNN": (lambda y: y.to_mkldnn(), 40, 12),
    "a loss before it": (lambda y: (y.mean(), y), 40, 12),
    "None before it": (lambda y: {"a": None, "b": y}, 40, 12),
    "tuples in tuples": (lambda y: ((y, 1), "text"), 40, 12),
    "nested": (lambda y: torch.nested.nested_tensor(ragged(y)), 79, 12),
    "jagged": (lambda y: torch.nested.nested_tensor(ragged(y), layout=torch.jagged), 79, 12),
    "packed": (packed, 79, 4),
}


@pytest.mark.parametrize("name", USED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_outputs_that_are_used(name):
    function, count, neurons = USED[name]
    nets = pair(made(function))
    found = collect(*nets, X, ["inner"], **PLAIN)["inner"]
    assert (found.count, found.n_x) == (count, neurons)
    hidden = nets[0].fc(X).detach()
    if count == 40:
        torch.testing.assert_close(
            found.gram[:12, :12],
            (h := (hidden > 0 if name == "bool" else hidden).double()).T @ h
            if name != "integer"
            else (h := (9 * hidden).int().double()).T @ h,
            rtol=0.1,
            atol=2.0,
        )
    else:
        rows = torch.cat(ragged(hidden)) if neurons == 12 else packed(hidden).data
        torch.testing.assert_close(
            found.square[:neurons], rows.double().square().sum(0), rtol=1e-4, atol=1e-4
        )
    assert "inner" in collect(*nets, X, "all", **PLAIN)


REFUSED = {
    "complex": (torch.fft.fft, TypeError, "complex numbers"),
    "sparse": (lambda y: y.to_sparse(), TypeError, "a sparse tensor"),
    "scalar": (lambda y: y.mean(), ValueError, "a single number"),
    "None": (lambda y: None, TypeError, "puts out NoneType, not a tensor"),
    "text": (lambda y: "text", TypeError, "puts out str, not a tensor"),
    "meta": (lambda y: y.to("meta"), ValueError, "on the meta device"),
    "one number each": (lambda y: y.mean(1), ValueError, "one number for each input"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_outputs_that_are_refused_or_left_out(name):
    "Refused where they are asked for by name; left out, and said so once, under a kind."
    function, error, match = REFUSED[name]
    nets = pair(made(function))
    with pytest.raises(error, match=f"layer 'inner'.*{match}"):
        collect(*nets, X, ["inner"], **PLAIN)
    for layers in ("all", ["*"]):
        with pytest.warns(SubmatchWarning, match=f"not compared: 'inner', since .*{match}") as seen:
            found = collect(*nets, X, layers, batch_size=9, **PLAIN)
        assert list(found) == ["fc", "head"] and len(seen) == 1


def test_a_function_makes_neurons_of_any_output():
    nets = pair(made(torch.fft.fft))
    found = collect(
        *nets, X, ["inner"], neurons={"inner": lambda z: torch.cat([z.real, z.imag], 1)}, **PLAIN
    )
    with evaluating(*nets):
        Z = [torch.fft.fft(net.fc(X)) for net in nets]
    assert_same(found["inner"], Moments(*(torch.cat([z.real, z.imag], 1) for z in Z)))
    with pytest.raises(ZeroDivisionError) as caught:
        collect(*nets, X, ["inner"], neurons={"inner": lambda z: 1 / 0}, **PLAIN)
    assert "layer 'inner'" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda Z: Z + 0j, (TypeError, ValueError), "real numbers"),
        (lambda Z: torch.tensor(Z).to_sparse(), (TypeError, ValueError), "sparse"),
        (lambda Z: scipy.sparse.csr_array(Z), (TypeError, ValueError), "sparse"),
        (lambda Z: np.ma.masked_less(Z, 0), ValueError, "masked"),
        (lambda Z: 3.0, (TypeError, ValueError), "not an array"),
    ],
)
def test_activations_in_memory_are_refused_alike(make, error, match):
    Z = np.random.default_rng(0).normal(size=(30, 4))
    for function in (
        lambda a, b: compare_activations(a, b, progress=False),
        lambda a, b: maximum_match(a, b, epsilon=0.3),
    ):
        with pytest.raises(error, match=match):
            function(make(Z), Z)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda Z: torch.quantize_per_tensor(torch.tensor(Z).float(), 1e-6, 0, torch.qint32),
        lambda Z: torch.nested.nested_tensor([torch.tensor(Z[:9]), torch.tensor(Z[9:])]),
        lambda Z: pd.DataFrame(Z),
        lambda Z: Z.tolist(),
        lambda Z: Z.astype(">f8"),
        lambda Z: np.asfortranarray(Z)[::-1][::-1],
        lambda Z: Z.astype(np.longdouble),
    ],
)
def test_activations_in_memory_are_used_alike(make):
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(60, 4)), rng.normal(size=(60, 3))
    match = maximum_match(A, B, epsilon=0.98)
    found = maximum_match(make(A), B, epsilon=0.98)
    assert list(found.x) == list(match.x) and list(found.y) == list(match.y)
    profile = compare_activations(make(A), B, progress=False).profiles["a ~ b"]
    np.testing.assert_allclose(
        profile.x, compare_activations(A, B, progress=False).profiles["a ~ b"].x, atol=1e-5
    )


# nested tensors of PyTorch's own encoders


class Encoder(nn.Module):
    def __init__(self, norm=True):
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(12) if norm else None)
        self.head = nn.Linear(12, 5)

    def forward(self, x, padding):
        return self.head(self.encoder(x, src_key_padding_mask=padding))


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("left", [True, False], ids=["right padded", "left padded"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_encoders_with_a_padding_mask(norm, left):
    nets = pair(lambda: Encoder(norm))
    x = torch.randn(30, 7, 12)
    padding = torch.arange(7) >= torch.arange(30)[:, None] % 7 + 1
    padding = padding if left else padding.flip(1)
    data = [{"x": x[:16], "padding": padding[:16]}, {"x": x[16:], "padding": padding[16:]}]
    with evaluating(*nets):
        moments = Moments(*(net(x, padding).flatten(0, 1) for net in nets))
    inside = ["encoder.layers.0", "encoder.layers.1.linear1", "encoder.layers.1:relu"]
    found = collect(*nets, data, ["head"], **PLAIN)
    assert_same(found["head"], moments)
    found = collect(*nets, data, [*inside, "encoder", "head"], **PLAIN)
    assert_same(found["head"], moments)
    real = int((~padding).sum())
    assert [found[layer].count for layer in inside] == [real] * 3
    assert found["encoder"].count == 30 * 7
    assert all(net.encoder.use_nested_tensor for net in nets)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_layers_that_are_given_nested_tensors():
    layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True).eval()
    rows = [torch.randn(n, 12) for n in (3, 5, 1)]

    class Nests(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(torch.nested.nested_tensor(rows))

    model = Nests().eval()
    with torch.no_grad():
        alone = model(X[:3]).unbind()
        with capture(model, ["layer", "layer.linear1"]) as outputs:
            watched = model(X[:3]).unbind()
    for one, other in zip(alone, watched, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert outputs.counted["layer"].sum(1).tolist() == [3, 5, 1]
    torch.testing.assert_close(outputs["layer"][1], alone[1], rtol=1e-4, atol=1e-5)


# a batch is run once


class Stateful(nn.Module):
    "A running state, and an activation that may overwrite what comes before it."

    def __init__(self, inplace=True):
        super().__init__()
        self.fc, self.act, self.out = nn.Linear(12, 6), nn.ReLU(inplace), nn.Identity()
        self.register_buffer("state", torch.zeros(6))
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        rectified = self.act(self.fc(x))
        self.state = 0.5 * self.state + rectified.mean(0)
        return self.out(rectified + self.state)


class Cached(nn.Module):
    "Keeps what it has seen, as a cache of keys does."

    def __init__(self):
        super().__init__()
        self.fc, self.out, self.seen = nn.Linear(12, 6), nn.Identity(), []

    def forward(self, x):
        self.seen.append(self.fc(x).mean(0))
        return self.out(self.fc(x) * len(self.seen))


class Spiking(nn.Module):
    "A membrane that leaks and fires, in place."

    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(12, 6), nn.Identity()
        self.register_buffer("membrane", torch.zeros(6))

    def forward(self, x):
        current = self.fc(x)
        self.membrane.mul_(0.9).add_(current.mean(0))
        return self.out(current.add_(self.membrane).clamp_(min=0))


@pytest.mark.parametrize("make", [Stateful, Cached, Spiking])
@pytest.mark.parametrize("layers", [["fc", "out"], "all"])
def test_models_with_a_state_give_the_numbers_they_give_alone(make, layers):
    nets = pair(make)
    alone = [deepcopy(net).eval() for net in nets]
    with torch.no_grad():
        outputs = [torch.cat([net(part) for part in X.split(7)]) for net in alone]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SubmatchWarning)
        found = collect(*nets, X.split(7), layers, progress=False)
    assert_same(found["out"], Moments(*outputs))
    with torch.no_grad():
        fc = Moments(*(net.fc(X) for net in nets))
    assert_same(found["fc"], fc)
    if make is Stateful:
        assert [net.runs for net in nets] == [6, 6]
        torch.testing.assert_close(nets[0].state, alone[0].state)


def test_one_model_that_stands_for_two_networks_runs_once():
    (net,) = pair(Stateful)[:1]
    with pytest.warns(SubmatchWarning, match="one and the same"):
        collect(net, net, X.split(7), [("fc", "out")], progress=False)
    assert net.runs == 6


def test_networks_that_share_a_part():
    "What one calls is no call of the other."
    body = nn.Linear(12, 8)
    nets = [nn.Sequential(body, nn.ReLU(), nn.Linear(8, 3)) for _ in "ab"]
    found = collect(*nets, X.split(7), ["0", "2"], **PLAIN)
    assert_same(found["2"], expected(nets))
    assert found["0"].count == 40 and not body._forward_hooks


# calls that vary


class Exits(nn.Module):
    "Leaves early where its input is small."

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        hidden = self.first(x)
        return self.head(hidden if x.mean() < 0 else self.second(hidden))


class Experts(nn.Module):
    "Sends each input to one of three experts."

    def __init__(self):
        super().__init__()
        self.gate, self.head = nn.Linear(12, 3), nn.Linear(8, 2)
        self.experts = nn.ModuleList(nn.Linear(12, 8) for _ in range(3))

    def forward(self, x):
        chosen = self.gate(x).argmax(1)
        out = x.new_zeros(len(x), 8)
        for k, expert in enumerate(self.experts):
            (rows,) = (chosen == k).nonzero(as_tuple=True)
            if len(rows):
                out[rows] = expert(x[rows])
        return self.head(out)


class Unrolled(nn.Module):
    "Calls its cell once for each token."

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(12, 6)

    def forward(self, x):
        state = x.new_zeros(len(x), 6)
        for token in x.unbind(1):
            state = self.cell(token, state)
        return state


SMALL, LARGE = -X.abs(), X.abs()


@pytest.mark.parametrize(
    "make, data, layers, match",
    [
        (Exits, [LARGE, SMALL], ["second"], "batch 1: layer 'second' ran 0 times, and 1 time in"),
        (Exits, [SMALL, LARGE], "linear", "batch 1: layer 'second' ran 1 time, and 0 times"),
        (
            Unrolled,
            [X[:, None].expand(-1, n, -1) for n in (4, 3)],
            "all",
            "3 times, and 4 times.*leave it out.*'cell:0'",
        ),
        (Experts, X.split(2), "linear", "layer 'experts..' ran . times?, and . times?"),
    ],
)
def test_calls_that_vary_are_a_sentence(make, data, layers, match):
    nets = pair(make)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SubmatchWarning)
        with pytest.raises(ValueError, match=f"the (first|second) network, .*{match}"):
            collect(*nets, data, layers, **PLAIN)


def test_and_there_is_a_way_out():
    nets = pair(Exits)
    found = collect(*nets, [LARGE, SMALL], ["first", "head"], **PLAIN)
    assert found["head"].count == 80
    nets = pair(Unrolled)
    data = [X[:, None].expand(-1, n, -1) for n in (4, 3)]
    assert list(collect(*nets, data, ["cell:0", "cell:2"], **PLAIN)) == ["cell:0", "cell:2"]
    nets = pair(Experts)
    with evaluating(*nets):
        moments = Moments(*(net(X) for net in nets))
    assert_same(collect(*nets, X.split(2), ["gate", "head"], **PLAIN)["head"], moments)
    with pytest.raises(ValueError, match="'experts.*a selection of the inputs"):
        collect(*nets, X, ["experts.0", "experts.1", "experts.2"], **PLAIN)


# weights anywhere


class Mixed(nn.Module):
    "Its head comes first among its parameters and last in the pass, in another precision."

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.body = nn.Linear(12, 8).double()

    def forward(self, x):
        return self.head(self.body(x).float())


class Offloaded(nn.Module):
    "Weights on the meta device, which a hook brings when they are needed, as accelerate's does."

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(12, 8)
        kept = {name: tensor.clone() for name, tensor in self.body.state_dict().items()}
        self.body.to_empty(device="meta")
        self.body._hf_hook = type("Hook", (), {"execution_device": torch.device("cpu")})()
        self.body.forward = lambda x: nn.functional.linear(x, kept["weight"], kept["bias"])

    def forward(self, x):
        return self.body(x)


class Weightless(nn.Module):
    "No weights at all: numbers keep their precision."

    def __init__(self):
        super().__init__()
        self.out = nn.Identity()

    def forward(self, x):
        return self.out(torch.cat([x, x.square()], 1))


def test_inputs_go_where_the_model_takes_them():
    for data in (X, X.double().numpy(), X.half()):
        nets = pair(Mixed)
        assert collect(*nets, data, ["body", "head"], **PLAIN)["head"].count == 40
    assert Place(Mixed()).mixed and not Place(perceptron()).mixed
    assert_same(
        collect(*(nets := pair(Offloaded)), X, ["body"], **PLAIN)["body"],
        Moments(*(net.body(X).detach() for net in nets)),
    )
    with torch.no_grad():
        assert feed(Weightless(), X.double()).dtype == torch.float64
        assert feed(perceptron().bfloat16(), X.double()).dtype == torch.bfloat16


def test_weights_on_the_meta_device():
    with pytest.raises(ValueError, match="weights of Sequential are on the meta device"):
        collect(perceptron().to("meta"), perceptron(), X, **PLAIN)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_integers_for_a_network_that_computes(dtype):
    with pytest.raises(TypeError, match=f"a batch holds {dtype}.*computes with.*preprocess="):
        collect(*pair(perceptron), X.abs().to(dtype), **PLAIN)


# layers


def test_patterns_stay_between_two_dots():
    fits = {
        "*.relu": ["layer1.relu"],
        "**.relu": ["relu", "layer1.relu", "layer1.0.relu"],
        "layer1.**": ["layer1.relu", "layer1.0.relu"],
        "layer?.*": ["layer1.relu"],
        "layer[12].relu": ["layer1.relu"],
        "layer[!1].relu": [],
        "**": ["relu", "layer1.relu", "layer1.0.relu"],
    }
    names = ["relu", "layer1.relu", "layer1.0.relu"]
    for pattern, expected_names in fits.items():
        assert [name for name in names if glob(pattern).fullmatch(name)] == expected_names
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    with pytest.raises(KeyError, match=r"stays between two dots: did you mean '\*\*1'"):
        layer_names(net, "*1")


def test_layers_that_are_no_names():
    net = perceptron()
    for layers, match in (
        (net[0], "not by the module itself"),
        ([net[0]], "not by the module itself"),
        ([(net[0], net[1])], "not by the module itself"),
        (3, "not 3: say '3'"),
        ([1], "not 1: say '1'"),
        (None, "not None"),
    ):
        with pytest.raises(TypeError, match=match):
            collect(net, perceptron(), X, layers, **PLAIN)


class Residual(nn.Module):
    def __init__(self, width=12):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return nn.functional.relu(x + self.fc2(torch.relu(self.fc1(x))))


class Stage(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Residual() for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.block1, self.block2, self.head = Residual(), Residual(), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.block2(self.block1(x)))


def test_blocks():
    stem = nn.Sequential(nn.Linear(12, 12), nn.ReLU())
    plain = nn.Sequential(*(nn.Sequential(nn.Linear(12, 12), nn.ReLU()) for _ in range(3)))
    for net, blocks in (
        (nn.Sequential(stem, Residual(), Residual(), nn.Linear(12, 3)), ["1", "2"]),
        (
            nn.Sequential(stem, nn.Sequential(Stage(), Stage())),
            [f"1.{s}.blocks.{b}" for s in (0, 1) for b in (0, 1)],
        ),
        (Named(), ["block1", "block2"]),
        (plain, ["0", "1", "2"]),
    ):
        assert layer_names(net, "block") == blocks
    with pytest.raises(KeyError, match="no module of kind 'block'.*several modules.*name what you"):
        layer_names(perceptron(), "block")
    for plural in ("blocks", "Conv"):
        kind = plural.lower().removesuffix("s")
        with pytest.raises(KeyError, match=f"no layer '{plural}'.*did you mean the kind '{kind}'"):
            layer_names(perceptron(), plural)


def test_functional_activations_have_names():
    nets = pair(Named)
    found = collect(*nets, X, **PLAIN)
    assert list(found) == ["block1:relu", "block1:relu:1", "block2:relu", "block2:relu:1"]
    with evaluating(*nets):
        hidden = [torch.relu(net.block1.fc1(X)) for net in nets]
        outputs = [net.block1(X) for net in nets]
    assert_same(found["block1:relu"], Moments(*hidden))
    assert_same(found["block1:relu:1"], Moments(*outputs))
    for layers, names in (
        (["block2:relu:1"], ["block2:relu:1"]),
        (["block*:relu"], list(found)),
        (["block1:relu", "head"], ["block1:relu", "block1:relu:1", "head"]),
        ([("block1:relu:0", "block2:relu:1")], ["block1:relu:0 ~ block2:relu:1"]),
    ):
        assert list(collect(*nets, X, layers, **PLAIN)) == names
    with capture(nets[0].eval(), "relu") as outputs_of, torch.no_grad():
        nets[0](X)
    assert torch.equal(outputs_of["block1:relu:1"], outputs[0])
    with pytest.raises(ValueError, match="'head:relu' did not run"):
        collect(*nets, X, ["head:relu"], **PLAIN)
    with pytest.raises(KeyError, match="no module or function of kind 'activation' in Linear"):
        collect(nn.Linear(12, 3), nn.Linear(12, 3), X, **PLAIN)


def test_kinds_are_named_for_what_they_are():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.tanh, self.gelu = nn.Linear(12, 8), nn.Tanh(), nn.GELU()
            self.leaky = nn.LeakyReLU()
            self.rnn = nn.RNN(8, 8, nonlinearity="relu", batch_first=True)

        def forward(self, x):
            hidden = nn.functional.relu6(self.gelu(self.tanh(self.leaky(self.fc(x)))))
            hidden = self.rnn(hidden[:, None])[0][:, 0]
            return torch.sigmoid(nn.functional.selu(hidden))

    nets = pair(Net)
    every = ["leaky", "tanh", "gelu", ":relu6", ":selu", ":sigmoid"]
    assert list(collect(*nets, X, "relu", **PLAIN)) == ["leaky", ":relu6"]
    assert list(collect(*nets, X, "activation", **PLAIN)) == every
    assert list(collect(*nets, X, **PLAIN)) == every


OWN_KINDS = {
    "SquaredReLU": True,
    "ReLUSquaredActivation": True,
    "ApproximateGELU": False,
    "HardMish": False,
    "Swish": False,
    "FastSigmoid": False,
    "Softshrink": False,
}


@pytest.mark.parametrize("name", OWN_KINDS)
def test_own_activations_are_of_the_kind_that_their_class_is_called(name):
    own = type(name, (nn.Module,), {"forward": lambda self, x: x.clamp(min=0) ** 2})
    nets = pair(lambda: nn.Sequential(nn.Linear(12, 8), own()))
    assert list(collect(*nets, X, **PLAIN)) == ["1"]
    if OWN_KINDS[name]:
        assert list(collect(*nets, X, "relu", **PLAIN)) == ["1"]
    else:
        with pytest.raises(KeyError, match=r"no module or function of kind 'relu'.*activation \(1"):
            collect(*nets, X, "relu", **PLAIN)


def test_what_only_resembles_an_activation_is_none():
    class ReLUBlock(nn.Sequential):
        "A block, of which the activation is a part."

    nets = pair(lambda: nn.Sequential(ReLUBlock(nn.Linear(12, 8), nn.ReLU()), nn.Softmax(1)))
    assert list(collect(*nets, X, **PLAIN)) == ["0.1"]
    for function in ("hardshrink", "softshrink", "elu"):
        computed = getattr(nn.functional, function)
        nets = pair(lambda computed=computed: Applied(computed))
        assert list(collect(*nets, X, **PLAIN)) == [f":{function}"]


class Applied(nn.Module):
    "A function of what a linear layer puts out."

    def __init__(self, function, width=12):
        super().__init__()
        self.fc = nn.Linear(width, 8)
        self.function = function

    def forward(self, x):
        return self.function(self.fc(x))


def test_layers_in_the_order_in_which_they_ran():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.third, self.second, self.first = (nn.Linear(12, 12) for _ in range(3))

        def forward(self, x):
            return self.third(self.second(self.first(x)))

    nets = pair(Backwards)
    order = ["first", "second", "third"]
    for layers in ("linear", ["third", "first", "second"], ["t*", "*"], ["**"]):
        assert list(collect(*nets, X, layers, **PLAIN)) == order
    crossed = collect(*nets, X, ["third", "first"], cross=True, **PLAIN)
    assert list(crossed) == ["first", "first ~ third", "third ~ first", "third"]
    several = collect_all(pair(Backwards) + nets[:1], X, ["second", "first"], **PLAIN)
    assert all(list(found) == ["first", "second"] for found in several.values())


def test_a_part_that_is_wrapped_has_its_own_name():
    plain = nn.Sequential(nn.Sequential(nn.Linear(12, 8), nn.ReLU()), nn.Linear(8, 3))
    wrapped = nn.Sequential(nn.DataParallel(deepcopy(plain[0])), deepcopy(plain[1]))
    assert layer_names(wrapped, "all") == layer_names(plain, "all") == ["0", "0.0", "0.1", "1"]
    found = collect(plain, wrapped, X, "all", **PLAIN)["0.1"]
    torch.testing.assert_close(found.gram[:8, :8], found.gram[8:, 8:])


def test_modules_that_never_run_are_named_once():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.aside = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.parts = nn.ModuleList([nn.Linear(8, 8)])

        def forward(self, x):
            return self.parts[0](self.used(x))

    with pytest.warns(SubmatchWarning) as seen:
        found = collect(*pair(Spare), X, "all", batch_size=9, **PLAIN)
    assert list(found) == ["used", "parts.0"] and len(seen) == 1, "once for both"
    said = str(seen[0].message)
    assert said.startswith("both networks: never run in a forward pass")
    assert said.endswith("not compared: 'unused', 'aside'")


# size


def test_memory_is_known_before_it_is_asked_for(monkeypatch):
    nets = pair(lambda: nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()))
    images = torch.rand(6, 1, 32, 32)
    monkeypatch.setattr(room, "free_memory", lambda device: 2.0**30)
    with pytest.raises(
        ValueError,
        match=r"layer '1' has 8,192 \+ 8,192 neurons.*1.0 GB of memory are free.*neurons=",
    ):
        collect(*nets, images, neurons="unit", progress=False)
    assert collect(*nets, images, **PLAIN)["1"].n_x == 8
    with pytest.raises(ValueError, match=r"'a ~ b'|layer 'a ~ b' has 9,000 \+ 9,000 neurons"):
        compare_activations(np.zeros((5, 9000)), np.ones((5, 9000)), progress=False)
    monkeypatch.undo()
    assert room.free_memory(torch.device("cpu")) > 2**20


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Conv2d(3, 8, 3, padding=1), (3, 64, 64)),
        (lambda: nn.Conv1d(3, 8, 3, padding=1), (3, 4096)),
        (lambda: nn.Conv3d(3, 8, 3, padding=1), (3, 16, 16, 16)),
    ],
)
def test_outputs_that_are_held_count(monkeypatch, make, shape):
    "20 images in one window: 8 channels x 4,096 positions, in two networks, in float32, twice."
    nets = pair(make)
    nets = [nn.Sequential(net, nn.ReLU()) for net in nets]
    data = torch.rand(20, *shape)
    size = 20 * 8 * 4096 * 4 * 2 * 2
    monkeypatch.setattr(room, "free_memory", lambda device: float(size))
    with pytest.raises(ValueError, match=r"layer '1' and.*20 images.* 10.0 MB.*positions=.*null=0"):
        collect(*nets, data, batch_size=5, progress=False)
    for options in ({"null": 0}, {"positions": "mean"}):
        assert collect(*nets, data, batch_size=5, groups=0, progress=False, **options)
    monkeypatch.setattr(room, "free_memory", lambda device: float(size + 2**20))
    found = collect(*nets, data, batch_size=5, progress=False)["1"]
    assert len(found.groups) == 20 and found.null_about


def test_groups_take_what_is_left(monkeypatch):
    nets = pair(lambda: nn.Sequential(nn.Linear(12, 300), nn.ReLU()))
    need = room.Need(["1", "1"], [300, 300], [(0, 1)], exact=False, shuffles=1, draws=1)
    held, fold = 2 * 40 * 600 * 4, sums_bytes([300, 300], [(0, 1)])
    monkeypatch.setattr(room, "free_memory", lambda device: need.total() + held + 5.5 * fold)
    with pytest.warns(SubmatchWarning, match="intervals come from 5 groups"):
        found = collect(*nets, X, progress=False)["1"]
    assert len(found.groups) == 5


def test_a_limit_of_the_process_counts():
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)
    if limit[0] != resource.RLIM_INFINITY:
        pytest.skip("there is a limit already")
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (pages + 2**30, limit[1]))
        assert room.free_memory(torch.device("cpu")) <= 2**30
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


def test_loaders_that_collate_on_their_own():
    "A loader with padding of its own, and one whose batches are dicts."
    rows = [X[: k % 5 + 1] for k in range(20)]

    def padded(items):
        lengths = torch.tensor([len(item) for item in items])
        x = nn.utils.rnn.pad_sequence(items, batch_first=True)
        return {"x": x, "attention_mask": torch.arange(x.shape[1]) < lengths[:, None]}

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(12, 5)

        def forward(self, x):
            return self.fc(x)

    nets = pair(Net)
    loader = DataLoader(rows, 6, collate_fn=padded)
    found = collect(*nets, loader, ["fc"], progress=False)["fc"]
    assert_same(found, expected(nets, torch.cat(rows)))
    assert found.positions == "all (attention_mask)"


# what else users bring


def mlp(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU())


@pytest.mark.parametrize(
    "compiled",
    [torch.jit.script, lambda m: torch.jit.trace(m, torch.randn(2, 6)), torch.jit.freeze],
    ids=["script", "trace", "freeze"],
)
@pytest.mark.filterwarnings("ignore")
def test_modules_that_hooks_cannot_see_are_refused(compiled):
    model = mlp(0).eval()
    made = compiled(torch.jit.script(model) if compiled is torch.jit.freeze else model)
    with pytest.raises(TypeError, match="compiled by torch.jit .*the module that it was made of"):
        compare(made, mlp(1), torch.randn(9, 6), progress=False)
    with pytest.raises(TypeError, match="compiled by torch.jit"):
        capture(made, "relu").__enter__()


def test_lazy_modules_get_their_sizes_from_the_first_batch():
    nets = [nn.Sequential(nn.LazyLinear(5), nn.ReLU()) for _ in range(2)]
    assert collect(*nets, torch.randn(9, 6), ["1"], **PLAIN)["1"].n_x == 5


@pytest.mark.parametrize("kind", ["chain", "concatenation", "subset of a subset"])
def test_data_sets_of_data_sets(kind):
    class Numbers(IterableDataset):
        def __iter__(self):
            return iter(torch.arange(24.0).reshape(4, 6))

    rows = TensorDataset(torch.arange(48.0).reshape(8, 6))
    data = {
        "chain": ChainDataset([Numbers(), Numbers()]),
        "concatenation": ConcatDataset([Subset(rows, range(4)), Subset(rows, range(4))]),
        "subset of a subset": Subset(Subset(rows, range(8)), range(8)),
    }[kind]
    assert collect(mlp(0), mlp(1), data, ["1"], batch_size=3, **PLAIN)["1"].count == 8


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_data_for_real_networks(dtype):
    with pytest.raises(TypeError, match=f"a batch holds {dtype}, .*give real ones"):
        collect(mlp(0), mlp(1), torch.randn(9, 6, dtype=dtype), ["1"], **PLAIN)


@pytest.mark.parametrize("function", [Moments, cka, lambda X, Y: maximum_match(X, Y, 0.5)])
def test_activations_without_numbers(function):
    real, meta = torch.randn(9, 3), torch.empty(9, 3, device="meta")
    for one, other in ((meta, real), (real, meta)):
        with pytest.raises(TypeError, match="on the meta device"):
            function(one, other)
    with pytest.raises(TypeError, match="on the meta device"):
        compare_activations(meta, real, progress=False)


NUMBERS = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
NO_REAL_NUMBERS = {
    "complex": lambda: torch.complex(NUMBERS, NUMBERS),
    "complex, of NumPy": lambda: torch.complex(NUMBERS, NUMBERS).numpy(),
    "complex, conjugated": lambda: torch.complex(NUMBERS, NUMBERS).conj(),
    "long complex": lambda: NUMBERS.numpy().astype(np.clongdouble),
    "sparse rows": lambda: NUMBERS.to_sparse_csr(),
    "sparse places": lambda: NUMBERS.to_sparse(),
    "sparse, of SciPy": lambda: scipy.sparse.csr_array(NUMBERS.numpy()),
    "for a library of its own": lambda: NUMBERS.to_mkldnn(),
    "objects": lambda: NUMBERS.numpy().astype(object),
    "texts": lambda: NUMBERS.numpy().astype(str),
    "dates": lambda: NUMBERS.numpy().astype("datetime64[s]"),
    "ragged": lambda: [[1.0, 2.0], [3.0]],
}


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("kind", NO_REAL_NUMBERS)
def test_what_is_no_matrix_of_real_numbers_is_refused_in_one_way(kind):
    odd = NO_REAL_NUMBERS[kind]()
    functions = (
        *(Moments, cka, cca, procrustes, linear_regression, epsilon_profile),
        lambda X, Y: maximum_match(X, Y, 0.5),
        lambda X, Y: compare_activations(X, Y, progress=False),
        lambda X, Y: compare_activations({"one": X}, {"one": Y}, progress=False),
    )
    for function in functions:
        for one, other in ((odd, NUMBERS), (NUMBERS, odd)):
            with pytest.raises(TypeError):
                function(one, other)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
def test_complex_numbers_in_a_file(suffix, tmp_path):
    path = tmp_path / f"complex{suffix}"
    Z = torch.complex(NUMBERS, NUMBERS)
    if suffix == ".npy":
        np.save(path, Z.numpy())
    elif suffix == ".npz":
        np.savez(path, layer=Z.numpy())
    elif suffix == ".pt":
        torch.save({"layer": Z}, path)
    else:
        save_file({"layer": Z}, path)
    with pytest.raises(ValueError, match=rf"complex\{suffix}, .*: holds .*complex64, not real"):
        compare_activations(path, path, progress=False)


@pytest.mark.parametrize("shape", [(9, 0), (9, 0, 4), (9, 4, 0)])
def test_outputs_without_numbers(shape):
    class Empty(nn.Module):
        def forward(self, x):
            return x.new_zeros(shape)

    nets = [nn.Sequential(nn.Linear(6, 5), Empty()) for _ in range(2)]
    with pytest.raises(ValueError, match=r"layer '1' of the first network: .*without a number"):
        collect(*nets, torch.randn(9, 6), ["1"], **PLAIN)
    with pytest.warns(SubmatchWarning, match="not compared: '1'"):
        assert list(collect(*nets, torch.randn(9, 6), "all", **PLAIN)) == ["0"]


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors")
def test_masked_outputs_are_refused_by_name():
    def masked(z):
        return torch.masked.masked_tensor(z.detach(), z.detach() > 0)

    nets = pair(lambda: nn.Sequential(nn.Linear(12, 8), Applied(masked, 8)))
    with pytest.raises(TypeError, match=r"layer '1' of the first network: .*masked.*neurons="):
        collect(*nets, X, ["1"], **PLAIN)
    found = collect(*nets, X, ["1"], neurons={"1": lambda z: z.to_tensor(0)}, **PLAIN)
    with torch.no_grad():
        assert_same(found["1"], Moments(*(net[1].fc(net[0](X)).relu() for net in nets)))


def test_what_holds_of_both_networks_is_said_once():
    def make():
        return nn.Sequential(nn.Identity(), nn.Linear(6, 4))

    tokens = torch.randn(20, 5, 6)
    with pytest.warns(SubmatchWarning) as seen:
        collect(*pair(make), tokens, ["0", "1"], **PLAIN)
    (text,) = [str(w.message) for w in seen]
    assert text.startswith("both networks: what a neuron is") and "neurons=" in text
    with pytest.warns(SubmatchWarning) as seen:
        collect_all([make() for _ in range(5)], tokens, ["0"], **PLAIN)
    (text,) = [str(w.message) for w in seen]
    assert text.startswith("network 0, network 1, network 2 and 2 more: what a neuron is")
    with pytest.warns(SubmatchWarning) as seen:
        other = nn.Sequential(nn.Conv1d(5, 6, 1))
        collect(make(), other, tokens, ["0"], positions="mean", **PLAIN)
    (text,) = [str(w.message) for w in seen]
    assert text.startswith("the first network: what a neuron is")


def test_single_inputs_are_refused_by_name_without_a_word_of_later_calls():
    class OneByOne(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(12, 8)

        def forward(self, x):
            return torch.stack([self.fc(row) for row in x])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="layer 'fc' of the first network: no axis"):
            collect(*pair(OneByOne), X, ["fc"], **PLAIN)


class Alone(nn.Module):
    "A module between an activation and an activation."

    def __init__(self, inner):
        super().__init__()
        self.first, self.inner, self.last = nn.Tanh(), inner, nn.ReLU()

    def forward(self, x):
        out = self.inner(self.first(x))
        return self.last(out[0] if isinstance(out, tuple) else out)


SINGLE = {
    "image": ((3, 8, 8), lambda: nn.Conv2d(3, 4, 3)),
    "signal": ((6, 7), lambda: nn.Conv1d(6, 4, 3)),
    "volume": ((2, 5, 5, 5), lambda: nn.ConvTranspose3d(2, 3, 2)),
    "series": ((7, 6), lambda: nn.LSTM(6, 5, batch_first=True)),
    "series, time first": ((7, 6), lambda: nn.GRU(6, 5)),
    "text": ((7, 6), lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)),
    "text in a stack": (
        (7, 6),
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8), 2),
    ),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("name", SINGLE)
def test_data_of_single_inputs_for_modules_that_take_them(name):
    "The first axis of a single input is no batch; no layer of the network may count it as one."
    shape, make = SINGLE[name]
    data = list(torch.randn(12, *shape, generator=torch.Generator().manual_seed(0)))
    nets = pair(lambda: Alone(make()))
    for layer in ("first", "inner", "last"):
        with pytest.raises(ValueError, match=f"layer '{layer}'.*single input: give batches"):
            collect(*nets, data, [layer], **PLAIN)
    with pytest.raises(ValueError, match="takes a batch of shape .* for a single input"):
        collect(*nets, data, **PLAIN)
    with capture(nets[0].eval(), ["first", "last"]) as outputs, torch.no_grad():
        nets[0](data[0])
    assert outputs["first"].shape == shape


def test_batches_for_modules_that_could_take_single_inputs():
    class Mapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 4, 3), nn.Identity()

        def forward(self, x):
            return self.out(torch.vmap(self.conv)(x))

    images = torch.randn(12, 3, 8, 8)
    assert collect(*pair(Mapped), images, ["out"], **PLAIN)["out"].count == 12 * 36
    cells = pair(lambda: Alone(nn.GRUCell(6, 5)))
    assert collect(*cells, torch.randn(12, 6), ["last"], **PLAIN)["last"].count == 12


def test_batches_in_more_forms():
    nets = pair(perceptron)
    moments = expected(nets)
    for data in (
        [X[:15].tolist(), X[15:].tolist()],
        [pd.DataFrame(X[:15].numpy()), pd.DataFrame(X[15:].numpy())],
        [(pd.DataFrame(X[:15].numpy()), 1), (pd.DataFrame(X[15:].numpy()), 2)],
    ):
        found = collect(*nets, data, ["1"], null=1, groups=4, progress=False)["1"]
        assert_same(found, moments)
        assert found.images == 40
    for data, match in (
        (torch.tensor(3.0), "data is a single number, 3.0"),
        ([None, None], "a batch holds NoneType"),
        ([(None, X)], "a batch holds NoneType"),
    ):
        with pytest.raises(TypeError, match=match):
            collect(*nets, data, ["1"], **PLAIN)
    convolutions = pair(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    with pytest.raises(TypeError, match=r"a batch holds torch.uint8.*x.float\(\)"):
        collect(*convolutions, torch.zeros(8, 3, 5, 5, dtype=torch.uint8), ["1"], **PLAIN)


def test_images_of_their_own_sizes_as_arrays():
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, images):
            return self.conv(torch.stack([image[:, :5, :5] for image in images]))

    images = [torch.randn(3, 5 + k % 3, 6) for k in range(12)]
    nets = pair(Sized)
    for batch in (images, [image.numpy() for image in images]):
        data = [(batch[:5], [0] * 5), (batch[5:], [0] * 7)]
        assert collect(*nets, data, ["conv"], progress=False)["conv"].images == 12


def test_a_part_on_the_meta_device_is_named():
    nets = pair(lambda: nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 3)))
    nets[1][1].to("meta")
    with pytest.raises(ValueError, match=r"weight '1.weight' of Sequential is on the meta device"):
        collect(*nets, X, ["1"], **PLAIN)


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<i2"])
@pytest.mark.parametrize("layout", ["TNC", "CTN"])
def test_files_in_which_the_inputs_come_later(tmp_path, dtype, layout):
    Z = (10 * np.random.default_rng(0).normal(size=(12, 7, 6))).astype(dtype)
    np.save(tmp_path / "layer.npy", Z)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", SubmatchWarning)
        found = compare_activations(
            *[tmp_path / "layer.npy"] * 2, layout=layout, null=0, groups=0, progress=False
        )["layer"]
    axes = [layout.index(letter) for letter in "NTC"]
    rows = Z.transpose(axes).reshape(-1, Z.shape[layout.index("C")]).astype(float)
    assert_same(found, Moments(rows, rows))


def test_a_network_that_fails_on_single_images_says_what_it_was_given():
    nets = pair(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 5)))
    images = torch.randn(8, 3, 6, 6)
    assert collect(*nets, images, ["2"], **PLAIN)["2"].count == 8
    with pytest.raises(RuntimeError) as raised:
        collect(*nets, list(images), ["2"], **PLAIN)
    assert "given a batch of shape (3, 6, 6): the first axis counts" in raised.value.__notes__[0]


def test_a_layout_for_a_layer_that_is_not_there():
    Z = np.random.default_rng(0).normal(size=(12, 4, 7))
    one, other = {"x": Z, "y": Z}, {"y": Z, "z": Z}
    by_name = dict.fromkeys("xyz", "NCT")
    found = compare_activations(one, other, ["y"], layout=by_name, **PLAIN)
    assert found["y"].moments.count == 84
    for layout in ({**by_name, "u": "NCT"}, (by_name, None), ({"x": "NCT"}, by_name)):
        with pytest.raises(ValueError, match="layout has '[uxz]', which is none of the layers: "):
            compare_activations(one, other, ["y"], layout=layout, **PLAIN)


def test_layers_that_any_two_networks_share_are_named():
    data = torch.rand(60, 3, 8, 8)
    nets = pair(lambda: nn.Sequential(nn.Conv2d(3, 32, 3, bias=False), nn.ReLU()))
    said = r"layer '0': 32 \+ 32 neurons span 27 dimensions together: any two networks match here"
    with pytest.warns(SubmatchWarning, match=said) as seen:
        compare(*nets, data, ["0", "1"], progress=False)
    assert len(seen) == 1
    wide = pair(lambda: nn.Linear(3, 9))
    with pytest.warns(SubmatchWarning, match=r"9 \+ 9 neurons span 4 dimensions"):
        compare(*map(nn.Sequential, wide), data[:, :, 0, 0], ["0"], progress=False)
    with pytest.warns(SubmatchWarning, match="span all of") as seen:  # that says it already
        rows = data[:6].flatten(1)[:, :12]
        compare_activations(rows, rows @ rows.T @ rows, progress=False)
    assert not any("any two networks" in str(w.message) for w in seen)
