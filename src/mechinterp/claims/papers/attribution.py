"""The claims of *Attribution Patching Outperforms Automated Circuit Discovery* (Syed et al., arXiv:2310.10348) and of
*AtP\\** (Kramár et al., arXiv:2403.00745).

Both papers estimate effects from gradients, of edges and of nodes. The truth that estimates are held against is
measured here: exact effects, edge by edge and node by node. Tasks are indirect object identification and a second one,
the one of four simple tasks at which the model is right most often. Values of the papers are second-hand.
"""

from typing import Any

from mechinterp.claims.expectations import Range
from mechinterp.claims.statement import Claim, Revision
from mechinterp.scales import Scale


def _claim(expected: Any = None, **told: Any) -> Claim:
    """With the same expectation at every scale, if one is given."""
    same = {} if expected is None else dict.fromkeys(("paper", "laptop", "lab"), expected)
    return Claim(unverified=True, **same, **told)


_BETTER = {"IOI": Range(0), "second task": Range(0)}
_AREA = (
    "area of |1 − f| over the logarithm of the circuit's size, on other prompts than those of the scores, "
    "EAP's minus {}'s"
)
_TWO_HALVES = "EAP's scores from one half of the prompts in place of the other method's, minus those from the other"
_COST = "effort of finding the K largest effects with the scores' help over an oracle's, geometric mean over K by 1 / K"

_SCALES: tuple[Scale, ...] = ("paper", "laptop", "lab")
_NO_QUERIES = (
    "The queries of shift_by are made of positions, which a corrupted prompt does not change: all effects were 0, and "
    "nothing had been measured."
)
_ALL_NODES = (
    "That was of the share of nodes below their bound. But the bound is for all nodes together, and the first run on "
    "SmolLM2 met the old expectation with the largest effect of all above it."
)

ATTRIBUTION: tuple[Claim, ...] = (
    _claim(
        {"forward": Range(hi=2), "backward": Range(hi=1)},
        id="EA-1",
        statement="all edges cost two forward passes and one backward pass",
        paper_value="2 forward, 1 backward",
        where="abstract",
        measure="positions of one batch that the busiest MLP computes in EAP, over those of the batch; the same for "
        "gradients",
        null="a positive control that must exceed it: exact effects of the edges into the first MLP; for gradients, "
        "EAP-IG",
    ),
    _claim(
        Range(0),
        id="EA-2",
        statement="EAP tells the heads of a circuit from the others better than ACDC does",
        paper_value="mean AUC over tasks above ACDC's, SP's and HISP's",
        where="abstract",
        measure="pessimistic AUC over heads on IOI, against the heads whose paths to the logits or to those heads "
        "matter, found on other prompts: EAP's minus ACDC's over falling thresholds (KL divergence)",
        null="EAP's scores permuted among edges of the same layers, minus ACDC's",
    ),
    _claim(
        id="EA-3",
        statement="ACDC's AUCs on the tasks of its paper",
        paper_value="IOI 0.869, greater-than 0.853, docstring 0.982",
        where="Table 2 of the ACDC paper",
        measure="see AC-4",
        null="see AC-4",
        paper=None,
        why_not_paper="the chapter on ACDC asks it (AC-4)",
        why_not_laptop="the chapter on ACDC asks it (AC-4)",
        why_not_lab="the chapter on ACDC asks it (AC-4)",
    ),
    _claim(
        {"heads": Range(0.75), "edges": Range(0.75)},
        id="EA-4",
        statement="EAP finds the heads that people found",
        paper_value="AUC 0.75 to 0.95 (from memory)",
        where="results",
        measure="pessimistic AUC over heads on IOI as in EA-2, and over edges against the exact effects of at least "
        "2 % of the logit difference",
        null="EAP's scores permuted among edges of the same layers",
    ),
    _claim(
        id="EA-5",
        statement="EAP is a hundred times cheaper than ACDC",
        paper_value="two to four orders of magnitude (third-party timings)",
        where="results",
        measure="edges that ACDC tries at the smallest threshold of the sweep, a forward pass each, over EAP's passes "
        "(a backward pass counts as two)",
        null="ACDC by heads in place of ACDC by edges",
        paper=Range(100),
        lab=Range(100),
        laptop=None,
        why_not_laptop="ACDC by edges takes hours on a graph of 70,000 edges and two CPU cores",
    ),
    _claim(
        {"other senders": Range(0.8), "higher by": Range(0)},
        id="EA-6",
        statement="EAP's scores follow the exact effects, less well for edges from the input and the first MLP",
        paper_value="high for most edges, outliers at MLP 0 and embeddings (from memory)",
        where="results",
        measure="Pearson correlation of mean score and mean exact effect, edges drawn in strata of EAP's score and "
        "weighted back; edges from other senders, and how much higher that is than for the input and MLP 0",
        null="EAP's scores permuted among edges of the same layers",
        seen_before="the package's tests correlate EAP with exact effects on tiny random models",
    ),
    _claim(
        Range(hi=0.02),
        id="EA-7",
        statement="EAP's score is the gradient with respect to a mask on the edge",
        paper_value="equal",
        where="the code's tests",
        measure="largest difference of EAP from the central difference of exact effects for a tenth of the change of "
        "the message, a hundred edges, over the largest score",
        null="a positive control that must exceed it: the exact effect of the whole change",
        seen_before="the package's tests compare EAP with finite differences on tiny random models",
    ),
    _claim(
        _BETTER,
        id="EA-8",
        statement="circuits of EAP-IG are more faithful than EAP's of the same size",
        paper_value="direction",
        where="Hanna et al., arXiv:2403.17806",
        measure=_AREA.format("EAP-IG"),
        null=_TWO_HALVES,
    ),
    _claim(
        _BETTER,
        id="EA-W1",
        statement="so are circuits of GIM, at EAP's cost",
        paper_value="best of its benchmark",
        where="gim-explain, second-hand",
        measure=_AREA.format("GIM"),
        null=_TWO_HALVES,
    ),
    _claim(
        Range(0),
        id="EA-W2",
        statement="scored edges make a more faithful circuit than all edges between the heads found by hand",
        paper_value="—",
        where="own question",
        measure="faithfulness on other prompts of EAP-IG's best edges minus that of all edges between the input, the "
        "heads found by path patching, the MLPs and the logits, of which there are as many",
        null="random edges, as many from each layer to each, minus the same",
    ),
    _claim(
        {"kept": Range(hi=0.5), "lost": Range(hi=0.1)},
        id="EA-W3",
        statement="ACDC inside EAP's best edges halves a circuit at little cost",
        paper_value="EAP can prune the graph before ACDC",
        where="discussion",
        measure="share that ACDC keeps of EAP's best edges (0.7 % of the graph; 10 % at lab scale), loss minus the "
        "logit difference, threshold 0.1 % of m(M) − m(∅); faithfulness on other prompts that is lost",
        null="EAP's best edges cut to the same number by EAP's score: must lose more",
    ),
    _claim(
        Range(0.05),
        id="EA-W4",
        statement="gradients are blind where attention is saturated: on compiled programs ACDC does better",
        paper_value="compiled programs left out or reported apart (from memory)",
        where="own test",
        measure="pessimistic AUC over edges under resampling against the best minimal circuit, mean over programs: "
        "ACDC's minus EAP's",
        null="exact effects in place of EAP: must not be beaten",
    ),
    _claim(
        Range(1),
        id="AT-1",
        statement="AtP misses queries and keys that AtP* finds",
        paper_value="several of the largest nodes",
        where="abstract",
        measure="of the 50 queries and keys with the largest effects, how many AtP ranks more than ten times lower "
        "than they stand and AtP* does not, on IOI",
        null="AtP and AtP* exchanged",
    ),
    _claim(
        {
            "AtP* over AtP + QK fix": Range(hi=1),
            "AtP + QK fix over AtP": Range(hi=1),
            "AtP over subsampling": Range(hi=1),
        },
        id="AT-2",
        statement="each fix makes it cheaper to find the largest effects, and AtP is cheaper than subsampling",
        paper_value="AtP* ≤ AtP with the QK fix ≤ AtP < subsampling < one by one",
        where="§4",
        measure=_COST + " up to 100, queries, keys, values and head outputs of all positions, on IOI: ratios of the "
        "methods, each with the passes of its scores",
        null="nodes in random order over AtP: must not be cheaper",
    ),
    _claim(
        Range(0),
        id="AT-3",
        statement="GradDrop finds neurons whose paths cancel",
        paper_value="fewer false negatives among neurons",
        where="§4",
        measure="share of the 100 neurons with the largest effects among the best 100 by AtP with GradDrop, minus the "
        "same for AtP, on IOI; effects measured for the best 1000 of either and 2000 others",
        null="AtP's scores permuted over neurons, minus AtP's",
    ),
    _claim(
        {"forward": Range(hi=2), "backward": Range(hi=1), "GradDrop's": Range(hi=1)},
        id="AT-4",
        statement="AtP costs two forward passes and one backward pass, GradDrop at most one more for each layer",
        paper_value="2 forward, 1 backward; as many backward passes as layers",
        where="§3",
        measure="as EA-1; backward passes of GradDrop over layers",
        null="a positive control that must exceed it: exact effects of the queries of the first layer; for gradients, "
        "all backward passes of GradDrop together",
    ),
    _claim(
        Range(-0.6, -0.4),
        id="AT-5",
        statement="the bound on missed effects falls with the square root of the number of subsets",
        paper_value="∝ 1 / √m",
        where="§3, derived",
        measure="slope of the logarithm of the bound over that of the number of subsets, 100 to 1600, without the 500 "
        "nodes that AtP* ranks first",
        null="the same with all nodes in question",
    ),
    _claim(
        Range(hi=1e-4),
        id="AT-6",
        statement="the QK fix is exact where only one row of attention changes and all that follows is linear",
        paper_value="exact",
        where="derived",
        measure="largest difference from the exact effect, queries of a compiled head that looks for equal tokens, on "
        "all inputs",
        null="a positive control that must exceed it: AtP without the fix",
        seen_before="the package's tests compare the fix with patching on tiny models",
        revised=tuple(
            Revision("2026-11-29", scale, "the same bound, for queries of shift_by", _NO_QUERIES) for scale in _SCALES
        ),
    ),
    _claim(
        id="AT-7",
        statement="AtP* is not meant for whole streams",
        paper_value="a remark",
        where="scope",
        measure="—",
        null="—",
        paper=None,
        why_not_paper="a remark on scope, not a measurement",
        why_not_laptop="a remark on scope, not a measurement",
        why_not_lab="a remark on scope, not a measurement",
    ),
    _claim(
        Range(hi=0),
        id="AT-W1",
        statement="the bound on missed effects holds",
        paper_value="95 % for all nodes together",
        where="§3",
        measure="how many nodes beyond the first 500 of AtP* have a true contribution above their bound, with the "
        "largest number of subsets",
        null="a positive control that must exceed it: the estimate from subsets without its margin",
        revised=tuple(Revision("2026-11-29", scale, "at least 0.999", _ALL_NODES) for scale in _SCALES),
    ),
)
