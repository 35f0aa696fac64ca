import pytest
import torch

from mechinterp.models import load, to_bridge
from mechinterp.scales import Chapter, check_device, scale, setup


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.delenv("MECHINTERP_SCALE", raising=False)
    with torch.enable_grad():
        yield


@pytest.mark.parametrize(
    ("argument", "parameter", "environment", "expected"),
    [
        (None, None, None, "laptop"),
        (None, None, "paper", "paper"),
        (None, "lab", "paper", "lab"),
        ("rehearsal", "lab", "paper", "rehearsal"),
        (None, "", "", "laptop"),
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
    first = setup("ioi", scale="lab", seed=3)
    draw = torch.rand(2)
    assert setup("ioi", scale="lab", seed=3) == first
    assert torch.equal(torch.rand(2), draw)
    assert (first.scale, first.model_name, first.device) == ("lab", "lab", "cpu")
    assert not torch.is_grad_enabled()


def test_the_scale_chooses_model_and_data():
    paper = setup("ioi", scale="paper", device="cpu")
    assert paper.model_name == "gpt2"
    assert setup("ioi", scale="paper", models={"paper": "gpt2-medium"}, device="cpu").model_name == "gpt2-medium"
    rehearsal = setup("ioi", scale="rehearsal", device="cpu")
    assert [c.choose(lab=1, paper=2, rehearsal=3) for c in (setup("ioi", scale="lab"), paper, rehearsal)] == [1, 2, 3]
    assert rehearsal.choose(lab=1, paper=2) == 2
    assert rehearsal.choose(lab=1, paper=2, rehearsal=0) == 0


def test_a_laptop_runs_the_pretrained_model_with_data_of_its_own_or_the_lab_s(capsys):
    laptop = setup("ioi", models={"laptop": "smollm2"}, device="cpu")
    assert (laptop.scale, laptop.model_name) == ("laptop", "smollm2")
    assert [laptop.choose(lab=1, laptop=2, paper=3), laptop.choose(lab=1, paper=3)] == [2, 1]
    assert laptop.choose(lab=1, laptop=0, paper=3) == 0
    assert capsys.readouterr().out == ""


def test_a_chapter_without_a_laptop_model_runs_at_lab_scale_and_says_so(capsys):
    assert setup("ioi").scale == "lab"
    assert "no run at laptop scale yet: it runs at lab scale" in capsys.readouterr().out
    assert setup("grokking_efficiency", laptop="paper").scale == "paper"
    assert "needs no pretrained model: it runs at paper scale" in capsys.readouterr().out


def test_a_chapter_says_how_it_runs():
    text = str(Chapter("ioi", "lab", "lab", "cpu", 0))
    assert text == "chapter ioi at lab scale: model lab on cpu, seed 0"
    text = str(setup("grokking_efficiency", scale="lab", laptop="paper"))
    assert text == "chapter grokking_efficiency at lab scale: no pretrained model, on cpu, seed 0"


@pytest.mark.parametrize("device", ["cuda:99", "no-such-device", "meta", "cpu:1"])
def test_a_device_that_is_not_here_is_refused_at_every_door(device):
    for door in (
        check_device,
        lambda device: setup("ioi", device=device),
        lambda device: load("lab", device=device),
        lambda device: to_bridge(None, None, device=device),
    ):
        with pytest.raises(ValueError, match=r"device.*there are cpu"):
            door(device)


def test_a_device_that_is_here_is_taken():
    check_device(None)
    check_device("cpu:0")
    check_device(torch.device("cpu"))
    if torch.accelerator.is_available():
        check_device(torch.accelerator.current_accelerator())


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_cuda_on_a_machine_without_is_one_line_with_the_way_out():
    with pytest.raises(ValueError, match=r"no device 'cuda' here, there are cpu.*; choose one of them, or install"):
        setup("ioi", device="cuda")


def test_another_model_takes_the_laptops_place_and_no_others(monkeypatch):
    monkeypatch.setenv("MECHINTERP_MODEL", "gemma3-270m")
    assert setup("ioi", models={"laptop": "smollm2"}, device="cpu").model_name == "gemma3-270m"
    for chosen, models in (("lab", {"laptop": "smollm2"}), ("laptop", {})):
        with pytest.raises(ValueError, match=f"runs no pretrained model at {chosen} scale that gemma3-270m"):
            setup("ioi", scale=chosen, models=models, device="cpu")
