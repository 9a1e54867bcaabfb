"""Models in Brian2 and closed forms, compared with the functions that the learner calls.

Commands: ``validation.freq_response`` (Eq. 1, Fig. 4), ``validation.stdp_window`` (Eq. 2, 4, 5) and
``validation.network`` (spiking convolutions with inhibition and learning). ``comparisons`` holds what they compare,
``reference`` what they compare it with; the reference of a learning rule is one file there, or one of a plugin.
"""

# Answers to Ctrl-C while modules load, as for all commands.
import snn  # noqa: F401
