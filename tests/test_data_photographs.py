"""What is cut from photographs, and how it is decoded."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcl_jax.data import jpeg
from tcl_jax.data.augment import Rectangle, central_square, draw_resized_crops


@given(height=st.integers(1, 3000), width=st.integers(1, 3000), seed=st.integers(0, 99))
def test_random_rectangles_lie_within_the_photograph(height: int, width: int, seed: int) -> None:
    crops = draw_resized_crops(np.random.default_rng(seed), 4)
    for row in range(4):
        cut = crops.rectangle(row, height, width)
        assert 0 <= cut.top < cut.top + cut.height <= height
        assert 0 <= cut.left < cut.left + cut.width <= width
        again = crops[row : row + 1].rectangle(0, height, width)
        assert again == cut


def test_random_rectangles_keep_to_their_areas_and_ratios() -> None:
    crops = draw_resized_crops(np.random.default_rng(0), 2000)
    cuts = np.array([crops.rectangle(row, 400, 500) for row in range(2000)])
    areas, ratios = cuts[:, 2] * cuts[:, 3] / (400 * 500), cuts[:, 3] / cuts[:, 2]
    assert 0.079 < areas.min() < 0.09 and 0.95 < areas.max() <= 1
    assert 0.74 < ratios.min() < 0.78 and 1.3 < ratios.max() < 1.35
    # Every place has the same chance: a quarter of what is left lies in a quarter of the room.
    down = cuts[:, 0] / np.maximum(1, 400 - cuts[:, 2])
    assert np.abs(np.histogram(down, 4, (0, 1))[0] / 2000 - 0.25).max() < 0.05
    assert 0.47 < crops.mirrored.mean() < 0.53


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10)])
def test_of_a_very_long_photograph_the_most_is_taken(height: int, width: int) -> None:
    crops = draw_resized_crops(np.random.default_rng(0), 200)
    found = {crops.rectangle(row, height, width)[2:] for row in range(200)}
    assert (10, 13) in found or (13, 10) in found


@given(old=st.tuples(st.integers(1, 500), st.integers(1, 500)), by=st.sampled_from([1, 2, 4, 8]))
def test_a_scaled_rectangle_covers_the_same(old: tuple[int, int], by: int) -> None:
    new = (-(-old[0] // by), -(-old[1] // by))
    cut = central_square(*old)
    assert cut.scaled(old, old) == cut
    top, left, height, width = cut.scaled(old, new)
    for start, size, first, count, of, to in (
        (cut.top, cut.height, top, height, old[0], new[0]),
        (cut.left, cut.width, left, width, old[1], new[1]),
    ):
        assert first >= 0 and first + count <= to
        assert first <= start * to / of < first + 1
        assert first + count - 1 < (start + size) * to / of <= first + count


@pytest.mark.parametrize("shape", [(40, 40), (40, 60), (60, 40), (10, 200), (1, 50)])
def test_the_square_of_evaluation_is_central(shape: tuple[int, int]) -> None:
    cut = central_square(*shape)
    assert cut.height == cut.width == max(1, round(min(shape) * 7 / 8))
    assert abs(2 * cut.top + cut.height - shape[0]) <= 1
    assert abs(2 * cut.left + cut.width - shape[1]) <= 1


def _ramp(height: int, width: int) -> np.ndarray:
    """Red grows down and green to the right, so that a part shows where it was cut."""
    image = np.zeros((height, width, 3))
    image[:, :, 0] = np.linspace(0, 255, height)[:, None]
    image[:, :, 1] = np.linspace(0, 255, width)
    return image.round().astype(np.uint8)


def _encoded(image: np.ndarray, ending: str = ".jpg") -> bytes:
    best = (cv2.IMWRITE_JPEG_QUALITY, 100) if ending == ".jpg" else ()
    return cv2.imencode(ending, image[:, :, ::-1], best)[1].tobytes()


@pytest.mark.parametrize("ending", [".jpg", ".png"])
@pytest.mark.parametrize(
    "cut", [Rectangle(0, 0, 601, 903), Rectangle(100, 301, 300, 250), Rectangle(600, 902, 1, 1)]
)
@pytest.mark.parametrize("size", [20, 40, 70, 300])
def test_a_part_is_the_same_at_whatever_scale_it_is_decoded(
    cut: Rectangle, size: int, ending: str
) -> None:
    ramp = _ramp(601, 903)
    part = jpeg.decode_part(_encoded(ramp, ending), lambda height, width: cut, size)
    assert part is not None and part.shape == (size, size, 3)
    # Pixel centres of the square, in the photograph's pixels.
    down = cut.top + (np.arange(size) + 0.5) * cut.height / size - 0.5
    right = cut.left + (np.arange(size) + 0.5) * cut.width / size - 0.5
    expected = np.zeros((size, size, 3))
    expected[:, :, 0] = (down.clip(0, 600) * 255 / 600)[:, None]
    expected[:, :, 1] = right.clip(0, 902) * 255 / 902
    # A pixel that becomes one of eight moves the edge by up to half of that, 8 * 255 / 600 / 2.
    assert np.abs(part - expected).max() <= 4


def test_large_photographs_are_decoded_at_a_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    resize = jpeg.resize
    monkeypatch.setattr(jpeg, "resize", lambda i, s: shapes.append(i.shape[:2]) or resize(i, s))
    encoded = _encoded(_ramp(800, 1200))
    for size in (1000, 401, 400, 300, 200, 100, 50):
        jpeg.decode_part(encoded, lambda height, width: Rectangle(0, 0, 800, 800), size)
    sides = [800, 800, 400, 300, 200, 100, 100]
    assert shapes == [(side, side) for side in sides]
