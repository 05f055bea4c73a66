"""Write README.md from the stored outputs of nbs/index.ipynb; with --check, only say whether it is in step."""
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
IMAGES = "nbs/images"


def readme():
    "The text of README.md and the pictures in it, by file name."
    nb = nbformat.read(ROOT / "nbs/index.ipynb", as_version=4)
    nb.cells = [cell for cell in nb.cells if not cell.source.startswith(("#| hide", "#| explorer")) and "colab" not in cell.metadata.get("tags", [])]
    for cell in nb.cells:
        if cell.cell_type == "markdown": cell.source = re.sub(r"\]\((\w+\.ipynb|images/)", r"](nbs/\1", cell.source)
        else: cell.source = re.sub(r"^#\|.*\n", "", cell.source, flags=re.MULTILINE)
    nb.metadata.language_info = {"name": "python"}
    exporter = MarkdownExporter(config=Config({
        "NbConvertBase": {"display_data_priority": ["image/png", "text/plain"]},
        "ExtractOutputPreprocessor": {"output_filename_template": "readme_{cell_index}_{index}{extension}"},
        "TagRemovePreprocessor": {"enabled": True, "remove_input_tags": ["remove-input"]},
    }))
    text, resources = exporter.from_notebook_node(nb, {"output_files_dir": IMAGES})
    text = re.sub(r"!\[png\]\(", "![The figure that the demo makes](", text)
    text = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE))
    note = "<!-- Made from nbs/index.ipynb by `make readme`. -->\n\n"
    return note + text.strip() + "\n", {Path(name).name: data for name, data in resources.get("outputs", {}).items()}


def main():
    text, pictures = readme()
    files = {ROOT / "README.md": text.encode()} | {ROOT / IMAGES / name: data for name, data in pictures.items()}
    stale = [path for path, data in files.items() if not path.is_file() or path.read_bytes() != data]
    if "--check" in sys.argv:
        sys.exit(f"out of step with nbs/index.ipynb: {', '.join(p.name for p in stale)}; run `make readme`" if stale else 0)
    for old in (ROOT / IMAGES).glob("readme_*"):
        if old not in files: old.unlink()
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    main()
