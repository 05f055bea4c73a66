"""Real architectures, random weights: eight of torchvision, of timm, and of transformers.

Every layer that can be compared is held to what its module says of its neurons, to an experiment
that tells the axis of the inputs, and to the same layer at sizes that coincide. Long tier.
"""

import warnings
from collections.abc import Mapping

import pytest
import torch
from torch import nn
from torchvision import models as vision

from submatch_nb import Moments, compare
from submatch_nb.engine.arranging import Unusable
from submatch_nb.layers import capture, collect, evaluating

pytestmark = pytest.mark.long

INPUTS = 3


def images(size, *axes):
    "Random images; with more axes films."

    def make(count, seed=0, size=size):
        return torch.randn(count, 3, *axes, size, size, generator=generator(seed))

    return make


def generator(seed):
    return torch.Generator().manual_seed(seed)


def tokens(count, seed=0, size=10):
    "Random tokens; of every third sentence the second half is padding."
    ids = torch.randint(3, 50, (count, size), generator=generator(seed))
    mask = torch.ones_like(ids)
    mask[2::3, size // 2 :] = 0
    return {"input_ids": torch.where(mask > 0, ids, 0), "attention_mask": mask}


def translated(count, seed=0, size=10):
    "Random sentences, and the beginnings of their translations."
    others = tokens(count, seed + 100, 7)
    return tokens(count, seed, size) | {"decoder_input_ids": others["input_ids"].clamp(min=1)}


def pixels(count, seed=0, size=32):
    return {"pixel_values": images(size)(count, seed)}


def captioned(count, seed=0, size=10):
    return tokens(count, seed, size) | pixels(count, seed)


SWIN = {"patch_size": [4, 4], "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4]}
TORCHVISION = {
    "resnet18": (lambda: vision.resnet18(num_classes=10), images(32)),
    "vgg11_bn": (lambda: vision.vgg.make_layers(vision.vgg.cfgs["A"], True), images(32)),
    "densenet": (lambda: vision.DenseNet(8, (2, 2, 2), 16), images(32)),
    "mobilenet_v3_small": (vision.mobilenet_v3_small, images(32)),
    "efficientnet_b0": (vision.efficientnet_b0, images(32)),
    "vit": (lambda: vision.VisionTransformer(32, 8, 2, 4, 48, 64), images(32)),
    "swin": (lambda: vision.SwinTransformer(window_size=[4, 4], **SWIN), images(32)),
    "r3d_18": (vision.video.r3d_18, images(32, 8)),
}

SMALL = {"img_size": 32, "depth": 2}
TIMM = {
    "vit_tiny_patch16_224": (SMALL | {"patch_size": 8}, 32),
    "convnext_atto": ({}, 64),
    "resnet10t": ({}, 32),
    "mobilevit_xxs": ({}, 64),
    "poolformer_s12": ({}, 64),
    "cait_xxs24_224": (SMALL | {"patch_size": 8}, 32),
    "levit_128s": ({}, 224),
    "pvt_v2_b0": ({}, 64),
}

WIDTH = 24
BODY = {
    "vocab_size": 50,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": 50, "n_positions": 64, "n_embd": WIDTH, "n_layer": 2, "n_head": 2}
T5 = {"vocab_size": 50, "d_model": WIDTH, "d_kv": 12, "d_ff": 40, "num_layers": 2, "num_heads": 2}
EYE = {name: value for name, value in BODY.items() if "_size" in name and name != "vocab_size"}
EYE |= {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
LIPS = {"text_config": BODY | {"eos_token_id": 2}, "vision_config": EYE, "projection_dim": 12}
TRANSFORMERS = {
    "Bert": (BODY, tokens),
    "GPT2": (GPT2, tokens),
    "Llama": (BODY | {"num_key_value_heads": 1, "head_dim": 12}, tokens),
    "T5": (T5 | {"decoder_start_token_id": 0}, translated),
    "DebertaV2": (BODY | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, tokens),
    "Mamba": (BODY | {"state_size": 4}, tokens),
    "ViT": (EYE, pixels),
    "CLIP": (LIPS, captioned),
}


def made(library, name, seed=0):
    "A network with random weights, and what makes its inputs."
    torch.manual_seed(seed)
    if library == "torchvision":
        make, data = TORCHVISION[name]
        return make().eval(), data
    package = pytest.importorskip(library, reason=f"no {library}: pip install {library}")
    if library == "timm":
        options, size = TIMM[name]
        return package.create_model(name, num_classes=10, **options).eval(), images(size)
    options, data = TRANSFORMERS[name]
    config = getattr(package, f"{name}Config")(**options)
    return getattr(package, f"{name}Model")(config).eval(), data


NETWORKS = [
    *(("torchvision", name) for name in TORCHVISION),
    *(("timm", name) for name in TIMM),
    *(("transformers", name) for name in TRANSFORMERS),
]
every_network = pytest.mark.parametrize("library, name", NETWORKS, ids=map("-".join, NETWORKS))


def seen(model, batch):
    "The outputs of all layers."
    with torch.no_grad(), warnings.catch_warnings(), capture(model, "all") as outputs:
        warnings.simplefilter("ignore")
        model(**batch) if isinstance(batch, Mapping) else model(batch)
    return outputs


def usable(outputs):
    return [key for key, how in outputs.arrangements.items() if not isinstance(how, Unusable)]


def with_another(batch, others, place):
    "A batch in which one input is another one."
    if isinstance(batch, Mapping):
        entries = batch.items()
        return {name: with_another(part, others[name], place) for name, part in entries}
    changed = batch.clone()
    changed[place] = others[place]
    return changed


def neurons_of(module):
    "How many neurons a module says that it has; None where it does not say."
    name = type(module).__name__
    if isinstance(module, (nn.Linear, nn.Embedding)):
        return module.weight.shape[0 if isinstance(module, nn.Linear) else 1]
    if isinstance(module, nn.modules.conv._ConvNd):
        return module.out_channels
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.num_features
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[-1]
    return module.nf if name == "Conv1D" else None


@every_network
def test_the_axes_of_every_layer(library, name):
    "One input is replaced: in every layer its row changes, and no other."
    model, data = made(library, name)
    batch = data(INPUTS)
    outputs, changed = (seen(model, b) for b in (batch, with_another(batch, data(INPUTS, 1), 1)))
    modules = dict(model.named_modules())
    keys = usable(outputs)
    blind = [key for key in outputs if key not in keys]
    assert len(keys) > 10
    moved = 0
    for key in keys:
        Z, W = outputs.arranged(key), changed.arranged(key)
        assert len(Z) == INPUTS, key
        expected = neurons_of(modules.get(key.split(":")[0]))
        assert expected in (None, Z.shape[1]), key
        same = (Z - W).flatten(1).abs().amax(1) <= 1e-4 * Z.abs().max().clamp(min=1e-30)
        assert same[0] and same[2], key
        moved += int(not same[1])
    assert moved > 0.6 * len(keys)  # layer scales and class tokens change late
    for key in blind:  # what cannot be compared is of positions alone, the same for all inputs
        torch.testing.assert_close(outputs[key], changed[key])


COINCIDING = [pair for pair in NETWORKS if pair[0] == "transformers"]


@pytest.mark.parametrize("library, name", COINCIDING, ids=map("-".join, COINCIDING))
def test_sizes_that_coincide_tell_nothing(library, name):
    "As many inputs as neurons, and as many tokens, too: the axes are those of other sizes."
    model, data = made(library, name)
    sizes = {} if data is pixels else {"size": WIDTH}
    usual, coincident = seen(model, data(INPUTS)), seen(model, data(WIDTH, **sizes))
    keys = usable(usual)
    assert usable(coincident) == keys and usual.neurons == coincident.neurons
    for key in keys:
        one, other = usual.arrangements[key], coincident.arrangements[key]
        roles = [[[part.role for part in axis] for axis in how.parts] for how in (one, other)]
        assert roles[0] == roles[1], key
        assert usual.arranged(key).shape[1] == coincident.arranged(key).shape[1], key


@every_network
def test_two_of_a_kind_are_compared(library, name):
    "Blocks of two networks, in batches, shuffled for the null; a network and its copy match."
    nets = [made(library, name, seed)[0] for seed in (0, 1)]
    data = made(library, name)[1]
    batches = [data(INPUTS, seed) for seed in range(4)]
    layers = "block" if name != "vgg11_bn" else "conv"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = compare(*nets, batches, layers, positions="mean", progress=False, groups=2)
        copy = compare(nets[0], made(library, name)[0], batches, layers, **PLAIN)
    assert len(found) > 1
    for layer in found.values():
        assert layer.profile.count == layer.images == 4 * INPUTS
        assert len(layer.null) == 1
    for layer in copy.values():
        live = layer.profile.x[layer.profile.x < float("inf")]
        assert len(live) and live.max() < 0.01


PLAIN = {"progress": False, "null": 0, "groups": 0}
MASKED = [name for name, (_, data) in TRANSFORMERS.items() if data is not pixels]


@pytest.mark.parametrize("name", MASKED)
def test_padding_does_not_count(name):
    "Of layers that have a position for each token, those that the mask leaves; each is its own."
    nets = [made("transformers", name, seed)[0] for seed in (0, 1)]
    data = made("transformers", name)[1]
    batches = [data(INPUTS, seed) for seed in range(3)]
    real = torch.cat([batch["attention_mask"] for batch in batches]) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect(*nets, batches, "all", **PLAIN)
    counted = {key for key, how in found.positions.items() if how == "all (attention_mask)"}
    assert len(counted) > 10
    assert all(found[key].count == int(real.sum()) for key in counted)
    rows = []
    with evaluating(*nets):
        for net in nets:
            each = [seen(net, batch) for batch in batches]
            rows.append(
                {
                    k: torch.cat([o.arranged(k) for o in each])[:, :, : real.shape[1]]
                    for k in counted
                }
            )
    for key in counted:
        X, Y = (of[key].movedim(1, -1).flatten(1, -2)[real] for of in rows)
        torch.testing.assert_close(found[key].gram, Moments(X, Y).gram, rtol=1e-4, atol=1e-4)
    unmasked = [key for key in found if found[key].count == real.numel() and key not in counted]
    assert not unmasked
