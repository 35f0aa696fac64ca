"""Train an SAE with SAELens on activations in memory, in SAELens' own environment.

Its `SAETrainer` on an iterator of batches, activations scaled to a mean norm of √d_in as its documentation has it,
nothing logged. --sparsity is l1_coefficient (standard, gated), l0_coefficient (jumprelu) or k (topk).
"""

import time

from common import WARM, Batches, arguments, quiet, report
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


def main() -> None:
    args = arguments(__doc__)
    batches = Batches(args.activations, args.batch, args.seed)
    shared = {"d_in": batches.x.shape[1], "d_sae": args.d_sae, "normalize_activations": "expected_average_only_in"}
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
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae,
        batches,
    )
    with quiet():
        trainer.fit()
    seconds = time.perf_counter() - batches.asked[WARM - args.steps]
    report(seconds, args, sae.encode, sae.decode)


if __name__ == "__main__":
    main()
