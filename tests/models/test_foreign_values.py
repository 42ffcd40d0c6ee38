import argparse
import collections
import os
import pathlib
import pickle

import numpy as np
import pytest
import torch

from photo_classifier.models.tensor_files import read
from photo_classifier.runtime.errors import UserError


def test_what_training_scripts_save_beside_the_weights_is_read_as_data(tmp_path):
    history = collections.defaultdict(list)
    history["loss"] += [0.5, np.float32(0.25)]
    values = {
        "weights": collections.OrderedDict(w=torch.ones(2)),
        "args": argparse.Namespace(
            model="resnet18", lr=0.1, out=pathlib.PosixPath("/data") / "run", size=(3, 224, 224)
        ),
        "history": history,
        "classes": [*np.unique(["kůň", "cat"]), np.str_(""), np.bytes_(b"ab"), np.array(["x"], dtype=">U3")[0]],
        "numbers": [np.float64(0.5), np.int64(-3), np.bool_(True), np.float16(2), np.uint8(7), np.dtype(">i4").type(9)],
    }
    torch.save(values, tmp_path / "w.pth")
    content = read(tmp_path / "w.pth")
    assert content["numbers"] == [0.5, -3, True, 2.0, 7, 9]
    assert {type(number) for number in content["numbers"]} == {float, int, bool}
    assert content["classes"] == ["cat", "kůň", "", b"ab", "x"]
    assert {type(name) for name in content["classes"]} == {str, bytes}
    assert content["history"] == {"loss": [0.5, 0.25]}
    assert (content["args"].model, content["args"].out) == ("resnet18", "/data/run")


def test_a_path_of_another_system_is_text(tmp_path):
    class WindowsPath:
        def __reduce__(self):
            return pathlib.WindowsPath, ("C:\\", "photos")

    torch.save({"path": WindowsPath()}, tmp_path / "w.pth")
    assert read(tmp_path / "w.pth") == {"path": "C:\\/photos"}


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HOSTILE = {
    "a call": Calls(os.system, "touch payload-ran"),
    "code in the arguments": argparse.Namespace(x=Calls(os.system, "touch payload-ran")),
    "a default dict that calls": Calls(collections.defaultdict, Calls(os.system, "touch payload-ran")),
    "a type that makes values": Calls(list, "abc"),
    "a memory bomb": Calls(str, 10),
    "objects of numpy": Calls(np.float64(1).__reduce__()[0], np.dtype("O"), pickle.dumps(Calls(os.system, "true"))),
    "a text of numpy that is larger than its data": Calls(np.str_("a").__reduce__()[0], np.dtype("U99999999"), b"a"),
    "an array of numpy": np.ones(3),
    "open": Calls(pathlib.Path.touch, pathlib.PosixPath("payload-ran")),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_nothing_but_such_values_is_read(what, tmp_path):
    torch.save({"w": torch.ones(1), "x": HOSTILE[what]}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth"):
        read(tmp_path / "w.pth")
    assert not (tmp_path / "payload-ran").exists()
