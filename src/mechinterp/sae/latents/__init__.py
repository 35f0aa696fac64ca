"""What the latents of an SAE do in a model, and what they are about.

`dashboard.dashboard` and `themes.themes`, which have the names of their modules, are imported from there.
"""

from mechinterp.sae.latents.attribution import (
    Attribution,
    Term,
    dfa_by_head,
    dfa_by_source,
    encoder_map,
    head_shares,
    recursive_dfa,
    upstream_residual,
)
from mechinterp.sae.latents.dashboard import Dashboard, token_text
from mechinterp.sae.latents.explorer import latent_views
from mechinterp.sae.latents.families import ContextTest, Sources, context_test, control, folded, sources
from mechinterp.sae.latents.features import (
    Example,
    FeatureActivations,
    LogitWeights,
    direct_logits,
    feature_activations,
    logit_weights,
    top_examples,
)
from mechinterp.sae.latents.interventions import (
    AblationEffects,
    LatentEdit,
    ablate,
    ablation_effects,
    splice,
    spliced_logits,
    steer,
)
from mechinterp.sae.latents.themes import HeadKinds, Themes, head_kinds

__all__ = [
    "AblationEffects",
    "Attribution",
    "ContextTest",
    "Dashboard",
    "Example",
    "FeatureActivations",
    "HeadKinds",
    "LatentEdit",
    "LogitWeights",
    "Sources",
    "Term",
    "Themes",
    "ablate",
    "ablation_effects",
    "context_test",
    "control",
    "dfa_by_head",
    "dfa_by_source",
    "direct_logits",
    "encoder_map",
    "feature_activations",
    "folded",
    "head_kinds",
    "head_shares",
    "latent_views",
    "logit_weights",
    "recursive_dfa",
    "sources",
    "splice",
    "spliced_logits",
    "steer",
    "token_text",
    "top_examples",
    "upstream_residual",
]
