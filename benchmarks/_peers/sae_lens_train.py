"""Train SAEs with SAELens, in its own environment; see `common`.

Its `SAETrainer` on an iterator of batches or on its `ActivationsStore` with a `HookedTransformer`, activations scaled
to a mean norm of √d_in as its documentation has it, nothing logged. A job's sparsity is l1_coefficient (standard,
gated), l0_coefficient (jumprelu) or k (topk). Its jumprelu's kernel and first threshold are what ours are in those
units; with its defaults, which are 15 times narrower, short runs stay at hundreds of latents.
"""

from types import SimpleNamespace
from typing import Any

import torch
from common import Timed, clock, gpt2, main
from sae_lens import (
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    SAETrainer,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.activations_store import ActivationsStore

CONTEXTS = 200  # rows in the buffer, as in ours
BANDWIDTH, THRESHOLD = 0.03, 0.01  # for inputs of mean square norm one


def store(job: SimpleNamespace) -> ActivationsStore:
    """Its own store, which runs a `HookedTransformer` up to the layer."""
    from datasets import Dataset
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    raw, tokenizer, rows = gpt2(job)
    shape = raw.config
    config = HookedTransformerConfig(
        n_layers=shape.n_layer,
        d_model=shape.n_embd,
        n_ctx=shape.n_positions,
        n_heads=shape.n_head,
        d_head=shape.n_embd // shape.n_head,
        d_mlp=4 * shape.n_embd,
        d_vocab=shape.vocab_size,
        act_fn="gelu_new",
        normalization_type="LN",
        eps=shape.layer_norm_epsilon,
        device=job.device,
    )
    model = HookedTransformer(config, tokenizer=tokenizer)
    model.load_state_dict(convert_gpt2_weights(raw, config), strict=False)
    return ActivationsStore(
        model=model,
        dataset=Dataset.from_dict({"tokens": rows.tolist()}),
        streaming=False,
        hook_name=f"blocks.{job.layer}.hook_mlp_out",
        hook_head_index=None,
        context_size=rows.shape[1],
        d_in=shape.n_embd,
        n_batches_in_buffer=CONTEXTS,
        total_training_tokens=job.steps * job.batch,
        store_batch_size_prompts=32,
        train_batch_size_tokens=job.batch,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device(job.device),
        dtype="float32",
        exclude_special_tokens=torch.tensor([tokenizer.bos_token_id], device=job.device),
    )


def train(job: SimpleNamespace, batches: Timed, d_in: int) -> tuple[float, Any]:
    """One SAE."""
    shared = {
        "d_in": d_in,
        "d_sae": job.d_sae,
        "normalize_activations": "expected_average_only_in",
        "device": job.device,
    }
    warm_up = job.steps // 20
    match job.kind:
        case "standard":
            config = StandardTrainingSAEConfig(**shared, l1_coefficient=job.sparsity, l1_warm_up_steps=warm_up)
            sae = StandardTrainingSAE(config)
        case "gated":
            config = GatedTrainingSAEConfig(**shared, l1_coefficient=job.sparsity, l1_warm_up_steps=warm_up)
            sae = GatedTrainingSAE(config)
        case "jumprelu":
            config = JumpReLUTrainingSAEConfig(
                **shared,
                l0_coefficient=job.sparsity,
                l0_warm_up_steps=warm_up,
                jumprelu_bandwidth=BANDWIDTH * d_in**0.5,
                jumprelu_init_threshold=THRESHOLD * d_in**0.5,
            )
            sae = JumpReLUTrainingSAE(config)
        case "topk":
            sae = TopKTrainingSAE(TopKTrainingSAEConfig(**shared, k=int(job.sparsity)))
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=job.steps * job.batch,
            train_batch_size_samples=job.batch,
            lr=job.lr,
            lr_end=job.lr,
            lr_warm_up_steps=warm_up,
            feature_sampling_window=job.steps + 1,
            n_batches_for_norm_estimate=20,
            device=job.device,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae,
        batches,
    )
    trainer.fit()
    seconds = clock(job.device) - batches.asked[-job.steps]
    sae.save_inference_model(job.folder)
    return seconds, sae


if __name__ == "__main__":
    main(__doc__, train, store)
