"""What is compared with the learner: models in Brian2, equations in NumPy, and a reference for each learning rule.

Nothing here uses the code under test but for its records of constants and its seeded draws between equal channels.
"""
