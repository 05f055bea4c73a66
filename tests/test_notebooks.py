"""Every notebook runs from top to bottom, and prints what is stored in it.

Compared is text: what cells print and show, to the last digit. What changes from run to run or from
machine to machine (a time, a file's size) stands in a cell that begins with `#| varies`.
"""

import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))
NOTEBOOKS = sorted((ROOT / "nbs").rglob("[!.]*.ipynb"))
NOTEBOOKS = [path for path in NOTEBOOKS if ".ipynb_checkpoints" not in path.parts]


def said(cell):
    "The text that a cell puts out; pictures and widgets have none that matters."
    parts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            parts.append(output.text)
        elif "image/png" not in output.get("data", {}):
            parts.append(output.get("data", {}).get("text/plain", ""))
    return "".join(parts)


def differences(before, after):
    "(number of a cell, what it said, what it says) where these differ."
    for number, (old, new) in enumerate(zip(before.cells, after.cells, strict=True)):
        if old.cell_type != "code" or old.source.startswith("#| varies"):
            continue
        if said(old) != said(new):
            yield number, said(old), said(new)


@pytest.mark.parametrize(
    "path", NOTEBOOKS, ids=lambda path: str(path.relative_to(ROOT / "nbs").with_suffix(""))
)
def test_notebook_runs_and_prints_what_is_stored(path):
    execute = pytest.importorskip("execute", reason="no nbclient: pip install '.[dev]'")
    found = list(differences(nbformat.read(path, 4), execute.run(path)))
    text = "\n".join(
        f"cell {number}\n--- stored\n{old}\n--- now\n{new}" for number, old, new in found
    )
    assert not found, (
        f"{path.name} prints other things now: run `make paper`, and read them\n{text}"
    )


def test_a_progress_bar_hides_nothing():
    "It comes on slow days only, and what the cell says stays."
    execute = pytest.importorskip("execute", reason="no nbclient: pip install '.[dev]'")
    bar = nbformat.v4.new_output("display_data", {execute.WIDGET: {}, "text/plain": "13%"})
    text = nbformat.v4.new_output("stream", text="1\n")
    assert execute.stored([bar, text, bar]) == [text] == execute.stored([text])


def test_a_stale_output_is_found():
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(1)")])
    nb.cells[0].outputs = [nbformat.v4.new_output("stream", text="1\n")]
    other = nbformat.from_dict(nb)
    assert not list(differences(nb, other))
    changed = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(1)")])
    changed.cells[0].outputs = [nbformat.v4.new_output("stream", text="2\n")]
    assert list(differences(nb, changed)) == [(0, "1\n", "2\n")]


def notebook(path, source):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    return path


def test_a_kernel_that_stalls_or_dies_is_started_once_more(tmp_path, monkeypatch, capsys):
    "On slow days a message between kernel and client is lost, and both wait."
    execute = pytest.importorskip("execute", reason="no nbclient: pip install '.[dev]'")
    monkeypatch.setattr(execute, "IDLE", 4)
    for lost in ("import time; time.sleep(60)", "import os; os._exit(1)"):
        mark = tmp_path / f"mark{len(lost)}"
        source = f"from pathlib import Path\nmark = Path({str(mark)!r})\nif not mark.exists():\n"
        source += f"    mark.touch()\n    {lost}\nprint('done')"
        nb = execute.run(notebook(tmp_path / "book.ipynb", source))
        assert said(nb.cells[0]) == "done\n" and "run again" in capsys.readouterr().err
    with pytest.raises(execute.StalledError):
        execute.run(notebook(tmp_path / "book.ipynb", "import time; time.sleep(60)"))


def test_a_kernel_whose_process_computes_has_not_stalled(tmp_path, monkeypatch, capsys):
    execute = pytest.importorskip("execute", reason="no nbclient: pip install '.[dev]'")
    monkeypatch.setattr(execute, "IDLE", 4)
    busy = "import sys, time; t = time.time()\nwhile time.time() - t < int(sys.argv[1]): pass"
    source = "import subprocess, sys\nfor seconds in '9', '7':  # one has ended: its time counts\n"
    source += f"    subprocess.run([sys.executable, '-c', {busy!r}, seconds])\nprint(1)"
    nb = execute.run(notebook(tmp_path / "book.ipynb", source))
    assert said(nb.cells[0]) == "1\n" and "run again" not in capsys.readouterr().err
