"""What is said at the end of a prediction: the photos that could not be read, were refused, or were in training."""

from __future__ import annotations

from photo_classifier.prediction.results import Counts, Totals, share_text
from photo_classifier.runtime.text import escape_surrogates, percent, pluralize

MANY = 2  # times as many photos are refused as are by mistake
BIASED = "the accuracy on them looks better than it is"
INDENT = " " * 8


def unreadable_lines(totals: Totals, where: str) -> list[str]:
    """Returns the first photos that could not be read, each with its reason, and `where` the others are."""
    lines = [escape_surrogates(f"unread  {path}: {reason}") for path, reason in totals.unreadable]
    if n_more := totals.counts.n_errors - len(lines):
        lines.append(f"{INDENT}and {n_more:,} more: the rows with status `error` {where}, each with its reason")
    return lines


def answered_lines(counts: Counts, min_probability: float, false_alarm: float | None) -> list[str]:
    """Returns how many photos were answered and refused, what a refusal means, and what to do.

    Args:
        min_probability: the least of an answer, or 0.
        false_alarm: the share of photos like the training photos that may be refused; None if distance is no reason.
    """
    known = f"; accuracy of those {share_text(counts.n_known_correct, counts.n_known)}" if counts.n_known else ""
    n_answered = counts.n_ok - counts.n_unknown
    lines = [f"answered {share_text(n_answered, counts.n_ok) if counts.n_ok else 'none'}{known}"]
    if false_alarm is not None and counts.n_unlike:
        text = f"refused {pluralize(counts.n_unlike, 'photo')} as unlike the training photos (answer `unknown`)"
        if counts.n_unlike <= MANY * false_alarm * counts.n_ok + MANY:
            lines.append(f"{text}, as happens to about {percent(false_alarm)} of suitable photos")
        else:
            text += f", far more than the {percent(false_alarm)} that is usual for suitable photos"
            lines.append(f"{text}; look at some, and if they show your classes, label them and train with them too")
    if n_unsure := counts.n_unknown - counts.n_unlike:
        lines.append(
            f"refused {pluralize(n_unsure, 'photo')} with a probability below {min_probability:g} (answer `unknown`): "
            "the model is not sure; column `best_guess` has its most probable class"
        )
    return lines


def seen_text(counts: Counts) -> str:
    """Returns what it means that photos were in training; empty if none was."""
    n, n_others = counts.n_seen, counts.n_labelled - counts.n_seen_labelled
    if not n:
        return ""
    which = (
        f"all {n:,} photos were"
        if n == counts.n_ok > 1
        else f"{n:,} of {pluralize(counts.n_ok, 'photo')} {'was' if n == 1 else 'were'}"
    )
    text = f"{which} in training: "
    if not counts.n_seen_labelled:
        return f"{text}the model has learned their answers, so it will do worse on new photos"
    if not n_others:
        return f"{text}{BIASED}; predict photos that the model has not seen to know how good it is"
    others = share_text(counts.n_correct - counts.n_seen_correct, n_others)
    return f"{text}{BIASED}; on the other photos it is {others}"
