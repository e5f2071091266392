"""The pure core: it decides what happens next, and does nothing else.

No I/O, no clock, no randomness, no logging; time and ids are arguments. Start at `orchestrator.engine.decide`.
"""
