"""Peaks: each card by its own name, dense, and nothing for what is not known."""

import pytest

from lightning_trainer.report.peaks import peak_tflops


@pytest.mark.parametrize(
    ("name", "peaks"),
    [
        ("NVIDIA H100 80GB HBM3", (989.4, 494.7, 66.9)),
        ("NVIDIA H100 PCIe", (756.0, 378.0, 51.2)),
        ("NVIDIA H100 NVL", (835.5, 417.5, 60.0)),
        ("NVIDIA H200", (989.4, 494.7, 66.9)),
        ("NVIDIA H200 NVL", (835.5, 417.5, 60.0)),
        ("NVIDIA GH200 480GB", (989.4, 494.7, 66.9)),
        ("NVIDIA B200", (2250.0, 1125.0, 75.0)),
        ("NVIDIA GB200", (2500.0, 1250.0, 80.0)),
        ("A100-SXM4-40GB", (312.0, 156.0, 19.5)),
        ("NVIDIA A100 80GB PCIe", (312.0, 156.0, 19.5)),
        ("NVIDIA A10", (125.0, 62.5, 31.2)),
        ("NVIDIA L40S", (362.05, 183.0, 91.6)),
        ("NVIDIA L40", (181.05, 90.5, 90.5)),
        ("NVIDIA L4", (121.0, 60.0, 30.3)),
        ("NVIDIA RTX A6000", (154.8, 77.4, 38.7)),
        ("NVIDIA GeForce RTX 4090", (165.2, 82.6, 82.6)),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", (88.2, 44.1, 44.1)),
        ("NVIDIA GeForce RTX 5090", (209.6, 104.8, 104.8)),
        ("AMD Instinct MI300X", (1307.4, 653.7, 163.4)),
    ],
)
def test_a_card_has_the_dense_peak_of_its_precision(name, peaks):
    in_16_bits = {peak_tflops(name, f"{p}-mixed", tf32) for p in ("16", "bf16") for tf32 in (0, 1)}
    assert in_16_bits == {peak_tflops(name, "bf16-true", False)} == {peaks[0]}
    assert [peak_tflops(name, "32-true", tf32) for tf32 in (True, False)] == list(peaks[1:])


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA H100",  # of which form is not told
        "NVIDIA A10G",
        "NVIDIA A1000",
        "Tesla T4",
        "NVIDIA Graphics Device",
    ],
)
def test_a_card_of_another_name_has_no_peak(name):
    assert peak_tflops(name, "bf16-mixed", False) is None


@pytest.mark.parametrize("precision", ["64-true", "transformer-engine", "nf4", "None"])
def test_another_precision_has_no_peak(precision):
    assert peak_tflops("NVIDIA H200", precision, True) is None
