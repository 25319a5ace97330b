"""Tests of automodel-mesh: real process groups on real ranks, the same on every torch release."""
