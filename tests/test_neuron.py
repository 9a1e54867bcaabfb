import math

import numpy as np
import pytest
import torch

from snn.neuron import integrate, norse_parameters
from snn.parameters import LIFParameters
from snn.runtime.errors import UserError
from validation.comparisons.neuron import constant_current_spikes
from validation.reference.neuron import lif_spikes


def test_norse_step_is_equation_1():
    p = LIFParameters()
    v, current, dt = -67.3, 9.1, 2.5
    expected = v + dt * p.membrane_time_scale * (p.a + p.b * v + p.c * current)
    depolarisation = torch.tensor([current * p.millivolts_per_current], dtype=torch.float64)
    threshold = torch.tensor([p.v_threshold], dtype=torch.float64)
    crossed, after = integrate(
        depolarisation, torch.tensor([v], dtype=torch.float64), norse_parameters(p, threshold), dt
    )
    assert after.item() == pytest.approx(expected, rel=1e-12)
    assert not crossed.item()


def test_a_neuron_exactly_at_threshold_does_not_fire():
    # In exact binary fractions: rest -64, one step of dt = tau carries v to rest + depolarisation.
    p = LIFParameters(a=-64.0, b=-1.0, c=1.0, membrane_time_scale=1.0, v_threshold=-60.0, v_reset=-70.0, v_init=-64.0)
    threshold = torch.tensor([-60.0], dtype=torch.float64)
    for depolarisation, fires in ((4.0, False), (4.0 + 2**-40, True)):
        crossed, _ = integrate(
            torch.tensor([depolarisation], dtype=torch.float64),
            torch.tensor([-64.0], dtype=torch.float64),
            norse_parameters(p, threshold),
            1.0,
        )
        assert crossed.item() is fires


def test_spikes_equal_those_of_brian2():
    random = np.random.default_rng(0)
    p, dt, steps = LIFParameters(), 2.5, 120
    thresholds = np.array([-60.2, -62.0, -64.0, -66.0, -67.4] * 8)
    constant = np.repeat(np.linspace(0, 40, len(thresholds))[None], steps, axis=0)
    pulsed = random.uniform(0, 80, (steps, len(thresholds))) * (random.random((steps, len(thresholds))) < 0.3)
    for currents in (constant, pulsed):
        expected = lif_spikes(currents, thresholds, p, dt)
        assert expected.sum() > 100
        assert np.array_equal(constant_current_spikes(currents, thresholds, p, dt), expected)


def test_intervals_converge_to_the_closed_form():
    p, current = LIFParameters(), 12.0
    exact = p.interspike_interval(current)
    for dt in (5.0, 2.5, 1.0, 0.25, 0.05):
        steps = round(600 / dt)
        spikes = constant_current_spikes(np.full((steps, 1), current), np.array([p.v_threshold]), p, dt)
        intervals = np.diff(np.flatnonzero(spikes[:, 0])) * dt
        assert len(intervals) >= 3
        # A spike waits for the end of its step: first order, and never more than a step and Euler's own error.
        assert np.abs(intervals - exact).max() < 1.5 * dt


def test_rheobase_and_time_constant():
    p = LIFParameters()
    assert p.v_leak == pytest.approx(-68.453, abs=1e-3)
    assert p.tau_mem == pytest.approx(252.78, abs=0.01)
    rheobase = (p.v_threshold - p.v_leak) / p.millivolts_per_current
    assert rheobase == pytest.approx(2.599, abs=1e-3)
    assert p.interspike_interval(rheobase * 0.999) == math.inf
    # (v_inf - v_reset) / (v_inf - v_threshold) = 2 at this current: one time constant times ln 2
    v_inf = 2 * p.v_threshold - p.v_reset
    assert p.interspike_interval((v_inf - p.v_leak) / p.millivolts_per_current) == pytest.approx(
        p.tau_mem * math.log(2)
    )


@pytest.mark.parametrize(
    "wrong", [{"b": 0.1}, {"v_threshold": -69.0}, {"v_reset": -60.0}, {"membrane_time_scale": 0.0}]
)
def test_impossible_neurons_are_refused(wrong):
    with pytest.raises(UserError):
        LIFParameters(**wrong)
