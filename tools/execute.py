"""Run notebooks top to bottom in a fresh kernel and store their outputs, whole or not at all."""
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

WIDGET = "application/vnd.jupyter.widget-view+json"


def tidy(nb):
    "Drop what changes from run to run or needs a live kernel: widget views, timings, kernel versions."
    nb.metadata = {"kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}}
    for cell in nb.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" and WIDGET not in o.get("data", {})]
            for output in cell.outputs:
                output.pop("execution_count", None)
                if output.output_type == "execute_result":
                    output.execution_count = None
    return nb


def execute(path):
    nb = nbformat.read(path, as_version=4)
    NotebookClient(nb, timeout=900, resources={"metadata": {"path": str(path.parent)}}).execute()
    part = path.with_suffix(".part")
    nbformat.write(tidy(nb), part)
    os.replace(part, path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print("running", name, flush=True)
        execute(Path(name))
