"""Limits of the system, each set for real around a command: mounts, ulimits, users, and calls that a shim refuses."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import command

# An unprivileged user without a name or a home; it may read all files, as those of Python may be the administrator's.
USER = (
    "setpriv --reuid 12345 --regid 12345 --clear-groups --inh-caps +dac_read_search --ambient-caps +dac_read_search --"
)
SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#define REAL(name) ((__typeof__(name)*)dlsym(RTLD_NEXT, #name))
static int refuse(const char *name) {  /* REFUSE holds name=errno pairs, in blanks */
  const char *at = getenv("REFUSE") ? strstr(getenv("REFUSE"), name) : NULL;
  return at ? (errno = atoi(at + strlen(name) + 1)) : 0;
}
int link(const char *a, const char *b) { return refuse("link") ? -1 : REAL(link)(a, b); }
int linkat(int f, const char *a, int g, const char *b, int h) {
  return refuse("link") ? -1 : REAL(linkat)(f, a, g, b, h);
}
int rename(const char *a, const char *b) { return refuse("rename") ? -1 : REAL(rename)(a, b); }
int fsync(int f) { return refuse("fsync") ? -1 : REAL(fsync)(f); }
int chmod(const char *a, mode_t m) { return refuse("chmod") ? -1 : REAL(chmod)(a, m); }
int utimensat(int d, const char *a, const struct timespec *t, int f) {
  return refuse("utime") ? -1 : REAL(utimensat)(d, a, t, f);
}
ssize_t write(int f, const void *from, size_t n) {  /* a quota of 1 MB */
  static size_t written = 0;
  char link[64], path[512] = "";
  snprintf(link, sizeof link, "/proc/self/fd/%d", f);
  int is_kept = readlink(link, path, sizeof path - 1) > 0 && strstr(path, getenv("work")) == path;
  if (is_kept) written += n;
  return is_kept && written > 1000000 && refuse("write") ? -1 : REAL(write)(f, from, n);
}
int statvfs(const char *a, struct statvfs *s) {
  int done = REAL(statvfs)(a, s);
  if (refuse("statvfs")) s->f_blocks = s->f_bfree = s->f_bavail = 0;
  return done;
}
void *mmap(void *a, size_t n, int p, int how, int f, off_t o) {
  char link[64], path[512] = "";
  snprintf(link, sizeof link, "/proc/self/fd/%d", f);
  if (f >= 0 && readlink(link, path, sizeof path - 1) > 0 && (strstr(path, ".safetensor") || strstr(path, ".pth")))
    if (refuse("mmap")) return MAP_FAILED;
  return REAL(mmap)(a, n, p, how, f, o);
}
void *mmap64(void *a, size_t n, int p, int how, int f, off_t o) { return mmap(a, n, p, how, f, o); }
"""

SMALL = ("--data_dir", "photos", "--model_name", "shufflenet_v2_x0_5", "--image_size", 32, "--gpu_id", -1)
TRAIN = ("train", *SMALL, "--batch_size", 16, "--n_epochs", 1, "--run_dir", "run", "--model_fn", "m.pth")
PREDICT = ("predict", "--model_fn", "m.pth", "--input", "photos/val", "--gpu_id", -1)
COMMANDS = {
    "whole": (*TRAIN, "--n_workers", 2),
    "alone": (*TRAIN, "--n_workers", 0),
    "frozen": (*TRAIN, "--freeze", "--views", 1, "--n_workers", 2),
    "no cache": (*TRAIN, "--freeze", "--views", 1, "--n_workers", 0, "--feature_cache", "none"),
    "predict": (*PREDICT, "--n_workers", 2, "--report", "report", "--sheet", "sheet.png"),
    "predict alone": (*PREDICT, "--n_workers", 0),
}


# before the mounts and after them: one may hide the folder, another make it read-only
PREPARE = 'ln -sfn "$base/photos" "$work/photos"; cp "$base/m.pth" "$work/"; chmod 666 "$work/m.pth"'


@dataclass(frozen=True)
class Limit:
    """A limit of the system, and what is expected of the commands inside it.

    Args:
        inside: shell lines that the user of the command runs before it.
        mounts: shell lines that root runs in a mount namespace of its own; `$work` is the folder of the command.
        commands: names in `COMMANDS`.
        works: True or False where all of them must work, or none may; None where both are right.
        advice: what the error must name.
    """

    inside: str = ":"
    mounts: str = ":"
    commands: Sequence[str] = ("frozen", "predict")
    works: bool | None = True
    advice: str = ""


def tmpfs(folder: str, options: str) -> str:
    """Returns the line that mounts a file system in memory."""
    return f"mkdir -p {folder} && mount -t tmpfs -o {options} tmpfs {folder}"


def refusing(*calls: str, number: int) -> str:
    """Returns the line that makes those calls of the C library fail with that error."""
    pairs = " ".join(f"{call}={number}" for call in calls)
    return f'export LD_PRELOAD=$shim REFUSE="{pairs}"'


ONLY_WORK = 'mount --bind "$work" "$work" && mount -o remount,bind,ro /'
LONG = "d" * 120
NO_MOUNT = 99
TRAINED = ("whole", "frozen", "predict")
LIMITS = {
    "no process": Limit("ulimit -u 1", works=False, advice="ulimit -u"),
    **{f"{n} processes": Limit(f"ulimit -u {n}", ":", TRAINED, None, "ulimit -u") for n in (4, 8, 20)},
    "60 processes": Limit("ulimit -u 60"),
    **{f"{n} open files": Limit(f"ulimit -n {n}", ":", TRAINED, None, "ulimit -n") for n in (24, 60, 96)},
    **{f"{n} GB of addresses": Limit(f"ulimit -v {n}000000", ":", TRAINED, None, "ulimit -v") for n in (1, 4, 8)},
    **{f"files of {n} kB": Limit(f"ulimit -f {n}", ":", TRAINED, None, "ulimit -f") for n in (1, 100, 2000)},
    "a quota": Limit(refusing("write", number=errno.EDQUOT), ":", TRAINED, None, "larger quota"),
    "no home": Limit("unset HOME"),
    "a home that is missing": Limit("export HOME=/nowhere"),
    "a read-only home": Limit("export HOME=/proc"),
    "a user without a name or a home": Limit("unset HOME USER LOGNAME"),
    "a missing TMPDIR": Limit("export TMPDIR=/nowhere", commands=("whole", "no cache")),
    "a TMPDIR that is too long": Limit(f"mkdir -p {LONG}; export TMPDIR=$PWD/{LONG}"),
    "a full TMPDIR": Limit("export TMPDIR=$work/full", tmpfs('"$work/full"', "nr_inodes=1,mode=1777")),
    "a read-only TMPDIR": Limit("export TMPDIR=/proc", commands=("whole", "no cache")),
    "a system of which all but the working folder is read-only": Limit(mounts=ONLY_WORK),
    "a read-only working folder": Limit(
        mounts='mount --bind "$work" "$work" && mount -o remount,bind,ro "$work"', works=False, advice="folder"
    ),
    "a read-only feature cache": Limit(
        mounts='mkdir -p "$work/.cache"', commands=("frozen", "whole"), works=None, advice="--feature_cache"
    ),
    **{f"{n} of shared memory": Limit(mounts=tmpfs("/dev/shm", f"size={n},mode=1777")) for n in ("4k", "1m", "64m")},
    "read-only shared memory": Limit(mounts="mount -o remount,bind,ro /dev/shm"),
    "shared memory of others": Limit(mounts=tmpfs("/dev/shm", "size=64m,mode=755")),
    **{
        f"a file system where {call} gives {errno.errorcode[number]}": Limit(refusing(call, number=number))
        for call, number in (
            ("link", errno.EPERM),
            ("link", errno.ENOTSUP),
            ("fsync", errno.EINVAL),
            ("fsync", errno.ENOSYS),
            ("fsync", errno.ENOTSUP),
            ("chmod", errno.EPERM),
            ("utime", errno.EPERM),
            ("mmap", errno.ENODEV),
        )
    },
    "a file system that does not tell its free space": Limit(refusing("statvfs", number=1)),
    "a file system without any of these": Limit(
        refusing("link", "fsync", "chmod", "utime", "statvfs", "mmap", number=errno.ENOSYS)
    ),
    "names that cannot be replaced": Limit(refusing("rename", number=errno.EXDEV), works=False),
}


def build_shim(folder: Path) -> Path:
    """Compiles the library that refuses calls."""
    (folder / "shim.c").write_text(SHIM)
    library = folder / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, folder / "shim.c", "-ldl"], check=True)
    return library


def run_inside(
    limit: Limit, arguments: Sequence[object], folder: Path, shim: Path, timeout: float
) -> subprocess.CompletedProcess:
    """Runs a command inside a limit, in that folder; status 137 if it takes longer than `timeout` seconds.

    The status is `NO_MOUNT` if the system does not let the limit be set.
    """
    start = f'cd "$work" && exec timeout -s KILL {timeout} {USER} bash -c "$inside" bash "$@"'
    outside = "\n".join((PREPARE, f"{{ {limit.mounts}; }} || exit {NO_MOUNT}", PREPARE, start))
    script, *flags = arguments
    names = {"work": str(folder), "base": str(folder.parent), "shim": str(shim), "HOME": str(folder)}
    environment = {**os.environ, **names, "inside": f'{limit.inside}\nexec "$@"'}
    line = ["unshare", "-m", "bash", "-c", outside, "bash", *command(script, *flags)]
    return subprocess.run(line, env=environment, capture_output=True, text=True)
