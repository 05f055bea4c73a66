"""Everything about the package is in settings.ini; this only hands it to setuptools."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

# The package index shows README.md too, and resolves no relative link
site, raw = (
    cfg["doc_host"] + cfg["doc_baseurl"],
    "https://raw.githubusercontent.com/{user}/{repo}/{branch}".format(**cfg),
)
readme = (
    (here / "README.md")
    .read_text(encoding="utf-8")
    .replace("](nbs/images/", f"]({raw}/nbs/images/")
)
readme = re.sub(r"\]\(nbs/([\w/]+)\.(?:ipynb|md)\)", rf"]({site}/\1.html)", readme)

requirements = cfg["requirements"].split()
lab = cfg["lab_requirements"].split()
dev = cfg["dev_requirements"].split()

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme,
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    project_urls={
        "Documentation": site,
        "Changes": f"{site}/changelog.html",
        "Issues": cfg["git_url"] + "/issues",
    },
    keywords=cfg["keywords"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=" + cfg["min_python"],
    packages=find_packages(include=[cfg["lib_name"] + "*"]),
    package_data={cfg["lib_name"]: ["assets/*", "configs/*", "py.typed"]},
    install_requires=requirements,
    extras_require={"lab": lab, "dev": lab + dev},
    entry_points={"console_scripts": [cfg["console_scripts"]]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
