import pytest

from photo_classifier.runtime.files import read_json
from photo_classifier.runtime.text import own_name, shell_command


@pytest.mark.parametrize(
    ("system", "line"), [("linux", "predict.py --input 'my photos'"), ("win32", 'predict.py --input "my photos"')]
)
def test_a_command_is_quoted_as_the_shell_of_the_system_wants_it(system, line, monkeypatch):
    monkeypatch.setattr("sys.platform", system)
    assert shell_command("predict.py", "--input", "my photos") == line


def test_a_folder_has_a_name_however_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "leaves" / "day 1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "leaves" / "day 1")
    assert [own_name(path) for path in (".", "..", "a/b.csv", "photos/")] == ["day 1", "leaves", "b.csv", "photos"]


@pytest.mark.parametrize("content", [None, b"", b'{"a": ', b'["a"]', b"\xff{}", b"[" * 1_000_000])
def test_json_that_is_no_dict_of_ours_reads_as_empty(content, tmp_path):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    assert read_json(tmp_path / "a.json") == {}


def test_json_of_ours_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"개": 1}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"개": 1}
