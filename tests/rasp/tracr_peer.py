"""Run by Tracr's own interpreter, see `test_tracr.py`: what its compiler makes of the programs.

    python tracr_peer.py < INPUTS.json > FOUND.json

INPUTS has lists of inputs by program. FOUND has for each program its sizes, the names of its residual stream's
directions, how long compiling took, and for every input the stream after each half-layer, the attention logits and the
decoded output.
"""

import json
import sys
import time

import jax
from tracr.compiler import compiling, lib
from tracr.rasp import rasp

jax.config.update("jax_default_matmul_precision", "float32")
tokens = rasp.tokens
PROGRAMS = {
    "length": (lib.make_length(), "abcd", 5),
    "reverse": (lib.make_reverse(tokens), "abcd", 5),
    "hist": (lib.make_hist(), "abcd", 5),
    "count": (lib.make_count(tokens, "a"), "abc", 5),
    "frac_prevs": (lib.make_frac_prevs((tokens == "a").named("is_a")), "abcd", 5),
    "pair_balance": (lib.make_pair_balance(tokens, "(", ")"), "()ab", 5),
    "shuffle_dyck2": (lib.make_shuffle_dyck2(), "(){}", 4),
    "sort_unique": (lib.make_sort_unique(tokens, tokens), (1, 2, 3, 4), 4),
    "sort": (lib.make_sort(tokens, tokens, max_seq_len=4, min_key=1), (1, 2, 3, 4), 4),
    "sort_freq": (lib.make_sort_freq(4), (1, 2, 3, 4), 4),
}


def found(name: str, rows: list) -> dict:
    program, vocabulary, longest = PROGRAMS[name]
    started = time.perf_counter()
    model = compiling.compile_rasp_to_model(
        program, set(vocabulary), longest, compiler_bos="<bos>", compiler_pad="<pad>"
    )
    seconds = time.perf_counter() - started
    config, answers = model.model_config, []
    for row in rows:
        out = model.apply(["<bos>", *row])
        answers.append(
            {
                "decoded": [x if isinstance(x, str | bool) else float(x) for x in out.decoded[1:]],
                "stream": [x[0].tolist() for x in out.residuals],
                "scores": [x[0].tolist() for x in out.attn_logits],
            }
        )
    sizes = [len(model.residual_labels), config.num_layers, config.num_heads, config.key_size, config.mlp_hidden_size]
    return {"sizes": sizes, "labels": model.residual_labels, "answers": answers, "seconds": seconds}


print(json.dumps({name: found(name, rows) for name, rows in json.load(sys.stdin).items()}))
