import io
import os
import tarfile
import time
import zipfile

import pytest
from helpers import assert_one_line_error

from photo_classifier.data import archives
from photo_classifier.data.archives import extract, unpack_once
from photo_classifier.runtime.errors import UserError


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
def test_an_archive_that_is_unpacked_again_gives_the_same_files(make, tmp_path):
    archive, times = make(tmp_path / "a", ["x.txt"]), []
    for out in (tmp_path / "first", tmp_path / "second"):
        extract(archive, out)
        times.append((out / "x.txt").stat().st_mtime_ns)
        time.sleep(0.02)
    assert times[0] == times[1]


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "a/../../evil.txt", "..\\evil.txt", "C:/evil.txt"])
def test_an_entry_that_would_leave_the_folder_is_refused(make, name, tmp_path):
    with pytest.raises(UserError, match="outside the folder"):
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


def test_a_broken_archive_is_an_error(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 half")
    with pytest.raises(UserError, match="cannot be unpacked"):
        extract(tmp_path / "a.zip", tmp_path / "out")


def test_an_archive_is_unpacked_once_and_anew_when_it_has_changed(tmp_path, capsys):
    archive = make_zip(tmp_path / "photos.zip", ["cat/1.jpg", ".hidden", "__MACOSX/cat/1.jpg", "cat/Thumbs.db"])
    folder = unpack_once(archive)
    assert sorted(path.name for path in folder.rglob("*")) == ["1.jpg", "cat"]
    stamp = (folder / "cat" / "1.jpg").stat().st_mtime_ns
    assert unpack_once(archive) == folder
    assert (folder / "cat" / "1.jpg").stat().st_mtime_ns == stamp
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["unpacked", str(archive)]
    make_zip(archive, ["cat/2.jpg"])
    again = unpack_once(archive)
    assert [path.name for path in (again / "cat").iterdir()] == ["2.jpg"]
    assert sorted(os.listdir(".cache/archives")) == sorted([folder.name, again.name]), "no half-unpacked folder"


def test_a_change_that_keeps_length_and_time_is_seen_by_the_checksums_of_a_zip(tmp_path):
    about = make_zip(tmp_path / "a.zip", ["1.txt"]).stat()
    first = unpack_once(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("1.txt", b"y")
    os.utime(tmp_path / "a.zip", ns=(about.st_atime_ns, about.st_mtime_ns))
    assert (tmp_path / "a.zip").stat().st_size == about.st_size
    assert unpack_once(tmp_path / "a.zip") != first


def test_two_runs_that_unpack_at_once_are_both_served(tmp_path, monkeypatch):
    archive = make_zip(tmp_path / "a.zip", ["1.txt"])

    def slow(*args):
        monkeypatch.undo()
        extract(archive, tmp_path / "out")  # the other run is faster
        return archives._unzip(*args)

    monkeypatch.setattr(archives, "_unzip", slow)
    extract(archive, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["1.txt"]
    assert sorted(os.listdir(tmp_path)) == ["a.zip", "out"]


def test_leftovers_of_a_killed_run_are_removed_a_day_later(tmp_path):
    archive = make_zip(tmp_path / "a.zip", ["1.txt"])
    for age in (0, 2 * 86_400):
        left = tmp_path / f".out.{age:08d}.tmp" / "inside"
        left.mkdir(parents=True)
        os.utime(left.parent, (time.time() - age,) * 2)
    extract(archive, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == [".out.00000000.tmp", "a.zip", "out"]


def _bomb_zip(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros.png", bytes(3_000_000))


def _bomb_tar(path):
    with tarfile.open(path, "w:gz") as file:
        info = tarfile.TarInfo("zeros.png")
        info.size = 3_000_000
        file.addfile(info, io.BytesIO(bytes(3_000_000)))


def _many_empty(path):
    make_tar(path, [f"{n}.png" for n in range(3000)])


def _lying_zip(path):
    """A zip whose directory says that its 3 MB are 3 bytes."""
    _bomb_zip(path)
    content = path.read_bytes()
    path.write_bytes(content.replace((3_000_000).to_bytes(4, "little"), (3).to_bytes(4, "little")))


def _long_name(path):
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as file:
        file.addfile(tarfile.TarInfo("first.png"))
        info = tarfile.TarInfo("a.png")
        info.pax_headers = {"comment": "x" * 2_000_000}
        file.addfile(info)


def _device(path):
    with tarfile.open(path, "w") as file:
        info = tarfile.TarInfo("dev.png")
        info.type = tarfile.CHRTYPE
        file.addfile(info)


def _hard_link(path):
    with tarfile.open(path, "w") as file:
        info = tarfile.TarInfo("link.png")
        info.type, info.linkname = tarfile.LNKTYPE, "/etc/passwd"
        file.addfile(info)


def _zip_link(path):
    with zipfile.ZipFile(path, "w") as file:
        info = zipfile.ZipInfo("link.png")
        info.external_attr = 0o120777 << 16
        file.writestr(info, "/etc/passwd")


def _locked(path):
    make_zip(path, ["a.png"])
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + place] |= 1
    path.write_bytes(content)


def _damaged_xz(path):
    with tarfile.open(path, "w:xz") as file:
        info = tarfile.TarInfo("a.png")
        info.size = 100_000
        file.addfile(info, io.BytesIO(os.urandom(info.size)))
    content = bytearray(path.read_bytes())
    content[40_000:41_000] = b"\xff" * 1000
    path.write_bytes(content)


REFUSED = {
    "damaged inside": (_damaged_xz, "cannot be unpacked (Co"),
    "zip bomb": (_bomb_zip, "unpacks to more than 0.0 GB (100 times its size, at least 1 GB)"),
    "tar bomb": (_bomb_tar, "unpacks to more than"),
    "many empty files": (_many_empty, "unpacks to more than"),
    "a zip that lies": (_lying_zip, "cannot be unpacked"),
    "a long header": (_long_name, "a header of 20000"),
    "a device": (_device, "is a link or a device"),
    "a hard link": (_hard_link, "is a link or a device"),
    "a link in a zip": (_zip_link, "is a link or a device"),
    "a password": (_locked, "encrypted with a password"),
    "no archive": (lambda path: path.write_bytes(b"hello"), "it is not a complete zip or tar file"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be unpacked"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_or_broken_archive_is_refused_in_one_line_and_leaves_nothing(name, tmp_path, cli, monkeypatch):
    make, expected = REFUSED[name]
    make(tmp_path / "photos.zip")
    monkeypatch.setattr(archives, "MAX_SMALL", 1_000_000)
    monkeypatch.setattr(archives, "MAX_GROWTH", 1)
    assert_one_line_error(cli("train", "--data_dir", "photos.zip"), expected.replace("100 times", "1 times"))
    assert not os.listdir(".cache/archives")


def test_an_archive_larger_than_the_disk_is_refused_before_unpacking(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "free_bytes", lambda path: 1)
    with pytest.raises(UserError, match=r"the disk has 0\.0 GB left"):
        extract(make_zip(tmp_path / "a.zip", ["1.txt", "2.txt"]), tmp_path / "out")


def zip_of(path, names):
    """A zip as old programs write it: names as these bytes, no word on their encoding."""
    marks = [f"{n:0{len(name)}d}" for n, name in enumerate(names, start=1)]
    make_zip(path, marks)
    content = path.read_bytes()
    for mark, name in zip(marks, names, strict=True):
        content = content.replace(mark.encode(), name)
    path.write_bytes(content)
    return path


def unpacked_names(archive, tmp_path):
    extract(archive, tmp_path / "out")
    return sorted(os.path.relpath(path, tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("names", "encoding"),
    [
        (["강아지/똠방각하 1.jpg", "고양이/b.jpg"], "cp949"),
        (["강아지/똠방각하 1.jpg", "🐈/b.jpg"], "utf-8"),
        (["été/Äpfel.jpg", "ñandú/b.jpg"], "cp437"),
    ],
)
def test_names_in_old_zips_are_korean_if_they_are_not_utf_8(names, encoding, tmp_path):
    archive = zip_of(tmp_path / "a.zip", [name.encode(encoding) for name in names])
    assert unpacked_names(archive, tmp_path) == sorted(names)


def test_names_in_new_zips_and_tars_use_the_stated_encoding(tmp_path):
    names = ["강아지/1.jpg", "🐈 cat/été.jpg"]
    assert unpacked_names(make_zip(tmp_path / "a.zip", names), tmp_path) == sorted(names)


def test_korean_names_in_old_tars_are_read(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="cp949") as file:
        file.addfile(tarfile.TarInfo("강아지/1.jpg"), io.BytesIO())
    assert unpacked_names(tmp_path / "a.tar", tmp_path) == ["강아지/1.jpg"]


def test_a_full_disk_while_unpacking_is_not_called_the_archives_fault(tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archives.ArchiveExtractor, "write", full)
    with pytest.raises(UserError, match=r"cannot make .*: No space left on device \(free some space\)$"):
        extract(make_zip(tmp_path / "a.zip", ["a.png"]), tmp_path / "out")
