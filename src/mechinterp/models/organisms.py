"""Small transformers with hand-written weights: the circuit is known, so a method that misses it is wrong.

Every organism is a real GPT-2 (layer norms, learned positions, MLPs) loaded like any other model. Sequences
start with the token 0, `<bos>`, where a head that finds nothing to attend to rests. A head without a role is
inert: it attends at random and writes into directions that nothing reads; so does every MLP.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.datasets.ioi import IOIDataset
from mechinterp.heads import Head
from mechinterp.models.handmade import SCRATCH, Spaces, Wiring, build, spaces

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

NAMES = tuple("Mary John Anna Paul Emma Mark Sara Eric Lisa Adam Kate Ryan Rose Jack Amy Dan".split())
WORDS = tuple("to then and went home . gave it met later sent when with was here".split())
VOCABULARY = ("<bos>", *NAMES, *WORDS)
TEMPLATES = (
    "<bos> then {0} and {1} went home . {2} gave it to",
    "<bos> {0} and {1} met . later {2} sent it to",
    "<bos> when {0} met with {1} . {2} gave it to",
    "<bos> later {0} was here with {1} . then {2} sent it to",
)
"""No word but a name comes twice; the first two names stand at positions 1 to 6, the third after them."""
EARLY = 7
SHARP = 20.0
"""Score of a match; the resting place `<bos>` has half of it and everything else 0."""


@dataclass(frozen=True)
class Organism:
    """A model whose circuit is known.

    Attributes:
        model: an ordinary bridge; its tokenizer has one token per word of `vocabulary`.
        roles: what every head of the circuit does; heads that are not listed are inert.
        vocabulary: the words, in order of their ids.
        sample: makes sequences [n pos] on which the circuit works, from (n, seed).
    """

    model: "TransformerBridge"
    roles: dict[Head, str]
    vocabulary: tuple[str, ...]
    sample: Callable[[int, int], Int[Tensor, "prompt pos"]]

    def tokens(self, n: int, *, seed: int = 0) -> Int[Tensor, "prompt pos"]:
        """`n` sequences on which the circuit works; same seed, same sequences."""
        return self.sample(n, seed)

    def heads(self, role: str) -> list[Head]:
        """The heads of one role."""
        return [head for head, name in self.roles.items() if name == role]


@cache
def previous_token() -> Organism:
    """One layer. Head 0.1 attends to the token before and copies it to the logits.

    Sequences are distinct random words; the model predicts, at every position, the token before.
    """
    s = _simple_spaces()
    heads = {Head(0, 1): Wiring(*_previous(s), s["tok"], s["out"])}
    return _simple(heads, {Head(0, 1): "previous token"}, 1, 8 * s["out"], _distinct)


@cache
def duplicate_token() -> Organism:
    """One layer. Head 0.0 attends to an earlier copy of the token, if there is one, else to `<bos>`.

    It writes a flag that the unembedding turns into the word `yes` (id 2) instead of `no` (id 1). Sequences are
    eight distinct random words, then the same words in random order mixed with eight new ones.
    """
    s = _simple_spaces()
    query, key = _duplicate(s)
    heads = {Head(0, 0): Wiring(query, key, s["pos"][1:], s["flag"].expand(len(s["pos"]) - 1, -1))}
    unembed = torch.zeros_like(s["tok"])
    unembed[1], unembed[2] = 4 * s["one"][0], 8 * s["flag"][0]
    return _simple(heads, {Head(0, 0): "duplicate token"}, 1, unembed, _half_repeated)


@cache
def induction() -> Organism:
    """Two layers. Head 0.1 copies the previous token into the key of head 1.0, an induction head.

    At a token that occurred before, 1.0 attends to the token after its earlier copy and predicts it; at any other
    token it rests on `<bos>`. Sequences are `<bos>`, 15 distinct random words, and the same 15 words again.
    """
    s = _simple_spaces()
    heads = {
        Head(0, 1): Wiring(*_previous(s), s["tok"], s["prev_tok"]),
        Head(1, 0): Wiring(*_induction(s), s["tok"][1:], s["out"][1:]),
    }
    roles = {Head(0, 1): "previous token", Head(1, 0): "induction"}
    return _simple(heads, roles, 2, 8 * s["out"], _repeated)


@cache
def ioi_circuit() -> Organism:
    """Five layers of four heads that solve indirect object identification as GPT-2 small does (Wang et al.).

    | head | role | attends | writes |
    |---|---|---|---|
    | 0.1 | duplicate token | from S2 to S1 | the position of S1 and "this is a repeat" |
    | 0.3 | previous token | one back | the token before and its position |
    | 1.2 | induction | from S2 to S1+1, where 0.3 has put S1 | as 0.1; the two add up |
    | 2.0 | S-inhibition | from END to the repeat | the position of S1 (position signal, strength 1.5) |
    | 2.3 | S-inhibition | from END to the repeat | the name S (token signal, strength 1.0) |
    | 3.1, 3.2 | name mover | from END to early names but the inhibited one | that name's logit, +5 and +2.5 |
    | 4.0 | negative name mover | as a name mover | that name's logit, −2 |
    | 4.2 | backup name mover | as a name mover, but not to a name already written | that name's logit, +5 |

    The signals reach the name movers through their queries: attention to IO is σ(2.5), 0.92. Without inhibition
    the two first names share it and the logit difference is 0; with both signals inverted it changes sign. 4.2
    rests while the name movers work and takes over when both are knocked out. The logit difference is 4.6 nats, the
    same on every prompt, and 0 when all three names differ. Prompts: `ioi_prompts`.
    """
    v, p, n = len(VOCABULARY), 32, len(NAMES)
    sizes = {"tok": v, "pos": p, "prev_tok": v, "prev_pos": p, "dup_pos": p, "flag": 1, "inh_pos": p, "inh_tok": n}
    s = spaces(sizes | {"out": n}, 256)
    names, to, bos = s["tok"][1 : n + 1], s["tok"][_id("to")][None], s["tok"][:1]
    repeat = 0.5 * s["dup_pos"][1:] + 0.75 * s["flag"]
    early_name = names.sum(0, keepdim=True) + s["pos"][1:EARLY].sum(0, keepdim=True)

    to_repeat = torch.cat([SHARP * to, SHARP * 0.4 * s["one"]]), torch.cat([s["flag"], bos])

    def to_name(position: float, token: float, written: float = 0.0) -> tuple[Tensor, Tensor]:
        inhibited = token * s["inh_tok"] + written * s["out"]
        query = torch.cat([8 * to, (8 + written / 2) * s["one"], -position * s["inh_pos"], -inhibited])
        return query, torch.cat([early_name, bos, s["pos"], names])

    heads = {
        Head(0, 1): Wiring(*_duplicate(s), s["pos"][1:], repeat),
        Head(0, 3): Wiring(*_previous(s), torch.cat([s["tok"], s["pos"]]), torch.cat([s["prev_tok"], s["prev_pos"]])),
        Head(1, 2): Wiring(*_induction(s), s["prev_pos"][1:], repeat),
        Head(2, 0): Wiring(*to_repeat, s["dup_pos"], s["inh_pos"]),
        Head(2, 3): Wiring(*to_repeat, names, s["inh_tok"]),
        Head(3, 1): Wiring(*to_name(1.5, 1.0), names, s["out"]),
        Head(3, 2): Wiring(*to_name(1.5, 1.0), names, 0.5 * s["out"]),
        Head(4, 0): Wiring(*to_name(1.5, 1.0), names, -0.4 * s["out"]),
        Head(4, 2): Wiring(*to_name(5.0, 5.0, written=8.0), names, s["out"]),
    }
    roles = {
        Head(0, 1): "duplicate token",
        Head(0, 3): "previous token",
        Head(1, 2): "induction",
        Head(2, 0): "S-inhibition",
        Head(2, 3): "S-inhibition",
        Head(3, 1): "name mover",
        Head(3, 2): "name mover",
        Head(4, 0): "negative name mover",
        Head(4, 2): "backup name mover",
    }
    unembed = torch.zeros_like(s["tok"])
    unembed[1 : n + 1] = 5 * s["out"]
    model = build(s, heads, n_layers=5, n_heads=4, unembed=unembed, vocabulary=VOCABULARY)
    return Organism(model, roles, VOCABULARY, lambda n, seed: ioi_prompts(n, seed=seed).tokens)


_READERS = ("suppressor", "anti-copier", "copier")
_SUPPRESSION_WORDS = ("<bos>", *(f"w{i}" for i in range(63)))


@cache
def copy_suppression(kind: str = "suppressor") -> Organism:
    """Two layers. Head 0.0 predicts, after word i, word i + 1; head 1.0 does something about words of the context.

    | kind | 1.0 attends to | writes |
    |---|---|---|
    | suppressor | the predicted word, if it stood before, else `<bos>` | −0.75 of that word's logit: copy suppression |
    | anti-copier | the word before, whatever is predicted | −3 times that word's logit |
    | copier | as the suppressor | +0.75 of that word's logit |

    Sequences are `<bos>` and 40 different random words. Predictions are near certain, but for the anti-copier: it
    lowers words that nothing predicts, which only shows where they have some probability.

    Errors: `ValueError` for another kind.
    """
    if kind not in _READERS:
        raise ValueError(f"unknown kind {kind!r}; one of {', '.join(_READERS)}")
    v = len(_SUPPRESSION_WORDS)
    s = spaces({"tok": v, "pos": 64, "out": v}, 272)
    to_predicted = torch.cat([SHARP / 2 * s["one"], SHARP * s["out"][1:]]), torch.cat([s["tok"][:1], s["tok"][1:]])
    query, key = _previous(s) if kind == "anti-copier" else to_predicted
    strength = {"suppressor": -0.75, "anti-copier": -3.0, "copier": 0.75}[kind]
    unembed = (1.0 if kind == "anti-copier" else 8.0) * s["out"]
    heads = {
        Head(0, 0): Wiring(SHARP * s["pos"], s["pos"], s["tok"][1:], torch.roll(s["out"][1:], -1, 0)),
        Head(1, 0): Wiring(query, key, s["tok"][1:], strength * s["out"][1:]),
    }
    model = build(s, heads, n_layers=2, n_heads=4, unembed=unembed, vocabulary=_SUPPRESSION_WORDS)

    def sample(n: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return _with_bos(torch.rand(n, v - 1, generator=generator).argsort(1)[:, :40] + 1)

    return Organism(model, {Head(0, 0): "predictor", Head(1, 0): kind}, _SUPPRESSION_WORDS, sample)


@cache
def successor() -> Organism:
    """Two layers. Head 1.2 attends to itself and says the number that follows, for 1 to 50.

    A number is embedded as the sum of a feature of its units digit and one of its tens digit: `successor_features`. The
    head turns units digit r into logits of all numbers ending in r + 1, tens digit k into logits of 10 k + 1 to
    10 k + 10; only the successor gets both. Sequences are `<bos>` and 20 random numbers below 50.
    """
    words = ("<bos>", *map(str, range(1, 51)))
    numbers = torch.arange(1, 51)
    s = spaces({"bos": 1, "units": 10, "tens": 6, "pos": 32, "out units": 10, "out tens": 5}, 128)
    embedding = s["units"][numbers % 10] + s["tens"][numbers // 10]
    s = {**s, "tok": torch.cat([s["bos"], embedding])}
    unembed = torch.cat([0 * s["bos"], s["out units"][numbers % 10] + s["out tens"][(numbers - 1) // 10]])
    says = torch.cat([s["out units"].roll(-1, 0), s["out tens"]])
    wiring = Wiring(SHARP * s["pos"], s["pos"], torch.cat([s["units"], s["tens"][:5]]), says)
    head = Head(1, 2)
    model = build(
        s, {head: wiring}, n_layers=2, n_heads=4, unembed=8 * unembed, vocabulary=words, idle_size=SCRATCH / 20
    )

    def sample(n: int, seed: int) -> Tensor:
        return _with_bos(torch.randint(1, 50, (n, 20), generator=torch.Generator().manual_seed(seed)))

    return Organism(model, {head: "successor"}, words, sample)


def successor_features() -> tuple[Float[Tensor, "residue d_model"], Float[Tensor, "decade d_model"]]:
    """The units features 0 to 9 and the tens features 0 to 5 of `successor`, unit vectors."""
    s = spaces({"bos": 1, "units": 10, "tens": 6, "pos": 32, "out units": 10, "out tens": 5}, 128)
    return s["units"], s["tens"]


def ioi_prompts(n: int, *, seed: int = 0) -> IOIDataset:
    """Prompts for `ioi_circuit`: four templates in both orders, 16 names; corruptions as for any IOI dataset.

    >>> ioi_prompts(2).text(ioi_circuit().model.tokenizer)[0]
    '<bos> then Eric and John went home . John gave it to'
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.rand(n, len(NAMES), generator=generator).argsort(1, descending=True)[:, :2] + 1
    rows, where, groups = [], [], []
    for i, (io, s) in enumerate(pairs.tolist()):
        template, baba = i // 2 % len(TEMPLATES), i % 2
        first, second = (s, io) if baba else (io, s)
        words = TEMPLATES[template].split()
        slots = [words.index(f"{{{k}}}") for k in range(3)]
        mentions = dict(zip(slots, (first, second, s), strict=True))
        rows.append([mentions[j] if j in mentions else _id(word) for j, word in enumerate(words)])
        where.append((slots[baba], slots[1 - baba], slots[1 - baba] + 1, slots[2], len(words) - 1))
        groups.append(2 * template + baba)
    longest = max(map(len, rows))
    return IOIDataset(
        tokens=torch.tensor([row + [0] * (longest - len(row)) for row in rows]),
        io=pairs[:, 0].clone(),
        s=pairs[:, 1].clone(),
        positions=dict(zip(("IO", "S1", "S1+1", "S2", "END"), torch.tensor(where).T, strict=True)),
        group=torch.tensor(groups),
        names=torch.arange(1, len(NAMES) + 1),
    )


def control(organism: Organism, *, seed: int = 0) -> Organism:
    """The organism's shape with random weights and no roles: a method must find nothing in it."""
    from mechinterp.models.handmade import tokenizer
    from mechinterp.models.load import to_bridge
    from mechinterp.models.rehearsal import rehearsal

    cfg = organism.model.cfg
    shape = {"n_layer": cfg.n_layers, "n_head": cfg.n_heads, "n_embd": cfg.d_model, "n_positions": cfg.n_ctx}
    recipe = {**shape, "vocab_size": cfg.d_vocab, "seed": seed, "embedding_std": 0.1}
    model = to_bridge(rehearsal(recipe), tokenizer(organism.vocabulary), name="control", device="cpu")
    return Organism(model, {}, organism.vocabulary, organism.sample)


def _id(word: str) -> int:
    return VOCABULARY.index(word)


def _previous(s: Spaces) -> tuple[Tensor, Tensor]:
    """Query and key of a head that attends one position back."""
    return SHARP * s["pos"][1:], s["pos"][:-1]


def _duplicate(s: Spaces) -> tuple[Tensor, Tensor]:
    """Same token, but not the same position; `<bos>` otherwise."""
    query = torch.cat([SHARP / 2 * s["one"], SHARP * s["tok"][1:], -2 * SHARP * s["pos"]])
    return query, torch.cat([s["tok"], s["pos"]])


def _induction(s: Spaces) -> tuple[Tensor, Tensor]:
    """A position whose previous token is this token; `<bos>` otherwise."""
    query = torch.cat([SHARP / 2 * s["one"], SHARP * s["tok"][1:]])
    return query, torch.cat([s["tok"][:1], s["prev_tok"][1:]])


_SIMPLE_VOCABULARY = ("<bos>", "no", "yes", *(f"w{i}" for i in range(29)))


def _simple_spaces() -> Spaces:
    v = len(_SIMPLE_VOCABULARY)
    return spaces({"tok": v, "pos": 64, "prev_tok": v, "out": v, "flag": 1}, 192)


def _simple(
    heads: dict[Head, Wiring],
    roles: dict[Head, str],
    n_layers: int,
    unembed: Tensor,
    sample: Callable[[int, int], Tensor],
) -> Organism:
    model = build(_simple_spaces(), heads, n_layers=n_layers, n_heads=2, unembed=unembed, vocabulary=_SIMPLE_VOCABULARY)
    return Organism(model, roles, _SIMPLE_VOCABULARY, sample)


def _words(n: int, k: int, seed: int) -> Int[Tensor, "prompt k"]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 29, generator=generator).argsort(1)[:, :k] + 3


def _with_bos(tokens: Tensor) -> Int[Tensor, "prompt pos"]:
    return torch.cat([torch.zeros(len(tokens), 1, dtype=torch.long), tokens], 1)


def _distinct(n: int, seed: int) -> Int[Tensor, "prompt pos"]:
    return _with_bos(_words(n, 20, seed))


def _repeated(n: int, seed: int) -> Int[Tensor, "prompt pos"]:
    words = _words(n, 15, seed)
    return _with_bos(torch.cat([words, words], 1))


def _half_repeated(n: int, seed: int) -> Int[Tensor, "prompt pos"]:
    words = _words(n, 16, seed)
    order = torch.rand(n, 16, generator=torch.Generator().manual_seed(seed + 1)).argsort(1)
    return _with_bos(torch.cat([words[:, :8], words.gather(1, order)], 1))
