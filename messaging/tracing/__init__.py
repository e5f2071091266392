"""Traces: W3C Trace Context in the headers of messages, and spans by OpenTelemetry.

Everything here but `sdk` needs OpenTelemetry's API alone. Without an SDK nothing is recorded, and the context of
whoever asked for a run is still passed on, to workers and in results.
"""
