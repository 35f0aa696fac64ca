"""One page about some latents: how often and how strongly they are on, what they promote, where they are strongest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from mechinterp.files import atomic_write
from mechinterp.sae.latents.features import Example, FeatureActivations, LogitWeights
from mechinterp.sae.sites import layer_of
from mechinterp.viz.figure import with_caption

# Orange and blue of the house palette, laid over the page's own ground so that its ink stays readable.
_STYLE = """
.mi-latents { --line: color-mix(in srgb, currentColor 22%, transparent); --faint: rgba(128,138,152,.16);
  font-size: .92em; line-height: 1.45; max-width: 100%; }
.mi-latents nav { display: flex; flex-wrap: wrap; gap: .4em; align-items: center; margin: 0 0 .6em; }
.mi-latents nav :is(button, select) { font: inherit; color: inherit; background: var(--faint); cursor: pointer;
  border: 1px solid var(--line); border-radius: .35em; padding: .25em .6em; max-width: 100%; }
.mi-latents option { color: #222; background: #fff; }
.mi-latents section { border-top: 1px solid var(--line); padding: .6em 0 1em; }
.mi-latents .head { display: flex; flex-wrap: wrap; gap: .1em 1.2em; margin: 0 0 .6em; }
.mi-latents .cards { display: grid; gap: .9em 1.5em;
  grid-template-columns: repeat(auto-fit, minmax(min(10.5em, 100%), 1fr)); }
.mi-latents .name { font-weight: 600; margin: 0 0 .3em; }
.mi-latents .bars { display: flex; align-items: flex-end; gap: 1px; height: 6em; border-bottom: 1px solid var(--line); }
.mi-latents .bars i { flex: 1; background: #d1662f; min-width: 0; }
.mi-latents .ends { display: flex; justify-content: space-between; gap: .5em; font-size: .85em; }
.mi-latents .pair { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: .6em; align-items: baseline; }
.mi-latents .head-row { display: grid; gap: .5em; align-items: center;
  grid-template-columns: 2.8em minmax(0, 1fr) 3.4em; }
.mi-latents .track { display: flex; height: .75em; background: var(--faint); }
.mi-latents .track i { background: #3b6fb6; }
.mi-latents .track i.minus { background: #808a98; }
.mi-latents .number { font-variant-numeric: tabular-nums; text-align: right; }
.mi-latents .token, .mi-latents .chip { font-family: ui-monospace, monospace; white-space: pre-wrap;
  unicode-bidi: isolate; overflow-wrap: anywhere; }
.mi-latents .chip { background: var(--faint); border-radius: .2em; padding: 0 .15em; justify-self: start;
  white-space: pre; max-width: 100%; overflow: hidden; text-overflow: ellipsis; box-sizing: border-box; }
.mi-latents .example { margin: .7em 0 0; }
.mi-latents .strip { line-height: 1.95; }
.mi-latents .token { padding: .1em 0; background: rgba(209,102,47,var(--on, 0));
  border-bottom: 3px solid rgba(59,111,182,var(--from, 0)); }
.mi-latents .peak { outline: 1.5px solid currentColor; border-radius: 2px; }
.mi-latents .quiet { opacity: .8; font-size: .88em; }
.mi-latents .key { display: inline-block; padding: 0 .3em; border-bottom: 3px solid transparent; }
"""

_SCRIPT = """
(() => {
  const root = document.getElementById("NAME"), nav = root.querySelector("nav"), pick = root.querySelector("select");
  const sections = [...root.querySelectorAll("section")];
  const show = i => {
    pick.selectedIndex = i = (i + sections.length) % sections.length;
    sections.forEach((section, j) => { section.hidden = j !== i; });
  };
  nav.hidden = sections.length < 2;
  nav.style.display = nav.hidden ? "none" : "";
  pick.addEventListener("change", () => show(pick.selectedIndex));
  root.querySelectorAll("button").forEach((button, j) =>
    button.addEventListener("click", () => show(pick.selectedIndex + (j ? 1 : -1))));
  show(0);
})();
"""


@dataclass(frozen=True)
class Dashboard:
    """Latents to be looked through one by one, in a notebook or (`save`) as a page of its own."""

    sections: tuple[str, ...]
    names: tuple[str, ...]
    caption: str

    def _repr_html_(self) -> str:
        name = f"latents-{uuid4().hex[:12]}"
        options = "".join(f"<option>{escape(text)}</option>" for text in self.names)
        nav = (
            '<nav hidden style="display:none"><button type="button" aria-label="previous latent">‹</button>'
            f'<select aria-label="latent">{options}</select>'
            '<button type="button" aria-label="next latent">›</button></nav>'
        )
        body = (
            f'<div id="{name}" class="mi-latents"><style>{_STYLE}</style>{nav}{"".join(self.sections)}'
            f"<script>{_SCRIPT.replace('NAME', name)}</script></div>"
        )
        return with_caption(body, self.caption)

    def save(self, path: str | Path) -> None:
        """Write a page that needs nothing but a browser."""
        page = (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Latents</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1"><style>'
            ":root { color-scheme: light dark; } body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; "
            f"margin: 1.5rem auto; padding: 0 1rem; }}</style></head><body>{self._repr_html_()}</body></html>\n"
        )
        atomic_write(Path(path), page.encode())


def dashboard(
    tokenizer: Any,
    record: FeatureActivations,
    examples: Mapping[int, Sequence[Example]],
    weights: LogitWeights | None = None,
    *,
    latents: Sequence[int] | None = None,
    caption: str,
) -> Dashboard:
    """Latents with their density, histogram, strongest examples, and what they promote; in both themes, on any width.

    Args:
        examples: from `top_examples`. Orange: the latent is on. Blue underline, if there is DFA: the token adds to it.
        weights: from `logit_weights`, if the tokens promoted and suppressed are to be shown.
        latents: which, and in which order; by default those of `examples`.

    Errors: `ValueError` for a latent without examples or weights, or no latent at all.

    >>> from mechinterp.models import load
    >>> from mechinterp.sae import SAE, initial
    >>> from mechinterp.sae.latents.features import feature_activations, top_examples
    >>> model, tokens = load("lab", device="cpu"), torch.randint(1, 8192, (4, 16))
    >>> sae = SAE("topk", initial("topk", 256, 512, seed=0), k=8, hook="blocks.2.attn.hook_z")
    >>> record = feature_activations(model, sae, tokens)
    >>> shown = top_examples(model, sae, record, [3, 5])
    >>> dashboard(model.tokenizer, record, shown, caption="Two latents of a random SAE.").names
    ('3', '5')
    """
    chosen = [int(i) for i in (examples if latents is None else latents)]
    if not chosen:
        raise ValueError("no latents to show; give some to top_examples")
    missing = [i for i in chosen if i not in examples]
    if missing:
        raise ValueError(f"no examples of latent {missing[0]}; give it to top_examples")
    rows = {} if weights is None else {int(latent): row for row, latent in enumerate(weights.latents.tolist())}
    if weights is not None and any(i not in rows for i in chosen):
        raise ValueError(f"no logit weights of latent {next(i for i in chosen if i not in rows)}; give all latents")
    sections = []
    for i in chosen:
        cards = [_histogram(record, i)]
        if weights is not None:
            up, down = (
                (weights.promoted[rows[i]], weights.up[rows[i]]),
                (weights.suppressed[rows[i]], weights.down[rows[i]]),
            )
            cards += [_tokens(tokenizer, "Promotes", *up), _tokens(tokenizer, "Suppresses", *down)]
        heads = [e.heads for e in examples[i] if e.heads is not None]
        if heads:
            cards.append(_heads(torch.stack(heads).mean(0), layer_of(record.hook)))
        strips = "".join(_example(tokenizer, e, record.maximum[i].item()) for e in examples[i])
        legend = _LEGEND if heads else ""
        sections.append(
            f'<section aria-label="latent {i}">{_head(record, i)}<div class="cards">{"".join(cards)}</div>'
            f"{legend}{strips}</section>"
        )
    return Dashboard(tuple(sections), tuple(map(str, chosen)), caption)


def token_text(tokenizer: Any, token: int) -> str:
    """A token as text that can be seen: blanks and line breaks as signs, bytes that are not text in hexadecimal.

    >>> from mechinterp.models import load_tokenizer
    >>> lab = load_tokenizer("lab")
    >>> [token_text(lab, i) for i in lab.encode(" Mary\\n")], token_text(lab, lab.convert_tokens_to_ids("âĢ"))
    ([' Mary', '⏎'], '⟨e2 80⟩')
    """
    text = str(tokenizer.decode([token]))
    if "\ufffd" in text:
        piece = str(tokenizer.convert_ids_to_tokens(token))
        if all(c in _BYTES for c in piece):
            return f"⟨{bytes(_BYTES[c] for c in piece).hex(' ')}⟩"
    if not text.strip(" "):
        return "␣" * len(text) or "∅"
    text = text.replace("\r\n", "⏎").replace("\n", "⏎").replace("\r", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() or c == "\u3000" else f"⟨{ord(c):x}⟩" for c in text)


def _byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in GPT-2's vocabulary and its like."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in seen]
    return {chr(b): b for b in seen} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTES = _byte_alphabet()
_LEGEND = (
    '<div class="quiet" style="margin-top:.8em"><span class="key" style="background:rgba(209,102,47,.6)">orange</span> '
    'the latent is on; <span class="key" style="border-bottom-color:#3b6fb6">blue</span> '
    "the token adds to it through attention (DFA); outlined: where it is strongest.</div>"
)


def _head(record: FeatureActivations, i: int) -> str:
    density, high = record.density[i].item(), record.maximum[i].item()
    facts = f"on at {_percent(density)} of tokens; largest {high:.3g}" if high > 0 else "never on in this text"
    return f'<div class="head"><b>Latent {i}</b><span>{facts}</span></div>'


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %" if 100 * share >= 0.001 else f"{100 * share:.0e} %"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−") if round(value, 2) else "0.00"


def _card(name: str, body: str) -> str:
    return f'<div><div class="name">{name}</div>{body}</div>'


def _histogram(record: FeatureActivations, i: int) -> str:
    counts = record.histogram[i]
    if not counts.any():
        return _card("Activations", '<span class="quiet">none</span>')
    counts = counts[: int(counts.nonzero().max()) + 1]
    edge = 2.0 ** int(record.exponent[i]) * len(counts) / record.histogram.shape[1]
    heights = (counts + 1).log() / (counts.max() + 1).log()
    bars = "".join(
        f'<i style="height:{100 * h:.0f}%" title="{c} tokens"></i>'
        for h, c in zip(heights.tolist(), counts.tolist(), strict=True)
    )
    label = f"{int(counts.sum())} activations between 0 and {edge:.3g}; at most {int(counts.max())} in a bin"
    return _card(
        "Activations",
        f'<div class="bars" role="img" aria-label="{label}">{bars}</div>'
        f'<div class="ends"><span>0</span><span>{edge / 2:.3g}</span><span>{edge:.3g}</span></div>'
        f'<div class="quiet">tallest bar: {int(counts.max())}, log scale</div>',
    )


def _tokens(tokenizer: Any, name: str, tokens: Tensor, values: Tensor) -> str:
    rows = "".join(
        f'<div class="pair"><span class="chip" title="{escape(text)}">{escape(text)}</span>'
        f'<span class="number">{_signed(v)}</span></div>'
        for text, v in zip([token_text(tokenizer, t) for t in tokens.tolist()], values.tolist(), strict=True)
    )
    return _card(name, rows)


def _heads(values: Tensor, layer: int | None) -> str:
    scale = values.abs().max().clamp(min=1e-12)
    rows = "".join(
        f'<div class="head-row"><span>{"" if layer is None else f"{layer}."}{h}</span><span class="track">'
        f'<i class="{"minus" if v < 0 else "plus"}" style="width:{100 * abs(v) / scale:.0f}%"></i></span>'
        f'<span class="number">{_signed(v)}</span></div>'
        for h, v in enumerate(values.tolist())
    )
    return _card("Heads (mean DFA)", rows)


def _example(tokenizer: Any, example: Example, largest: float) -> str:
    sources = example.sources
    reach = None if sources is None else sources.abs().max().clamp(min=1e-12)
    spans, last = [], -1
    for n, (position, token, on) in enumerate(
        zip(example.positions.tolist(), example.tokens.tolist(), example.activations.tolist(), strict=True)
    ):
        if position != last + 1:
            spans.append('<span class="quiet"> … </span>')
        last = position
        style, title = [], [f"position {position}", f"latent {on:.3g}"]
        if on > 0:
            style.append(f"--on:{0.1 + 0.5 * min(1.0, on / max(largest, 1e-12)):.2f}")
        if sources is not None and reach is not None:
            title.append(f"DFA {_signed(sources[n].item())}")
            if sources[n] > 0.05 * reach:
                style.append(f"--from:{min(1.0, (sources[n] / reach).item()):.2f}")
        css = f' style="{";".join(style)}"' if style else ""
        text = token_text(tokenizer, token)
        word = text.lstrip(" ")
        inner = f'<span class="peak">{escape(word)}</span>' if position == example.position else escape(word)
        # The spaces stay outside the outline, so that a line may break there.
        spaces = " " * (len(text) - len(word))
        spans.append(f'<span class="token"{css} title="{", ".join(title)}">{spaces}{inner}</span>')
    where = f'<span class="quiet">{example.value:.3g} at prompt {example.prompt}, position {example.position}</span>'
    return f'<div class="example">{where}<div class="strip">{"".join(spans)}</div></div>'
