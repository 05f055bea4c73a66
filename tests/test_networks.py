"""Networks, data and training: sizes from the literature, seeds, interrupted runs, files that are
not what they should be.
"""

import copy
import math
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from conftest import CIFAR, needs_cifar
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from submatch_nb.engine.files import load_tensors, save_tensors
from submatch_nb.engine.images import Files
from submatch_nb.layers import collect
from submatch_nb.networks import (
    ARCHITECTURES,
    Images,
    Recipe,
    accuracy,
    build,
    jitter,
    load_checkpoint,
    load_data,
    predict,
    recipe_for,
    train,
)

QUICK = Recipe(epochs=3, rate=0.05, batch=64)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def same(a, b):
    a, b = (m.state_dict() for m in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", "train"), load_data("digits", "test")


@pytest.fixture(scope="module")
def straight(digits):
    return train("digits-vgg", digits, seed=3, recipe=QUICK, progress=False)


# Architectures


@pytest.mark.parametrize(
    "name, count",
    # as published for CIFAR-10 with these shortcuts (He et al. 2016 round them)
    [
        ("resnet18", 11_173_962),
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
    ],
)
def test_resnet_sizes(name, count):
    assert parameters(build(name)) == count


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n.startswith("vgg")])
def test_vgg_is_torchvisions_with_the_papers_head(name):
    with torch.device("meta"):  # sizes without numbers
        theirs = torchvision.models.get_model(name, weights=None).features
    model = build(name)
    assert parameters(model) == parameters(theirs) + (512 * 512 + 512) * 2 + 512 * 10 + 10
    order = [type(m) for m in theirs.modules() if not list(m.children())]
    ours = [type(m) for m in model.modules() if not list(m.children())]
    assert ours[: len(order)] == order


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_forward_and_each_relu_called_once(name):
    digits = name.startswith("digits")
    model = build(name, classes=7, width=1.0 if digits else 0.125).eval()
    calls = []
    for label, m in model.named_modules():
        if isinstance(m, nn.ReLU):
            m.register_forward_hook(lambda m, i, o, label=label: calls.append(label))
    assert model(torch.randn(2, *((1, 8, 8) if digits else (3, 32, 32)))).shape == (2, 7)
    assert len(calls) == len(set(calls)) == sum(isinstance(m, nn.ReLU) for m in model.modules())


@pytest.mark.parametrize(
    "name, shapes",
    [
        ("resnet20", [(16, 32)] * 7 + [(32, 16)] * 6 + [(64, 8)] * 6),
        ("resnet18", [(64, 32)] * 5 + [(128, 16)] * 4 + [(256, 8)] * 4 + [(512, 4)] * 4),
    ],
)
def test_resnet_layers(name, shapes):
    "Channels and image size of every ReLU in order: 6n + 1 of them (He et al. 2016, section 4.2)."
    model, seen = build(name).eval(), []
    for m in model.modules():
        if isinstance(m, nn.ReLU):
            m.register_forward_hook(lambda m, i, o: seen.append(tuple(o.shape[1:3])))
    model(torch.randn(1, 3, 32, 32))
    assert seen == shapes


def test_resnet_depth_is_its_number():
    for name in ("resnet18", "resnet20", "resnet56"):
        weighted = [
            m
            for n, m in build(name).named_modules()
            if isinstance(m, (nn.Conv2d, nn.Linear)) and "shortcut" not in n
        ]
        assert len(weighted) == int(name[6:])


def test_digits_vgg_is_what_the_demo_needs():
    model = build("digits-vgg")
    convolutions = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    hidden = [m.out_features for m in model.modules() if isinstance(m, nn.Linear)][:-1]
    assert len(convolutions) >= 3 and max(convolutions) >= 32 and len(hidden) == 2 and 128 in hidden


def test_width_and_shape():
    assert build("vgg16", width=0.25).conv5_3.conv.out_channels == 128
    assert build("vgg16", width=0.25).fc2.linear.out_features == 128
    assert build("resnet20", width=2).output.in_features == 128
    assert build("digits-vgg", shape=(3, 16, 16))(torch.randn(1, 3, 16, 16)).shape == (1, 10)
    with pytest.raises(ValueError, match="8 x 8 are too small.*32 x 32"):
        build("vgg11", shape=(3, 8, 8))


def test_papers_initialisation():
    model = build("vgg16_bn", seed=5)
    conv = model.conv3_2.conv.weight
    assert (
        conv.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
        and not model.conv3_2.conv.bias.any()
    )
    assert model.fc1.linear.weight.std().item() == pytest.approx(0.01, rel=0.02)


def test_torchvision_as_it_is():
    model = build("torchvision/resnet18", classes=5, seed=2)
    assert type(model) is type(torchvision.models.resnet18()) and model.fc.out_features == 5
    assert same(model, build("torchvision/resnet18", classes=5, seed=2)) and not same(
        model, build("torchvision/resnet18", classes=5, seed=3)
    )
    with pytest.raises(ValueError, match="width"):
        build("torchvision/resnet18", width=0.5)


@pytest.mark.parametrize(
    "name",
    [
        "vgg12",
        "torchvision/resnet19",
        "torchvision/vgg",
        "",
        None,
        "torchvision/fasterrcnn_resnet50_fpn",
    ],
)
def test_unknown_architecture_lists_those_there_are(name):
    with pytest.raises(ValueError, match="digits-vgg.*vgg16_bn.*resnet56.*torchvision/"):
        build(name)


@pytest.mark.parametrize("part", [slice(10), slice(-3, None), slice(50, 4, -7), slice(5, 5)])
def test_a_slice_of_images_is_images(part, digits, tmp_path):
    "In the memory and in files: as the numbers of the slice say."
    paths = [tmp_path / f"{k}.png" for k in range(60)]
    for k, path in enumerate(paths):
        Image.fromarray(np.full((4, 4, 3), 4 * k, np.uint8)).save(path)
    files = Images(Files(paths, (4, 4)), torch.arange(60), ["a"], "files")
    for images in (digits[0], files):
        found, numbers = images[part], range(len(images))[part]
        assert type(found) is Images and len(found) == len(numbers)
        for own, number in zip(range(len(found)), numbers, strict=True):
            x, y = images[number]
            assert torch.equal(found[own][0], x) and found[own][1] == y
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.ReLU())
    found = collect(network, copy.deepcopy(network), digits[0][:40], progress=False)
    assert found["2"].count == 40


@pytest.mark.parametrize("key", [1.5, None, "3", [1, 2], (1, 2), np.ones(3, bool)])
def test_an_image_goes_by_a_number(key, digits):
    assert torch.equal(digits[0][np.int64(3)][0], digits[0][torch.tensor(3)][0])
    with pytest.raises(TypeError, match="goes by a number, and several by a slice.*Subset"):
        digits[0][key]


def test_images_that_do_not_fit_together(digits):
    d = digits[0]
    with pytest.raises(ValueError, match="digits: pixels of shape .1437, 1, 8, 8. and 9 labels"):
        replace(d, labels=d.labels[:9])
    with pytest.raises(ValueError, match="pixels of shape .1437, 8, 8."):
        replace(d, pixels=d.pixels[:, 0])
    with pytest.raises(ValueError, match="images of 1 channels, and mean and std of 3 and 3"):
        Images(d.pixels, d.labels, d.classes, "digits")
    with pytest.raises(TypeError, match="one set of images: give two"):
        train(data=d)


@pytest.mark.parametrize("seed", [-1, 0.5, "0", None, True, 2**46])
def test_seed_must_be_a_number(seed):
    with pytest.raises(ValueError, match="whole number"):
        build("digits-mlp", seed=seed)


def test_seed_decides_the_weights_and_nothing_else_changes():
    torch.manual_seed(123)
    before = torch.get_rng_state()
    a = build("resnet20", seed=1)
    torch.rand(5)
    assert same(a, build("resnet20", seed=1)) and not same(a, build("resnet20", seed=2))
    torch.set_rng_state(before)
    build("torchvision/resnet18", seed=1)
    assert torch.equal(before, torch.get_rng_state())


# Data


def test_digits_are_the_digits(digits):
    raw, everything = load_digits(), load_data("digits", "all")
    assert np.array_equal(everything.pixels[:, 0].numpy(), raw.images) and np.array_equal(
        everything.labels.numpy(), raw.target
    )
    a, b = (
        {bytes(p.numpy()) + bytes([y]) for p, y in zip(d.pixels, d.labels.tolist())} for d in digits
    )
    assert not a & b and len(digits[0]) + len(digits[1]) == 1797 and len(digits[1]) == 360
    share = np.bincount(digits[1].labels) / np.bincount(raw.target)
    assert share == pytest.approx(np.full(10, 0.2), abs=0.005)
    assert torch.equal(load_data("digits", "test").pixels, digits[1].pixels)


def test_item_and_batch_agree(digits):
    x, y = digits[0].batch([4, 9])
    assert (
        torch.equal(digits[0][9][0], x[1]) and digits[0][9][1] == y[1] and x.dtype == torch.float32
    )
    assert torch.allclose(x * 0.376 + 0.305, digits[0].pixels[[4, 9]] / 16)
    assert [len(x) for x, _ in digits[1].batches(100)] == [100, 100, 100, 60]
    with pytest.raises(IndexError):
        digits[0][len(digits[0])]
    assert (
        digits[0].fingerprint()
        == load_data("digits", "train").fingerprint()
        != digits[1].fingerprint()
    )
    assert len(next(iter(torch.utils.data.DataLoader(digits[0], 32)))[0]) == 32


def test_jitter_is_a_window_of_the_padded_image():
    x = torch.arange(1, 3 * 16 * 16 + 1).reshape(1, 3, 16, 16).repeat(400, 1, 1, 1)
    padded = torch.nn.functional.pad(x[0], (2, 2, 2, 2))
    windows = {
        (padded[:, i : i + 16, j : j + 16], f)
        for i in range(5)
        for j in range(5)
        for f in (False, True)
    }
    windows = {bytes((w.flip(2) if f else w).contiguous().numpy()) for w, f in windows}
    assert len(windows) == 50
    got = [
        bytes(image.contiguous().numpy()) for image in jitter(x, torch.Generator().manual_seed(0))
    ]
    assert set(got) == windows, "every window, mirrored or not, and no other"
    plain = {
        bytes(i.contiguous().numpy())
        for i in jitter(x, torch.Generator().manual_seed(0), flip=False)
    }
    assert len(plain) == 25 and plain < windows


def picture(path, value, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 10, 20)).save(path)


@pytest.fixture
def folder(tmp_path):
    for part, n in (("train", 5), ("val", 2)):
        for c, name in enumerate(("cat", "dog")):
            for i in range(n):
                picture(tmp_path / part / name / f"{i}.png", 100 * c + i)
    return tmp_path


def test_image_folder(folder):
    a, b, both = (load_data(folder, s) for s in ("train", "test", "all"))
    assert (
        (len(a), len(b), len(both)) == (10, 4, 14)
        and a.classes == ["cat", "dog"]
        and a.shape == (3, 8, 8)
        and a.name == folder.name
    )
    assert a.pixels[:, 0, 0, 0].tolist() == [
        0,
        1,
        2,
        3,
        4,
        100,
        101,
        102,
        103,
        104,
    ] and b.labels.tolist() == [0, 0, 1, 1]
    assert (a[0][0][1] - (10 / 255 - 0.456) / 0.224).abs().max() < 1e-6
    assert torch.equal(torch.cat([a.pixels, b.pixels]), both.pixels)


def test_folder_without_parts_holds_a_fifth_out(folder):
    a, b, both = (load_data(folder / "train", s) for s in ("train", "test", "all"))
    assert (len(a), len(b), len(both)) == (8, 2, 10) and b.labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="too few images"):
        load_data(folder / "val", "train")


def test_large_images_are_cut_and_small_ones_may_be_resized(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / name / "0.jpg", 200, (100, 300))
    assert load_data(tmp_path, "all").shape == (3, 224, 224)
    assert load_data(tmp_path, "all", size=16).shape == (3, 16, 16)
    image = np.full((512, 512, 3), 255, np.uint8)
    image[32:-32, 32:-32] = 100  # what is left of 512 after the cut: the middle 448, shrunk to 224
    for name in ("a", "b"):
        Image.fromarray(image).save(tmp_path / name / "0.png")
        (tmp_path / name / "0.jpg").unlink()
    assert (load_data(tmp_path, "all").pixels[:, :, 2:-2, 2:-2] == 100).all()


def test_both_parts_have_the_size_of_the_first_image_to_train_on(tmp_path):
    for part, size in (("train", (8, 8)), ("test", (10, 12))):
        for c in "ab":
            picture(tmp_path / part / c / "0.png", 50, size)
    assert [load_data(tmp_path, split).shape for split in ("train", "test", "all")] == [
        (3, 8, 8)
    ] * 3
    d = load_data(tmp_path, "test", 16)
    with pytest.raises(ValueError, match="to train on are 3 x 8 x 8, those held out 3 x 16 x 16"):
        train("vgg11", (load_data(tmp_path), d))


def test_a_folder_called_cifar10_is_not_cifar10(tmp_path):
    for c in "ab":
        picture(tmp_path / "cifar10" / "train" / c / "0.png", 50)
    assert load_data(tmp_path / "cifar10").name == "folder cifar10"


@pytest.mark.parametrize(
    "name, mode", [("16.png", "I;16"), ("16.tif", "I;16"), ("32.tif", "I"), ("float.tif", "F")]
)
def test_pixels_of_more_than_8_bits_are_refused(name, mode, folder):
    Image.fromarray(
        np.full((8, 8), 1000, {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])
    ).save(folder / "train" / "dog" / name)
    with pytest.raises(
        ValueError, match=f"{name} has pixels of more than 8 bits.*convert it to 8 bits"
    ):
        load_data(folder)


def test_every_way_in_which_an_image_can_be_damaged_names_it(folder):
    """Pillow raises SyntaxError, ValueError, struct.error and others; bytes of a real file are
    overwritten, one after the other.
    """
    path = folder / "train" / "dog" / "hurt.png"
    picture(path, 50)
    whole, refused = path.read_bytes(), 0
    for k in range(len(whole)):
        path.write_bytes(whole[:k] + bytes([whole[k] ^ 0xFF]) + whole[k + 1 :])
        try:
            load_data(folder)
        except ValueError as error:
            assert "hurt.png" in str(error)
            refused += 1
    assert refused > len(whole) / 4


def test_files_give_what_memory_gives(folder):
    paths = sorted((folder / "train").glob("*/*.png"))
    files, memory = Files(paths, (8, 8)), load_data(folder, "train")
    lazy = Images(files, memory.labels, memory.classes, "lazy")
    order = torch.tensor([7, 0, 3])
    for x, y in zip(
        lazy.batch(order, torch.Generator().manual_seed(1)),
        memory.batch(order, torch.Generator().manual_seed(1)),
    ):
        assert torch.equal(x, y)


def test_bad_folders(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.*digits, cifar10, or a folder"):
        load_data(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="train, test or all"):
        load_data("digits", "valid")
    picture(folder / "val" / "mouse" / "0.png", 0)
    with pytest.raises(ValueError, match="mouse"):
        load_data(folder)
    (folder / "val" / "mouse" / "0.png").unlink()
    (folder / "val" / "mouse").rmdir()
    (folder / "train" / "cat" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"cat/0.png is not an image"):
        load_data(folder)
    for p in folder.glob("val/*/*"):
        p.unlink()
    for p in [*folder.glob("val/*"), folder / "val"]:
        p.rmdir()
    with pytest.raises(FileNotFoundError, match="has no test folder"):
        load_data(folder, "test")


def test_no_network_for_cifar10(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(FileNotFoundError, match="no route to host.*connect"):
        load_data("cifar10", root=tmp_path)


@needs_cifar
def test_real_cifar10_folder():
    images = load_data(CIFAR, "test")
    assert (
        len(images) == 10_000
        and images.shape == (3, 32, 32)
        and torch.bincount(images.labels).tolist() == [1000] * 10
    )
    x = torch.cat([x for x, _ in images.batches()])
    assert abs(x.mean()) < 0.2 and abs(x.std() - 1) < 0.2
    small = Images(images.pixels[::50], images.labels[::50], images.classes, "some")
    trained = train(
        "vgg11_bn", (small, small), recipe=Recipe(2, 0.05, 64), width=0.125, progress=False
    )
    assert (
        trained.about["epoch"] == 2
        and trained.about["history"][1]["loss"] < trained.about["history"][0]["loss"]
    )


# Training


def test_recipe_is_the_papers():
    r = recipe_for("resnet18")
    assert (r.epochs, r.batch, r.momentum, r.decay) == (160, 128, 0.9, 5e-4)
    assert [r.rate_in(e) for e in (1, 80, 81, 120, 121, 160)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )
    assert (
        recipe_for("vgg16").rate == 0.05
        and recipe_for("vgg16_bn").rate == 0.1
        and recipe_for("vgg16", epochs=3).epochs == 3
    )
    with pytest.raises(ValueError, match="epochs"):
        Recipe(epochs=-1)


def test_ramp():
    r = Recipe(10, 0.2, schedule="ramp")
    assert [
        r.rate_in(*at) for at in ((1, 0), (1, 0.5), (2, 0), (3, 0), (7, 0), (10, 0), (10, 0.5))
    ] == pytest.approx([0, 0.05, 0.1, 0.2, 0.1, 0.025, 0.0125])
    with pytest.raises(ValueError, match="schedule is 'cosine': choose steps or ramp"):
        Recipe(schedule="cosine")


def test_ramp_changes_with_every_step(digits):
    "Two steps of one epoch against the updates written out."
    few = Images(
        digits[0].pixels[:64],
        digits[0].labels[:64],
        digits[0].classes,
        "few",
        digits[0].mean,
        digits[0].std,
        16,
        flip=False,
    )
    trained = train(
        "digits-mlp", (few, few), seed=4, recipe=Recipe(1, 0.1, 32, schedule="ramp"), progress=False
    ).model
    model, g = build("digits-mlp", seed=4), torch.Generator().manual_seed(4 * 100_003 + 1)
    momentum = [torch.zeros_like(p) for p in model.parameters()]
    for indices, rate in zip(torch.randperm(64, generator=g).split(32), (0, 0.1 * 0.5 / 0.8)):
        x, y = few.batch(indices, g)
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        momentum = [
            0.9 * m + p.grad + 5e-4 * p.detach() for m, p in zip(momentum, model.parameters())
        ]
        with torch.no_grad():
            for p, m in zip(model.parameters(), momentum):
                p -= rate * m
    for p, q in zip(model.parameters(), trained.parameters()):
        assert torch.allclose(p, q, atol=1e-7)


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn"])
def test_colour_images_interrupted_and_continued(name, tmp_path):
    """Colour images are held in another order in memory; that leaves what is continued the same,
    bit for bit.
    """
    g = torch.Generator().manual_seed(0)
    images = Images(
        torch.randint(256, (48, 3, 32, 32), dtype=torch.uint8, generator=g),
        torch.arange(48) % 2,
        ["a", "b"],
        "noise",
    )
    path, recipe, seen = tmp_path / "a.safetensors", Recipe(3, 0.05, 16, schedule="ramp"), []

    def stop(model, about):
        seen.append(about["epoch"])
        if about["epoch"] == 2:
            raise KeyboardInterrupt

    whole = train(name, (images, images), recipe=recipe, width=0.125, progress=False)
    with pytest.raises(KeyboardInterrupt):
        train(
            name, (images, images), path=path, recipe=recipe, width=0.125, progress=False, log=stop
        )
    assert seen == [1, 2] and load_tensors(path, "checkpoint")[1]["epoch"] == 1, (
        "an epoch counts as done only after the log has returned"
    )
    continued = train(name, (images, images), path=path, recipe=recipe, width=0.125, progress=False)
    assert (
        same(whole.model, continued.model) and whole.about["history"] == continued.about["history"]
    )


def test_a_checkpoint_of_an_older_version(digits, straight, tmp_path):
    path = tmp_path / "a.safetensors"
    train("digits-vgg", digits, seed=3, path=path, recipe=QUICK, progress=False)
    tensors, about = load_tensors(path, "checkpoint")
    del about["recipe"]["schedule"], about["white"], about["flip"], about["held_out"]
    save_tensors(path, "checkpoint", tensors, **about)
    assert same(
        train("digits-vgg", digits, seed=3, path=path, recipe=QUICK, progress=False).model,
        straight.model,
    )


@pytest.mark.parametrize("name", ["digits-vgg", "digits-mlp"])
def test_digits_are_learnt(name, digits, tmp_path):
    trained = train(name, digits, seed=0, path=tmp_path / "a.safetensors", progress=False)
    assert trained.about["test_accuracy"] >= 0.97 and not trained.model.training
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert same(loaded.model, trained.model) and not loaded.model.training
    x = (
        torch.from_numpy(load_digits().images[:, None].astype("float32") / 16 - 0.305) / 0.376
    )  # the images by another way
    classes = loaded.model(x).argmax(1)
    right = (classes == torch.from_numpy(load_digits().target)).float().mean().item()
    assert right >= 0.97 and torch.equal(classes, predict(loaded.model, load_data("digits", "all")))


def test_one_step_is_plain_sgd(digits):
    "One epoch of one batch against the update written out."
    few = Images(
        digits[0].pixels[:64],
        digits[0].labels[:64],
        digits[0].classes,
        "few",
        digits[0].mean,
        digits[0].std,
        16,
        flip=False,
    )
    trained = train(
        "digits-mlp", (few, few), seed=4, recipe=Recipe(1, 0.1, 64), progress=False
    ).model
    model, g = build("digits-mlp", seed=4), torch.Generator().manual_seed(4 * 100_003 + 1)
    order = torch.randperm(64, generator=g)
    x, y = few.batch(order, g)
    nn.functional.cross_entropy(model(x), y).backward()
    for p, q in zip(
        model.parameters(), trained.parameters()
    ):  # the rate of the only epoch is already divided by 100
        assert torch.allclose(p - 0.001 * (p.grad + 5e-4 * p), q, atol=1e-7)
        assert not torch.equal(p, q)


def test_same_seed_same_weights_and_the_global_state_is_left_alone(digits, straight):
    torch.manual_seed(99)
    np.random.seed(1)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    again = train("digits-vgg", digits, seed=3, recipe=QUICK, progress=False)
    assert same(again.model, straight.model) and again.about == straight.about
    assert torch.equal(before, torch.get_rng_state()) and np.array_equal(
        numpy_before, np.random.get_state()[1]
    )
    assert not same(
        train("digits-vgg", digits, seed=4, recipe=QUICK, progress=False).model, straight.model
    )


def test_dropout_is_seeded_too(digits, monkeypatch):
    monkeypatch.setitem(
        ARCHITECTURES,
        "dropping",
        lambda classes, shape, wide: nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, classes)
        ),
    )
    a = train("dropping", digits, recipe=Recipe(1), progress=False).model
    torch.rand(1)
    assert same(a, train("dropping", digits, recipe=Recipe(1), progress=False).model)


class Stop(Images):
    "Images that end the run, as Ctrl-C would, after some batches."

    left = 30

    def batch(self, indices, generator=None):
        if generator is not None:
            self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().batch(indices, generator)


def test_interrupted_within_an_epoch_and_continued(digits, straight, tmp_path):
    path, d = tmp_path / "a.safetensors", digits[0]
    stopping = Stop(d.pixels, d.labels, d.classes, d.name, d.mean, d.std, d.white, d.flip)
    with pytest.raises(KeyboardInterrupt):
        train("digits-vgg", (stopping, digits[1]), seed=3, path=path, recipe=QUICK, progress=False)
    with pytest.warns(UserWarning, match="unfinished run, epoch 1 of 3"):
        partial = load_checkpoint(path)
    assert not same(partial.model, straight.model) and [p.name for p in tmp_path.iterdir()] == [
        path.name
    ]
    continued = train("digits-vgg", digits, seed=3, path=path, recipe=QUICK, progress=False)
    assert same(continued.model, straight.model) and continued.about == straight.about
    assert not any(name.startswith("momentum") for name in load_tensors(path, "checkpoint")[0])


@pytest.mark.long
def test_killed_and_continued(tmp_path):
    "A real second process, ended by SIGKILL after its first saved epoch."
    path = tmp_path / "a.safetensors"
    call = (
        "import sys; from submatch_nb.networks import *\nfor p in sys.argv[1:]: train(seed=3,"
        " path=p, recipe=Recipe(12, 0.05, 64), progress=False)"
    )
    run = subprocess.Popen([sys.executable, "-c", call, str(path)])

    def epoch():
        return load_tensors(path, "checkpoint")[1]["epoch"] if path.exists() else 0

    while epoch() < 1 and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL and 1 <= epoch() < 12
    other = tmp_path / "b.safetensors"
    subprocess.run(
        [sys.executable, "-c", call, str(path), str(other)], check=True
    )  # the one is continued, the other runs through
    assert same(load_checkpoint(path).model, load_checkpoint(other).model)


def test_finished_is_not_trained_again(digits, straight, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    train("digits-vgg", digits, seed=3, path=path, recipe=QUICK, progress=False)
    stamp, written = path.stat().st_mtime_ns, path.read_bytes()
    monkeypatch.setattr(
        "submatch_nb.engine.training._epoch", lambda *args: pytest.fail("trained again")
    )
    assert same(
        train("digits-vgg", digits, seed=3, path=path, recipe=QUICK, progress=False).model,
        straight.model,
    )
    assert path.stat().st_mtime_ns == stamp and path.read_bytes() == written


@pytest.mark.parametrize(
    "change, message",
    [
        ({"architecture": "digits-mlp"}, "architecture digits-vgg, not digits-mlp"),
        ({"seed": 1}, "seed 0, not 1"),
        ({"width": 0.5}, "width 1.0, not 0.5"),
        (
            {"recipe": Recipe(1, 0.01, 64)},
            "epochs 0, not 1; rate 0.05, not 0.01; batch 128, not 64",
        ),
        ({"less": 0}, "images"),
        ({"less": 1}, "held_out"),
        ({"flip": True}, "flip False, not True"),
        ({"white": 17}, "white 16, not 17"),
    ],
)
def test_checkpoint_of_another_run(change, message, digits, tmp_path):
    path = tmp_path / "a.safetensors"
    train("digits-vgg", digits, path=path, recipe=Recipe(0, 0.05), progress=False)
    before = path.read_bytes()
    data, change = [*digits], dict(change)
    if "less" in change:
        data = [
            replace(d, pixels=d.pixels[1:], labels=d.labels[1:]) if k == change["less"] else d
            for k, d in enumerate(data)
        ]
    for key in {"flip", "white"} & set(change):
        data[0] = replace(data[0], **{key: change.pop(key)})
    with pytest.raises(ValueError, match=f"another run.*{message}.*delete this one"):
        train(
            **{
                "architecture": "digits-vgg",
                "data": data,
                "path": path,
                "recipe": Recipe(0, 0.05),
                "progress": False,
                **{key: value for key, value in change.items() if key != "less"},
            }
        )
    assert path.read_bytes() == before


def test_untrained_checkpoint(digits, tmp_path):
    about = train(
        "digits-vgg",
        digits,
        path=tmp_path / "a.safetensors",
        recipe=recipe_for("digits-vgg", epochs=0),
        progress=False,
    ).about
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert (
        same(loaded.model, build("digits-vgg"))
        and loaded.about == about
        and accuracy(loaded.model, digits[1]) == about["test_accuracy"]
    )


def test_damaged_and_foreign_files(digits, tmp_path):
    path = tmp_path / "a.safetensors"
    train("digits-vgg", digits, path=path, recipe=Recipe(0), progress=False)
    whole = path.read_bytes()
    for keep in (len(whole) - 1, len(whole) // 2, 100, 0):
        path.write_bytes(whole[:keep])
        for use in (
            load_checkpoint,
            lambda p: train("digits-vgg", digits, path=p, recipe=Recipe(0), progress=False),
        ):
            with pytest.raises(ValueError, match="a.safetensors.*damaged or cut short"):
                use(path)
        assert path.read_bytes() == whole[:keep]
    save_tensors(path, "moments", {"a": torch.zeros(3)})
    with pytest.raises(ValueError, match="moments, not a submatch checkpoint"):
        load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="b.safetensors"):
        load_checkpoint(tmp_path / "b.safetensors")


def test_other_architecture(digits, tmp_path):
    path = tmp_path / "a.safetensors"
    train("digits-vgg", digits, path=path, recipe=Recipe(0), progress=False)
    model = build("digits-mlp", seed=1)
    untouched = build("digits-mlp", seed=1)
    with pytest.raises(
        ValueError,
        match=r"fc1.linear.weight is \(128, 128\) in the file and \(256, 64\) in the model",
    ):
        load_checkpoint(path, model)
    assert same(model, untouched)
    assert same(
        load_checkpoint(path, build("digits-vgg", seed=1)).model, build("digits-vgg", seed=0)
    )


def test_unwritable_path_is_noticed_before_training(digits, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(
        "submatch_nb.engine.training._epoch", lambda *args: pytest.fail("trained before")
    )
    with pytest.raises(OSError, match="cannot write"):
        train("digits-vgg", digits, path=tmp_path / "file" / "a.safetensors", progress=False)


def test_divergence_names_epoch_and_remedy(digits, tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(FloatingPointError, match="epoch 1 of 2.*lower learning rate"):
        train("digits-mlp", digits, path=path, recipe=Recipe(2, 1e6, 64), progress=False)
    with pytest.warns(UserWarning, match="epoch 0 of 2"):
        assert all(p.isfinite().all() for p in load_checkpoint(path).model.parameters())


def test_weights_that_diverge_in_the_last_step_are_not_saved(digits, tmp_path, monkeypatch):
    "The loss is that before the step; the weights after it are looked at too."
    path = tmp_path / "a.safetensors"

    def step(self, plain=torch.optim.SGD.step):
        plain(self)
        self.param_groups[0]["steps"] = steps = self.param_groups[0].get("steps", 0) + 1
        if steps == 3:
            self.param_groups[0]["params"][0].data.view(-1)[0] = float("inf")

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    few = [replace(d, pixels=d.pixels[:30], labels=d.labels[:30]) for d in digits]
    with pytest.raises(
        FloatingPointError, match="not all weights are finite in epoch 1 of 1.*lower learning rate"
    ):
        train("digits-mlp", few, path=path, recipe=Recipe(1, 0.01, 10), progress=False)
    tensors, about = load_tensors(path, "checkpoint")
    assert about["epoch"] == 0 and all(t.isfinite().all() for t in tensors.values())


def test_a_last_batch_of_one_joins_the_one_before(digits, monkeypatch):
    """Batch norm refuses a single image where a channel has one position, as in the last stage of a
    ResNet on 8 x 8.
    """
    few, sizes = [replace(d, pixels=d.pixels[:9], labels=d.labels[:9]) for d in digits], []
    monkeypatch.setattr(
        "submatch_nb.engine.images.jitter", lambda x, *rest: sizes.append(len(x)) or x
    )
    train("resnet18", few, recipe=Recipe(1, 0.01, 4), width=1 / 16, progress=False)
    train("digits-mlp", few, recipe=Recipe(1, 0.01, 3), progress=False)
    assert sizes == [4, 5, 3, 3, 3]


def test_googlenet_has_more_outputs_in_training():
    images = Images(
        torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8),
        torch.tensor([0, 1]),
        ["a", "b"],
        "noise",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's own, of its initialisation
        trained = train(
            "torchvision/googlenet", (images, images), recipe=Recipe(1, 1e-4), progress=False
        )
    assert math.isfinite(trained.about["history"][0]["loss"])


def test_three_channel_folder_trains(folder):
    trained = train("digits-vgg", folder, recipe=Recipe(2, 0.01, 4), progress=False)
    assert (
        trained.model.conv1_1.conv.in_channels == 3
        and trained.about["classes"] == 2
        and trained.about["data"] == folder.name
    )


@pytest.mark.parametrize("width", [0, -1, float("nan"), float("inf")])
def test_a_width_that_cannot_be(width):
    with pytest.raises(ValueError, match="width is .* above 0"):
        build("digits-mlp", width=width)


@pytest.mark.parametrize("rate", [0, float("nan"), float("inf")])
def test_a_rate_that_cannot_be(rate):
    with pytest.raises(ValueError, match="rate above 0"):
        Recipe(rate=rate)


def test_torchvision_takes_images_in_colour():
    with pytest.raises(ValueError, match="3 channels, not 1"):
        build("torchvision/resnet18", shape=(1, 8, 8))
