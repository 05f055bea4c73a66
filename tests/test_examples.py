"""The examples in the docstrings of public names give what stands below them."""

import doctest
import tempfile
from pathlib import Path

import pytest

import submatch_nb

# What takes too long to run here, and why: its example is shown and skipped
LONG = {"reproduce": "trains networks; test_lab.py runs it"}
NBS = Path(__file__).resolve().parent.parent / "nbs"


def examples():
    "The examples of every public name, of some none."
    finder = doctest.DocTestFinder(recurse=False)
    for name in submatch_nb.__all__:
        thing = getattr(submatch_nb, name)
        everything = {other: getattr(submatch_nb, other) for other in submatch_nb.__all__}
        space = everything | vars(__import__(thing.__module__, fromlist=["_"]))
        for test in finder.find(thing, name, module=False, globs=space):
            yield pytest.param(test, id=name)


def runs(test):
    "Is something run, and shown?"
    return any(e.want and not e.options.get(doctest.SKIP) for e in test.examples)


def run(test):
    "How many examples failed, and what they said."
    said = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    return runner.run(test, out=said.append).failed, "".join(said)


@pytest.mark.parametrize("test", list(examples()))
def test_every_public_name_has_an_example(test):
    assert runs(test) != (test.name in LONG)
    assert test.examples


@pytest.mark.parametrize("test", list(examples()))
def test_an_example_gives_what_stands_below_it(test, monkeypatch, tmp_path):
    monkeypatch.chdir(NBS)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    failed, said = run(test)
    assert not failed, said


def test_a_wrong_example_would_be_noticed():
    made = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    failed, said = run(made)
    assert failed == 1 and "Expected:" in said
