"""fc-lightning: teach an open language model to call functions, and measure the calls it makes."""

__version__ = "0.1.0"
