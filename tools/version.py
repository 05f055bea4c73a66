"""Say whether the package, its metadata and the citation name the same version as settings.ini."""

import re
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACES = {
    "submatch_nb/__init__.py": r'^__version__ = "(.+)"$',
    "CITATION.cff": r"^version: (.+)$",
}


def main() -> None:
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    version = config["DEFAULT"]["version"]
    for file, pattern in PLACES.items():
        found = re.search(pattern, (ROOT / file).read_text("utf-8"), re.MULTILINE)
        if not found or found[1] != version:
            named = found[1] if found else "none"
            sys.exit(f"settings.ini has version {version}, {file} has {named}: make them equal")


if __name__ == "__main__":
    main()
