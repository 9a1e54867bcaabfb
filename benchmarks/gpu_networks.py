"""Parts of ``python -m benchmarks.gpu`` about networks: the converted front end, and steps of training."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.frontend import ordinary
from benchmarks.gpu_setting import Setting
from benchmarks.jobs import NO_TIME, Job, Row
from benchmarks.timing import repeated
from benchmarks.training import CLASSES, FRONTEND, TrainingConfig, seconds_per_step
from bridge.storage import load_frontend
from hybrid.architecture import safe_dnn

BATCHES = (64, 1024, 8192)
FRONT_END = "converted front end"
RETINA = "pretrained:cifar10-retina"
BACKBONES = ("fast_cnn", "resnet18", "mobilenet_v2")
TRAINED_AT_ONCE = 512
"""Images of a training step."""


@torch.inference_mode()
def measure_frontend(job: Job, setting: Setting) -> None:
    """Part ``frontend``: images/s of the converted layers, of ordinary ones, and of SAFE behind them."""
    device = setting.device
    frontend = load_frontend(FRONTEND)[0].eval().to(device)
    plain = ordinary(frontend).to(device, memory_format=torch.channels_last)
    safe = safe_dnn(FRONTEND, backbone="fast_cnn", classes=CLASSES, width=0.1 if setting.tiny else 1.0)
    safe = safe.to(device, memory_format=torch.channels_last).eval()
    networks: list[tuple[str, nn.Module, bool]] = [
        (FRONT_END, frontend, False),
        (f"{FRONT_END}, retina", load_frontend(RETINA)[0].eval().to(device), False),
        ("conv-BN-ReLU", plain, False),
        ("conv-BN-ReLU", plain, True),
        ("SAFE with fast_cnn", safe, False),
        ("SAFE with fast_cnn", safe, True),
    ]
    for batch in (2,) if setting.tiny else BATCHES:
        images = torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
        images = images.contiguous(memory_format=torch.channels_last)
        for name, network, low in networks:
            # The front end is exact: it stays in float32, whatever the rest takes.
            row = {"network": name, "precision": "bfloat16" if low else "float32", "batch": batch}
            job.attempt(row, partial(images_per_second, setting, network, images, low))
        if setting.on_gpu:
            row = {"network": f"{FRONT_END}, compiled", "precision": "float32", "batch": batch}
            job.attempt(row, lambda images=images: images_per_second(setting, torch.compile(frontend), images, False))


def images_per_second(setting: Setting, network: Callable[[Tensor], Tensor], images: Tensor, low: bool) -> Row:
    """Of forward passes; ``low``: in bfloat16 where the network allows it."""
    autocast = torch.autocast(setting.device_name, torch.bfloat16) if low else nullcontext()
    with autocast:
        row = repeated(lambda: network(images), setting.device, 0.02 if setting.tiny else 0.4)
    return row | {"images_per_s": len(images) / row["seconds"]}


def measure_training(job: Job, setting: Setting) -> None:
    """Part ``training``: images/s of training steps, SAFE beside its baseline."""
    steps = {"batch_size": 4, "steps": 1, "width": 0.1} if setting.tiny else {"batch_size": TRAINED_AT_ONCE}
    for backbone in BACKBONES[:1] if setting.tiny else BACKBONES:
        config = TrainingConfig(backbones=(backbone,), **steps)
        row: Row = {"backbone": backbone, "batch": config.batch_size}
        if job.left == 0:
            job.record(row | {"note": NO_TIME})
            continue
        with job.caught(row):
            seconds = seconds_per_step(config, backbone, setting.device)
            for variant, each in seconds.items():
                speeds = {"images_per_s": config.batch_size / each, "time_over_baseline": each / seconds["baseline"]}
                job.record(row | {"variant": variant, "seconds": each} | speeds)
