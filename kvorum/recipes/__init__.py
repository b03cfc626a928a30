"""The classic uses of such a store, built on nothing but the public client.

    Lock      one holder at a time, with a token that fences off whoever only believes to hold it
    Election  one leader at a time, who says what it wants to say, and everyone sees who it is
    Barrier   many wait until one says go;  DoubleBarrier: all begin together and end together
    Counter   a number that nobody miscounts
    View      the keys below a prefix as a dict that follows them
    Service   an instance that is listed as long as it lives, and the list of all that do

Each takes a client and the name of a place in the keyspace; processes in any language may meet there, as the keys are
those of etcd's own recipes where it has them (lock, election). kvorum.recipes.aio has the same for the asyncio client.
"""

from kvorum.recipes.barrier import Barrier, DoubleBarrier
from kvorum.recipes.counter import Counter
from kvorum.recipes.election import Election, Leader, NotLeading
from kvorum.recipes.lock import Lock, LockLost
from kvorum.recipes.service import Instance, Service
from kvorum.recipes.view import View

__all__ = [
    "Barrier",
    "Counter",
    "DoubleBarrier",
    "Election",
    "Instance",
    "Leader",
    "Lock",
    "LockLost",
    "NotLeading",
    "Service",
    "View",
]
