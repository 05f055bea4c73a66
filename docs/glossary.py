"""The terms of nbs/glossary.md: on the site the first use of each on a page leads to its entry, and
shows what it means under the pointer.

In JupyterLab and Colab the notebooks stay as they are: the words carry no marks.
"""

import functools
import re
from html import escape
from pathlib import Path
from typing import NamedTuple

from docutils.nodes import make_id

PAGE = Path(__file__).parent.parent / "nbs" / "glossary.md"
ENTRY = re.compile(
    r"^### (?P<name>.+)\n(?P<meaning>.+)\n(?:<!-- words: (?P<words>.+) -->\n)?", re.M
)
# Code, formulas, headings, lines of directives, references, links and tags stay as they are
LEFT = re.compile(
    r"(```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]+\$|^#+ [^\n]*|^:::[^\n]*|^:label:[^\n]*"
    r"|\{[\w:]+\}`[^`\n]*`|!?\[[^\]\n]*\]\([^)\n]*\)|<summary>.*?</summary>|</?\w[^>\n]*>)",
    re.DOTALL | re.MULTILINE,
)
LINK = re.compile(r'<a class="[^"]*"(?P<to> href="[^"#]*glossary\.html#(?P<anchor>[^"]+)")')


class Term(NamedTuple):
    """One entry of the glossary: what a link to it ends in, in Markdown and on the site, what it
    means, the words that name it.
    """

    anchor: str
    id: str
    meaning: str
    words: tuple[str, ...]


def slug(heading):
    "What a link to a heading ends in, as GitHub and MyST make it."
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def plain(text):
    "Text without the marks of Markdown, for a place that shows none."
    formulas = {r"\sqrt{1 - n/d}": "√(1 − n/d)", r"z_v \in \mathbb R^d": "z_v", "R^2": "R²"}
    text = re.sub(r"\$([^$]+)\$", lambda m: formulas.get(m[1], m[1]), text)
    return re.sub(r"[*`]|\[([^\]]*)\]\([^)]*\)", r"\1", text)


@functools.cache
def terms():
    "The entries, in order; raises ValueError where two have one word."
    found, owner = [], {}
    for m in ENTRY.finditer(PAGE.read_text("utf-8")):
        words = (m["words"] or f"{m['name']}; {m['name']}s").split("; ")
        for word in words:
            if word.lower() in owner:
                raise ValueError(f"{word} is a word of {owner[word.lower()]} and of {m['name']}")
            owner[word.lower()] = m["name"]
        found.append(Term(slug(m["name"]), make_id(m["name"]), plain(m["meaning"]), tuple(words)))
    return tuple(found)


@functools.cache
def pattern():
    "Any word of any term, the longest that fits, whole."
    words = sorted((word for term in terms() for word in term.words), key=len, reverse=True)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, words))})(?![\w-])", re.I)


@functools.cache
def anchors():
    "Word, in small letters -> the entry that it leads to."
    return {word.lower(): term.anchor for term in terms() for word in term.words}


def glossed(source, seen):
    "A markdown cell with the first use of each term linked; `seen`: the entries linked so far."

    def link(m):
        anchor = anchors()[m[0].lower()]
        if anchor in seen:
            return m[0]
        seen.add(anchor)
        return f"[{m[0]}](/glossary.md#{anchor})"

    parts = LEFT.split(source)
    return "".join(part if i % 2 else pattern().sub(link, part) for i, part in enumerate(parts))


def told(body):
    "The HTML of a page, each link to an entry with what the term means as its title."
    meanings = {term.id: term.meaning for term in terms()}

    def title(m):
        if m["anchor"] not in meanings:
            return m[0]
        text = escape(meanings[m["anchor"]])
        return f'<a class="term reference internal"{m["to"]} title="{text}"'

    return LINK.sub(title, body)
