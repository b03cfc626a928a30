"""The tests. A package, so that the judges in tests.checkers and the world in tests.simulation have one name each."""
