"""Tells by its name whether a file is an image, may hold a photo that is not read, or holds none."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Sequence

# Formats that Pillow knows but that are not read: they need a handler or another program (EPS runs Ghostscript), are
# videos, or hold a picture whose size their header does not tell, so that --max_pixels could not be kept.
OTHER_FORMATS = frozenset("BUFR GRIB HDF5 EPS WMF MPEG FLI IPTC ICNS BLP FTEX".split())

RAW = frozenset(
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .gpr .iiq .k25 .kdc .mef .mos .mrw .nef .nrw .orf .pef .ptx .r3d "
    ".raf .raw .rw2 .rwl .rwz .sr2 .srf .srw .x3f".split()
)

_SAVE = "save it as JPEG, PNG or TIFF"
_REASONS = {
    "is a camera raw file, of which only a preview could be read; export it as JPEG, PNG or TIFF": RAW,
    "is a HEIC photo, which needs pillow-heif; install it (pip install pillow-heif), or save it as JPEG": frozenset(
        ".heic .heics .heif .heifs .hif".split()
    ),
    "is a video; save the frames that you want as images": frozenset(
        ".3gp .avi .flc .fli .flv .insv .lrv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .webm .wmv".split()
    ),
    "is a document; save its pictures as JPEG, PNG or TIFF": frozenset(".ai .djvu .eps .pdf .ps".split()),
    "is a medical or microscope image; export it as PNG or TIFF": frozenset(
        ".czi .dcm .dicom .ima .lif .mha .mhd .mrxs .nd2 .ndpi .nii .nrrd .oib .oif .scn .svs .vsi".split()
    ),
    "holds arrays; save their pictures as PNG or TIFF": frozenset(
        ".h5 .hdf .hdf5 .lmdb .mat .mdb .npy .npz .tfrecord .zarr".split()
    ),
}

# Endings and names of files that belong to a data set but hold no photo.
NO_PHOTO = frozenset(
    ".7z .aac .aae .arrow .bak .bat .bib .bz2 .cfg .ckpt .conf .css .csv .cube .db .dbf .dll .doc .docx .exe .feather "
    ".ffs_db .flac .geojson .gpx .gz .htm .html .ini .ipynb .iso .jgw .js .json .jsonl .keep .keras .kml .list .lnk "
    ".lock .log .lst .m .m4a .manifest .md .md5 .mp3 .names .ndjson .odf .ods .odt .ogg .onnx .parquet .pgw .pickle "
    ".pkl .ppt .pptx .prj .pt .pth .py .r .rar .rst .rtf .safetensors .sav .sh .sha1 .sha256 .shp .shx .sql .sqlite "
    ".tab .tar .tex .tflite .tfw .tgz .thm .toml .tsv .txt .url .wav .webloc .xls .xlsm .xlsx .xml .xmp .xz .yaml "
    ".yml .zip".split()
)
NO_PHOTO_NAMES = frozenset(
    "authors changelog changes contributors copying dockerfile install licence license makefile notice readme todo "
    "version".split()
)


def ending_of(name: str) -> str:
    """Returns the ending of a file name or path in lower case, with its dot, or an empty string."""
    return os.path.splitext(name)[1].lower()


def is_image_name(name: str) -> bool:
    """Returns whether a file name has the ending of an image that is read."""
    return ending_of(name) in _image_endings()


def passed_over_reason(name: str) -> str:
    """Returns why a file that may hold a photo is not read; an empty string for images and for files without photos.

    Every ending counts that is not known to hold no photo: a photo that is lost without a word is worse than a
    line too many.
    """
    ending = ending_of(name)
    if ending in _image_endings() or ending in NO_PHOTO:
        return ""
    if len(ending) < 2:
        is_known = os.path.basename(name).casefold() in NO_PHOTO_NAMES
        return "" if is_known else "has no ending that tells its format; add .jpg, .png or what it is"
    unknown = f"has the ending {ending}, which is not read; {_SAVE}"
    return next((reason for reason, endings in _REASONS.items() if ending in endings), unknown)


def passed_over(names: Sequence[str]) -> dict[str, str]:
    """Returns name -> reason for the files of one folder that may hold a photo but are not read.

    Leaves out what accompanies an image of the same name: the raw file of a JPEG, the video of a live photo.
    """
    stems = {os.path.splitext(name)[0].casefold() for name in names if is_image_name(name)}
    alone = (name for name in names if os.path.splitext(name)[0].casefold() not in stems)
    return {name: reason for name in alone if (reason := passed_over_reason(name))}


@functools.cache
def image_formats() -> tuple[str, ...]:
    """Returns the names of the formats that are read, the most frequent ones first."""
    from PIL import Image

    Image.init()
    with contextlib.suppress(ImportError):  # not where an exported model runs without it
        from pillow_heif import register_heif_opener

        # An embedded thumbnail may show another picture; several workers decode at once, each in one thread.
        register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    first = tuple(name for name in ("JPEG", "PNG", "HEIF", "WEBP", "TIFF") if name in Image.ID)
    return first + tuple(name for name in Image.ID if name not in OTHER_FORMATS and name not in first)


@functools.cache
def _image_endings() -> frozenset[str]:
    from PIL import Image

    formats = {*image_formats(), "MPO"}  # which is read as JPEG
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats)
