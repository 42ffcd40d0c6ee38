import hashlib
import io
import socket
import tarfile
import zipfile

import pytest

import download as module
from download import DownloadError, download, extract
from utils import UserError


def test_a_download_arrives_whole_and_checked(file_server, tmp_path):
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


def test_a_missing_file_is_told_with_the_servers_answer(file_server, tmp_path):
    with pytest.raises(DownloadError, match="404"):
        download(f"{file_server.url}/nothing.pth", tmp_path / "w.pth")


def test_a_server_that_never_answers_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(DownloadError, match="no answer within"):
            download(f"http://127.0.0.1:{silent.getsockname()[1]}/w.pth", tmp_path / "w.pth")


def test_a_connection_that_breaks_leaves_no_file(tmp_path):
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


def make_zip(path, names):
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return path


def make_tar(path, names):
    with tarfile.open(path, "w:gz") as file:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 1
            file.addfile(info, io.BytesIO(b"x"))
    return path


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_an_archive_is_unpacked_without_its_leading_folder(make, tmp_path):
    extract(make(tmp_path / "a", ["top/train/x.txt", "top/y.txt"]), tmp_path / "out", strip="top")
    assert (tmp_path / "out" / "train" / "x.txt").read_bytes() == b"x"


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "a/../../evil.txt", "..\\evil.txt", "C:/evil.txt"])
def test_an_entry_that_would_leave_the_folder_is_refused(make, name, tmp_path):
    with pytest.raises(UserError, match="would leave"):
        extract(make(tmp_path / "a", ["good.txt", name]), tmp_path / "sub" / "out")
    assert not list((tmp_path / "sub").iterdir())
    assert not (tmp_path / "evil.txt").exists()


def test_a_link_in_an_archive_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc"
        file.addfile(info)
    with pytest.raises(UserError, match="link"):
        extract(tmp_path / "a.tar", tmp_path / "out")


def test_a_broken_archive_is_told(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 half")
    with pytest.raises(UserError, match="cannot be unpacked"):
        extract(tmp_path / "a.zip", tmp_path / "out")
