import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.optim import SGD, Adam, AdamW

from photo_classifier.runtime.uncompiled import uncompiled


@pytest.mark.parametrize("kind", [Adam, AdamW, SGD])
def test_an_optimizer_without_the_compiler_takes_the_same_steps(kind):
    found = []
    for make in (kind, uncompiled(kind)):
        weights = torch.arange(4.0).requires_grad_()
        optimizer = make([{"params": [weights], "lr": 0.1, "name": "head"}], fused=True)
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            weights.square().sum().backward()
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
        found.append((weights.detach(), optimizer.state_dict()["param_groups"]))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_the_compiler_still_compiles_afterwards():
    code = (
        "import sys, torch; from photo_classifier.runtime.uncompiled import import_timm, torchvision; import_timm()\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "from torchvision.ops.roi_align import is_compile_supported\n"
        "assert is_compile_supported('cpu') in (True, False) and 'torch._dynamo' in sys.modules\n"
        "assert sys.modules['torch._dynamo.utils'].counters is not None\n"
        "assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)) == 2"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
