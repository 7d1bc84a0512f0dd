"""All that exists only because there is more than one worker or host.

`communicator.py` and `messaging/`: who talks to whom, and how a failure of one ends all. `shared/`: what each worker
reads a share of. `hosts/`: one program whose variables are on many hosts. `read_mode.py`, `rates.py`, `forecast.py`:
who reads.
"""
