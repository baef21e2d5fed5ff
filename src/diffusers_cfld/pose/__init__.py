"""Poses: the joints of a person, the formats that they are read from, alignment and estimation."""
