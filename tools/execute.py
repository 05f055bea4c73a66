"""Run notebooks top to bottom, each in a kernel of its own, and store their outputs, whole or not
at all.

python tools/execute.py nbs/01_match.ipynb nbs/engine/peel.ipynb
"""

import asyncio
import contextlib
import os
import sys
import tempfile
from pathlib import Path

import nbformat
import psutil
import zmq
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
WIDGET = "application/vnd.jupyter.widget-view+json"
IDLE = 60  # seconds in which a kernel that runs a cell, or what it started, computes something
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


class StalledError(Exception):
    "A kernel waits for a request while its client waits for an answer: a message was lost."


def computed(process: psutil.Process) -> float:
    "Seconds that a process and what it started have computed."
    seconds = 0.0
    with contextlib.suppress(psutil.Error):  # it has ended
        for one in (process, *process.children(recursive=True)):
            seconds += sum(one.cpu_times()[:4])  # of its children that have ended, too
    return seconds


async def stalls(kernel: AsyncKernelManager) -> None:
    "Return when a kernel has computed next to nothing for `IDLE` seconds."
    while not kernel.has_kernel:
        await asyncio.sleep(1)
    process = psutil.Process(kernel.provisioner.pid)
    before = -1.0
    while (now := computed(process)) - before > 0.5:
        before = now
        await asyncio.sleep(IDLE)


async def heard(client: NotebookClient) -> None:
    """Look every second for messages that raised no event, for ever.

    nbclient answers a kernel's widgets with jupyter_client's `Session.send`, past the socket that
    waits for messages: one that comes at that moment is not noticed. Reading EVENTS notices it.
    """
    while True:
        await asyncio.sleep(1)
        if client.kc is not None:
            with contextlib.suppress(zmq.ZMQError):  # the kernel has ended
                client.kc.shell_channel.socket.get(zmq.EVENTS)


async def watched(client: NotebookClient, path: Path) -> None:
    "Execute, unless the kernel stalls."
    work = asyncio.ensure_future(client.async_execute(cwd=path.parent, cleanup_kc=True))
    watch = asyncio.ensure_future(stalls(client.km))
    ears = asyncio.ensure_future(heard(client))
    await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
    watch.cancel()
    ears.cancel()
    if not work.done():
        work.cancel()  # which ends the kernel
        await asyncio.gather(work, return_exceptions=True)
        raise StalledError(f"the kernel computed nothing for {IDLE} seconds")
    work.result()


def run_once(path: Path) -> NotebookNode:
    nb = nbformat.read(path, as_version=4)
    nb.cells.insert(0, nbformat.v4.new_code_cell(SHARP))
    with tempfile.TemporaryDirectory() as folder:
        # over files, not ports: kernels that start side by side could take the same port
        address = str(Path(folder) / "kernel")
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=address)
        client = NotebookClient(nb, km=kernel, timeout=600, coalesce_streams=True)
        asyncio.run(watched(client, path))
    del nb.cells[0]
    return tidy(nb)


def run(path: Path) -> NotebookNode:
    """The notebook with the outputs of a fresh run; raises CellExecutionError where a cell fails.

    A kernel that stalls or dies is started again, once.
    """
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    try:
        return run_once(path)
    except (StalledError, DeadKernelError) as error:
        print(f"{path.name}: {error}; it is run again", file=sys.stderr, flush=True)
        return run_once(path)


def execute(path: Path) -> None:
    "Run a notebook and write it back."
    print("running", path, flush=True)
    part = path.with_suffix(".part")
    nbformat.write(run(path), part)
    os.replace(part, path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        execute(Path(name).resolve())
