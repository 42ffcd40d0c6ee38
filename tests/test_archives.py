import io
import tarfile
import zipfile

import pytest

from archives import extract
from utils import UserError


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
