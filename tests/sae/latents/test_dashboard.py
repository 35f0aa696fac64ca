"""Pages are whole whatever the tokens are, and say what the tensors say."""

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechinterp.sae import SAE, initial
from mechinterp.sae.latents.dashboard import Dashboard, dashboard, token_text
from mechinterp.sae.latents.features import (
    Example,
    FeatureActivations,
    feature_activations,
    logit_weights,
    top_examples,
)

CAPTION = 'a < b & "c"'
WORDS = ("<bos>", "<", "&", "</script><b>", "\n", '"', " 'x", " ", "\x1b[0m", "\u202eabc", "مرحبا", "\t\r\n")


class Words:
    """A tokenizer of a few odd words."""

    def decode(self, ids: list[int]) -> str:
        return "".join(WORDS[i] for i in ids)


class Page(HTMLParser):
    """Fails on an element that is closed without being open; keeps tokens, chips and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.tags: list[str] = []
        self.tokens: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "br", "link"):
            self.open.append((tag, dict(attrs)))
            if "token" in (dict(attrs).get("class") or "").split():
                self.tokens.append(("", dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if any("token" in (attrs.get("class") or "").split() for _, attrs in self.open):
            self.tokens[-1] = (self.tokens[-1][0] + data, self.tokens[-1][1])


def record(n: int = 3) -> FeatureActivations:
    """Latent 0 is on often, 1 once, 2 never."""
    histogram = torch.zeros(n, 32, dtype=torch.long)
    histogram[0, :20] = torch.arange(20) + 1
    histogram[1, 16] = 1
    tokens = torch.arange(12)[None]
    value = torch.tensor([[5.0], [0.25], [0.0]])
    where = torch.tensor([[3], [6], [-1]])
    active, exponent = torch.tensor([6, 1, 0]), torch.tensor([3, -1, 0])
    counted = torch.ones(1, 12, dtype=torch.bool)
    return FeatureActivations(
        "blocks.4.attn.hook_z", tokens, counted, where * 0, where, value, active, histogram, exponent
    )


def example(dfa: bool = True) -> Example:
    positions = torch.tensor([0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11])
    on = torch.zeros(11)
    on[[2, 3, 9]] = torch.tensor([2.5, 5.0, 1.0])
    parts = (torch.tensor([4.0, -1.0, 0.0]), torch.arange(11.0) - 2) if dfa else (None, None)
    return Example(0, 3, 5.0, positions, positions, on, *parts)


def one(dfa: bool = True) -> Dashboard:
    return dashboard(Words(), record(), {0: (example(dfa),), 1: (), 2: ()}, caption=CAPTION)


def test_a_page_is_whole_and_fetches_nothing(tmp_path: Path) -> None:
    html = one()._repr_html_()
    page = Page(html)
    assert page.tags.count("script") == html.count("</script>") == 1
    assert "b" not in [tag for tag, _ in page.open]
    assert page.tags.count("b") == 3, "the heads of three sections, none from a token"
    assert "a &lt; b &amp; " in html
    assert not re.search(r"src=|href=|url\(|https?:|@import", html)
    one().save(tmp_path / "page.html")
    saved = (tmp_path / "page.html").read_text(encoding="utf8")
    Page(saved.removeprefix("<!doctype html>"))
    assert 'charset="utf-8"' in saved
    assert "width=device-width" in saved
    assert "color-scheme: light dark" in saved
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_two_dashboards_on_a_page_do_not_share_an_id() -> None:
    ids = [re.findall(r'id="([^"]+)"', one()._repr_html_()) for _ in range(2)]
    assert len(ids[0]) == 1
    assert ids[0] != ids[1]
    assert f'getElementById("{ids[0][0]}")' not in one()._repr_html_()


def test_every_token_is_shown_with_its_shade() -> None:
    page = Page(one()._repr_html_())
    shown = [text for text, _ in page.tokens]
    odd = ["<bos>", "<", "&", "</script><b>", "⏎", " 'x", "␣", "⟨1b⟩[0m", "⟨202e⟩abc", "مرحبا", "⇥⏎"]
    assert shown == odd, "position 5 is not among those shown"
    on = [
        float(re.search(r"--on:([\d.]+)", a["style"] or "")[1]) if "--on" in (a.get("style") or "") else 0
        for _, a in page.tokens
    ]
    assert [i for i, x in enumerate(on) if x] == [2, 3, 9]
    assert on[3] == max(on) <= 0.6, "the ink stays readable"
    assert on[3] > on[2] > on[9] > 0
    blue = ["--from" in (a.get("style") or "") for _, a in page.tokens]
    assert blue == [x > 0.05 * 8 for x in range(-2, 9)], "only what adds"
    assert "latent 2.5, DFA 0.00" in (page.tokens[2][1]["title"] or "")
    assert one()._repr_html_().count('class="peak"') == 1
    assert page.text.count("…") == 1, "a gap before position 6"


def test_what_the_cards_say() -> None:
    page = Page(one()._repr_html_())
    assert "Latent 0on at 50 % of tokens" in page.text
    assert "largest 5" in page.text
    assert "never on in this text" in page.text
    assert "4.0+4.00" in page.text
    assert "4.1−1.00" in page.text
    html = one()._repr_html_()
    first = html.split("<section")[1]
    heights = [int(h) for h in re.findall(r'height:(\d+)%" title="\d+ tokens"', first)]
    assert len(heights) == 20
    assert heights == sorted(heights)
    assert heights[-1] == 100
    assert "<span>5</span>" in first, "20 of 32 bins up to 8"
    assert "Heads" not in one(dfa=False)._repr_html_()
    assert "DFA" not in Page(one(dfa=False)._repr_html_()).text


def test_from_the_lab_model(lab: Any) -> None:
    sae = SAE("topk", initial("topk", 256, 300, seed=0), k=5, hook="blocks.2.attn.hook_z")
    tokens = torch.randint(1, 8192, (6, 20), generator=torch.Generator().manual_seed(0))
    found = feature_activations(lab, sae, tokens, top=5)
    latents = found.density.argsort(descending=True)[:3].tolist()
    weights, examples = logit_weights(lab, sae, n=4), top_examples(lab, sae, found, latents, n=2)
    shown = dashboard(lab.tokenizer, found, examples, weights, latents=latents[::-1], caption=CAPTION)
    assert shown.names == tuple(str(i) for i in latents[::-1])
    html = shown._repr_html_()
    page = Page(html)
    assert re.findall(r"<option>(\d+)</option>", html) == list(shown.names)
    assert page.tags.count("section") == 3
    for i, section in zip(latents[::-1], html.split("<section")[1:], strict=True):
        chips = [unescape(c) for c in re.findall(r'class="chip" title="([^"]*)"', section)]
        ids = [*weights.promoted[i].tolist(), *weights.suppressed[i].tolist()]
        assert chips == [token_text(lab.tokenizer, t) for t in ids]
        assert section.count('class="example"') == len(examples[i])
        assert f"prompt {examples[i][0].prompt}, position {examples[i][0].position}" in section
        assert section.count("2.7") >= 1, "eight heads of layer 2"


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 8191))
def test_any_token_of_a_byte_vocabulary_can_be_seen(tokenizer: Any, token: int) -> None:
    text = token_text(tokenizer, token)
    assert text.strip(" ")
    assert text.isprintable()
    assert "\ufffd" not in text
    plain = tokenizer.decode([token])
    if plain.strip(" ") and plain.isprintable() and "\ufffd" not in plain:
        assert text == plain


def test_bytes_that_are_no_text_are_shown_in_hexadecimal(tokenizer: Any) -> None:
    pieces = tokenizer.encode("日", add_special_tokens=False)
    assert len(pieces) == len("日".encode()) == 3
    assert [token_text(tokenizer, i) for i in pieces] == ["⟨e6⟩", "⟨97⟩", "⟨a5⟩"]
    assert token_text(tokenizer, tokenizer.convert_tokens_to_ids("âĢ")) == "⟨e2 80⟩"


def test_questions_that_cannot_be_answered(lab: Any) -> None:
    with pytest.raises(ValueError, match="no latents to show"):
        dashboard(Words(), record(), {}, caption="c")
    with pytest.raises(ValueError, match="no examples of latent 2"):
        dashboard(Words(), record(), {0: ()}, latents=[0, 2], caption="c")
    sae = SAE("topk", initial("topk", 256, 300, seed=0), k=5, hook="blocks.2.attn.hook_z")
    weights = logit_weights(lab, sae, torch.tensor([0]), n=2)
    with pytest.raises(ValueError, match="no logit weights of latent 1"):
        dashboard(Words(), record(), {0: (), 1: ()}, weights, caption="c")
    odd = replace(example(), tokens=torch.zeros(11, dtype=torch.long))
    assert Page(dashboard(Words(), record(), {0: (odd,)}, caption="c")._repr_html_()).tokens[0][0] == "<bos>"
