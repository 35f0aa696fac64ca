"""Run every chapter up to its setup, as whoever opens it on Colab would: `python .ci/first_cells.py`.

The install cell is left out (its line is the workflow's own step); MECHINTERP_SCALE=lab keeps it free of downloads.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("MECHINTERP_SCALE", "lab")
os.environ.setdefault("MECHINTERP_RESULTS", "first-cells")


def first_cells(notebook: Path) -> list[str]:
    """Code of the cells up to the one that sets the chapter up."""
    cells = [c for c in json.loads(notebook.read_text(encoding="utf8"))["cells"] if c["cell_type"] == "code"]
    sources = ["".join(c["source"]) for c in cells if "remove-cell" not in c["metadata"].get("tags", [])]
    end = next(i for i, source in enumerate(sources) if "scales.setup(" in source)
    return sources[: end + 1]


for path in sorted(Path(sys.argv[1] if len(sys.argv) > 1 else "chapters").glob("*.ipynb")):
    scope = {"__name__": "__main__"}
    for source in first_cells(path):
        exec(compile(source, path.name, "exec"), scope)
    print(f"{path.name}: {scope['run']}")
