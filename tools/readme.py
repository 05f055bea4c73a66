"""Write the table of chapters in nbs/index.ipynb from their first lines, and README.md.

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
from parts import PARTS  # noqa: E402

IMAGES = "nbs/images"
INDEX = ROOT / "nbs/index.ipynb"
HEAD = "| no. | chapter | tells |\n| --- | --- | --- |"  # of the table of chapters
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


def table() -> list[str]:
    "The chapters by part, each with its title and its promise."
    rows = []
    for caption, numbers in PARTS.items():
        rows.append(f"| | **{caption}** | |")
        for number in numbers:
            (path,) = INDEX.parent.glob(f"{number}_*.ipynb")
            head = nbformat.read(path, as_version=4).cells[0].source
            title, promise = re.match(r"# (.+)\n\n> (.+)", head).groups()
            rows.append(f"| {number} | [{title}]({path.name}) | {promise} |")
    return rows


def index() -> str:
    "The text of nbs/index.ipynb, the table of chapters as it should be."
    text = INDEX.read_text("utf-8")
    nb = nbformat.reads(text, as_version=4)
    cell = next(cell for cell in nb.cells if HEAD in cell.source)
    old = r"(?<=" + re.escape(HEAD) + r"\n)(\|.*\n)*"
    source = re.sub(old, lambda _: "\n".join(table()) + "\n", cell.source)
    if source == cell.source:
        return text
    cell.source = source
    return nbformat.writes(nb) + "\n"


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
            cell.source = re.sub(r"\]\(((?:\w+/)?\w+\.ipynb|images/)", r"](nbs/\1", cell.source)
        else:
            cell.source = re.sub(r"^#\|.*\n", "", cell.source, flags=re.MULTILINE)
    nb.metadata.language_info = {"name": "python"}
    exporter = MarkdownExporter(config=EXPORT)
    text, resources = exporter.from_notebook_node(nb, {"output_files_dir": IMAGES})
    text = text.replace("![png](", "![Similarity of each layer, trained and untrained](")
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\n{3,}", "\n\n", text)
    pictures = {Path(name).name: data for name, data in resources.get("outputs", {}).items()}
    return NOTE + text.strip() + "\n", pictures


def main() -> None:
    chapters = index()
    text, pictures = readme(chapters)
    files = {INDEX: chapters.encode(), ROOT / "README.md": text.encode()}
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
