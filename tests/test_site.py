"""The docs site, built without a warning and opened from disk without a network: every page is
legible and asks for nothing, and the explorer on it is alive.
"""

import os
import re
import subprocess
import sys
from html import unescape
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from conftest import once, serious
from test_explorer import LIT, SLIDE, of

from submatch_nb import Moments, epsilon_profile
from submatch_nb.explorer import demo_comparison
from submatch_nb.neurons import digits_layers

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
LONG = pytest.mark.long


def named(pattern):
    "The names of pages that are notebooks."
    found = (path.relative_to(NBS).with_suffix("").as_posix() for path in NBS.glob(pattern))
    return sorted(name for name in found if ".ipynb_checkpoints" not in name)


CHAPTERS = named("[0-9]*.ipynb")
NOTEBOOKS = ["index", *CHAPTERS, *named("guides/*.ipynb"), *named("engine/*.ipynb")]
OTHERS = ["glossary", "api", "references", "changelog", "reference/index", "reference/maximum"]
PATHS = ["paths/minutes", "paths/lecture", "paths/lab"]
MADE = ["genindex", "search"]  # by Sphinx alone
PAGES = [*NOTEBOOKS, *PATHS, *OTHERS, *MADE]
# What the short tier opens in a browser: a page of each kind
SHORT = ("index", "02_maximum", "08_explorer", "engine/peel", "guides/compare", "reference/maximum")
ALIVE = {
    "index": 0.25,
    "08_explorer": 0.25,
    "02_maximum": 0.15,
    "03_simple": 0.2,
}  # page with an explorer -> where its slider begins
LOOKS = [(1280, "light"), (768, "dark"), (390, "light"), (390, "dark")]


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The site, built once for all workers; any warning fails."
    for name in ("sphinx", "myst_nb"):
        pytest.importorskip(name, reason=f"no {name}: pip install '.[dev]' to test the docs site")
    return once(tmp_path_factory, "site", build)


def build(folder):
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-W",
            "--keep-going",
            "-E",
            "-q",
            "-c",
            "docs",
            "nbs",
            folder,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0 and not run.stderr, run.stderr


def spoiled(site, tmp_path, name, change):
    "A copy of a page with something changed, beside the same files."
    text = (site / f"{name}.html").read_text()
    assert change(text) != text
    for entry in site.iterdir():
        if entry.name != f"{name}.html":
            (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / f"{name}.html").write_text(change(text))
    return tmp_path / f"{name}.html"


# Every page

CLIPPED = """async () => {
    await window.MathJax?.startup?.promise;
    const wide = formula => formula.getBoundingClientRect().right > innerWidth;
    return [...document.querySelectorAll("mjx-container")]
        .filter(wide)
        .filter(formula => !formula.closest("div.math, .pst-scrollable-table-container"))
        .map(formula => formula.closest("p, li, td").textContent);
}"""


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(site, name):
    text = re.sub(
        r"<script.*?</script>|<style.*?</style>",
        "",
        (site / f"{name}.html").read_text(),
        flags=re.DOTALL,
    )
    ids = {}
    for target in {unescape(t) for t in re.findall(r'(?:href|src)="([^"]*)"', text)}:
        if re.match(r"https?:|mailto:|data:", target):
            continue
        file, _, fragment = unquote(target.split("?")[0]).partition("#")
        here = site / f"{name}.html"
        path = here.parent / file if file else here
        assert path.is_file() or (path / "index.html").is_file(), target
        if fragment and path.suffix == ".html":
            if path not in ids:
                ids[path] = set(re.findall(r'id="([^"]*)"', path.read_text()))
            assert fragment in ids[path], target


def looks():
    """(page, width, scheme): the short tier sees a page of each kind once, the long tier every
    page, and two in all looks.
    """
    for i, name in enumerate(PAGES):
        for look in LOOKS:
            first = look == LOOKS[i % len(LOOKS)]
            if not first and name not in ("index", "08_explorer"):
                continue
            marks = () if first and name in SHORT else LONG
            yield pytest.param(name, *look, marks=marks, id=f"{name}-{look[0]}-{look[1]}")


@pytest.mark.parametrize("name, width, scheme", list(looks()))
def test_legible_and_asks_for_nothing(site, opened, name, width, scheme):
    page = opened(site / f"{name}.html", width, scheme)
    page.wait_for_timeout(300)
    assert page.asked == [] and page.errors == []
    assert serious(page) == []
    for width in sorted({width for width, _ in LOOKS}):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(100)
        assert (
            page.evaluate("document.documentElement.scrollWidth") <= width
            and page.evaluate(CLIPPED) == []
        )


HEIGHT = """async () => {
    await window.MathJax?.startup?.promise;
    return document.documentElement.scrollHeight;
}"""
HIGHEST = 12_000  # px of a chapter at 1280: longer ones drown what they teach


def test_signatures_say_what_they_take_in_one_word(site):
    assert "ArrayLike" in (site / "reference" / "match.html").read_text()
    for page in (site / "reference").glob("*.html"):
        assert "_SupportsArray" not in page.read_text(), page.name


@LONG
@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_is_not_too_long(site, opened, name):
    page = opened(site / f"{name}.html", 1280)
    assert page.evaluate(HEIGHT) < HIGHEST


def test_a_chapter_that_is_too_long_would_be_noticed(site, opened, tmp_path):
    def change(text):
        return text.replace("</article>", '<div style="height: 12000px"></div></article>')

    page = opened(spoiled(site, tmp_path, "01_match", change), 1280)
    assert page.evaluate(HEIGHT) > HIGHEST


LONG_FORMULA = r"\(" + "a + " * 40 + r"b\)"
UNSCROLLED = (
    "<style>mjx-container { max-width: none !important; overflow: visible !important; }</style>"
)


def on_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 900})
    page.wait_for_timeout(100)
    return page.evaluate("document.documentElement.scrollWidth"), page.evaluate(CLIPPED)


def longer(text):
    return text.replace(r"\(\varepsilon \in [0, 1)\)", LONG_FORMULA)


def test_a_formula_that_is_too_long_scrolls(site, opened, tmp_path):
    assert on_a_phone(opened(spoiled(site, tmp_path, "01_match", longer), 1280)) == (390, [])


def test_a_formula_that_is_too_long_would_be_noticed(site, opened, tmp_path):
    def change(text):
        return longer(text).replace("</head>", UNSCROLLED + "</head>")

    _, (found,) = on_a_phone(opened(spoiled(site, tmp_path, "01_match", change), 1280))
    assert found.startswith("Let a+a+")


def test_a_request_would_be_noticed(site, opened, tmp_path):
    page = opened(
        spoiled(
            site,
            tmp_path,
            "references",
            lambda text: text.replace(
                "</article>", '<img src="https://example.com/x.png" alt=""></article>'
            ),
        )
    )
    page.wait_for_timeout(300)
    assert page.asked == ["https://example.com/x.png"]


def test_a_missing_label_would_be_noticed(site, opened, tmp_path):
    page = opened(
        spoiled(
            site, tmp_path, "index", lambda text: text.replace('"aria-label": "Tolerance ε", ', "")
        )
    )
    assert "label" in dict(serious(page))


def test_search(site, opened):
    page = opened(f"{(site / 'search.html').as_uri()}?q=Wielandt")
    page.wait_for_selector("#search-results li a", timeout=20_000)
    assert "04_structure.html" in page.locator("#search-results li a").first.get_attribute("href")


@pytest.mark.parametrize(
    "word, expected",
    [("significance", "glossary"), ("CKA", "reference/measures"), ("padding", "guides/tokens")],
)
def test_search_finds_what_users_ask_for(site, opened, word, expected):
    page = opened(f"{(site / 'search.html').as_uri()}?q={word}")
    page.wait_for_selector(f'#search-results a[href^="{expected}.html"]', timeout=20_000)


def test_the_reader_chooses_the_dark(site, opened):
    page = opened(site / "index.html", 1400, "light")
    color = "getComputedStyle(document.querySelector('.submatch-explorer')).backgroundColor"
    before = page.evaluate(color)
    page.locator(".theme-switch-button").first.click()
    page.locator(".theme-switch-container [data-mode=dark]:visible").last.click()
    assert (
        page.evaluate("document.documentElement.dataset.theme") == "dark"
        and page.evaluate(color) != before
    )


# The explorer on it


def profile_on(name):
    "That of the layer which the explorer of a page shows first."
    return (
        epsilon_profile(Moments(*digits_layers()))
        if name in ("02_maximum", "03_simple")
        else demo_comparison().profiles["fc1.relu"]
    )


def alive(page, name="index"):
    "Whether the slider moves the picture."
    if page.locator(".submatch-explorer").count() != 1:
        return False
    profile, begin = profile_on(name), ALIVE[name]
    before = page.evaluate(LIT)
    page.get_by_role("slider", name="Tolerance ε").focus()
    page.keyboard.press("PageDown")
    moved = page.evaluate(LIT)
    page.evaluate(SLIDE, 0.6)
    return [before, moved, page.evaluate(LIT)] == [
        of(profile.match(e)) for e in (begin, round(begin - 0.05, 3), 0.6)
    ]


def alive_looks():
    """The short tier moves the explorer of the first page, the long tier those of all, wide and
    narrow.
    """
    for name in ALIVE:
        for look in [(1280, "light"), (390, "dark")]:
            short = (name, look[0]) == ("index", 1280)
            yield pytest.param(name, *look, marks=() if short else LONG)


@pytest.mark.parametrize("name, width, scheme", list(alive_looks()))
def test_the_explorer_is_alive(site, opened, name, width, scheme):
    page = opened(site / f"{name}.html", width, scheme)
    assert alive(page, name)
    page.locator(".grid span").nth(3).click()
    assert (
        "matches now" in page.locator(".submatch-explorer .detail").inner_text()
        and page.locator(".part").count() > 1
    )
    menu = page.get_by_role("combobox", name="Layer")
    if menu.locator("option", has_text="fc2.relu").count():
        menu.select_option(label="fc2.relu")
        assert page.evaluate(LIT) == of(demo_comparison().profiles["fc2.relu"].match(0.6))
    assert page.asked == [] and page.errors == []


@pytest.mark.parametrize(
    "spoil", [r'<script type="module">.*?</script>', r'<script class="submatch-data".*?</script>']
)
def test_a_dead_explorer_would_be_noticed(site, opened, tmp_path, spoil):
    assert not alive(
        opened(
            spoiled(site, tmp_path, "index", lambda text: re.sub(spoil, "", text, flags=re.DOTALL))
        )
    )


def test_other_sliders_say_that_they_need_a_kernel(site):
    for name in NOTEBOOKS:
        sliders = sum(
            "interact(" in cell.source
            for cell in nbformat.read(ROOT / f"nbs/{name}.ipynb", 4).cells
            if cell.cell_type == "code"
        )
        assert (site / f"{name}.html").read_text().count('class="needs-kernel"') == sliders, name


# The text


def test_statements_are_numbered_and_linked(site):
    import chapters

    labels = chapters.statements()
    titles = [
        re.findall(
            r"(?:Definition|Lemma|Theorem|Corollary) (\d+)", (site / f"{name}.html").read_text()
        )
        for name in NOTEBOOKS[1:]
    ]
    assert {int(n) for found in titles for n in found} >= set(range(1, len(labels) + 1))
    everything = "".join((site / f"{name}.html").read_text() for name in NOTEBOOKS)
    for (kind, _), label in labels.items():
        assert everything.count(f'<div class="proof {kind} admonition" id="{label}">') == 1, label
    assert re.search(
        r'href="03_simple.html#thm-unique">Theorem \d+</a>',
        (site / "04_structure.html").read_text(),
    )  # across chapters
    assert re.search(r'href="references.html#id\d+" title="Liwei Wang', everything)


def test_a_proof_that_says_so_opens_below_its_statement(site):
    for name in CHAPTERS:
        cells = nbformat.read(NBS / f"{name}.ipynb", 4).cells
        said = sum(cell.source.count(":::{prf:proof}\n:class: dropdown\n") for cell in cells)
        page = (site / f"{name}.html").read_text()
        assert len(re.findall(r'<details class="[^"]*folded-proof[^"]*">', page)) == said, name


def test_a_cell_says_itself_whether_it_is_folded():
    import chapters

    long = "\n".join(f"a{i} = {i}" for i in range(chapters.LONG + 1))
    for said, code, folded in (
        ("", "a = 1", False),
        ("", long, True),
        ("#| code-fold: true\n", "a = 1", True),
        ("#| code-fold: false\n", long, False),
    ):
        for head in ("", "#| export\n"):
            sources = ("#| default_exp maximum", head + said + code)
            nb = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, sources)))
            (cell,) = chapters.converted(nb, {}, "02_maximum", {})
            assert ("hide-input" in cell.metadata.get("tags", [])) == folded, (head, said)


def test_what_is_not_there_is_an_error():
    import chapters

    labels = {("theorem", "the ε-profile"): "thm-p", ("theorem", "b"): "thm-b"}
    with pytest.raises(KeyError, match="no chapter states the theorem .everything is one."):
        chapters.prose("by theorem *everything is one*", labels)
    with pytest.raises(KeyError, match="Nobody et al. 1999 is not in docs/references.bib"):
        chapters.prose("as in Nobody et al. 1999", labels)
    with pytest.raises(KeyError, match="there is no chapter 98"):
        chapters.prose("in chapter 98", labels)
    assert (
        chapters.prose(
            "## By theorem *b*\n\nBy Theorem *the ε-profile* (Wang et al. 2018), not `theorem *x*`;"
            " theorems *the ε-profile* and *b*, [chapter 98](x)",
            labels,
        )
        == "## By theorem *b*\n\nBy {prf:ref}`thm-p` ({cite:alp}`wang2018`), not `theorem *x*`;"
        " {prf:ref}`thm-p` and {prf:ref}`thm-b`, [chapter 98](x)"
    )
    assert (
        chapters.prose("Chapter *Match*, chapter 00 (Johnson 2019)", labels)
        == "[Chapter *Match*](/01_match.ipynb), [chapter 00](/00_neurons.ipynb)"
        " ({cite:alp}`johnson2019`)"
    )


def terms_of(site, name):
    "The links of a page to entries of the glossary, in order: their text and their title."
    text = (site / f"{name}.html").read_text()
    links = re.findall(r'<a class="term[^"]*" href="glossary.html#([^"]*)" title="([^"]*)">', text)
    return [(anchor, unescape(title)) for anchor, title in links]


def test_the_first_use_of_a_term_leads_to_the_glossary(site):
    from glossary import terms

    used = {name: terms_of(site, name) for name in CHAPTERS}
    for name, links in used.items():
        anchors = [anchor for anchor, _ in links]
        assert anchors and len(anchors) == len(set(anchors)), name
    meanings = {term.id: term.meaning for term in terms()}
    assert {pair for links in used.values() for pair in links} == set(meanings.items())
    first = dict(used["00_neurons"])
    assert first["dead-neuron"].startswith("A neuron that is exactly 0 on every sample.")
    assert {"critical", "profile", "peeling"} <= set(dict(used["02_maximum"]))


def test_words_of_the_glossary_are_found_whole_and_in_text_alone():
    from glossary import glossed

    seen = set()
    text = "`dead` [dead](x) $dead$ deadly DEAD dead v-minimal matches"
    made = glossed(text, seen)
    assert made == text.replace(" DEAD", " [DEAD](/glossary.md#dead-neuron)").replace(
        "v-minimal matches", "[v-minimal matches](/glossary.md#v-minimal-match)"
    )
    assert seen == {"dead-neuron", "v-minimal-match"}
    assert glossed("# dead\n:::{prf:definition} sample\nA dead one", set()).endswith(
        "A [dead](/glossary.md#dead-neuron) one"
    )


def test_two_terms_with_one_word_are_an_error(monkeypatch, tmp_path):
    import glossary

    text = glossary.PAGE.read_text() + "\n### corpse\nThe same.\n<!-- words: corpse; Dead -->\n"
    (tmp_path / "glossary.md").write_text(text)
    monkeypatch.setattr(glossary, "PAGE", tmp_path / "glossary.md")
    with pytest.raises(ValueError, match="Dead is a word of dead neuron and of corpse"):
        glossary.terms.__wrapped__()


def test_two_pages_with_one_title_are_an_error(monkeypatch):
    import chapters

    monkeypatch.setattr(chapters, "title_of", lambda path: "Layers")
    with pytest.raises(ValueError, match="00_neurons and 01_match have the same title"):
        chapters.chapters.__wrapped__()


def test_a_broken_explorer_cell_is_an_error():
    import chapters

    with pytest.raises(KeyError, match="fc9"):
        chapters.explorer(
            "from submatch_nb.explorer import demo_comparison, explore\nexplore(demo_comparison(),"
            " layer='fc9')"
        )


def test_every_public_name_has_an_entry(site):
    "In the page of a module that has it, which the list of public names links to."
    import submatch_nb

    text = (site / "api.html").read_text()
    for name in submatch_nb.__all__:
        pages = re.findall(rf'href="(reference/[\w.]+\.html)#(submatch_nb\.[\w.]*\b{name})"', text)
        ((page, entry),) = set(pages)
        assert f'id="{entry}"' in (site / page).read_text(), name
        module = import_module(entry.removesuffix(f".{name}"))
        assert getattr(module, name) is getattr(submatch_nb, name)


def test_the_page_of_a_module_documents_all_that_it_hands_out(site):
    "What another module defines, too, with its signature and its docstring."
    import chapters

    for module in chapters.modules():
        page = site / "reference" / f"{module.removeprefix('submatch_nb.')}.html"
        text = unescape(re.sub("<[^>]*>", "", page.read_text()))
        for name in import_module(module).__all__:
            if not name.startswith("_"):
                assert re.search(rf"\b{name}\b", text), (module, name)
    text = (site / "reference/comparison.html").read_text()
    assert "Parameters" in text and 'id="submatch_nb.comparison.compare"' in text


def test_an_entry_tells_what_the_docstring_tells(site):
    entry = (site / "reference/maximum.html").read_text()
    assert "Parameters" in entry and "activations" in entry
    chapter = (site / "02_maximum.html").read_text()
    assert 'href="reference/maximum.html#submatch_nb.maximum.epsilon_profile"' in chapter


def classes_of(frame):
    "The headings of a table as the site shows it, and what is said of each column, row by row."
    import chapters
    from bs4 import BeautifulSoup

    output = nbformat.v4.new_output("display_data", {"text/html": frame.to_html()})
    chapters.aligned(output)
    table = BeautifulSoup(output.data["text/html"], "html.parser").table
    head, *rows = chapters.grid_of(table)
    said = {tuple((cell.get("class") or [""])[0] for cell in row) for row in (head, *rows)}
    return [cell.text for cell in head], said


def test_the_cells_of_a_column_are_aligned_alike():
    "Also where one of the index stands beside several rows, and has a name of its own."
    import pandas as pd

    index = pd.MultiIndex.from_product([["fc1", "fc2"], ["half", "area"]])
    frame = pd.DataFrame({"value": [0.1, 0.2, 0.3, 0.4], "why": "a word"}, index)
    words = {("words", "words", "", "words")}
    assert classes_of(frame) == (["", "", "value", "why"], words)
    frame.index.names = ["layer", "quantity"]
    assert classes_of(frame) == (["layer", "quantity", "value", "why"], words)
    frame.columns.name = "said"
    assert classes_of(frame) == (["layer", "quantity ↓, said →", "value", "why"], words)
    frame.index.names = [None, "quantity"]
    assert classes_of(frame) == (["", "quantity ↓, said →", "value", "why"], words)
    one = frame.droplevel(0)
    assert classes_of(one) == (["quantity ↓, said →", "value", "why"], {("words", "", "words")})
    wide = frame[["value"]].unstack()
    assert classes_of(wide)[1] == {("words", "", "")}


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_ends_with_its_sum_and_three_questions(site, name):
    "In this order; a question has no TeX and no backticks, which mean nothing in a summary."
    cells = nbformat.read(NBS / f"{name}.ipynb", 4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    if "## Check yourself" not in text:
        pytest.skip("the chapter has no questions yet")
    assert re.findall("^## (.*)", text, re.MULTILINE)[-2:] == ["In short", "Check yourself"]
    last = cells[-1].source
    assert last.startswith("## Check yourself") and last.count("<details><summary>") == 3
    page = (site / f"{name}.html").read_text()
    for summary in re.findall("<summary.*?</summary>", page, re.DOTALL):
        assert not re.search(r"[$`]|\\\(", summary), summary


@pytest.mark.parametrize("name", NOTEBOOKS[1:])
def test_a_chapter_can_be_run(site, name):
    text = (site / f"{name}.html").read_text()
    (notebook,) = re.findall(r'href="((?:\.\./)*_downloads/[^"]*\.ipynb)"', text)
    downloaded = ((site / f"{name}.html").parent / notebook).resolve()
    assert downloaded.read_bytes() == (NBS / f"{name}.ipynb").read_bytes()
    assert f"/nbs/{name}.ipynb" in text


INSTALL = """#| hide
try:
    import submatch_nb
except ImportError:  # in Colab, say
    !git clone -q --depth 1 {url}
    %cd -q {folder}
    %pip install -q {up} anywidget"""


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_chapter_opens_in_colab(name):
    import chapters
    import conf

    cells = nbformat.read(NBS / f"{name}.ipynb", 4).cells
    url = chapters.REPOSITORY.format(name=name, **conf.cfg)
    assert f"]({url})" in cells[1].source and cells[1].metadata.get("tags") == ["colab"]
    folder = Path(conf.cfg["repo"], "nbs", name).parent
    up = "/".join([".."] * (len(folder.parts) - 1))
    install = next(cell.source for cell in cells if cell.cell_type == "code")
    assert install == INSTALL.format(url=conf.cfg["git_url"], folder=folder, up=up)


def test_the_index_leads_to_every_chapter(site):
    "The first table of its section *Chapters* has each once, in order, beside its number."
    text = (site / "index.html").read_text()
    table = text[text.index('id="chapters"') :].partition("</table>")[0]
    rows = re.findall(
        r'<tr class="row-\w+"><td><p>(\d\d)</p></td>\s*<td><p><a class="reference internal"'
        r' href="(\w+)\.html">',
        table,
    )
    assert [name for _, name in rows] == CHAPTERS
    assert all(name.startswith(number) for number, name in rows)
