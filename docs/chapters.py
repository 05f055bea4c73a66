"""Sphinx reads nbdev's notebooks: directives become tags, exported symbols API entries above their
folded source, explorers live pages.

A notebook stays what it is, and readable anywhere; what only the site can do is added here, while
Sphinx reads it:
- `theorem *the ε-profile*` becomes its number and a link, in whatever chapter it stands, `chapter
  02` and `chapter *Layers*` links, and `Wang et al. 2018` a citation;
  a statement that nobody states, a chapter that nobody wrote and a paper that is not in
  `references.bib` are errors;
- the first use of each term of glossary.md leads to its entry there;
- each module gets a page in reference/, with an entry for each name in its `__all__`;
- a cell that is exported is shown with the first lines of its docstrings and a link to the entries;
- a cell is folded where it is long or draws a figure in many lines, unless it says
  `#| code-fold: false`, and where it says `#| code-fold: true`; its output is not;
- a proof that says `:class: dropdown` is folded;
- a cell that starts with `#| explorer` is run and shows its explorer, which needs no kernel; other
  sliders say that they need one, and the explorer of the same layers stands in for some.
"""

import ast
import functools
import inspect
import os
import re
from importlib import import_module
from pathlib import Path
from types import GenericAlias

import nbformat
from bs4 import BeautifulSoup
from fastcore.docments import docments
from glossary import glossed, told
from numpy.typing import ArrayLike
from parts import ENGINE, GUIDES, PARTS, PATHS
from pybtex.database import parse_file
from sphinx.addnodes import pending_xref, pending_xref_condition
from sphinx.util.typing import stringify_annotation

NBS = Path(__file__).parent.parent / "nbs"
REPOSITORY = "https://colab.research.google.com/github/{user}/{repo}/blob/{branch}/nbs/{name}.ipynb"
KINDS = "theorem|lemma|definition|corollary"
STATEMENT = re.compile(rf":::\{{prf:({KINDS})\}} (.*?)(?: \(Wang et al\. 2018\))?\n:label: (\S+)")
MENTION = re.compile(rf"\b({KINDS})(s?) \*([^*\n]+)\*(?: and \*([^*\n]+)\*)?", re.IGNORECASE)
LONG = 28  # lines of a cell that is folded
DRAWING = 6  # lines of a cell that is folded where its output is a figure
SAID = re.compile(r"^#\| code-fold: (true|false)$", re.MULTILINE)
PROOF = re.compile(r"^:::\{prf:proof\}\n:class: dropdown\n", re.MULTILINE)
FOLDED_PROOF = ":::{admonition} Proof\n:class: folded-proof\n:collapsible: closed\n"
CHAPTER = re.compile(r"(?<!\[)\b([Cc]hapter|[Pp]age|[Gg]uide) (?:(\d\d)\b|(\*)([^*\n]+)\*)")


def keys():
    "What the text says of each paper, such as Wang et al. 2018 or Johnson 2019 -> its key."
    for key, entry in parse_file(Path(__file__).with_name("references.bib")).entries.items():
        first, *others = [" ".join(person.last_names) for person in entry.persons["author"]]
        yield (
            (
                f"{first}{' et al.' if len(others) > 1 else f' and {others[0]}' if others else ''}"
                f" {entry.fields['year']}"
            ),
            key,
        )


KEYS = dict(keys())
CITATION = re.compile(
    r"\[(?P<linked>[^\]\n]* \d{4})\]\([^)]*\)|\b(?P<plain>\w+ et al\. \d{4}|"
    + "|".join(map(re.escape, KEYS))
    + ")"
)


def book():
    "The chapters, in order."
    return sorted(NBS.glob("[0-9]*.ipynb"))


def in_order(pages, names):
    "Pages in the order of their names; a page that nobody has placed stands at the end."
    place = {name: i for i, name in enumerate(names)}
    return sorted(pages, key=lambda path: (place.get(path.stem, len(place)), path.stem))


def guides():
    "The pages that answer how to do one thing."
    return in_order(NBS.glob("guides/*.ipynb"), GUIDES)


def engine():
    "The engine room, in the order of reading."
    return in_order(NBS.glob("engine/*.ipynb"), ENGINE)


def notebooks():
    "Every page that is a notebook, but the index."
    return [*book(), *guides(), *engine()]


def docname(path):
    "What Sphinx calls a page."
    return path.relative_to(NBS).with_suffix("").as_posix()


def title_of(path):
    return nbformat.read(path, 4).cells[0].source.split("\n")[0].removeprefix("# ").strip()


@functools.cache
def statements():
    "(kind, title) -> label of every statement on every page."
    text = "\n".join(
        cell.source
        for path in notebooks()
        for cell in nbformat.read(path, 4).cells
        if cell.cell_type == "markdown"
    )
    return {(kind, title.strip().lower()): label for kind, title, label in STATEMENT.findall(text)}


@functools.cache
def chapters():
    "Title -> name of the page; raises ValueError where two pages have one title."
    found = {}
    for path in notebooks():
        other = found.setdefault(title_of(path), docname(path))
        if other != docname(path):
            raise ValueError(f"{other} and {docname(path)} have the same title: rename one")
    return found


def module_of(nb):
    "The module that a notebook exports, or None."
    code = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "code")
    found = re.search(r"^#\| default_exp ([\w.]+)", code, re.MULTILINE)
    return found and f"submatch_nb.{found[1]}"


# Text


def linked(text, role, labels):
    """Mentions of statements and papers as references. `role(name, target)` writes one; raises
    KeyError for a statement that nobody states and a paper that is not in the list.
    """

    def statement(m):
        kind, *titles = m[1].lower(), *filter(None, m.groups()[2:])
        for title in titles:
            if (kind, title.lower()) not in labels:
                raise KeyError(
                    f"no chapter states the {m[1]} *{title}*; there are:"
                    f" {', '.join(f'{k} *{t}*' for k, t in sorted(labels))}"
                )
        return " and ".join(role("prf:ref", labels[kind, title.lower()]) for title in titles)

    def citation(m):
        words = m["linked"] or m["plain"]
        if words in KEYS:
            return role("cite:alp", KEYS[words])
        if m["linked"]:
            return m[0]
        raise KeyError(f"{words} is not in docs/references.bib; there are: {', '.join(KEYS)}")

    return CITATION.sub(citation, MENTION.sub(statement, text))


def to_chapters(text, link):
    """Mentions of chapters, by number or title, as links. `link(words, name)` writes one; raises
    KeyError for a chapter that is not there.
    """
    names = chapters() | {path.stem[:2]: path.stem for path in book()}

    def mention(m):
        if (m[2] or m[4]) not in names:
            raise KeyError(f"there is no {m[0]}; there are: {', '.join(chapters().values())}")
        return link(m, names[m[2] or m[4]])

    return CHAPTER.sub(mention, text)


def prose(source, labels):
    "A markdown cell, its mentions linked; code, formulas and headings stay as they are."
    source = re.sub(
        r"^(:::\{prf:.*) \((Wang et al\. 2018)\)$",
        lambda m: f"{m[1]}, {{cite:alp}}`{KEYS[m[2]]}`",
        source,
        flags=re.MULTILINE,
    )
    parts = re.split(
        r"(```.*?```|`[^`\n]*`|\$\$.*?\$\$|^#+ [^\n]*|^:::\{[^\n]*)",
        source,
        flags=re.DOTALL | re.MULTILINE,
    )
    return "".join(part if i % 2 else marked(part, labels) for i, part in enumerate(parts))


def marked(text, labels):
    "Mentions of statements, papers and chapters as MyST writes references."
    return linked(
        to_chapters(text, lambda m, name: f"[{m[0]}](/{name}.ipynb)"),
        lambda role, target: f"{{{role}}}`{target}`",
        labels,
    )


# Code


def directives(source):
    "The names of nbdev's directives at the head of a cell, and the code below them."
    head = re.match(r"(?:#\|.*\n?)*", source)[0]
    return {
        line.removeprefix("#|").split()[0].rstrip(":")
        for line in head.splitlines()
        if line.removeprefix("#|").split()
    }, source[len(head) :]


def defined(code):
    "What a cell defines: names of functions, classes and constants."
    names = []
    for node in ast.parse(code).body:
        if isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
    return names


def named(code):
    "What the fold of a cell that shows no figure and no table is called."
    kinds = (ast.FunctionDef, ast.ClassDef)
    names = [node.name for node in ast.parse(code).body if isinstance(node, kinds)]
    return ", ".join(names[:3]) or "this cell"


def condensed(code):
    "The code, each docstring cut to its first line: all of it stands in the reference."
    lines = code.split("\n")
    cuts = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            cuts.append((node.body[0].lineno, node.body[0].end_lineno, node.body[0].col_offset))
    for first, last, indent in sorted(cuts, reverse=True):
        if last > first:
            text = lines[first - 1].strip().lstrip("rR").strip("\"'").strip()
            text = text or lines[first].strip()
            lines[first - 1 : last] = [" " * indent + f'"""{text}"""']
    return "\n".join(lines)


def exported(cell, code, module):
    """An exported cell: its code without the long docstrings, and links to the entries of its
    public names.
    """
    names = defined(code)
    said = SAID.search(cell.source)
    cell.source = condensed(code)
    long = len(cell.source.split("\n")) > LONG
    if imports(code):
        cell.metadata = folded("imports")
    elif folds(said, long or draws(code)):
        cell.metadata = folded(", ".join(names))
    yield cell
    names = [name for name in names if listed(module, name)]
    found = [f"{{py:obj}}`{name} <{target(module, name)}>`" for name in names]
    if found:
        text = f"Reference: {', '.join(found)}"
        yield nbformat.v4.new_markdown_cell(f":::{{container}} reference-link\n{text}\n:::")


def listed(module, name):
    "Whether a name has an entry in the reference."
    return name in import_module(module).__all__ and not name.startswith("_")


def folded(what):
    return {
        "tags": ["hide-input"],
        "mystnb": {"code_prompt_show": f"Source: {what}", "code_prompt_hide": f"Source: {what}"},
    }


def folds(said, otherwise):
    "Whether a cell is folded: what it says itself, where it does."
    return said[1] == "true" if said else otherwise


def fold(cell, what):
    "Fold the code of a cell; its other tags stay."
    made = folded(what)
    cell.metadata["tags"] = [*cell.metadata.get("tags", []), *made["tags"]]
    cell.metadata["mystnb"] = made["mystnb"]


def draws(code):
    "Whether a cell defines nothing but what draws."
    if re.search(r"^[!%]", code, re.MULTILINE):
        return False
    body = ast.parse(code).body
    return bool(body) and all(
        isinstance(node, ast.FunctionDef) and re.match(r"_?(draw|plot|show)_", node.name)
        for node in body
    )


def imports(code):
    "Whether a cell does nothing but import, for type checkers too."
    if re.search(r"^[!%]", code, re.MULTILINE):
        return False
    return all(is_import(node) for node in ast.parse(code).body)


def is_import(node):
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return all(is_import(inner) for inner in node.body)
    named = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_all_"
    return named or isinstance(node, ast.Import | ast.ImportFrom)


def explorer(code, prelude=""):
    "Run a cell that ends in an explorer, after the imports that stand before it; the explorer."
    *body, last = ast.parse(code).body
    space = {}
    exec(prelude, space)
    exec(compile(ast.Module(body, []), "explorer", "exec"), space)
    return eval(compile(ast.Expression(last.value), "explorer", "eval"), space)


def live(widget):
    "An explorer as a piece of a page."
    from submatch_nb.explorer import beginning, prepare

    state = beginning(widget.explored, widget.layer, widget.epsilon)
    prepare(widget.explored, state | {"pair": widget.pair}, seconds=60)
    return nbformat.v4.new_output(
        "display_data",
        {
            "text/html": widget.fragment(),
            "text/plain": "the explorer",
        },
    )


def digits(epsilon, selected=None):
    "The explorer of the digits layers, which the first chapters share."
    from submatch_nb import Comparison, Moments, explore
    from submatch_nb.neurons import digits_layers

    widget = explore(
        Comparison.from_moments({"digits": Moments(*digits_layers())}), epsilon=epsilon
    )
    widget.selected = selected
    return widget


STAND_INS = {
    "02_maximum": lambda: digits(0.15),
    "03_simple": lambda: digits(0.2, ("x", 0)),
}  # the explorer of what a chapter's slider shows


def needs_kernel(name):
    "What stands in the place of a slider that Python has to answer."
    stand_in = STAND_INS.get(name)
    explorer_page = "../" * name.count("/") + "08_explorer.html"
    text = "This needs a kernel: run this chapter, as its first lines say, to move it. "
    if stand_in:
        text += f'The <a href="{explorer_page}">explorer</a> of the same layers, below, does not.'
    else:
        text += f'The <a href="{explorer_page}">explorer</a> moves without one.'
    data = {"text/html": f'<p class="needs-kernel">{text}</p>'}
    data["text/plain"] = re.sub("<[^>]*>", "", text)
    note = nbformat.v4.new_output("display_data", data)
    return [note, live(stand_in())] if stand_in else [note]


def joined(cells):
    "The cells, those of imports that follow one another as one."
    last = next(cells)
    for cell in cells:
        if last.metadata == cell.metadata == folded("imports"):
            last.source += f"\n\n{cell.source}"
        else:
            yield last
            last = cell
    yield last


def converted(nb, labels, name, cfg):
    "The cells of a notebook as the site shows them."
    module = module_of(nb)
    prelude = f"from {module} import *\n" if module else ""
    terms = set()  # linked so far
    for i, cell in enumerate(nb.cells):
        if cell.cell_type == "markdown":
            if {"colab", "readme"} & set(cell.metadata.get("tags", [])):
                continue
            cell.source = prose(cell.source, labels)
            if i > 0 and not name.startswith("engine/"):
                cell.source = glossed(cell.source, terms)
            cell.source = PROOF.sub(FOLDED_PROOF, cell.source)
            yield cell
            if i == 0 and name != "index":
                yield nbformat.v4.new_markdown_cell(run_this(name, cfg))
            continue
        found, code = directives(cell.source)
        if found & {"hide", "default_exp"} or "nbdev_export" in code:
            continue
        if found & {"export", "exporti"}:
            yield from exported(cell, code, module)
            continue
        if imports(code):
            prelude += code + "\n"
        yield shown(cell, found, code, name, prelude)


def shown(cell, found, code, name, prelude):
    "A teaching cell: its code, and what its stored outputs are on a page without a kernel."
    said = SAID.search(cell.source)
    cell.source = code.lstrip("\n")
    for output in cell.outputs:
        if "dataframe" in output.get("data", {}).get("text/html", ""):
            aligned(output)
        if re.search(r"\S {3,}\S", output.get("text", "")):  # lines that must not be broken
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), "columns"]
    figure = any("image/png" in output.get("data", {}) for output in cell.outputs)
    table = any("text/html" in output.get("data", {}) for output in cell.outputs)
    lines = cell.source.strip().count("\n") + 1
    if imports(cell.source):
        cell.metadata = folded("imports")
    elif folds(said, lines > (DRAWING if figure else LONG) or draws(cell.source)):
        fold(cell, "the figure" if figure else "the table" if table else named(code))
    if "explorer" in found:
        cell.outputs = [live(explorer(code, prelude))]
    elif re.search(r"\binteract\(", code) and not cell.outputs:
        cell.outputs = needs_kernel(name)
    elif figure:
        alt = f"Figure: {code.strip().splitlines()[-1]}"
        cell.metadata.setdefault("mystnb", {})["image"] = {"alt": alt}
    return cell


def grid_of(table):
    "The cells of a table, row by row; a cell that spans several stands in each."
    placed = {}
    for down, row in enumerate(table.select("tr")):
        across = 0
        for cell in row.select("th, td"):
            while (down, across) in placed:
                across += 1
            for i in range(int(cell.get("rowspan", 1))):
                for j in range(int(cell.get("colspan", 1))):
                    placed[down + i, across + j] = cell
    height, width = (1 + max(numbers) for numbers in zip(*placed, strict=True))
    return [[placed.get((i, j)) for j in range(width)] for i in range(height)]


def one_heading(table):
    """Where the names of the index stand in a row of their own, below that of the columns: both
    in one.
    """
    rows = table.select("thead tr")
    if len(rows) != 2:
        return
    first, second, *_, last = grid_of(table)
    levels = sum(cell.name == "th" for cell in last)
    if any(cell.text for cell in (*first[: levels - 1], *second[levels:])):
        return
    for over, name in zip(first[:levels], second, strict=False):
        over.string = f"{name.text} ↓, {over.text} →" if over.text else name.text
    rows[1].decompose()


def aligned(output):
    """A table with one row of headings, its columns of words marked, to be set from the left and,
    where they are long, in several lines.
    """
    page = BeautifulSoup(output.data["text/html"], "html.parser")
    for table in page.select("table.dataframe"):
        one_heading(table)
        for column in zip(*grid_of(table), strict=True):
            texts = [cell.text for cell in column if cell and cell.find_parent("tbody")]
            if any(re.search("[A-Za-z]{2}", text) and text != "NaN" for text in texts):
                kind = "sentences" if max(map(len, texts)) > 24 else "words"
                for cell in filter(None, column):
                    if int(cell.get("colspan", 1)) == 1:
                        cell["class"] = kind
    output.data["text/html"] = str(page)


def run_this(name, cfg):
    "How to run a chapter."
    url = REPOSITORY.format(name=name, **cfg)
    return (
        ":::{admonition} Run this chapter\n:class: run-this\n:collapsible:"
        f" closed\n\n{{download}}`Download the notebook </{name}.ipynb>` and open it in JupyterLab,"
        f" with the package and its extra `lab` installed, or [open it in Colab]({url}). In a"
        " checkout, `make lab` installs all that it takes and opens the paper. Outputs shown here"
        " are stored in the notebook; `make test` runs every chapter.\n:::"
    )


# What Sphinx asks for


def read(app, docname, source):
    "A notebook, as Sphinx reads it."
    path = Path(app.env.doc2path(docname))
    if docname == "glossary":
        source[0] = prose(source[0], statements())
    if path.suffix != ".ipynb":
        return
    nb = nbformat.reads(source[0], 4)
    cfg = {key: app.config.submatch_cfg[key] for key in ("user", "repo", "branch")}
    nb.cells = list(joined(converted(nb, statements(), docname, cfg)))
    if docname == "index":
        nb.cells.append(nbformat.v4.new_markdown_cell(contents()))
    nb.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    # Where a warning says a cell begins; MyST-NB's own 10,000 lines a cell are as many empty lines
    # to parse
    nb.metadata["source_map"] = list(range(len(nb.cells)))
    source[0] = nbformat.writes(nb)


def tree(caption, pages):
    "One part of the table of contents beside every page."
    return f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{chr(10).join(pages)}\n```"


def contents():
    "The table of contents beside every page."
    named = {path.stem[:2]: f"{path.stem[:2]}  {title_of(path)} <{path.stem}>" for path in book()}
    parts = {caption: [named.pop(no) for no in nos] for caption, nos in PARTS.items()}
    if named:
        raise KeyError(f"no part has the chapters {', '.join(named)}: place them in PARTS")
    parts[list(PARTS)[-1]] += [f"paths/{name}" for name in PATHS]
    parts["Guides"] = [docname(path) for path in guides()]
    parts["The engine room"] = [docname(path) for path in engine()]
    parts["Reference"] = ["Glossary and notation <glossary>", "Public names <api>"]
    parts["Reference"] += ["Modules <reference/index>"]
    parts["Reference"] += ["Literature <references>", "Changes <changelog>"]
    return "\n\n".join(tree(caption, pages) for caption, pages in parts.items())


# The reference: written beside the notebooks, since Sphinx reads nothing else; git ignores it


@functools.cache
def modules():
    "Module -> (title of the page that makes it, name of that page)."
    found = {module_of(nbformat.read(path, 4)): path for path in notebooks()}
    return {module: (title_of(path), docname(path)) for module, path in found.items() if module}


@functools.cache
def home(module, name):
    """The module whose page has the entry that links to a name of a module lead to: the first, in
    the order of reading, that has the same thing under this name.
    """
    thing = getattr(import_module(module), name)
    for other in modules():
        public = import_module(other)
        if name in public.__all__ and getattr(public, name) is thing:
            return other
    raise KeyError(f"no page has an entry for {module}.{name}")


def target(module, name):
    "What a link to the entry of a name aims at."
    return f"{home(module, name)}.{name}"


def first_line(thing):
    "The first line of a docstring, its mentions linked, fit for a table."
    line = (thing.__doc__ or "").strip().split("\n")[0]
    return prose(line, statements()).replace("|", chr(92) + "|")


def entry(module, name):
    "One entry of the reference; a link leads to it where no page before has the same."
    thing = getattr(import_module(module), name)
    kind, shown, options = "autofunction", f"{module}.{name}", []
    if inspect.isclass(thing) and not isinstance(thing, GenericAlias):
        hidden = ", ".join(getattr(thing, "_fields", ["_"]))  # a tuple's are in its signature
        kind, options = "autoclass", [":members:", f":exclude-members: {hidden}"]
    elif not inspect.isroutine(thing) and not hasattr(thing, "__wrapped__"):
        kind, shown, options = "py:data", name, [f":module: {module}"]
        if len(repr(thing)) < 100:
            options.append(f":value: {thing!r}")
    if home(module, name) != module:
        options.append(":no-index:")
    return "\n   ".join([f".. {kind}:: {shown}", *options])


def module_page(module, title, page):
    "The reference of one module."
    public = import_module(module)
    names = [name for name in public.__all__ if not name.startswith("_")]
    short = module.removeprefix("submatch_nb.")
    about = (public.__doc__ or "").strip()
    head = f"# {short}\n\n`{module}`. {about}\nMade in [{title}](/{page}.ipynb).\n"
    body = "\n\n".join(entry(module, name) for name in names)
    return head + ("\n```{eval-rst}\n" + body + "\n```\n" if names else "")


def api_table():
    "The public names, by chapter, each with its first line."
    import submatch_nb

    yield "# Public names\n\nAll of these can be imported from `submatch_nb` itself."
    for module, (title, page) in modules().items():
        here = [name for name in submatch_nb.__all__ if home("submatch_nb", name) == module]
        if not here:
            continue
        yield (
            f"\n## {title}\n\n[{title}](/{page}.ipynb), `{module}`\n\n| name | what |\n| --- |"
            " --- |"
        )
        for name in here:
            thing = getattr(submatch_nb, name)
            yield f"| {{py:obj}}`{name} <{module}.{name}>` | {first_line(thing)} |"


def module_table():
    "The modules, each with what it is about."
    yield "# Modules\n\nA page each. What most readers need is among the [public names](/api.md)."
    names = [module.removeprefix("submatch_nb.") for module in modules()]
    for title, part in (("The book", False), ("The engine", True)):
        yield f"\n## {title}\n\n| module | what |\n| --- | --- |"
        for name in names:
            if name.startswith("engine.") == part:
                about = first_line(import_module(f"submatch_nb.{name}"))
                yield f"| [{name}](/reference/{name}.md) | {about} |"
    yield "\n```{toctree}\n:maxdepth: 1\n:hidden:\n\n" + "\n".join(names) + "\n```\n"


def write_reference(app):
    "Write the pages of the reference, each only where it has changed."
    pages = {"api": "\n".join(api_table()) + "\n", "reference/index": "\n".join(module_table())}
    for module, (title, page) in modules().items():
        name = module.removeprefix("submatch_nb.")
        pages[f"reference/{name}"] = module_page(module, title, page)
    for old in NBS.glob("reference/*.md"):
        if docname(old) not in pages:
            old.unlink()
    for name, text in pages.items():
        path = NBS / f"{name}.md"
        path.parent.mkdir(exist_ok=True)
        if not path.is_file() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


def rst(text, plain=lambda part: part):
    """Plain text with names in backticks as RST: the names linked, what RST would misread escaped,
    the rest through `plain`.
    """
    text = re.sub(r"``([^`\n]+)``", r"`\1`", text)
    parts = re.split(r"(`[^`\n]+`)", text)
    made = []
    for i, (part, after) in enumerate(zip(parts, [*parts[1:], ""], strict=True)):
        if i % 2:
            made.append(code(part) + (r"\ " if re.match(r"\w", after) else ""))
        else:
            escaped = re.sub(r"([|\\]|(?<=\w)_(?!\w))", r"\\\1", part)
            made.append(plain(escaped).replace("*", r"\*"))
    return "".join(made)


ARGUMENT = re.compile(r"\*{1,2}\w+( : .*)?")  # of a section Parameters
EXAMPLE = re.compile(r"(>>>|\.\.\.)( |$)")
SECTION = re.compile(r"^(Parameters|Returns|Yields)$", re.MULTILINE)


ATTRIBUTES = re.compile(r"(?<=^Attributes\n----------\n).*?(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)
SEVERAL = re.compile(r"^(\w+(?:, \w+)+)( : .*(?:\n +.*)*)", re.MULTILINE)


def one_by_one(text):
    "A docstring in which each attribute has an entry of its own, as napoleon wants it."

    def entries(m):
        return "\n".join(name + m[2] for name in m[1].split(", "))

    return ATTRIBUTES.sub(lambda m: SEVERAL.sub(entries, m[0]), text)


def docstring(app, what, name, obj, options, lines):
    """Docstrings are plain text: names, statements and chapters are linked; comments after
    arguments become parameters.
    """
    example = False  # in one, up to the next blank line, nothing is read as text
    for i, line in enumerate(lines):
        example = bool(line.strip()) and (example or bool(EXAMPLE.match(line.strip())))
        if not example and not ARGUMENT.fullmatch(line.strip()):
            lines[i] = linked_rst(line)
    lines[:] = one_by_one("\n".join(lines)).split("\n")
    function = obj.__init__ if isinstance(obj, type) else obj
    if not callable(function) or what in ("property", "attribute"):
        return
    if not SECTION.search("\n".join(lines)):
        lines += commented(function)


def signature(app, what, name, obj, options, arguments, returns):
    "NumPy's name for what it takes, in place of all that stands behind it."
    made = stringify_annotation(ArrayLike, "smart")
    without = made.replace(" | str | ", " | ", 1)  # where a union has str before

    def named(text):
        short = "~numpy.typing.ArrayLike"
        return text and text.replace(made, short).replace(without, short)

    return named(arguments), named(returns)


def linked_rst(text):
    "One line of a docstring, its mentions linked."

    def statement(role, target):
        return f":{role}:`{target}`"

    def chapter(m, name):
        return f"{m[1]} :doc:`{m[2] or m[4]} </{name}>`"

    return rst(text, lambda part: to_chapters(linked(part, statement, statements()), chapter))


def commented(function):
    "The comments after arguments as fields."
    try:
        comments = docments(function)
    except (TypeError, OSError, IndentationError):
        return
    for arg, text in comments.items():
        if not text or arg in ("self", "cls"):
            continue
        text = rst(" ".join(text.split()))
        yield f":returns: {text}" if arg == "return" else f":param {arg}: {text}"


def code(part):
    "A name in backticks: a link where it is a public name of the package."
    import submatch_nb

    name = part.strip("`")
    return (
        f":py:obj:`{name} <{target('submatch_nb', name)}>`"
        if name in submatch_nb.__all__
        else f"``{name}``"
    )


def named_toggles(sidebar):
    """The theme's function that makes the sidebar, where what opens the pages below another is
    named after it: the theme gives it a picture alone, which a screen reader cannot read.
    """

    def toggles(**options):
        made = sidebar(**options)
        for entry in made.select("li.has-children") if made else ():
            entry.summary["aria-label"] = f"Pages below {entry.a.text.strip()}"
        return made

    return toggles


def finish(app, page, template, context, doctree):
    """A list of references without a role that its entries do not fit; each figure in a box that
    the keyboard can scroll (the theme takes those that fit out of its way); a name for what opens
    a part of the sidebar; what a term means, on the links to the glossary.
    """
    if "generate_toctree_html" in context:
        context["generate_toctree_html"] = named_toggles(context["generate_toctree_html"])
    if "body" not in context:
        return
    body = context["body"].replace(
        '<div role="list" class="citation-list">', '<div class="citation-list">'
    )
    context["body"] = told(
        re.sub(r'<img alt="Figure: [^>]*>', r'<div class="output" tabindex="0">\g<0></div>', body)
    )


def only_types(app, doctree):
    """A word in the description of a type, as in "array of shape (d, n)", is no reference to an
    attribute of that name: only classes, whose names have capitals, are linked."""
    for reference in list(doctree.findall(pending_xref)):
        if reference.get("reftype") == "class" and reference["reftarget"].islower():
            first = reference[0]
            shown = first.children if isinstance(first, pending_xref_condition) else [first]
            reference.replace_self(shown)


def setup(app):
    os.environ["SUBMATCH_QUIET"] = "1"  # no progress bars: what a build has to say are warnings
    import conf

    app.add_config_value("submatch_cfg", dict(conf.cfg), "env")
    app.connect("builder-inited", write_reference)
    app.connect("source-read", read)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-process-docstring", docstring, priority=400)  # before napoleon
    app.connect("doctree-read", only_types)
    app.connect("html-page-context", finish, priority=501)  # after the theme
    return {"parallel_read_safe": True, "version": "1"}
