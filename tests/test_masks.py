"""Which positions count: padding, special tokens, first and last; sampled, shuffled, averaged."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, Dataset

from submatch_nb import Sampled, compare
from submatch_nb.engine.inputs import SubmatchWarning
from submatch_nb.engine.moments import Moments
from submatch_nb.layers import collect, evaluating

PLAIN = {"progress": False, "null": 0, "groups": 0}
COUNT, LONGEST, WORDS = 40, 9, 50
RANDOM = torch.Generator().manual_seed(0)
IDS = torch.randint(1, WORDS, (COUNT, LONGEST), generator=RANDOM)
LENGTHS = torch.randint(1, LONGEST + 1, (COUNT, 1), generator=RANDOM)
REAL = torch.arange(LONGEST) < LENGTHS


class Reader(nn.Module):
    "Reads tokens; a head sees the first one of each sentence."

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(WORDS, 8)
        self.fc, self.act, self.head = nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.act(self.fc(self.embed(input_ids)))[:, 0])


def sentences(size=8, mask=REAL, **others):
    "Batches as transformers takes them."
    entries = {"input_ids": IDS, "attention_mask": mask.long(), **others}
    return [
        {name: value[start : start + size] for name, value in entries.items()}
        for start in range(0, COUNT, size)
    ]


class Sentences(Dataset):
    "The same one by one."

    def __len__(self):
        return COUNT

    def __getitem__(self, k):
        return {"input_ids": IDS[k], "attention_mask": REAL[k].long()}


NETS = Reader(0), Reader(1)


def activations(layer="act"):
    "(inputs, tokens, neurons) of both networks."
    with evaluating(*NETS):
        return [net.act(net.fc(net.embed(IDS))) for net in NETS]


def assert_moments(layer, X, Y):
    expected = Moments(X, Y)
    assert layer.count == expected.count
    torch.testing.assert_close(layer.gram, expected.gram, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("null", [0, 1, 3])
@pytest.mark.parametrize(
    "data",
    [sentences(), sentences(7), Sentences(), DataLoader(Sentences(), 11), iter(sentences())],
    ids=["list", "other batches", "data set", "loader", "iterator"],
)
def test_attention_masks_are_taken_by_themselves(data, null):
    if null and not isinstance(data, Dataset | list):
        data = DataLoader(Sentences(), 11)
    found = collect(*NETS, data, ["fc", "act", "head"], progress=False, null=null)
    assert found.positions == {
        "fc": "all (attention_mask)",
        "act": "all (attention_mask)",
        "head": "all",
    }
    assert found["head"].count == COUNT
    X, Y = activations()
    assert_moments(found["act"], X[REAL], Y[REAL])


def test_masks_that_are_said():
    X, Y = activations()
    data = sentences()
    for mask, real, name in (
        (False, torch.ones_like(REAL), "all"),
        ("attention_mask", REAL, "all (attention_mask)"),
        (lambda batch: batch["input_ids"] != 3, IDS != 3, "all (mask)"),
        (lambda batch: (batch["input_ids"] > 9).numpy(), IDS > 9, "all (mask)"),
        (
            lambda batch: batch["input_ids"][:, 0] > 25,
            (IDS[:, :1] > 25).expand_as(IDS),
            "all (mask)",
        ),
    ):
        found = collect(*NETS, data, ["act"], mask=mask, **PLAIN)["act"]
        assert_moments(found, X[real], Y[real])
        assert found.positions == name
    special = sentences(special_tokens_mask=(IDS < 9).long())
    found = collect(*NETS, special, ["act"], mask="special_tokens_mask", **PLAIN)["act"]
    assert_moments(found, X[REAL & (IDS >= 9)], Y[REAL & (IDS >= 9)])
    rows = collect(*NETS, data, ["head"], mask=lambda b: b["input_ids"][:, 0] > 25, **PLAIN)["head"]
    assert rows.count == int((IDS[:, 0] > 25).sum())


@pytest.mark.parametrize(
    "mask, error, match",
    [
        ("attention", ValueError, "mask is 'attention', and a batch has input_ids, attention_mask"),
        (3, TypeError, "mask is 3: name an entry of the batch"),
        (torch.ones(99), TypeError, r"mask is tensor\(.{1,40}\.\.\..{1,40}: name an entry"),
        (lambda b: b["input_ids"][:, 1:], ValueError, r"'act'.*mask has shape \(8, 8\).*\(9,\)"),
        (lambda b: 1, ValueError, "mask is a single number"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask, error, match):
    with pytest.raises(error, match=match):
        collect(*NETS, sentences(), ["act"], mask=mask, **PLAIN)


@pytest.mark.parametrize("data", [sentences(), Sentences()], ids=["list", "data set"])
def test_one_position_of_each_input(data):
    X, Y = activations()
    last = LENGTHS[:, 0] - 1
    every = torch.arange(COUNT)
    weights = REAL[:, :, None].double()
    for positions, choose in (
        ("first", lambda Z: Z[:, 0]),
        ("last", lambda Z: Z[every, last]),
        ("mean", lambda Z: (Z.double() * weights).sum(1) / weights.sum(1)),
        (lambda output: output[:, 2], lambda Z: Z[:, 2]),
        (lambda output: output.amax(1), lambda Z: Z.amax(1)),
    ):
        found = collect(*NETS, data, ["act", "head"], positions=positions, **PLAIN)
        assert_moments(found["act"], choose(X), choose(Y))
        assert found["head"].count == COUNT
    left = REAL.flip(1)  # padded from the left
    found = collect(*NETS, sentences(mask=left), ["act"], positions="first", **PLAIN)["act"]
    first = LONGEST - LENGTHS[:, 0]
    assert_moments(found, X[every, first], Y[every, first])
    nothing = REAL.clone()
    nothing[3] = False  # a sentence of padding alone has no sample
    for positions in ("mean", "last", "all"):
        found = collect(*NETS, sentences(mask=nothing), ["act"], positions=positions, **PLAIN)[
            "act"
        ]
        assert found.count == (int(nothing.sum()) if positions == "all" else COUNT - 1)


def test_a_function_that_makes_something_else():
    with pytest.raises(ValueError, match=r"'act'.*positions= makes \(9, 6\) of \(8, 9, 6\)"):
        collect(*NETS, sentences(), ["act"], positions=lambda output: output[0], **PLAIN)


@pytest.mark.parametrize("null", [0, 2])
@pytest.mark.parametrize("data", [sentences(), Sentences()], ids=["list", "data set"])
def test_draws_are_of_what_counts(data, null):
    "And the same whatever the order in which inputs are read, and whatever the batches."
    sampled = Sampled(60, draws=3, seed=4)
    found = collect(*NETS, data, ["act"], positions=sampled, progress=False, null=null)["act"]
    X, Y = activations()
    for draw, moments in enumerate(found.draws):
        chosen = sampled.indices(draw, int(REAL.sum()))
        assert_moments(moments, X[REAL][chosen], Y[REAL][chosen])
    assert found.positions == "sampled, 3 x 60, seed 4 (attention_mask)"
    whole = collect(*NETS, data, ["act"], positions=Sampled(10_000, 1), **PLAIN)["act"]
    assert_moments(whole, X[REAL], Y[REAL])


def test_batches_of_other_lengths():
    "With no mask at all: each batch is as long as it is, sampled too."
    data = [IDS[:8, :5], IDS[8:20], IDS[20:23, :2]]
    X, Y = activations()
    parts = [[Z[:8, :5], Z[8:20], Z[20:23, :2]] for Z in (X, Y)]
    rows = [torch.cat([Z.flatten(0, 1) for Z in of_one]) for of_one in parts]
    assert_moments(collect(*NETS, data, ["act"], progress=False)["act"], *rows)
    sampled = Sampled(30, draws=2)
    found = collect(*NETS, data, ["act"], positions=sampled, progress=False)["act"]
    for draw, moments in enumerate(found.draws):
        chosen = sampled.indices(draw, len(rows[0]))
        assert_moments(moments, *(Z[chosen] for Z in rows))
    with pytest.raises(ValueError, match="length is known.*a list of batches"):
        collect(*NETS, iter(data), ["act"], positions=sampled, progress=False)


def test_lengths_that_show_only_when_a_network_runs():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(4, 5, batch_first=True)

        def forward(self, x, n):
            return self.rnn(pack_padded_sequence(x, n, batch_first=True, enforce_sorted=False))[0]

    x, lengths = torch.randn(20, 6, 4), torch.arange(20) % 6 + 1
    data = [{"x": x[:12], "n": lengths[:12]}, {"x": x[12:], "n": lengths[12:]}]
    nets = Packed(), Packed()
    found = collect(*nets, data, ["rnn"], progress=False)["rnn"]
    assert found.count == lengths.sum() and found.positions == "all (padding)"
    with pytest.raises(ValueError, match="shows only when it runs"):
        collect(*nets, data, ["rnn"], positions="sampled", **PLAIN)


def test_shuffled_sentences_meet_where_both_have_words():
    "With one length the null has all samples of each network; with several it has fewer."
    same = torch.arange(LONGEST) < torch.full((COUNT, 1), 5)
    found = collect(*NETS, sentences(mask=same), ["act"], progress=False)["act"]
    null = found.null_moments[0]
    n = found.n_x
    assert null.count == found.count == COUNT * 5
    for part in (slice(0, n), slice(n, None)):
        torch.testing.assert_close(null.gram[part, part], found.gram[part, part])
    assert not torch.allclose(null.gram[:n, n:], found.gram[:n, n:])
    found = collect(*NETS, sentences(), ["act"], progress=False)["act"]
    assert COUNT <= found.null_moments[0].count < found.count
    groups = [found.groups[k].count for k in range(len(found.groups))]
    assert sum(groups) == found.count and len(groups) == 20


def test_the_null_of_batches_of_other_lengths_counts_nothing_twice():
    data = [IDS[:8, :5], IDS[8:16], IDS[16:24]]
    found = collect(*NETS, data, ["act"], progress=False)["act"]
    assert found.null_moments[0].count <= found.count
    n = found.n_x
    assert (found.null_moments[0].gram.diagonal()[:n] <= found.gram.diagonal()[:n] + 1e-9).all()


class Seq2Seq(nn.Module):
    "An encoder and a decoder, whose sentences are as long."

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.encoder, self.decoder = (
            nn.Embedding(WORDS, 8),
            nn.Linear(8, 6),
            nn.Linear(8, 6),
        )

    def forward(self, input_ids, decoder_input_ids, attention_mask=None, **others):
        return self.encoder(self.embed(input_ids)), self.decoder(self.embed(decoder_input_ids))


def test_a_mask_is_about_its_own_sentences():
    "Equal lengths say nothing: the mask of the encoder does not fit the decoder."
    nets = Seq2Seq(0), Seq2Seq(1)
    data = sentences(decoder_input_ids=IDS.flip(0))
    found = collect(*nets, data, ["encoder", "decoder"], **PLAIN)
    assert found["encoder"].count == REAL.sum() and found["decoder"].count == COUNT * LONGEST
    assert list(found.positions.values()) == ["all (attention_mask)", "all"]
    own = sentences(decoder_input_ids=IDS.flip(0), decoder_attention_mask=(IDS > 9).long())
    found = collect(*nets, own, ["encoder", "decoder"], **PLAIN)
    assert found["decoder"].count == (IDS > 9).sum()
    assert found["decoder"].positions == "all (decoder_attention_mask)"


class Both(nn.Module):
    "Sees an image of 3 x 3 patches beside a sentence of nine words."

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.patches, self.words = nn.Conv2d(3, 6, 2, 2), nn.Embedding(WORDS, 6)
        self.see, self.read = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, input_ids, attention_mask, pixel_values):
        seen = self.see(self.patches(pixel_values).flatten(2).mT)
        return seen, self.read(self.words(input_ids))


def test_patches_are_no_words():
    data = sentences(pixel_values=torch.randn(COUNT, 3, 6, 6))
    found = collect(Both(0), Both(1), data, ["see", "read"], **PLAIN)
    assert found["see"].count == COUNT * 9 and found["read"].count == REAL.sum()


def test_networks_that_say_different_things():
    "Where one says nothing the other's mask holds; where both say something it must be the same."
    found = collect(
        *NETS,
        sentences(),
        ["act"],
        preprocess={"second": lambda b: {"input_ids": b["input_ids"]}},
        **PLAIN,
    )["act"]
    assert found.count == REAL.sum()
    other = {"second": lambda b: b | {"attention_mask": b["attention_mask"].flip(0)}}
    with pytest.raises(ValueError, match="layer 'act', batch 0: other positions count"):
        collect(*NETS, sentences(), ["act"], preprocess=other, **PLAIN)


def test_a_mask_in_some_batches_only():
    data = sentences()
    del data[2]["attention_mask"]
    with pytest.raises(ValueError, match="batch 2: .*by no mask, by attention_mask in the first"):
        collect(*NETS, data, ["act"], **PLAIN)


def test_several_inputs_by_their_places():
    "The names of the parameters say which of them is the mask."

    class Needs(Reader):
        def forward(self, input_ids, attention_mask):
            return super().forward(input_ids)

    data = [(b["input_ids"], b["attention_mask"]) for b in sentences()]
    found = collect(Needs(0), Needs(1), data, ["act"], **PLAIN)["act"]
    assert found.count == REAL.sum()


def test_it_stands_in_the_result(tmp_path):
    comparison = compare(*NETS, sentences(), ["act"], progress=False)
    assert comparison.positions["act"] == "all (attention_mask)"
    comparison.save(tmp_path / "c.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SubmatchWarning)
        loaded = type(comparison).load(tmp_path / "c.safetensors")
    assert loaded.positions["act"] == "all (attention_mask)"
    assert loaded.counts["act"] == REAL.sum()


def test_an_interrupted_pass_with_a_mask_resumes(tmp_path):
    class Breaking(Sentences):
        broken = True

        def __getitem__(self, k):
            if self.broken and k == 33:
                raise OSError("the disk went away")
            return super().__getitem__(k)

    data, path = Breaking(), tmp_path / "sums"
    options = {"layers": ["act"], "positions": Sampled(60, 2), "batch_size": 4, "progress": False}
    whole = collect(*NETS, Sentences(), **options)["act"]
    data.broken = False
    with pytest.MonkeyPatch.context() as patch:
        from submatch_nb.engine import collecting, counting

        patch.setattr(collecting, "SHARD", 2)
        note = counting.Lengths.note

        def noted(self, counts, inputs):
            note(self, counts, inputs)
            data.broken = bool((self.counts > 0).all())  # all have been counted

        patch.setattr(counting.Lengths, "note", noted)
        with pytest.raises(OSError, match="went away"):
            collect(*NETS, data, resume=path, **options)
    assert path.exists()
    data.broken = False
    resumed = collect(*NETS, data, resume=path, **options)["act"]
    torch.testing.assert_close(resumed.gram, whole.gram)
    np.testing.assert_array_equal(resumed.count, whole.count)


@pytest.mark.parametrize("positions", ["all", "mean", "last", Sampled(20, 2)], ids=str)
@pytest.mark.parametrize("null", [0, 1])
@pytest.mark.parametrize("whole", [False, True], ids=["of positions", "of inputs"])
def test_nothing_counts(positions, null, whole):
    "Batches of padding alone add nothing; where all are, the layer is named, and the mask."
    options = {"progress": False, "null": null, "groups": 0, "positions": positions}

    def from_the_end(batch):
        ids = batch["input_ids"]
        late = (ids[:, :1] != IDS[0, 0]).expand_as(ids)  # all but those that begin as the first
        return late[:, 0] if whole else late

    counting = (IDS[:, 0] != IDS[0, 0]).sum()
    data = sentences(1)
    each = 1 if positions in ("mean", "last") else LONGEST
    each = 20 / counting if isinstance(positions, Sampled) else each
    found = collect(*NETS, data, ["act"], mask=from_the_end, **options)["act"]
    assert found.count == counting * each
    none = torch.zeros(1) if whole else torch.zeros(1, LONGEST)
    with pytest.raises(ValueError, match="layer 'act': of its positions none counts, by mask"):
        collect(*NETS, data, ["act"], mask=lambda batch: none, **options)


@pytest.mark.parametrize("rows", [1, 7, 9])
@pytest.mark.parametrize("axes", [(), (LONGEST,)], ids=["of inputs", "of positions"])
def test_a_mask_has_a_row_for_each_input(rows, axes):
    with pytest.raises(ValueError, match=f"batch 0: mask has {rows} rows? for 8 inputs"):
        collect(*NETS, sentences(), ["act"], mask=lambda batch: torch.ones(rows, *axes), **PLAIN)


@pytest.mark.parametrize("least", [-1e9, -10_000.0, float("-inf"), float("nan")])
def test_what_is_added_to_scores_is_no_mask(least):
    added = torch.zeros(COUNT, LONGEST).masked_fill(~REAL, least)
    data = sentences(added=added)
    with pytest.raises(ValueError, match=r"added holds numbers below 0 or NaN.*mask=lambda batch"):
        collect(*NETS, data, ["act"], mask="added", **PLAIN)
    with pytest.raises(ValueError, match="mask holds numbers below 0"):
        collect(*NETS, data, ["act"], mask=lambda batch: batch["attention_mask"] - 1, **PLAIN)
    found = collect(*NETS, data, ["act"], mask=lambda batch: batch["added"] == 0, **PLAIN)
    assert found["act"].count == int(REAL.sum())


@pytest.mark.parametrize("shape", [(COUNT, 1, LONGEST, LONGEST), (COUNT, LONGEST, LONGEST)])
def test_a_mask_of_pairs_of_tokens_is_spoken_of(shape):
    batch = {"input_ids": IDS, "attention_mask": torch.ones(shape, dtype=torch.long)}
    with pytest.warns(SubmatchWarning, match=r"attention_mask has shape .*mask=, or mask=False"):
        found = collect(*NETS, [batch], ["act"], **PLAIN)
    assert found["act"].count == COUNT * LONGEST
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = collect(*NETS, [batch | {"real": REAL}], ["act"], mask="real", **PLAIN)
        collect(*NETS, [batch], ["act"], mask=False, **PLAIN)
    assert said["act"].count == int(REAL.sum())


def test_images_without_ids():
    ids = np.where(np.arange(COUNT) < 3, np.nan, np.arange(COUNT))
    with pytest.raises(ValueError, match="images holds NaN"):
        collect(*NETS, sentences(), ["act"], images=ids, **PLAIN)
