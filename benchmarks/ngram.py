"""The lab model against a Kneser-Ney n-gram model of the same text, by KenLM.

    python benchmarks/ngram.py --text FOLDER --lmplz kenlm/build/bin/lmplz [--card]

Both models read the same tokens: KenLM (modified Kneser-Ney) is fitted on as many windows of real text
as the lab model saw in training, and once on all of it. Both are scored on the windows of
`behaviours.text_loss`. Prints nats per token; `--card` puts them on the lab model's card. KenLM's `lmplz`,
`build_binary` and `query` come from the source archive of its package (cmake and Boost build them).
"""

import argparse
import json
import math
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from mechinterp import models
from mechinterp.files import atomic_write
from mechinterp.lab.behaviours import text_loss
from mechinterp.lab.mixture import encode_corpus, read_texts
from mechinterp.models.load import LAB

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
    parser.add_argument("--card", action="store_true", help="write the numbers on the lab model's card")
    args = parser.parse_args()
    model = models.load("lab")
    tokenizer = model.tokenizer.backend_tokenizer
    held = encode_corpus(tokenizer, read_texts(args.text, "held_out*"))
    train = encode_corpus(tokenizer, read_texts(args.text, "train*"))
    held_lines = lines(held, np.linspace(0, len(held) - WINDOW - 1, 200).astype(int))
    every = np.arange(0, len(train) - WINDOW, WINDOW)
    card = json.loads((LAB / "card.json").read_text())
    share = round(card["tokens_seen"] * (1 - card["generated"]) / WINDOW)
    seen = np.random.default_rng(0).permutation(every)[:share]
    baseline = {}
    for name, starts in {"as much text as the lab model saw": seen, "all of the text": every}.items():
        text = lines(train, starts)
        for order in (3, 4, 5):
            loss = kneser_ney(args.lmplz, text, held_lines, order)
            title = f"Kneser-Ney {order}-gram of {len(starts) * WINDOW / 1e6:.1f} M tokens, {name}"
            print(f"{title}: {loss:.3f}", flush=True)
            baseline[title] = round(loss, 3)
    result = text_loss(model, held)
    print(f"lab model: {result['loss']:.3f} ± {result['standard_error']:.3f}")
    if args.card:
        text = json.dumps(card | {"baseline": baseline}, indent=1, ensure_ascii=False)
        atomic_write(LAB / "card.json", f"{text}\n".encode())


if __name__ == "__main__":
    main()
