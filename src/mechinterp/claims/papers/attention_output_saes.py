"""The claims of *Interpreting attention layer outputs with sparse autoencoders* (Kissane et al., arXiv:2406.17759).

The lab's heads are chosen by rule where the paper names heads 5.1 and 5.5: of the heads that do induction with a long
prefix, the one that needs the prefix most and the one that needs it least.
"""

from mechinterp.claims.expectations import Range
from mechinterp.claims.statement import Claim

ATTENTION_OUTPUT_SAES: tuple[Claim, ...] = (
    Claim(
        id="A1",
        statement="a few latents a token carry most of what every attention layer says",
        paper_value="L0 3 to 23, 76 to 99 % of the loss recovered, by layer",
        where="Table 1",
        measure="over all layers, the largest L0 and the smallest share of loss recovered against zero ablation",
        paper={"largest L0": Range(0, 27), "least recovered": Range(0.72, 1)},
        lab={"largest L0": Range(0, 27), "least recovered": Range(0.72, 1)},
        unverified=True,
    ),
    Claim(
        id="A2",
        statement="nearly all heads serve several unrelated features",
        paper_value="130 of 144 heads",
        where="§4.1",
        measure="share of heads whose ten features of largest decoder share have no common role or theme, by rule",
        paper=Range(0.8, 1),
        lab=Range(0.8, 1),
    ),
    Claim(
        id="A3",
        statement="one induction head needs a long matching prefix",
        paper_value="attention below 0.3 at one token, above 0.7 at many (head 5.1)",
        where="Fig. 5a",
        measure="attention to the token after the earlier copy, by length of the copied prefix",
        paper={"one token": Range(0, 0.4), "nine tokens": Range(0.6, 1)},
        lab={"one token": Range(0, 0.4), "nine tokens": Range(0.6, 1)},
    ),
    Claim(
        id="A4",
        statement="another one is content with one token",
        paper_value="about 0.7 at one token (head 5.5)",
        where="Fig. 5a",
        measure="attention to the token after the earlier copy of a single token",
        paper=Range(0.6, 0.8),
        lab=Range(0.6, 1),
    ),
    Claim(
        id="A5",
        statement="on real text, a broken prefix stops the long-prefix head",
        paper_value="attention 0.55, then 0.05 (head 5.1)",
        where="Fig. 5b",
        measure="mean attention to the induction source before and after the second token back is made random",
        paper={"before": Range(0.45, 0.65), "after": Range(0, 0.15)},
        lab={"before": Range(0.3, 1), "after": Range(0, 0.15)},
    ),
    Claim(
        id="A6",
        statement="the same break leaves the short-prefix head alone",
        paper_value="0.43 after it (head 5.5)",
        where="Fig. 5b",
        measure="mean attention to the induction source after the break",
        paper=Range(0.33, 0.53),
        lab=Range(0.33, 1),
    ),
    Claim(
        id="A7",
        statement="IOI survives other names and another opening, as long as the order around ' and' is kept",
        paper_value="93 % of the logit difference",
        where="Fig. 6",
        measure="share left with the attention output of two layers at S2 from such prompts; the layers by a patch",
        paper=Range(0.86, 1),
        lab=Range(0.86, 1.05),
    ),
    Claim(
        id="A8",
        statement="IOI suffers when only ' and' is another word",
        paper_value="43 % of the logit difference",
        where="Fig. 6",
        measure="share left with the attention output of the same two layers at S2 from prompts without ' and'",
        paper=Range(0.33, 0.53),
        lab=Range(0.33, 0.53),
    ),
    Claim(
        id="A9",
        statement="an induction feature means induction where it is strong",
        paper_value="high above weak activations ('board' feature of GELU-2L)",
        where="Fig. 2",
        measure="share of a feature's strongest and weakest tenth where its top token followed last time; best feature",
        paper={"strong": Range(0.5, 1), "strong - weak": Range(0.1, 1)},
        lab={"strong": Range(0.5, 1), "strong - weak": Range(0.1, 1)},
    ),
    Claim(
        id="A10",
        statement="one head matters to two unrelated tasks",
        paper_value="both suffer from the ablation of head 10.2",
        where="§4.1",
        measure="rise of the loss on each of two tasks when one head is mean-ablated, nats",
        paper={"first": Range(0.05), "second": Range(0.05)},
        lab={"first": Range(0.05), "second": Range(0.05)},
    ),
    Claim(
        id="A-W1",
        statement="terms of a recursive attribution add up to the feature's pre-activation",
        paper_value="not stated; exact by construction with frozen patterns and scales",
        where="App.",
        measure="largest error of the sum over the features explained, relative to the pre-activation",
        paper=Range(0, 1e-3),
        lab=Range(0, 1e-3),
    ),
)
