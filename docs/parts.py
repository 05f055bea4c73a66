"""The order of the pages: parts of the book, guides, rooms of the engine. The site and the README
read it here.
"""

# Caption -> numbers of its chapters
PARTS = {
    "I. The theory": ("00", "01", "02", "03", "04"),
    "II. Two networks": ("05", "06", "07", "08"),
    "III. What the number means": ("09", "10", "11"),
    "IV. Results": ("12", "13"),
    "V. The course": ("14",),
}
# Ways through the book, the shortest first
PATHS = ("minutes", "lecture", "lab")
# One task a page, what most readers ask first at the head
GUIDES = ("compare", "reading", "data", "tokens", "activations", "many", "figure", "command")
# In the order in which they are read
ENGINE = (
    *("inputs", "sets", "texts", "writing", "schemas", "files", "drawing"),
    *("factors", "shifts", "moments", "peel", "brackets", "search", "enumeration", "reference"),
    *("canonical", "chance", "intervals"),
    *("theorems", "architectures", "images", "training", "pair", "perceptrons"),
    *("names", "feeding", "reading", "axes", "operations", "tracking", "arranging", "outputs"),
    *("functions", "encoders", "positions", "masks", "capture", "pairing", "request"),
    *("sums", "roots", "groups", "shuffling", "counting", "room", "layer", "passes", "collecting"),
    *("processes", "distributed"),
    *("analysis", "compared", "several", "comparing", "layouts", "arrays", "activations"),
    *("uncertainty",),
    *("latex", "tables", "figures", "halves", "saving", "exploring", "tops"),
    *("oracles", "answers", "shrinking", "checking"),
    *("match_tasks", "minimal_tasks", "hook_tasks", "measure_tasks", "shuffle_tasks"),
    "course",
    *("configs", "weights", "experiments", "results", "summaries", "reproducing", "reports"),
    "runs",
    *("commands", "command_line"),
)
