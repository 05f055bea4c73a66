"""The docstrings of public names have the sections of NumPy's style, with what belongs there."""

import ast
import dataclasses
import inspect
import re
import textwrap

import pytest

import submatch_nb

SECTIONS = (
    "Parameters",
    "Attributes",
    "Returns",
    "Yields",
    "Raises",
    "Warns",
    "See Also",
    "Notes",
    "References",
    "Examples",
)
HEAD = re.compile(rf"^({'|'.join(SECTIONS)})\n(-+)$", re.MULTILINE)
SOURCE = re.compile(r"[Tt]heorem|[Dd]efinition|Algorithm \d|doi:|\blaw\b")
# What computes nothing that a source defines, and what it does instead
NO_SOURCE = {
    "Collected": "holds layers",
    "Comparisons": "holds comparisons",
    "PermutationTest": "holds the answer of permutation_test, which names it",
    "Results": "reads files",
    "SubmatchWarning": "is a warning",
    "TopSamples": "holds the answer of top_samples",
    "capture": "runs a network",
    "check": "tries a function",
    "load_checkpoint": "reads a file",
    "load_data": "reads files",
    "progress": "shows what was checked",
    "reproduce": "runs a config",
    "top_samples": "sorts",
}
NAMES = submatch_nb.__all__


def sections(text):
    "Section -> its text, in the order in which they stand."
    _, *parts = HEAD.split(text)
    return dict(zip(parts[::3], parts[2::3], strict=True))


def named(text):
    "What a section of parameters names: `x, y : int` is two."
    heads = re.findall(r"^(\w[\w, ]*?)(?: : .*)?$", text, re.MULTILINE)
    return {name for head in heads for name in head.split(", ")}


def arguments(thing):
    "The names of the arguments of a function, or of what makes an object."
    exception = inspect.isclass(thing) and issubclass(thing, Exception)
    return [] if exception else list(inspect.signature(thing).parameters)


def raises(thing):
    "Does it, or what makes an object, raise in its own lines?"
    maker = "__post_init__" if dataclasses.is_dataclass(thing) else "__init__"
    of = vars(thing).get(maker) if inspect.isclass(thing) else thing
    if not inspect.isfunction(of):
        return False
    tree = ast.parse(textwrap.dedent(inspect.getsource(of)))
    return any(isinstance(node, ast.Raise) for node in ast.walk(tree))


def faults(thing, name):
    "What the docstring of a public name lacks."
    text = inspect.getdoc(thing) or ""
    found = sections(text)
    if list(found) != [one for one in SECTIONS if one in found]:
        yield f"sections in the order {', '.join(found)}"
    for match in HEAD.finditer(text):
        if text[: match.start()][-2:] != "\n\n":
            yield f"no empty line before {match[1]}"
        if len(match[1]) != len(match[2]):
            yield f"a line of another length below {match[1]}"
    asked = set(arguments(thing))
    holds = named(found.get("Parameters", "")) | named(found.get("Attributes", ""))
    if asked - holds:
        yield f"no word on {', '.join(sorted(asked - holds))}"
    if inspect.isfunction(thing):
        returned = inspect.signature(thing).return_annotation
        if returned not in (None, "None") and not {"Returns", "Yields"} & set(found):
            yield "no Returns"
    if raises(thing) and "Raises" not in found:
        yield "no Raises"
    told = found.get("References", "") + found.get("Notes", "")
    if name not in NO_SOURCE and not SOURCE.search(told):
        yield "no source"


@pytest.mark.parametrize("name", NAMES)
def test_a_docstring_has_its_sections(name):
    assert list(faults(getattr(submatch_nb, name), name)) == []


def test_what_needs_no_source_has_none_to_give():
    "A name in the list that cites something, or is not public, does not belong there."
    for name in NO_SOURCE:
        text = sections(inspect.getdoc(getattr(submatch_nb, name))).get("References", "")
        assert not SOURCE.search(text), name
