"""Tests of the C parts and their thin Python faces."""
