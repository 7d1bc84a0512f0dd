"""Who talks to whom, and who reads what in which order."""
