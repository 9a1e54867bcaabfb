"""Plain stochastic STDP: Eq. 5 without frequency dependence."""

from dataclasses import replace

from snn.parameters import STDPParameters
from snn.registries import register_rule
from snn.rules.fd import FrequencyDependent


@register_rule("stochastic")
class Stochastic(FrequencyDependent):
    """Eq. 5 with phi = 0."""

    def __init__(self, p: STDPParameters) -> None:
        super().__init__(replace(p, phi_p=0.0, phi_d=0.0))
