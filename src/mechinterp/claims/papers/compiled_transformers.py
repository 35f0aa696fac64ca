"""The claims of *Tracr: Compiled Transformers as a Laboratory for Interpretability* (Lindner et al., arXiv:2301.05062).

Programs are compiled for the chapter, so it needs no pretrained model, and the paper's scale is real: the paper's
library at the paper's sizes. Lab scale takes fewer programs and shorter trainings. Values of the section on compression
are second-hand and marked unverified.
"""

from functools import partial

from mechinterp.claims.expectations import Range
from mechinterp.claims.statement import Claim, Revision

_SEEN = "the package's tests had measured it before the claim was stated"

_BY_POSITION = "the same bound, with the cosine taken position by position"
_DEGENERATE = (
    "Each half-layer of frac_prevs writes a single number, so that the cosine at a position is 1 or -1 at any size: "
    "the first run gave 1.000 throughout."
)
_ROUNDING = (
    "The upper end of the interval lay between 0.894 and 0.907 with other numbers of threads and other vector "
    "instructions, and with it the verdict."
)

_claim = partial(Claim, why_not_laptop="needs no pretrained model: see the paper-scale run")


def _near(value: float, by: float) -> Range:
    return Range(value - by, value + by)


_SCORES = {
    "frac_prevs, selected": _near(37.796, 5e-3),
    "frac_prevs, <bos>": _near(18.898, 5e-3),
    "reverse, selected": _near(28.868, 5e-3),
    "reverse, <bos>": _near(14.434, 5e-3),
}
_EDGES = {
    "reverse, zero": _near(10, 0),
    "reverse, resample": _near(2, 0),
    "frac_prevs, zero": _near(5, 0),
    "frac_prevs, resample": _near(3, 0),
}
_FOUND = {"precision": Range(0.9), "recall": Range(0.9)}
_ROLES = {"previous token (shift_by)": Range(0.95), "duplicate token (hist)": _near(1 / 3, 0.02)}


COMPILED_TRANSFORMERS: tuple[Claim, ...] = (
    _claim(
        id="TR-1",
        statement="a compiled model computes its program exactly",
        paper_value="exact; numbers to about 0.01",
        where="§3, the code's tests",
        measure="fraction of all inputs up to the maximal length on which the model says what the interpreter says, "
        "the worst of all programs; largest error of a number",
        null="one head or MLP of a program silenced, each in its turn",
        paper={"exact": Range(1), "error": Range(hi=0.02)},
        lab={"exact": Range(1), "error": Range(hi=0.02)},
        seen_before=_SEEN,
    ),
    _claim(
        id="TR-2",
        statement="frac_prevs takes 14 dimensions for four letters and five positions",
        paper_value="14",
        where="recomputed from the code's rules",
        measure="width of the residual stream",
        null="the same program for five letters",
        paper=_near(14, 0),
        lab=_near(14, 0),
        seen_before=_SEEN,
    ),
    _claim(
        id="TR-3",
        statement="a head that counts writes 1 / (width + 1)",
        paper_value="1 / (d + 1)",
        where="the code",
        measure="largest deviation, over all inputs of length, hist and count",
        null="a positive control that must exceed it: the same programs compiled with a softmax of coldness 10, "
        "not 100",
        paper=Range(hi=1e-3),
        lab=Range(hi=1e-3),
        seen_before=_SEEN,
    ),
    _claim(
        id="TR-4",
        statement="a selected key scores 100 / √d_head, and <bos> half of that",
        paper_value="37.796 and 18.898 for frac_prevs, 28.87 and 14.43 for reverse",
        where="read off tracr-pypi 1.0.0",
        measure="attention score of a selected key and of <bos>, last head of the program",
        null="the same programs with the other's d_head",
        paper=dict(_SCORES),
        lab=dict(_SCORES),
        seen_before=_SEEN,
    ),
    _claim(
        id="TR-5",
        statement="ACDC recovers compiled circuits under zero ablation",
        paper_value="edge AUC 1.000 (reverse, xproportion)",
        where="Conmy et al. (2023), Table 3",
        measure="pessimistic area under the ROC curve over edges, falling thresholds of the output's squared error, "
        "against the circuit under zero ablation",
        null="edges in a random order",
        paper={"reverse": Range(0.98), "frac_prevs": Range(0.98)},
        lab={"reverse": Range(0.98), "frac_prevs": Range(0.98)},
        unverified=True,
        seen_before="a test of the package runs ACDC on reverse at one threshold and finds its circuit",
    ),
    _claim(
        id="TR-6",
        statement="frac_prevs can be compressed: its output survives in four dimensions fewer",
        paper_value="little error from about 6 to 8 of 14 dimensions on",
        where="§5, from memory",
        measure="variance of the output unexplained at d = 10, mean over seeds; rank correlation of that with d, by "
        "seed",
        null="random orthonormal matrices of the same size, not trained",
        paper={"unexplained": Range(hi=0.01), "trend": Range(hi=-0.7)},
        lab={"unexplained": Range(hi=0.05), "trend": Range(hi=-0.7)},
        unverified=True,
        seen_before="a test had trained one seed at d = 6 for 400 steps",
    ),
    _claim(
        id="TR-7",
        statement="the more it is compressed, the less a model computes as the original does",
        paper_value="cosine similarity of layer outputs drops",
        where="§5, from memory",
        measure="rank correlation, by seed, of the size d with the cosine of half-layers' outputs with the original's, "
        "over all inputs and positions as one vector",
        null="sizes permuted within each seed",
        paper=Range(0.7),
        lab=Range(0.7),
        unverified=True,
        revised=tuple(Revision("2026-11-29", scale, _BY_POSITION, _DEGENERATE) for scale in ("paper", "lab")),
    ),
    _claim(
        id="TR-8",
        statement="small programs take few layers and heads",
        paper_value="1 to 5 layers of one or two heads for nine programs",
        where="measured on tracr-pypi 1.0.0",
        measure="programs, of nine, with the same width, layers, heads, d_head and d_mlp as Tracr's",
        null="each program against the sizes of another one",
        paper=_near(9, 0),
        lab=_near(9, 0),
        seen_before=_SEEN,
    ),
    _claim(
        id="TR-W1",
        statement="which edges a program needs depends on the ablation",
        paper_value="reverse: 10 under zero, 2 under resampling; frac_prevs: 5 and 3",
        where="auto-circuit's tables",
        measure="edges of the smallest minimal circuit, on all inputs of three tokens",
        null="the edges along which anything flows, whatever the ablation",
        paper=dict(_EDGES),
        lab=dict(_EDGES),
        seen_before=_SEEN,
    ),
    _claim(
        id="TR-W3",
        statement="activation patching finds a program's heads and MLPs",
        paper_value="—",
        where="own test",
        measure="heads and MLPs whose patch changes the output by 2 % or more on average, against those of the circuit "
        "under resampling, all programs pooled",
        null="as many heads and MLPs of the same programs, drawn at random",
        paper=dict(_FOUND),
        lab=dict(_FOUND),
    ),
    _claim(
        id="TR-W4",
        statement="the direct path to the logits shows the last step only",
        paper_value="—",
        where="own test",
        measure="fraction of the circuit's heads that direct logit attribution sees (2 % or more), all programs pooled",
        null="a positive control that must exceed it: activation patching",
        paper=Range(hi=0.7),
        lab=Range(hi=0.7),
    ),
    _claim(
        id="TR-W5",
        statement="a head's role comes out right from its attention",
        paper_value="—",
        where="own test",
        measure="previous-token score of shift_by's head; attention of hist's head to the other copy of a token, "
        "which shares it with the token itself and <bos>",
        null="heads of the other programs",
        paper=dict(_ROLES),
        lab=dict(_ROLES),
    ),
    _claim(
        id="TR-W6",
        statement="a sparse autoencoder finds the variables of a compressed stream",
        paper_value="—",
        where="own test",
        measure="largest correlation of a latent with each variable that frac_prevs reads or writes, mean over "
        "variables and SAEs, stream compressed to 10 dimensions",
        null="as many random directions with a ReLU",
        drift=0.03,
        revised=(Revision("2026-11-29", "lab", "at least 0.9", _ROUNDING),),
        paper=Range(0.9),
        why_not_lab="the same as at paper scale, with fewer SAEs, and the verdict would depend on rounding",
    ),
    _claim(
        id="TR-W7",
        statement="compression drops what nothing reads",
        paper_value="the heat map of WᵀW shows unused directions merged or dropped",
        where="§5, from memory",
        measure="mean norm of the columns of W that nothing reads over that of the others, frac_prevs at d = 6, over "
        "seeds",
        null="Gaussian matrices of the same size, as training begins",
        paper=Range(hi=0.5),
        lab=Range(hi=0.5),
        unverified=True,
    ),
    _claim(
        id="TR-W8",
        statement="a trained compression is more than a principal subspace",
        paper_value="—",
        where="own question",
        measure="log10 of the output's squared error at d = 6 over that with the stream projected on its six first "
        "principal components, mean over seeds",
        null="random orthonormal matrices in place of the trained ones",
        paper=Range(hi=-0.3),
        lab=Range(hi=-0.3),
    ),
    _claim(
        id="TR-W9",
        statement="paths followed back from the logits lead to a program's heads and to what each reads from others",
        paper_value="—",
        where="own test",
        measure="edges from a head to the logits, or to the queries, keys or values of a later head, whose path patch "
        "(MLPs between recompute) changes the output by 2 % or more on average, from the logits back through every "
        "head that is found; precision against the edges that some minimal circuit under resampling has, directly or "
        "through MLPs, recall of those that all of a program's circuits have; all programs pooled",
        null="as many edges between heads of the same programs, and from them to the logits, drawn at random",
        paper=dict(_FOUND),
        lab=dict(_FOUND),
    ),
)
