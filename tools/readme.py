"""Write the table of chapters in nbs/index.ipynb from their first lines, and README.md from its stored outputs; with --check, only say whether both are in step."""

import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
IMAGES = "nbs/images"
INDEX = ROOT / "nbs/index.ipynb"
HEAD = "| no. | chapter | tells |\n| --- | --- | --- |"  # of the table of chapters


def table():
    "The chapters, each by its title and its promise."
    for path in sorted(INDEX.parent.glob("[0-9]*.ipynb")):
        title, promise = re.match(
            r"# (.+)\n\n> (.+)", nbformat.read(path, as_version=4).cells[0].source
        ).groups()
        yield f"| {path.stem[:2]} | [{title}]({path.name}) | {promise} |"


def index():
    "The text of nbs/index.ipynb, the table of chapters as it should be."
    text = INDEX.read_text("utf-8")
    nb = nbformat.reads(text, as_version=4)
    cell = next(cell for cell in nb.cells if HEAD in cell.source)
    source = re.sub(
        r"(?<=" + re.escape(HEAD) + r"\n)(\|.*\n)*",
        lambda _: "\n".join(table()) + "\n",
        cell.source,
    )
    if source == cell.source:
        return text
    cell.source = source
    return nbformat.writes(nb) + "\n"


def readme(text):
    "The text of README.md and the pictures in it, by file name, from that of the index."
    nb = nbformat.reads(text, as_version=4)
    nb.cells = [
        cell
        for cell in nb.cells
        if not cell.source.startswith(("#| hide", "#| explorer"))
        and "colab" not in cell.metadata.get("tags", [])
    ]
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\((\w+\.ipynb|images/)", r"](nbs/\1", cell.source)
        else:
            cell.source = re.sub(r"^#\|.*\n", "", cell.source, flags=re.MULTILINE)
    nb.metadata.language_info = {"name": "python"}
    exporter = MarkdownExporter(
        config=Config(
            {
                "NbConvertBase": {"display_data_priority": ["image/png", "text/plain"]},
                "ExtractOutputPreprocessor": {
                    "output_filename_template": "readme_{cell_index}_{index}{extension}"
                },
                "TagRemovePreprocessor": {"enabled": True, "remove_input_tags": ["remove-input"]},
            }
        )
    )
    text, resources = exporter.from_notebook_node(nb, {"output_files_dir": IMAGES})
    text = re.sub(r"!\[png\]\(", "![The figure that the demo makes](", text)
    text = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE))
    note = "<!-- Made from nbs/index.ipynb by `make readme`. -->\n\n"
    return note + text.strip() + "\n", {
        Path(name).name: data for name, data in resources.get("outputs", {}).items()
    }


def main():
    chapters = index()
    text, pictures = readme(chapters)
    files = {INDEX: chapters.encode(), ROOT / "README.md": text.encode()} | {
        ROOT / IMAGES / name: data for name, data in pictures.items()
    }
    stale = [
        path for path, data in files.items() if not path.is_file() or path.read_bytes() != data
    ]
    if "--check" in sys.argv:
        sys.exit(
            f"out of step with the chapters and nbs/index.ipynb: {', '.join(p.name for p in stale)}; run `make readme`"
            if stale
            else 0
        )
    for old in (ROOT / IMAGES).glob("readme_*"):
        if old not in files:
            old.unlink()
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    main()
