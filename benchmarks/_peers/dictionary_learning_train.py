"""Train SAEs with dictionary_learning, in its own environment; see `common`.

Its `trainSAE` on an iterator of batches or on its `ActivationBuffer` with nnsight's `LanguageModel`, activations scaled
to a mean square norm of one by itself, nothing logged. A job's sparsity is l1_penalty (standard, gated), target_l0
(jumprelu) or k (topk).
"""

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import Timed, gpt2, main
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


def buffer(job: SimpleNamespace) -> ActivationBuffer:
    """Its own buffer, which stops the model behind the layer."""
    from nnsight import LanguageModel

    raw, tokenizer, rows = gpt2(job)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = LanguageModel(raw, tokenizer=tokenizer)
    return ActivationBuffer(
        itertools.cycle(tokenizer.batch_decode(rows)),  # it takes nothing but text
        model,
        model.transformer.h[job.layer].mlp,
        d_submodule=raw.config.n_embd,
        n_ctxs=CONTEXTS,
        ctx_len=rows.shape[1],
        refresh_batch_size=32,
        out_batch_size=job.batch,
        device=job.device,
        remove_bos=True,
    )


def train(job: SimpleNamespace, batches: Timed, d_in: int) -> tuple[float, Any]:
    """One SAE; the batch after the last step is asked for, too, and marks its end."""
    trainer, autoencoder, sparsity = KINDS[job.kind]
    warm_up = job.steps // 20
    config = {
        "trainer": trainer,
        "steps": job.steps,
        "activation_dim": d_in,
        "dict_size": job.d_sae,
        "layer": 0,
        "lm_name": "none",
        "lr": job.lr,
        "warmup_steps": warm_up,
        "seed": job.seed,
        "device": job.device,
        sparsity: int(job.sparsity) if job.kind == "topk" else job.sparsity,
    }
    if job.kind != "topk":
        config["sparsity_warmup_steps"] = warm_up
    folder = Path(job.folder)
    trainSAE(batches, [config], steps=job.steps, save_dir=folder, normalize_activations=True, device=job.device)
    for path in (folder / "trainer_0").iterdir():
        shutil.move(path, folder / path.name)
    return batches.asked[-1] - batches.asked[-job.steps - 1], autoencoder.from_pretrained(str(folder / "ae.pt"))


if __name__ == "__main__":
    main(__doc__, train, buffer)
