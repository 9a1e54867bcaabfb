"""What a learning rule is: tables of the chances of LTP and LTD by time difference and presynaptic rate.

A postsynaptic spike is paired with presynaptic ones in one of two ways. Pairing ``post``: with the last one before it,
which gives LTP within ``ltp_window`` and LTD outside; no presynaptic spike at all gives LTD, too. Pairing
``two-sided``: with the last one before it, for LTP, and with the next one after it, for LTD.

A rule of your own derives from :class:`Rule`, gives :meth:`Rule.ltp` and :meth:`Rule.ltd`, and is registered by
``@register_rule("name")``.
"""

from typing import TYPE_CHECKING

from snn.parameters import STDPParameters
from snn.runtime.errors import check

if TYPE_CHECKING:
    from torch import Tensor

MOST_STEPS = 2**14
"""A presentation is shorter: engines hold lags in 16-bit numbers."""
WINDOW_ROUNDING = 1e-5
"""Relative slack of the LTP window: multiples of the time step are rounded, and the window includes its end."""


class Rule:
    """A learning rule with its constants, those of Eq. 2 and 5."""

    def __init__(self, p: STDPParameters) -> None:
        self.p = p

    def ltp(self, lag: "Tensor", fn: "Tensor") -> "Tensor":
        """Probability of LTP, in the shape of both arguments.

        ``lag`` is t_post - t_pre in ms, 0 or more (``inf``: no presynaptic spike), ``fn`` the normalised presynaptic
        rate in [0, 1].
        """
        raise NotImplementedError

    def ltd(self, lag: "Tensor", fn: "Tensor") -> "Tensor":
        """Probability of LTD; arguments as for :meth:`ltp`, but with pairing ``two-sided``, ``lag`` is below 0.

        There, ``-inf`` stands for no presynaptic spike.
        """
        raise NotImplementedError

    @property
    def peaks(self) -> tuple[float, float]:
        """Highest probabilities of LTP and LTD that the rule can give."""
        return self.p.gamma_p, self.p.gamma_d

    def beyond_window(self, lag: "Tensor") -> "Tensor":
        """Whether a presynaptic spike came too long before the postsynaptic one to be potentiated."""
        return lag > self.p.ltp_window * (1 + WINDOW_ROUNDING)

    def can_depress(self, lag: "Tensor") -> "Tensor":
        """Whether the pairing lets a presynaptic spike at this lag (see :meth:`ltd`) depress the synapse."""
        return self.beyond_window(lag) if self.p.pairing == "post" else (lag < 0) & lag.isfinite()

    def chances(self, steps: int, dt: float, fn: "Tensor") -> "list[Tensor]":
        """Probabilities for every time difference and rate, as whole numbers (:func:`snn.runtime.random.as_chance`).

        Args:
            steps: of a presentation, T.
            dt: time step in ms.
            fn: levels of the normalised rate, float32 (L,).

        Returns:
            int32 (T + 1, L) each, by the steps to the presynaptic spike; the last row is for none. Chances of LTP or,
            negative, of LTD for the last spike before a postsynaptic one; with pairing ``two-sided`` also those of LTD
            for the next spike after it.

        Raises:
            UserError: too many steps; or with pairing ``post``, one spike could give both LTP and LTD.
        """
        check(steps < MOST_STEPS, f"a presentation of {steps} steps: expected fewer than {MOST_STEPS}; raise `dt`")
        import torch

        from snn.runtime.random import as_chance

        elapsed = torch.arange(steps + 1, dtype=torch.float32) * dt
        elapsed[-1] = torch.inf
        lag, fn = elapsed[:, None].expand(-1, len(fn)), fn.float().cpu().expand(steps + 1, -1)
        ltp = as_chance(self.ltp(lag, fn))
        if self.p.pairing == "two-sided":
            return [ltp, -as_chance(self.ltd(-lag, fn))]
        ltd = as_chance(self.ltd(lag, fn))
        check(
            not bool(((ltp > 0) & (ltd > 0)).any()), "pairing post: one spike can give a synapse LTP or LTD, not both"
        )
        return [ltp - ltd]

    def saturated_chances(self, steps: int, dt: float, fn: "Tensor") -> "list[Tensor]":
        """As :meth:`chances`, but 1 (LTP) and -1 (LTD) where the probability is at its peak, and 0 elsewhere."""
        import torch

        from snn.runtime.random import ONE, as_chance

        ltp, ltd = (as_chance(torch.tensor(peak)) for peak in self.peaks)
        return [ONE * (table == ltp).int() - ONE * (table == -ltd).int() for table in self.chances(steps, dt, fn)]
