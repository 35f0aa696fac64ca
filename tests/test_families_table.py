"""The table function × family of the API page: made here, kept in book/families.html, compared every time.

A cell says "exact" where the function runs; that its numbers are right to 1e-4 is what the tests named
`test_families` hold, for every family. Refusals are quoted. After a change that is meant:

    python tests/test_families_table.py
"""

import inspect
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import torch
from families import FAMILIES, HEADS, LAYERS, VOCAB, WIDTH, bridge

from mechinterp import attention, circuits, copy_suppression, patching, sae, successor
from mechinterp.heads import Head
from mechinterp.sae.latents import attribution, features, interventions

PAGE = Path(__file__).parent.parent / "book" / "families.html"
G = torch.Generator().manual_seed(0)
TOKENS, OTHER = (torch.randint(1, VOCAB, (2, 8), generator=G) for _ in range(2))
AT, RIGHT, WRONG = torch.tensor([7, 5]), torch.tensor([3, 4]), torch.tensor([9, 12])
EARLY, LATE = Head(0, 1), Head(2, 2)
WORDS = successor.Class("letters", ("a", "b", "c"), torch.tensor([5, 6, 7]), torch.arange(3), torch.tensor([0, 1]),
                        torch.tensor([1, 2]), 3)  # fmt: skip


def metric(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 3] - logits[:, 9]


def an_sae(model: Any, hook: str, width: int) -> Any:
    return sae.SAE("standard", sae.initial("standard", width, 2 * width, seed=0), hook=hook)


def z_sae(model: Any, layer: int = 2) -> Any:
    d = patching.record(model, TOKENS).z.shape[-1]
    return an_sae(model, f"blocks.{layer}.attn.hook_z", HEADS * d)


def setting(model: Any) -> Any:
    means = patching.mean_reference(model, OTHER, torch.zeros(2, dtype=torch.long))
    return circuits.Setting(model, TOKENS, {"END": AT}, AT, metric, means)


P: dict[str, Any] = {"metric": metric, "at": AT}
CALLS: dict[str, Callable[[Any], Any]] = {
    "patching.path_patch": lambda m: patching.path_patch(m, TOKENS, OTHER, **P),
    "patching.path_patch, to queries": lambda m: patching.path_patch(m, TOKENS, OTHER, **P, receivers=[(LATE, "q")]),
    "patching.path_patch, to keys": lambda m: patching.path_patch(m, TOKENS, OTHER, **P, receivers=[(LATE, "k")]),
    "patching.path_patch, to values": lambda m: patching.path_patch(m, TOKENS, OTHER, **P, receivers=[(LATE, "v")]),
    "patching.follow_back": lambda m: patching.follow_back(m, TOKENS, OTHER, least=0.5, **P),
    "patching.activation_patch": lambda m: patching.activation_patch(m, TOKENS, OTHER, node="z", **P),
    "patching.activation_patch, resid_mid": lambda m: patching.activation_patch(
        m, TOKENS, OTHER, node="resid_mid", **P
    ),
    "patching.replace": lambda m: patching.replace(
        m, TOKENS, patching.record(m, OTHER), heads=patching.mask(m, TOKENS.shape, {LATE: None}), at=AT
    ),
    "patching.record": lambda m: patching.record(m, TOKENS),
    "patching.mean_reference": lambda m: patching.mean_reference(m, TOKENS, torch.zeros(2, dtype=torch.long)),
    "patching.mask": lambda m: patching.mask(m, TOKENS.shape, {LATE: None}),
    "patching.logits_at": lambda m: patching.logits_at(m, TOKENS, AT),
    "patching.value_biases": patching.value_biases,
    "patching.direct_logit_attribution": lambda m: patching.direct_logit_attribution(m, TOKENS, AT, RIGHT, WRONG),
    "patching.logit_lens": lambda m: patching.logit_lens(m, TOKENS, AT),
    "attention.patterns": lambda m: attention.patterns(m, TOKENS, [LATE]),
    "attention.attention_to": lambda m: attention.attention_to(m, TOKENS, AT, AT),
    "attention.direct_projection": lambda m: attention.direct_projection(m, TOKENS, AT, RIGHT),
    "attention.copy_scores": lambda m: attention.copy_scores(m, TOKENS, [AT]),
    "attention.previous_token_scores": lambda m: attention.previous_token_scores(m, n=2, length=5),
    "attention.duplicate_token_scores": lambda m: attention.duplicate_token_scores(m, n=2, length=5),
    "attention.induction_scores": lambda m: attention.induction_scores(m, n=2, length=5),
    "attention.repeated_tokens": lambda m: attention.repeated_tokens(m, n=2, length=5),
    "attention.broken_pairs": lambda m: attention.broken_pairs(
        m, TOKENS, LATE, torch.ones(2, 8, 8).tril(-3).bool(), torch.arange(1, 9), least=0.001
    ),
    "attention.ov_circuit": lambda m: attention.ov_circuit(m, LATE),
    "attention.qk_circuit": lambda m: attention.qk_circuit(m, LATE),
    "attention.effective_embedding": lambda m: attention.effective_embedding(m, RIGHT),
    "attention.contextual_embeddings": lambda m: attention.contextual_embeddings(m, TOKENS, [1, 2], TOKENS[0]),
    "attention.contextual_embedding": lambda m: attention.contextual_embedding(m, TOKENS, 1),
    "attention.composition": lambda m: attention.composition(attention.HeadWeights.of(m), "q"),
    "circuits.faithfulness": lambda m: circuits.faithfulness(setting(m), circuits.from_roles({"name mover": [LATE]})),
    "copy_suppression.records": lambda m: list(copy_suppression.records(m, TOKENS, [2])),
    "copy_suppression.head_means": lambda m: copy_suppression.head_means(m, TOKENS, [LATE]),
    "copy_suppression.cspa": lambda m: copy_suppression.cspa(m, TOKENS, [LATE], progress=False),
    "copy_suppression.head_paths": lambda m: copy_suppression.head_paths(m, TOKENS, EARLY),
    "copy_suppression.cases": lambda m: copy_suppression.cases(m, TOKENS, LATE),
    "copy_suppression.attended_pairs": lambda m: copy_suppression.attended_pairs(m, TOKENS, [LATE], threshold=0.01),
    "copy_suppression.calibration": lambda m: copy_suppression.calibration(m, TOKENS, [LATE]),
    "copy_suppression.view": lambda m: copy_suppression.view(m, TOKENS[0], LATE),
    "copy_suppression.key_projection": lambda m: copy_suppression.key_projection(
        m, TOKENS, LATE, torch.ones(2, 8, dtype=torch.bool)
    ),
    "copy_suppression.fit_scores": lambda m: copy_suppression.fit_scores(m, TOKENS, LATE),
    "copy_suppression.qk_projection": lambda m: copy_suppression.qk_projection(m, TOKENS, LATE, progress=False),
    "copy_suppression.self_repair": lambda m: copy_suppression.self_repair(
        m, TOKENS, AT, RIGHT, WRONG, [EARLY], patching.record(m, OTHER).z
    ),
    "copy_suppression.attention_after": lambda m: copy_suppression.attention_after(m, TOKENS, OTHER, [EARLY], LATE, AT),
    "copy_suppression.query_projection": lambda m: copy_suppression.query_projection(
        m, TOKENS, AT, RIGHT, WRONG, [EARLY], patching.record(m, OTHER).z, [LATE]
    ),
    "copy_suppression.token_vectors": lambda m: copy_suppression.token_vectors(m, "W_U"),
    "copy_suppression.ov_ranks": lambda m: copy_suppression.ov_ranks(m, LATE),
    "copy_suppression.qk_ranks": lambda m: copy_suppression.qk_ranks(m, LATE),
    "copy_suppression.qk_ranks_at": lambda m: copy_suppression.qk_ranks_at(m, LATE, (1, 2)),
    "copy_suppression.rank_tests": lambda m: copy_suppression.rank_tests(m, [LATE], progress=False),
    "copy_suppression.composition_ranks": lambda m: copy_suppression.composition_ranks(m, EARLY, LATE, RIGHT),
    "successor.representations": lambda m: successor.representations(m, RIGHT),
    "successor.class_logits": lambda m: successor.class_logits(m, torch.randn(3, WIDTH), WORDS.ids),
    "successor.head_logits": lambda m: successor.head_logits(m, LATE, torch.randn(3, WIDTH), WORDS.ids),
    "successor.table": lambda m: successor.table(m, LATE, WORDS),
    "successor.arithmetic_grid": lambda m: successor.arithmetic_grid(m, LATE, WORDS, torch.randn(10, WIDTH)),
    "successor.neuron_ablation": lambda m: successor.neuron_ablation(m, LATE, WORDS),
    "successor.direct_effects": lambda m: successor.direct_effects(m, TOKENS),
    "successor.total_effects": lambda m: successor.total_effects(m, TOKENS, LATE, torch.ones(2, 7, dtype=torch.bool)),
    "sae.activations": lambda m: sae.activations(m, TOKENS, ["blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"]),
    "sae.logits": lambda m: sae.logits(m, TOKENS, "blocks.1.hook_mlp_out", lambda x: 0.5 * x),
    "sae.site": lambda m: sae.site(m, TOKENS, "blocks.2.attn.hook_z"),
    "sae.evaluate": lambda m: sae.evaluate(m, z_sae(m), sae.site(m, TOKENS, "blocks.2.attn.hook_z")),
    "sae.latents.spliced_logits": lambda m: interventions.spliced_logits(m, TOKENS, z_sae(m)),
    "sae.latents.ablation_effects": lambda m: interventions.ablation_effects(
        m, TOKENS, z_sae(m), torch.arange(3), AT, metric
    ),
    "sae.latents.feature_activations": lambda m: features.feature_activations(m, z_sae(m), TOKENS, progress=False),
    "sae.latents.direct_logits": lambda m: features.direct_logits(m, z_sae(m), torch.arange(3)),
    "sae.latents.logit_weights": lambda m: features.logit_weights(m, z_sae(m), torch.arange(3)),
    "sae.latents.dfa_by_source": lambda m: attribution.dfa_by_source(m, z_sae(m), TOKENS, torch.tensor([1, 2]), AT),
    "sae.latents.recursive_dfa": lambda m: attribution.recursive_dfa(m, {2: z_sae(m)}, TOKENS[0], 2, 5, 1),
}
ELSEWHERE = {
    "successor.successor_scores": "`class_logits` over the tasks that the tokenizer has",
    "successor.shuffled_scores": "`successor_scores` of shuffled lists",
    "successor.winning_cases": "`direct_effects` and patterns",
}
"""Functions that add nothing of an architecture to others of the table."""


def public_functions() -> set[str]:
    """Every function of these rooms whose first argument is a model."""
    rooms = {"patching": patching, "attention": attention, "circuits": circuits, "copy_suppression": copy_suppression}
    rooms |= {"successor": successor, "sae": sae}
    found = set()
    for room, module in rooms.items():
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isfunction(inspect.unwrap(thing)) and [*inspect.signature(thing).parameters][:1] == ["model"]:
                found.add(f"{room}.{name}")
    return found


def outcome(call: Callable[[Any], Any], family: str) -> str:
    try:
        call(bridge(family))
    except ValueError as error:
        return str(error).split(";")[0].split(": ")[0]
    return ""


def table() -> str:
    """HTML: a tick where a function runs, a letter where it refuses, and what the letters mean."""
    reasons: dict[str, str] = {}
    rows = []
    for name, call in CALLS.items():
        cells = []
        for family in FAMILIES:
            refusal = outcome(call, family)
            if refusal:
                letter = reasons.setdefault(refusal, chr(ord("a") + len(reasons)))
                cells.append(f'<td title="{escape(refusal, quote=True)}">{letter}</td>')
            else:
                cells.append("<td>✓</td>")
        rows.append(f"<tr><th><code>{escape(name)}</code></th>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(family)}</th>" for family in FAMILIES)
    notes = "".join(f"<li><b>{letter}</b> {escape(reason)}</li>" for reason, letter in reasons.items())
    return (
        '<div class="families" style="overflow-x:auto;max-width:100%" tabindex="0" role="region" '
        'aria-label="Which function runs on which family">\n<table>\n'
        f"<tr><th></th>{head}</tr>\n" + "\n".join(rows) + f"\n</table>\n</div>\n<ul>{notes}</ul>\n"
    )


def test_every_public_function_that_takes_a_model_is_in_the_table() -> None:
    assert public_functions() - {name.split(",")[0] for name in CALLS} - set(ELSEWHERE) == set()


def test_the_table_on_the_page_is_what_runs() -> None:
    assert LAYERS == 3
    assert table() == PAGE.read_text(encoding="utf8"), "run python tests/test_families_table.py and look at the change"


if __name__ == "__main__":
    PAGE.write_text(table(), encoding="utf8")
