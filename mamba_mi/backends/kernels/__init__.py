"""Loops of our own, compiled: each module needs the compiler it is written for, and is imported by the backend that has it."""
