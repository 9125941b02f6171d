"""The version of the package, its only home: setup.py and CMake read it from here."""

__version__ = "0.1.0"
