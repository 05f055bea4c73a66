"""Write the exercises without their solutions, for students.

python tools/student.py runs/exercises.ipynb

What is left out: solutions, the badge that opens the chapter with them, and stored outputs. Links
to other pages lead to the site.
"""

import re
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
CHAPTER = ROOT / "nbs/14_exercises.ipynb"


def site() -> str:
    "The address of the docs site."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]["doc_host"] + config["DEFAULT"]["doc_baseurl"]


def is_left_out(cell: NotebookNode) -> bool:
    "Whether a cell is not for students."
    return bool({"solution", "colab"} & set(cell.metadata.get("tags", [])))


def linked(text: str) -> str:
    "Links to notebooks beside this one as links to their pages on the site."
    return re.sub(r"\]\((?!https?:)([\w/]+)\.(?:ipynb|md)", rf"]({site()}/\1.html", text)


def without_solutions(nb: NotebookNode) -> NotebookNode:
    "The copy for students of the chapter."
    cells = []
    for cell in nb.cells:
        if is_left_out(cell):
            continue
        if cell.cell_type == "markdown":
            cell.source = linked(cell.source)
        else:
            cell.outputs = []
        cells.append(cell)
    nb.cells = cells
    return nb


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "runs/exercises.ipynb")
    nb = without_solutions(nbformat.read(CHAPTER, as_version=4))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)
    print(f"Wrote {path}")


if __name__ == "__main__":
    main()
