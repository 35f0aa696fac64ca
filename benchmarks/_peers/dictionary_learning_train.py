"""Train an SAE with dictionary_learning, in its own environment.

Its `trainSAE` on an iterator of batches or on its `ActivationBuffer` with nnsight's `LanguageModel`, activations scaled
to a mean square norm of one by itself, nothing logged. --sparsity is l1_penalty (standard, gated), target_l0 (jumprelu)
or k (topk).
"""

import argparse
import itertools
import tempfile
from pathlib import Path

from common import WARM, Timed, arguments, gpt2, in_memory, quiet, report
from dictionary_learning import ActivationBuffer, AutoEncoder, GatedAutoEncoder, JumpReluAutoEncoder
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


CONTEXTS = 200  # rows in the buffer, as in ours


def buffer(args: argparse.Namespace) -> ActivationBuffer:
    """Its own buffer, which stops the model behind the layer."""
    from nnsight import LanguageModel

    raw, tokenizer, rows = gpt2(args)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = LanguageModel(raw, tokenizer=tokenizer)
    return ActivationBuffer(
        itertools.cycle(tokenizer.batch_decode(rows)),  # it takes nothing but text
        model,
        model.transformer.h[args.layer].mlp,
        d_submodule=raw.config.n_embd,
        n_ctxs=CONTEXTS,
        ctx_len=rows.shape[1],
        refresh_batch_size=32,
        out_batch_size=args.batch,
        device=args.device,
        remove_bos=True,
    )


def main() -> None:
    args = arguments(__doc__)
    source = in_memory(args) if args.activations else buffer(args)
    first = next(source)
    batches = Timed(source, args.device)
    trainer, autoencoder, sparsity = KINDS[args.kind]
    warm_up = args.steps // 20
    config = {
        "trainer": trainer,
        "steps": args.steps,
        "activation_dim": first.shape[1],
        "dict_size": args.d_sae,
        "layer": 0,
        "lm_name": "none",
        "lr": args.lr,
        "warmup_steps": warm_up,
        "seed": args.seed,
        "device": args.device,
        sparsity: int(args.sparsity) if args.kind == "topk" else args.sparsity,
    }
    if args.kind != "topk":
        config["sparsity_warmup_steps"] = warm_up
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainSAE(batches, [config], steps=args.steps, save_dir=folder, normalize_activations=True, device=args.device)
        sae = autoencoder.from_pretrained(str(Path(folder) / "trainer_0" / "ae.pt"))
    # The batch after the last step is asked for, too, and marks its end.
    warm = WARM if args.activations else 0
    seconds = batches.asked[-1] - batches.asked[warm - args.steps - 1]
    report(seconds, args.steps - warm, args, sae.encode, sae.decode)


if __name__ == "__main__":
    main()
