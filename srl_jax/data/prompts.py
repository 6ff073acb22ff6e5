"""Public names for parsing a response; data.responses defines them."""

from srl_jax.data.responses import Response, format_failure, parse_response

__all__ = ["Response", "format_failure", "parse_response"]
