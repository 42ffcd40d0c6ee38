import warnings

import numpy as np
import pytest
import torch
from helpers import make_class_folders, save_image
from PIL import Image

from data_loader import ImageDataset, Mixer, train_transform
from photo_classifier.data.batches import AddressedSampler, make_loader
from photo_classifier.data.decoding import BadImage, decode
from photo_classifier.data.discovery import load_splits
from photo_classifier.data.preprocess import Preprocess, eval_transform
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.seeding import seeded_rng

PREPROCESS = Preprocess(32, 36, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
RATIOS = {"train": 0.6, "valid": 0.2, "test": 0.2}


def make_dataset(root, augment="basic", seed=0):
    splits = load_splits(root, RATIOS, 0)
    return ImageDataset(splits.train, splits.class_names, PREPROCESS, train_transform(augment, PREPROCESS), seed)


def arrow() -> Image.Image:
    """Red above, blue below, green on the left: every orientation looks different."""
    pixels = np.zeros((30, 20, 3), np.uint8)
    pixels[:15, :, 0] = 255
    pixels[15:, :, 2] = 255
    pixels[:, :5] = (0, 255, 0)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_upright_whatever_its_exif_orientation(orientation, tmp_path):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that brings `arrow` to that orientation
    image = arrow() if orientation == 1 else arrow().transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(decode(tmp_path / "a.png").permute(1, 2, 0).numpy(), np.asarray(arrow()))


def test_every_mode_becomes_what_a_person_sees(tmp_path):
    def corner(image, name):
        image.save(tmp_path / name)
        pixels = decode(tmp_path / name)
        assert pixels.dtype == torch.uint8
        assert pixels.shape[0] == 3
        return pixels[:, 0, 0].tolist()

    assert corner(Image.new("L", (4, 4), 100), "grey.png") == [100] * 3
    assert corner(Image.new("1", (4, 4), 1), "bit.png") == [255] * 3
    half_clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    half_clear.paste((10, 20, 30, 255), (2, 0, 4, 4))
    assert corner(half_clear, "clear.png") == [255] * 3
    assert corner(Image.new("RGBA", (4, 4), (10, 20, 30, 255)), "opaque.png") == [10, 20, 30]
    assert corner(half_clear.convert("LA"), "la.png") == [255] * 3
    assert corner(Image.new("RGB", (4, 4), (255, 0, 0)).convert("P"), "palette.gif") == [255, 0, 0]
    assert corner(Image.fromarray(np.full((4, 4), 32896, np.uint16)), "16bit.png") == [128] * 3
    clear = Image.new("P", (4, 4), 0)
    clear.putpalette([255, 0, 0, 0, 0, 255])
    clear.paste(1, (2, 0, 4, 4))
    clear.save(tmp_path / "p.png", transparency=0)
    assert decode(tmp_path / "p.png")[:, 0, 0].tolist() == [255] * 3
    assert corner(clear, "q.png") == [255, 0, 0]
    assert corner(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "cmyk.tif") == [255, 0, 0]


@pytest.mark.parametrize("content", [b"", b"this is text", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0 half a photo"])
def test_what_is_no_image_is_refused_with_a_reason(content, tmp_path):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(BadImage, match=r"\w+"):
        decode(tmp_path / "x.jpg")


def test_half_a_photo_is_no_photo(tmp_path):
    path = save_image(tmp_path / "a.jpg", 0, 0, (300, 200))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadImage, match="is truncated"):
        decode(path)


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(BadImage, match="not a regular file"):
        decode(tmp_path)
    with pytest.raises(BadImage, match="No such file"):
        decode(tmp_path / "gone.jpg")


def test_a_large_jpeg_is_decoded_small_but_never_below_what_is_needed(tmp_path):
    save_image(tmp_path / "big.jpg", 0, 0, (1000, 800))
    assert decode(tmp_path / "big.jpg").shape == (3, 800, 1000)
    assert decode(tmp_path / "big.jpg", 90).shape == (3, 100, 125)
    assert decode(tmp_path / "big.jpg", 101).shape == (3, 200, 250)


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        sampler = AddressedSampler(10, 4, seed)
        sampler.epoch = epoch
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)
    assert sorted(index for batch in order(0, 1) for _, index in batch) == list(range(10))
    assert [len(batch) for batch in order(0, 1)] == [4, 4, 2]


def test_workers_change_no_pixel(image_folder):
    def epochs(n):
        loader = make_loader(make_dataset(image_folder), 4, n)
        images = []
        for epoch in range(2):
            loader.batch_sampler.epoch = epoch
            images += [batch.images for batch in loader]
        return images

    alone, together = epochs(0), epochs(2)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    n = len(alone) // 2
    assert not any(torch.equal(a, b) for a, b in zip(alone[:n], alone[n:], strict=True)), "each epoch has its own crops"


@pytest.mark.parametrize("augment", ["basic", "flips", "trivial", "rand"])
def test_the_view_of_a_sample_does_not_depend_on_its_batch(augment, image_folder):
    dataset = make_dataset(image_folder, augment)

    def view(batch_size, n_workers):
        loader = make_loader(dataset, batch_size, n_workers)
        loader.batch_sampler.epoch = 3
        for batch in loader:
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            if 7 in batch.indices:
                return batch.images[batch.indices.tolist().index(7)]
        return None

    alone = dataset[(3, 7)][2]
    assert torch.equal(view(2, 0), alone)
    assert torch.equal(view(5, 2), alone)
    assert not torch.equal(dataset[(4, 7)][2], alone)
    assert not torch.equal(make_dataset(image_folder, seed=1)[(3, 7)][2], alone)


def test_shifts_show_a_window_of_the_whole_image_mirrored_both_ways():
    rows, columns = torch.meshgrid(torch.arange(36), torch.arange(36), indexing="ij")
    image = torch.stack([rows, columns, rows]).to(torch.uint8)
    seen = set()
    for n in range(40):
        with seeded_rng(0, n):
            view = train_transform("shifts", PREPROCESS)(image)
        down, right = view[0, :, 0].int().diff(), view[1, 0].int().diff()
        assert abs(int(down[0])) == abs(int(right[0])) == 1, "pixels keep their size"
        assert (down == down[0]).all()
        assert (right == right[0]).all()
        seen.add((int(down[0]), int(right[0]), int(view[0].min()), int(view[1].min())))
    assert {place[:2] for place in seen} == {(1, 1), (1, -1), (-1, 1), (-1, -1)}
    assert {place[2] for place in seen} == {place[3] for place in seen} == {0, 1, 2, 3, 4}


def test_drawing_a_view_leaves_the_other_random_numbers_alone(image_folder):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    make_dataset(image_folder)[(0, 0)]
    assert torch.equal(torch.rand(3), expected)


def test_a_bad_image_is_left_out_of_its_batch_with_its_reason(image_folder):
    bad = image_folder / "cat" / "00.png"
    bad.write_bytes(b"nothing")
    for n_workers in (0, 2):
        batches = list(make_loader(make_dataset(image_folder, "none", None), 5, n_workers))
        found = [(index, reason) for batch in batches for index, reason in batch.bad]
        dataset = make_dataset(image_folder)
        names = [dataset.samples[index].path for index, _ in found]
        assert names == [str(bad)] * (str(bad) in [s.path for s in dataset.samples])
        assert sum(len(batch.labels) for batch in batches) == len(dataset) - len(found)


def test_a_batch_of_bad_images_alone_is_empty(tmp_path):
    make_class_folders(tmp_path / "d", 5)
    for path in (tmp_path / "d").rglob("*.png"):
        path.write_bytes(b"")
    for batch in make_loader(make_dataset(tmp_path / "d"), 4, 0):
        assert len(batch.labels) == len(batch.images) == 0
        assert batch.bad


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0), (0, 1.0), (0.2, 1.0)])
def test_mixing_is_drawn_from_its_address(mixup, cutmix):
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    labels, mixer = torch.tensor([0, 1, 2, 0]), Mixer(mixup, cutmix, 3)

    def mixed(step):
        with seeded_rng(0, "step", step):
            return mixer(images, labels)

    assert all(torch.equal(a, b) for a, b in zip(mixed(1), mixed(1), strict=True))
    assert not torch.equal(mixed(1)[1], mixed(2)[1])
    pictures, targets = mixed(1)
    assert pictures.shape == images.shape
    assert targets.sum(1).tolist() == pytest.approx([1] * 4)
    assert mixer.transforms[0](images.float(), labels)[1].shape == (4, 3)


def test_stored_features_are_mixed_as_vectors():
    features = torch.eye(4)
    mixed, targets = Mixer(1.0, 0, 4)(features, torch.arange(4))
    assert torch.allclose(mixed, targets), "both are mixed by the same share with the same neighbour"


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match=r"did you mean basic\?"):
        train_transform("basik", PREPROCESS)


def test_preparing_for_evaluation_gives_the_crop_in_8_bits(tmp_path):
    path = save_image(tmp_path / "a.png", 0, 0, (80, 60))
    image = eval_transform(PREPROCESS)(decode(path))
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.uint8


def test_sizes_keep_the_margin_of_the_weights():
    own = Preprocess(224, 256, "bilinear", (0, 0, 0), (1, 1, 1))
    assert own.at(None, None) == own
    assert own.at(112, None).resize == 128
    assert own.at(None, 300).resize == 300
    with pytest.raises(UserError, match="smaller than --image_size"):
        own.at(64, 52)


def test_no_image_warns(tmp_path):
    image = Image.new("P", (4, 4))
    image.save(tmp_path / "p.png", transparency=b"\x80\x80")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(tmp_path / "p.png")
