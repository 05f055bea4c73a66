"""Which axis of an output counts inputs and which neurons, where sizes say nothing: everything has
the same size.

The oracle knows no axes: it changes one input, or the weights of one neuron, and looks which
numbers change.
"""

import warnings
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812 (as everyone calls it)

from submatch_nb.engine.arranging import Arrangement, Unusable, by_tracking
from submatch_nb.engine.axes import Factor, regrouped, role_of
from submatch_nb.engine.capture import Watcher
from submatch_nb.engine.inputs import SubmatchWarning
from submatch_nb.engine.moments import Moments
from submatch_nb.engine.tracking import Tracker
from submatch_nb.layers import capture, collect, evaluating

N = 6  # inputs, tokens, features: all the same
OPTIONS = {"progress": False, "null": 0, "groups": 0}


def data(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def arranged(model, layer, batch, **options):
    "The output of one layer as (inputs, neurons, *positions), as a pass has it."
    watcher = Watcher(model.eval(), [layer], **options)
    with torch.no_grad(), watcher.watch() as outputs:
        model(batch)
    return outputs.arranged(layer)


def changed_inputs(model, layer, batch):
    "Which inputs of an arranged output change when the second one does."
    before = arranged(model, layer, batch)
    other = batch.clone()
    other[1] += 1
    after = arranged(model, layer, other)
    return (before != after).flatten(1).any(1).nonzero()[:, 0].tolist()


def changed_neurons(model, layer, batch, weights, row):
    "Which neurons of an arranged output change when the weights of one do."
    before = arranged(model, layer, batch)
    with torch.no_grad():
        row(weights)[...] += 1
    after = arranged(model, layer, batch)
    return (before != after).movedim(1, 0).flatten(1).any(1).nonzero()[:, 0].tolist()


def assert_known(model, layer, batch, weights, row):
    assert changed_inputs(model, layer, batch) == [1]
    assert changed_neurons(model, layer, batch, weights, row) == [1]


def net(forward, **parts):
    "A module of these parts that computes this; `probe` is a layer of it that changes nothing."
    module = type("Net", (nn.Module,), {"forward": forward})()
    for name, part in parts.items():
        setattr(module, name, part)
    module.probe = nn.Identity()
    return module


def weight(*shape):
    return nn.Parameter(data(*shape, seed=7))


# layers of features, made in ways of their own

DENSE = {
    "matrix product": lambda x, w: x @ w.T,
    "F.linear": lambda x, w: F.linear(x, w),
    "einsum": lambda x, w: torch.einsum("bti,oi->bto", x, w),
    "einsum, weights first": lambda x, w: torch.einsum("oi,bti->bto", w, x),
    "tensordot": lambda x, w: torch.tensordot(x, w.T, 1),
    "rows of all inputs": lambda x, w: (x.reshape(-1, N) @ w.T).view(N, N, N),
    "bmm": lambda x, w: torch.bmm(x, w.T.expand(N, N, N)),
    "addmm": lambda x, w: torch.addmm(torch.zeros(N), x.flatten(0, 1), w.T).unflatten(0, (N, N)),
    "convolution over tokens": lambda x, w: F.conv1d(x.mT, w[:, :, None]).mT,
    "channels last": lambda x, w: (
        F.conv2d(x.permute(0, 2, 1)[..., None], w[:, :, None, None])
        .permute(0, 2, 3, 1)
        .flatten(1, 2)
    ),
    "weights first, columns": lambda x, w: (w @ x.mT).mT,
    "low rank": lambda x, w: x @ w.T @ torch.eye(N),
}


@pytest.mark.parametrize("how", DENSE)
def test_features_by_any_product(how):
    model = net(lambda self, x: self.probe(DENSE[how](x, self.w)), w=weight(N, N))
    found = arranged(model, "probe", data(N, N, N))
    with torch.no_grad():
        assert torch.allclose(found, F.linear(data(N, N, N), model.w).movedim(-1, 1), atol=1e-5)
    if how != "low rank":
        assert_known(model, "probe", data(N, N, N), model.w, lambda w: w[1])


class Conv1D(nn.Module):
    "The linear layer of GPT-2."

    def __init__(self):
        super().__init__()
        self.weight, self.bias = weight(N, N), nn.Parameter(torch.zeros(N))

    def forward(self, x):
        rows = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return rows.view(*x.shape[:-1], -1)


class LowRank(nn.Module):
    "Weights beside which a product of two narrow matrices is learnt."

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(N, N)
        self.down, self.up = nn.Linear(N, 2, bias=False), nn.Linear(2, N, bias=False)

    def forward(self, x):
        return self.base(x) + 0.5 * self.up(self.down(x))


class Ternary(nn.Linear):
    "A subclass with a forward of its own: weights of -1, 0 and 1."

    def forward(self, x):
        return F.linear(x, self.weight.sign() * (self.weight.abs() > 0.1), self.bias)


@pytest.mark.parametrize("layer", [Conv1D, LowRank, lambda: Ternary(N, N)])
def test_linear_layers_of_all_libraries(layer):
    "And what follows them stays a layer of features: the model alone says so."
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(nn.Sequential(layer(), nn.GELU(), nn.Dropout(), layer(), nn.Softmax(-1)))
    found = collect(*models, data(N, N, N), ["0", "1", "2", "3", "4"], **OPTIONS)
    assert set(found.neurons.values()) == {"feature"}
    with evaluating(*models):
        X, Y = (model[:2](data(N, N, N)).flatten(0, 1) for model in models)
    torch.testing.assert_close(found["1"].gram, Moments(X, Y).gram, rtol=1e-4, atol=1e-4)


def test_quantised_linear_layers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Linear(N, N), nn.ReLU(), nn.Linear(N, N)).eval()
        quantised = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear})
        found = collect(plain, quantised, data(N, N, N).double(), "linear", **OPTIONS)
    assert list(found) == ["0", "2"] and set(found.neurons.values()) == {"feature"}
    X, Y = found["2"].gram[:N, :N], found["2"].gram[N:, N:]
    torch.testing.assert_close(X, Y, rtol=0.1, atol=0.05 * float(X.max()))


# axes that move

MOVES = {
    "nothing": (lambda x: x),
    "time first": (lambda x: x.transpose(0, 1)),
    "features second": (lambda x: x.mT),
    "features first": (lambda x: x.permute(2, 0, 1)),
    "rows": (lambda x: x.reshape(N * N, N)),
    "rows, time first": (lambda x: x.transpose(0, 1).reshape(N * N, N)),
    "heads": (lambda x: x.unflatten(2, (2, 3)).transpose(1, 2)),
    "heads first": (lambda x: x.unflatten(2, (2, 3)).permute(2, 0, 1, 3)),
    "windows": (lambda x: x.unflatten(1, (2, 3)).flatten(0, 1)),
    "one more axis": (lambda x: x[:, None]),
    "batch twice": (lambda x: torch.cat([x, x]).chunk(2)[0]),
    "sorted and back": (
        lambda x: x[torch.arange(N).flip(0)].index_select(0, torch.arange(N).flip(0))
    ),
    "step by step": (lambda x: torch.stack(x.unbind(1), 1)),
    "input by input": (lambda x: torch.stack([single * 2 for single in x])),
    "written": (lambda x: written(x)),
    "flipped": (lambda x: x.flip(1).roll(1, 1)),
    "channels of pixels": (lambda x: x.mT.unflatten(2, (2, 3)).contiguous()),
    "strided": (lambda x: x.mT.contiguous().mT),
}


def written(x):
    "Tokens, written one by one into room that is there already."
    room = x.new_zeros(x.shape)
    for token in range(x.shape[1]):
        room[:, token] = x[:, token]
    return room


@pytest.mark.parametrize("move", MOVES)
def test_axes_that_move(move):
    model = net(lambda self, x: self.probe(MOVES[move](self.fc(x))), fc=nn.Linear(N, N))
    assert_known(model, "probe", data(N, N, N), model.fc.weight, lambda w: w[1])


STEPS = (
    *("transpose", "flatten", "unflatten", "unsqueeze", "squeeze", "permute", "contiguous"),
    *("relu", "add", "cat", "stack", "unbind", "index", "expand"),
)


def step(x, name, rng, seen):
    "One random step that mixes nothing."
    dims = x.ndim
    one = int(rng.integers(dims))
    if name == "transpose":
        return x.transpose(one, int(rng.integers(dims)))
    if name == "permute":
        return x.permute(*rng.permutation(dims).tolist())
    if name == "flatten" and dims > 2:
        first = int(rng.integers(dims - 1))
        return x.flatten(first, first + 1)
    if name == "unflatten" and x.shape[one] % 2 == 0 and dims < 6:
        return x.unflatten(one, (2, x.shape[one] // 2))
    if name == "unsqueeze" and dims < 6:
        return x.unsqueeze(one)
    if name == "squeeze":
        return x.squeeze()
    if name == "contiguous":
        return x.contiguous()
    if name == "relu":
        return F.leaky_relu(x, 0.5)
    if name == "add":
        return x + torch.ones(x.shape[-1])
    if name == "cat":
        return torch.cat(x.split(max(1, x.shape[one] // 2), one), one)
    if name in ("stack", "unbind"):
        return torch.stack(x.unbind(one), one)
    if name == "index":
        order = torch.as_tensor(rng.permutation(x.shape[one]))
        return x.index_select(one, order).index_select(one, order.argsort())
    if name == "expand":
        return x.expand(x.shape)
    return x


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6))
def test_any_number_of_moves(seed):
    "What is said is right; where axes were joined and cut across, nothing need be said."
    rng = np.random.default_rng(seed)
    names = [STEPS[k] for k in rng.integers(len(STEPS), size=rng.integers(1, 9))]
    number = int(rng.integers(10**6))

    def forward(self, x):
        x = self.fc(x)
        inner = np.random.default_rng(number)
        for name in names:
            x = step(x, name, inner, None)
        return self.probe(x)

    model = net(forward, fc=nn.Linear(N, N))
    watcher = Watcher(model, ["probe"])
    with torch.no_grad(), watcher.watch() as outputs:
        model(data(N, N, N))
    how = outputs.arrangements["probe"]
    if isinstance(how, Unusable):
        hard = {"stack", "unbind", "cat"} & set(names)
        assert hard or "two axes" in how.why or "taken apart" in how.why
        return
    assert changed_inputs(model, "probe", data(N, N, N)) == [1]
    if how.known and outputs.arranged("probe").shape[1] == N:  # else they were flattened
        weights = model.fc.weight
        changed = changed_neurons(model, "probe", data(N, N, N), weights, lambda w: w[1])
        assert len(changed) == 1, "or one in another order"


def test_a_tracker_that_is_wrong_would_be_noticed(monkeypatch):
    "The oracle sees a rule that forgets to move axes."
    from submatch_nb.engine import operations

    monkeypatch.setitem(operations.RULES, "transpose", operations.kept)
    model = net(lambda self, x: self.probe(self.fc(x).transpose(0, 1)), fc=nn.Linear(N, N))
    assert changed_inputs(model, "probe", data(N, N, N)) != [1]


def test_views_keep_all_factors_in_their_order():
    inputs, tokens, features = Factor(4, "inputs"), Factor(6), Factor(10, "neurons", 1)
    axes = (inputs,), (tokens,), (features,)
    flat = regrouped(axes, (24, 10))
    assert flat == ((inputs, tokens), (features,)) and role_of(flat[0]) == "inputs"
    assert regrouped(flat, (4, 6, 10)) == axes
    heads = regrouped(flat, (4, 6, 2, 5))
    assert regrouped(heads, (24, 10)) == flat
    assert regrouped(axes, (5, 48)) is None and regrouped(axes, (4, 6, 0)) is None


# recurrent, recorded, convolved


def recurrent(cls, batch_first):
    def forward(self, x):
        out = self.rnn(x if batch_first else x.transpose(0, 1))[0]
        return self.head(out)

    return net(
        forward,
        rnn=cls(N, N, num_layers=2, bidirectional=True, batch_first=batch_first),
        head=nn.Linear(2 * N, N),
    )


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.RNN])
def test_time_first_is_batch_first(cls):
    torch.manual_seed(0)
    first, late = recurrent(cls, True), recurrent(cls, False)
    late.load_state_dict(first.state_dict())
    for positions in ("all", "mean"):
        found = collect(
            first,
            late,
            data(20, N, N),
            ["rnn", "head"],
            batch_size=N,
            positions=positions,
            **OPTIONS,
        )
        for layer in found.values():
            own, other = layer.gram[: layer.n_x, : layer.n_x], layer.gram[layer.n_x :, layer.n_x :]
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)
            assert layer.count == 20 * (N if positions == "all" else 1)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("how", ["stacked", "written", "time first"])
def test_cells_that_are_unrolled(cell, how):
    def forward(self, x):
        state, seen = None, []
        for token in x.unbind(1):
            state = self.cell(token, state)
            seen.append(state[0] if isinstance(state, tuple) else state)
        if how == "written":
            room = x.new_zeros(len(x), x.shape[1], N)
            for k, part in enumerate(seen):
                room[:, k] = part
            return self.probe(room)
        return self.probe(torch.stack(seen, 0 if how == "time first" else 1))

    assert changed_inputs(net(forward, cell=cell(N, N)), "probe", data(N, N, N)) == [1]


def test_convolutions_of_films_and_patches():
    "Frames that are joined with the inputs; patches that become tokens; windows of attention."

    def film(self, x):
        frames = self.conv(x.flatten(0, 1))
        return self.probe(frames.unflatten(0, x.shape[:2]).transpose(0, 1))

    def patches(self, x):
        return self.probe(self.conv(x).flatten(2).mT)

    def windows(self, x):
        x = self.conv(x).permute(0, 2, 3, 1)
        x = x.view(N, 2, 3, 2, 3, N).permute(0, 1, 3, 2, 4, 5).reshape(-1, 9, N)
        return self.probe(x)

    for forward, shape in (
        (film, (N, N, 3, N, N)),
        (patches, (N, 3, N, N)),
        (windows, (N, 3, N, N)),
    ):
        model = net(forward, conv=nn.Conv2d(3, N, 3, padding=1))
        assert_known(model, "probe", data(*shape), model.conv.weight, lambda w: w[1])


def test_attention_and_mixing():
    "The mixed axis is one of positions: residual streams stay layers of features."

    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.features = nn.Linear(N, N), nn.Linear(N, N)
            self.norm = nn.LayerNorm(N)

        def forward(self, x):
            x = x + F.gelu(self.tokens(self.norm(x).mT)).mT
            return x + F.gelu(self.features(self.norm(x)))

    class Graph(nn.Module):
        "A graph convolution: neighbours are mixed from the left."

        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(N, N)
            self.register_buffer("neighbours", torch.eye(N).roll(1, 0))

        def forward(self, x):
            return F.relu(self.neighbours @ self.fc(x))

    for inner in (Mixer(), Graph(), nn.TransformerEncoderLayer(N, 2, N, batch_first=True)):
        model = nn.Sequential(nn.Linear(N, N), inner, nn.Identity())
        how = Watcher(model.eval(), ["2"])
        with torch.no_grad(), how.watch() as outputs:
            model(data(N, N, N))
        assert outputs.neurons["2"] == "feature" and outputs.arrangements["2"].known
        assert changed_inputs(model, "2", data(N, N, N)) == [1]


def test_under_vmap_a_module_is_seen_as_a_whole():
    def forward(self, x):
        return self.probe(torch.vmap(self.fc)(x))

    model = net(forward, fc=nn.Linear(N, N))
    assert_known(model, "fc", data(N, N, N), model.fc.weight, lambda w: w[1])
    assert_known(model, "probe", data(N, N, N), model.fc.weight, lambda w: w[1])


def test_what_goes_through_numpy_is_told_by_the_class():
    def forward(self, x):
        return self.conv(torch.from_numpy(x.detach().numpy().copy()))

    model = net(forward, conv=nn.Conv1d(N, N, 1))
    assert_known(model, "conv", data(N, N, N), model.conv.weight, lambda w: w[1])


# what is not known is refused, or warned of once


@pytest.mark.parametrize(
    "forward, batch, match",
    [
        (
            lambda s, x: torch.stack([s.probe(s.fc(row)) for row in x]),
            (N, N),
            "one input at a time",
        ),
        (lambda s, x: s.fc(s.probe(x[0])), (N, N, N), "one input at a time"),
        (lambda s, x: s.probe(s.fc(x)[torch.randperm(N)]), (N, N), "a selection of the inputs"),
        (lambda s, x: s.probe(s.fc(x)[x[:, 0] > 0]), (N, N), "a selection of the inputs"),
        (lambda s, x: s.probe(s.fc(x) @ s.fc(x).T), (N, N), "two axes"),
        (lambda s, x: s.probe(s.fc(x).mean(1)), (N, N), "one number for each input"),
        (lambda s, x: s.probe(s.fc(x).mean()), (N, N), "a single number"),
        (lambda s, x: s.probe(s.rnn(x)[0]), (N, N, N), "batch_first is False"),
        (lambda s, x: s.probe(s.encoder(x)), (N, N, N), None),
    ],
)
def test_unusable_layers_are_refused_by_name(forward, batch, match):
    def both(self, x):
        self.usable(x)
        return forward(self, x)

    model = net(
        both,
        fc=nn.Linear(N, N),
        rnn=nn.LSTM(N, N),
        encoder=nn.TransformerEncoderLayer(N, 2, N, batch_first=False),
        usable=nn.Linear(N, N),
    )
    layer = "probe"
    if match is None:  # the layers themselves, which take inputs for time
        layer, match = "encoder", "batch_first is False"
    elif "batch_first" in match:
        layer = "rnn"
    models = model, deepcopy(model)
    with pytest.raises(ValueError, match=f"layer '{layer}' of the first network: .*{match}"):
        collect(*models, data(*batch), [layer], **OPTIONS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = collect(*models, data(*batch), "all", **OPTIONS)
    assert "usable" in found and layer not in found
    assert any(repr(layer) in str(w.message) and "not compared" in str(w.message) for w in caught)


def test_single_inputs_are_no_batches():
    convs = [nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()) for _ in "ab"]
    for singles in ([data(3, 8, 8)] * 4, [(data(3, 8, 8), 1)] * 4):
        with pytest.raises(ValueError, match="for a single input: give batches"):
            collect(*convs, singles, **OPTIONS)


def test_open_neurons_are_warned_of_once_and_can_be_said():
    models = [nn.Sequential(nn.ReLU(), nn.Linear(N, N)) for _ in "ab"]
    with pytest.warns(SubmatchWarning, match=r"does not show in '0'.*neurons=") as caught:
        found = collect(*models, data(N, N, N), ["0"], batch_size=2, **OPTIONS)
    assert len(caught) == 1 and found.neurons == {"0": "feature"}
    X = data(N, N, N).relu()
    for said, matrix, kind in (
        (1, X.movedim(1, -1).flatten(0, 1), "channel"),
        (-1, X.flatten(0, 1), "feature"),
        ("channel", X.movedim(1, -1).flatten(0, 1), "channel"),
        ("unit", X.flatten(1), "unit"),
        (lambda output: output.mT[:, :2], X.flatten(0, 1)[:, :2], "neuron"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = collect(*models, data(N, N, N), ["0"], neurons={"0": said}, **OPTIONS)
        assert found.neurons == {"0": kind}
        n = found["0"].n_x
        torch.testing.assert_close(found["0"].gram[:n, :n], Moments(matrix, matrix).gram[:n, :n])
    for said, match in (
        (0, "axis 0, which counts the inputs"),
        (3, "axis 3, and its output has 3 axes"),
        (lambda output: output[0], r"makes \(6, 6\) of 9 inputs, not \(inputs, neurons"),
    ):
        with pytest.raises(ValueError, match=f"layer '0' of the first network: .*{match}"):
            collect(*models, data(9, N, N), ["0"], neurons=said, **OPTIONS)


def test_the_number_of_neurons_is_the_same_in_all_batches():
    models = [nn.Sequential(nn.Linear(N, N), nn.ReLU()) for _ in "ab"]
    batches = [data(N, 5, N), data(N, 7, N)]
    with pytest.raises(ValueError, match=r"layer '1', batch 1: 7 neurons in the first.*neurons="):
        collect(*models, batches, neurons={"1": 1}, **OPTIONS)
    found = collect(*models, batches, **OPTIONS)
    assert found["1"].count == 12 * N


def test_other_axes_in_a_later_batch():
    class Squeezing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.probe = nn.Conv2d(3, 4, 3), nn.Identity()

        def forward(self, x):
            return self.probe(self.conv(x).mean(3).squeeze())

    with pytest.raises(ValueError, match=r"'probe' of the first network, batch 1: it puts out"):
        collect(Squeezing(), Squeezing(), data(5, 3, 5, 5), ["probe"], batch_size=4, **OPTIONS)


def test_a_batch_that_is_made_for_one_network_is_followed_too():
    "Data with the inputs first, and a network that takes time first."
    torch.manual_seed(0)
    late = nn.Sequential(nn.LSTM(N, N))
    early = nn.Sequential(nn.LSTM(N, N, batch_first=True))
    early.load_state_dict(late.state_dict())
    found = collect(
        late,
        early,
        data(20, N, N),
        ["0"],
        batch_size=N,
        positions="mean",
        preprocess={"first": lambda x: x.transpose(0, 1)},
        **OPTIONS,
    )["0"]
    assert found.count == 20
    torch.testing.assert_close(found.gram[:N, :N], found.gram[N:, N:], rtol=1e-4, atol=1e-5)


def test_capture_knows_the_same():
    model = nn.Sequential(Conv1D(), nn.GELU())
    with torch.no_grad(), capture(model, ["1"]) as outputs:
        model(data(N, N, N))
        assert outputs.neurons["1"] == "feature"
        model(data(3, N, N))
    assert outputs.arranged("1").shape == (3, N, N)


def test_tracking_changes_nothing():
    "The numbers of the first pass are those of the model alone, and those of the second."
    model = nn.Sequential(
        nn.Conv1d(N, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(32, 8), nn.Softmax(1)
    ).eval()
    x = data(5, N, N)
    with torch.no_grad():
        alone = model(x)
        watcher = Watcher(model, "all")
        with watcher.watch() as outputs:
            model(x)
            tracked = outputs["4"]
            model(x)
        assert torch.equal(alone, tracked) and torch.equal(alone, outputs["4"])


def test_a_tracker_holds_no_activation():
    with torch.no_grad(), Tracker() as tracker:
        x = data(N, N)
        tracker.begin({"x": x}, N)
        for _ in range(50):
            x = x + 1
        held = len(tracker.ledger.memory)
        axes = tracker.axes(x)
    assert isinstance(by_tracking(axes, tracker.inputs), Arrangement) and held <= 52
    expired = sum(reference.expired() for reference, _ in tracker.ledger.memory.values())
    assert expired >= held - 2
    assert not isinstance(by_tracking(axes, tracker.inputs), Unusable)


# what is made of weights alone


TABLES = {
    "a parameter": lambda self, x: self.table,
    "once for each input": lambda self, x: self.table.expand(len(x), -1, -1),
    "an embedding": lambda self, x: self.embed(self.places),
    "of numbers made on the way": lambda self, x: self.embed(torch.arange(x.shape[1])),
    "of repeated numbers": lambda self, x: self.embed(self.places.repeat(len(x), 1)),
    "a projection": lambda self, x: self.other(self.table),
    "waves": lambda self, x: torch.outer(self.places, torch.ones(N)).sin(),
}


@pytest.mark.parametrize("how", TABLES)
def test_tables_count_no_inputs(how):
    "As many rows as there are inputs, and made of weights alone: no layer of the batch."

    def forward(self, x):
        return self.fc(x + self.probe(TABLES[how](self, x)))

    def table(seed):
        torch.manual_seed(seed)
        parts = {"fc": nn.Linear(N, N), "other": nn.Linear(N, N), "embed": nn.Embedding(N, N)}
        model = net(forward, table=weight(N, N), **parts)
        model.register_buffer("places", torch.arange(N))
        return model

    nets = table(0), table(1)
    with pytest.warns(SubmatchWarning, match="weights alone"):
        found = collect(*nets, data(N, N, N), "all", **OPTIONS)
    assert "probe" not in found and found.neurons["fc"] == "feature"
    assert_known(nets[0], "fc", data(N, N, N), nets[0].fc.weight, lambda w: w[1])
    with pytest.raises(ValueError, match="'probe' of the first network.*weights alone"):
        collect(*nets, data(N, N, N), ["probe"], **OPTIONS)


def test_numbers_drawn_on_the_way_are_no_weights():
    "A network that draws its own noise has a row for each input all the same."

    def forward(self, x):
        return self.fc(self.probe(torch.randn(len(x), N)))

    nets = [net(forward, fc=nn.Linear(N, N)) for _ in range(2)]
    assert collect(*nets, data(3, N, N), ["fc"], **OPTIONS)["fc"].count == 3


def test_a_selection_beside_all_inputs():
    "Rows are those of the inputs, in whatever order the two are added or joined."

    def forward(self, x):
        films = self.fc(x.flatten(0, 1))
        some = films[: len(x), None]
        both = torch.cat([some, films.view(x.shape)], 1) + torch.cat([films.view(x.shape), some], 1)
        return self.probe(both)

    model = net(forward, fc=nn.Linear(N, N))
    watcher = Watcher(model.eval(), "all")
    with torch.no_grad(), watcher.watch() as outputs:
        model(data(3, 4, N))
    assert outputs.arranged("probe").shape == (3, N, 5)


@pytest.mark.parametrize("steps", [2, 4])
def test_the_first_step_from_zeros_is_a_step(steps):
    "It is made of weights alone, and one of several calls of a layer that sees the batch."

    def forward(self, x):
        state = torch.zeros(len(x), N)
        for step in x.unbind(1):
            state = self.probe(torch.tanh(self.cell(state) + step))
        return state

    nets = [net(forward, cell=nn.Linear(N, N)) for _ in range(2)]
    found = collect(*nets, data(9, steps, N), ["cell"], **OPTIONS)
    assert [*found] == ["cell", *(f"cell:{k}" for k in range(1, steps))]
    assert {layer.count for layer in found.values()} == {9}
    changing = [data(9, steps, N), data(9, steps - 1, N)]
    with pytest.raises(ValueError, match=f"layer 'cell' ran {steps - 1} times?, and {steps} times"):
        collect(*nets, changing, ["cell"], **OPTIONS)
    with pytest.raises(ValueError, match="weights alone"):
        collect(*nets, data(9, 1, N), ["cell"], **OPTIONS)
