"""Testing workflows: time that one drives, every crash, every order."""
