"""The version: the command line reads it without loading anything else."""

VERSION = "0.1.0"
