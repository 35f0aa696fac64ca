"""The claims of *Interpretability in the Wild* (Wang et al., arXiv:2211.00593).

Expectations at paper scale are the paper's values with the tolerance that other prompts, other samples
and known re-implementations need. Expectations at lab scale say what the same phenomenon looks like in
a small model with a circuit of its own: heads are found there, never named beforehand, so a claim
about named heads becomes one about how many heads play the role and how strongly.

Expectations at laptop scale, for SmolLM2-135M, are the paper's statements about roles, for whatever heads play
them there: bounds on one side, shares of the logit difference in place of logits, no names. A head belongs to a
set if its effect is at least 2 % of the logit difference on one half of the prompts, with a Holm-corrected
interval; its estimates come from the other half. Orders and templates are reported before averages.

A chapter measures the same table at every scale; each scale bounds the rows that its paper or its model gives a
reason for. That, and the referee's findings, changed several expectations; `revised` says how.
"""

from mechinterp.claims.expectations import Includes, Range, SameSet, Size
from mechinterp.claims.statement import Claim, Revision, revised

NAME_MOVERS = ("9.9", "9.6", "10.0")
NEGATIVE_NAME_MOVERS = ("10.7", "11.10")
S_INHIBITION = ("7.3", "7.9", "8.6", "8.10")


ROWS = "The same bound, now on a row of the table that every scale measures"
CAP = "A cap of the search is not a finding: the upper bound could not fail"
SHARE = "A share of the logit difference, which differs between models, in place of logits"


def _around(value: float, tolerance: float) -> Range:
    return Range(round(value - tolerance, 6), round(value + tolerance, 6))


BEHAVIOUR = (
    Claim(
        id="IOI-1",
        statement="the model prefers the indirect object by a wide margin",
        paper_value="3.56 (Figure 8 prints 3.55)",
        where="§2",
        measure="mean logit difference, logit(IO) − logit(S)",
        paper=_around(3.56, 0.25),
        lab=Range(3.0),
        laptop=Range(2.0),
        null="every name in its prompt replaced at random (ABC): no preference is left",
        seen_before="forward passes made while choosing the model: 5.9 over 128 prompts",
        trained_for=True,
    ),
    Claim(
        id="IOI-2",
        statement="the model prefers the indirect object to the subject",
        paper_value="99.3 %",
        where="§2",
        measure="share of prompts with logit(IO) > logit(S)",
        paper=Range(0.985, 1),
        lab=Range(0.95, 1),
        laptop=Range(0.95, 1),
        null="ABC prompts: one half",
        seen_before="forward passes made while choosing the model: 98 % of 128 prompts",
        trained_for=True,
    ),
    Claim(
        id="IOI-3",
        statement="the indirect object is the likeliest continuation by far",
        paper_value="0.49",
        where="§2",
        measure="mean probability of the IO name",
        paper=_around(0.49, 0.05),
        lab=Range(0.4, 1),
        laptop=Range(0.4, 1),
        null="the same name on ABC prompts",
        seen_before="forward passes made while choosing the model: 0.91 on one prompt",
        trained_for=True,
    ),
)

NAME_MOVER_CLAIMS = (
    Claim(
        id="IOI-4",
        statement="a few late heads write the answer straight into the logits, and a few write against it",
        paper_value="9.9, 9.6, 10.0 for it; 10.7, 11.10 against it",
        where="Fig. 3b",
        measure="path patching of every head to the logits; sign of the change and the five largest",
        paper={"for": SameSet(NAME_MOVERS), "against": SameSet(NEGATIVE_NAME_MOVERS)},
        lab={"for": Size(1), "against": Size(1)},
        laptop={"for": Size(1), "against": Size(1)},
        null="paths patched from prompts that differ in place and object only: no head may pass",
        revised=revised(CAP, lab="for: 1 to 6 heads; against: at most 4 heads"),
    ),
    Claim(
        id="IOI-5",
        statement="name movers attend from the end to the indirect object",
        paper_value="0.59",
        where="§3.1",
        measure="attention END→IO, mean of the name movers",
        paper={"IO": _around(0.59, 0.06)},
        # Whichever name comes first: a head that looks at the first name, or the last, is no name mover.
        lab={"IO": Range(0.4, 1), "IO − S1, IO first": Range(0.1), "IO − S1, S first": Range(0.1)},
        laptop={"IO": Range(0.3, 1), "IO − S1, IO first": Range(0.1), "IO − S1, S first": Range(0.1)},
        null="the other heads of the same layers, and the same number of heads with the largest attention to any name",
        revised=(
            *revised(ROWS, paper="0.53 to 0.65"),
            *revised("An average of both orders hid a head that copies the first name", lab="0.4 to 1"),
        ),
    ),
    Claim(
        id="IOI-6",
        statement="the more a name mover attends to a name, the more it writes in that name's direction",
        paper_value="> 0.81 (N = 500)",
        where="Fig. 3c",
        measure="Pearson correlation of attention and head output · W_U[name], smallest over the name movers",
        paper=Range(0.75, 1),
        lab=Range(0.75, 1),
        laptop=Range(0.6, 1),
        null="the same head with attention and output of different prompts; the other heads of its layer",
    ),
    Claim(
        id="IOI-7",
        statement="name movers copy the name they attend to, other heads do not",
        paper_value="> 95 % each; < 20 % for the average head",
        where="§3.1",
        measure="copy score, top 5: smallest of the name movers, mean of all heads",
        paper={"name movers": Range(0.9, 1), "average head": Range(0, 0.25)},
        # A model with 40 heads averages over fewer idle ones.
        lab={"name movers": Range(0.9, 1), "average head": Range(0, 0.35)},
        laptop={"name movers": Range(0.8, 1), "average head": Range(0, 0.35)},
        null="the other heads of the same layers, as a distribution",
    ),
    Claim(
        id="IOI-8",
        statement="negative name movers copy with the sign turned",
        paper_value="98 %; 12 % for the average head",
        where="§3.1",
        measure="negative copy score (−W_OV), top 5: mean of the negative name movers, mean of all heads",
        paper={"negative name movers": Range(0.9, 1), "average head": Range(0, 0.2)},
        lab={"negative name movers": Range(0.8, 1), "average head": Range(0, 0.35)},
        laptop={"negative name movers": Range(0.7, 1), "average head": Range(0, 0.35)},
        null="the other heads of the same layers, as a distribution",
    ),
)

INHIBITION_CLAIMS = (
    Claim(
        id="IOI-9",
        statement="a few earlier heads move the name movers' queries",
        paper_value="7.3, 7.9, 8.6, 8.10",
        where="Fig. 4b",
        measure="path patching of every head to the name movers' queries; heads with the largest effect",
        paper=SameSet(S_INHIBITION),
        lab=Size(1),
        laptop=Size(1),
        null="paths patched from prompts that differ in place and object only; queries of late heads that move no name",
        revised=revised(CAP, lab="1 to 8 heads"),
    ),
    Claim(
        id="IOI-10",
        statement="S-inhibition heads attend from the end to the second mention of the subject",
        paper_value="0.51",
        where="§3.2",
        measure="attention END→S2, mean of the S-inhibition heads",
        paper={"S2": _around(0.51, 0.06)},
        lab={"S2": Range(0.3, 1), "S2 − IO": Range(0.0)},
        laptop={"S2": Range(0.2, 1), "S2 − IO": Range(0.0)},
        null="the other heads of the same layers",
        revised=revised(ROWS, lab="0.3 to 1", paper="0.45 to 0.57"),
    ),
    Claim(
        id="IOI-11",
        statement="duplicate-token and induction heads supply the S-inhibition heads' values",
        paper_value="0.1, 3.0, 5.5, 6.9",
        where="Fig. 5b",
        measure="path patching of every head at S2 to the S-inhibition heads' values; heads with the largest effect",
        paper=SameSet(["0.1", "3.0", "5.5", "6.9"]),
        lab=Size(1),
        laptop=Size(1),
        null="the same receivers at S2 − 1; values of other heads of the same layers",
        revised=revised(CAP, lab="1 to 6 heads"),
    ),
    Claim(
        id="IOI-12",
        statement="S-inhibition outputs carry where the duplicate stood and, less, which name it was",
        paper_value="3.55 / −0.99; 2.45 / −1.96; 1.77 / −3.16",
        where="Fig. 9",
        measure="logit difference with S-inhibition outputs from six datasets (token signal / position signal)",
        paper={
            "token original, position original": _around(3.55, 0.5),
            "token original, position inverted": _around(-0.99, 0.5),
            "token random, position original": _around(2.45, 0.5),
            "token random, position inverted": _around(-1.96, 0.5),
            "token inverted, position original": _around(1.77, 0.5),
            "token inverted, position inverted": _around(-3.16, 0.5),
            # 3.55 + 0.99 and 3.55 - 2.45 of 3.55, each logit difference ± 0.5.
            "share of LD lost with the position": _around(1.28, 0.28),
            "share of LD lost with the token": _around(0.31, 0.28),
        },
        # That the position counts, and more than the token, is the claim.
        lab={
            "token original, position original": Range(3.0),
            "token inverted, position inverted": Range(hi=0),
            "share of LD lost with the position": Range(0.5),
            "share of LD lost with the token": Range(hi=0.5),
        },
        laptop={
            "share of LD lost with the position": Range(0.3),
            "position − token": Range(0.0),
        },
        null="the same patches of as many other heads of the same layers",
        revised=(
            Revision(
                "2026-11-28",
                "paper",
                "token original, position original: 3.05 to 4.05; "
                "token original, position inverted: −1.49 to −0.49; "
                "token random, position original: 1.95 to 2.95; "
                "token random, position inverted: −2.46 to −1.46; "
                "token inverted, position original: 1.27 to 2.27; "
                "token inverted, position inverted: −3.66 to −2.66",
                "The null is measured on the shares of the logit difference: the paper's own, from the same cells",
            ),
        ),
    ),
    Claim(
        id="IOI-13",
        statement="the two signals add up",
        paper_value="LD ≈ 2.31·S_pos + 0.99·S_tok; mean error 7 % of the baseline",
        where="App. A",
        measure="least squares on the six cells; coefficients and mean absolute error over the intact logit difference",
        # 2.31 and 0.99 of 3.55, each ± 0.4.
        paper={"position": _around(0.65, 0.11), "token": _around(0.28, 0.11), "error": Range(0, 0.15)},
        # Nothing adds up with nothing: each signal must carry a tenth of the logit difference.
        lab={"position": Range(0.1), "token": Range(0.1), "error": Range(0, 0.2)},
        laptop={"position": Range(0.1), "token": Range(0.1), "error": Range(0, 0.15)},
        null="six cells permuted at random",
        revised=(
            *revised("One signal adds up with nothing: both must be there", lab="error: 0 to 0.2"),
            *revised(SHARE, paper="position: 1.91 to 2.71; token: 0.59 to 1.39; error: 0 to 0.15"),
        ),
    ),
    Claim(
        id="IOI-14",
        statement="what the S-inhibition heads know about position comes from induction and duplicate-token heads",
        paper_value="≥ 88 % of the drop; < 8 % for another name in the same position",
        where="§3.3",
        measure="drop by patching induction and duplicate-token heads over drop by patching S-inhibition outputs",
        paper={"position inverted": Range(0.75), "token random": Range(hi=0.15)},
        # A model that leans on the token signal may fail the second row; the first must hold.
        lab={"position inverted": Range(0.6), "token random": Range(hi=0.3)},
        laptop={"position inverted": Range(0.5), "token random": Range(hi=0.3)},
        null="as many other heads of the same layers, patched at S2",
    ),
)

CIRCUIT_CLAIMS = (
    Claim(
        id="IOI-15",
        statement="without the name movers the model hardly suffers: backup heads take over",
        paper_value="about 5 %",
        where="§3.4",
        measure="relative drop of the logit difference with the name movers mean-ablated",
        paper={"drop": Range(0, 0.15)},
        lab={"drop": Range(hi=0.15), "drop over direct effect": Range(hi=0.5)},
        laptop={"drop": Range(hi=0.3), "drop over direct effect": Range(hi=0.5)},
        null="a positive control that must cost more: the S-inhibition heads, as many",
        revised=(
            *revised(ROWS, paper="0 to 0.15"),
            *revised(
                "A drop that is small because the heads write little is no self-repair; a gain is no failure",
                lab="0 to 0.15",
            ),
        ),
    ),
    Claim(
        id="IOI-16",
        statement="the circuit alone does what the model does",
        paper_value="87 % (0.46 of 3.56 missing)",
        where="§4",
        measure="F(C) / F(M), everything outside the circuit mean-ablated",
        paper={"recovered": Range(0.75, 1.05)},
        lab={
            "recovered": Range(0.75, 1.05),
            "recovered, IO first": Range(0.6, 1.4),
            "recovered, S first": Range(0.6, 1.4),
            "mean absolute difference": Range(0, 0.4),
        },
        # Shares of F(M). Errors of opposite sign must not cancel: by order, and prompt by prompt.
        laptop={
            "recovered": Range(0.7, 1.3),
            "recovered, IO first": Range(0.6, 1.4),
            "recovered, S first": Range(0.6, 1.4),
            "mean absolute difference": Range(0, 0.4),
        },
        null="circuits of as many random heads at the same positions and layers",
        revised=(
            *revised(ROWS, paper="0.75 to 1.05"),
            *revised("Errors of opposite sign cancel in the mean over both orders", lab="0.75 to 1.05"),
        ),
    ),
    Claim(
        id="IOI-17",
        statement="the naive circuit, without backup and negative heads, is as faithful",
        paper_value="0.1",
        where="§4.3",
        measure="|F(M) − F(naive circuit)| / F(M)",
        paper=Range(0, 0.14),
        lab=Range(0, 0.14),
        laptop=Range(0, 0.3),
        null="the circuit without as many random heads",
        revised=revised(SHARE, lab="0 to 1", paper="0 to 0.5"),
    ),
    Claim(
        id="IOI-18",
        statement="a greedy search finds knock-outs under which circuit and model part: the circuit is incomplete",
        paper_value="3.09 (87 % of the logit difference)",
        where="§4.1",
        measure="largest |F(C\\K) − F(M\\K)| / F(M) over greedy K, on prompts that the search has not seen",
        paper=Range(0.56),
        lab=Range(0.5),
        laptop=Range(0.5),
        null="the empty set, and as many random sets of the same sizes, on the same held-out prompts",
        revised=revised(SHARE, lab="at least 1.5", paper="at least 2"),
    ),
    Claim(
        id="IOI-19",
        statement="every head of the circuit matters in some context",
        paper_value="≥ 1 % of F(M) each",
        where="Fig. 7",
        measure="smallest |F(C\\(K∪{v})) − F(C\\K)| / F(M) over the circuit's heads v",
        paper=Range(0.005),
        lab=Range(0.005),
        laptop=Range(0.005),
        null="a random head outside the circuit, added at the same positions beside the same K",
    ),
    Claim(
        id="IOI-20",
        statement="a second mention of the indirect object fools the model; a third of the subject does not",
        paper_value="LD 3.55 / 3.64 / 1.23; P(IO) 0.49 / 0.59 / 0.36; S > IO 0.7 / 0.4 / 23.4 %",
        where="Fig. 8",
        measure="plain prompts / with an inserted sentence about S / about IO",
        paper={
            "LD plain": _around(3.55, 0.4),
            "LD with S": _around(3.64, 0.4),
            "LD with IO": _around(1.23, 0.4),
            "P(IO) plain": _around(0.49, 0.07),
            "P(IO) with S": _around(0.59, 0.07),
            "P(IO) with IO": _around(0.36, 0.07),
            "S > IO plain": Range(0, 0.02),
            "S > IO with S": Range(0, 0.02),
            "S > IO with IO": _around(0.234, 0.07),
            "share of LD lost with IO": _around(0.65, 0.12),
        },
        # A mechanism that looks for duplicates must be confused by a duplicated IO and by nothing else.
        lab={
            "LD plain": Range(3.0),
            "LD with S": Range(2.0),
            "P(IO) plain": Range(0.4, 1),
            "P(IO) with S": Range(0.3, 1),
            "P(IO) with IO": Range(0, 0.7),
            "S > IO plain": Range(0, 0.05),
            "S > IO with S": Range(0, 0.1),
            "S > IO with IO": Range(0.05, 1),
            "share of LD lost with IO": Range(0.3),
        },
        laptop={
            "share of LD lost with IO": Range(0.3),
            "share of LD lost with S": Range(hi=0.15),
            "S > IO with IO − plain": Range(0.02),
        },
        null="an inserted sentence about a third person",
    ),
    Claim(
        id="IOI-21",
        statement="without the first MLP, or without all the others, the preference turns round",
        paper_value="without MLP 0 the sign flips; without all the others −1.1",
        where="App. J",
        measure="logit difference with MLP 0, and with every MLP but it, mean-ablated, over the intact one",
        paper={"MLP 0 out": Range(hi=0), "all but MLP 0 out": Range(hi=0)},
        lab={"MLP 0 out": Range(hi=0.5), "all but MLP 0 out": Range(hi=0.5)},
        laptop={"MLP 0 out": Range(hi=0.5), "all but MLP 0 out": Range(hi=0.5)},
        null="every other single MLP, mean-ablated",
        revised=revised(SHARE, lab="MLP 0 out: at most 1.5; all but MLP 0 out: at most 1.5"),
    ),
    Claim(
        id="IOI-22",
        statement="S-inhibition outputs carry relative, not absolute, positions",
        paper_value="3.56 → 3.57",
        where="App. A",
        measure="relative change of the logit difference with S-inhibition outputs from the same prompt after a prefix",
        paper=_around(0.0, 0.056),
        lab=Range(-0.1, 0.1),
        laptop=Range(-0.1, 0.1),
        null="a positive control that must fail it: the outputs of a prompt with the other order",
        revised=revised(SHARE, lab="−0.5 to 0.5", paper="−0.2 to 0.2"),
    ),
    Claim(
        id="IOI-23",
        statement="the heads do on random repeated tokens what their names say",
        paper_value="2.2, 4.11 lead; 5.5, 6.9 in the top 5; 0.1, 3.0 in the top 3",
        where="App. H, I",
        measure="previous-token (top 2), induction (top 5), duplicate-token (top 3) heads and best scores, random AA",
        paper={
            "previous token": SameSet(["2.2", "4.11"]),
            "induction": Includes(["5.5", "6.9"]),
            "duplicate token": Includes(["0.1", "3.0"]),
            "previous-token score": Range(0.4, 1),
            "induction score": Range(0.4, 1),
            "duplicate-token score": Range(0.4, 1),
        },
        # Which heads is the model's own affair; that heads of each kind exist is the claim.
        lab={
            "previous token": Size(1),
            "induction": Size(1),
            "duplicate token": Size(1),
            "previous-token score": Range(0.4, 1),
            "induction score": Range(0.4, 1),
            "duplicate-token score": Range(0.4, 1),
        },
        laptop={
            "previous token": Size(1),
            "induction": Size(1),
            "duplicate token": Size(1),
            "previous-token score": Range(0.4, 1),
            "induction score": Range(0.4, 1),
            "duplicate-token score": Range(0.4, 1),
        },
        null="the same scores on random tokens that are not repeated",
    ),
)


def _composition(number: int, kind: str, senders: str, receivers: str) -> Claim:
    """An edge of Figure 2 as composition of weights would show it; the paper gives no number for it."""
    return Claim(
        id=f"IOI-W{number}",
        statement=f"{senders} lead the {kind}-composition into the {receivers}, by weights alone",
        paper_value="an edge of the circuit, no number",
        where="Fig. 2",
        measure=f"share of the {receivers} whose strongest earlier {kind}-composer is one of the {senders}",
        paper=Range(0.5, 1),
        lab=Range(0.5, 1),
        laptop=Range(0.5, 1),
        null="as many random heads of the same layers; an exact p-value over all readers decides",
    )


WEIGHT_CLAIMS = (
    _composition(1, "K", "previous-token heads", "induction heads"),
    _composition(2, "Q", "S-inhibition heads", "name movers"),
    _composition(3, "Q", "S-inhibition heads", "negative name movers"),
    _composition(4, "V", "duplicate-token and induction heads", "S-inhibition heads"),
)

OWN_QUESTIONS = (
    Claim(
        id="IOI-W5",
        statement="heads that share keys and values share a role",
        paper_value="own question, asked before the run",
        where="GPT-2 has no shared keys",
        measure="mean difference between two heads of a group over that between groups of the layer: attention from "
        "END to the names, direct effect",
        paper=None,
        why_not_paper="every head of GPT-2 has keys of its own",
        why_not_lab="every head of the lab model has keys of its own",
        laptop={"attention": Range(0, 0.9), "direct effect": Range(0, 0.9)},
        null="heads dealt to the groups of their layer at random",
    ),
    Claim(
        id="IOI-W6",
        statement="the circuit does not depend on the rounding of the weights to four bits",
        paper_value="own question, asked before the run",
        where="GPT-2 is not quantised",
        measure="every four-bit weight moved at random within its rounding cell: correlation of all direct effects "
        "with the model's own, and relative change of the logit difference",
        paper=None,
        why_not_paper="GPT-2's weights are not quantised",
        why_not_lab="the lab model's weights are not quantised",
        laptop={"correlation": Range(0.9, 1), "change": Range(-0.1, 0.1)},
        null="a positive control that must fail it: cells four times as wide, as two bits would have",
    ),
)

IOI: tuple[Claim, ...] = (
    *BEHAVIOUR,
    *NAME_MOVER_CLAIMS,
    *INHIBITION_CLAIMS,
    *CIRCUIT_CLAIMS,
    *WEIGHT_CLAIMS,
    *OWN_QUESTIONS,
)
"""The paper's 23 claims in its order, four edges of its circuit tested on weights alone, two questions of our own."""
