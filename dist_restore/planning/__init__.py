"""Two indexes and rules -> a frozen `RestorePlan`. Pure: no TensorFlow, no file, milliseconds in tests.

`planner.py` is the way through it: rules (`rules/`), then evidence (`matching/`), then slots, then what is left is
reported with its candidates. `plan.py` and `entries.py` are the result; `summary.py` its text.

    plan = resolve(checkpoint_index, target_index, rules, Options())
"""
