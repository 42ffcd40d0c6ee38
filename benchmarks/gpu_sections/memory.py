"""What the commands say when memory runs out."""

from __future__ import annotations

from gpu_sections import Bench

LITTLE_OF_GPU = "torch.cuda.set_per_process_memory_fraction(3e9 / torch.cuda.mem_get_info()[1])"
LITTLE_OF_CPU = """
import resource, torchvision
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2_000_000_000,) * 2)
"""


def memory(bench: Bench) -> None:
    """One line on stderr and status 2, when a step needs more than there is."""
    flags = ("--data_dir", bench.photos, "--model_name", bench.network, "--n_workers", 2, "--batch_size", 128)
    before = LITTLE_OF_GPU if bench.on_gpu else LITTLE_OF_CPU
    done = bench.train_wrapped(before, "pass", *flags, "--image_size", 448)
    lines = done.stderr.splitlines()
    is_so = done.returncode == 2 and len(lines) == 1 and "memory" in lines[0]
    told = f"{bench.expect(is_so)}status {done.returncode}, {len(lines)} line{'s' * (len(lines) != 1)}"
    bench.row("train.py out of memory", bench.dtype, "", told, f"`{lines[-1] if lines else ''}`")
