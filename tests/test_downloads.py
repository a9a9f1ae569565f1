import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch

from flowprior.downloads import obtainable


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty folder of downloads, and no proxy."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    obtainable.cache_clear()
    yield tmp_path
    obtainable.cache_clear()


@pytest.mark.parametrize("status", [200, 404])
def test_server_that_answers(status):
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        found = obtainable(f"http://127.0.0.1:{server.server_port}/net.pth", seconds=5.0)
    assert found == (status == 200)


def test_server_that_never_answers_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as server:  # connects, and says nothing
        url = f"http://127.0.0.1:{server.getsockname()[1]}/net.pth"
        start = time.perf_counter()
        assert not obtainable(url, seconds=0.5)
        assert 0.4 < time.perf_counter() - start < 3
        start = time.perf_counter()
        assert not obtainable(url, seconds=0.5)
        assert time.perf_counter() - start < 0.1


def test_no_server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    start = time.perf_counter()
    assert not obtainable(f"http://127.0.0.1:{port}/net.pth")
    assert time.perf_counter() - start < 3


def test_what_is_on_this_machine_needs_no_server(hub):
    (hub / "checkpoints").mkdir()
    (hub / "checkpoints" / "net.pth").touch()
    assert obtainable("http://127.0.0.1:9/models/net.pth?download=1")
