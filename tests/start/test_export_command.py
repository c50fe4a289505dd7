"""`export` writes weights alone, and where ONNX is installed the model."""

import pytest
import torch
from conftest import TinyModule
from safetensors.torch import load_file

from lightning_trainer.start import export_command


class Stateful(TinyModule):
    def forward_model(self, batch):
        return self.model(batch["x"]) + torch.rand(1)


class Listed(TinyModule):
    def forward_model(self, batch):
        return self.model(batch["x"]) + batch["x"].new_tensor(batch["i"].tolist())[:, None]


def test_the_weights_are_those_of_the_best_checkpoint_by_the_models_own_names(run, half, tmp_path):
    code, out, err = run("export", half)
    assert code == 0, err
    assert out.startswith(f"Weights saved to: {half}/model.safetensors (91 numbers in 9 tensors")
    saved = torch.load(half / "checkpoints/best.ckpt")["state_dict"]
    module = TinyModule()
    module.create_model()
    module.model.load_state_dict(load_file(half / "model.safetensors"))
    assert all(saved[f"model.{n}"].equal(t) for n, t in module.model.state_dict().items())
    size = (half / "model.safetensors").stat().st_size
    assert size < (half / "checkpoints/best.ckpt").stat().st_size / 2
    assert run("export", half / "checkpoints/last.ckpt", "--output", tmp_path / "a/b")[0] == 0
    assert (tmp_path / "a/b/model.safetensors").exists()


def test_the_exported_weights_begin_a_new_session(run, half, config):
    assert run("export", half)[0] == 0
    weights = ("--init_from", half / "model.safetensors", "--trainer.max_steps=1")
    code, out, err = run("fit", "--config", config, *weights)
    assert code == 0, err
    assert "model.safetensors" in out


def test_what_is_missing_is_one_message(run, half, monkeypatch):
    code, _, err = run("export", "nowhere")
    assert code == 2
    assert err.startswith("error: the session is 'nowhere': there is no such session folder")
    code, _, err = run("export", half, "--output", "/dev/fd")  # where no file can be made
    assert code == 2
    assert err.startswith("error: /dev/fd/model.safetensors can't be written (")
    monkeypatch.setattr(export_command, "_missing", lambda: "onnxscript")
    code, _, err = run("export", half, "--onnx")
    assert code == 2
    assert 'error: `--onnx` needs onnxscript: `pip install -e ".[onnx]"`' in err


@pytest.mark.slow
def test_the_onnx_model_gives_what_the_model_gives(run, half):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    before = {path: path.read_bytes() for path in half.rglob("*") if path.is_file()}
    code, out, err = run("export", half, "--onnx")
    assert code == 0, err
    assert "(inputs: x (4,); run on validation data it differs by " in out
    model = runtime.InferenceSession(str(half / "model.onnx"))
    assert [each.name for each in model.get_inputs()] == ["x"]
    assert model.run(None, {"x": torch.ones(7, 4).numpy()})[0].shape == (7, 2)
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [("Stateful", "error: the ONNX model differs by"), ("Listed", "can't be exported to ONNX")],
)
def test_a_model_that_onnx_does_not_hold_is_told_and_not_kept(
    run, half, name, message, monkeypatch
):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(TinyModule, "forward_model", globals()[name].forward_model)
    code, _, err = run("export", half, "--onnx")
    assert (code, message in err) == (1, True)
    assert not (half / "model.onnx").exists() and not (half / "model.tmp").exists()
