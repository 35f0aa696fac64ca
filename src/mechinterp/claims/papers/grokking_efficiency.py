"""The claims of *Explaining grokking through circuit efficiency* (Varma et al., arXiv:2309.02390).

The base recipe and the Fourier circuit are those of Nanda et al. (arXiv:2301.05217). Networks are trained for the
chapter, so the paper's scale, p = 113, is real; lab scale is p = 53 with a network of half the width. Sizes of
training sets are given as a share of all p² pairs, so that the two can be compared.
"""

from mechinterp.claims.expectations import Range
from mechinterp.claims.statement import Claim

_PAIRS = 113**2

GROKKING_EFFICIENCY: tuple[Claim, ...] = (
    Claim(
        id="GR-1",
        statement="the training pairs are known early, the others long after",
        paper_value="test accuracy rises after 5k to 10k epochs",
        where="Nanda et al.",
        measure="median epoch of 99 % test accuracy, and how many times the epoch of 99 % train accuracy it is",
        paper={"grok": Range(3000, 20000), "delay": Range(3)},
        lab={"grok": Range(500, 10000), "delay": Range(3)},
    ),
    Claim(
        id="GR-2",
        statement="the network uses a few key frequencies",
        paper_value="5 of 56",
        where="Nanda et al.",
        measure="median number of frequencies that own neurons, over grokked networks",
        paper=Range(3, 8),
        lab=Range(2, 8),
    ),
    Claim(
        id="GR-3",
        statement="most neurons are of one frequency",
        paper_value="five clusters and an always-on one",
        where="Nanda et al.",
        measure="share of live neurons with more than 85 % of their variance in one frequency",
        paper=Range(0.7, 1),
        lab=Range(0.7, 1),
    ),
    Claim(
        id="GR-4",
        statement="without the key frequencies nothing is left",
        paper_value="chance, log 113 = 4.73 nats, or worse",
        where="Nanda et al.",
        measure="loss on all pairs with the key components of the logits taken away, nats",
        paper=Range(3),
        lab=Range(3),
    ),
    Claim(
        id="GR-5",
        statement="ungrokking: with too few examples a grokked network forgets",
        paper_value="test accuracy 0.7 at 800 to 1000 examples, 6 to 8 % of the pairs",
        where="p. 17",
        measure="examples kept at which the final test accuracy is 0.7, share of all pairs",
        paper=Range(round(500 / _PAIRS, 4), round(1500 / _PAIRS, 4)),
        lab=Range(round(500 / _PAIRS, 4), round(1500 / _PAIRS, 4)),
    ),
    Claim(
        id="GR-6",
        statement="semi-grokking: near the critical size, delayed generalisation stops half way",
        paper_value="test accuracy 0.7 at about 2000 examples, by seed",
        where="p. 17",
        measure="share of runs of the sweep that end between 0.2 and 0.9 test accuracy",
        paper=Range(0.05, 1),
        lab=Range(0.05, 1),
    ),
    Claim(
        id="GR-7",
        statement="a semi-grokked run can grok at last",
        paper_value="1532 examples: 0.55 from 0.8e7 to 1.8e7 epochs, then 1.0",
        where="Fig. 6",
        measure="longest plateau of middling test accuracy, epochs",
        paper=Range(1e6, 1e8),
        why_not_lab="takes tens of millions of epochs",
    ),
    Claim(
        id="GR-8",
        statement="the strength of weight decay does not move the ungrokked accuracy",
        paper_value="the curves overlap",
        where="Fig. 7",
        measure="largest difference of mean final test accuracy between weight decays, at the same size",
        paper=Range(0, 0.15),
        lab=Range(0, 0.15),
    ),
    Claim(
        id="GR-9",
        statement="memorising costs more with every example, generalising does not",
        paper_value="norm at fixed loss: one rises, one is flat",
        where="Fig. 3",
        measure="rank correlation of the memorising norm with the size; slope of the generalising norm in log size "
        "as a share of the memorising slope",
        paper={"memorising": Range(0.9, 1), "generalising": Range(-0.1, 0.1)},
        lab={"memorising": Range(0.9, 1), "generalising": Range(-0.1, 0.1)},
    ),
    Claim(
        id="GR-10",
        statement="generalising networks speak in functions of a + b − c",
        paper_value="> 95 % of the logit norm",
        where="§4",
        measure="share of the logits' energy in the trigonometric subspace, mean over networks with many examples",
        paper=Range(0.9, 1),
        lab=Range(0.9, 1),
    ),
    Claim(
        id="GR-11",
        statement="two circuits and an optimiser are enough to grok",
        paper_value="test loss peaks near 6.8 and falls below 0.1; the weights end at 8 to 1",
        where="§3, App. D",
        measure="peak and final test loss in nats, final ratio of the two weights",
        paper={"peak": Range(6.5, 7.1), "final": Range(0, 0.1), "ratio": Range(7.84, 8.16)},
        lab={"peak": Range(6.5, 7.1), "final": Range(0, 0.1), "ratio": Range(7.84, 8.16)},
    ),
    Claim(
        id="GR-W1",
        statement="both roads lead to one critical size",
        paper_value="the theory equates them; no number given",
        where="§4, own test",
        measure="D_crit by ungrokking (half accuracy) over D_crit by efficiency (equal norms)",
        paper=Range(0.5, 2),
        lab=Range(0.5, 2),
    ),
    Claim(
        id="GR-W2",
        statement="wrong labels move the critical size as the costs of the circuits say",
        paper_value="own question, asked before the runs",
        where="chapter",
        measure="D at half test accuracy with 10 % random labels, measured over predicted",
        paper=Range(0.75, 1.33),
        lab=Range(0.75, 1.33),
    ),
)
