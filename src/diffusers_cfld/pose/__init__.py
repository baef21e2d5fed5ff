"""Poses: the joints of a person, the forms that they are read from, alignment and estimation."""
