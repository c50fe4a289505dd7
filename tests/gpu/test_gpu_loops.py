"""On a GPU too the direct loop gives what Lightning's own gives, bit for bit."""

import pytest
from card import ON
from restarts import result, same

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("options", [(), ("--trainer.gradient_clip_val=0.1",)], ids=["", "clipped"])
def test_both_loops_train_the_same_model(fit, precision, options):
    fused = "--model.fused=false" if options and precision == "16-mixed" else "--model.fused=true"
    given = (ON, f"--trainer.precision={precision}", "--trainer.deterministic=true", fused)
    direct, lightnings = (
        result(fit(*given, *options, f"--fast_loop={loop}")) for loop in ("true", "false")
    )
    assert same(direct, lightnings)
