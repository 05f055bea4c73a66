"""The examples in the docstrings of public names give what stands below them."""

import doctest
from pathlib import Path

import pytest

import submatch_nb

NBS = Path(__file__).resolve().parent.parent / "nbs"


def examples():
    "(name, its example) of every public name that has one."
    finder = doctest.DocTestFinder(recurse=False)
    for name in submatch_nb.__all__:
        thing = getattr(submatch_nb, name)
        everything = {other: getattr(submatch_nb, other) for other in submatch_nb.__all__}
        space = everything | vars(__import__(thing.__module__, fromlist=["_"]))
        for test in finder.find(thing, name, module=False, globs=space):
            if test.examples:
                yield pytest.param(test, id=name)


def run(test):
    "How many examples failed, and what they said."
    said = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    return runner.run(test, out=said.append).failed, "".join(said)


@pytest.mark.parametrize("test", list(examples()))
def test_an_example_gives_what_stands_below_it(test, monkeypatch):
    monkeypatch.chdir(NBS)
    failed, said = run(test)
    assert not failed, said


def test_a_wrong_example_would_be_noticed():
    made = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    failed, said = run(made)
    assert failed == 1 and "Expected:" in said
