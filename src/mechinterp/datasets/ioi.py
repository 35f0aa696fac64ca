"""Indirect object identification prompts (Wang et al., arXiv:2211.00593, Appendix E).

A prompt mentions an indirect object (IO) and a subject (S), repeats the subject and stops before
the indirect object: *Then, Mary and John went to the store. John gave a drink to* ... ` Mary`.
The prompt is an ABBA or a BABA prompt by the order of the first two mentions (A = IO, B = S).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

NAMES: tuple[str, ...] = tuple(
    """
    Michael Christopher Jessica Matthew Ashley Jennifer Joshua Amanda Daniel David James Robert John
    Joseph Andrew Ryan Brandon Jason Justin Sarah William Jonathan Stephanie Brian Nicole Nicholas
    Anthony Heather Eric Elizabeth Adam Megan Melissa Kevin Steven Thomas Timothy Christina Kyle
    Rachel Laura Lauren Amber Brittany Danielle Richard Kimberly Jeffrey Amy Crystal Michelle Tiffany
    Jeremy Benjamin Mark Emily Aaron Charles Rebecca Jacob Stephen Patrick Sean Erin Jamie Kelly
    Samantha Nathan Sara Dustin Paul Angela Tyler Scott Katherine Andrea Gregory Erica Mary Travis
    Lisa Kenneth Bryan Lindsey Kristen Jose Alexander Jesse Katie Lindsay Shannon Vanessa Courtney
    Christine Alicia Cody Allison Bradley Samuel
    """.split()
)
"""99 common first names of the United States."""
PLACES: tuple[str, ...] = tuple("store garden restaurant school hospital office house station".split())
OBJECTS: tuple[str, ...] = tuple("ring kiss bone basketball computer necklace drink snack".split())

# {0} and {1} are the first two mentions, {2} is the third; the answer follows the last word.
TEMPLATES: tuple[str, ...] = (
    "Then, {0} and {1} went to the {place}. {2} gave a {object} to",
    "Then, {0} and {1} had a lot of fun at the {place}. {2} gave a {object} to",
    "Then, {0} and {1} were working at the {place}. {2} decided to give a {object} to",
    "Then, {0} and {1} were thinking about going to the {place}. {2} wanted to give a {object} to",
    "Then, {0} and {1} had a long argument, and afterwards {2} said to",
    "After {0} and {1} went to the {place}, {2} gave a {object} to",
    "When {0} and {1} got a {object} at the {place}, {2} decided to give it to",
    "When {0} and {1} got a {object} at the {place}, {2} decided to give the {object} to",
    "While {0} and {1} were working at the {place}, {2} gave a {object} to",
    "While {0} and {1} were commuting to the {place}, {2} gave a {object} to",
    "After the lunch, {0} and {1} went to the {place}. {2} gave a {object} to",
    "Afterwards, {0} and {1} went to the {place}. {2} gave a {object} to",
    "Then, {0} and {1} had a long argument. Afterwards {2} said to",
    "The {place} {0} and {1} went to had a {object}. {2} gave it to",
    "Friends {0} and {1} found a {object} at the {place}. {2} gave a {object} to",
)
"""The fifteen templates of Appendix E, each used in both orders."""

TWO_SENTENCES: tuple[int, ...] = tuple(i for i, t in enumerate(TEMPLATES) if ". " in t)
"""Templates with a sentence break, where an extra sentence can be inserted (section 4.4)."""

INSERTS: tuple[str, ...] = (
    "{name} had a good day.",
    "{name} was enjoying the situation.",
    "{name} was tired.",
    "{name} enjoyed being with a friend.",
    "{name} was an enthusiast person.",
)
"""Sentences of the adversarial examples (Figure 8)."""

Order = Literal["ABBA", "BABA"]
ORDERS: tuple[Order, ...] = ("ABBA", "BABA")
Token = Literal["original", "random", "inverted"]
Position = Literal["original", "inverted"]


@dataclass(frozen=True)
class IOIDataset:
    """A batch of IOI prompts with its answers and named positions.

    Attributes:
        tokens: token ids, padded on the right (a causal model never looks at the padding).
        io, s: token ids of the two names. A corrupted dataset keeps the labels of the clean one.
        positions: index of each named token: `IO`, `S1`, `S1+1`, `S2`, `END` (last prompt token).
        group: `2 * template + (order is BABA)`; prompts of a group share every named position.
        names: every name token the random corruptions may draw from.
        kept: of the names, places and objects, how many are used of how many there were.
    """

    tokens: Int[Tensor, "prompt pos"]
    io: Int[Tensor, " prompt"]
    s: Int[Tensor, " prompt"]
    positions: dict[str, Int[Tensor, " prompt"]]
    group: Int[Tensor, " prompt"]
    names: Int[Tensor, " name"]
    kept: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def io_first(self) -> Bool[Tensor, " prompt"]:
        """Whether the indirect object is the first name (ABBA)."""
        return self.group % 2 == 0

    @property
    def template(self) -> Int[Tensor, " prompt"]:
        """Index into `TEMPLATES`: what prompts resemble each other by."""
        return self.group // 2

    def __repr__(self) -> str:
        words = "".join(f", {few} of {all_} {what}" for what, (few, all_) in self.kept.items())
        groups = len(self.group.unique())
        return f"IOIDataset({len(self)} prompts in {groups} groups, at most {self.tokens.shape[1]} tokens{words})"

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> "IOIDataset":
        """The prompts selected by a slice, a list of indices or a mask."""
        if isinstance(index, int):
            raise TypeError(f"select a batch, not one prompt: data[{index}:{index + 1}]")
        return replace(
            self,
            tokens=self.tokens[index],
            io=self.io[index],
            s=self.s[index],
            group=self.group[index],
            positions={k: v[index] for k, v in self.positions.items()},
        )

    def to(self, device: torch.device | str) -> "IOIDataset":
        """The same dataset with every tensor on `device`."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            io=self.io.to(device),
            s=self.s.to(device),
            group=self.group.to(device),
            names=self.names.to(device),
            positions={k: v.to(device) for k, v in self.positions.items()},
        )

    def text(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Each prompt as text, without padding."""
        ends = self.positions["END"].tolist()
        return [str(tokenizer.decode(row[: end + 1])) for row, end in zip(self.tokens, ends, strict=True)]

    def with_names(
        self, io: Int[Tensor, " prompt"], s1: Int[Tensor, " prompt"], s2: Int[Tensor, " prompt"]
    ) -> "IOIDataset":
        """The same prompts with other name tokens in the three places; labels stay."""
        tokens = self.tokens.clone()
        for place, name in (("IO", io), ("S1", s1), ("S2", s2)):
            tokens.scatter_(1, self.positions[place][:, None], name[:, None])
        return replace(self, tokens=tokens)

    def abc(self, seed: int = 0) -> "IOIDataset":
        """p_ABC: the three mentions become three different random names (section 3)."""
        a, b, c = _draw_names(self, 3, seed)
        return self.with_names(a, b, c)

    def corrupt(self, token: Token = "original", position: Position = "original", seed: int = 0) -> "IOIDataset":
        """Change what the S-inhibition heads can know (section 3.3, Figure 9).

        The *token* signal is which name is duplicated: `random` renames both people, `inverted` makes
        the duplicated name the IO. The *position* signal is where the first copy stood: `inverted`
        moves it to where the IO stood. `corrupt()` changes nothing.
        """
        if token not in ("original", "random", "inverted"):
            raise ValueError(f"token must be original, random or inverted, not {token!r}")
        if position not in ("original", "inverted"):
            raise ValueError(f"position must be original or inverted, not {position!r}")
        other, duplicated = self.io, self.s
        if token == "random":
            other, duplicated = _draw_names(self, 2, seed)
        elif token == "inverted":
            other, duplicated = self.s, self.io
        if position == "inverted":
            return self.with_names(io=duplicated, s1=other, s2=duplicated)
        return self.with_names(io=other, s1=duplicated, s2=duplicated)

    def at(self, name: str, x: Tensor) -> Tensor:
        """Pick the named position of every prompt.

        Shapes: `x` [prompt pos ...] -> [prompt ...].
        """
        if name not in self.positions:
            raise ValueError(f"unknown position {name!r}; one of {', '.join(self.positions)}")
        return x[torch.arange(len(x), device=x.device), self.positions[name].to(x.device)]

    def logit_diff(self, logits: Tensor) -> Float[Tensor, " prompt"]:
        """logit(IO) − logit(S) at END, one value a prompt.

        Takes the logits of every position [prompt pos vocab] or of END only [prompt vocab].
        """
        end = _end_logits(self, logits)
        return (
            end.gather(1, self.io.to(end.device)[:, None])[:, 0] - end.gather(1, self.s.to(end.device)[:, None])[:, 0]
        )

    def io_prob(self, logits: Tensor) -> Float[Tensor, " prompt"]:
        """Probability of the IO name at END. Logits as in `logit_diff`."""
        end = _end_logits(self, logits)
        return end.softmax(-1).gather(1, self.io.to(end.device)[:, None])[:, 0]


def make(
    tokenizer: PreTrainedTokenizerBase,
    n: int,
    *,
    seed: int = 0,
    templates: Sequence[int] = tuple(range(len(TEMPLATES))),
    orders: Sequence[Order] = ORDERS,
    names: Sequence[str] | None = None,
    places: Sequence[str] | None = None,
    objects: Sequence[str] | None = None,
    pairs: Sequence[tuple[str, str]] | None = None,
    prepend_bos: bool = False,
    insert: Literal["IO", "S", "other"] | None = None,
    prefix: str = "",
    context: int | None = None,
) -> IOIDataset:
    """`n` IOI prompts, cycling through templates and orders so that every group has its share.

    Args:
        tokenizer: the model's; the prompts' names, places and objects are single tokens in it.
        seed: same seed, same prompts.
        templates: indices into `TEMPLATES`.
        orders: `ABBA` (IO first) and/or `BABA` (S first).
        names: names to draw IO and S from, without replacement in a prompt; by default those of `NAMES` that are one
            token. `places` and `objects` likewise. `kept` of the result says how many these are.
        pairs: draw {IO, S} from these unordered pairs instead.
        prepend_bos: start with the tokenizer's BOS token (GPT-2 was not trained with one; SmolLM2's is a chat mark).
        insert: adversarial sentence naming IO, S or a third person between the two sentences (Figure 8); only
            templates with a sentence break can be used.
        prefix: text in front of the prompt, ending in a space.
        context: the model's context length, to refuse longer prompts.

    Errors: `ValueError` for a given word that is not one token, fewer than two names or no place or object that
        is, two equal names, no prompts, a prompt longer than the context.

    >>> from mechinterp.models import load_tokenizer
    >>> data = make(load_tokenizer("lab"), 4, templates=[0], seed=0)
    >>> len(data), sorted(data.positions)
    (4, ['END', 'IO', 'S1', 'S1+1', 'S2'])
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    if insert and not set(templates) <= set(TWO_SENTENCES):
        raise ValueError(f"insert needs templates with a sentence break: {TWO_SENTENCES}, not {tuple(templates)}")
    if insert not in (None, "IO", "S", "other"):
        raise ValueError(f"insert names IO, S or other, not {insert!r}")
    if prepend_bos and tokenizer.bos_token_id is None:
        raise ValueError("this tokenizer has no BOS token to start with; leave prepend_bos out")
    given = sorted({name for pair in pairs for name in pair}) if pairs is not None else names
    people, few_names = _choose(tokenizer, "names", given, NAMES, least=2)
    places, few_places = _choose(tokenizer, "places", places, PLACES)
    objects, few_objects = _choose(tokenizer, "objects", objects, OBJECTS)
    token = {word: single_token(tokenizer, word) for word in people}
    generator = torch.Generator().manual_seed(seed)

    def pick(k: int) -> int:
        return int(torch.randint(k, (1,), generator=generator))

    texts, mentions, labels, groups = [], [], [], []
    bos = str(tokenizer.bos_token) if prepend_bos else ""
    for i in range(n):
        template = templates[i // len(orders) % len(templates)]
        order = orders[i % len(orders)]
        if pairs is None:
            first = pick(len(people))
            second = (first + 1 + pick(len(people) - 1)) % len(people) if len(people) > 1 else first
            io, s = people[first], people[second]
        else:
            io, s = pairs[pick(len(pairs))][:: (1, -1)[pick(2)]]
        if io == s:
            raise ValueError(f"IO and S must be two different names, got {io!r} twice")
        pair = (io, s) if order == "ABBA" else (s, io)
        text = TEMPLATES[template].format(*pair, s, place=places[pick(len(places))], object=objects[pick(len(objects))])
        named = [*pair, s]
        if insert:
            others = [name for name in people if name not in (io, s)]
            name = {"IO": io, "S": s}.get(insert) or others[pick(len(others))]
            extra = INSERTS[pick(len(INSERTS))].format(name=name)
            text = text.replace(". ", f". {extra} ", 1)
            named.insert(2, name)
        texts.append(bos + prefix + text)
        mentions.append([token[name] for name in named])
        labels.append((token[io], token[s]))
        groups.append(2 * template + (order == "BABA"))
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    longest = max(map(len, rows))
    if context is not None and longest > context:
        raise ValueError(f"a prompt of {longest} tokens does not fit into the context of {context}; shorten the prefix")
    where = torch.tensor([_find_in_order(row, named) for row, named in zip(rows, mentions, strict=True)])
    io, s = torch.tensor(labels).T
    group = torch.tensor(groups)
    baba = group % 2 == 1
    s1 = torch.where(baba, where[:, 0], where[:, 1])
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return IOIDataset(
        tokens=torch.tensor([row + [pad or 0] * (longest - len(row)) for row in rows]),
        io=io,
        s=s,
        positions={
            "IO": torch.where(baba, where[:, 1], where[:, 0]),
            "S1": s1,
            "S1+1": s1 + 1,
            "S2": where[:, -1],
            "END": torch.tensor([len(row) - 1 for row in rows]),
        },
        group=group,
        names=torch.tensor(sorted({token[name] for name in people})),
        kept={"names": few_names, "places": few_places, "objects": few_objects},
    )


def single_token_words(tokenizer: PreTrainedTokenizerBase, words: Sequence[str], *, space: bool = True) -> list[str]:
    """The words that are one token, in their order, with a leading space or without.

    >>> from mechinterp.models import load_tokenizer
    >>> single_token_words(load_tokenizer("lab"), ["Mary", "Zygmunt"])
    ['Mary']
    """

    def single(word: str) -> bool:
        try:
            single_token(tokenizer, word, space=space)
        except ValueError:
            return False
        return True

    return [word for word in words if single(word)]


def single_token(tokenizer: PreTrainedTokenizerBase, word: str, *, space: bool = True) -> int:
    """The id of `word`, with a leading space or without; `ValueError` if it is not one token."""
    text = " " + word if space else word
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        pieces = tokenizer.convert_ids_to_tokens(ids)
        raise ValueError(f"{text!r} is {len(ids)} tokens for this tokenizer, {pieces}; use words that are one token")
    # A byte-level tokenizer names its end of text as the unknown token and never uses it as one.
    if ids[0] == tokenizer.unk_token_id and str(tokenizer.decode(ids)).strip() != word:
        raise ValueError(f"{text!r} is unknown to this tokenizer; use words that it has")
    return int(ids[0])


def _choose(
    tokenizer: PreTrainedTokenizerBase, what: str, given: Sequence[str] | None, default: Sequence[str], least: int = 1
) -> tuple[list[str], tuple[int, int]]:
    """The given words, all of them, or the default ones that are one token; and how many of how many."""
    words = single_token_words(tokenizer, default) if given is None else list(given)
    if given is None and len(words) < least:
        raise ValueError(
            f"only {len(words)} of the {len(default)} {what} are one token for this tokenizer, at least {least} are "
            f"needed; give your own {what}"
        )
    if not words:
        raise ValueError(f"no {what} to draw from; give some, or leave the argument out")
    for word in words:
        single_token(tokenizer, word)
    return words, (len(words), len(default) if given is None else len(words))


def held_out_pairs(names: Sequence[str] = NAMES) -> list[tuple[str, str]]:
    """One fifth of all unordered name pairs: those that the lab model never saw together in an IOI sentence.

    >>> len(held_out_pairs()), held_out_pairs()[0]
    (970, ('Michael', 'Ashley'))
    """
    index = range(len(names))
    return [(names[i], names[j]) for i in index for j in index[i + 1 :] if (i + j) % 5 == 4]


def _find_in_order(row: list[int], wanted: list[int]) -> list[int]:
    found, start = [], 0
    for token in wanted:
        start = row.index(token, start)
        found.append(start)
        start += 1
    return found


def _draw_names(data: IOIDataset, k: int, seed: int) -> tuple[Tensor, ...]:
    if len(data.names) < k:
        raise ValueError(f"needs at least {k} names to draw from, this dataset has {len(data.names)}")
    generator = torch.Generator().manual_seed(seed)
    choice = torch.rand(len(data), len(data.names), generator=generator).argsort(1)[:, :k]
    return tuple(data.names[choice.to(data.names.device)].unbind(1))


def _end_logits(data: IOIDataset, logits: Tensor) -> Tensor:
    end = logits if logits.ndim == 2 else data.at("END", logits)
    if not torch.isfinite(end).all():
        raise ValueError("the logits at END contain NaN or infinity; check the model's weights and the intervention")
    return end
