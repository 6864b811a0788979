"""The tiers: memory over a shared one, each behind the port :class:`wasmkilnd.ports.Tier`."""
