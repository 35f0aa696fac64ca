"""The claims of *Stealing Part of a Production Language Model* (Carlini et al., arXiv:2403.06634).

The paper attacks other people's models; here only models are attacked that the chapter serves itself, so that the true
width, projection and logits are known. Values of the paper are second-hand.
"""

from typing import Any

from mechinterp.claims.expectations import Range
from mechinterp.claims.statement import Claim


def _claim(expected: Any = None, **told: Any) -> Claim:
    """With the same expectation at every scale, if one is given.

    Bits of precision hang on how the last decimals round, which single precision decides, hence `drift`: three times or
    more what a run without vector instructions differed by.
    """
    same = {} if expected is None else dict.fromkeys(("paper", "laptop", "lab"), expected)
    return Claim(unverified=True, **same, **told)


_TRIAL = "a trial of the attacks on normally distributed logits, not on a model's: {}"
_PRICE = (
    "log-probabilities of seven decimals, 1,000 random tokens, twelve prompts of the chapter's model (three in the "
    "first run, whose intervals were too wide to decide MS-7)"
)

MODEL_STEALING: tuple[Claim, ...] = (
    _claim(
        {"error": Range(-1, 1), "ratio": Range(2)},
        id="MS-1",
        statement="logits give away the width of a model",
        paper_value="768 for GPT-2 small, computed in float64",
        where="Table 2, Appendix A",
        measure="dimensions before the largest gap of the singular values, minus d_model, and the ratio at the gap; "
        "twice d_model random prompts, 1,000 random tokens or the whole vocabulary, the output projection in float64",
        null="normally distributed logits of the same shape: largest ratio",
    ),
    _claim(
        Range(0.97, 1),
        id="MS-2",
        statement="in single precision a few dimensions drown in rounding",
        paper_value="757 of 768 for GPT-2 small",
        where="Table 2",
        measure="dimensions found over d_model, as MS-1 with all in float32",
        null="log-probabilities rounded to one decimal: must lie outside",
    ),
    _claim(
        id="MS-3",
        statement="the width of Pythia",
        paper_value="2047 of 2048",
        where="Table 2",
        measure="as MS-1",
        null="as MS-1",
        paper=None,
        why_not_paper="the chapter's model is GPT-2 small",
        why_not_laptop="SmolLM2's width is MS-1",
        why_not_lab="the lab model's width is MS-1",
    ),
    Claim(
        id="MS-4",
        statement="logits give away the output projection, up to a linear map",
        paper_value="root mean square error 3e-5 to 8e-4, against 2e-2 for a random matrix",
        where="results",
        measure="root mean square error of the projection after the best linear map, as a share of that of a random "
        "matrix of its shape; float32, the tokens and prompts of MS-2; in the paper's model also as it is",
        null="a random matrix, against another one",
        paper={"share": Range(hi=0.05), "rms": Range(hi=1e-3)},
        laptop={"share": Range(hi=0.05)},
        lab={"share": Range(hi=0.05)},
        unverified=True,
    ),
    _claim(
        {"layer norm": Range(10)},
        id="MS-5",
        statement="taking off the mean over prompts costs a layer norm a dimension, and an RMS norm none",
        paper_value="the last value drops for a layer norm only",
        where="appendix",
        measure="last of the d singular values over the same one without the mean over prompts; models of 64 "
        "dimensions with random streams, a layer norm with a bias",
        null="an RMS norm",
    ),
    _claim(
        {"queries": Range(0.25, 0.26), "bits": Range(18)},
        id="MS-6",
        statement="five log-probabilities and a bias give a logit for a quarter of a query",
        paper_value="0.25 queries and 23 bits a logit",
        where="Table 4, logprob-4",
        measure="queries for each logit, bits of precision (error over spread); " + _PRICE,
        null="the top log-probability alone (MS-9): bits",
        seen_before=_TRIAL.format("0.25 queries, 26 bits"),
        drift=0.15,
    ),
    _claim(
        {"queries": Range(9, 11), "bits": Range(6.2, 8.2)},
        id="MS-7",
        statement="without log-probabilities a bisection costs ten queries a logit",
        paper_value="10 queries and 7.2 bits a logit",
        where="Table 4, binary search",
        measure="as MS-6, from the next token alone, to a tenth of a unit of logit within a hundred",
        null="half as many queries",
        seen_before=_TRIAL.format("10 queries, 6.7 bits"),
    ),
    _claim(
        {"queries": Range(hi=6), "bits": Range(18)},
        id="MS-8",
        statement="biasing many tokens at once costs a few queries a logit",
        paper_value="3.7 queries and 18 bits a logit",
        where="Table 4, one-of-N",
        measure="as MS-6, from the next token alone, 300 tokens at once",
        null="one token at a time, to the same precision",
        seen_before=_TRIAL.format("3.7 queries, 18.8 bits") + "; a first run on the lab model, which stopped at bounds "
        "of 1e-4 instead of 1e-5: 3.5 queries, 16.3 bits",
        drift=0.05,
    ),
    _claim(
        {"queries": Range(0.99, 1.01), "bits": Range(4.1, 8.1)},
        id="MS-9",
        statement="the top log-probability alone gives a logit for a query, and poorly",
        paper_value="1 query and 6.1 bits a logit",
        where="Table 4, logprob-1",
        measure="as MS-6, from the gain of the top token when another is biased by −1",
        null="log-probabilities of three decimals",
        seen_before=_TRIAL.format("1 query, 2.0 bits"),
        drift=0.5,
    ),
    _claim(
        {"error": Range(-1, 1)},
        id="MS-10",
        statement="a provider can make a model look wider",
        paper_value="GPT-2 small reads 1,024",
        where="defences",
        measure="dimensions found minus those of the model and of the noise that was added, in as many fixed "
        "directions as a third of d_model; as MS-1 otherwise",
        null="noise of the same size in no fixed directions (until 2026-11-29: no noise, which could hardly pass)",
    ),
    _claim(
        Range(10),
        id="MS-11",
        statement="forbidding biases together with log-probabilities makes logits ten times dearer",
        paper_value="10 times",
        where="defences",
        measure="queries for each logit, one-of-N over logprob-4, each to 18 bits or more",
        null="showing two log-probabilities in place of five: logprob-1 with a bias that lifts, over logprob-4",
        seen_before=_TRIAL.format("15 times"),
        drift=0.15,
    ),
    _claim(
        {"error": Range(-1, 1), "cost": Range(0.95, 1.05)},
        id="MS-12",
        statement="the whole attack works through a provider's protocol, at the price of the formula",
        paper_value="ada and babbage, for less than 20 dollars",
        where="abstract",
        measure="the lab model behind the OpenAI protocol, five log-probabilities and biases: width found minus "
        "d_model; queries over prompts × (1 + tokens / 4)",
        null="half as many prompts as dimensions",
    ),
    _claim(
        {"queries": Range(0.26, 1), "bits": Range(8.5, 14.5)},
        id="MS-14",
        statement="without a reference token log-probabilities are cheaper in theory, dearer and poorer in practice",
        paper_value="0.64 queries and 11.5 bits a logit",
        where="Table 4, logprob-5",
        measure="as MS-6, from five new tokens a query and the mass that they leave to all others, at least a "
        "thousandth",
        null="logprob-4 (MS-6)",
        seen_before=_TRIAL.format("0.22 to 0.6 queries, by their spread; 18 to 20 bits"),
        drift=0.15,
    ),
    _claim(
        {"queries": Range(hi=0.033), "bits": Range(18), "error": Range(-1, 1)},
        id="MS-15",
        statement="an answer of m tokens is worth m prompts",
        paper_value="1 / (4 m) queries a logit",
        where="multi-token queries",
        measure="queries for each logit and bits of logits from answers of eight tokens, as MS-6; dimensions found "
        "from the logits after random prompts and none to seven repetitions of their next token, minus d_model",
        null="one token a query (MS-6): queries; the same prompts without repetitions: dimensions found",
        drift=0.15,
    ),
    _claim(
        {"error": Range(-1, 1)},
        id="MS-16",
        statement="noise that hides the width is averaged away by asking again",
        paper_value="a defence; no number",
        where="defences",
        measure="dimensions found from the mean of 16 answers, minus d_model, at twice the noise that hides it from "
        "one answer (by bisection to five percent), as MS-1",
        null="one answer",
    ),
    _claim(
        id="MS-13",
        statement="widths and prices of production models",
        paper_value="ada 1,024, babbage 2,048, gpt-3.5-turbo not published",
        where="results",
        measure="—",
        null="—",
        paper=None,
        why_not_paper="the book attacks only models that it serves itself",
        why_not_laptop="the book attacks only models that it serves itself",
        why_not_lab="the book attacks only models that it serves itself",
    ),
    _claim(
        {"constant": Range(0.9), "norm": Range(0.9), "soft cap": Range(0.9)},
        id="MS-W1",
        statement="the spectrum also tells the norm, a constant vector and a soft cap",
        paper_value="—",
        where="own question",
        measure="share of models told right by the number of dimensions with and without the mean over prompts, if "
        "widths are multiples of eight: random streams with a layer norm or an RMS norm, with or without a bias of the "
        "norm or of the unembedding, with or without a soft cap on the logits",
        null="the same verdicts on the models in another order",
    ),
)
