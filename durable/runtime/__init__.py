"""How it runs: all that calls the user's code or waits."""
