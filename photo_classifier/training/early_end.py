"""What is said and kept when a run ends early."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping

from photo_classifier.models.inference import eval_batch_size
from photo_classifier.runtime import launcher, signals
from photo_classifier.runtime.errors import UserError, WriteError
from photo_classifier.runtime.limits import PassTooLarge, memory_that_ran_out, resource_hint
from photo_classifier.runtime.text import pluralize
from photo_classifier.training.results import Diverged, StepTooLarge
from photo_classifier.training.run import Run, SilentRun
from photo_classifier.training.run_folder import release_folder, resume_command


@contextlib.contextmanager
def explain_early_end(run: Run | SilentRun) -> Iterator[None]:
    """Makes errors inside the block say what was kept and how to continue; frees a folder that holds no save."""
    if isinstance(run, SilentRun):  # the main process speaks
        yield
        return
    try:
        yield
    except signals.Stopped as stopped:
        stopped.hint = _how_to_continue(run)
        if not run.is_saved:  # or the same command would find the folder in its way
            with contextlib.suppress(WriteError):
                run.close()
            shutil.rmtree(run.folder, ignore_errors=True)
        raise
    except (UserError, RuntimeError, MemoryError, OSError, ImportError) as error:
        if not (text := _text_of(error, run)):
            raise
        if not run.is_saved:
            release_folder(run.folder)
        raise UserError(text) from error


def _text_of(error: Exception, run: Run) -> str:
    """Returns what to say of an error, or an empty text for one of the tool itself."""
    if isinstance(error, Diverged):
        return f"{error}; {_what_is_kept(run)}; try a lower --lr in a new run"
    if isinstance(error, UserError) and not isinstance(error, WriteError):
        return str(error)
    if isinstance(error, StepTooLarge | PassTooLarge):
        return _text_of_memory(error, run)
    reason = str(error) if isinstance(error, WriteError) else resource_hint(error)
    return f"{reason}{_how_to_continue(run)}" if reason else ""


def _text_of_memory(error: StepTooLarge | PassTooLarge, run: Run) -> str:
    """Returns what helps where memory ran out in a step of training, or in a pass of evaluation."""
    whose = memory_that_ran_out(error)
    if isinstance(error, StepTooLarge):
        where = "a step of training"
        if n_passes := _more_passes(run.state.config):
            what = f"{whose} ran out in {where}; compute each step in {n_passes} smaller passes"
            if not run.is_saved:
                return f"{what}: add --accumulate {n_passes}"
            return what + _how_to_continue(run, "", "--accumulate", n_passes)
        smaller = ""
    else:
        where = f"a pass of {pluralize(error.n_images, 'image')} without gradients"
        half = eval_batch_size(error.n_images // 2)
        smaller = f"--batch_size {half}, " if half < error.n_images else ""  # a pass has 32 images at least
    what = f"{whose} ran out in {where}; give {smaller}a smaller --image_size or another --model_name, in a new run"
    freed = "if other programs took the memory, end them and "  # a resumed run needs as much as before
    return what + _how_to_continue(run, freed)


def _more_passes(config: Mapping[str, object]) -> int:
    """Returns twice the passes of a step, or fewer if those have one image each, or 0 if no more are possible."""
    share = -(-config["batch_size"] // launcher.world_size())
    return min(2 * config["accumulate"], share) if config["accumulate"] < share else 0


def _how_to_continue(run: Run, first: str = "", *flags: object) -> str:
    if not run.is_saved:
        return "; nothing was saved yet"
    return f"; {first}continue with: {resume_command(run.folder, *flags)}"


def _what_is_kept(run: Run) -> str:
    if run.best_epoch is None:
        return "no epoch was finished before, so there is no checkpoint"
    return f"{run.checkpoint.path} keeps the best weights so far, those of epoch {run.best_epoch}"
