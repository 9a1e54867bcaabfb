"""The neuron apart from its response curve: encoder, threshold, and convergence in the time step."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import torch

from snn.engines.base import choose_engine
from snn.engines.norse import simulate_drive
from snn.layer import SpikingConv2d
from snn.parameters import Encoding, LayerParameters, LIFParameters
from snn.runtime.progress import progress
from snn.runtime.random import draw_seeds
from snn.spikes import as_dense
from validation.exact_neuron import EXACT_DT, EXACT_NEURON, POTENTIAL_UNIT
from validation.reference.equations import interval
from validation.reference.neuron import lif_spikes
from validation.report import FALSE_ALARM, Report
from validation.significance import binomial_p


def single_synapses(
    drives: np.ndarray, thresholds: np.ndarray, p: LIFParameters, dt: float, pulse_width: float, dtype: torch.dtype
) -> SpikingConv2d:
    """A layer whose channels are neurons with one synapse each.

    Each neuron has its current while the synapse is open, and its threshold in mV, (N,) both. Times are in ms.
    """
    channels = len(drives)
    return SpikingConv2d(
        conductance=torch.ones(channels, 1, 1, 1, dtype=dtype),
        gain=torch.as_tensor(drives, dtype=dtype),
        v_threshold=torch.as_tensor(thresholds, dtype=dtype),
        geometry=LayerParameters(channels, kernel_size=1, padding=0, pulse_width=pulse_width, inhibition_time=dt),
        lif=p,
        dt=dt,
    )


def constant_current_spikes(
    currents: np.ndarray, v_threshold: np.ndarray, p: LIFParameters, dt: float, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Spikes (T, N) of neurons with given currents (T, N) and thresholds (N,), from the learner's own steps."""
    layer = single_synapses(np.ones(len(v_threshold)), v_threshold, p, dt, dt, torch.float64).to(device)
    steps = torch.from_numpy(currents).to(device)[:, None, :, None, None]
    return simulate_drive(layer, steps, inhibition=False)[:, 0, :, 0, 0].cpu().numpy()


def compare_encoder(presentation: float, dt: float, report: Report, seed: int, device: torch.device) -> None:
    """Compare trains of all 256 intensities, encoded as images are: counts, gaps, and the rate of Poisson trains."""
    copies, intensities = 200, torch.arange(256, dtype=torch.uint8, device=device)
    images = intensities.expand(copies, 1, 1, 256)
    seeds = draw_seeds(copies, torch.Generator(device).manual_seed(seed))
    p = Encoding(presentation=presentation, dt=dt)
    rates = [Fraction(p.f_min) + Fraction(level, 255) * Fraction(p.f_max - p.f_min) for level in range(256)]
    engine = choose_engine("auto", device)
    regular = as_dense(engine.encode(images, p, seeds))[:, :, 0, 0].cpu().numpy()
    due = np.array([int(rate * Fraction(p.presentation) / 1000) for rate in rates])
    wrong = regular.sum(0) != due
    for intensity, rate in enumerate(rates):
        period = 1000 / (float(rate) * p.dt)
        for copy, train in enumerate(regular[:, :, intensity].T):
            # A random shift closes the train to a circle: at its seam one gap is another.
            gaps = np.diff(np.flatnonzero(train))
            wrong[copy, intensity] |= (np.abs(gaps - period) >= 1).sum() > 1
    report.add(
        "regular trains of all intensities at random phases: floor(F T) spikes, all gaps but one 1/F to the step",
        f"{wrong.sum()} of {wrong.size} trains differ",
        "0",
        not wrong.any(),
        of=int(regular.sum()),
    )
    trains = as_dense(engine.encode(images, replace(p, kind="poisson"), seeds))[:, :, 0, 0].cpu().numpy()
    probability = np.array([float(rate) for rate in rates]) * p.dt / 1000
    smallest = binomial_p(trains.sum((0, 1)), p.n_steps * copies, probability).min()
    level = FALSE_ALARM / len(probability)
    report.add(
        "Poisson trains of all intensities: spikes per step",
        f"smallest p of {len(probability)} intensities {smallest:.2g}",
        f"at least {level:.1g}, exact binomial test",
        smallest >= level,
        of=int(trains.sum()),
        figures=[smallest],
    )


def compare_exact(report: Report, generator: np.random.Generator, device: torch.device) -> None:
    """Compare spikes where potentials meet the threshold exactly: norse, Brian2 and exact fractions must not fire."""
    p, neurons, steps = EXACT_NEURON, 64, 60
    currents = np.repeat(generator.integers(0, 13, (steps // 2, neurons)) * 4.0, 2, axis=0)
    thresholds = generator.choice([-24, -25, -28], neurons) * POTENTIAL_UNIT
    expected = np.zeros((steps, neurons), dtype=bool)
    touches = 0
    for neuron in range(neurons):
        v, threshold = Fraction(p.v_init), Fraction(thresholds[neuron])
        for step in range(steps):
            dv = Fraction(p.a) + Fraction(p.b) * v + Fraction(p.c) * Fraction(currents[step, neuron])
            v += dv / 2
            touches += v == threshold
            if v > threshold:
                expected[step, neuron] = True
                v = Fraction(p.v_reset)
    norse = constant_current_spikes(currents, thresholds, p, EXACT_DT, device)
    brian = lif_spikes(currents, thresholds, p, EXACT_DT)
    wrong = int((norse != expected).sum()), int((brian != expected).sum())
    report.add(
        "spikes where v meets v_threshold exactly, norse and Brian2 against fractions",
        f"{wrong[0]} and {wrong[1]} differ, v = v_threshold {touches} times",
        "0 and 0, at least 20 times",
        wrong == (0, 0) and touches >= 20,
        of=int(expected.sum()),
    )


def compare_convergence(
    lif: LIFParameters, quick: bool, report: Report, generator: np.random.Generator, device: torch.device
) -> dict[str, np.ndarray]:
    """Compare inter-spike intervals with the closed form as dt shrinks, at many constant currents.

    Each error is a sawtooth in dt, because a spike waits for the end of its step; the mean error is smooth.

    Returns:
        Time steps and mean errors in ms, and the order of convergence.
    """
    neurons, p = 200, replace(lif, v_init=lif.v_reset)
    threshold = p.v_leak + generator.uniform(0.4, 1.0, neurons) * (p.v_threshold - p.v_leak)
    rheobase = (threshold - p.v_leak) / p.millivolts_per_current
    current = rheobase * generator.uniform(4.0, 10.0, neurons)
    closed = interval(current, threshold, p)
    steps_ms = 5.0 / 2 ** np.arange(5 if quick else 7)
    # Long enough for two intervals from the reset.
    duration = 2 * closed.max() + 4 * steps_ms[0]
    errors = np.zeros((2, len(steps_ms)))
    for index, dt in enumerate(progress(steps_ms, "convergence", "time step")):
        constant = np.repeat(current[None], int(np.ceil(duration / dt)), axis=0)
        both = (
            constant_current_spikes(constant, threshold, p, dt, device),
            lif_spikes(constant, threshold, p, dt),
        )
        for row, spikes in zip(errors, both, strict=True):
            first = spikes.argmax(0)
            later = spikes.copy()
            later[first, np.arange(neurons)] = False
            # A neuron that does not fire twice is as wrong as can be.
            measured = np.where(later.any(0), (later.argmax(0) - first) * dt, duration)
            row[index] = np.abs(measured - closed).mean()
    order = np.polyfit(np.log(steps_ms), np.log(errors[0]), 1)[0]
    report.add(
        "order of convergence in dt to the closed-form interval, norse",
        f"{order:.3f}, mean error {errors[0, 0]:.3g} ms at dt {steps_ms[0]:g} ms, "
        f"{errors[0, -1]:.3g} ms at {steps_ms[-1]:g} ms",
        "0.9 to 1.1",
        0.9 <= order <= 1.1,
        of=errors.size,
        figures=[order, *errors.ravel()],
    )
    report.add(
        "the same errors, norse and Brian2, largest difference",
        f"{np.abs(errors[0] - errors[1]).max():.1g} ms",
        "0 ms",
        bool(np.array_equal(errors[0], errors[1])),
        of=errors.size,
        figures=errors.ravel(),
    )
    return {"dt": steps_ms, "mean_error": errors[0], "mean_error_brian2": errors[1], "order": order}
