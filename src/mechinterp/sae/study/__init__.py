"""SAEs compared: long runs, frontiers, the blind study, and data whose features are known.

The closed forms of one latent in one dimension are in `toy`.
"""

from mechinterp.sae.study.frontier import Costs, Curve, by_seed, common, costs, curve, rescale_and_shift
from mechinterp.sae.study.plans import PLANS, Plan, Sweep, sweep
from mechinterp.sae.study.rules import Rule, Search, apply_rules, contexts
from mechinterp.sae.study.scorer import Explanation, Scores, Study, explain, measures, odds_ratio, study
from mechinterp.sae.study.sweeps import Measured, export, live, measured, run_sweep, summary
from mechinterp.sae.study.synthetic import (
    Recovery,
    Shrinkage,
    Truth,
    chance_mmcs,
    recovery,
    sample,
    shrinkage_by_feature,
    truth,
)

__all__ = [
    "PLANS",
    "Costs",
    "Curve",
    "Explanation",
    "Measured",
    "Plan",
    "Recovery",
    "Rule",
    "Scores",
    "Search",
    "Shrinkage",
    "Study",
    "Sweep",
    "Truth",
    "apply_rules",
    "by_seed",
    "chance_mmcs",
    "common",
    "contexts",
    "costs",
    "curve",
    "explain",
    "export",
    "live",
    "measured",
    "measures",
    "odds_ratio",
    "recovery",
    "rescale_and_shift",
    "run_sweep",
    "sample",
    "shrinkage_by_feature",
    "study",
    "summary",
    "sweep",
    "truth",
]
