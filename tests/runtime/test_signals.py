import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import is_alive, on_windows

import train
from photo_classifier.runtime import signals

ROOT = os.path.dirname(train.__file__)


def test_a_signal_stops_the_work_at_once_or_after_a_deferred_step():
    before = signal.getsignal(signal.SIGINT)  # what runs in the background ignores it
    with signals.handle_signals():
        with pytest.raises(signals.Stopped) as stopped:
            signal.raise_signal(signal.SIGTERM)
        assert stopped.value.status == 143
    steps = []

    def step():
        with signals.defer_signals():
            signal.raise_signal(signal.SIGINT)
            steps.append("finished")

    with signals.handle_signals():
        with pytest.raises(signals.Stopped) as stopped:
            step()
        assert stopped.value.status == 130
        assert steps
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.skipif(on_windows, reason="Windows has no such signals between processes")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_at_once(signum):
    code = "import signal\nfrom photo_classifier.runtime.signals import defer_signals, handle_signals\n"
    code += "with handle_signals(), defer_signals():\n"
    code += f"    signal.raise_signal({int(signum)}); signal.raise_signal({int(signum)}); print('on it goes')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (128 + signum, "")


WITH_WORKERS = """
import time, torch
from torch.utils.data import DataLoader, Dataset
from photo_classifier.data.workers import worker_options
class Slow(Dataset):
    def __len__(self): return 100
    def __getitem__(self, n):
        time.sleep(0.1)
        return torch.zeros(1)
if __name__ == "__main__":
    loader = iter(DataLoader(Slow(), batch_size=1, **worker_options(100, 2)))
    next(loader)
    print(*[worker.pid for worker in loader._workers], flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch's watchdog takes up to 5 s")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    (tmp_path / "slow.py").write_text(WITH_WORKERS)
    environment = {**os.environ, "PYTHONPATH": ROOT}
    parent = subprocess.Popen(
        [sys.executable, "slow.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    for pid in workers:
        os.kill(pid, signal.SIGTERM)  # as a cluster sends it to all of a job: they leave it to their parent
    assert all(is_alive(pid) for pid in workers)
    parent.kill()
    err = parent.communicate()[1]
    for _ in range(100):
        if not any(is_alive(pid) for pid in workers):
            break
        time.sleep(0.05)
    assert not [pid for pid in workers if is_alive(pid)]
    assert not err


HELD = """
from torch.utils.data import DataLoader
from photo_classifier.data.workers import worker_options

loader = DataLoader(range(8), persistent_workers=True, **worker_options(8, 2))
held = iter(loader)  # a name of the module lives longer than multiprocessing waits for its children
print(next(held).item())
"""


def test_a_process_and_its_workers_end_while_their_loader_is_still_referenced():
    environment = {**os.environ, "PYTHONPATH": ROOT}
    command = [sys.executable, "-c", HELD]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
