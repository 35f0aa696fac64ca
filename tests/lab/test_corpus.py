"""The training text is cleaned by rules that can be read here, and what is not the manifest's is refused by name."""

import hashlib
import io
import lzma
import subprocess
import urllib.request
from collections import Counter
from http.client import IncompleteRead
from pathlib import Path

import pytest

from mechinterp.lab import corpus
from mechinterp.lab.mixture import read_texts

LONG = ("All that long night the rain came down upon the roofs of the town. " * 5).strip()
TEXTS = {"A, Author/One.txt": f"{LONG}\n\nThe first book's end.", "B/Two?\rOr, Three.txt": f"{LONG}\n\nThe second's."}


def gutenberg(text: str) -> str:
    lines = ["The Project Gutenberg EBook", "*** START OF THIS BOOK ***", text, "*** END OF THIS BOOK ***", ""]
    return "\r\n\r\n".join(lines)


def cleaned(text: str) -> str:
    """What becomes of some text after a first long paragraph."""
    first, _, rest = corpus.clean(gutenberg(f"{LONG}\n\n{text}")).partition("\n\n")
    assert first == LONG
    return rest


@pytest.fixture
def books(monkeypatch: pytest.MonkeyPatch) -> list[corpus.Book]:
    """A corpus of two books, one of them with a carriage return and a question mark in its name."""
    hashes = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in TEXTS.values()]
    found = [corpus.Book(*row) for row in zip(("held_out", "train_00"), TEXTS, hashes, strict=True)]
    monkeypatch.setattr(corpus, "manifest", lambda: found)
    return found


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for path, text in TEXTS.items():
        (tmp_path / "clone" / path).parent.mkdir(parents=True)
        (tmp_path / "clone" / path).write_bytes(gutenberg(text).encode())
    return tmp_path / "clone"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("“It’s late,” he said, ‘or so.’", "\"It's late,\" he said, 'or so.'"),
        ("Wait--no, Mr. D----, _never_, *never*!", "Wait—no, Mr. D——, never, never!"),
        ("A line that is longer than forty-five letters is\r\njoined  to\tthe next.",
         "A line that is longer than forty-five letters is joined to the next."),
        ("    The rain is raining all around,\n      It falls on field and tree,",
         "The rain is raining all around,\nIt falls on field and tree,"),
        ("One.\n\n\n\nTwo.", "One.\n\nTwo."),
        ("One.\n\n[Illustration: A house\nby the sea]\n\nTwo.", "One.\n\nTwo."),
        ("One.[FOOTNOTE 3: See _there_.] Two.", "One. Two."),
        ("He went [Transcriber's note: sic] home.", "He went home."),
        ("One.\n\nTranscriber's note: spelling kept.\n\nTwo.", "One.\n\nTwo."),
        ("One.\n\nThis e-text was prepared by hand.\n\nTwo.", "One.\n\nTwo."),
        ("One.\n\n* * * * *\n\n7\n\nTwo.", "One.\n\nTwo."),
        ("He took out his notebook.\n\nTwo.", "Two."),
        ("[Sidenote: kept] and {12} and =so=", "[Sidenote: kept] and {12} and =so="),
        ("The last.\n\nEnd of Project Gutenberg's One, by A", "The last."),
    ],
)  # fmt: skip
def test_a_rule(raw: str, expected: str) -> None:
    assert cleaned(raw) == expected


def test_title_pages_and_contents_are_off_and_the_first_long_paragraph_is_not() -> None:
    front = "ONE\n\nby\n\nA. AUTHOR\n\nCONTENTS\n\nI. The Rain\nII. The Town"
    assert corpus.clean(gutenberg(f"{front}\n\n{'y' * 300}\n\n{'x' * 301}\n\nI.")) == f"{'x' * 301}\n\nI."


def test_a_book_without_a_long_paragraph_is_whole() -> None:
    assert corpus.clean("One.\n\nTwo.") == "One.\n\nTwo."


def test_the_manifest() -> None:
    books = corpus.manifest()
    sizes = [59, 73, 54, 50, 66, 63, 61, 51, 66, 62, 38]
    assert Counter(book.shard for book in books) == {
        "held_out": 10,
        **{f"train_{i:02}": size for i, size in enumerate(sizes)},
    }
    assert [book.shard for book in books] == sorted(book.shard for book in books)
    assert len({book.path for book in books}) == len({book.sha256 for book in books}) == 653
    assert sum("\r" in book.path for book in books) == 30
    assert all(len(book.sha256) == 16 and book.path.endswith(".txt") for book in books)


def test_the_manifest_is_of_the_lab_models_text(shared: Path) -> None:
    with lzma.open(shared / "corpus" / "held_out.txt.xz", "rt", encoding="utf8") as file:
        texts = file.read().split("\0")
    hashes = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts]
    assert hashes == [book.sha256 for book in corpus.manifest() if book.shard == "held_out"]


def test_a_checked_out_clone_becomes_a_folder_that_the_recipe_reads(
    tmp_path: Path, books: list[corpus.Book], clone: Path
) -> None:
    out = tmp_path / "out"
    assert corpus.main(["--out", str(out), "--clone", str(clone)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["held_out.txt", "train_00.txt"]
    assert list(read_texts(out)) == [TEXTS[books[1].path]]
    assert list(read_texts(out, "held_out*")) == [TEXTS[books[0].path]]


def test_a_clone_without_files_is_asked_for_the_commit(
    tmp_path: Path, books: list[corpus.Book], clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = ["git", "-C", str(clone), "-c", "user.name=A", "-c", "user.email=a@b", "-c", "core.autocrlf=false"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "books"]):
        subprocess.run([*git, *arguments], check=True)
    monkeypatch.setattr(corpus, "COMMIT", "HEAD")
    assert len(corpus.build(tmp_path / "out", clone / ".git")) == 2
    monkeypatch.setattr(corpus, "COMMIT", "0" * 40)
    with pytest.raises(ValueError, match=r"One\.txt' is not in"):
        corpus.build(tmp_path / "out", clone / ".git")


def test_a_download_is_kept_and_goes_on_where_it_stopped(
    tmp_path: Path, books: list[corpus.Book], clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "RAW", clone.as_uri() + "/")
    second = clone / books[1].path
    held = second.read_bytes()
    second.unlink()
    with pytest.raises(ValueError, match=r"Three\.txt' was not downloaded .* give --clone"):
        corpus.build(tmp_path / "out")
    (clone / books[0].path).unlink()  # is not asked for again
    second.write_bytes(held)
    assert [path.name for path in corpus.build(tmp_path / "out")] == ["held_out.txt", "train_00.txt"]
    assert len(list((tmp_path / "out" / "raw").iterdir())) == 2


def test_an_interrupted_download_leaves_no_half_file(
    tmp_path: Path, books: list[corpus.Book], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise IncompleteRead(b"The Project Gut", 1000)

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Broken())
    with pytest.raises(ValueError, match=r"One\.txt' was not downloaded \(IncompleteRead"):
        corpus.build(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["raw"]


@pytest.mark.parametrize(
    ("data", "message"), [(gutenberg(LONG).encode(), "has hash"), (b"\xff" + LONG.encode(), "is not UTF-8")]
)
def test_another_text_is_refused_by_name(
    tmp_path: Path, books: list[corpus.Book], clone: Path, data: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (clone / books[1].path).write_bytes(data)
    with pytest.raises(SystemExit) as stopped:
        corpus.main(["--out", str(tmp_path / "out"), "--clone", str(clone)])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert "Three.txt' from " in error
    assert message in error
    assert not (tmp_path / "out" / "train_00.txt").exists()
