"""The classic patterns as small programs: `python -m kvorum.examples.NAME [ENDPOINTS]`, each to be read in a minute.

session     keys that live as long as their owner
lock        one at a time, and a fence against whoever only believes to be the one
leader      one leads, the next takes over
discovery   who offers a service now
config      settings that change while the program runs
counter     compare-and-swap
"""
