from photo_classifier.data.corrections import corrections, is_label_check
from photo_classifier.data.tables import Table

HEAD = "path,label,suggested,probability,reason,split"


def notes_of(folder, *lines, name="suspects.csv"):
    (folder / name).write_text("\n".join([HEAD, *lines]))
    return corrections(Table(folder / name))


def test_a_table_of_checked_labels_is_told_as_it_was_written_and_as_it_was_corrected(tmp_path):
    (tmp_path / "splits.csv").write_text("path,label,split\na.png,cat,train\nb.png,dog,test\nc.png,dog,valid\n")
    a, b, c = "a.png,cat,dog,0.9,dog is 99 times as likely,train", "b.png,dog,dog,0.9,,test", "c.png,dog,dog,1,,valid"
    (note,) = notes_of(tmp_path, a, b, c)
    assert note.startswith(f"no label in {tmp_path / 'suspects.csv'} was changed yet")
    (note,) = notes_of(tmp_path, a.replace(",cat", ",dog"), b, name="mine.csv")
    assert note.endswith("mine.csv: 1 label changed, 1 line deleted since the run that checked them")
    assert is_label_check(str(tmp_path / "mine.csv"))
    assert not is_label_check(str(tmp_path / "splits.csv"))


def test_class_folders_that_read_like_several_labels_are_one_class_in_the_table_of_a_run(tmp_path):
    names = ["cat", "dog", "cat,dog", "cat|dog", "[3]"]
    lines = [f'{n}.png,"{name}",cat,0.9,,train' for n, name in enumerate(names)]
    (tmp_path / "suspects.csv").write_text("\n".join([HEAD, *lines]))
    splits = [f'{n}.png,"{name}",train' for n, name in enumerate(names)]
    (tmp_path / "splits.csv").write_text("\n".join(["path,label,split", *splits]))
    (note,) = corrections(Table(tmp_path / "suspects.csv"))
    assert note.startswith("no label in ")
    rows = list(Table(tmp_path / "suspects.csv").rows())
    assert [(row.label, row.fault) for row in rows] == [(name, "") for name in names]


def test_without_the_splits_of_the_run_nothing_can_be_told(tmp_path):
    assert notes_of(tmp_path, "a.png,cat,dog,0.9,,train") == []
