"""The claims of *Towards Automated Circuit Discovery* (Conmy et al., arXiv:2304.14997).

The paper searches GPT-2 small, two attention-only models and two compiled programs, and holds the result against
circuits that people had found. Here the compiled programs come first, since only their circuits are known for certain;
then indirect object identification in a whole language model, where the reference is chapter 1's path patching by the
same rules on other prompts. Values of the paper are second-hand.
"""

from functools import partial

from mechinterp.claims.expectations import Range
from mechinterp.claims.statement import Claim

_claim = partial(Claim, unverified=True)


def _near(value: float, by: float) -> Range:
    return Range(round(value - by, 6), round(value + by, 6))


_TASK = "needs the data and the hand-made circuit of greater-than, which the package does not have"
_EXACT = {"reverse": Range(0.98), "frac_prevs": Range(0.98)}
_THEIRS = {"reverse": _near(0.2, 0.1), "frac_prevs": _near(0.679, 0.1)}
_SMALL = {"share of edges": Range(hi=0.05), "recovered": Range(0.5, 1.2)}
_LOST = {"kept of those against": Range(hi=0.34), "kept of those for": Range(0.5)}

ACDC: tuple[Claim, ...] = (
    _claim(
        id="AC-1",
        statement="ACDC finds greater-than in GPT-2 small with a few edges",
        paper_value="68 of 32,000 edges, all five types of components",
        where="abstract, Appendix G",
        measure="edges kept",
        null="edges kept in a network whose parameters are permuted",
        paper=None,
        why_not_paper=_TASK,
        why_not_laptop=_TASK,
        why_not_lab=_TASK,
    ),
    _claim(
        id="AC-3",
        statement="the hand-made circuit of greater-than is faithful",
        paper_value="KL divergence 0.078; 72 % against 84 %",
        where="Appendix G",
        measure="KL divergence from the full model",
        null="random edges of the same number and layers",
        paper=None,
        why_not_paper=_TASK,
        why_not_laptop=_TASK,
        why_not_lab=_TASK,
    ),
    _claim(
        id="AC-4",
        statement="ACDC finds the heads that people found",
        paper_value="AUC over edges 0.869 (IOI), 0.853 (greater-than), 0.982 (docstring); over nodes 0.873 (IOI)",
        where="Table 2; the code's tables",
        measure="pessimistic AUC over heads for falling thresholds, KL divergence, resampling, against the heads whose "
        "paths to the logits or to those heads matter, found on other prompts",
        null="heads of each layer in a random order",
        paper=Range(0.7),
        laptop=Range(0.7),
        lab=Range(0.7),
    ),
    _claim(
        id="AC-5",
        statement="under resampling, compiled programs come out wrong against the circuit of their whole computation",
        paper_value="AUC over edges 0.200 (reverse), 0.679 (proportion)",
        where="Table 2",
        measure="pessimistic AUC over edges for falling thresholds, squared error of the output, against the circuit "
        "under zero ablation",
        null="a positive control that must exceed it: the same edges against the circuit under resampling",
        paper=dict(_THEIRS),
        laptop=dict(_THEIRS),
        lab=dict(_THEIRS),
        seen_before="the package's tests run ACDC on these programs, without an AUC",
    ),
    _claim(
        id="AC-6",
        statement="zero ablation makes ACDC worse on a real task",
        paper_value="IOI 0.539 against 0.869",
        where="Table 3",
        measure="AUC over heads as in AC-4 under zero ablation, minus that under resampling",
        null="heads of each layer in a random order, minus the same: must be below it",
        paper=Range(hi=-0.05),
        laptop=Range(hi=-0.05),
        lab=Range(hi=-0.05),
    ),
    _claim(
        id="AC-7",
        statement="under zero ablation ACDC recovers compiled programs exactly",
        paper_value="AUC over edges 1.000 (reverse), 1.000 (proportion)",
        where="Table 3",
        measure="pessimistic AUC over edges for falling thresholds, squared error of the output, against the circuit "
        "under zero ablation",
        null="edges in a random order",
        paper=dict(_EXACT),
        laptop=dict(_EXACT),
        lab=dict(_EXACT),
        seen_before="a test runs ACDC on reverse under zero ablation at one threshold, and finds its circuit",
    ),
    _claim(
        id="AC-9",
        statement="heads that work against the task are lost at moderate thresholds",
        paper_value="10.7 and 11.10 absent at moderate thresholds, present at small ones",
        where="Appendix F",
        measure="share kept of heads that write against the answer and of those that write for it, minus the logit "
        "difference as loss, at the largest threshold that keeps half of the logit difference",
        null="absolute changes of the loss in place of signed ones, at the same threshold: keeps those against",
        paper=dict(_LOST),
        laptop=dict(_LOST),
        lab=dict(_LOST),
    ),
    _claim(
        id="AC-10",
        statement="what ACDC finds depends on the order of the edges",
        paper_value="the induction circuit depends on the order of the heads",
        where="Appendix J",
        measure="Jaccard overlap of the edges kept in two random orders of one threshold, mean over pairs of orders",
        null="a positive control that must exceed it: the same order on two halves of the prompts",
        paper=Range(hi=0.9),
        laptop=Range(hi=0.9),
        lab=Range(hi=0.9),
    ),
    _claim(
        id="AC-11",
        statement="of an OR gate ACDC keeps one input",
        paper_value="all three methods fail in some setting",
        where="Appendix M",
        measure="inputs of the gate, of two, whose edges are kept under resampling from inputs on which neither is on",
        null="the same program with an AND gate, of which both are needed",
        paper=_near(1, 0),
        laptop=_near(1, 0),
        lab=_near(1, 0),
    ),
    _claim(
        id="AC-W1",
        statement="against the circuit that holds under the same ablation ACDC is right on every program",
        paper_value="—",
        where="own test",
        measure="edge AUC, mean over programs and the two ablations (resample, zero), against the best minimal circuit",
        null="edges in a random order",
        paper=Range(0.95),
        laptop=Range(0.95),
        lab=Range(0.95),
    ),
    _claim(
        id="AC-W2",
        statement="a few edges carry the task",
        paper_value="68 of 32,000 edges of greater-than",
        where="abstract, transferred to IOI",
        measure="share of the graph's edges in the smallest circuit of the sweep that recovers half of the logit "
        "difference on the prompts of the search, and what it recovers on other prompts",
        null="random edges, as many from each layer to each",
        paper=dict(_SMALL),
        laptop=dict(_SMALL),
        lab=dict(_SMALL),
    ),
    _claim(
        id="AC-W3",
        statement="in a reset network no small circuit holds",
        paper_value="a good method should not find low-divergence circuits in a network with permuted parameters",
        where="§4, control",
        measure="edges kept at a threshold that is the same share of the divergence of the empty circuit, in the model "
        "over in the same model with the entries of each weight matrix permuted",
        null="a second permutation over the first: must not be below it",
        paper=Range(hi=0.5),
        laptop=Range(hi=0.5),
        lab=Range(hi=0.5),
    ),
    _claim(
        id="AC-W4",
        statement="the threshold decides what a circuit is: half the threshold gives another one",
        paper_value="—",
        where="own question",
        measure="Jaccard overlap of the edges kept at a threshold and at half of it, mean over the sweep",
        null="a positive control that must exceed it: the same threshold with two halves of the prompts",
        paper=Range(hi=0.7),
        laptop=Range(hi=0.7),
        lab=Range(hi=0.7),
    ),
)
