"""The explorer: what travels to the page is what Python knows, and what the page shows is what
Python says, in a real browser without a network.
"""

import json
import os
import re
import subprocess
import sys
from base64 import b64decode
from dataclasses import replace
from itertools import chain
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import serious

from submatch_nb import (
    Comparison,
    Comparisons,
    Match,
    Moments,
    Profile,
    compare_activations,
    minimal_match,
    residuals,
    save_html,
)
from submatch_nb.engine.drawing import COLORS
from submatch_nb.engine.files import asset
from submatch_nb.engine.inputs import EPSILONS, TOLERANCE, Sides, SubmatchWarning
from submatch_nb.engine.intervals import similarity_interval
from submatch_nb.engine.layer import Layer
from submatch_nb.engine.search import name_neuron
from submatch_nb.explorer import (
    SAMPLE,
    WIDE,
    answer,
    beginning,
    demo_comparison,
    explore,
    fragment,
    pack,
    prepare,
    ready,
    time_limit,
    turns,
)
from submatch_nb.simple import SimpleMatches

ROOT = Path(__file__).resolve().parent.parent
SAVED = ROOT / "tests" / "saved"
SLIDER = np.arange(1000) / 1000  # every position


def comparison_of(profiles, kind="unit", simple=None):
    "A comparison of which only the profiles are known."
    layers = {
        name: Layer(name, (name, name), kind, profile=profile) for name, profile in profiles.items()
    }
    return Comparison(layers, simple=simple)


def layers(*shapes, d=300, seed=0):
    """Moments of layers in which some neurons match well, some badly, some not; the last neuron of
    each network is dead.
    """
    rng, found = np.random.default_rng(seed), {}
    for i, (n_x, n_y) in enumerate(shapes):
        shared = rng.normal(size=(d, 3))
        X, Y = (
            shared @ rng.normal(size=(3, n))
            + rng.normal(size=(d, n)) * rng.choice([0.05, 0.3, 3], n)
            for n in (n_x, n_y)
        )
        X[:, -1] = Y[:, -1] = 0
        found[f"layer{i}"] = Moments(X, Y)
    return found


@pytest.fixture(scope="module")
def small():
    return Comparison.from_moments(layers((20, 14), (9, 11)))


@pytest.fixture(scope="module")
def hard():
    """Critical values at, just below and just above positions of the slider, and at the limit that
    counts as at most epsilon.
    """
    at = SLIDER[[0, 1, 150, 299, 300, 500, 999]]
    limit = np.maximum(at * (1 + TOLERANCE), TOLERANCE)
    values = np.concatenate(
        [
            at,
            limit,
            np.nextafter(limit, 2),
            np.nextafter(limit, 0),
            np.nextafter(at, 2),
            [1, np.inf, np.inf],
        ]
    )
    rng = np.random.default_rng(0)
    return comparison_of(
        {
            "tied": Profile(rng.permutation(values), rng.permutation(values), 5000),
            "other": Profile([0.2, np.inf], [0.1], 100),
        }
    )


def with_chance(seed=0, d=400, n=12):
    "A layer of units that match in part, with a null, groups, and shuffles drawn from moments."
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(d, 4))
    X, Y = (np.maximum(shared @ rng.normal(size=(4, n)) + rng.normal(size=(d, n)), 0) for _ in "xy")
    return compare_activations({"only": X}, {"only": Y}, groups=5, progress=False)


def half_of(match, rng):
    "Half of the neurons of each network, drawn."
    x, y = (rng.permutation(indices)[: len(indices) // 2] for indices in (match.x, match.y))
    return Match(x, y, match.epsilon, match.n_x, match.n_y)


def vgg16():
    """As large as the paper's VGG-16: thirteen convolutions and two layers of 512, with smallest
    matches for a sample.
    """
    rng, profiles, simple = np.random.default_rng(0), {}, {e: {} for e in EPSILONS}
    for i, n in enumerate((64, 64, 128, 128, *[256] * 3, *[512] * 8)):
        profiles[f"layer{i}"] = p = Profile(rng.beta(2, 3, n), rng.beta(2, 3, n), 10_000)
        for e in EPSILONS:
            inside = p.match(e)
            names = [
                v
                for v in (name_neuron(number, Sides(n, n)) for number in turns(p)[0])
                if v in inside
            ]
            simple[e][f"layer{i}"] = SimpleMatches(
                {v: [half_of(inside, rng)] for v in names}, e, (n, n)
            )
    return comparison_of(profiles, "channel", simple)


# What travels


def packed_of(comparison, seconds=60):
    "What travels of each layer of one comparison, after a search."
    prepare(comparison, beginning(comparison, None, 0.3), seconds)
    return pack(comparison)["pairs"][0]["layers"]


def unpacked(text):
    return np.frombuffer(b64decode(text), "<f8")


def matches(packed, n):
    "Number of a neuron -> the indices in its match, the first network's first."
    masks = np.unpackbits(
        np.frombuffer(b64decode(packed["masks"]), np.uint8).reshape(-1, -(-n // 8)),
        axis=1,
        bitorder="little",
    )[:, :n].astype(bool)
    return {v: masks[i].nonzero()[0].tolist() for v, i in packed["of"]}


def test_critical_values_travel_bit_for_bit(hard):
    for packed, profile in zip(packed_of(hard), hard.profiles.values()):
        assert (
            unpacked(packed["x"]).tobytes() == profile.x.tobytes()
            and unpacked(packed["y"]).tobytes() == profile.y.tobytes()
        )


def test_matches_travel(small):
    for packed, (layer, moments) in zip(packed_of(small), small.moments.items()):
        profile, n = small.profiles[layer], moments.n_x + moments.n_y
        assert [s["epsilon"] for s in packed["simple"]] == [
            e for e in EPSILONS if len(profile.match(e))
        ]
        for s in packed["simple"]:
            found, inside = matches(s, n), profile.match(s["epsilon"])
            assert sorted(found) == [*inside.x, *(inside.y + moments.n_x)]
            for v, members in found.items():
                match = minimal_match(
                    moments, v=name_neuron(v, Sides(moments.n_x, moments.n_y)), epsilon=s["epsilon"]
                )
                assert members == [*match.x, *(match.y + moments.n_x)]


def test_residuals_travel(tmp_path):
    rng = np.random.default_rng(1)
    X, Y = rng.normal(size=(80, 7)), rng.normal(size=(80, 9))
    X[:, 3] = 0
    comparison = Comparison.from_moments({"layer": Moments(X, Y)})
    comparison.save(tmp_path / "c.safetensors")
    for comparison in (comparison, Comparison.load(tmp_path / "c.safetensors")):
        (packed,) = packed_of(comparison)
        for side, plainly in (("x", residuals(X, Y)), ("y", residuals(Y, X))):
            assert np.allclose(
                unpacked(packed["residual"][side]), plainly, atol=1e-7, equal_nan=True
            )


def test_in_a_wide_layer_a_sample_comes_first():
    n = WIDE + 1
    comparison = Comparison.from_moments(layers((n, 20), (WIDE, 20)))
    wide, narrow = (turns(profile) for profile in comparison.profiles.values())
    assert [len(turn) for turn in wide[:-1]] == [SAMPLE] and len(narrow) == 1
    for profile, found in zip(comparison.profiles.values(), (wide, narrow)):
        matched = (np.append(profile.x, profile.y) <= 0.5).nonzero()[0]
        assert sorted(np.concatenate(found)) == matched.tolist() and len(matched) > SAMPLE


def test_nothing_is_searched_for_before_it_is_drawn(monkeypatch):
    "No match, no interval, no p value: all that takes time is asked for later."
    comparison = with_chance()
    monkeypatch.setattr("submatch_nb.explorer.search", None)
    widget = explore(comparison)
    (layer,) = widget.data["pairs"][0]["layers"]
    assert layer["simple"] == [] and layer["chance"]["pending"] and layer["chance"]["p"] is None
    assert comparison["only"].left_out.missing == 5 and comparison["only"].null_drawn.missing
    assert widget._repr_mimebundle_()[0]["text/html"].count("submatch-data") == 2
    with pytest.raises(TypeError):  # so a search would have been noticed
        prepare(Comparison.from_moments(layers((9, 11))), {"pair": None, "layer": ""}, 60)


def test_a_search_ends_when_time_is_over(monkeypatch):
    comparison = Comparison.from_moments(layers((30, 30)))
    asked = iter([False] * 12 + [True] * 10**6)
    monkeypatch.setattr("submatch_nb.explorer.time_limit", lambda seconds: lambda: next(asked))
    prepare(comparison, beginning(comparison, None, 0.3), 1)
    (some,) = pack(comparison)["pairs"][0]["layers"]
    monkeypatch.undo()
    (everything,) = packed_of(comparison)
    few, all_of_them = (
        {(s["epsilon"], v) for s in layer["simple"] for v in matches(s, 60)}
        for layer in (some, everything)
    )
    assert few < all_of_them
    with pytest.raises(ValueError, match="seconds"):
        time_limit(-1)


def test_an_interrupted_search_leaves_all_as_it_was(monkeypatch):
    comparison = Comparison.from_moments(layers((9, 11)))
    before = pack(comparison)

    def interrupted(*_):
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as m:
        m.setattr("submatch_nb.explorer.search", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(comparison, beginning(comparison, None, 0.3), 60)
    assert pack(comparison) == before
    assert packed_of(comparison) != before["pairs"][0]["layers"]


def test_python_answers(small):
    layer = small["layer0"]
    v, epsilon = ("x", int(layer.profile.match(0.31).x[0])), 0.31
    question = {"ask": "match", "pair": None, "layer": "layer0", "v": list(v), "epsilon": epsilon}
    reply = answer(small, question)
    match = minimal_match(layer.moments, v=v, epsilon=epsilon)
    assert matches(reply["simple"], 34) == {v[1]: [*match.x, *(match.y + 20)]}
    out = answer(small, question | {"v": ["x", int(layer.profile.x.argsort()[-2])]})
    assert "searches to the end" in out["why"]


def test_matches_of_a_centred_comparison_are_affine():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 6)) + 5
    Y = X @ rng.normal(size=(6, 6)) + 0.1 * rng.normal(size=(200, 6)) + 5
    centred = compare_activations({"l": X}, {"l": Y}, center=True, progress=False)
    (packed,) = packed_of(centred)
    simple = packed["simple"][-1]
    assert simple["of"]
    for v, members in matches(simple, 12).items():
        name = name_neuron(v, Sides(6, 6))
        match = minimal_match(X, Y, name, simple["epsilon"], center=True)
        assert members == [*match.x, *(match.y + 6)]


def test_a_saved_comparison_brings_what_was_found_before(small, tmp_path):
    small.simple(0.3)
    small.save(tmp_path / "c.safetensors")
    before, after = (
        packed_of(small),
        packed_of(Comparison.load(tmp_path / "c.safetensors")),
    )
    for a, b in zip(before, after):
        assert [s for s in a["simple"] if s["epsilon"] == 0.3] == b["simple"] and (
            a["x"],
            a["y"],
        ) == (b["x"], b["y"])


def test_what_is_known_later_is_shown():
    "No state of before: smaller matches that several orders found, and another profile."
    comparison = Comparison.from_moments(layers((9, 11)))
    before = packed_of(comparison)[0]
    n = sum(len(unpacked(before[side])) for side in "xy")
    simple = comparison.simple(0.3)["layer0"]
    assert packed_of(comparison)[0] == before, "the same matches, found in another way"
    v = next(v for v in simple.neurons if v[0] == "x" and len(simple.smallest(v)) < n)
    everything = comparison["layer0"].profile.match(0.3)
    larger = SimpleMatches({v: [everything]}, 0.3, simple.n)
    later = Comparison(comparison, simple={0.3: {"layer0": larger}})
    (shown,) = (s for s in packed_of(later)[0]["simple"] if s["epsilon"] == 0.3)
    assert matches(shown, n) == {v[1]: [*everything.x, *(everything.y + simple.n.x)]}
    assert packed_of(comparison)[0] == before
    comparison["layer0"].profile.x[v[1]] = 0.77
    assert unpacked(packed_of(comparison)[0]["x"])[v[1]] == 0.77


def test_matches_are_searched_once(monkeypatch):
    comparison = Comparison.from_moments(layers((9, 11)))
    before = packed_of(comparison)
    monkeypatch.setattr("submatch_nb.explorer.search", None)
    assert packed_of(comparison) == before
    with pytest.raises(TypeError):
        packed_of(Comparison.from_moments(layers((9, 11))))


def test_colors_are_those_of_the_figures():
    css = asset("explorer.css").read_text()
    assert {
        name: value
        for name, value in re.findall(r"--(\w+): light-dark\((#\w+),", css)
        if name in COLORS
    } == COLORS


# The file


def test_no_widget_library_is_needed(tmp_path):
    code = f"""if True:
        import sys
        sys.modules |= dict.fromkeys(["anywidget", "ipywidgets", "IPython"])
        from submatch_nb import explore, save_html
        from submatch_nb.explorer import demo_comparison
        save_html(demo_comparison(), {str(tmp_path / "page.html")!r})
        try:
            explore(demo_comparison())
        except ImportError as error:
            print(error)"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "submatch_nb[lab]" in run.stdout and (tmp_path / "page.html").stat().st_size > 10_000


def test_whole_or_not_at_all(small, tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    page.write_text("before")

    def full_disk(self, text, **_):
        self.write_bytes(text[:100].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        "pathlib.Path.write_text",
        full_disk,
    )
    with pytest.raises(OSError, match="page.html"):
        save_html(small, page)
    assert page.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    "wrong, error, words",
    [
        ({"layer": "fc9"}, KeyError, "fc9.*layer0, layer1"),
        ({"epsilon": 1}, ValueError, r"outside \[0, 1\)"),
        ({"epsilon": "a"}, TypeError, "'a'"),
    ],
)
def test_bad_beginnings_are_named(small, tmp_path, wrong, error, words):
    with pytest.raises(error, match=words):
        save_html(small, tmp_path / "page.html", **wrong)
    assert not list(tmp_path.iterdir())


def test_begins_where_there_is_something_to_see():
    values = {"none": (0.8, 1000), "full": (0.0, 2), "most": (0.1, 1000)}
    comparison = comparison_of(
        {name: Profile([value, 0.9], [value], count) for name, (value, count) in values.items()}
    )
    assert beginning(comparison, None, 0.3)["layer"] == "most"


# The widget, as Python sees it


@pytest.fixture
def widget(small):
    pytest.importorskip("anywidget", reason="no anywidget: pip install 'submatch_nb[lab]'")
    from submatch_nb import explore

    return explore(small)


def test_python_reads_and_sets(widget):
    widget.epsilon, widget.layer = 0.123456789, "layer1"
    widget.selected = ["y", 3]
    assert (widget.epsilon, widget.layer, widget.selected) == (0.123456789, "layer1", ("y", 3))
    widget.layer = "layer0"
    assert widget.selected is None  # neuron 3 of another layer is another neuron
    widget.epsilon = np.float32(0.25)
    assert widget.epsilon == 0.25 and type(widget.epsilon) is float


@pytest.mark.parametrize(
    "name, value, error",
    [
        ("epsilon", 1, ValueError),
        ("epsilon", None, TypeError),
        ("layer", "x", KeyError),
        ("selected", ("x", 99), IndexError),
        ("selected", 3, TypeError),
    ],
)
def test_python_is_told_what_cannot_be(widget, name, value, error):
    before = getattr(widget, name)
    with pytest.raises(error):
        setattr(widget, name, value)
    assert getattr(widget, name) == before


# The page, in a browser


@pytest.fixture(scope="module")
def page_of(tmp_path_factory):
    "Save the explorer of a comparison; returns its path."
    folder = tmp_path_factory.mktemp("pages")

    def make(comparison, **options):
        path = folder / f"{len(list(folder.iterdir()))}.html"
        save_html(comparison, path, **options)
        return path

    return make


SLIDE = """epsilon => {
    const slider = document.querySelector("input[type=range]");
    slider.value = epsilon;
    slider.dispatchEvent(new Event("input"));
}"""
LIT = """() => [...document.querySelectorAll(".grid")].map(grid =>
    [...grid.querySelectorAll(".lit")]
        .map(cell => Number(cell.dataset.neuron)).sort((a, b) => a - b))"""
PART = LIT.replace(".lit", ".part")
SWEEP = f"""() => Array.from({{ length: 1000 }}, (_, i) => {{
    ({SLIDE})(i / 1000);
    return [({LIT})(), document.querySelector('.similarity b').textContent];
}})"""


def lit(page):
    return page.evaluate(LIT)


def text(page):
    return page.locator(".submatch-explorer .detail").inner_text()


def of(match):
    return [match.x.tolist(), match.y.tolist()]


def differences(page, profile):
    "Positions of the slider at which the page and Python disagree."
    return [
        e
        for e, (found, share) in zip(SLIDER, page.evaluate(SWEEP))
        if found != of(profile.match(e)) or abs(float(share) - profile.similarity(e)) > 0.000501
    ]


@pytest.mark.parametrize("which", ["hard", "demo"])
def test_the_page_lights_what_python_matches(page_of, opened, hard, which):
    comparison, layer = (hard, "tied") if which == "hard" else (demo_comparison(), "fc2.relu")
    page = opened(page_of(comparison, layer=layer))
    assert differences(page, comparison.profiles[layer]) == [] and page.errors == []


def test_another_limit_would_be_noticed(page_of, opened, hard):
    path = page_of(hard, layer="tied")
    path.write_text(path.read_text().replace(f'"tolerance": {TOLERANCE}', '"tolerance": 0'))
    assert len(differences(opened(path), hard.profiles["tied"])) >= 5


def test_slider_by_keyboard(page_of, opened):
    comparison = demo_comparison()
    page = opened(page_of(comparison, layer="fc1.relu"))
    slider = page.get_by_role("slider", name="Tolerance ε")
    slider.focus()
    for key, epsilon in [
        ("ArrowRight", 0.305),
        ("ArrowLeft", 0.3),
        ("PageDown", 0.25),
        ("Shift+ArrowUp", 0.251),
        ("Home", 0),
        ("End", 0.999),
        ("ArrowRight", 0.999),
    ]:
        page.keyboard.press(key)
        assert lit(page) == of(comparison.profiles["fc1.relu"].match(epsilon)), key
        assert (
            slider.get_attribute("aria-valuetext") == f"ε {epsilon:.3f}, similarity"
            f" {comparison.profiles['fc1.relu'].similarity(epsilon):.3f}"
        )
    page.get_by_role("button", name="ε = 0.2", exact=True).click()
    assert (
        lit(page) == of(comparison.profiles["fc1.relu"].match(0.2))
        and page.get_by_role("button", name="ε = 0.2", exact=True).get_attribute("aria-pressed")
        == "true"
    )


def test_drag_in_the_curve(page_of, opened):
    comparison = demo_comparison()
    page = opened(page_of(comparison, layer="fc1.relu"))
    box = page.locator(".curve svg").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 80)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 80)
    page.mouse.up()
    epsilon = page.get_by_role("slider").evaluate("slider => slider.valueAsNumber")
    assert 0.4 < epsilon < 0.6 and lit(page) == of(comparison.profiles["fc1.relu"].match(epsilon))


def test_layer_menu_and_strip(page_of, opened):
    comparison = demo_comparison()
    page = opened(page_of(comparison, layer="fc1.relu"))
    page.locator(".grid span").first.click()
    page.get_by_role("combobox", name="Layer").select_option(label="fc2.relu")
    assert (
        lit(page) == of(comparison.profiles["fc2.relu"].match(0.3))
        and "64 + 64 units" in page.locator(".about").inner_text()
    )
    assert (
        page.locator("[aria-selected=true]").count() == 0
    )  # the neuron chosen before was another layer's
    page.locator(".column").nth(2).click()
    assert (
        page.get_by_role("combobox").evaluate("menu => menu.selectedOptions[0].text")
        == "conv2_1.relu"
    )
    assert page.locator(".grid span").count() == 64 and page.errors == []


def test_neurons_with_a_match_are_round_in_a_wide_layer(page_of, opened):
    comparison = vgg16()
    page = opened(page_of(comparison, layer="layer14"))
    drawn_there = page.evaluate(
        """() => [...document.querySelectorAll('.grid')].flatMap((grid, i) =>
            [...grid.querySelectorAll('.drawn')].map(cell => i * 512 + Number(cell.dataset.neuron))
        ).sort((a, b) => a - b)"""
    )
    first = turns(comparison.profiles["layer14"])[0]
    assert drawn_there == first.tolist() and "Round ones come with a v-minimal match" in text(page)
    page.get_by_role("combobox").select_option(label="layer3")
    assert page.locator(".drawn").count() == 0 and "Round ones" not in text(page)


def test_a_neuron_lights_its_match(page_of, opened, small):
    page = opened(page_of(small, layer="layer0", epsilon=0.3))
    profile, moments = small.profiles["layer0"], small.moments["layer0"]
    for v in chain(profile.match(0.3), [("x", int(profile.x.argsort()[-2]))]):
        page.locator(".grid").nth("xy".index(v[0])).locator(f"[data-neuron='{v[1]}']").hover()
        name, critical = f"{'ab'['xy'.index(v[0])]}{v[1]}", getattr(profile, v[0])[v[1]]
        assert name in text(page) and f"{critical:.3f}" in text(page) and "residual" in text(page)
        expected = of(minimal_match(moments, v=v, epsilon=0.3)) if critical <= 0.3 else [[], []]
        assert page.evaluate(PART) == expected
    page.mouse.move(1, 1)
    assert page.evaluate(PART) == [[], []] and "Point at a neuron" in text(page)


def test_a_match_is_that_of_the_stored_epsilon_below(page_of, opened, small):
    page = opened(page_of(small, layer="layer0", epsilon=0.3))
    v = small.profiles["layer0"].match(0.15).x[0]
    page.locator(".grid").first.locator(f"[data-neuron='{v}']").click()
    for epsilon, stored in [(0.149, None), (0.15, 0.15), (0.199, 0.15), (0.27, 0.25), (0.999, 0.5)]:
        page.evaluate(SLIDE, epsilon)
        assert page.evaluate(PART) == (
            of(minimal_match(small.moments["layer0"], v=("x", v), epsilon=stored))
            if stored
            else [[], []]
        )
        assert (f"minimal at ε = {stored}" if stored else "stored from ε = 0.15 on") in text(page)


def test_neurons_by_keyboard(page_of, opened):
    page = opened(page_of(demo_comparison(), layer="fc1.relu"))
    grid = page.get_by_role("listbox", name="Neurons of network a")
    order = grid.evaluate("grid => [...grid.children].map(cell => Number(cell.dataset.neuron))")
    critical = demo_comparison().profiles["fc1.relu"].x
    assert (np.diff(np.minimum(critical[order], 2)) >= 0).all()
    page.get_by_role("button", name="ε = 0.5", exact=True).focus()
    for key, place in [
        ("Tab", None),  # the field to find neurons
        ("Tab", 0),
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("End", 127),
        ("ArrowRight", 127),
        ("Home", 0),
    ]:
        page.keyboard.press(key)
        if place is None:
            continue
        assert page.evaluate("document.activeElement.dataset.neuron") == str(
            order[place]
        ) and f"a{order[place]} " in text(page)
    page.keyboard.press("ArrowDown")
    assert page.evaluate(
        "document.activeElement.offsetTop > document.querySelector('.grid span').offsetTop &&"
        " document.activeElement.offsetLeft === document.querySelector('.grid span').offsetLeft"
    )
    page.keyboard.press("Enter")
    assert page.locator("[aria-selected=true]").count() == 1
    page.keyboard.press(
        "Tab"
    )  # on to network b: the neuron kept is not forgotten, the one in focus is shown
    assert text(page).startswith("b") and page.locator("[aria-selected=true]").count() == 1
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Escape")
    assert page.locator("[aria-selected=true]").count() == 0


def test_says_what_means_nothing(page_of, opened):
    full, some = Profile([0.0, 0.0], [0.0, 0.0], 2), Profile([0.5, 0.9], [0.5, np.inf], 4)
    page = opened(page_of(comparison_of({"full": full, "some": some}), layer="full"))
    assert (
        "Void at this ε: samples ≤ neurons (2 ≤ 2)" in page.locator(".verdict").inner_text()
        and page.locator(".column.hollow").count() == 1
    )
    page.get_by_role("combobox").select_option(label="some")
    page.locator(".dead").hover()
    assert text(page) == "b1 is dead: 0 on every sample, and in no match."


HOSTILE = [
    "<img src=x onerror=window.ran=1>",
    "</script><script>window.ran=1</script>",
    "a'\"&<b>c",
    "\u2028 ]]> <!-- ${ran}",
    "__proto__",
]


def hostile():
    profiles = {name: Profile([0.1, 0.2], [0.1], 50) for name in HOSTILE}
    return comparison_of(profiles, "<img src=x onerror=window.ran=2>")


def injected(page):
    "Whether anything in the names ran or became an element."
    menu = page.get_by_role("combobox")
    for name in HOSTILE:
        if menu.locator("option", has_text=name).count():
            menu.select_option(label=name)
        page.locator(".grid span").first.hover()
    page.wait_for_timeout(200)
    return page.evaluate(
        "[window.ran, document.querySelectorAll('.submatch-explorer img, .submatch-explorer script,"
        " .submatch-explorer .body b b').length]"
    ) != [None, 0]


def test_names_are_shown_and_not_run(page_of, opened):
    page = opened(page_of(hostile(), title=HOSTILE[0] + HOSTILE[1]))
    assert not injected(page) and page.errors == []
    assert (
        page.locator("option").all_inner_texts() == HOSTILE
        and page.locator("h1").inner_text() == HOSTILE[0] + HOSTILE[1]
    )
    assert "<img src=x onerror=window.ran=2>" in page.locator(".about").inner_text()


def test_names_that_ran_would_be_noticed(page_of, opened):
    path = page_of(hostile())
    before = path.read_text()
    path.write_text(before.replace("about.textContent =", "about.innerHTML ="))
    assert path.read_text() != before and injected(opened(path))


def test_nothing_is_asked_for(page_of, opened):
    page = opened(page_of(demo_comparison()))
    page.evaluate(SLIDE, 0.5)
    page.locator(".grid span").first.click()
    assert page.asked == [] and page.errors == []


@pytest.mark.parametrize(
    "policy, word", [(True, "Content Security Policy"), (False, "ERR_INTERNET_DISCONNECTED")]
)
def test_a_request_would_be_noticed(page_of, opened, policy, word):
    path = page_of(demo_comparison())
    text = path.read_text().replace(
        "<footer>", '<img src="https://example.com/x.png" alt=""><footer>'
    )
    path.write_text(text if policy else re.sub("<meta http-equiv.*", "", text))
    page = opened(path)
    page.wait_for_timeout(300)
    assert (
        page.asked == ["https://example.com/x.png"] and word in page.errors[0]
    )  # the page's own policy stops it before the network does


@pytest.mark.parametrize(
    "width, scheme", [(1400, "light"), (900, "dark"), (390, "light"), (390, "dark")]
)
def test_accessible(page_of, opened, width, scheme):
    page = opened(page_of(demo_comparison(), layer="fc1.relu"), width, scheme)
    assert serious(page) == []
    page.locator(".grid span").nth(5).click()
    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = (
        page.evaluate(
            "getComputedStyle(document.querySelector('.submatch-explorer')).backgroundColor"
        )
        != "rgb(255, 255, 255)"
    )
    assert dark == (scheme == "dark")


def test_a_missing_label_would_be_noticed(page_of, opened):
    path = page_of(demo_comparison())
    path.write_text(path.read_text().replace('"aria-label": "Tolerance ε", ', ""))
    assert "label" in dict(serious(opened(path)))


def test_several_on_a_page(opened, tmp_path, small):
    parts = [
        fragment(pack(small), {"pair": None, "layer": layer, "epsilon": 0.3, "selected": None})
        for layer in ("layer0", "layer1")
    ]
    page = tmp_path / "two.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><title>Two</title>{''.join(parts)}")
    page = opened(page)
    page.locator("input[type=range]").first.fill("0")
    assert page.locator(".submatch-explorer").count() == 2 and page.errors == []
    assert (
        page.locator(".number:first-of-type b").all_inner_texts()[0] == "0.000"
        and page.locator(".top").nth(1).locator("b").first.inner_text() == "0.300"
    )


# Redraws: how long they take is measured by bench_explorer.py

WORK = """what => {
    const cells = [...document.querySelectorAll(".grid span")];
    const classes = () => cells.map(cell => cell.className), before = classes();
    const seen = new MutationObserver(() => {});
    const all = { subtree: true, childList: true, attributes: true };
    seen.observe(document.querySelector(".body"), all);
    if (what === "neuron")
        cells[25].dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
    else (SLIDE)(what);
    const records = seen.takeRecords();
    const added = records.flatMap(r => [...r.addedNodes]);
    const drawn = added.filter(node => node.matches?.(".grid span, svg *"));
    const marks = records.filter(
        r => r.target.matches(".grid span") && r.attributeName === "class");
    return { touched: marks.length, drawn: drawn.length,
             changed: classes().filter((name, i) => name !== before[i]).length }; }""".replace(
    "SLIDE", SLIDE
)


@pytest.mark.parametrize("what", [0.31, 0.9, 0, "neuron"])
def test_a_redraw_touches_only_what_changes(page_of, opened, what):
    work = opened(page_of(vgg16(), layer="layer14"), 1400).evaluate(WORK, what)
    assert work["touched"] == work["changed"] > 0 and work["drawn"] == 0


@pytest.mark.parametrize("again", ["drawGrids();", "drawDepth();"])
def test_a_redraw_of_everything_would_be_noticed(page_of, opened, again):
    path = page_of(vgg16(), layer="layer14")
    before = path.read_text()
    path.write_text(before.replace("function showEpsilon() {", "function showEpsilon() { " + again))
    work = opened(path, 1400).evaluate(WORK, 0.31)
    assert path.read_text() != before and (
        work["touched"] > work["changed"] if again == "drawGrids();" else work["drawn"] > 0
    )


# What the numbers must be read with


def trivial():
    "Two layers that are linear in the same three inputs."
    rng = np.random.default_rng(5)
    data = rng.normal(size=(200, 3))
    X, Y = (data @ rng.normal(size=(3, 8)) for _ in "xy")
    return compare_activations({"only": X}, {"only": Y}, progress=False)


def independent():
    "No neuron corresponds, and yet they match: the mean direction is the same."
    rng = np.random.default_rng(6)
    X, Y = (np.maximum(rng.normal(2, 1, size=(400, 20)), 0) for _ in "xy")
    return compare_activations({"only": X}, {"only": Y}, progress=False)


READ = """() => ({
    void: document.querySelector(".submatch-explorer").classList.contains("void"),
    verdict: document.querySelector(".verdict").textContent,
    level: document.querySelector(".number.null b").textContent,
    range: document.querySelector(".similarity small").textContent,
    half: document.querySelector(".half b").textContent,
    about: document.querySelector(".about").textContent,
})"""


@pytest.mark.parametrize("seconds", [0, 60])
@pytest.mark.parametrize("make", [with_chance, trivial, independent])
def test_the_page_reads_numbers_as_python_does(page_of, opened, make, seconds):
    comparison = make()
    page = opened(page_of(comparison, seconds=seconds))
    layer = ready(comparison["only"])
    assert (layer.p is None) == (seconds == 0)
    for epsilon in (0, 0.1, 0.3, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.999):
        page.evaluate(SLIDE, epsilon)
        read = page.evaluate(READ)
        why = layer.void_reasons(epsilon)
        assert read["void"] == bool(why), epsilon
        assert all(reason in read["verdict"] for reason in why)
        assert read["level"] == f"{layer.null[0].similarity(epsilon):.3f}"
        if len(layer.left_out):
            _, low, high = similarity_interval(layer.profile, layer.left_out, epsilon)
            found = [float(word) for word in re.findall(r"\d\.\d+", read["range"])]
            assert np.allclose(found, [low, high], atol=0.000501)
    assert read["half"] == f"{layer.profile.half:.3f}"
    assert f"together {layer.ranks.both}" in read["about"] and "images" in read["about"]
    assert page.errors == []


def test_another_rule_would_be_noticed(page_of, opened):
    path = page_of(independent(), seconds=0)
    path.write_text(path.read_text().replace('"margin": 0.05', '"margin": -2'))
    page = opened(path)
    page.evaluate(SLIDE, 0.45)
    assert not page.evaluate(READ)["void"]


def without_chance():
    "The demo's comparison as it was before there were nulls."
    bare = {name: replace(one, null=(), null_drawn=()) for name, one in demo_comparison().items()}
    return Comparison(bare)


def test_a_saved_comparison_of_before_says_that_it_has_no_null(page_of, opened):
    with pytest.warns(SubmatchWarning, match="unverified"):
        crossed = Comparison.load(SAVED / "crossed.safetensors")
        several = Comparisons.load(SAVED / "several.safetensors")
    for comparison in (crossed, several, without_chance()):
        page = opened(page_of(comparison))
        read = page.evaluate(READ)
        assert read["level"] == "none" and "has no null" in read["verdict"]
        assert "null=1" in read["verdict"] and page.errors == []


def test_a_shuffle_drawn_from_moments_is_not_shown_as_the_null(page_of, opened):
    "It gives the p value, which says so; no curve, no band and no level is called null."
    bare = Comparison({name: replace(one, null=()) for name, one in with_chance().items()})
    assert np.isnan(bare.table(0.3)["half null"].iloc[0]) and bare["only"].p == 0.005
    page = opened(page_of(bare, epsilon=0.5))
    read = page.evaluate(READ)
    assert read["level"] == "none" and "null" not in page.locator(".half small").inner_text()
    assert page.locator(".line.null, .band, .chance-mark").count() == 0
    says = (
        "has no null, only p = 0.0050 of half-ε among 199 shuffles drawn from the moments: compare"
    )
    assert says in read["verdict"] and page.errors == []
    assert "199 shuffles drawn from" in opened(page_of(with_chance())).evaluate(READ)["verdict"]


def test_the_pair_of_layers_of_a_cross_comparison(page_of, opened):
    with pytest.warns(SubmatchWarning, match="unverified"):
        comparison = Comparison.load(SAVED / "crossed.safetensors")
    page = opened(page_of(comparison, epsilon=0.5))
    for name, layer in comparison.items():
        for menu, label in zip("ab", layer.names):
            page.get_by_role("combobox", name=f"Layer of {menu}").select_option(label=label)
        assert lit(page) == of(layer.profile.match(0.5)), name
    page.locator(".depth .column").first.click()
    assert lit(page) == of(next(iter(comparison.values())).profile.match(0.5))
    assert page.errors == [] and serious(page) == []


def test_the_pair_of_networks(page_of, opened):
    with pytest.warns(SubmatchWarning, match="unverified"):
        several = Comparisons.load(SAVED / "several.safetensors")
    page = opened(page_of(several, epsilon=0.5))
    menu = page.get_by_role("combobox", name="Pair of networks")
    assert menu.locator("option").count() == len(several)
    for (a, b), comparison in several.items():
        menu.select_option(label=f"{a} and {b}")
        for name in several.layers:
            page.get_by_role("combobox", name="Layer").select_option(label=name)
            assert lit(page) == of(comparison[name].profile.match(0.5)), (a, b, name)
    widget = explore(several)
    pair = list(several)[-1]
    widget.pair = pair
    assert widget.pair == pair and widget.comparison is several[pair]
    with pytest.raises(KeyError):
        widget.pair = ("no", "such")
    assert page.errors == [] and serious(page) == []


def test_what_is_no_comparison_is_named(small):
    with pytest.raises(TypeError, match="DataFrame"):
        explore(small.table())


def test_the_curves_of_null_and_untrained(page_of, opened):
    comparison = with_chance()
    page = opened(page_of(comparison, untrained=with_chance(seed=9)))
    assert page.locator(".line.null").count() == 1 and page.locator(".line.untrained").count() == 1
    assert page.locator(".band").count() == 1 and "untrained" in page.locator(".curve").inner_text()
    page = opened(page_of(without_chance()))
    assert page.locator(".line.null, .line.untrained, .band").count() == 0
    with pytest.raises(ValueError, match="baseline"):
        page_of(comparison, untrained=demo_comparison())


# The search for neurons


def test_neurons_are_found_by_keyboard(page_of, opened):
    comparison = demo_comparison()
    profile = comparison["fc2.relu"].profile
    page = opened(page_of(comparison, layer="fc2.relu", epsilon=0.3))
    everything = np.concatenate([profile.x, profile.y])
    counts = {
        "shared": (everything <= 0.3).sum(),
        "private": ((everything > 0.3) & np.isfinite(everything)).sum(),
        "dead": np.isinf(everything).sum(),
        "b dead": np.isinf(profile.y).sum(),
        "a12": 1,
        "12": 2,
        "a1, b2": 2,
        "nothing": None,
    }
    field = page.get_by_role("searchbox", name="Find neurons")
    field.focus()
    for words, count in counts.items():
        field.fill(words)
        said = page.locator(".hits").inner_text()
        if count is None:
            assert "Give numbers" in said and page.locator(".out").count() == 0
            continue
        assert said.startswith(f"{count} neuron"), words
        assert page.locator(".grid span:not(.out)").count() == count
    field.fill("b7")
    page.keyboard.press("Enter")
    assert text(page).startswith("b7 ")
    field.focus()
    page.keyboard.press("Escape")
    assert field.input_value() == "" and page.locator(".out").count() == 0
    assert serious(page) == [] and page.errors == []


# Where Python runs, and where nothing runs

ASKING = """<script type="module">
const state = {DATA}, heard = {};
window.asked = [];
const model = { get: name => state[name], set(name, value) { state[name] = value; },
    save_changes() {}, on(name, f) { heard[name] = f; }, off() {},
    send(question) { window.asked.push(question); } };
window.tell = reply => heard["msg:custom"](reply);
SCRIPT
render({ model, el: document.getElementById("here") });
</script>"""


def test_python_is_asked_for_the_neuron_that_is_looked_at(opened, small, tmp_path):
    data = pack(small)
    state = {"data": data, **beginning(small, "layer0", 0.31)}
    script = asset("explorer.js").read_text().replace("export default", "//")
    page = tmp_path / "asking.html"
    filled = ASKING.replace("{DATA}", json.dumps(state)).replace("SCRIPT", script)
    style = f"<style>{asset('explorer.css').read_text()}</style>"
    page.write_text(f"<!doctype html><meta charset=utf-8>{style}<div id=here></div>{filled}")
    page = opened(page)
    v = int(small["layer0"].profile.match(0.31).x[0])
    for _ in range(10):
        page.wait_for_timeout(250)
        for question in page.evaluate("window.asked.splice(0)"):
            assert question["ask"] == "chance"
            page.evaluate("reply => tell(reply)", answer(small, question))
    page.locator(".grid").first.locator(f"[data-neuron='{v}']").hover()
    assert "Searching" in text(page) or page.evaluate("asked.length")
    page.wait_for_function("asked.length > 0")
    (question,) = page.evaluate("window.asked.splice(0)")
    assert (question["ask"], question["v"], question["epsilon"]) == ("match", ["x", v], 0.31)
    page.evaluate("reply => tell(reply)", answer(small, question))
    match = minimal_match(small["layer0"].moments, v=("x", v), epsilon=0.31)
    assert page.evaluate(PART) == of(match) and "minimal at ε = 0.31" in text(page)
    page.wait_for_timeout(400)
    assert page.evaluate("asked") == [] and page.errors == []


def test_nbconvert_shows_the_page(opened, tmp_path):
    "The notebook is run with its widget state, and opened where there is no network."
    code = (
        "from submatch_nb.explorer import demo_comparison, explore\n"
        "explore(demo_comparison(), layer='fc2.relu', epsilon=0.5)"
    )
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbformat.write(book, tmp_path / "book.ipynb")
    command = ["-m", "nbconvert", "--execute", "--to", "html", "book.ipynb"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, check=True)
    page = opened(tmp_path / "book.html")
    page.locator(".submatch-explorer").first.wait_for(timeout=60_000)
    assert page.locator(".submatch-explorer").count() == 1
    assert lit(page) == of(demo_comparison()["fc2.relu"].profile.match(0.5))


def test_without_scripts_a_table_stands_there(page_of, opened):
    comparison = with_chance()
    page = opened(page_of(comparison), java_script_enabled=False)
    cells = page.locator("td").all_inner_texts()
    layer = comparison["only"]
    numbers = layer.profile.similarity(0.3), layer.null[0].similarity(0.3)
    numbers += layer.profile.half, layer.null[0].half
    assert cells == ["only", *(f"{number:.3f}" for number in numbers)]
