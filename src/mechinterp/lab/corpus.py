r"""The text to train the lab model on, rebuilt from a public collection of Project Gutenberg's books.

    python -m mechinterp.lab.corpus --out FOLDER

downloads 653 English books, 288 MB, from the repository `rcdm-uga/Gutenberg_Text` on GitHub, always at the same commit,
into `FOLDER/raw`; what is there is not downloaded again. It writes `FOLDER/train_00.txt` to `train_10.txt` and
`held_out.txt`, 264 MB, which `mechinterp models train lab --text FOLDER` reads. `--clone CLONE` takes the books from a
local clone of that repository instead, bare or checked out.

`corpus.csv` lists the books in their order, with a hash of each book's cleaned text. The rules of `clean` were found by
comparing all 653 books with the text that the lab model was trained on: every one of its 844 651 paragraphs comes out,
none besides, and every file has the same bytes, uncompressed. Some rules have no other reason than that.
"""

import argparse
import csv
import hashlib
import itertools
import re
import subprocess
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote

from mechinterp.files import atomic_write

REPOSITORY = "https://github.com/rcdm-uga/Gutenberg_Text"
COMMIT = "a0b16d35a9851168ce9ac649851c17b7ab08d48e"
RAW = f"https://raw.githubusercontent.com/rcdm-uga/Gutenberg_Text/{COMMIT}/"
MANIFEST = Path(__file__).with_name("corpus.csv")
SHORTEST_FIRST = 300
"""A book begins with its first paragraph of more characters: before it stand title pages and tables of contents."""
LONGEST_VERSE = 45
"""Paragraphs whose lines all have at most so many characters are verse, letterheads or lists, and keep their lines."""

_START = re.compile(r"\*\*\* ?START OF.*", re.IGNORECASE)
_END = re.compile(r"\n.*\*\*\* ?END OF|\nEnd of (the |this )?Project Gutenberg", re.IGNORECASE)
_BRACKETS = re.compile(r"\[(Illustration|Footnote|Transcriber)[^\]]*\]", re.IGNORECASE)
_QUOTES = str.maketrans("“”‘’", "\"\"''")
_NOTICES = ("gutenberg", "transcriber", "editorial note", "ebook", "e-text", "proofreading team")
"""Paragraphs with one of these are notices. That takes "notebook" with it: so it was in the lab model's own text."""


@dataclass(frozen=True)
class Book:
    """A row of the manifest: path in the repository, first 16 hex digits of the cleaned text's sha256."""

    shard: str
    path: str
    sha256: str


def manifest() -> list[Book]:
    """The books in the order of the corpus. Some paths have a carriage return in them, in the file as `\\r`."""
    with MANIFEST.open(encoding="utf8", newline="") as file:
        return [Book(row["shard"], row["path"].replace("\\r", "\r"), row["sha256"]) for row in csv.DictReader(file)]


def clean(raw: str) -> str:
    r"""A Project Gutenberg file as plain paragraphs, with an empty line between each two.

    Without Gutenberg's header, footer and notices, what stands before the first long paragraph, illustrations,
    footnotes in brackets, and marks of italics and bold type. Lines are joined, short ones excepted.

    >>> page = "He said--_softly_--\r\n“No.”  [Footnote 1: Or so.]\r\nAnd that was that, in the evening of that day."
    >>> clean("*** START OF THIS BOOK ***\r\n\r\nTITLE\r\n\r\n" + "x" * 301 + "\r\n\r\n" + page).split("\n\n")[1]
    'He said—softly— "No." And that was that, in the evening of that day.'
    """
    text = raw.replace("\r\n", "\n").replace("\r", "\n")
    if start := _START.search(text):
        text = text[start.end() :]
    if end := _END.search(text):
        text = text[: end.start()]
    paragraphs = [_paragraph(one) for one in re.split(r"\n{2,}", text.translate(_QUOTES))]
    kept = [one for one in paragraphs if len(one) > 1 and not any(word in one.lower() for word in _NOTICES)]
    first = next((i for i, one in enumerate(kept) if len(one) > SHORTEST_FIRST), 0)
    return "\n\n".join(kept[first:])


def build(out: Path, clone: Path | None = None, *, workers: int = 4) -> list[Path]:
    """Write the corpus's files into a folder and return their paths; resumable.

    Args:
        out: folder of the text files and, unless there is a clone, of `raw`, the downloaded files.
        clone: read the books from this clone of the repository instead of downloading them.
        workers: files downloaded at a time.

    Errors: `ValueError` naming the book if it cannot be had, is not UTF-8, or is not what the manifest says.
    """
    raw = out / "raw"
    (out if clone else raw).mkdir(parents=True, exist_ok=True)
    written = []
    pool = ThreadPoolExecutor(workers)
    try:
        for shard, group in itertools.groupby(manifest(), key=lambda book: book.shard):
            books = list(group)
            data = pool.map(lambda book: _from_clone(book, clone) if clone else _downloaded(book, raw), books)
            texts = [_checked(book, one, clone or _kept(book, raw)) for book, one in zip(books, data, strict=True)]
            written.append(out / f"{shard}.txt")
            atomic_write(written[-1], "\0".join(texts).encode())
    finally:
        pool.shutdown(cancel_futures=True)
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """Download the lab model's training text, clean it, and write it as the recipe reads it."""
    parser = argparse.ArgumentParser(prog="python -m mechinterp.lab.corpus", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the text; needs 560 MB")
    parser.add_argument("--clone", type=Path, help=f"clone of {REPOSITORY}, bare or checked out: nothing is downloaded")
    args = parser.parse_args(arguments)
    try:
        for path in build(args.out, args.clone):
            print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    return 0


def _paragraph(lines: str) -> str:
    stripped = [line.strip() for line in lines.strip().split("\n")]
    joined = ("\n" if max(map(len, stripped)) <= LONGEST_VERSE else " ").join(stripped)
    spaced = re.sub(r"[ \t]+", " ", _BRACKETS.sub("", joined))
    return spaced.replace("*", "").replace("_", "").replace("--", "—").strip()


def _downloaded(book: Book, folder: Path) -> bytes:
    path = _kept(book, folder)
    if not path.is_file():
        try:
            with urllib.request.urlopen(RAW + quote(book.path), timeout=60) as answer:
                data = answer.read()
        except (OSError, HTTPException) as error:
            raise ValueError(
                f"{book.path!r} was not downloaded ({error}); run it again to go on from here, "
                f"or git clone {REPOSITORY} and give --clone"
            ) from error
        atomic_write(path, data)
    return path.read_bytes()


def _from_clone(book: Book, clone: Path) -> bytes:
    if (clone / book.path).is_file():
        return (clone / book.path).read_bytes()
    shown = subprocess.run(["git", "-C", str(clone), "show", f"{COMMIT}:{book.path}"], capture_output=True)
    if shown.returncode:
        raise ValueError(f"{book.path!r} is not in {clone}: {shown.stderr.decode(errors='replace').strip()}")
    return shown.stdout


def _checked(book: Book, data: bytes, source: Path) -> str:
    try:
        text = clean(data.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"{book.path!r} from {source} is not UTF-8: {error}") from error
    found = hashlib.sha256(text.encode()).hexdigest()[:16]
    if found != book.sha256:
        raise ValueError(
            f"{book.path!r} from {source} has hash {found}, not {book.sha256}: "
            f"it is not the file of commit {COMMIT[:8]}; remove it and run it again"
        )
    return text


def _kept(book: Book, folder: Path) -> Path:
    return folder / f"{book.sha256}.txt"  # the repository's own names are too much for some file systems


if __name__ == "__main__":
    raise SystemExit(main())
