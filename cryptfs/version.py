"""The version, where the command line can read it without loading anything."""

VERSION = "0.1.0"
