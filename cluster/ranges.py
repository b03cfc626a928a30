"""Who wants to hear of a key: an index of ranges, so that an event costs what it matches, not what is watched.

    single keys       a dict
    prefixes          a dict for each length of prefix that there is
    from a key on     the sorted starts: all up to the key
    any other range   a search tree by (start, end); each node knows the greatest end below it

A `Place` is a range and all who want it, so what is found costs once per range, however many they are.

The tree is kept balanced without rotations (a scapegoat tree): when one side of a node has grown to more than BALANCE
of it, that part is built anew. A place that nobody wants any more stays in the tree, empty, until there are more such
than others; then the whole tree is built anew without them. So adding and removing take O(log n), amortised, and
finding O(log n) for each place found. In which order things are found depends on nothing but what was done. Pure.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

BALANCE = 0.7
EMPTY_MAX = 64
"""So many empty places are no reason to build anew."""


class Place(Generic[T]):
    """A range [key, end), and in `wanted_by`, in order of arrival, who wants it."""

    __slots__ = ("end", "key", "wanted_by")

    def __init__(self, key: bytes, end: bytes | None) -> None:
        self.key, self.end = key, end
        self.wanted_by: dict[T, None] = {}


class _Node(Generic[T]):
    __slots__ = ("end", "key", "left", "place", "right", "size", "top")

    def __init__(self, place: Place[T]) -> None:
        assert place.end is not None
        self.place, self.key, self.end = place, place.key, place.end
        self.left: _Node[T] | None = None
        self.right: _Node[T] | None = None
        self.measure()

    def measure(self) -> None:
        self.size, self.top = 1, self.end
        for child in (self.left, self.right):
            if child is not None:
                self.size += child.size
                self.top = max(self.top, child.top)


class _Tree(Generic[T]):
    """Ranges with both ends."""

    def __init__(self) -> None:
        self._root: _Node[T] | None = None
        self.places: dict[tuple[bytes, bytes], Place[T]] = {}
        self._empty = 0

    def place(self, key: bytes, end: bytes) -> Place[T]:
        """That of the range, made if need be. Whoever wants it is to be put there at once."""
        place = self.places.get((key, end))
        if place is None:
            place = self.places[key, end] = Place(key, end)
            self._insert(_Node(place))
        elif not place.wanted_by:
            self._empty -= 1
        return place

    def emptied(self) -> None:
        self._empty += 1
        if self._empty > EMPTY_MAX and self._empty * 2 > len(self.places):
            places = [node.place for node in _in_order(self._root) if node.place.wanted_by]
            self.places = {(place.key, place.end or b""): place for place in places}
            self._root, self._empty = _balanced([_Node(place) for place in places]), 0

    def _insert(self, new: _Node[T]) -> None:
        path: list[_Node[T]] = []
        node = self._root
        while node is not None:
            path.append(node)
            node.size += 1
            node.top = max(node.top, new.end)
            node = node.left if (new.key, new.end) < (node.key, node.end) else node.right
        self._hang(path[-1] if path else None, None, new)
        for at, node in enumerate(path):  # from the root: the greatest part that leans
            if max(child.size if child else 0 for child in (node.left, node.right)) > BALANCE * node.size + 1:
                self._hang(path[at - 1] if at else None, node, _balanced(list(_in_order(node))))
                break

    def _hang(self, parent: _Node[T] | None, old: _Node[T] | None, new: _Node[T] | None) -> None:
        """Put `new` where `old` was; if that is None, where it belongs, which is free."""
        if parent is None:
            self._root = new
        elif old is not None:
            if parent.left is old:
                parent.left = new
            else:
                parent.right = new
        elif new is not None:
            if (new.key, new.end) < (parent.key, parent.end):
                parent.left = new
            else:
                parent.right = new

    def at(self, key: bytes) -> Iterator[Place[T]]:
        stack = [self._root]
        while stack:
            node = stack.pop()
            if node is None or node.top <= key:
                continue
            stack.append(node.left)
            if node.key <= key:
                stack.append(node.right)
                if key < node.end and node.place.wanted_by:
                    yield node.place


def _in_order(root: _Node[T] | None) -> Iterator[_Node[T]]:
    stack: list[_Node[T]] = []
    node = root
    while stack or node is not None:
        while node is not None:
            stack.append(node)
            node = node.left
        found = stack.pop()
        node = found.right
        yield found


def _balanced(nodes: list[_Node[T]]) -> _Node[T] | None:
    """The tree of these nodes, which are in order."""

    def of(low: int, high: int) -> _Node[T] | None:
        if low == high:
            return None
        middle = (low + high) // 2
        node = nodes[middle]
        node.left, node.right = of(low, middle), of(middle + 1, high)
        node.measure()
        return node

    return of(0, len(nodes))


class Ranges(Generic[T]):
    """Who wants which range: [key, end) with end None for the key alone, b"" for all from it on."""

    def __init__(self) -> None:
        self._single: dict[bytes, Place[T]] = {}
        self._prefix: dict[int, dict[bytes, Place[T]]] = {}  # by the prefix's length
        self._from: dict[bytes, Place[T]] = {}
        self._starts: list[bytes] = []  # of _from, sorted
        self._tree: _Tree[T] = _Tree()

    def add(self, key: bytes, end: bytes | None, who: T) -> None:
        if end is None:
            place = self._single.setdefault(key, Place(key, end))
        elif not end:
            if key not in self._from:
                insort(self._starts, key)
            place = self._from.setdefault(key, Place(key, end))
        elif end == prefix_end(key):
            place = self._prefix.setdefault(len(key), {}).setdefault(key, Place(key, end))
        else:
            place = self._tree.place(key, end)
        place.wanted_by[who] = None

    def remove(self, key: bytes, end: bytes | None, who: T) -> None:
        """Raises KeyError if it wasn't there."""
        if end is None:
            if _left(self._single[key], who):
                del self._single[key]
        elif not end:
            if _left(self._from[key], who):
                del self._from[key]
                del self._starts[bisect_right(self._starts, key) - 1]
        elif end == prefix_end(key):
            by_prefix = self._prefix[len(key)]
            if _left(by_prefix[key], who):
                del by_prefix[key]
                if not by_prefix:
                    del self._prefix[len(key)]
        elif _left(self._tree.places[key, end], who):
            self._tree.emptied()

    def at(self, key: bytes) -> Iterator[Place[T]]:
        """The places whose range holds the key, each once. Nothing may be added or removed meanwhile."""
        place = self._single.get(key)
        if place is not None:
            yield place
        for length, by_prefix in self._prefix.items():
            if length <= len(key):
                place = by_prefix.get(key[:length])
                if place is not None:
                    yield place
        for start in self._starts[: bisect_right(self._starts, key)]:
            yield self._from[start]
        yield from self._tree.at(key)


def _left(place: Place[T], who: T) -> bool:
    """Whether that was the last one."""
    del place.wanted_by[who]
    return not place.wanted_by


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of all keys that start so; b"" if there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b""
