"""Train an SAE with SAELens, in SAELens' own environment.

Its `SAETrainer` on an iterator of batches or on its `ActivationsStore` with a `HookedTransformer`, activations scaled
to a mean norm of √d_in as its documentation has it, nothing logged. --sparsity is l1_coefficient (standard, gated),
l0_coefficient (jumprelu) or k (topk).
"""

import argparse

import torch
from common import WARM, Timed, arguments, clock, gpt2, in_memory, quiet, report
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


def store(args: argparse.Namespace) -> ActivationsStore:
    """Its own store, which runs a `HookedTransformer` up to the layer."""
    from datasets import Dataset
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    raw, tokenizer, rows = gpt2(args)
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
        device=args.device,
    )
    model = HookedTransformer(config, tokenizer=tokenizer)
    model.load_state_dict(convert_gpt2_weights(raw, config), strict=False)
    return ActivationsStore(
        model=model,
        dataset=Dataset.from_dict({"tokens": rows.tolist()}),
        streaming=False,
        hook_name=f"blocks.{args.layer}.hook_mlp_out",
        hook_head_index=None,
        context_size=rows.shape[1],
        d_in=shape.n_embd,
        n_batches_in_buffer=CONTEXTS,
        total_training_tokens=args.steps * args.batch,
        store_batch_size_prompts=32,
        train_batch_size_tokens=args.batch,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device(args.device),
        dtype="float32",
        exclude_special_tokens=torch.tensor([tokenizer.bos_token_id], device=args.device),
    )


def main() -> None:
    args = arguments(__doc__)
    source = in_memory(args) if args.activations else store(args)
    first = next(source)
    batches = Timed(source, args.device)
    shared = {
        "d_in": first.shape[1],
        "d_sae": args.d_sae,
        "normalize_activations": "expected_average_only_in",
        "device": args.device,
    }
    warm_up = args.steps // 20
    match args.kind:
        case "standard":
            config = StandardTrainingSAEConfig(**shared, l1_coefficient=args.sparsity, l1_warm_up_steps=warm_up)
            sae = StandardTrainingSAE(config)
        case "gated":
            config = GatedTrainingSAEConfig(**shared, l1_coefficient=args.sparsity, l1_warm_up_steps=warm_up)
            sae = GatedTrainingSAE(config)
        case "jumprelu":
            config = JumpReLUTrainingSAEConfig(**shared, l0_coefficient=args.sparsity, l0_warm_up_steps=warm_up)
            sae = JumpReLUTrainingSAE(config)
        case "topk":
            sae = TopKTrainingSAE(TopKTrainingSAEConfig(**shared, k=int(args.sparsity)))
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=args.steps * args.batch,
            train_batch_size_samples=args.batch,
            lr=args.lr,
            lr_end=args.lr,
            feature_sampling_window=args.steps + 1,
            n_batches_for_norm_estimate=20,
            device=args.device,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae,
        batches,
    )
    with quiet():
        trainer.fit()
    warm = WARM if args.activations else 0
    seconds = clock(args.device) - batches.asked[warm - args.steps]
    report(seconds, args.steps - warm, args, sae.encode, sae.decode)


if __name__ == "__main__":
    main()
