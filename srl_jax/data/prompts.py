"""The public names for a response's format; they are defined in data.responses."""

from srl_jax.data.responses import Response, format_failure, parse_response

__all__ = ["Response", "format_failure", "parse_response"]
