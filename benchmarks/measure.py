"""What benchmarks share: memory of this process, and the words for this machine."""

import os
import platform

import timm
import torch


def status(name):
    """What Linux says of this process, in MB: `getrusage` would count what the one that started it had."""
    if not os.path.exists("/proc/self/status"):
        return float("nan")  # not Linux: no figure
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1e3


def resident(device="cpu"):
    """Memory in use, in MB: of the GPU, for a CUDA device."""
    return status("VmRSS") if device == "cpu" else torch.cuda.memory_allocated() / 1e6


def most(device="cpu"):
    """The most there has been of it."""
    return status("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated() / 1e6


def warm(backbone):
    """One forward pass, so that libraries have what they keep."""
    with torch.no_grad():
        backbone(torch.zeros(1, 3, *[backbone.preprocessing.image_size] * 2, device=backbone.device))


def machine():
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.machine()}, {os.cpu_count()} cores{gpu}, torch {torch.__version__}, timm {timm.__version__}"


def table(heads, rows):
    """Lines of a Markdown table."""
    return ["| " + " | ".join(map(str, cells)) + " |" for cells in [heads, ["---"] * len(heads), *rows]]


def forget_peak(device="cpu"):
    """Let `most` begin anew."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return
    if os.path.exists("/proc/self/clear_refs"):
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
