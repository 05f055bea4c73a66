"""Run notebooks top to bottom, each in a kernel of its own, and store their outputs, whole or not
at all.

python tools/execute.py nbs/01_match.ipynb nbs/engine/peel.ipynb
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
WIDGET = "application/vnd.jupyter.widget-view+json"
SHARP = "%config InlineBackend.figure_formats = ['retina']"


def stored(outputs: list[NotebookNode]) -> list[NotebookNode]:
    "What says the same on every machine, without a kernel: no widget, bar of progress, or warning."
    return [
        output
        for output in outputs
        if WIDGET not in output.get("data", {})
        and "submatch" not in output.get("metadata", {})  # an explorer, which stands in for it
        and output.get("name") != "stderr"
    ]


def tidy(nb: NotebookNode) -> NotebookNode:
    "Drop what changes from run to run."
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    nb.metadata = NotebookNode(kernelspec=kernel)
    for cell in nb.cells:
        cell.metadata = NotebookNode({k: v for k, v in cell.metadata.items() if k == "tags"})
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        cell.outputs = stored(cell.outputs)
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = None
    return nb


def run(path: Path) -> NotebookNode:
    "The notebook with the outputs of a fresh run; raises CellExecutionError where a cell fails."
    nb = nbformat.read(path, as_version=4)
    nb.cells.insert(0, nbformat.v4.new_code_cell(SHARP))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        # over files, not ports: kernels that start side by side could take the same port
        address = str(Path(folder) / "kernel")
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=address)
        client = NotebookClient(nb, km=kernel, timeout=600, coalesce_streams=True)
        client.execute(cwd=path.parent, cleanup_kc=True)
    del nb.cells[0]
    return tidy(nb)


def execute(path: Path) -> None:
    "Run a notebook and write it back."
    print("running", path, flush=True)
    part = path.with_suffix(".part")
    nbformat.write(run(path), part)
    os.replace(part, path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        execute(Path(name).resolve())
