"""Sphinx reads nbdev's notebooks: directives become tags, exported symbols API entries above their folded source, explorers live pages.

A notebook stays what it is, and readable anywhere; what only the site can do is added here, while Sphinx reads it:
- `theorem *the ε-profile*` becomes its number and a link, in whatever chapter it stands, `chapter 02` and `chapter *Layers*` links, and `Wang et al. 2018` a citation;
  a statement that nobody states, a chapter that nobody wrote and a paper that is not in `references.bib` are errors;
- each name in a module's `__all__` gets an API entry, its docments as parameters;
- a cell that starts with `#| explorer` is run and shows its explorer, which needs no kernel; other sliders say that they need one, and the explorer of the same layers stands in for some.
"""

import ast
import functools
import os
import re
from importlib import import_module
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from fastcore.docments import docments
from pybtex.database import parse_file

os.environ.setdefault("TQDM_DISABLE", "1")  # what a build has to say are warnings
NBS = Path(__file__).parent.parent / "nbs"
REPOSITORY = "https://colab.research.google.com/github/{user}/{repo}/blob/{branch}/nbs/{name}.ipynb"
KINDS = "theorem|lemma|definition|corollary"
STATEMENT = re.compile(rf":::\{{prf:({KINDS})\}} (.*?)(?: \(Wang et al\. 2018\))?\n:label: (\S+)")
MENTION = re.compile(rf"\b({KINDS})(s?) \*([^*\n]+)\*(?: and \*([^*\n]+)\*)?", re.IGNORECASE)
CHAPTER = re.compile(r"(?<!\[)\b([Cc]hapter) (?:(\d\d)\b|(\*)([^*\n]+)\*)")


def keys():
    "What the text says of each paper, such as Wang et al. 2018 or Johnson 2019 -> its key."
    for key, entry in parse_file(Path(__file__).with_name("references.bib")).entries.items():
        first, *others = [" ".join(person.last_names) for person in entry.persons["author"]]
        yield (
            f"{first}{' et al.' if len(others) > 1 else f' and {others[0]}' if others else ''} {entry.fields['year']}",
            key,
        )


KEYS = dict(keys())
CITATION = re.compile(
    r"\[(?P<linked>[^\]\n]* \d{4})\]\([^)]*\)|\b(?P<plain>\w+ et al\. \d{4}|"
    + "|".join(map(re.escape, KEYS))
    + ")"
)


def notebooks():
    return sorted(NBS.glob("[0-9]*.ipynb"))


@functools.cache
def statements():
    "(kind, title) -> label of every statement in every chapter."
    text = "\n".join(
        cell.source
        for path in notebooks()
        for cell in nbformat.read(path, 4).cells
        if cell.cell_type == "markdown"
    )
    return {(kind, title.strip().lower()): label for kind, title, label in STATEMENT.findall(text)}


@functools.cache
def chapters():
    "Title -> name of the file."
    return {
        nbformat.read(path, 4).cells[0].source.split("\n")[0].removeprefix("# ").strip(): path.stem
        for path in notebooks()
    }


def module_of(nb):
    "The module that a notebook exports, or None."
    found = re.search(
        r"^#\| default_exp (\w+)",
        "\n".join(cell.source for cell in nb.cells if cell.cell_type == "code"),
        re.MULTILINE,
    )
    return found and f"submatch_nb.{found[1]}"


# Text


def linked(text, role, labels):
    "Mentions of statements and papers as references. `role(name, target)` writes one; raises KeyError for a statement that nobody states and a paper that is not in the list."

    def statement(m):
        kind, *titles = m[1].lower(), *filter(None, m.groups()[2:])
        for title in titles:
            if (kind, title.lower()) not in labels:
                raise KeyError(
                    f"no chapter states the {m[1]} *{title}*; there are: {', '.join(f'{k} *{t}*' for k, t in sorted(labels))}"
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
    "Mentions of chapters, by number or title, as links. `link(words, name)` writes one; raises KeyError for a chapter that is not there."
    names = chapters() | {path.stem[:2]: path.stem for path in notebooks()}

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
        to_chapters(text, lambda m, name: f"[{m[0]}]({name}.ipynb)"),
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
    "What a cell defines: names of functions, classes and constants, and (class, method) of those patched in."
    names, methods = [], []
    for node in ast.parse(code).body:
        if isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if any(isinstance(d, ast.Name) and d.id == "patch" for d in node.decorator_list):
                methods.append((node.args.args[0].annotation.id, node.name))
            else:
                names.append(node.name)
    return names, methods


def entries(module, names, methods, patched):
    "The API entries of a cell."
    public = import_module(module)
    for name in names:
        if name not in public.__all__ or name.startswith("_"):
            continue
        thing = getattr(public, name)
        hidden = [
            *patched.get(name, []),
            *getattr(thing, "_fields", ["_"]),
        ]  # entries of their own; a tuple's fields are in its signature
        if isinstance(thing, type):
            yield f".. autoclass:: {module}.{name}\n   :members:\n   :exclude-members: {', '.join(hidden)}"
        elif callable(thing):
            yield f".. autofunction:: {module}.{name}"
        else:
            yield f".. py:currentmodule:: {module}\n\n.. py:data:: {name}" + (
                f"\n   :value: {thing!r}" if len(repr(thing)) < 100 else ""
            )
    for cls, name in methods:
        yield f".. automethod:: {module}.{cls}.{name}"


def exported(cell, code, module, patched):
    "An exported cell: the entries of what it defines, then its source, folded."
    names, methods = defined(code)
    found = list(entries(module, names, methods, patched))
    if found:
        yield nbformat.v4.new_markdown_cell("```{eval-rst}\n" + "\n\n".join(found) + "\n```")
    cell.source = code
    cell.metadata = folded(
        ", ".join([*names, *(f"{cls}.{name}" for cls, name in methods)]) or "imports"
    )
    yield cell


def folded(what):
    return {
        "tags": ["hide-input"],
        "mystnb": {"code_prompt_show": f"Source: {what}", "code_prompt_hide": f"Source: {what}"},
    }


def imports(code):
    "Whether a cell does nothing but import."
    return not re.search(r"^[!%]", code, re.MULTILINE) and all(
        isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(code).body
    )


def explorer(code):
    "Run a cell that ends in an explorer; the explorer."
    *body, last = ast.parse(code).body
    space = {}
    exec(compile(ast.Module(body, []), "explorer", "exec"), space)
    return eval(compile(ast.Expression(last.value), "explorer", "eval"), space)


def live(widget):
    "An explorer as a piece of a page."
    from submatch_nb.explorer import fragment

    return nbformat.v4.new_output(
        "display_data",
        {
            "text/html": fragment(
                widget.data,
                {"epsilon": widget.epsilon, "layer": widget.layer, "selected": widget.selected},
            ),
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


def demo():
    "The explorer of the demo's networks."
    from submatch_nb.explorer import demo_comparison, explore

    return explore(demo_comparison(), "fc1.relu", 0.5)


STAND_INS = {
    "02_maximum": lambda: digits(0.15),
    "03_simple": lambda: digits(0.2, ("x", 0)),
    "07_comparison": demo,
}  # the explorer of what a chapter's slider shows


def needs_kernel(name):
    "What stands in the place of a slider that Python has to answer."
    alive = name in STAND_INS
    text = (
        '<p class="needs-kernel">This needs a kernel: run this chapter, as its first lines say, to move it. '
        + (
            'The <a href="08_explorer.html">explorer</a> of the same layers, below, does not.</p>'
            if alive
            else 'The <a href="08_explorer.html">explorer</a> moves without one.</p>'
        )
    )
    return [
        nbformat.v4.new_output(
            "display_data", {"text/html": text, "text/plain": re.sub("<[^>]*>", "", text)}
        ),
        *([live(STAND_INS[name]())] if alive else []),
    ]


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
    read = [
        (cell, *directives(cell.source)) if cell.cell_type == "code" else (cell, set(), cell.source)
        for cell in nb.cells
    ]
    module = module_of(nb)
    patched = {}
    for cell, found, code in read:
        for cls, method in defined(code)[1] if found & {"export", "exporti"} else []:
            patched.setdefault(cls, []).append(method)
    for i, (cell, found, code) in enumerate(read):
        if cell.cell_type == "markdown":
            if {"colab", "readme"} & set(cell.metadata.get("tags", [])):
                continue
            cell.source = prose(cell.source, labels)
            yield cell
            if i == 0 and module:
                yield nbformat.v4.new_markdown_cell(run_this(name, cfg))
        elif found & {"hide", "default_exp"} or "nbdev_export" in code:
            continue
        elif found & {"export", "exporti"}:
            yield from exported(cell, code, module, patched)
        else:
            cell.source = code.lstrip("\n")
            for output in cell.outputs:
                if "dataframe" in output.get("data", {}).get("text/html", ""):
                    aligned(output)
                if re.search(r"\S {3,}\S", output.get("text", "")):
                    cell.metadata["tags"] = [
                        *cell.metadata.get("tags", []),
                        "columns",
                    ]  # lines that must not be broken
            if imports(cell.source):
                cell.metadata = folded("imports")
            if "explorer" in found:
                cell.outputs = [live(explorer(code))]
            elif re.search(r"\binteract\(", code) and not cell.outputs:
                cell.outputs = needs_kernel(name)
            elif any("image/png" in output.get("data", {}) for output in cell.outputs):
                cell.metadata["mystnb"] = {
                    "image": {"alt": f"Figure: {code.strip().splitlines()[-1]}"}
                }
            yield cell


def aligned(output):
    "A table with one row of headings, its columns of words marked, to be set from the left and, where they are long, in several lines."
    page = BeautifulSoup(output.data["text/html"], "html.parser")
    for first, second in (
        rows
        for table in page.select("table.dataframe")
        if len(rows := table.select("thead tr")) == 2
    ):
        name, *others = second.select("th, td")
        if first.th.text == "" and not any(
            cell.text for cell in others
        ):  # the name of the index, in a row of its own
            first.th.string = name.text
            second.decompose()
    for column in (
        column
        for table in page.select("table.dataframe")
        for column in zip(*(row.select("th, td") for row in table.select("tr")))
    ):
        texts = [cell.text for cell in column if cell.find_parent("tbody")]
        if any(re.search("[A-Za-z]{2}", text) and text != "NaN" for text in texts):
            for cell in column:
                cell["class"] = "sentences" if max(map(len, texts)) > 24 else "words"
    output.data["text/html"] = str(page)


def run_this(name, cfg):
    "How to run a chapter."
    url = REPOSITORY.format(name=name, **cfg)
    return (
        f":::{{admonition}} Run this chapter\n:class: run-this\n:collapsible: closed\n\n{{download}}`Download the notebook <{name}.ipynb>` and open it in JupyterLab, with the package and its extra `lab` installed, "
        f"or [open it in Colab]({url}). In a checkout, `make lab` installs all that it takes and opens the paper. Outputs shown here are stored in the notebook; `make test` runs every chapter.\n:::"
    )


# What Sphinx asks for


def read(app, docname, source):
    "A notebook, as Sphinx reads it."
    path = Path(app.env.doc2path(docname))
    if docname == "api":
        source[0] += "\n".join(api_table()) + "\n"
    if path.suffix != ".ipynb":
        return
    nb = nbformat.reads(source[0], 4)
    labels = statements()
    nb.cells = list(
        joined(
            converted(
                nb,
                labels,
                path.stem,
                {key: app.config.submatch_cfg[key] for key in ("user", "repo", "branch")},
            )
        )
    )
    if docname == "index":
        nb.cells.append(nbformat.v4.new_markdown_cell(contents()))
    nb.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    nb.metadata["source_map"] = list(
        range(len(nb.cells))
    )  # where a warning says a cell begins; MyST-NB's own 10,000 lines a cell are as many empty lines to parse before every entry
    source[0] = nbformat.writes(nb)


def contents():
    "The table of contents beside every page."
    chapter = "\n".join(
        f"{path.stem[:2]}  {title} <{path.stem}>" for path, title in zip(notebooks(), chapters())
    )
    return f"```{{toctree}}\n:hidden:\n:caption: The paper\n\n{chapter}\n```\n\n```{{toctree}}\n:hidden:\n:caption: Reference\n\nNames <api>\nReferences <references>\nChanges <changelog>\n```"


def api_table():
    "The public names, by chapter, each with its first line."
    import submatch_nb

    for title, name in chapters().items():
        module = module_of(nbformat.read(NBS / f"{name}.ipynb", 4))
        here = [
            n
            for n in submatch_nb.__all__
            if getattr(getattr(submatch_nb, n), "__module__", "") == module
        ]
        if not here:
            continue
        yield f"\n## {title}\n\n[Chapter {name[:2]}]({name}.ipynb), `{module}`\n\n| name | what |\n| --- | --- |"
        for n in here:
            line = (getattr(submatch_nb, n).__doc__ or "").strip().split("\n")[0]
            yield f"| {{py:obj}}`~{module}.{n}` | {prose(line, statements()).replace('|', chr(92) + '|')} |"


def rst(text, plain=lambda part: part):
    "Plain text with names in backticks as RST: the names linked, what RST would misread escaped, the rest through `plain`."
    parts = re.split(r"(`[^`\n]+`)", text)
    return "".join(
        code(part) + (r"\ " if re.match(r"\w", after) else "")
        if i % 2
        else plain(re.sub(r"([|_\\])", r"\\\1", part))
        for i, (part, after) in enumerate(zip(parts, [*parts[1:], ""]))
    )


def docstring(app, what, name, obj, options, lines):
    "Docstrings are plain text: names, statements and chapters are linked, docments become parameters."
    chapter = lambda m, name: f"{m[1]} :doc:`{m[2] or m[4]} <{name}>`"
    lines[:] = rst(
        "\n".join(lines),
        lambda part: to_chapters(
            linked(part, lambda role, target: f":{role}:`{target}`", statements()), chapter
        ),
    ).split("\n")
    function = obj.__init__ if isinstance(obj, type) else obj
    if not callable(function) or what in ("property", "attribute") or not public(name):
        return  # the arguments of a helper stand in its source
    try:
        comments = docments(function)
    except (TypeError, OSError, IndentationError):
        return
    comment = lambda text: rst(" ".join(text.split()), lambda part: part.replace("*", r"\*"))
    fields = [
        f":param {arg}: {comment(text)}"
        for arg, text in comments.items()
        if text and arg not in ("return", "self", "cls")
    ]
    if comments.get("return"):
        fields.append(f":returns: {comment(comments['return'])}")
    if fields:
        lines += ["", *fields, ""]


def code(part):
    "A name in backticks: a link where it is a public name of the package."
    import submatch_nb

    name = part.strip("`")
    return (
        f":py:obj:`{name} <{getattr(submatch_nb, name).__module__}.{name}>`"
        if name in submatch_nb.__all__
        else f"``{name}``"
    )


def public(path):
    "Whether the package has the name, or the class that a method belongs to, among its public ones."
    import submatch_nb

    return path.split(".")[2] in submatch_nb.__all__


def finish(app, page, template, context, doctree):
    "A list of references without a role that its entries do not fit; each figure in a box that the keyboard can scroll (the theme takes those that fit out of its way)."
    if "body" not in context:
        return
    body = context["body"].replace(
        '<div role="list" class="citation-list">', '<div class="citation-list">'
    )
    context["body"] = re.sub(
        r'<img alt="Figure: [^>]*>', r'<div class="output" tabindex="0">\g<0></div>', body
    )


def setup(app):
    import conf

    app.add_config_value("submatch_cfg", dict(conf.cfg), "env")
    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", docstring)
    app.connect("html-page-context", finish)
    return {"parallel_read_safe": True, "version": "1"}
