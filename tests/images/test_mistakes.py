"""The pictures of what a classifier confuses."""

import numpy as np
import pytest
import torch
from conftest import TinyData, TinyModule, run_process
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.functional.classification import multiclass_confusion_matrix

from lightning_trainer import ShowMistakes
from lightning_trainer.images import mistakes
from lightning_trainer.images.predictions import draw_predictions

# Samples that are taken for the class after their own, and the logit of that.
WRONG = {4: 3.0, 9: 6.0, 10: 1.0, 26: 4.0}


class Pictures(torch.utils.data.Dataset):
    def __init__(self, n_samples: int) -> None:
        self.n_samples = n_samples

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, i: int) -> dict:
        return {"x": torch.ones(4), "image": torch.full((1, 2, 2), i / 27), "label": i % 3, "i": i}


class PictureData(TinyData):
    def create_data(self) -> None:
        self.train_dataset = Pictures(28)
        self.val_dataset = self.test_dataset = Pictures(self.n_samples)


class PictureModule(TinyModule):
    def __init__(self, broken: str = "", **kwargs) -> None:
        super().__init__(**kwargs)
        self.broken = broken

    def create_metrics(self) -> None:
        accuracy = MulticlassAccuracy(3, average="micro", validate_args=False)
        self.train_metrics, self.val_metrics = accuracy, accuracy.clone()

    def forward_model(self, batch):
        logits = 2.0 * torch.nn.functional.one_hot(batch["label"], 3)
        for n, i in enumerate(batch["i"].tolist()):
            if i in WRONG:
                logits[n] = torch.zeros(3)
                logits[n, (i + 1) % 3] = WRONG[i]
        logits = logits + 0 * self.model(batch["x"]).sum()
        return logits[:, :, None] if self.broken else logits

    def update_metrics(self, metrics, batch, output):
        if not self.broken:
            super().update_metrics(metrics, batch, output)

    def forward_loss(self, batch, output):
        return output.mean()


@pytest.fixture
def arguments(config):
    return [
        *("fit", "--config", config, "--trainer.max_steps=4", "--trainer.val_check_interval=2"),
        *("--model=test_mistakes.PictureModule", "--data=test_mistakes.PictureData"),
        *("--data.n_samples=27", "--trainer.callbacks=lightning_trainer.ShowMistakes"),
    ]


def names(session):
    return sorted(path.name for path in session.glob("*.png*"))


@pytest.fixture
def drawn(monkeypatch):
    """The last arguments of what draws, by its name."""
    calls = {}

    def note(name):
        draw = getattr(mistakes, name)

        def draw_(*args, **kwargs):
            calls[name] = args
            return draw(*args, **kwargs)

        monkeypatch.setattr(mistakes, name, draw_)

    note("_draw_matrix")
    note("draw_predictions")
    return calls


def test_the_matrix_counts_each_sample_and_the_most_confident_mistakes_come_first(
    run, arguments, sessions, drawn
):
    code, _, err = run(*arguments)
    assert code == 0, err
    expected = torch.zeros(3, 3, dtype=torch.long)
    for i in range(27):
        expected[i % 3, (i + 1) % 3 if i in WRONG else i % 3] += 1
    assert torch.equal(drawn["_draw_matrix"][0], expected)
    images, labels, output, *_ = drawn["draw_predictions"]
    ordered = [9, 26, 4, 10]
    assert torch.equal(images[:, 0, 0, 0], torch.tensor([i / 27 for i in ordered]))
    assert labels.tolist() == [i % 3 for i in ordered]
    assert output.argmax(1).tolist() == [(i + 1) % 3 for i in ordered]
    assert drawn["draw_predictions"][5] == [f"no. {i}" for i in ordered]
    assert names(sessions()[0]) == ["confusion_matrix.png", "mistakes.png"]


def test_no_more_mistakes_are_kept_than_are_shown(run, arguments, drawn):
    flags = ["--trainer.callbacks.n_mistakes=2", "--trainer.callbacks.classes=[a, b, c]"]
    assert run(*arguments, *flags)[0] == 0
    assert drawn["draw_predictions"][1].tolist() == [9 % 3, 26 % 3]
    assert drawn["draw_predictions"][3] == ["a", "b", "c"]


def test_they_are_of_the_best_validation_and_of_a_test_in_files_of_its_own(
    run, arguments, sessions, drawn
):
    assert run(*arguments)[0] == 0
    [session] = sessions()
    before = (session / "mistakes.png").read_bytes()
    assert run("test", "--ckpt_path", session)[0] == 0
    pictures = ["confusion_matrix.png", "mistakes.png"]
    assert names(session) == sorted([*pictures, *(f"test_{name}" for name in pictures)])
    assert (session / "mistakes.png").read_bytes() == before
    events = EventAccumulator(str(session))
    events.Reload()
    for mode in ("val", "test"):  # the score of 4 is equal to that of 2, so not better
        for name in ("confusion_matrix", "mistakes"):
            [picture] = events.Images(f"{mode}/{name}")
            height, width, _ = imread(session / f"{'test_' * (mode == 'test')}{name}.png").shape
            assert (picture.step, picture.height, picture.width) == (2, height, width)


class Named(Pictures):
    def __getitem__(self, i: int) -> dict:
        return {**super().__getitem__(i), "path": f"images/{i}.png"}


class NamedData(PictureData):
    def create_data(self) -> None:
        super().create_data()
        self.val_dataset = self.test_dataset = Named(self.n_samples)


def test_a_mistake_has_the_name_of_its_sample_where_there_is_one(run, arguments, drawn):
    code, _, err = run(*arguments, "--data=test_mistakes.NamedData", "--data.n_samples=27")
    assert code == 0, err
    assert drawn["draw_predictions"][5] == [f"images/{i}.png" for i in (9, 26, 4, 10)]


def test_the_matrix_is_coloured_by_row_with_each_recall():
    counts = torch.tensor([[8, 2, 0], [0, 1, 0], [0, 0, 0]])
    figure = mistakes._draw_matrix(counts, ["a", "b", "c"])
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a  80%", "b  100%", "c  0%"]
    shares = axes.get_images()[0].get_array()
    assert shares.tolist() == [[0.8, 0.2, 0], [0, 1, 0], [0, 0, 0]]
    assert sorted(text.get_text() for text in axes.texts) == ["1", "2", "8"]


def test_a_model_without_mistakes_has_an_empty_picture_of_them(run, arguments, sessions, drawn):
    code, _, err = run(*arguments, "--data.n_samples=4")
    assert code == 0, err
    assert drawn["draw_predictions"][0].shape == (0, 1, 2, 2)
    assert names(sessions()[0]) == ["confusion_matrix.png", "mistakes.png"]


@pytest.mark.long
@pytest.mark.parametrize("n_samples", [5])  # the second process has one batch less
def test_two_processes_draw_what_one_does(run, arguments, sessions, monkeypatch, n_samples):
    arguments += [f"--data.n_samples={n_samples}"]
    assert run(*arguments)[0] == 0
    process = run_process(*arguments, "--trainer.devices=2")
    assert process.returncode == 0, process.stderr
    one, two = sessions()
    for name in names(one):
        assert (one / name).read_bytes() == (two / name).read_bytes()


class Operators(TorchDispatchMode):
    """Notes the names of all operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.add(operator.overloadpacket.__name__)
        if operator is torch.ops.aten.index.Tensor:
            assert all(index.dtype == torch.long for index in args[1])  # a mask would wait
        return operator(*args, **(kwargs or {}))


def batch_of(labels) -> tuple[dict, dict]:
    labels = torch.as_tensor(labels)
    images = torch.rand(len(labels), 1, 2, 2)
    return {"output": torch.randn(len(labels), 3)}, {"image": images, "label": labels}


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_counts_are_those_of_torchmetrics_without_a_wait_for_the_device(dtype):
    show, expected = ShowMistakes(n_mistakes=2), torch.zeros(3, 3, dtype=torch.long)
    for _ in range(3):
        outputs, batch = batch_of(torch.randint(3, (50,)).to(dtype))
        with Operators() as operators:
            show.on_validation_batch_end(None, None, outputs, batch)
        waits = {"_local_scalar_dense", "bincount", "nonzero", "masked_select"}
        assert not operators.names & waits
        expected += multiclass_confusion_matrix(outputs["output"], batch["label"].long(), 3)
    assert torch.equal(show._counts, expected)
    assert show._counts.dtype == torch.long


@pytest.mark.gpu
def test_counting_on_a_real_gpu_does_not_wait():
    show = ShowMistakes(n_mistakes=2)
    outputs, batch = batch_of(torch.randint(3, (50,)))
    outputs, batch = ({k: v.cuda() for k, v in values.items()} for values in (outputs, batch))
    show.on_validation_batch_end(None, None, outputs, batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        show.on_validation_batch_end(None, None, outputs, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert show._counts.sum() == 100


def test_a_label_of_no_class_is_neither_counted_nor_shown():
    show = ShowMistakes()
    outputs, batch = batch_of([0, -100, 2, 3])
    outputs["output"][:] = torch.tensor([1.0, 0.0, 0.0])
    show.on_validation_batch_end(None, None, outputs, batch)
    assert show._counts.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]
    confidences, _, labels, *_ = show._mistakes
    assert labels[confidences >= 0].tolist() == [2]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--trainer.callbacks.image_key=picture", "finds no 'picture' in a batch, which has ['i',"),
        (
            "--model.broken=yes",
            "but got float32 (4, 1, 2, 2), int64 (4,), float32 (4, 3, 1): remove it from `trai",
        ),
    ],
)
def test_what_it_can_not_show_is_one_message_before_training(
    run, arguments, sessions, flag, message
):
    code, _, err = run(*arguments, flag)
    assert code == 1
    assert err.startswith("error: `ShowMistakes` ")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (sessions()[0] / "checkpoints").exists()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_predictions_have_the_image_the_class_and_its_probability(channels, dtype):
    images = torch.arange(3 * channels * 16).reshape(3, channels, 4, 4).to(dtype)
    output = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 9.0]])
    figure = draw_predictions(images, torch.tensor([0, 1, 1]), output, ["cat", "dog"], n_images=2)
    assert [text.get_text() for text in figure.axes[0].texts] == ["cat 0.50", "cat 0.99\ntrue: dog"]
    shown = figure.axes[0].get_images()[0].get_array()
    assert shown.shape == ((4, 4) if channels == 1 else (4, 4, 3))


IMAGES, LABELS, LOGITS = torch.rand(4, 3, 2, 2), torch.arange(4), torch.rand(4, 5)


def test_an_image_is_drawn_below_its_title_with_its_own_sides_and_its_first_row_on_top():
    image = torch.tensor([[[[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]]])  # black above white
    figure = draw_predictions(image, torch.tensor([0]), torch.tensor([[1.0, 0.0]]))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    height, width = [n / figure.dpi for n in np.asarray(canvas.buffer_rgba()).shape[:2]]
    box = figure.axes[0].get_images()[0].get_window_extent()
    title = figure.axes[0].texts[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= 1.5 * figure.dpi and box.y1 <= title.y0
    assert box.width / box.height == pytest.approx(2)
    pixels = np.asarray(canvas.buffer_rgba())[::-1]  # from the bottom
    x = int((box.x0 + box.x1) / 2)
    assert pixels[int(box.y1) - 3, x, 0] == 0 and pixels[int(box.y0) + 3, x, 0] == 255
    assert (width, height) == (4.5, 1.9)


OTHERS = [
    (torch.rand(4, 7), LABELS, LOGITS, "float32 (4, 7), int64 (4,), float32 (4, 5)"),
    (torch.rand(4, 2, 8, 8), LABELS, LOGITS, "float32 (4, 2, 8, 8), int64 (4,), float32 (4, 5)"),
    (IMAGES, torch.rand(4), LOGITS, "float32 (4, 3, 2, 2), float32 (4,), float32 (4, 5)"),
    (IMAGES, torch.rand(4, 5) > 0.5, LOGITS, "float32 (4, 3, 2, 2), bool (4, 5), float32 (4, 5)"),
    (IMAGES, LABELS, torch.rand(4), "float32 (4, 3, 2, 2), int64 (4,), float32 (4,)"),
    (IMAGES, LABELS, {"logits": LOGITS}, "float32 (4, 3, 2, 2), int64 (4,), a dict"),
    (IMAGES, LABELS[:3], LOGITS, "float32 (4, 3, 2, 2), int64 (3,), float32 (4, 5)"),
]


def test_a_label_of_no_class_is_drawn_as_its_number():
    figure = draw_predictions(IMAGES[:1], torch.tensor([-100]), LOGITS[:1], list("abcde"))
    assert figure.axes[0].texts[0].get_text().endswith("\ntrue: -100")


@pytest.mark.parametrize(("images", "labels", "output", "got"), OTHERS)
def test_what_is_no_classified_image_is_one_line(images, labels, output, got):
    with pytest.raises(ValueError, match="is for classes of images: ") as found:
        draw_predictions(images, labels, output)
    assert f", but got {got}: draw other things" in str(found.value)
    show, batch = ShowMistakes(), {"image": images, "label": labels}
    with pytest.raises(ValueError, match="is for classes of images: ") as found:
        show.on_validation_batch_end(None, None, {"output": output}, batch)
    assert f", but got {got}: remove it from `trainer.callbacks`" in str(found.value)


@pytest.mark.parametrize(
    ("outputs", "batch", "told"),
    [
        ({"output": LOGITS}, [IMAGES, LABELS], "in a batch, which is no dict"),
        ({"output": LOGITS}, IMAGES, "in a batch, which is no dict"),
        ({"loss": LABELS}, {"image": IMAGES, "label": LABELS}, "int64 (4,), a NoneType: remove"),
        (LABELS, {"image": IMAGES, "label": LABELS}, "int64 (4,), a NoneType: remove"),
        (None, {"image": IMAGES, "label": LABELS}, "int64 (4,), a NoneType: remove"),
    ],
)
def test_batches_and_steps_of_other_kinds_are_one_line(outputs, batch, told):
    with pytest.raises(ValueError, match="`ShowMistakes` ") as found:
        ShowMistakes().on_validation_batch_end(None, None, outputs, batch)
    assert told in str(found.value) and "\n" not in str(found.value)
