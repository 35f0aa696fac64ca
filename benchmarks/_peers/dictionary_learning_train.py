"""Train an SAE with dictionary_learning on activations in memory, in its own environment.

Its `trainSAE` on an iterator of batches, activations scaled to a mean square norm of one by itself, nothing logged.
--sparsity is l1_penalty (standard, gated), target_l0 (jumprelu) or k (topk).
"""

import tempfile
from pathlib import Path

from common import WARM, Batches, arguments, quiet, report
from dictionary_learning import AutoEncoder, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.standard import StandardTrainer
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from dictionary_learning.training import trainSAE

KINDS = {
    "standard": (StandardTrainer, AutoEncoder, "l1_penalty"),
    "gated": (GatedSAETrainer, GatedAutoEncoder, "l1_penalty"),
    "jumprelu": (JumpReluTrainer, JumpReluAutoEncoder, "target_l0"),
    "topk": (TopKTrainer, AutoEncoderTopK, "k"),
}


def main() -> None:
    args = arguments(__doc__)
    batches = Batches(args.activations, args.batch, args.seed)
    trainer, autoencoder, sparsity = KINDS[args.kind]
    warm_up = args.steps // 20
    config = {
        "trainer": trainer,
        "steps": args.steps,
        "activation_dim": batches.x.shape[1],
        "dict_size": args.d_sae,
        "layer": 0,
        "lm_name": "none",
        "lr": args.lr,
        "warmup_steps": warm_up,
        "seed": args.seed,
        "device": "cpu",
        sparsity: int(args.sparsity) if args.kind == "topk" else args.sparsity,
    }
    if args.kind != "topk":
        config["sparsity_warmup_steps"] = warm_up
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainSAE(batches, [config], steps=args.steps, save_dir=folder, normalize_activations=True, device="cpu")
        sae = autoencoder.from_pretrained(str(Path(folder) / "trainer_0" / "ae.pt"))
    # The batch after the last step is asked for, too, and marks its end.
    seconds = batches.asked[-1] - batches.asked[WARM - args.steps - 1]
    report(seconds, args, sae.encode, sae.decode)


if __name__ == "__main__":
    main()
