"""One process: units of a plan -> checked values -> variables, within a byte budget.

`units.py` says which entries belong together, `read_tasks.py` which kind each unit is (a class for each: `direct.py`,
`joined.py`, ...), `check_pass.py` reads all that is needed once, `assign_pass.py` fills the variables, `verify_pass.py`
looks again. Knows no names beyond those of the plan, and no other worker.
"""
