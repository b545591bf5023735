"""A person who ranks on a local web page: click the pictures in the order of preference.

The server listens on 127.0.0.1 alone, and answers only under a random token in the address and to requests that name
this host, so neither another machine, nor another user without the address, nor a foreign page in the same browser can
look or answer. The page loads nothing from elsewhere.
"""

from __future__ import annotations

import base64
import io
import json
import queue
import secrets
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ...errors import UsageError
from ...generation.sheet import shown
from .question import Answer, Question
from .rank_sgd import check_order
from .sheets import images_of

LARGEST_ANSWER = 10_000  # bytes


class OnPage:
    """Used as a context, it serves; as a function, it shows a question and waits for the answer.

    with OnPage() as ranker: print(ranker.address); rank(..., ranker)
    """

    def __init__(self, port: int = 0):
        """port: 0 takes a free one. Raises UsageError for one that cannot be had."""
        self.token = secrets.token_urlsafe(18)
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler_of(self))
        except (OSError, OverflowError) as error:
            raise UsageError(f"port {port} cannot be used ({error}); leave it out for a free one") from None
        self._server.daemon_threads = True
        self._lock = threading.Lock()
        self._answers: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self._number = 0  # of the question that is shown; a page of an older one is out of date
        self._question: Question | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{self.token}/"

    @property
    def hosts(self) -> tuple[str, str]:
        """What a request may call us."""
        return f"127.0.0.1:{self._server.server_port}", f"localhost:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __call__(self, question: Question) -> Answer | None:
        """Waits until the page has answered; None where it was told to stop."""
        with self._lock:
            self._number, self._question = self._number + 1, question
        while True:
            try:
                return self._answers.get(timeout=0.5)  # a wait without end would not hear Ctrl-C everywhere
            except queue.Empty:
                continue

    def status(self) -> dict[str, Any]:
        """What a waiting page asks for: is there another question?"""
        with self._lock:
            return {"question": self._number if self._question else None}

    def html(self) -> str:
        """The page as it is now."""
        with self._lock:
            return render(self._question, self._number)

    def accept(self, told: Mapping[str, Any]) -> None:
        """An answer from the page: {"question": number, "order": [3, 1]} from 1, or {"question": number, "stop": true}.

        Raises UsageError for what is no answer to the question that is open.
        """
        with self._lock:
            if self._question is None or told.get("question") != self._number:
                raise UsageError("this question was answered already; reload the page")
            answer = None if told.get("stop") is True else Answer(_order(told.get("order"), self._question))
            self._question = None
        self._answers.put(answer)


def _order(told: Any, question: Question) -> tuple[int, ...]:
    if not isinstance(told, list) or not all(type(i) is int for i in told):
        raise UsageError("an order is a list of numbers of pictures; click the pictures")
    order = tuple(i - 1 for i in told)
    check_order(order, len(question.pictures))
    if len(order) > question.most:
        raise UsageError(f"{len(order)} pictures were named; name at most {question.most}")
    return order


def render(question: Question | None, number: int) -> str:
    """The page of a question; without one, a page that waits for the next."""
    import jinja2

    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    )
    pictures = [_as_data(image) for image in images_of(question.pictures)] if question else []
    return template.render(question=question, number=number, pictures=pictures)


def _as_data(image: Any) -> str:
    held = io.BytesIO()
    shown(image).save(held, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"


def _handler_of(page: OnPage) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "pilotage", ""
        timeout = 30

        def do_GET(self) -> None:
            if not self._allowed():
                self._send(404, "text/plain", "not here")
            elif self.path == f"/{page.token}/":
                self._send(200, "text/html", page.html())
            elif self.path == f"/{page.token}/status":
                self._send(200, "application/json", json.dumps(page.status()))
            else:
                self._send(404, "text/plain", "not here")

        def do_POST(self) -> None:
            if not (self._allowed() and self.path == f"/{page.token}/answer"):
                self._send(404, "text/plain", "not here")
                return
            try:
                page.accept(self._told())
            except UsageError as error:
                self._send(400, "text/plain", str(error))
            else:
                self._send(200, "application/json", json.dumps(page.status()))

        def _told(self) -> Mapping[str, Any]:
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal() or int(length) > LARGEST_ANSWER:
                raise UsageError("an answer is a short JSON object; click the pictures")
            try:
                found = json.loads(self.rfile.read(int(length)))
            except (ValueError, RecursionError):
                found = None
            if not isinstance(found, dict):
                raise UsageError("an answer is a short JSON object; click the pictures")
            return found

        def _allowed(self) -> bool:
            """The token in the address, and our own name in Host: a foreign name that leads here is refused."""
            host = self.headers.get("Host", "")
            first = self.path.split("/")[1] if "/" in self.path else ""
            return host in page.hosts and secrets.compare_digest(first.encode("utf-8", "replace"), page.token.encode())

        def _send(self, status: int, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("Referrer-Policy", "no-referrer")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header(
                "Content-Security-Policy",
                "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
                "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
            )
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the terminal is for the ranking."""

    return Handler
