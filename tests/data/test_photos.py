"""Photos as people have them: what phones, cameras, scanners and drones write, and what a person sees in them."""

import io
import struct
import zlib

import numpy as np
import pytest
from helpers import TINY, assert_one_line_error, photos
from helpers.photos import ANY_VALUE, ORIENTATION_6, lying, raw_tiff, saved, tiff, with_chunk, with_exif
from PIL import Image, ImageCms

from photo_classifier.data.decoding import BadImage, check_header, decode
from photo_classifier.data.file_kinds import image_formats

image_formats()  # makes Pillow write HEIC too
GPS, EXIF = 0x8825, 0x8769


def decoded(tmp_path, content, name="photo", **options):
    (tmp_path / name).write_bytes(content)
    return decode(tmp_path / name, **options).permute(1, 2, 0).numpy().astype(int)


def is_upright(pixels):
    return pixels.shape == (40, 20, 3) and pixels[5, 10, 0] > 200 and pixels[35, 10, 2] > 200


def noise(size=(60, 80), seed=1):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3)).astype(np.uint8))


# --- orientation ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "HEIF", "TIFF"])
def test_no_other_tag_decides_whether_a_photo_is_upright(kind, tmp_path):
    plain = saved(lying(), kind, quality=95) if kind == "JPEG" else b""
    for folder in (GPS, EXIF):
        for tag in range(32):
            for type_, (count, value) in list(ANY_VALUE.items())[tag % 5 :: 5]:
                odd = ((tag, type_, count, value),)
                if kind == "TIFF":
                    orientation = {"more": (ORIENTATION_6,), "folder_tag": folder, "folder": odd}
                    content = raw_tiff(np.asarray(lying()), **orientation)
                else:
                    exif = tiff([ORIENTATION_6], folder, odd)
                    content = with_exif(plain, exif) if plain else saved(lying(), kind, quality=95, exif=exif)
                assert is_upright(decoded(tmp_path, content)), (folder, tag, type_)


def test_xmp_turns_a_photo_that_has_no_exif_orientation(tmp_path):
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert is_upright(decoded(tmp_path, saved(lying(), "JPEG", quality=95, xmp=xmp)))
    exif = tiff([(0x0112, 3, 1, struct.pack("<H", 1))])
    assert not is_upright(decoded(tmp_path, saved(lying(), "JPEG", quality=95, xmp=xmp, exif=b"Exif\0\0" + exif)))


# --- metadata and broken ends -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (b"iCCP", b"ICC\0\0" + zlib.compress(bytes(2_000_000))),
        (b"zTXt", b"prompt\0\0" + zlib.compress(b"x" * 2_000_000)),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"<x>" * 700_000)),
    ],
)
def test_long_metadata_refuse_no_png(kind, content, tmp_path):
    image = noise()
    pixels = decoded(tmp_path, with_chunk(saved(image, "PNG"), kind, content))
    assert np.array_equal(pixels, np.asarray(image))


JPEGS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "best": {"quality": 100, "subsampling": 0},
    "restarts": {"restart_marker_blocks": 3},
    "restart rows": {"restart_marker_rows": 1},
}


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
def test_a_jpeg_without_end_mark_is_read_if_every_row_is_there(options, tmp_path):
    whole = saved(noise(), "JPEG", **options)
    as_it_is = decoded(tmp_path, whole)
    for n_lost in (1, 2):
        assert np.array_equal(decoded(tmp_path, whole[:-n_lost]), as_it_is)
    starts = [n for n in range(len(whole) - 3) if whole[n] == 0xFF and whole[n + 1] in (*range(0xD0, 0xD8), 0xDA)]
    for end in {*range(len(whole) - 20, len(whole) - 2), *starts, *(start + 2 for start in starts)}:
        with pytest.raises(BadImage):
            decoded(tmp_path, whole[:end])


@pytest.mark.parametrize(("kind", "n_lost"), [("PNG", 12), ("GIF", 1)])
def test_the_end_of_other_files_may_lack_too(kind, n_lost, tmp_path):
    whole = saved(noise(), kind)
    assert np.array_equal(decoded(tmp_path, whole[:-n_lost]), decoded(tmp_path, whole))


# --- channels and bits ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("extra", [(), (0,), (2,)], ids=["undeclared", "unspecified", "declared as transparency"])
def test_near_infrared_is_no_transparency(extra, dtype, tmp_path):
    top = 255 if dtype == np.uint8 else 257 * 255
    picture = np.asarray(noise()).astype(dtype) * (top // 255)
    infrared = np.random.default_rng(3).integers(top // 8, top // 2, (60, 80, 1)).astype(dtype)
    pixels = decoded(tmp_path, raw_tiff(np.dstack([picture, infrared]), extra))
    assert np.array_equal(pixels, np.asarray(noise()))


def test_the_transparency_of_a_tiff_is_white(tmp_path):
    cut_out = noise().convert("RGBA")
    cut_out.paste((9, 9, 9, 0), (0, 0, 40, 60))
    pixels = decoded(tmp_path, saved(cut_out, "TIFF"))
    assert (pixels[:, :40] == 255).all()
    assert np.array_equal(pixels[:, 40:], np.asarray(noise())[:, 40:])


def test_five_channels_of_16_bits_are_refused_by_name(tmp_path):
    with pytest.raises(BadImage, match=r"TIFF of 5 channels of 16 bits.*save the three"):
        decoded(tmp_path, raw_tiff(np.zeros((4, 4, 5), np.uint16), (0, 0)))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_everywhere_is_refused_not_shown_white(mode, tmp_path):
    with pytest.raises(BadImage, match="transparent everywhere; save it without"):
        decoded(tmp_path, saved(Image.new(mode, (8, 8)), "PNG"))


@pytest.mark.parametrize("bit_depth", [8, 12, 16])
def test_colours_of_16_bits_are_scaled_by_their_bit_depth(bit_depth, tmp_path):
    most = 2**bit_depth - 1
    values = np.stack([np.full((4, 4), value, np.uint16) for value in (most, most // 2, 0)], -1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    png = b"\x89PNG\r\n\x1a\n" + photos.png_chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
    png += photos.png_chunk(b"IDAT", zlib.compress(rows)) + photos.png_chunk(b"IEND", b"")
    for content in (raw_tiff(values), raw_tiff(values, in_planes=True), png):
        assert decoded(tmp_path, content, bit_depth=bit_depth)[0, 0].tolist() == [255, 127, 0]
    if bit_depth == 12:
        with pytest.raises(BadImage, match="the value 4095, more than --bit_depth 8"):
            decoded(tmp_path, raw_tiff(values), bit_depth=8)


# --- colours ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "HEIF"])
def test_a_wide_gamut_is_converted_to_what_a_person_sees(kind, tmp_path):
    profile, colour = photos.display_p3(), (200, 90, 60)
    wide = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    image = Image.new("RGB", (32, 32), colour)
    image = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), wide, outputMode="RGB")
    assert max(abs(a - b) for a, b in zip(image.getpixel((9, 9)), colour, strict=True)) > 8
    pixels = decoded(tmp_path, saved(image, kind, icc_profile=profile))
    assert np.abs(pixels[16, 16] - colour).max() <= 4


def test_a_profile_of_srgb_or_of_another_kind_or_a_broken_one_changes_nothing(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    p3 = photos.display_p3()
    for image in (noise(), noise().convert("L")):
        for profile in (srgb, lab, p3[:200], b"nonsense", *([p3] if image.mode == "L" else [])):
            pixels = decoded(tmp_path, saved(image, "PNG", icc_profile=profile))
            assert np.array_equal(pixels, np.asarray(image.convert("RGB")))


def test_lab_pictures_are_read(tmp_path):
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(Image.new("RGB", (8, 8), (200, 90, 60)), to_lab)
    assert np.abs(decoded(tmp_path, saved(lab, "TIFF"))[4, 4] - (200, 90, 60)).max() <= 3


# --- raw files and HEIC -----------------------------------------------------------------------


def test_camera_raw_is_never_read_as_its_preview(tmp_path):
    preview = np.zeros((4, 4, 3), np.uint8)
    for name, more in {
        "a.dng": (),
        "renamed.tif": ((50706, 1, 4, b"\1\4\0\0"),),
        "smaller.tif": ((254, photos.LONG, 1, struct.pack("<I", 1)),),
    }.items():
        with pytest.raises(BadImage, match=r"raw file.*export it as JPEG"):
            decoded(tmp_path, raw_tiff(preview, more=more), name)


def test_the_limit_of_pixels_holds_for_heic_before_decoding(tmp_path):
    content = saved(Image.new("RGB", (64, 64)), "HEIF")
    (tmp_path / "a.heic").write_bytes(content)
    with pytest.raises(BadImage, match="has 64 x 64 pixels, more than --max_pixels 1000; raise it"):
        check_header(tmp_path / "a.heic", max_pixels=1000)


def test_iphone_photos_train_and_predict(cli, tmp_path):
    for n in range(12):
        path = tmp_path / "photos" / ("red", "blue")[n % 2] / f"IMG_{n}.HEIC"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(saved(noise((40, 40), n), "HEIF"))
    done = cli("train", "--data_dir", "photos", *TINY, "--n_epochs", 1, "--model_fn", "m.pth")
    assert done.status == 0, done.err
    assert cli("predict", "--model_fn", "m.pth", "--input", "photos", "--gpu_id", -1).status == 0
    assert len((tmp_path / "result.csv").read_text(encoding="utf-8-sig").splitlines()) == 13


# --- fit --------------------------------------------------------------------------------------


def make_wide(root, n=8, to_file=lambda pixels: Image.fromarray(pixels)):
    for colour in range(2):
        for n_photo in range(n):
            scene = np.random.default_rng(n_photo).integers(90, 160, (36, 64, 3)).astype(np.uint8)
            scene[:, :12] = (220, 20, 20) if colour else (20, 20, 220)
            path = root / ("blue", "red")[colour] / f"{n_photo}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            to_file(scene).save(path)
    return root


def test_the_fit_is_kept_in_the_checkpoint_and_tells_stored_features_apart(cli, tmp_path):
    make_wide(tmp_path / "wide")
    options = ("--data_dir", "wide", *TINY, "--freeze", "--n_epochs", 1)
    seen = {}
    for fit in ("crop", "squash", "pad"):
        done = cli("train", *options, "--fit", fit, "--model_fn", f"{fit}.pth", "--run_dir", fit)
        assert done.status == 0, done.err
        assert ("hides 44% of the longer side; --fit squash or --fit pad" in done.err) == (fit == "crop")
        assert cli("predict", "--model_fn", f"{fit}.pth", "--gpu_id", -1).out.splitlines()[-1] in done.out
        seen[fit] = (tmp_path / "result.csv").read_text(encoding="utf-8-sig")
    assert len(set(seen.values())) == 3
    refused = cli("train", "--resume", "pad", "--fit", "crop", "--n_epochs", 2)
    assert_one_line_error(refused, "--fit crop would change the result of the run, which has pad")


def test_an_unknown_fit_is_an_error_that_lists_the_three(cli, tmp_path):
    make_wide(tmp_path / "wide", 3)
    assert_one_line_error(cli("train", "--data_dir", "wide", *TINY, "--fit", "stretch"), "crop, squash, pad")


# --- what would train badly -------------------------------------------------------------------


def test_unused_bits_are_named_with_the_flag_that_helps(cli, tmp_path):
    root = make_wide(tmp_path / "dark", 6, lambda pixels: Image.fromarray(pixels[:, :36, 0].astype(np.uint16) * 16))
    done = cli("train", "--data_dir", root, *TINY, "--dry_run")
    assert "all values of the" in done.err
    assert "are below 4096" in done.err
    assert "--bit_depth 12" in done.err
    assert "are nearly one colour after decoding" in done.err
    done = cli("train", "--data_dir", root, *TINY, "--dry_run", "--bit_depth", 12)
    assert done.status == 0
    assert "warning" not in done.err


def test_further_bands_are_said_once(cli, tmp_path):
    for n in range(12):
        path = tmp_path / "drone" / ("red", "blue")[n % 2] / f"{n}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        bands = np.random.default_rng(n).integers(9_000, 40_000, (36, 36, 4)).astype(np.uint16)
        path.write_bytes(raw_tiff(bands, (2,)))
    done = cli("train", "--data_dir", "drone", *TINY, "--dry_run")
    assert done.err.count("more channels than red, green and blue") == 1
    assert "nearly one colour" not in done.err
