import pytest
import torch

from mechinterp.scales import Chapter, scale, setup


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.delenv("MECHINTERP_SCALE", raising=False)
    with torch.enable_grad():
        yield


@pytest.mark.parametrize(
    ("argument", "parameter", "environment", "expected"),
    [
        (None, None, None, "lab"),
        (None, None, "paper", "paper"),
        (None, "lab", "paper", "lab"),
        ("rehearsal", "lab", "paper", "rehearsal"),
        (None, "", "", "lab"),
    ],
)
def test_the_stronger_source_wins(monkeypatch, argument, parameter, environment, expected):
    if environment is not None:
        monkeypatch.setenv("MECHINTERP_SCALE", environment)
    assert scale(argument, parameter=parameter) == expected


def test_an_unknown_scale_says_where_it_came_from(monkeypatch):
    monkeypatch.setenv("MECHINTERP_SCALE", "huge")
    with pytest.raises(ValueError, match="unknown scale 'huge' in the environment variable MECHINTERP_SCALE"):
        scale()
    with pytest.raises(ValueError, match="unknown scale 'big' in the argument"):
        scale("big")


def test_setup_is_safe_to_run_twice():
    first = setup("ioi", seed=3)
    draw = torch.rand(2)
    assert setup("ioi", seed=3) == first
    assert torch.equal(torch.rand(2), draw)
    assert (first.scale, first.model_name, first.device) == ("lab", "lab", "cpu")
    assert not torch.is_grad_enabled()


def test_the_scale_chooses_model_and_data():
    paper = setup("ioi", scale="paper", device="cpu")
    assert paper.model_name == "gpt2"
    assert setup("ioi", scale="paper", models={"paper": "gpt2-medium"}, device="cpu").model_name == "gpt2-medium"
    rehearsal = setup("ioi", scale="rehearsal", device="cpu")
    assert [c.choose(lab=1, paper=2, rehearsal=3) for c in (setup("ioi"), paper, rehearsal)] == [1, 2, 3]
    assert rehearsal.choose(lab=1, paper=2) == 2
    assert rehearsal.choose(lab=1, paper=2, rehearsal=0) == 0


def test_a_chapter_says_how_it_runs():
    text = str(Chapter("ioi", "lab", "lab", "cpu", 0))
    assert text == "chapter ioi at lab scale: model lab on cpu, seed 0"
