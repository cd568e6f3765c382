"""What is remembered: the only folder that speaks SQL.

`database` has the two doors, `write` and `read`, over `connections` and `requests`. The other
modules are functions that take the open transaction of a caller, so that what belongs together
shares one commit.
"""
