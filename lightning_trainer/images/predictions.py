"""draw_predictions: images with their predicted and true classes."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

_CHANNELS = (1, 3, 4)  # grey, RGB, RGB with transparency
_COLUMNS, _FEWEST_COLUMNS = 8, 3  # a title is about as wide as three
_LONGEST_NAME = 20  # characters: names mostly differ at their ends
_BELOW: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": 7, "color": "#555555"}


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
) -> Figure:
    """Draws images with the predicted class and its probability, and the true one if it differs.

    The figure is for `self.tensorboard.add_figure` or `savefig`.

    Args:
        images: (B, C, H, W), grey or RGB; uint8, or floats, drawn from the lowest to the highest.
        labels: Integers (B,).
        output: Logits, float (B, K).
        classes: Names of the K classes; by default their numbers.
        n_images: Only the first so many are drawn.
        sample_names: Of the B images, drawn below the classes.

    Raises:
        ValueError: If images, labels or output are something else.
    """
    check_classified("draw_predictions", images, labels, output)
    images, labels, output = (t[:n_images].detach().cpu() for t in (images, labels, output))
    probabilities, predicted = output.float().softmax(1).max(1)
    names = classes or [str(k) for k in range(output.shape[1])]
    n_columns = min(max(len(images), _FEWEST_COLUMNS), _COLUMNS)
    n_rows = max(math.ceil(len(images) / n_columns), 1)
    height = 2.1 if sample_names else 1.9
    figure = Figure(figsize=(1.5 * n_columns, height * n_rows), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    values = (t.tolist() for t in (labels, predicted, probabilities))
    rows = zip(_scaled(images), *values, strict=True)
    for axes, (image, *of_image) in zip(grid.flat, rows, strict=False):
        axes.imshow(image.permute(1, 2, 0).squeeze(2).numpy(), cmap="gray")
        _set_title(axes, names, *of_image)
    for axes, name in zip(grid.flat, [*sample_names, *[""] * grid.size], strict=False):
        axes.set_axis_off()
        axes.text(0.5, -0.04, name[-_LONGEST_NAME:], transform=axes.transAxes, **_BELOW)
    return figure


def _scaled(images: Tensor) -> Tensor:
    """Floats from 0, the lowest of all, to 1, the highest; other images as they are."""
    if not (images.is_floating_point() and len(images)):
        return images
    low, high = images.float().aminmax()
    return (images.float() - low) / (high - low).clamp(min=1e-12)


def _set_title(
    axes: Axes, names: Sequence[str], label: int, found: int, probability: float
) -> None:
    true = names[label] if 0 <= label < len(names) else label  # e.g. an ignored one
    title = f"{names[found]} {probability:.2f}" + ("" if found == label else f"\ntrue: {true}")
    axes.set_title(title, fontsize=9, color="black" if found == label else "#D55E00")
