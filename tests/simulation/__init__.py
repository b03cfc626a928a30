"""Whole clusters in one thread: the shipped core, shells and keyspace, on a world made of one seeded generator.

    world.py     the clock, the queue of events, chance
    network.py   between raft processes             disk.py   under them
    pipes.py     processes as the operating system sees them, and the pipes between those of one node
    node.py      raft, apply and watch, running the shipped turn()
    air.py       broadcasts, which are lost
    clients.py   who asks                           followers.py  who watches by streams
    tenants.py   who holds leases                   listeners.py  who listens to broadcasts
    faults.py    what goes wrong
    safety.py    what must hold after every turn    ledger.py     leases, as the log alone tells of them
    run.py       one seed from start to verdict
    mutants.py   wrong cores, shells and clients (wrong_leases.py, wrong_broadcasts.py), to show that each kind of
                 wrong is seen

`python -m tests.simulation --seed N` replays a seed exactly, `--trace` tells its story, `--seeds A:B` runs many.
"""
