"""The lab model against a Kneser-Ney n-gram model of the same text, by KenLM.

    python benchmarks/ngram.py --text FOLDER --lmplz kenlm/build/bin/lmplz [--steps 5000]

Both models read the same tokens: KenLM (modified Kneser-Ney) is fitted on as many windows of real text
as the lab model saw in training, and once on all of it. Both are scored on the windows of
`behaviours.text_loss`. Prints nats per token and writes nothing. KenLM's `lmplz`, `build_binary` and
`query` come from the source archive of its package (cmake and Boost build them).
"""

import argparse
import math
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from mechinterp import models
from mechinterp.models.behaviours import text_loss
from mechinterp.models.mixture import encode_corpus, read_texts

WINDOW = 255


def lines(ids: np.ndarray, starts: np.ndarray) -> str:
    return "".join(" ".join(map(str, ids[s : s + WINDOW].tolist())) + "\n" for s in starts)


def kneser_ney(lmplz: Path, train: str, held_out: str, order: int) -> float:
    """Nats per token of a modified Kneser-Ney model, end-of-line tokens left out."""
    with tempfile.TemporaryDirectory() as folder:
        arpa, binary = Path(folder, "m.arpa"), Path(folder, "m.bin")
        command = [lmplz, "-o", str(order), "-S", "3G", "-T", folder, "--arpa", arpa, "--discount_fallback"]
        subprocess.run(command, input=train.encode(), check=True, stderr=subprocess.DEVNULL)
        subprocess.run([lmplz.with_name("build_binary"), arpa, binary], check=True, capture_output=True)
        query = [lmplz.with_name("query"), "-v", "word", binary]
        output = subprocess.run(query, input=held_out.encode(), check=True, capture_output=True).stdout.decode()
    found = re.findall(r"(\S+)=\d+ \d+ (-?[\d.e+-]+)", output)
    return -math.log(10) * float(np.mean([float(logp) for word, logp in found if word != "</s>"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder with train* and held_out* texts")
    parser.add_argument("--lmplz", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000, help="training steps of the lab model")
    parser.add_argument("--rows", type=int, default=12, help="rows of real text in a training step")
    args = parser.parse_args()
    model = models.load("lab")
    tokenizer = model.tokenizer.backend_tokenizer
    held = encode_corpus(tokenizer, read_texts(args.text, "held_out*"))
    train = encode_corpus(tokenizer, read_texts(args.text, "train*"))
    held_lines = lines(held, np.linspace(0, len(held) - WINDOW - 1, 200).astype(int))
    every = np.arange(0, len(train) - WINDOW, WINDOW)
    seen = np.random.default_rng(0).permutation(every)[: args.steps * args.rows]
    for name, starts in {"as much text as the lab model saw": seen, "all of the text": every}.items():
        text = lines(train, starts)
        for order in (3, 4, 5):
            loss = kneser_ney(args.lmplz, text, held_lines, order)
            print(
                f"Kneser-Ney {order}-gram, {len(starts) * WINDOW / 1e6:.1f} M tokens ({name}): {loss:.3f}", flush=True
            )
    result = text_loss(model, held)
    print(f"lab model: {result['loss']:.3f} ± {result['standard_error']:.3f}")


if __name__ == "__main__":
    main()
