"""One program, many hosts: each reads what its own devices get."""
