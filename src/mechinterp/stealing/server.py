"""A `Provider` behind the OpenAI protocol on the loopback address, and a client that asks it as any user would.

Tokens are named `token_id:17` in answers, since two tokens may read alike, and prompts are lists of token ids. The
server binds to 127.0.0.1 and to nothing else, takes requests of limited size and number, and stops by itself.
"""

import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import torch

from mechinterp.stealing.api import Answer, Bias, Bill, Dropped, Provider, Refused

MOST_BYTES = 1 << 20
AT_ONCE = 8
_NAME = "token_id:"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    timeout = 0.2

    def __init__(self, provider: Provider, name: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.provider, self.name = provider, name
        self.one_at_a_time = threading.Lock()
        self._free = threading.BoundedSemaphore(AT_ONCE)
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        """At most `AT_ONCE` connections; what comes on top is closed."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._open.discard(request)
            self._free.release()

    def server_close(self) -> None:
        """Connections that are still open are cut: nothing is served any more."""
        super().server_close()
        for request in list(self._open):
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 5  # seconds of silence on a connection
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._send(200, {"object": "list", "data": [{"id": self.server.name, "object": "model"}]})
        else:
            self._fail(404, f"there is no {self.path}")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            self.close_connection = True
            return self._fail(413, f"a request has a length, of {MOST_BYTES} bytes at most")
        body = self.rfile.read(int(length))
        if self.path != "/v1/completions":
            return self._fail(404, f"there is no {self.path}")
        try:
            asked = _read(json.loads(body), self.server.name)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return self._fail(400, f"not a request for a completion: {error}")
        try:
            with self.server.one_at_a_time:
                answers = self.server.provider.at_length(*asked[:3])
        except Refused as error:
            return self._fail(400, str(error))
        except Dropped as error:
            return self._fail(503, str(error))
        return self._send(200, _told(answers, self.server.name, len(asked[0]), asked[3]))

    def _fail(self, status: int, message: str) -> None:
        self._send(status, {"error": {"message": message, "type": "invalid_request_error", "code": None}})

    def _send(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


def _read(body: Any, name: str) -> tuple[list[int], dict[int, float], int, int]:
    """Prompt, bias, and how many tokens and log-probabilities are wanted."""
    if body["model"] != name:
        raise ValueError(f"the model is {name!r}, not {body['model']!r}")
    prompt = body["prompt"]
    if not isinstance(prompt, list) or not all(type(t) is int for t in prompt):
        raise ValueError("a prompt is a list of token ids")
    if body.get("n", 1) != 1 or body.get("temperature", 0) != 0:
        raise ValueError("only one answer is served, at temperature 0")
    bias = {int(token): float(value) for token, value in (body.get("logit_bias") or {}).items()}
    return prompt, bias, int(body.get("max_tokens", 1)), int(body.get("logprobs") or 0)


def _told(answers: Sequence[Answer], name: str, sent: int, wanted: int) -> dict[str, Any]:
    shown = [dict(list(answer.shown.items())[:wanted]) for answer in answers]
    tokens = [f"{_NAME}{answer.next}" for answer in answers]
    logprobs = {
        "tokens": tokens,
        "token_logprobs": [at.get(answer.next) for answer, at in zip(answers, shown, strict=True)],
        "top_logprobs": [{f"{_NAME}{t}": x for t, x in at.items()} for at in shown],
        "text_offset": list(itertools.accumulate(map(len, tokens[:-1]), initial=0)),
    }
    choice = {
        "text": "".join(tokens),
        "index": 0,
        "logprobs": logprobs if any(shown) else None,
        "finish_reason": "length",
    }
    n = len(answers)
    usage = {"prompt_tokens": sent, "completion_tokens": n, "total_tokens": sent + n}
    head = {"id": "cmpl-0", "object": "text_completion", "created": int(time.time()), "model": name}
    return head | {"choices": [choice], "usage": usage}


@contextmanager
def serve(provider: Provider, *, name: str = "model", seconds: float = 600.0) -> Iterator[str]:
    """Serve completions at the address that is yielded, `http://127.0.0.1:port/v1`, until the block ends.

    Args:
        seconds: after which the server stops in any case.

    >>> with serve(Provider(lambda prompt: torch.tensor([0.0, 1.0]))) as address:
    ...     print(address.rsplit(":", 1)[0])
    http://127.0.0.1
    """
    if not seconds > 0:
        raise ValueError(f"seconds must be above 0, not {seconds}")
    server, done, end = _Server(provider, name), threading.Event(), time.monotonic() + seconds

    def run() -> None:
        with server:
            while not done.is_set() and time.monotonic() < end:
                server.handle_request()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        done.set()
        thread.join()


class Client:
    """Asks a server through the `openai` client, and keeps its own bill from what the server says was used.

    Args:
        address: as `serve` yields it. `name`: the model's.
        top: how many log-probabilities to ask for.
        retries: how often the client asks again when nothing comes back.

    Errors: `Refused` and `Dropped` as a `Provider` raises them; `ModuleNotFoundError` without the `openai` package.
    """

    def __init__(self, address: str, *, name: str = "model", top: int = 5, retries: int = 2) -> None:
        import openai

        self._openai = openai
        self._client = openai.OpenAI(base_url=address, api_key="none", max_retries=retries, timeout=60.0)
        self.name, self.top, self.bill = name, top, Bill()

    def __call__(self, prompt: Sequence[int], bias: Bias = {}) -> Answer:  # noqa: B006  # never changed
        """One question."""
        return self.at_length(prompt, bias, 1)[0]

    def at_length(self, prompt: Sequence[int], bias: Bias, n: int) -> list[Answer]:
        """One question that n tokens answer."""
        try:
            told = self._client.completions.create(
                model=self.name,
                prompt=list(prompt),
                max_tokens=n,
                temperature=0,
                logprobs=self.top or None,
                logit_bias=cast("dict[str, int]", {str(token): value for token, value in bias.items()}) or None,
            )
        except self._openai.APIConnectionError as error:
            raise Dropped(f"no answer from {self._client.base_url}") from error
        except self._openai.InternalServerError as error:
            raise Dropped(str(error)) from error
        except self._openai.APIStatusError as error:
            raise Refused(str(error)) from error
        self.bill.queries += 1
        if told.usage is not None:
            self.bill.sent += told.usage.prompt_tokens
            self.bill.received += told.usage.completion_tokens
        choice = told.choices[0]
        said = [_number(name) for name in re.split(f"(?!^)(?={_NAME})", choice.text)]
        top = choice.logprobs and choice.logprobs.top_logprobs
        if len(said) != n or (top and len(top) != n):
            raise ValueError(f"the server answered with {len(said)} tokens, not with {n}")
        return [_answer(token, at) for token, at in zip(said, top or [{}] * n, strict=True)]


def _answer(token: int, top: dict[str, float]) -> Answer:
    shown = {_number(name): value for name, value in top.items()}
    values = torch.tensor(list(shown.values()), dtype=torch.float64)
    return Answer(token, torch.tensor(list(shown), dtype=torch.long), values)


def _number(name: str) -> int:
    if not name.startswith(_NAME):
        raise ValueError(f"the server names tokens by their text ({name!r}), not by number")
    return int(name.removeprefix(_NAME))
