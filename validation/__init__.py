"""Reference models in Brian2, compared with the functions that the learner calls.

Commands: ``validation.freq_response`` (Eq. 1, Fig. 4), ``validation.stdp_window`` (Eq. 2, 4, 5) and
``validation.network`` (spiking convolutions with inhibition and learning).
"""
