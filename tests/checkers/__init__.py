"""Judges of what clients saw. Pure: the simulator and the tests with real processes bring their histories here.

history.py            what a history is: calls, answers, refusals, and calls that may have happened
model.py              a second, dumb implementation of the key-value semantics, as the measure of every answer
replay.py             the order by revision: what every answer said against a replay of all revisions
linearizability.py    any order at all: is there one that explains the answers (Wing & Gong, Lowe)
"""
