"""A model in one `.gguf` file: the numbers of the model it was made from, and a clear line for every fault."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mechinterp.datasets.text import bos_id, packed_rows, token_rows
from mechinterp.models import describe, load, load_tokenizer, sha256, to_bridge

HEADS, GROUPS, WIDTH, LAYERS = 4, 2, 32, 2
TEMPLATE = "{% for m in messages %}<s>{{ m.content }}{% endfor %}"


def byte_tokens() -> list[str]:
    """The 256 bytes under the names that GPT-2's tokenizer gives them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [i for i in range(256) if i not in plain]
    names = {i: chr(i) for i in plain} | {i: chr(256 + n) for n, i in enumerate(rest)}
    return [names[i] for i in range(256)]


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        max_position_embeddings=64,
        initializer_range=0.3,
        rms_norm_eps=1e-5,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.normal_(1, 0.2)
    return model


def write(
    path: Path, *, architecture: str = "llama", add_bos: bool = False, template: str | None = TEMPLATE
) -> LlamaForCausalLM:
    """A random Llama as a GGUF file in fp32; returns the model it holds."""
    model = llama()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(48)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(259)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*byte_tokens(), "ab", "<s>", "</s>"])
    writer.add_token_types([1] * 257 + [3, 3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_add_bos_token(add_bos)
    if template:
        writer.add_chat_template(template)
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}

    def rotated(name: str, heads: int) -> np.ndarray:
        """GGUF has the pairs of a rotation beside each other, Hugging Face half a head apart."""
        w = state[name]
        return w.reshape(heads, 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape).copy()

    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    writer.add_tensor("output.weight", state["lm_head.weight"])
    for i in range(LAYERS):
        block = f"model.layers.{i}."
        writer.add_tensor(f"blk.{i}.attn_q.weight", rotated(f"{block}self_attn.q_proj.weight", HEADS))
        writer.add_tensor(f"blk.{i}.attn_k.weight", rotated(f"{block}self_attn.k_proj.weight", GROUPS))
        for theirs, ours in (
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
            ("attn_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
        ):
            writer.add_tensor(f"blk.{i}.{theirs}.weight", state[f"{block}{ours}.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


TOKENS = torch.randint(256, (3, 20), generator=torch.Generator().manual_seed(0))


def test_log_probabilities_are_those_of_the_model_in_the_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = write(tmp_path / "tiny.gguf")(TOKENS).logits.log_softmax(-1).detach()
    capfd.readouterr()
    model = load(tmp_path / "tiny.gguf", device="cpu")
    assert capfd.readouterr() == ("", "")
    assert (model(TOKENS).log_softmax(-1) - expected).abs().max() < 1e-4
    assert expected.std() > 0.2, "a flat distribution would agree with anything"
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert describe(tmp_path / "tiny.gguf")["sha256"] == sha256(str(tmp_path / "tiny.gguf"))


def test_the_reader_of_gguf_is_left_as_it_was(tmp_path: Path) -> None:
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    write(tmp_path / "tiny.gguf")
    load_tokenizer(tmp_path / "tiny.gguf")
    with pytest.raises(ValueError, match="truncated"):
        load_tokenizer(_damaged(tmp_path / "tiny.gguf", 30))
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_dtype(tmp_path: Path, dtype: str | torch.dtype) -> None:
    write(tmp_path / "tiny.gguf")
    model, exact = (load(tmp_path / "tiny.gguf", device="cpu", dtype=d) for d in (dtype, torch.float32))
    wanted = torch.bfloat16 if dtype == "bfloat16" else torch.float16
    assert {p.dtype for p in model.parameters()} == {wanted}
    difference = (model(TOKENS).float().log_softmax(-1) - exact(TOKENS).log_softmax(-1)).abs().mean()
    assert 0 < difference < 0.1


@pytest.mark.parametrize("dtype", ["int8", "no such thing", torch.int64])
def test_unknown_dtype(dtype: str | torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"unknown dtype .* one of float32, bfloat16"):
        load("lab", dtype=dtype)


@pytest.mark.parametrize(("add", "template"), [(False, TEMPLATE), (True, TEMPLATE), (False, None)])
def test_bos_is_added_only_if_the_file_says_so(tmp_path: Path, add: bool, template: str | None) -> None:
    write(tmp_path / "tiny.gguf", add_bos=add, template=template)
    tokenizer = load_tokenizer(tmp_path / "tiny.gguf")
    assert tokenizer.encode("ab") == ([257, 256] if add else [256])
    # A chat mark does not start a text; what only stands in no template, or is added anyway, does.
    assert bos_id(tokenizer) == (257 if add or template is None else None)
    start = [] if bos_id(tokenizer) is None else [257]
    assert token_rows(tokenizer, ["ab ab ab"], 1, 3)[0].tolist() == [*start, 256, 32, 256][:3]
    assert packed_rows(tokenizer, ["ab ab ab"], 1, 3)[0].tolist() == [*start, 256, 32, 256][:3]


def test_a_bridge_does_not_put_a_chat_mark_before_text(tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf")
    model = load(tmp_path / "tiny.gguf", device="cpu")
    assert model.tokenizer.encode("ab") == [256]
    assert model.to_tokens("ab").tolist() == [[256]]
    write(tmp_path / "adds.gguf", add_bos=True)
    assert load(tmp_path / "adds.gguf", device="cpu").to_tokens("ab").tolist() == [[257, 256]]


def test_a_tokenizer_from_a_file_can_be_given_to_to_bridge(tmp_path: Path) -> None:
    raw = write(tmp_path / "tiny.gguf", template=None)
    model = to_bridge(raw, load_tokenizer(tmp_path / "tiny.gguf"), device="cpu")
    assert model.tokenizer.encode("ab") == [256]


def _damaged(path: Path, keep: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    return path


@pytest.mark.parametrize("keep", [0, 3, 30, 200, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("door", [load, load_tokenizer])
def test_truncated(tmp_path: Path, keep: float, door: Callable[[Path], object]) -> None:
    write(tmp_path / "tiny.gguf")
    path = _damaged(tmp_path / "tiny.gguf", keep)
    with pytest.raises(ValueError, match=r"tiny\.gguf is (truncated or damaged|not a GGUF file)") as caught:
        door(path)
    assert "\n" not in str(caught.value)


def test_not_gguf_and_another_version(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ValueError, match="is not a GGUF file: it starts with"):
        load(path)
    path.write_bytes(b"GGUF" + (9).to_bytes(4, "little") + bytes(100))
    with pytest.raises(ValueError, match="is GGUF version 9"):
        load(path)


@pytest.mark.parametrize(
    ("name", "words"), [("rwkv7", "does not read from GGUF; it reads llama"), ("t5", "expected a")]
)
def test_an_architecture_that_cannot_be_loaded_is_named(tmp_path: Path, name: str, words: str) -> None:
    write(tmp_path / "x.gguf", architecture=name)
    for door in (load, load_tokenizer):
        with pytest.raises(ValueError, match=f"x.gguf is a model of architecture '{name}'.*{words}"):
            door(tmp_path / "x.gguf")


def test_no_architecture(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.kv_data[0].pop("general.architecture")
    writer.add_name("nobody")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"no key general\.architecture"):
        load(tmp_path / "x.gguf")


def test_a_folder_of_a_gguf_file_and_a_missing_file(tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf")
    with pytest.raises(ValueError, match=r"no config\.json in .*; give the file .*tiny\.gguf"):
        load(tmp_path)
    for name in ("missing.gguf", str(tmp_path / "missing.gguf")):
        with pytest.raises(ValueError, match="unknown model"):
            load(name)


def test_nan_in_the_weights(tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf")
    data = bytearray((tmp_path / "tiny.gguf").read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    (tmp_path / "tiny.gguf").write_bytes(data)
    with pytest.raises(ValueError, match="contains NaN or infinity"):
        load(tmp_path / "tiny.gguf")
