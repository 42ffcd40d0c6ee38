"""Shows what is known of the photos, and of what a model does not know, from stored features.

    python benchmarks/trust.py --data_dir photos [more]     each in class folders or with train/ and val/
    python benchmarks/trust.py --data_dir photos --only labels

The features are computed once, with EfficientNet-Lite0, and stored (--features). Each part is a file in sections/:

- labels      how many labels are found that were changed, beside cleanlab
- duplicates  how many copies are found among 2,000 photos, and in which time, beside the hashes of imagededup
- odd         how many photos are named, and whether planted ones are
- unknown     how well photos of none of the classes are refused, and how many others are
- promise     sets of classes beside MAPIE's, whether photos are like the old ones, and what more photos bring
- cost        seconds of all checks on top of a frozen run

Others are compared where they are installed: pip install cleanlab imagededup mapie opencv-python-headless. Ends with a
table of what was asked and reached, and with status 1 if anything was missed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common import described, prove
from sections import cost, duplicates, labels, odd, promise, unknown

PARTS = (labels, duplicates, odd, unknown, promise, cost)
WORK = {part.__name__.split(".")[1]: part.work for part in PARTS}


def main() -> int:
    """Parses and measures; the exit status."""
    parser = described(__doc__)
    parser.add_argument("--data_dir", type=lambda name: Path(name).resolve(), nargs="+", required=True)
    parser.add_argument(
        "--features",
        type=lambda name: Path(name).resolve(),
        default=Path(".cache/features").resolve(),
        metavar="DIR",
        help="where features are stored (default: .cache/features)",
    )
    return prove(parser, WORK)


if __name__ == "__main__":
    sys.exit(main())
