"""Whole clusters in one thread: the shipped core, shells and keyspace, on a world made of one seeded generator.

    world.py     the clock, the queue of events, chance
    network.py   between raft processes             disk.py   under them
    pipes.py     processes as the operating system sees them, and the pipes between those of one node
    node.py      raft, apply and watch, running the shipped turn()
    clients.py   who asks                           followers.py  who watches
    faults.py    what goes wrong
    safety.py    what must hold after every turn    run.py    one seed from start to verdict
    mutants.py   wrong cores and shells, to show that each kind of wrong is seen

`python -m tests.simulation --seed N` replays a seed exactly, `--trace` tells its story, `--seeds A:B` runs many.
"""
