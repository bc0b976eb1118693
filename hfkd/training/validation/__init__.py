"""Checks that run when a trainer is built, before anything is written."""
