"""sptjax: sub-tomogram averaging in JAX."""

__version__ = "0.1.0"
