"""The docstrings of public names have the sections of NumPy's style, with what belongs there."""

import ast
import dataclasses
import inspect
import pkgutil
import re
import textwrap
from importlib import import_module

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
    heads = re.findall(r"^\*{0,2}(\w[\w, ]*?)(?: : .*)?$", text, re.MULTILINE)
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


def faults(thing):
    "What a docstring lacks."
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


def has_source(thing):
    "Does it say where what it computes is defined or proved?"
    found = sections(inspect.getdoc(thing) or "")
    return SOURCE.search(found.get("References", "") + found.get("Notes", "")) is not None


def with_sections():
    "What else the modules of the book hand out, if its docstring has sections."
    for _, module, is_folder in pkgutil.iter_modules(submatch_nb.__path__):
        if is_folder or module == "__main__":
            continue
        held = import_module(f"submatch_nb.{module}")
        for name in getattr(held, "__all__", ()):
            thing = getattr(held, name)
            if name not in NAMES and callable(thing) and HEAD.search(inspect.getdoc(thing) or ""):
                yield pytest.param(thing, id=f"{module}.{name}")


@pytest.mark.parametrize("name", NAMES)
def test_a_docstring_has_its_sections(name):
    thing = getattr(submatch_nb, name)
    assert list(faults(thing)) == []
    assert has_source(thing) != (name in NO_SOURCE)


@pytest.mark.parametrize("thing", list(with_sections()))
def test_a_docstring_with_one_section_has_all_of_them(thing):
    assert list(faults(thing)) == []


def wrong(x, y=1):
    """Adds.

    Parameters
    ----------
    x : int
    Raises
    ------
    """
    if x:
        raise ValueError(x)
    return x + y


def test_what_a_docstring_lacks_is_noticed():
    assert list(faults(wrong)) == ["no empty line before Raises", "no word on y", "no Returns"]
    wrong.__doc__ = "Adds."
    assert list(faults(wrong)) == ["no word on x, y", "no Returns", "no Raises"]
    assert not has_source(wrong)
