"""The OpenAI protocol on the loopback address: whole attacks, and everything a server should survive."""

import json
import socket
import time
import urllib.error
import urllib.request

import pytest
import torch

import mechinterp.stealing.server
from mechinterp.stealing import Client, Dropped, Refused, Terms, by_search, by_top, collect, serve, width
from mechinterp.stealing.server import AT_ONCE, MOST_BYTES
from tests.stealing.test_dimension import PROMPTS, TOKENS, VOCABULARY, D, served

pytest.importorskip("openai")


def post(address: str, content, path: str = "/completions", length: int | None = None):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    headers = {"Content-Type": "application/json"} | ({"Content-Length": str(length)} if length is not None else {})
    request = urllib.request.Request(address + path, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


ASKED = {"model": "model", "prompt": [1, 2], "max_tokens": 1, "temperature": 0, "logprobs": 2}


def test_a_client_has_the_answers_of_the_provider() -> None:
    here = served(Terms(top=5))
    with serve(served(Terms(top=5))) as address:
        there = Client(address)
        for prompt in PROMPTS[:5]:
            for bias in ({}, {3: 7.5, 9: -2.0}):
                one, two = here(prompt, bias), there(prompt, bias)
                assert one.next == two.next
                assert one.shown == pytest.approx(two.shown, abs=1e-12)
    assert there.bill == here.bill


def test_the_width_of_a_model_through_the_openai_client() -> None:
    with serve(served(Terms(top=5))) as address:
        ask = Client(address)
        found = collect(ask, PROMPTS, TOKENS[:30], recover=lambda *asked: by_top(*asked).logits)
    assert width(found).size == D
    assert ask.bill.queries == 40 * (1 + 8), "30 or 29 tokens, four at a time"


@pytest.mark.parametrize("top", [5, 0])
def test_answers_of_several_tokens_through_the_openai_client(top: int) -> None:
    here = served(Terms(top=top))
    with serve(served(Terms(top=top))) as address:
        there = Client(address, top=top)
        for prompt in PROMPTS[:5]:
            for one, two in zip(here.at_length(prompt, {3: 9.0}, 4), there.at_length(prompt, {3: 9.0}, 4), strict=True):
                assert one.next == two.next
                assert one.shown == pytest.approx(two.shown, abs=1e-12)
    assert there.bill == here.bill


def test_a_server_that_answers_with_fewer_tokens_than_were_asked_for(monkeypatch) -> None:
    told = mechinterp.stealing.server._told
    monkeypatch.setattr("mechinterp.stealing.server._told", lambda answers, *rest: told(answers[:2], *rest))
    with serve(served(Terms())) as address, pytest.raises(ValueError, match="with 2 tokens, not with 3"):
        Client(address).at_length([1], {}, 3)


def test_a_provider_that_shows_nothing() -> None:
    provider = served(Terms(top=0))
    with serve(provider) as address:
        found = by_search(Client(address, top=0), PROMPTS[0], [1, 2, 3], precision=0.5)
    torch.testing.assert_close(
        found.logits, by_search(served(Terms(top=0)), PROMPTS[0], [1, 2, 3], precision=0.5).logits
    )


def test_it_binds_to_the_loopback_address_alone() -> None:
    with serve(served(Terms())) as address:
        port = int(address.split(":")[2].split("/")[0])
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
        own = socket.gethostbyname(socket.gethostname())
        if not own.startswith("127."):
            with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
                socket.create_connection((own, port), timeout=2)


@pytest.mark.parametrize(
    ("content", "path", "status", "message"),
    [
        (b"not json", "/completions", 400, "not a request"),
        (b"[]", "/completions", 400, "not a request"),
        ({}, "/completions", 400, "not a request"),
        (ASKED | {"model": "another"}, "/completions", 400, "the model is 'model'"),
        (ASKED | {"prompt": "text"}, "/completions", 400, "list of token ids"),
        (ASKED | {"prompt": [1.5]}, "/completions", 400, "list of token ids"),
        (ASKED | {"prompt": []}, "/completions", 400, "1 to 1024 tokens"),
        (ASKED | {"max_tokens": 65}, "/completions", 400, "an answer has 1 to 64 tokens"),
        (ASKED | {"max_tokens": 0}, "/completions", 400, "an answer has 1 to 64 tokens"),
        (ASKED | {"max_tokens": "all"}, "/completions", 400, "not a request"),
        (ASKED | {"temperature": 1}, "/completions", 400, "only one answer"),
        (ASKED | {"n": 2}, "/completions", 400, "only one answer"),
        (ASKED | {"logit_bias": {"x": 1}}, "/completions", 400, "not a request"),
        (ASKED | {"logit_bias": {"3": "much"}}, "/completions", 400, "not a request"),
        (ASKED | {"logit_bias": {"3": 1000}}, "/completions", 400, "within ±100"),
        (ASKED | {"logit_bias": {"60": 1}}, "/completions", 400, "there is no token 60"),
        (ASKED, "/chat/completions", 404, "there is no /v1/chat/completions"),
    ],
)
def test_wrong_requests_have_a_plain_answer_and_cost_nothing(content, path, status, message) -> None:
    provider = served(Terms())
    with serve(provider) as address:
        got, told = post(address, content, path)
        assert (got, provider.bill.queries) == (status, 0)
        assert message in told["error"]["message"]
        assert post(address, ASKED)[0] == 200, "it lives on"


def test_it_says_what_it_serves() -> None:
    with serve(served(Terms()), name="lab") as address, urllib.request.urlopen(address + "/models") as answer:
        assert [m["id"] for m in json.load(answer)["data"]] == ["lab"]


def test_large_requests_and_many_connections_are_turned_away() -> None:
    with serve(served(Terms())) as address:
        port = int(address.split(":")[2].split("/")[0])
        with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
            line.sendall(f"POST /v1/completions HTTP/1.1\r\nContent-Length: {MOST_BYTES + 1}\r\n\r\n".encode())
            assert b" 413 " in line.recv(1000)
        idle = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(AT_ONCE)]
        time.sleep(0.5)
        with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
            assert line.recv(10) == b"", "closed at once"
        for line in idle:
            line.close()
        time.sleep(0.5)
        assert post(address, ASKED)[0] == 200


def test_it_stops_by_itself_and_a_dead_server_is_told() -> None:
    with serve(served(Terms()), seconds=0.5) as address:
        assert post(address, ASKED)[0] == 200
        time.sleep(1.2)
        with pytest.raises(Dropped, match="no answer from"):
            Client(address, retries=0)([1])
    with pytest.raises(ValueError, match="seconds must be above 0"), serve(served(Terms()), seconds=0):
        pass


def test_a_collection_goes_on_with_another_server_when_one_has_died() -> None:
    first, rows = serve(served(Terms(top=None))), []
    address = first.__enter__()

    def keep(so_far: torch.Tensor) -> None:
        rows[:] = [so_far]
        if len(so_far) == 10:
            first.__exit__(None, None, None)

    with pytest.raises(Dropped, match="no answer from"):
        collect(Client(address, top=VOCABULARY, retries=0), PROMPTS, TOKENS, keep=keep)
    with serve(served(Terms(top=None))) as address:
        found = collect(Client(address, top=VOCABULARY), PROMPTS, TOKENS, known=rows[0])
    assert len(rows[0]) == 10
    torch.testing.assert_close(found, collect(served(Terms(top=None)), PROMPTS, TOKENS))


def test_what_is_refused_and_what_is_dropped() -> None:
    with serve(served(Terms(most_queries=1))) as address:
        ask = Client(address)
        ask([1])
        with pytest.raises(Refused, match="budget of 1 queries is spent"):
            ask([1])
        assert ask.bill.queries == 1
    with serve(served(Terms(drop=0.9999))) as address, pytest.raises(Dropped, match="no answer"):
        Client(address, retries=0)([1])


def test_a_server_that_names_tokens_by_their_text(monkeypatch) -> None:
    monkeypatch.setattr("mechinterp.stealing.server._told", _by_text)
    with serve(served(Terms())) as address, pytest.raises(ValueError, match="by their text"):
        Client(address)([1])


def _by_text(answers, name, sent, wanted):
    choice = {"text": " the", "index": 0, "logprobs": None, "finish_reason": "length"}
    head = {"id": "0", "object": "text_completion", "created": 0, "model": name, "choices": [choice]}
    return head | {"usage": {"prompt_tokens": sent, "completion_tokens": 1, "total_tokens": sent + 1}}
