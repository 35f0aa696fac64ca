"""Record the claims about GPT-2's wiring: `python chapters/record_wiring.py`.

The values come from the package's committed result of
`python -m mechinterp.circuits.wiring`, which needs GPT-2's attention weights only.
"""

import hashlib
from pathlib import Path

from mechinterp import claims
from mechinterp.circuits import wiring

result = wiring.gpt2()
digest = hashlib.sha256(
    Path(wiring.__file__).with_name("gpt2_wiring.json").read_bytes()
).hexdigest()
ledger = claims.Ledger(
    "ioi", scale="paper", model={"name": result.weights, "sha256": digest}
)
for claim, share in result.shares().items():
    print(
        ledger.record(
            claim,
            share,
            note=f"weights used: {result.weights}; sha256 is of the committed table",
        )
    )
