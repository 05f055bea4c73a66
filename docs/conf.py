"""The docs site: Sphinx reads the notebooks in nbs/ as they are, with their stored outputs (`make
docs`).
"""

import sys
from configparser import ConfigParser
from pathlib import Path

here = Path(__file__).parent
sys.path[:0] = [str(here), str(here.parent)]
config = ConfigParser(delimiters=["="])
config.read(here.parent / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

project, author, release, version = cfg["title"], cfg["author"], cfg["version"], cfg["version"]
copyright = cfg["copyright"]  # noqa: A001 (what Sphinx calls it)
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_proof",
    "sphinxcontrib.bibtex",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",
    "chapters",
]
exclude_patterns = ["**.ipynb_checkpoints", "**/runs", "runs"]

# Notebooks: stored outputs, no script from elsewhere
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_dmath_double_inline = True
myst_heading_anchors = 3

# Statements, citations, the API
proof_minimal_theme = True
prf_realtyp_to_countertyp = dict.fromkeys(
    ("lemma", "definition", "corollary"), "theorem"
)  # one count for all: definition 1, lemma 2, theorem 3
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
bibtex_default_style = "plain"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries = False
copybutton_exclude = ".linenos, .gp"

html_theme = "sphinx_book_theme"
html_context = {"default_mode": "auto"}
html_title = cfg["title"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_baseurl = cfg["doc_host"].replace("%(user)s", cfg["user"]) + "/" + cfg["repo"] + "/"
html_show_sourcelink = True
html_last_updated_fmt = None
html_theme_options = {
    "repository_url": f"https://github.com/{cfg['user']}/{cfg['repo']}",
    "repository_branch": cfg["branch"],
    "path_to_docs": cfg["nbs_path"],
    "use_repository_button": True,
    "use_issues_button": True,
    "use_download_button": True,
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    "navbar_persistent": [],
    "show_navbar_depth": 1,
    "show_toc_level": 2,
}
