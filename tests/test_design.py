"""The tree in docs/design.md is the one that is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def files_of_the_tree(text):
    """The paths that an indented tree names: folders end with a slash, and a line may name several."""
    (block,) = re.findall(r"^## The tree\n\n((?: {4}.*\n)+)", text, re.M)
    folders, files = {}, []
    for line in block.splitlines():
        indent = len(line) - len(line.lstrip())
        name = line.split()[0]
        parent = "".join(folders[depth] for depth in sorted(folders) if depth < indent)
        folders = {depth: folder for depth, folder in folders.items() if depth < indent}
        if name.endswith("/"):
            folders[indent] = name
        files.append(parent + name)
    return files


def test_the_tree_of_the_design_names_every_module_and_nothing_else():
    named = files_of_the_tree((ROOT / "docs" / "design.md").read_text(encoding="utf-8"))
    assert len(named) == len(set(named))
    assert all((ROOT / name).exists() for name in named), [name for name in named if not (ROOT / name).exists()]
    modules = [*ROOT.glob("*.py"), *(ROOT / "photo_classifier").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    assert not {path.relative_to(ROOT).as_posix() for path in modules if path.name != "__init__.py"} - set(named)
    folders = [path for path in (ROOT / "tests").iterdir() if path.is_dir() and not path.name.startswith("_")]
    assert not {path.relative_to(ROOT).as_posix() + "/" for path in folders} - set(named)


def test_every_file_of_the_tree_and_of_the_wishes_is_described():
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    for line in re.findall(r"^## The tree\n\n((?: {4}.*\n)+)", text, re.M)[0].splitlines():
        assert len(line.split()) > 2, line
    wishes = text.split("## Where to change what")[1].split("\n## ")[0]
    for name in re.findall(r"`([\w/]+\.py)`", wishes):
        assert (ROOT / name).is_file() or (ROOT / "photo_classifier" / name).is_file(), name
