import json
import os
import re

import pytest

from photo_classifier.data.samples import Sample
from photo_classifier.prediction.result_file import ResultFile
from photo_classifier.prediction.results import Prediction, Totals, columns_of, row_of
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.signals import Stopped

NAMES = ["a.jpg", '\ufeffb "quoted", 개.jpg', "two\nlines.jpg", "cr\rlf\r\n.jpg", "", "last.jpg"]
METADATA = {"checkpoint": {"sha256": "0"}, "settings": {"input": ["photos"]}}


def predictions(names=NAMES):
    return [
        Prediction(name, "", label="cat", status="error", reason="is empty")
        if name.startswith("two")
        else Prediction(name, "cat", 0.75, (("cat", 0.75), ("dog", 0.25)), label="dog")
        for name in names
    ]


def write(path, names=NAMES, resume=False, metadata=METADATA, n_stop=None, columns=None):
    samples, totals = iter([Sample(name) for name in names]), Totals()
    with ResultFile(str(path), columns or columns_of(2), metadata) as target:
        if target.begin(resume, samples, totals):
            for prediction in predictions([sample.path for sample in samples][:n_stop]):
                totals.add([prediction])
                target.write([row_of(prediction)], totals)
            if n_stop is not None:
                raise Stopped(15)
            target.finish(totals.state())
    return totals.counts


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
@pytest.mark.parametrize("keeps_state", [True, False])
def test_a_file_cut_anywhere_is_continued_to_the_same_bytes(ending, keeps_state, tmp_path):
    path = tmp_path / f"r{ending}"
    counts = write(path)
    whole = path.read_bytes()
    (tmp_path / "r.json").unlink()
    for cut in range(0, len(whole), 53 if keeps_state else 17):
        if keeps_state:
            with pytest.raises(Stopped):
                write(path, n_stop=4)
        (tmp_path / f"r{ending}.partial").write_bytes(whole[:cut])
        assert write(path, resume=True) == counts
        assert path.read_bytes() == whole, cut
        assert {name.removesuffix(".prev") for name in os.listdir(tmp_path)} == {"r.json", f"r{ending}"}


def test_a_complete_result_is_not_written_again(tmp_path):
    write(tmp_path / "r.csv")
    before = (tmp_path / "r.csv").stat().st_mtime_ns
    assert write(tmp_path / "r.csv", resume=True).n_rows == len(NAMES)
    assert (tmp_path / "r.csv").stat().st_mtime_ns == before
    os.rename(tmp_path / "r.json", tmp_path / "r.json.partial")  # killed between the two renames
    assert write(tmp_path / "r.csv", resume=True).n_rows == len(NAMES)
    assert (tmp_path / "r.json").exists()


def test_a_resume_without_a_partial_file_keeps_the_earlier_result(tmp_path, capsys):
    path = tmp_path / "r.csv"
    write(path)
    before = path.read_bytes()
    assert write(path, ["other.jpg"], resume=True, metadata={**METADATA, "settings": {"input": ["others"]}}).n_rows == 1
    assert (tmp_path / "r.csv.prev").read_bytes() == before
    printed = capsys.readouterr()
    assert f"starting again; the earlier result will be {path}.prev" in printed.err
    assert f"the earlier {path} is now {path}.prev" in printed.out


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet", ".xlsx"])
def test_an_earlier_result_and_its_json_are_kept_until_and_after_the_new_ones_are_complete(ending, tmp_path):
    path = tmp_path / f"r{ending}"
    write(path)
    before = {name: (tmp_path / name).read_bytes() for name in (path.name, "r.json")}
    with pytest.raises(Stopped):
        write(path, NAMES[::-1], n_stop=2)
    assert path.read_bytes() == before[path.name]
    write(path, NAMES[::-1], resume=ending in (".csv", ".jsonl"))
    assert {name: (tmp_path / f"{name}.prev").read_bytes() for name in before} == before
    assert path.read_bytes() != before[path.name]


CHANGES = {
    "another input": (
        {"names": ["a.jpg", "other.jpg", *NAMES[2:]]},
        "input 2 was .b .* in .*r.csv and is other.jpg now",
    ),
    "an input less": ({"names": NAMES[:-1]}, "input 6 was last.jpg in .*r.csv and is missing now"),
    "an input more": ({"names": [*NAMES, "new.jpg"]}, "r.csv has no row for new.jpg; leave out --resume"),
    "columns": ({"columns": columns_of()}, "r.csv has other columns"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_result_is_complete_only_with_the_rows_of_the_present_inputs(name, tmp_path):
    options, message = CHANGES[name]
    write(tmp_path / "r.csv")
    before = (tmp_path / "r.csv").read_bytes()
    with pytest.raises(UserError, match=message):
        write(tmp_path / "r.csv", resume=True, **options)
    assert (tmp_path / "r.csv").read_bytes() == before
    assert write(tmp_path / "r.csv", **options).n_rows == len(options.get("names", NAMES))


def test_a_result_that_lost_rows_is_not_complete(tmp_path):
    write(tmp_path / "r.csv")
    content = (tmp_path / "r.csv").read_bytes()
    (tmp_path / "r.csv").write_bytes(content[: content.rindex(b"last.jpg")])
    with pytest.raises(UserError, match="no row for last"):
        write(tmp_path / "r.csv", resume=True)


def launched(name, path):
    return ResultFile(str(path), columns_of(2), {**METADATA, "launch": [name, "second machine"]})


def is_of_launch(target):
    return target.state.is_of_launch(os.path.exists(target.partial))


def test_a_restart_resumes_only_what_the_same_launch_has_written(tmp_path):
    path, totals = tmp_path / "r.csv", Totals()
    assert not is_of_launch(launched("host 1", path))
    target = launched("host 1", path)
    target.begin(False, iter(()), totals)
    assert is_of_launch(launched("host 1", path)), "before its first row, too"
    target.write([row_of(prediction) for prediction in predictions()], totals)
    target.close()
    assert is_of_launch(launched("host 1", path))
    other = ResultFile(str(path), columns_of(2), {**METADATA, "launch": ["host 2"]})
    assert not is_of_launch(other)
    write(path)
    assert not is_of_launch(launched("host 1", path)), "a result of a plain run"


MISMATCHES = {
    "inputs": ({"names": ["a.jpg", "other.jpg", *NAMES[2:]]}, "input 2 was .b .* and is other.jpg now"),
    "fewer inputs": ({"names": NAMES[:2]}, r"(?s)input 3 was .* is missing now"),
    "checkpoint": ({"metadata": {**METADATA, "checkpoint": {"sha256": "1"}}}, "made with another checkpoint"),
    "settings": ({"metadata": {**METADATA, "settings": {"input": ["more"]}}}, "made with another input"),
    "columns": ({"columns": columns_of()}, "has other columns"),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_a_run_with_another_input_or_model_is_not_mixed_in(name, tmp_path):
    options, message = MISMATCHES[name]
    with pytest.raises(Stopped):
        write(tmp_path / "r.csv", n_stop=4)
    before = (tmp_path / "r.csv.partial").read_bytes()
    with pytest.raises(UserError, match=message):
        write(tmp_path / "r.csv", resume=True, **options)
    assert (tmp_path / "r.csv.partial").read_bytes() == before


def test_rows_of_a_stopped_run_are_kept_when_another_begins(tmp_path):
    with pytest.raises(Stopped) as stopped:
        write(tmp_path / "r.csv", n_stop=4)
    there = f"{tmp_path / 'r.csv.partial'} has 4 rows"
    assert stopped.value.hint == f"; {there}; run the same command with --resume to continue"
    before = (tmp_path / "r.csv.partial").read_bytes()
    write(tmp_path / "r.csv")
    assert (tmp_path / "r.csv.partial.prev").read_bytes() == before


def test_a_file_that_cannot_be_replaced_leaves_its_rows(tmp_path, monkeypatch):
    def open_elsewhere(source, target):
        if str(target).endswith("r.csv"):
            raise PermissionError(13, "Permission denied")
        return replace(source, target)

    replace = os.replace
    monkeypatch.setattr("os.replace", open_elsewhere)
    with pytest.raises(UserError, match=r"open in another program\? .*r\.csv\.partial has all 6 rows"):
        write(tmp_path / "r.csv")
    monkeypatch.undo()
    assert write(tmp_path / "r.csv", resume=True).n_rows == 6
    assert not (tmp_path / "r.csv.partial").exists()


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet", ".xlsx"])
@pytest.mark.parametrize("where", ["photo_classifier.prediction.state_file.write_text", "os.fsync"])
def test_a_disk_that_is_full_at_the_end_is_reported_with_advice(where, ending, tmp_path, monkeypatch):
    def full(*_):
        raise (OSError if where == "os.fsync" else UserError)(28, "No space left on device")

    monkeypatch.setattr("photo_classifier.prediction.result_file.SYNC_SECONDS", float("inf"))
    monkeypatch.setattr(where, full)
    with pytest.raises(UserError, match="No space left on device") as stopped:
        write(tmp_path / f"r{ending}")
    rows_are = rf"; [^;]*r{ending}\.partial has 6 rows"
    goes_on = rows_are + "; run the same command with --resume to continue$"
    lost = (
        rows_are + "$"
        if where == "photo_classifier.prediction.state_file.write_text"
        else "; its rows are lost; run the command again"
    )
    assert re.search(goes_on if ending in (".csv", ".jsonl") else lost, str(stopped.value))
    monkeypatch.undo()
    if ending in (".csv", ".jsonl"):
        assert write(tmp_path / f"r{ending}", resume=True).n_rows == 6
        assert os.path.exists(tmp_path / f"r{ending}")


def test_files_of_the_user_are_not_overwritten(tmp_path):
    (tmp_path / "labels.csv").write_text("path,label\na.jpg,cat\n")
    (tmp_path / "photos.json").write_text('{"images": []}')
    for name in ("labels.csv", "photos.csv"):
        with pytest.raises(UserError, match="exists and was not written by this tool"):
            write(tmp_path / name)
    (tmp_path / "empty.csv").touch()
    write(tmp_path / "empty.csv")


@pytest.mark.parametrize("name", ["checkpoint", "settings", "counts"])
def test_a_result_json_of_another_program_is_not_overwritten(name, tmp_path):
    write(tmp_path / "r.csv")
    content = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    (tmp_path / "r.json").write_text(json.dumps({**content, name: "x"}))
    with pytest.raises(UserError, match=r"r\.json exists and was not written by this tool"):
        write(tmp_path / "r.csv", resume=True)


def test_a_broken_state_of_a_stopped_run_is_ignored(tmp_path):
    with pytest.raises(Stopped):
        write(tmp_path / "r.csv", n_stop=4)
    (tmp_path / "r.json.partial").write_text('{"checkpoint": "x", "launch": 1}')
    assert not is_of_launch(launched("host 1", tmp_path / "r.csv"))
    assert write(tmp_path / "r.csv", resume=True).n_rows == len(NAMES)


def test_parquet_holds_the_same_rows(tmp_path):
    from pyarrow import parquet

    write(tmp_path / "r.parquet")
    write(tmp_path / "r.jsonl")
    expected = [json.loads(line) for line in open(tmp_path / "r.jsonl", encoding="utf-8", newline="\n")]
    assert parquet.read_table(tmp_path / "r.parquet").to_pylist() == expected
    with pytest.raises(UserError, match="cannot be continued"):
        write(tmp_path / "r.parquet", resume=True)
    with pytest.raises(Stopped):
        write(tmp_path / "s.parquet", n_stop=4)
    assert parquet.read_table(tmp_path / "s.parquet.partial").num_rows == 4


HARD_NAMES = ["=1+1.jpg", "+a.jpg", "-b.jpg", "@c.jpg", "#N/A", "00012", " padded ", "\x00\x1b.jpg", "cr\r.jpg",
              "\uffff.jpg", "caf\udce9.jpg", "개 <&>.jpg", "two\nlines\t.jpg"]  # fmt: skip


def sheets_of(path):
    from openpyxl import load_workbook

    return [list(sheet.values) for sheet in load_workbook(path, read_only=True)]


def test_excel_holds_the_same_rows_and_every_name_as_text(tmp_path):
    write(tmp_path / "r.xlsx", HARD_NAMES)
    write(tmp_path / "r.jsonl", HARD_NAMES)
    expected = [json.loads(line) for line in open(tmp_path / "r.jsonl", encoding="utf-8", newline="\n")]
    ((header, *rows),) = sheets_of(tmp_path / "r.xlsx")
    as_shown = {"\x00\x1b.jpg": r"\x00\x1b.jpg", "cr\r.jpg": r"cr\x0d.jpg", "\uffff.jpg": r"\xffff.jpg"}
    assert [row[0] for row in rows] == [as_shown.get(row["file_dir"], row["file_dir"]) for row in expected]
    assert list(header) == columns_of(2)
    assert [row[1:] for row in rows] == [tuple(v if v != "" else None for v in row.values())[1:] for row in expected]


def test_more_rows_than_a_sheet_of_excel_holds_go_on_in_the_next(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("photo_classifier.prediction.xlsx_file.MAX_ROWS", 4)
    write(tmp_path / "r.xlsx", HARD_NAMES[:7])
    assert [[row[0] for row in rows[1:]] for rows in sheets_of(tmp_path / "r.xlsx")] == [
        HARD_NAMES[:3], HARD_NAMES[3:6], HARD_NAMES[6:7]
    ]  # fmt: skip
    assert "a sheet of Excel holds 4 rows: the rest are in the sheets rows 2, rows 3" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"r\.xlsx cannot hold 20,009 columns, only 16,384; give a name in \.csv"):
        write(tmp_path / "r.xlsx", columns=columns_of(10_000 + 1))


def test_a_stopped_workbook_can_be_read_and_is_not_continued(tmp_path):
    with pytest.raises(Stopped) as stopped:
        write(tmp_path / "r.xlsx", n_stop=4)
    assert stopped.value.hint == f"; {tmp_path / 'r.xlsx.partial'} has 4 rows"
    os.rename(tmp_path / "r.xlsx.partial", tmp_path / "part.xlsx")
    assert len(sheets_of(tmp_path / "part.xlsx")[0]) == 5
    with pytest.raises(
        UserError, match=r"--resume needs a result that ends in \.csv or \.jsonl; .*cannot be continued"
    ):
        write(tmp_path / "r.xlsx", resume=True)


def test_a_workbook_of_the_user_is_not_overwritten(tmp_path):
    from openpyxl import Workbook

    Workbook().save(tmp_path / "mine.xlsx")
    before = (tmp_path / "mine.xlsx").read_bytes()
    with pytest.raises(UserError, match=r"mine\.xlsx exists and was not written by this tool"):
        write(tmp_path / "mine.xlsx")
    assert (tmp_path / "mine.xlsx").read_bytes() == before


def test_a_disk_that_is_full_under_a_workbook_is_reported(tmp_path, monkeypatch):
    import openpyxl.worksheet._writer as writer

    def full(*_):
        raise OSError(28, "No space left on device")

    def rows_then_full(*arguments):
        calls.append(arguments)
        return (write_row if len(calls) < 4 else full)(*arguments)

    calls, write_row = [], writer.WorksheetWriter.write_row
    monkeypatch.setattr(writer.WorksheetWriter, "write_row", rows_then_full)
    with pytest.raises(UserError, match=r"cannot write .*r\.xlsx\.partial: No space left on device"):
        write(tmp_path / "r.xlsx")


def test_a_run_that_ends_before_its_first_row_leaves_nothing(tmp_path):
    with pytest.raises(Stopped):
        write(tmp_path / "r.csv", n_stop=0)
    assert os.listdir(tmp_path) == []


def test_a_lost_worker_leaves_the_rows_and_advice(tmp_path):
    def lose():
        with ResultFile(str(tmp_path / "r.csv"), columns_of(2), METADATA) as target:
            target.begin(False, iter(()), totals := Totals())
            target.write([row_of(prediction) for prediction in predictions(NAMES[:2])], totals)
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    with pytest.raises(UserError, match=r"give a lower --n_workers, or 0; .* has 2 rows; .*with --resume to continue"):
        lose()
