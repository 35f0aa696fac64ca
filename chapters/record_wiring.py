"""Record the claims about GPT-2's wiring: `python chapters/record_wiring.py`.

The values come from the package's committed results of the commands
`python -m mechinterp.circuits.weight_edges` and
`python -m mechinterp.copy_suppression.weight_edges`, which need GPT-2's attention
weights.
"""

import hashlib
from pathlib import Path

from mechinterp import circuits, claims, copy_suppression
from mechinterp.circuits import weight_edges
from mechinterp.copy_suppression import weight_edges as suppressors

for chapter, package, result in (
    ("ioi", circuits, weight_edges.gpt2()),
    ("copy_suppression", copy_suppression, suppressors.gpt2()),
):
    table = Path(package.__path__[0]) / "gpt2_wiring.json"
    digest = hashlib.sha256(table.read_bytes()).hexdigest()
    ledger = claims.Ledger(
        chapter, scale="paper", model={"name": result.weights, "sha256": digest}
    )
    for claim, share in result.shares().items():
        note = (
            f"weights used: {result.weights}; sha256 is of the committed table"
        )
        null = claims.Chance(result.chances(fewer={"CS-W2"})[claim])
        print(ledger.record(claim, share, null=null, note=note))
