import hashlib
import socket

import pytest

from photo_classifier.runtime import download as module
from photo_classifier.runtime.download import DownloadError, download


def test_a_download_is_complete_and_its_checksum_is_verified(file_server, tmp_path):
    content = bytes(range(256)) * 9000
    (file_server.folder / "w.pth").write_bytes(content)
    path = download(f"{file_server.url}/w.pth", tmp_path / "cache" / "w.pth", hashlib.sha256(content).hexdigest()[:8])
    assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == ["w.pth"]


def test_a_wrong_checksum_leaves_no_file(file_server, tmp_path):
    (file_server.folder / "w.pth").write_bytes(b"other")
    with pytest.raises(DownloadError, match="SHA-256"):
        download(f"{file_server.url}/w.pth", tmp_path / "cache" / "w.pth", "00000000")
    assert not list((tmp_path / "cache").iterdir())


def test_a_missing_file_is_reported_with_the_servers_status(file_server, tmp_path):
    with pytest.raises(DownloadError, match="404"):
        download(f"{file_server.url}/nothing.pth", tmp_path / "w.pth")


def test_a_server_that_never_answers_times_out(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(DownloadError, match="no answer within"):
            download(f"http://127.0.0.1:{silent.getsockname()[1]}/w.pth", tmp_path / "w.pth")


def test_a_broken_connection_leaves_no_file(tmp_path):
    import threading

    with socket.create_server(("127.0.0.1", 0)) as server:

        def half():
            connection, _ = server.accept()
            connection.recv(4096)
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 400)
            connection.close()

        threading.Thread(target=half, daemon=True).start()
        with pytest.raises(DownloadError, match="400 of 1000"):
            download(f"http://127.0.0.1:{server.getsockname()[1]}/w.pth", tmp_path / "cache" / "w.pth")
    assert not list((tmp_path / "cache").iterdir())


def test_a_proxy_from_the_environment_is_used(file_server, tmp_path, monkeypatch):
    (file_server.folder / "w.pth").write_bytes(b"weights")
    monkeypatch.setenv("http_proxy", file_server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert download("http://weights.example/w.pth", tmp_path / "w.pth").read_bytes() == b"weights"
    assert file_server.requests == ["http://weights.example/w.pth"]
