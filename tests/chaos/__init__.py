"""Chaos: random attacks on whole commands and on readers, and checks of what they leave.

`make chaos` runs them; docs/reliability.md has the figures.

* `jobs`: the commands that are attacked, and what an undisturbed one leaves;
* `logs`: what they may print;
* `kills`: signals at random instants, and two or three of the same command at once;
* `faults`: a kill, a full disk or a broken disk at each write to a file or to the database;
* `hostile`: damaged and forged files, in every reader;
* `words`: random parameters;
* `servers`: a tracking server and PostgreSQL that die, hang, or answer garbage.
"""
