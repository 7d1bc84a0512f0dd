"""One process: units of a plan -> checked values -> variables, within a byte budget.

`units.py` says what is read together, `check_pass.py` reads all that is needed once, `assign_pass.py` fills the
variables, `verify_pass.py` looks again. Knows no names beyond those of the plan, and no other worker.
"""
