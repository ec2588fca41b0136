"""The one helper through which every site of every model passes."""

from collections.abc import Mapping

from jax import Array


def site(sites: dict[str, Array], edits: Mapping[str, Array], name: str, value: Array) -> Array:
    """Adds the edit of a site, if there is one, records the result and returns it for the following layers."""
    sites[name] = value + edits[name] if name in edits else value
    return sites[name]
