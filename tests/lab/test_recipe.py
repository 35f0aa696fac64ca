import json
from pathlib import Path

import pytest

import mechinterp
from mechinterp.lab import recipe
from mechinterp.lab.training import Config

TOKENIZER = Path(mechinterp.__file__).parent / "lab/model/tokenizer.json"
TINY = Config(n_layers=2, n_heads=2, d_model=16, n_ctx=24, vocab_size=8192, batch=2, steps=2)


def test_a_folder_says_what_it_holds(tmp_path):
    (tmp_path / "train_0.txt").write_text("a\0b")
    source = recipe.from_folder(tmp_path)
    assert list(source.train()) == ["a", "b"]
    assert source.held_out is None
    (tmp_path / "held_out.txt").write_text("c")
    source = recipe.from_folder(tmp_path)
    assert list(source.held_out()) == ["c"]
    assert [entry["file"] for entry in source.origin] == ["held_out.txt", "train_0.txt"]
    assert all(len(entry["sha256"]) == 64 for entry in source.origin)


def test_a_folder_without_text_is_refused(tmp_path):
    (tmp_path / "held_out.txt").write_text("c")
    with pytest.raises(ValueError, match=r"no \.txt"):
        recipe.from_folder(tmp_path)


def test_a_vocabulary_too_small_for_generated_documents_is_refused(tmp_path, monkeypatch):
    (tmp_path / "train_0.txt").write_text("a dark and stormy night")
    monkeypatch.setattr(recipe, "GENERATED_IDS", 10_000)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    with pytest.raises(ValueError, match="8192 tokens and generated documents draw from 10000"):
        recipe.train_lab(TINY, recipe.from_folder(tmp_path), tmp_path / "run")


def test_the_hub_is_streamed_and_its_first_documents_held_out(monkeypatch):
    rows = [{"text": str(i)} for i in range(10)]
    monkeypatch.setattr("datasets.load_dataset", lambda name, split, streaming: rows)
    source = recipe.from_hub("some/dataset", documents=6, held_out=2)
    assert list(source.train()) == ["2", "3", "4", "5"]
    assert list(source.held_out()) == ["0", "1"]
    with pytest.raises(ValueError, match=r"no column 'body'; it has text"):
        list(recipe.from_hub("some/dataset", "body", held_out=2).train())


def test_the_card_of_a_run_carries_measurements_on_held_out_text(tmp_path, monkeypatch):
    (tmp_path / "train_0.txt").write_text("It was a dark and stormy night. " * 100)
    (tmp_path / "held_out.txt").write_text("The rain fell in torrents. " * 100)
    out = tmp_path / "run"
    out.mkdir()
    (out / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    monkeypatch.setattr(recipe, "_measure", lambda folder, held_out: {"tokens": len(held_out)})
    folder = recipe.train_lab(TINY, recipe.from_folder(tmp_path), out)
    card = json.loads((folder / "card.json").read_text())
    assert card["measured"]["tokens"] > 100
    assert card["config"]["d_model"] == 16
    assert card["tokens_seen"] == 2 * 2 * 24
