"""Run notebooks top to bottom, each in a fresh process, and store their outputs, whole or not at all."""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import nbformat
from execnb.nbio import read_nb
from execnb.shell import CaptureShell

WIDGET = "application/vnd.jupyter.widget-view+json"


def stored(outputs):
    "The outputs that say the same without a kernel: no widget, with what it draws, and no progress bar or warning."
    if any(WIDGET in output.get("data", {}) for output in outputs):
        return []
    return [output for output in outputs if output.get("name") != "stderr"]


def tidy(nb):
    "Drop what changes from run to run."
    nb.metadata = {
        "kernelspec": {
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
            "name": "python3",
        }
    }
    for cell in nb.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        cell.outputs = stored(cell.outputs)
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = None
    return nb


def execute(name):
    print("running", name, flush=True)
    path = Path(name).resolve()
    os.chdir(path.parent)  # as Jupyter and nbdev_test do
    nb, shell = read_nb(path), CaptureShell(path.parent, mpl_format="retina")
    shell.run_all(nb, exc_stop=True)
    if shell.exc:
        raise SystemExit(f"{name}: {shell.prettytb()}")
    nb = {
        k: nb[k] for k in ("cells", "metadata", "nbformat", "nbformat_minor")
    }  # what execnb adds stays out: indices, this machine's path
    for cell in nb["cells"]:
        cell.pop("idx_", None)
    part = path.with_suffix(".part")
    nbformat.write(tidy(nbformat.from_dict(nb)), part)
    os.replace(part, path)


if __name__ == "__main__":
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        list(pool.map(execute, sys.argv[1:]))
