"""The peaks of known GPUs in TFLOP/s, for dense matrices (half of what is given with sparsity)."""

import re

# By the name in `torch.cuda.get_device_name`: with 16 bits, in TF32, in float32.
_PEAKS = {
    # NVIDIA, H100 architecture whitepaper (SXM: 1.83 GHz, 132 SMs); H100 and H200 datasheets: NVL
    # 1671 | 835 with sparsity, and the same chip in H200 SXM (1979 | 989) and GH200 (1979 | 989).
    r"H100( SXM5)? \d+GB HBM3": (989.4, 494.7, 66.9),
    r"H100 PCIe": (756.0, 378.0, 51.2),
    r"H[12]00 NVL": (835.5, 417.5, 60.0),
    r"H200": (989.4, 494.7, 66.9),
    r"GH200 \d+GB": (989.4, 494.7, 66.9),
    # NVIDIA, HGX B200 (8 GPUs: 36 | 18 PFLOP/s with sparsity); GB200 and GB300 NVL72 (5 | 2.5)
    r"B200": (2250.0, 1125.0, 75.0),
    r"GB[23]00": (2500.0, 1250.0, 80.0),
    # NVIDIA, datasheets of A100, A30, A40 and A10; GA102 whitepaper, appendix (RTX A6000)
    r"A100[- ].*": (312.0, 156.0, 19.5),
    r"A30": (165.0, 82.0, 10.3),
    r"A40": (149.7, 74.8, 37.4),
    r"A10": (125.0, 62.5, 31.2),
    r"RTX A6000": (154.8, 77.4, 38.7),
    # NVIDIA, datasheets of L40S, L40 and L4; Ada whitepaper, appendix (RTX 6000)
    r"L40S": (362.05, 183.0, 91.6),
    r"L40": (181.05, 90.5, 90.5),
    r"L4": (121.0, 60.0, 30.3),
    r"RTX 6000 Ada Generation": (364.2, 182.1, 91.1),
    # AMD, datasheets of Instinct MI300X, MI325X and MI300A
    r"AMD Instinct MI3(00|25)X.*": (1307.4, 653.7, 163.4),
    r"AMD Instinct MI300A.*": (980.6, 490.3, 122.6),
}

# GeForce RTX in float32: NVIDIA, appendices of the whitepapers on GA102, Ada and RTX Blackwell, or
# where they lack a card, cores x 2 x boost clock. By the same tables TF32 is as fast, and 16 bits
# with sums in float32 are twice as fast.
_GEFORCE = {
    "3070": 20.3,
    "3080": 29.8,
    "3080 Ti": 34.1,
    "3090": 35.6,
    "3090 Ti": 40.0,
    "4060": 15.1,
    "4060 Ti": 22.1,
    "4070": 29.1,
    "4070 SUPER": 35.5,
    "4070 Ti": 40.1,
    "4070 Ti SUPER": 44.1,
    "4080": 48.7,
    "4080 SUPER": 52.2,
    "4090": 82.6,
    "5060": 19.2,
    "5060 Ti": 23.7,
    "5070": 30.9,
    "5070 Ti": 43.9,
    "5080": 56.3,
    "5090": 104.8,
}


def peak_tflops(name: str, precision: str, tf32: bool) -> float | None:
    """The peak of one GPU; None where it is not known.

    Args:
        name: What `torch.cuda.get_device_name` says. A part of a GPU (MIG) and a laptop's have
            names of their own, which are not known.
        precision: Lightning's, e.g. "bf16-mixed".
        tf32: Whether float32 may be rounded to TF32.
    """
    name = name.removeprefix("NVIDIA ")
    peaks = [peak for pattern, peak in _PEAKS.items() if re.fullmatch(pattern, name)]
    if float32 := _GEFORCE.get(name.removeprefix("GeForce RTX ")):
        peaks = [(2 * float32, float32, float32)]
    if not peaks or "MIG" in name:
        return None
    with_16_bits, in_tf32, in_float32 = peaks[0]
    if re.fullmatch("(bf)?16-(mixed|true)", precision):
        return with_16_bits
    return (in_tf32 if tf32 else in_float32) if precision == "32-true" else None
