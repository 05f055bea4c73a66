"""Sphinx reads nbdev's notebooks: directives become tags, exported symbols API entries above their folded source, explorers live pages.

A notebook stays what it is, and readable anywhere; what only the site can do is added here, while Sphinx reads it:
- `theorem *the ε-profile*` becomes its number and a link, in whatever chapter it stands, and `Wang et al. 2018` a citation; a statement that nobody states is an error;
- each name in a module's `__all__` gets an API entry, its docments as parameters;
- a cell that starts with `#| explorer` is run and shows its explorer, which needs no kernel; other sliders say that they need one.
"""
import ast
import functools
import json
import re
from importlib import import_module
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from fastcore.docments import docments

NBS = Path(__file__).parent.parent / "nbs"
REPOSITORY = "https://colab.research.google.com/github/{user}/{repo}/blob/{branch}/nbs/{name}.ipynb"
KINDS = "theorem|lemma|definition|corollary"
STATEMENT = re.compile(rf":::\{{prf:({KINDS})\}} (.*?)(?: \(Wang et al\. 2018\))?\n:label: (\S+)")
MENTION = re.compile(rf"\b({KINDS}) \*([^*\n]+)\*", re.IGNORECASE)
CITATION = re.compile(r"\[(?P<linked>[A-Z]\w+(?: et al\.)? \d{4})\]\([^)]*\)|(?P<plain>\b[A-Z]\w+ et al\. \d{4})")
KEYS = {"Wang et al. 2018": "wang2018", "Kornblith et al. 2019": "kornblith2019", "Johnson 2019": "johnson2019"}


def notebooks(): return sorted(NBS.glob("[0-9]*.ipynb"))

@functools.cache
def statements():
    "(kind, title) -> label of every statement in every chapter."
    text = "\n".join(cell.source for path in notebooks() for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    return {(kind, title.strip().lower()): label for kind, title, label in STATEMENT.findall(text)}

@functools.cache
def chapters():
    "Title -> name of the file."
    return {nbformat.read(path, 4).cells[0].source.split("\n")[0].removeprefix("# ").strip(): path.stem for path in notebooks()}


# Text

def linked(text, role, labels):
    "Mentions of statements and papers as references. `role(name, target)` writes one; raises KeyError for a statement that nobody states."
    def statement(m):
        key = m[1].lower(), m[2].lower()
        if key not in labels: raise KeyError(f"no chapter states the {m[1]} *{m[2]}*; there are: {', '.join(f'{k} *{t}*' for k, t in sorted(labels))}")
        return role("prf:ref", labels[key])
    def citation(m):
        words = m["linked"] or m["plain"]
        return role("cite:alp", KEYS[words]) if words in KEYS else m[0]
    return CITATION.sub(citation, MENTION.sub(statement, text))

def prose(source, labels):
    "A markdown cell, its mentions linked; code, formulas and headings stay as they are."
    source = re.sub(r"^(:::\{prf:.*) \((Wang et al\. 2018)\)$", lambda m: f"{m[1]}, {{cite:alp}}`{KEYS[m[2]]}`", source, flags=re.MULTILINE)
    parts = re.split(r"(```.*?```|`[^`\n]*`|\$\$.*?\$\$|^#+ .*$|^:::\{.*$)", source, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if i % 2 else linked(part, lambda name, target: f"{{{name}}}`{target}`", labels) for i, part in enumerate(parts))


# Code

def directives(source):
    "The names of nbdev's directives at the head of a cell, and the code below them."
    head = re.match(r"(?:#\|.*\n?)*", source)[0]
    return {line.removeprefix("#|").split()[0].rstrip(":") for line in head.splitlines() if line.removeprefix("#|").split()}, source[len(head):]

def defined(code):
    "What a cell defines: names of functions, classes and constants, and (class, method) of those patched in."
    names, methods = [], []
    for node in ast.parse(code).body:
        if isinstance(node, ast.Assign): names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if any(isinstance(d, ast.Name) and d.id == "patch" for d in node.decorator_list): methods.append((node.args.args[0].annotation.id, node.name))
            else: names.append(node.name)
    return names, methods

def entries(module, names, methods, patched):
    "The API entries of a cell."
    public = import_module(module)
    for name in names:
        if name not in public.__all__ or name.startswith("_"): continue
        thing = getattr(public, name)
        hidden = [*patched.get(name, []), *getattr(thing, "_fields", ["_"])]  # entries of their own; a tuple's fields are in its signature
        if isinstance(thing, type): yield f".. autoclass:: {module}.{name}\n   :members:\n   :exclude-members: {', '.join(hidden)}"
        elif callable(thing): yield f".. autofunction:: {module}.{name}"
        else: yield f".. py:currentmodule:: {module}\n\n.. py:data:: {name}" + (f"\n   :value: {thing!r}" if len(repr(thing)) < 100 else "")
    for cls, name in methods: yield f".. automethod:: {module}.{cls}.{name}"

def exported(cell, code, module, patched):
    "An exported cell: the entries of what it defines, then its source, folded."
    names, methods = defined(code)
    found = list(entries(module, names, methods, patched))
    if found: yield nbformat.v4.new_markdown_cell("```{eval-rst}\n" + "\n\n".join(found) + "\n```")
    cell.source = code
    cell.metadata = folded(", ".join([*names, *(f"{cls}.{name}" for cls, name in methods)]) or "imports")
    yield cell

def folded(what): return {"tags": ["hide-input"], "mystnb": {"code_prompt_show": f"Source: {what}", "code_prompt_hide": f"Source: {what}"}}

def imports(code):
    "Whether a cell does nothing but import."
    return not re.search(r"^[!%]", code, re.MULTILINE) and all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(code).body)

def explorer(code):
    "Run a cell that ends in an explorer; it as a piece of a page."
    from submatch_nb.explorer import fragment
    *body, last = ast.parse(code).body
    space = {}
    exec(compile(ast.Module(body, []), "explorer", "exec"), space)
    widget = eval(compile(ast.Expression(last.value), "explorer", "eval"), space)
    return fragment(widget.data, {"epsilon": widget.epsilon, "layer": widget.layer, "selected": widget.selected})

def needs_kernel():
    "What stands in the place of a slider that Python has to answer."
    text = '<p class="needs-kernel">This slider needs a kernel: run this chapter, as its first lines say, to move it. The <a href="08_explorer.html">explorer</a> moves without one.</p>'
    return nbformat.v4.new_output("display_data", {"text/html": text, "text/plain": re.sub("<[^>]*>", "", text)})

def joined(cells):
    "The cells, those of imports that follow one another as one."
    last = next(cells)
    for cell in cells:
        if last.metadata == cell.metadata == folded("imports"): last.source += f"\n\n{cell.source}"
        else:
            yield last
            last = cell
    yield last

def converted(nb, labels, name, cfg):
    "The cells of a notebook as the site shows them."
    read = [(cell, *directives(cell.source)) if cell.cell_type == "code" else (cell, set(), cell.source) for cell in nb.cells]
    module = next((f"submatch_nb.{line.split()[-1]}" for cell, found, _ in read if "default_exp" in found for line in cell.source.splitlines() if "default_exp" in line), None)
    patched = {}
    for cell, found, code in read:
        for cls, method in defined(code)[1] if found & {"export", "exporti"} else []: patched.setdefault(cls, []).append(method)
    for i, (cell, found, code) in enumerate(read):
        if cell.cell_type == "markdown":
            if {"colab", "readme"} & set(cell.metadata.get("tags", [])): continue
            cell.source = prose(cell.source, labels)
            yield cell
            if i == 0 and module: yield nbformat.v4.new_markdown_cell(run_this(name, cfg))
        elif found & {"hide", "default_exp"} or "nbdev_export" in code: continue
        elif found & {"export", "exporti"}: yield from exported(cell, code, module, patched)
        else:
            cell.source = code.lstrip("\n")
            for output in cell.outputs:
                if "dataframe" in output.get("data", {}).get("text/html", ""): aligned(output)
                if re.search(r"\S {3,}\S", output.get("text", "")): cell.metadata["tags"] = [*cell.metadata.get("tags", []), "columns"]  # lines that must not be broken
            if imports(cell.source): cell.metadata = folded("imports")
            if "explorer" in found: cell.outputs = [nbformat.v4.new_output("display_data", {"text/html": explorer(code), "text/plain": "the explorer"})]
            elif re.search(r"\binteract\(", code) and not cell.outputs: cell.outputs = [needs_kernel()]
            yield cell

def aligned(output):
    "A table with its columns of words marked, to be set from the left and, where they are long, in several lines."
    page = BeautifulSoup(output.data["text/html"], "html.parser")
    for column in (column for table in page.select("table.dataframe") for column in zip(*(row.select("th, td") for row in table.select("tr")))):
        texts = [cell.text for cell in column if cell.find_parent("tbody")]
        if any(re.search("[A-Za-z]{2}", text) and text != "NaN" for text in texts):
            for cell in column: cell["class"] = "sentences" if max(map(len, texts)) > 24 else "words"
    output.data["text/html"] = str(page)

def run_this(name, cfg):
    "How to run a chapter."
    url = REPOSITORY.format(name=name, **cfg)
    return (f":::{{admonition}} Run this chapter\n:class: run-this\n:collapsible: closed\n\n{{download}}`Download the notebook <{name}.ipynb>` and open it in JupyterLab, with the package and its extra `lab` installed, "
            f"or [open it in Colab]({url}). In a checkout, `make lab` installs all that it takes and opens the paper. Outputs shown here are stored in the notebook; `make test` runs every chapter.\n:::")


# What Sphinx asks for

def read(app, docname, source):
    "A notebook, as Sphinx reads it."
    path = Path(app.env.doc2path(docname))
    if docname == "api": source[0] += api_table()
    if path.suffix != ".ipynb": return
    nb = nbformat.reads(source[0], 4)
    labels = statements()
    nb.cells = list(joined(converted(nb, labels, path.stem, {key: app.config.submatch_cfg[key] for key in ("user", "repo", "branch")})))
    if docname == "index": nb.cells.append(nbformat.v4.new_markdown_cell(contents()))
    nb.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    nb.metadata["source_map"] = list(range(len(nb.cells)))  # where a warning says a cell begins; MyST-NB's own 10,000 lines a cell are as many empty lines to parse before every entry
    source[0] = nbformat.writes(nb)

def contents():
    "The table of contents beside every page."
    chapter = "\n".join(f"{path.stem[:2]}  {title} <{path.stem}>" for path, title in zip(notebooks(), chapters()))
    return (f"```{{toctree}}\n:hidden:\n:caption: The paper\n\n{chapter}\n```\n\n```{{toctree}}\n:hidden:\n:caption: Reference\n\nNames <api>\nReferences <references>\nChanges <changelog>\n```")

def api_table():
    "The public names, by chapter, each with its first line."
    import submatch_nb
    rows = []
    for title, name in chapters().items():
        module = f"submatch_nb.{name[3:]}"
        here = [n for n in submatch_nb.__all__ if getattr(getattr(submatch_nb, n), "__module__", "") == module]
        for n in here:
            line = (getattr(submatch_nb, n).__doc__ or "").strip().split("\n")[0]
            rows.append(f"| {{py:obj}}`~{module}.{n}` | {line.replace('|', chr(92) + '|')} | [{title}]({name}.ipynb) |")
    return "\n\n| name | what | chapter |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"

def rst(text, plain=lambda part: part):
    "Plain text with names in backticks as RST: the names linked, what RST would misread escaped, the rest through `plain`."
    parts = re.split(r"(`[^`\n]+`)", text)
    return "".join(code(part) + (r"\ " if re.match(r"\w", after) else "") if i % 2 else plain(re.sub(r"([|_\\])", r"\\\1", part))
                   for i, (part, after) in enumerate(zip(parts, [*parts[1:], ""])))

def docstring(app, what, name, obj, options, lines):
    "Docstrings are plain text: names, statements and chapters are linked, docments become parameters."
    links = chapters()
    chapter = lambda part: re.sub(r"chapter \*([^*]+)\*", lambda m: f"chapter :doc:`{m[1]} <{links[m[1]]}>`" if m[1] in links else m[0], part)
    lines[:] = rst("\n".join(lines), lambda part: chapter(linked(part, lambda role, target: f":{role}:`{target}`", statements()))).split("\n")
    function = obj.__init__ if isinstance(obj, type) else obj
    if not callable(function) or what in ("property", "attribute") or not public(name): return  # the arguments of a helper stand in its source
    try: comments = docments(function)
    except (TypeError, OSError, IndentationError): return
    comment = lambda text: rst(" ".join(text.split()), lambda part: part.replace("*", r"\*"))
    fields = [f":param {arg}: {comment(text)}" for arg, text in comments.items() if text and arg not in ("return", "self", "cls")]
    if comments.get("return"): fields.append(f":returns: {comment(comments['return'])}")
    if fields: lines += ["", *fields, ""]

def code(part):
    "A name in backticks: a link where it is a public name of the package."
    import submatch_nb
    name = part.strip("`")
    return f":py:obj:`{name} <{getattr(submatch_nb, name).__module__}.{name}>`" if name in submatch_nb.__all__ else f"``{name}``"

def public(path):
    "Whether the package has the name, or the class that a method belongs to, among its public ones."
    import submatch_nb
    return path.split(".")[2] in submatch_nb.__all__

def plain_list(app, page, template, context, doctree):
    "A list of references without a role that its entries do not fit."
    if "body" in context: context["body"] = context["body"].replace('<div role="list" class="citation-list">', '<div class="citation-list">')

def setup(app):
    import conf
    app.add_config_value("submatch_cfg", dict(conf.cfg), "env")
    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", docstring)
    app.connect("html-page-context", plain_list)
    return {"parallel_read_safe": True, "version": "1"}
