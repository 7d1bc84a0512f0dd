"""Messages between workers: the protocol, the mailbox, the store, the collectives, and who is alive."""
