"""Write the tables of chapters and guides in nbs/index.ipynb from their first lines, and README.md.

README.md is made of the index and its stored outputs; with --check, only say whether both are in step.
"""  # noqa: E501

import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbformat import NotebookNode
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "docs"))
from parts import GUIDES, PARTS  # noqa: E402

IMAGES = "nbs/images"
INDEX = ROOT / "nbs/index.ipynb"
# How the tables of chapters and of guides begin
CHAPTERS = "| no. | chapter | tells |\n| --- | --- | --- |"
TASKS = "| guide | tells |\n| --- | --- |"
NOTE = "<!-- Made from nbs/index.ipynb by `make readme`. -->\n\n"
EXPORT = Config(
    {
        "NbConvertBase": {"display_data_priority": ["image/png", "text/plain"]},
        "ExtractOutputPreprocessor": {
            "output_filename_template": "readme_{cell_index}_{index}{extension}"
        },
        "TagRemovePreprocessor": {"enabled": True, "remove_input_tags": ["remove-input"]},
    }
)


def entry(path: Path) -> str:
    "A page's row: its title, which links to it, and its promise."
    head = nbformat.read(path, as_version=4).cells[0].source
    title, promise = re.match(r"# (.+)\n\n> (.+)", head).groups()
    return f"| [{title}]({path.relative_to(INDEX.parent).as_posix()}) | {promise} |"


def chapters() -> list[str]:
    "The chapters by part."
    rows = []
    for caption, numbers in PARTS.items():
        rows.append(f"| | **{caption}** | |")
        for number in numbers:
            (path,) = INDEX.parent.glob(f"{number}_*.ipynb")
            rows.append(f"| {number} {entry(path)}")
    return rows


def guides() -> list[str]:
    "The guides, in order; ValueError where one is not in it."
    found = {path.stem: path for path in INDEX.parent.glob("guides/*.ipynb")}
    if set(found) != set(GUIDES):
        raise ValueError(f"GUIDES in docs/parts.py does not hold the guides: {sorted(found)}")
    return [entry(found[name]) for name in GUIDES]


def index() -> str:
    "The text of nbs/index.ipynb, its tables as they should be."
    text = INDEX.read_text("utf-8")
    nb = nbformat.reads(text, as_version=4)
    changed = False
    for head, rows in ((CHAPTERS, chapters()), (TASKS, guides())):
        cell = next(cell for cell in nb.cells if head in cell.source)
        old = r"(?<=" + re.escape(head) + r"\n)(\|.*\n)*"
        source = re.sub(old, "\n".join(rows).replace("\\", r"\\") + "\n", cell.source)
        changed = changed or source != cell.source
        cell.source = source
    return nbformat.writes(nb) + "\n" if changed else text


def shown(cell: NotebookNode) -> bool:
    "Whether a cell of the index is in the README too."
    hidden = cell.source.startswith(("#| hide", "#| explorer"))
    return not hidden and "colab" not in cell.metadata.get("tags", [])


def readme(text: str) -> tuple[str, dict[str, bytes]]:
    "The text of README.md and the pictures in it, by file name, from that of the index."
    nb = nbformat.reads(text, as_version=4)
    nb.cells = [cell for cell in nb.cells if shown(cell)]
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            inside = r"\]\(((?:\w+/)?\w+\.(?:ipynb|md)|images/)"
            cell.source = re.sub(inside, r"](nbs/\1", cell.source)
        else:
            cell.source = re.sub(r"^#\|.*\n", "", cell.source, flags=re.MULTILINE)
    nb.metadata.language_info = {"name": "python"}
    exporter = MarkdownExporter(config=EXPORT)
    text, resources = exporter.from_notebook_node(nb, {"output_files_dir": IMAGES})
    text = text.replace("![png](", "![Half-ε of each layer, trained, untrained and shuffled](")
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\n{3,}", "\n\n", text)
    pictures = {Path(name).name: data for name, data in resources.get("outputs", {}).items()}
    return NOTE + text.strip() + "\n", pictures


def main() -> None:
    source = index()
    text, pictures = readme(source)
    files = {INDEX: source.encode(), ROOT / "README.md": text.encode()}
    files |= {ROOT / IMAGES / name: data for name, data in pictures.items()}
    stale = [
        path for path, data in files.items() if not path.is_file() or path.read_bytes() != data
    ]
    if "--check" in sys.argv:
        names = ", ".join(path.name for path in stale)
        sys.exit(f"out of step with the chapters: {names}; run `make readme`" if stale else 0)
    for old in (ROOT / IMAGES).glob("readme_*"):
        if old not in files:
            old.unlink()
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    main()
