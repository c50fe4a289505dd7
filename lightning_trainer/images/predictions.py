"""draw_predictions: images with their predicted and true classes."""

import math
from collections.abc import Sequence
from typing import Any, cast

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

_CHANNELS = (1, 3, 4)  # grey, RGB, RGB with transparency
_COLUMNS, _FEWEST_COLUMNS = 8, 3  # a title is about as wide as three
_LONGEST_NAME = 20  # characters: names mostly differ at their ends
_BELOW: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 7, "color": "#555555"}
_WIDTH, _HEIGHT, _TITLE, _GAP = 1.5, 1.9, 0.42, 0.06  # inches of a part of the figure
_NAME = 0.16  # of a sample's name


_REMEDY = "draw other things by a figure of your own"


def check_classified(
    reader: str, images: Any, labels: Any, output: Any, remedy: str = _REMEDY
) -> None:
    """Refuses all but images, labels and logits of as many, in the name of their `reader`.

    Raises:
        ValueError: Says what it got, and the remedy.
    """
    given = (images, labels, output)
    if all(isinstance(x, Tensor) for x in given) and [x.ndim for x in given] == [4, 1, 2]:
        as_many = len(images) == len(labels) == len(output)
        if as_many and images.shape[1] in _CHANNELS and not labels.is_floating_point():
            return
    found = [
        f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
        if isinstance(x, Tensor)
        else f"a {type(x).__name__}"
        for x in given
    ]
    raise ValueError(
        f"`{reader}` is for classes of images: it needs images (B, C, H, W) of 1, 3 or 4 channels, "
        f"labels, integers (B,), and logits (B, K), but got {', '.join(found)}: {remedy}"
    )


def draw_predictions(
    images: Tensor,
    labels: Tensor,
    output: Tensor,
    classes: Sequence[str] | None = None,
    n_images: int = 16,
    sample_names: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Draws images with the predicted class and its probability, and the true one if it differs.

    Args:
        images: (B, C, H, W), grey or RGB; uint8, or floats, drawn from the lowest to the highest.
        labels: Integers (B,).
        output: Logits, float (B, K).
        classes: Names of the K classes; by default their numbers.
        n_images: Only the first so many are drawn.
        sample_names: Of the B images, drawn below them.
        title: Above all images.

    Raises:
        ValueError: If images, labels or output are something else.
    """
    check_classified("draw_predictions", images, labels, output)
    images, labels, output = (t[:n_images].detach().cpu() for t in (images, labels, output))
    probabilities, predicted = output.float().softmax(1).max(1)
    names = classes or [str(k) for k in range(output.shape[1])]
    axes, n_columns, height = _begin(len(images), bool(sample_names), title)
    values = (t.tolist() for t in (labels, predicted, probabilities))
    for n, (image, *of_image) in enumerate(zip(_scaled(images), *values, strict=True)):
        row, column = divmod(n, n_columns)
        left, top = _WIDTH * column, height * row + _TITLE
        _draw_image(axes, image.permute(1, 2, 0).squeeze(2).numpy(), left, top)
        _draw_title(axes, names, left + _WIDTH / 2, top, *of_image)
    _draw_names(axes, sample_names[:n_images], n_columns, height)
    return cast(Figure, axes.figure)


def _begin(n_images: int, has_names: bool, title: str) -> tuple[Axes, int, float]:
    """One diagram in inches, the number of columns, and the height of a row.

    A diagram for each image takes six times as long.
    """
    n_columns = min(max(n_images, _FEWEST_COLUMNS), _COLUMNS)
    n_rows = max(math.ceil(n_images / n_columns), 1)
    height = _HEIGHT + (_NAME if has_names else 0)
    above = 2 * _NAME if title else 0.0
    size = _WIDTH * n_columns, height * n_rows + above
    figure = Figure(figsize=size)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, size[0]), ylim=(size[1] - above, -above))
    axes.set_axis_off()
    if title:
        axes.text(size[0] / 2, -above / 2, title, ha="center", va="center", fontsize=11)
    return axes, n_columns, height


def _draw_names(axes: Axes, names: Sequence[str], n_columns: int, height: float) -> None:
    for n, name in enumerate(names):
        row, column = divmod(n, n_columns)
        x, y = _WIDTH * (column + 0.5), height * (row + 1) - _GAP
        axes.text(x, y, name[-_LONGEST_NAME:], **_BELOW)


def _scaled(images: Tensor) -> Tensor:
    """Floats from 0, the lowest of all, to 1, the highest; other images as they are."""
    if not (images.is_floating_point() and len(images)):
        return images
    low, high = images.float().aminmax()
    return (images.float() - low) / (high - low).clamp(min=1e-12)


def _draw_image(axes: Axes, pixels: Any, left: float, top: float) -> None:
    """Draws it as large as fits below its title, with its own ratio of sides."""
    H, W = pixels.shape[:2]
    width, height = _WIDTH - _GAP, _HEIGHT - _TITLE - _GAP / 2
    scale = min(width / W, height / H)
    x, y = left + (_WIDTH - scale * W) / 2, top + (height - scale * H) / 2
    extent = (x, x + scale * W, y + scale * H, y)
    # The axis of y goes down, so that the first row of pixels is on top.
    axes.imshow(pixels, cmap="gray", extent=extent, aspect="auto")


def _draw_title(
    axes: Axes, names: Sequence[str], x: float, y: float, label: int, found: int, probability: float
) -> None:
    true = names[label] if 0 <= label < len(names) else label  # e.g. an ignored one
    title = f"{names[found]} {probability:.2f}" + ("" if found == label else f"\ntrue: {true}")
    colour = "black" if found == label else "#D55E00"
    axes.text(x, y - _GAP / 2, title, fontsize=9, color=colour, ha="center", va="bottom")
