"""The inputs on which neurons are highest, against looking at all activations at once."""

from collections import OrderedDict

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from submatch_nb import top_samples
from submatch_nb.gallery import (
    ablation_cost,
    evidence,
    layer_of,
    lower_first,
    own_residual,
    private_beside_shared,
    verdict,
)


def convolution(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))


class Tokens(nn.Module):
    "An embedding and a linear layer over (inputs, tokens)."

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 6)
        self.mix = nn.Linear(6, 3)

    def forward(self, ids, attention_mask=None):
        return self.mix(self.embed(ids))


def plainly(activations, count, counted=None):
    """Numbers, values and places by sorting everything; `activations` are (inputs, neurons,
    *positions), `counted` is (inputs, *positions)."""
    inputs, neurons, *grid = activations.shape
    flat = activations.reshape(inputs, neurons, -1).copy()
    if counted is not None:
        flat = np.where(counted.reshape(inputs, 1, -1), flat, -np.inf)
    highest = flat.max(2).T  # (neurons, inputs)
    order = np.argsort(-highest, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(highest, order, 1), flat


@pytest.mark.parametrize("size", [1, 3, 7, 64])
@pytest.mark.parametrize("layer", ["0", "1", "3"])
def test_equals_sorting_all(size, layer):
    model, images = convolution(), torch.randn(23, 3, 6, 5)
    model(images[:1])
    kept = {}
    hook = model[int(layer)].register_forward_hook(lambda m, i, out: kept.update(out=out))
    with torch.no_grad():
        model(images)
    hook.remove()
    order, values, flat = plainly(kept["out"].numpy(), 4)
    found = top_samples(model, images, layer, count=4, batch_size=size, progress=False)
    assert np.allclose(found.values, values, atol=1e-6)
    clear = np.diff(values, axis=1, prepend=np.inf, append=-np.inf) < -1e-5
    apart = clear[:, :-1] & clear[:, 1:]  # neither neighbour is equal
    assert apart.mean() > 0.5 and (found.inputs == order)[apart].all()
    grid = kept["out"].shape[2:]
    assert found.grid == tuple(grid) and found.places.shape == (*values.shape, len(grid))
    for k, row in enumerate(found.inputs):
        for place, number, value in zip(found.places[k], row, found.values[k], strict=True):
            at = np.ravel_multi_index(place, grid) if grid else 0
            assert np.isclose(flat[number, k, at], value, atol=1e-6)


def test_some_neurons_are_those_of_all():
    model, images = convolution(), torch.randn(9, 3, 6, 5)
    every = top_samples(model, images, "0", count=3, progress=False)
    some = top_samples(model, images, "0", [4, 1], count=3, progress=False)
    assert some.neurons == (4, 1) and (some.inputs == every.inputs[[4, 1]]).all()
    one = top_samples(model, images, "0", 2, count=3, progress=False)
    assert one.neurons == (2,) and (one.inputs == every.inputs[[2]]).all()


def test_of_equals_the_first():
    copies = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False))
    nn.init.dirac_(copies[0].weight)  # rounds nothing
    images = torch.ones(10, 3, 6, 5)
    found = top_samples(copies, images, "0", count=4, batch_size=3, progress=False)
    assert (found.inputs == np.arange(4)).all()


def test_fewer_inputs_than_asked():
    found = top_samples(convolution(), torch.randn(2, 3, 6, 5), "0", count=5, progress=False)
    assert (found.inputs[:, 2:] == -1).all() and np.isnan(found.values[:, 2:]).all()
    assert (found.places[:, 2:] == -1).all() and (found.inputs[:, :2] >= 0).all()


def test_padding_is_not_looked_at():
    model = Tokens().eval()
    ids = torch.randint(0, 11, (8, 7))
    mask = torch.arange(7)[None] < torch.tensor([7, 3, 5, 1, 2, 7, 4, 6])[:, None]
    with torch.no_grad():
        out = model(ids).movedim(2, 1).numpy()
    loader = [
        {"ids": ids[i : i + 3], "attention_mask": mask[i : i + 3].long()} for i in range(0, 8, 3)
    ]
    found = top_samples(model, loader, "mix", count=8, progress=False)
    order, values, _ = plainly(out, 8, mask.numpy())
    assert np.allclose(found.values, values, atol=1e-6) and (found.inputs == order).all()
    assert mask.numpy()[found.inputs, found.places[..., 0]].all()
    all_of_them = top_samples(model, loader, "mix", count=8, progress=False, mask=False)
    assert np.allclose(all_of_them.values, plainly(out, 8)[1], atol=1e-6)
    assert not np.allclose(all_of_them.values, values)


def test_an_input_of_padding_alone_is_none():
    mask = torch.ones(4, 7, dtype=torch.long)
    mask[2] = 0
    loader = [{"ids": torch.randint(0, 11, (4, 7)), "attention_mask": mask}]
    found = top_samples(Tokens(), loader, "mix", count=4, progress=False)
    assert 2 not in found.inputs and (found.inputs[:, -1] == -1).all()


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU())
    model.train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    one = top_samples(model, torch.randn(20, 4), "3", count=2, progress=False)
    assert model.training and one.inputs.shape == (6, 2)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"layer": "7"}, KeyError, "7"),
        ({"neurons": 9}, IndexError, "9"),
        ({"neurons": "two"}, TypeError, "neuron indices"),
        ({"count": 0}, ValueError, "count is 0"),
        ({"count": 2.5}, ValueError, "count is 2.5"),
        ({"data": iter(())}, ValueError, "no batch"),
        ({"data": torch.full((4, 3, 6, 5), torch.nan)}, ValueError, "NaN"),
    ],
)
def test_bad_input_is_named(change, error, message):
    asked = {"data": torch.randn(4, 3, 6, 5), "layer": "0"} | change
    model = convolution()
    with pytest.raises(error, match=message):
        top_samples(model, **asked, progress=False)


def test_a_call_has_to_be_named():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x):
            return self.relu(self.relu(x) - 1)

    data = torch.randn(6, 4)
    with pytest.raises(ValueError, match="relu:1"):
        top_samples(Twice(), data, "relu", progress=False)
    second = top_samples(Twice(), data, "relu:1", count=6, progress=False)
    wanted = torch.relu(torch.relu(data) - 1).T.sort(1, descending=True).values
    assert np.allclose(second.values, wanted)


# the gallery of chapter 13


def test_class_evidence():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 500)
    noise = rng.normal(size=2000)
    Z = np.column_stack([labels * 2.0, noise, labels + noise, np.zeros(2000)])
    between = np.var([0, 1, 2, 3])
    expected = [1, 0, between / (between + 1), 0]
    assert evidence(Z, labels) == pytest.approx(expected, abs=0.05)


def test_own_residual_of_copies_sums_and_dead_neurons():
    X = np.random.default_rng(0).normal(size=(300, 3))
    Z = np.column_stack([X, X[:, 0] * 2, X[:, 1] + 1e-3 * X[:, 2], np.zeros(300)])
    found = own_residual(Z)
    assert np.isnan(found[5]) and found[:5] == pytest.approx([0] * 5, abs=1e-9)
    alone = own_residual(X)
    fit = np.linalg.lstsq(X[:, 1:], X[:, 0], rcond=None)[1]
    assert alone[0] == pytest.approx(np.sqrt(fit[0]) / np.linalg.norm(X[:, 0]))


def test_ablation_costs_nothing_where_no_weight_reads_the_unit():
    torch.manual_seed(0)
    model = nn.Sequential(
        OrderedDict(first=nn.Linear(5, 4), relu=nn.ReLU(), last=nn.Linear(4, 3))
    ).eval()
    with torch.no_grad():
        model.last.weight[:, 2] = 0
        model.last.weight *= 10
    images, labels = torch.randn(200, 5), torch.randint(3, (200,)).numpy()
    Z = layer_of(model, "relu", images)
    cost = ablation_cost(model, "relu", Z, labels)
    assert cost[2] == 0 and np.abs(cost[[0, 1, 3]]).min() > 0
    held = torch.as_tensor(Z).float()
    held[:, 0] = held[:, 0].mean()
    loss = nn.functional.cross_entropy
    classes = torch.as_tensor(labels)
    with torch.no_grad():
        more = loss(model.last(held), classes) - loss(model(images), classes)
    assert cost[0] == pytest.approx(more.item(), abs=1e-6)


@pytest.mark.parametrize(
    ("real", "shuffled", "p", "said"),
    [
        ([-0.9, -0.6], [0.1, -0.5], [0.01, 0.05], "shared when high"),
        ([0.9, 0.6], [0.1, -0.5], [0.01, 0.05], "private when high"),
        ([-0.9, 0.6], [0, 0], [0.01, 0.01], "no"),  # of both signs
        ([-0.9, -0.5], [0, 0], [0.01, 0.01], "no"),  # not beyond 0.5
        ([-0.9, -0.6], [0, 0], [0.01, 0.06], "no"),  # by chance
        ([-0.9, -0.6], [0, 0.6], [0.01, 0.01], "no"),  # the shuffled pair as much
    ],
)
def test_the_verdict_on_a_property(real, shuffled, p, said):
    assert verdict(pd.DataFrame({"real": real, "shuffled": shuffled, "p Holm": p})) == said


def test_private_neurons_beside_shared_ones():
    assert lower_first(np.array([1, 2]), np.array([2, 3, 0])) == (1 + 0.5 + 1 + 0 + 1 + 0) / 6
    table = pd.DataFrame(
        {
            "class evidence": [0.9, 0.8, 0.1],
            "active share": [0.5, 0.5, 0.5],
            "own residual": [0.1, 0.2, 0.9],
            "real": [0.2, 0.3, 0.8],
            "shuffled": [0.9, 0.8, 0.7],
        }
    )
    shared = table.assign(real=0.2)
    found = private_beside_shared({("fc", "first"): table, ("fc", "second"): shared})
    assert len(found) == 3 and set(found.index.get_level_values("network")) == {"first"}
    assert found.loc[("class evidence", "fc", "first"), "lower"] == "1.00 (0.00)"
    assert found.loc[("active share", "fc", "first"), "lower"] == "0.50 (0.50)"
