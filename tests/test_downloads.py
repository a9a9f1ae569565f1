import socket
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.error import URLError

import pytest
import torch

from flowprior import downloads
from flowprior.downloads import fetched


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty folder of downloads, no proxy, and little patience."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(downloads, "PATIENCE", 1.0)
    monkeypatch.setenv("no_proxy", "*")
    downloads._answers.cache_clear()
    yield tmp_path
    downloads._answers.cache_clear()


def network():
    return "network"


def never():
    raise AssertionError("it would wait for minutes")


def once(server, reply):
    """Answer the next connection of a server with these bytes."""

    def answer():
        connection, _ = server.accept()
        with closing(connection):
            connection.recv(1000)
            connection.sendall(reply)

    threading.Thread(target=answer, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}/net.pth"


@pytest.mark.parametrize("status", [200, 403, 404, 405, 501])
def test_server_that_answers(status):
    """PyTorch asks it in another way, and meets what is wrong itself."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/net.pth"
        assert fetched(url, network) == "network"


def test_server_that_never_answers_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as server:  # connects, and says nothing
        url = f"http://127.0.0.1:{server.getsockname()[1]}/net.pth"
        start = time.perf_counter()
        assert fetched(url, never) is None
        assert 0.9 < time.perf_counter() - start < 4
        start = time.perf_counter()
        assert fetched(url, never) is None
        assert time.perf_counter() - start < 0.1


def test_server_that_knows_no_http(monkeypatch):
    raised = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert fetched(once(server, b"220 mail\r\n"), never) is None
    assert not raised


def test_no_server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert fetched(f"http://127.0.0.1:{port}/net.pth", never) is None


def test_folder_of_downloads_that_cannot_be_used(monkeypatch):
    def refuse():
        raise PermissionError

    monkeypatch.setattr(torch.hub, "get_dir", refuse)
    assert fetched("http://127.0.0.1:9/net.pth", never) is None


def test_download_that_fails(capsys, caplog):
    calls = []

    def fails():
        calls.append(1)
        print("downloading")
        raise URLError("cut off")

    with socket.create_server(("127.0.0.1", 0)) as server:
        url = once(server, b"HTTP/1.0 200 OK\r\n\r\n")
        with caplog.at_level("DEBUG", logger="flowprior"):
            assert fetched(url, fails) is None
    assert calls
    assert capsys.readouterr() == ("", "")
    assert "cut off" in caplog.text


def test_what_is_on_this_machine_needs_no_server(hub):
    (hub / "checkpoints").mkdir()
    (hub / "checkpoints" / "net.pth").touch()
    assert fetched("http://127.0.0.1:9/models/net.pth?download=1", network) == "network"
