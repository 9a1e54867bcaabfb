"""A neuron whose potentials are exact binary fractions, so that they can meet a threshold exactly."""

from snn.parameters import LIFParameters

POTENTIAL_UNIT = 125 / 64
"""Step of the potentials in mV: 2^-9 volt, exact in both units."""

EXACT_NEURON = LIFParameters(
    a=-32 * POTENTIAL_UNIT,
    b=-1.0,
    c=POTENTIAL_UNIT,
    membrane_time_scale=0.2,
    v_threshold=-24 * POTENTIAL_UNIT,
    v_reset=-40 * POTENTIAL_UNIT,
    v_init=-32 * POTENTIAL_UNIT,
)
"""Rest -62.5 mV, threshold -46.875 mV; a current of 1 lifts the potential's limit by one unit."""

EXACT_DT = 2.5
"""Time step in ms that carries v half way to its limit, to (v + v_inf)/2: nothing is rounded for many steps."""
